//! `pith why`: what would happen to a packet on a replica, and why, out of its live maps.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
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
        "{0:?} is none of ADDRESS:PORT/PROTO, SERVICE.NAMESPACE:PORT/PROTO (TCP, UDP, SCTP) and ADDRESS/ICMP"
    )]
    Form(String),
    #[error("{0:?} is of IPv6: packets are followed in IPv4 alone")]
    Family(String),
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
        if is_ipv6(place) {
            return Err(NoDestination::Family(text.to_owned()));
        }
        let (host, port) = match (place.split_once(':'), transport) {
            (None, Transport::Ping) => (place, 0),
            (Some((host, port)), Transport::Tcp | Transport::Udp | Transport::Sctp) => {
                (host, port.parse().map_err(|_| refuse())?)
            }
            (None | Some(_), _) => return Err(refuse()),
        };
        if host.is_empty() {
            return Err(refuse());
        }
        Ok(Self { host: host.to_owned(), port, transport })
    }
}

/// With a port behind it or without.
fn is_ipv6(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok() || text.parse::<SocketAddrV6>().is_ok()
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
    let (source, of_pod) = runtime.block_on(source(&cluster, &args.source))?;
    let destination = runtime.block_on(destination(&cluster, &args.destination))?;
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

/// The sender's address, and the replica that it is on where it is a pod of the cluster.
async fn source(cluster: &Cluster, text: &str) -> Result<(Ipv4Addr, Option<String>)> {
    if is_ipv6(text) {
        bail!("{text} is of IPv6: packets are followed in IPv4 alone");
    }
    let address = text.parse::<Ipv4Addr>();
    let pods = match (list::<Pod>(cluster).await, &address) {
        (Ok(pods), _) => pods,
        // The address is enough where the API does not answer.
        (Err(_), Ok(_)) => Vec::new(),
        (Err(error), Err(_)) => return Err(error.context("only the API knows pods by their names")),
    };
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    let meant = |pod: &&Pod| match &address {
        Ok(_) => {
            pod_ip(pod) == Some(text) && pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true))
        }
        Err(_) => pod.name_any() == name && pod.namespace().as_deref() == Some(namespace),
    };
    let pod = pods.iter().find(meant);
    let node = pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone());
    if let Ok(address) = address {
        return Ok((address, node));
    }
    let Some(pod) = pod else { bail!("there is no pod {namespace}/{name}") };
    let address = pod_ip(pod).with_context(|| format!("pod {namespace}/{name} has no address yet"))?;
    Ok((address.parse().with_context(|| format!("{address} is no IPv4 address"))?, node))
}

async fn destination(cluster: &Cluster, wanted: &Destination) -> Result<SocketAddrV4> {
    if let Ok(address) = wanted.host.parse() {
        return Ok(SocketAddrV4::new(address, wanted.port));
    }
    let (name, namespace) = wanted.host.split_once('.').unwrap_or((&wanted.host, "default"));
    let namespace = namespace.split('.').next().unwrap_or(namespace);
    let services = list::<Service>(cluster).await.context("only the API knows Services by their names")?;
    let meant =
        |service: &&Service| service.name_any() == name && service.namespace().as_deref() == Some(namespace);
    let Some(service) = services.iter().find(meant) else { bail!("there is no Service {namespace}/{name}") };
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
    let address =
        address.parse().with_context(|| format!("Service {namespace}/{name} has no IPv4 address"))?;
    Ok(SocketAddrV4::new(address, wanted.port))
}

fn pod_ip(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref()
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
        ] {
            let got = text.parse::<Destination>().ok();
            let got = got.as_ref().map(|to| (to.host.as_str(), to.port, to.transport));
            assert_eq!(got, expect, "{text}");
        }
        for text in ["fd00::1/ICMP", "[fd00::1]:80/TCP", "[fd00::1]:80"] {
            let family = Err(NoDestination::Family(text.to_owned()));
            assert_eq!(text.parse::<Destination>(), family, "{text}");
        }
    }
}
