//! `pith why`: what would happen to a packet on a replica, and why, out of its live maps.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use pith_proxy::why::{Question, Step, Transport, why};
use serde::Serialize;

use crate::cli::{Output, WhyArgs};
use crate::cluster::Cluster;
use crate::machine::require_root;
use crate::roles::client_from;

/// One of those that clients get from the kernel; any other would do.
const SOURCE_PORT: u16 = 40_000;
/// Whose maps are read where nobody says where the packet is seen.
const DEFAULT_REPLICA: &str = "replica-1";

/// `DST:PORT/PROTO`: an address, or a Service's name; without a port, a ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    host: String,
    port: u16,
    transport: Transport,
}

/// A text that names no destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoDestination {
    #[error(
        "{0:?} is none of ADDRESS:PORT/PROTO ([ADDRESS]:PORT in IPv6), SERVICE.NAMESPACE:PORT/PROTO (TCP, UDP, SCTP) \
         and ADDRESS/ICMP"
    )]
    Form(String),
}

impl FromStr for Destination {
    type Err = NoDestination;

    fn from_str(text: &str) -> Result<Self, NoDestination> {
        let refuse = || NoDestination::Form(text.to_owned());
        let (place, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
        let transport = match protocol.to_ascii_uppercase().as_str() {
            "TCP" => Transport::Tcp,
            "UDP" => Transport::Udp,
            "SCTP" => Transport::Sctp,
            "ICMP" => Transport::Ping,
            _ => return Err(refuse()),
        };
        let (host, port) = match transport {
            Transport::Ping => (place, 0),
            Transport::Tcp | Transport::Udp | Transport::Sctp => {
                let (host, port) = place.rsplit_once(':').ok_or_else(refuse)?;
                let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
                (inner.unwrap_or(host), port.parse().map_err(|_| refuse())?)
            }
        };
        // Without brackets nobody can tell where the address ends.
        let six = host.parse::<Ipv6Addr>().is_ok();
        if host.is_empty() || (host.contains(':') && !six) || (six && port != 0 && !place.starts_with('[')) {
            return Err(refuse());
        }
        Ok(Self { host: host.to_owned(), port, transport })
    }
}

#[derive(Serialize)]
struct Report<'a> {
    replica: &'a str,
    steps: &'a [Step],
}

pub(crate) fn run(args: &WhyArgs) -> Result<()> {
    require_root("why")?;
    let cluster = Cluster::new(&args.cluster)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (sources, of_pod) = runtime.block_on(sources(&cluster, &args.source))?;
    let destinations = runtime.block_on(destinations(&cluster, &args.destination))?;
    let (source, destination) = pair(&sources, &destinations)
        .with_context(|| format!("{} and {} have no family in common", args.source, args.destination.host))?;
    let destination = SocketAddr::new(destination, args.destination.port);
    let replica = args.replica.clone().or(of_pod).unwrap_or_else(|| DEFAULT_REPLICA.to_owned());
    let folder = args.bpf_dir.clone().unwrap_or_else(|| cluster.bpf_dir().join(&replica));
    let protocol = args.destination.transport;
    let steps = why(&folder, &Question { source, source_port: SOURCE_PORT, destination, protocol })?;
    match args.output {
        Output::Json => {
            let report = Report { replica: &replica, steps: &steps };
            println!("{}", serde_json::to_string_pretty(&report).context("write JSON")?);
        }
        Output::Text => print(&replica, &steps),
    }
    Ok(())
}

fn print(replica: &str, steps: &[Step]) {
    println!("on {replica}");
    for step in steps {
        println!("\n{}: {}", step.hook, step.packet);
        for lookup in &step.lookups {
            println!("    {lookup}");
        }
        println!("  {}", step.fate);
        println!("  {}: {}", step.reason, step.meaning);
    }
}

/// An address of each in the same family, the destination's first that there is.
fn pair(sources: &[IpAddr], destinations: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
    destinations.iter().find_map(|destination| {
        let source = sources.iter().find(|source| source.is_ipv6() == destination.is_ipv6())?;
        Some((*source, *destination))
    })
}

/// The sender's addresses, and the replica that it is on where it is a pod of the cluster.
async fn sources(cluster: &Cluster, text: &str) -> Result<(Vec<IpAddr>, Option<String>)> {
    let address = text.parse::<IpAddr>();
    let pods = match (list::<Pod>(cluster).await, &address) {
        (Ok(pods), _) => pods,
        // The address is enough where the API does not answer.
        (Err(_), Ok(_)) => Vec::new(),
        (Err(error), Err(_)) => return Err(error.context("only the API knows pods by their names")),
    };
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    let meant = |pod: &&Pod| match &address {
        Ok(address) => {
            pod_ips(pod).contains(address)
                && pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true))
        }
        Err(_) => pod.name_any() == name && pod.namespace().as_deref() == Some(namespace),
    };
    let pod = pods.iter().find(meant);
    let node = pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone());
    if let Ok(address) = address {
        return Ok((vec![address], node));
    }
    let Some(pod) = pod else { bail!("there is no pod {namespace}/{name}") };
    match pod_ips(pod) {
        addresses if addresses.is_empty() => bail!("pod {namespace}/{name} has no address yet"),
        addresses => Ok((addresses, node)),
    }
}

async fn destinations(cluster: &Cluster, wanted: &Destination) -> Result<Vec<IpAddr>> {
    if let Ok(address) = wanted.host.parse() {
        return Ok(vec![address]);
    }
    let (name, namespace) = wanted.host.split_once('.').unwrap_or((&wanted.host, "default"));
    let namespace = namespace.split('.').next().unwrap_or(namespace);
    let services = list::<Service>(cluster).await.context("only the API knows Services by their names")?;
    let meant =
        |service: &&Service| service.name_any() == name && service.namespace().as_deref() == Some(namespace);
    let Some(service) = services.iter().find(meant) else { bail!("there is no Service {namespace}/{name}") };
    let all = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
    match all.filter_map(|ip| ip.parse().ok()).collect::<Vec<_>>() {
        addresses if addresses.is_empty() => bail!("Service {namespace}/{name} has no address of its own"),
        addresses => Ok(addresses),
    }
}

fn pod_ips(pod: &Pod) -> Vec<IpAddr> {
    let status = pod.status.iter();
    status.flat_map(|status| status.pod_ips.iter().flatten()).filter_map(|ip| ip.ip.parse().ok()).collect()
}

async fn list<K>(cluster: &Cluster) -> Result<Vec<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let client: Client = client_from(&cluster.kubeconfig()).await?;
    Ok(Api::<K>::all(client).list(&ListParams::default()).await?.items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_table() {
        for (text, expect) in [
            ("10.96.0.1:443/TCP", Some(("10.96.0.1", 443, Transport::Tcp))),
            ("10.96.0.1:443", Some(("10.96.0.1", 443, Transport::Tcp))),
            ("dns.kube-system:53/udp", Some(("dns.kube-system", 53, Transport::Udp))),
            ("10.96.0.1/icmp", Some(("10.96.0.1", 0, Transport::Ping))),
            ("10.96.0.1", None),
            ("10.96.0.1:80/ICMP", None),
            ("10.96.0.1:http/TCP", None),
            (":80", None),
            ("10.96.0.1:80/GRE", None),
            ("fd00::1/ICMP", Some(("fd00::1", 0, Transport::Ping))),
            ("[fd00::1]:80/TCP", Some(("fd00::1", 80, Transport::Tcp))),
            ("[fd00::1]:53/udp", Some(("fd00::1", 53, Transport::Udp))),
            ("fd00::1:80/TCP", None),
            ("[fd00::1]/TCP", None),
            ("web:80:81", None),
        ] {
            let got = text.parse::<Destination>().ok();
            let got = got.as_ref().map(|to| (to.host.as_str(), to.port, to.transport));
            assert_eq!(got, expect, "{text}");
        }
    }

    #[test]
    fn ends_are_of_one_family() {
        let [four, six, other] = ["10.0.0.1", "fd00::1", "fd00::2"].map(|ip| ip.parse().expect("an address"));
        for (sources, destinations, expect) in [
            (&[four, six][..], &[other][..], Some((six, other))),
            (&[four], &[other], None),
            (&[six], &[four, other], Some((six, other))),
            (&[four, six], &[four, other], Some((four, four))),
        ] {
            assert_eq!(pair(sources, destinations), expect);
        }
    }
}
