//! Services, EndpointSlices and Nodes as the proxy needs them: parsed once, at the edge, into a fraction of
//! their size.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use ipnet::{IpNet, Ipv6Net};
use k8s_openapi::api::{
    core::v1::{Node as ApiNode, Pod as ApiPod, Service as ApiService},
    discovery::v1::EndpointSlice as ApiSlice,
};
use kube::ResourceExt;

use crate::{annotations::Annotations, cidr::Cidr};

/// `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(pub Arc<str>);

impl ServiceName {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// `namespace/name` of an EndpointSlice.
pub type SliceName = ServiceName;

/// Transport protocols that Services balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// `None` for protocols that are not balanced.
    fn parse(text: Option<&str>) -> Option<Self> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => pith_abi::proto::TCP,
            Self::Udp => pith_abi::proto::UDP,
            Self::Sctp => pith_abi::proto::SCTP,
        }
    }
}

/// Which endpoints may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Cluster,
    /// Those on this node only.
    Local,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty where the Service has one port only.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// A Service that has addresses of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: ServiceName,
    pub cluster_ips: Vec<Ipv4Addr>,
    pub cluster_ips6: Vec<Ipv6Addr>,
    /// Addresses that somebody else brings to nodes.
    pub external_ips: Vec<Ipv4Addr>,
    pub external_ips6: Vec<Ipv6Addr>,
    /// Addresses that a load balancer has given.
    pub balancer_ips: Vec<Ipv4Addr>,
    pub balancer_ips6: Vec<Ipv6Addr>,
    /// Who may use the load balancer's addresses; all of a family that is not named.
    pub sources: Vec<IpNet>,
    pub ports: Vec<ServicePort>,
    pub annotations: Annotations,
    /// Where load balancers ask whether this node has endpoints.
    pub health_port: Option<u16>,
    /// ClientIP affinity and its timeout.
    pub affinity: Option<Duration>,
    pub internal: Policy,
    pub external: Policy,
}

impl Service {
    /// A Service of this name that nobody can reach yet.
    pub fn named(name: ServiceName) -> Self {
        Self {
            name,
            cluster_ips: Vec::new(),
            cluster_ips6: Vec::new(),
            external_ips: Vec::new(),
            external_ips6: Vec::new(),
            balancer_ips: Vec::new(),
            balancer_ips6: Vec::new(),
            sources: Vec::new(),
            ports: Vec::new(),
            annotations: Annotations::default(),
            health_port: None,
            affinity: None,
            internal: Policy::Cluster,
            external: Policy::Cluster,
        }
    }
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Terminating, but still able to serve.
    pub draining: bool,
    pub node: Option<Arc<str>>,
    pub pod: Option<Arc<str>>,
    /// Zones that it should serve; any where it is empty.
    pub zones: Vec<Arc<str>>,
    /// Nodes that it should serve; any where it is empty.
    pub nodes: Vec<Arc<str>>,
}

impl Endpoint {
    /// A ready endpoint of which only the address is known.
    pub fn ready(address: IpAddr) -> Self {
        Self {
            address,
            ready: true,
            draining: false,
            node: None,
            pod: None,
            zones: Vec::new(),
            nodes: Vec::new(),
        }
    }
}

/// An EndpointSlice of endpoints that have addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub service: ServiceName,
    /// Name, protocol and number.
    pub ports: Vec<(Arc<str>, Protocol, u16)>,
    pub endpoints: Vec<Endpoint>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    pub addresses: Vec<Ipv4Addr>,
    pub addresses6: Vec<Ipv6Addr>,
    pub pod_cidr: Option<Cidr>,
    pub pod_cidr6: Option<Ipv6Net>,
    pub zone: Option<Arc<str>>,
    pub ready: bool,
}

/// A pod of this node that has ports of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    pub address: Option<Ipv4Addr>,
    pub address6: Option<Ipv6Addr>,
    pub ports: Vec<HostPort>,
}

/// A port of the node that leads to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// At this address of the node, or at all of them.
    pub host: Option<IpAddr>,
    pub port: u16,
    pub protocol: Protocol,
    pub target: u16,
}

/// Time that ClientIP affinity lasts unless the Service says otherwise (the API's default).
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);

/// Label by which someone else's proxy claims a Service.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

const ZONE: &str = "topology.kubernetes.io/zone";

/// `None` for Services that no proxy acts for: headless ones, names for names outside, other proxies'.
pub fn service(object: &ApiService) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") || object.labels().contains_key(PROXY_NAME) {
        return None;
    }
    let mut cluster: Vec<IpAddr> = addresses(spec.cluster_ips.iter().flatten());
    if cluster.is_empty() {
        cluster = addresses(spec.cluster_ip.iter());
    }
    if cluster.is_empty() {
        return None;
    }
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        Some(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: Protocol::parse(port.protocol.as_deref())?,
            port: u16::try_from(port.port).ok()?,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
        })
    });
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let seconds = spec
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
            .and_then(|seconds| u64::try_from(seconds).ok());
        seconds.map_or(DEFAULT_AFFINITY, Duration::from_secs)
    });
    Some(Service {
        name: ServiceName::new(&object.namespace()?, &object.name_any()),
        cluster_ips: cluster.iter().filter_map(ipv4).collect(),
        cluster_ips6: cluster.iter().filter_map(ipv6).collect(),
        external_ips: addresses(spec.external_ips.iter().flatten()),
        external_ips6: addresses(spec.external_ips.iter().flatten()),
        balancer_ips: balancer_ips(object),
        balancer_ips6: balancer_ips(object),
        sources: spec
            .load_balancer_source_ranges
            .iter()
            .flatten()
            .filter_map(|range| range.trim().parse::<IpNet>().ok())
            .map(|range| range.trunc())
            .collect(),
        ports: ports.collect(),
        annotations: Annotations::parse(object.annotations()),
        health_port: spec
            .health_check_node_port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0),
        affinity,
        internal: policy(spec.internal_traffic_policy.as_deref()),
        external: policy(spec.external_traffic_policy.as_deref()),
    })
}

/// Those of the family that is asked for.
fn addresses<'a, A: FromStr>(texts: impl Iterator<Item = &'a String>) -> Vec<A> {
    texts.filter_map(|text| text.parse().ok()).collect()
}

pub(crate) fn ipv4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    }
}

pub(crate) fn ipv6(address: &IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(*v6),
    }
}

/// Those at which nodes see the packets; what a balancer answers itself (ipMode Proxy) is its own.
fn balancer_ips<A: FromStr>(object: &ApiService) -> Vec<A> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    addresses(
        ingress
            .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|ingress| ingress.ip.as_ref()),
    )
}

fn policy(text: Option<&str>) -> Policy {
    if text == Some("Local") { Policy::Local } else { Policy::Cluster }
}

/// `None` for slices of names and of no Service.
pub fn slice(object: &ApiSlice) -> Option<Slice> {
    if !matches!(object.address_type.as_str(), "IPv4" | "IPv6") {
        return None;
    }
    let service = object.labels().get("kubernetes.io/service-name")?;
    let ports = object.ports.iter().flatten().filter_map(|port| {
        Some((
            Arc::from(port.name.as_deref().unwrap_or_default()),
            Protocol::parse(port.protocol.as_deref())?,
            u16::try_from(port.port?).ok()?,
        ))
    });
    let endpoints = object.endpoints.iter().flatten().filter_map(|endpoint| {
        // Absent means ready, and serving where ready (the API's reading of unset conditions).
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let hints = endpoint.hints.as_ref();
        Some(Endpoint {
            // All addresses of an endpoint are the same one; further ones are not used by anyone.
            address: endpoint.addresses.first()?.parse().ok()?,
            ready,
            draining: conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or(false),
            node: endpoint.node_name.as_deref().map(Arc::from),
            pod: endpoint.target_ref.as_ref().and_then(|target| Some(target.name.as_deref()?.into())),
            zones: hints
                .iter()
                .flat_map(|hints| hints.for_zones.iter().flatten())
                .map(|zone| zone.name.as_str().into())
                .collect(),
            nodes: hints
                .iter()
                .flat_map(|hints| hints.for_nodes.iter().flatten())
                .map(|node| node.name.as_str().into())
                .collect(),
        })
    });
    Some(Slice {
        service: ServiceName::new(&object.namespace()?, service),
        ports: ports.collect(),
        endpoints: endpoints.collect(),
    })
}

pub fn node(object: &ApiNode) -> Node {
    let wanted = |kind: &str| matches!(kind, "InternalIP" | "ExternalIP");
    let own = || {
        let all = object.status.iter().flat_map(|status| status.addresses.iter().flatten());
        all.filter(|address| wanted(&address.type_)).map(|address| &address.address)
    };
    // The one of each family; older nodes name the first only.
    let cidrs = || {
        let spec = object.spec.iter();
        spec.flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr))
    };
    Node {
        name: object.name_any().into(),
        addresses: addresses(own()),
        addresses6: addresses(own()),
        pod_cidr: cidrs().find_map(|cidr| cidr.parse().ok()),
        pod_cidr6: cidrs().find_map(|cidr| cidr.parse().ok()),
        zone: object.labels().get(ZONE).map(|zone| zone.as_str().into()),
        ready: object
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
    }
}

/// `None` for a pod without ports of the node, without an address yet, or that has ended.
pub fn host_ports(object: &ApiPod) -> Option<HostPorts> {
    let (spec, status) = (object.spec.as_ref()?, object.status.as_ref()?);
    if spec.host_network == Some(true) || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let number = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let ports: Vec<HostPort> = ports
        .filter_map(|port| {
            Some(HostPort {
                host: port
                    .host_ip
                    .as_ref()
                    .and_then(|ip| ip.parse().ok())
                    .filter(|ip: &IpAddr| !ip.is_unspecified()),
                port: number(port.host_port?)?,
                protocol: Protocol::parse(port.protocol.as_deref())?,
                target: number(port.container_port)?,
            })
        })
        .collect();
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    let all: Vec<IpAddr> = addresses(all);
    let (address, address6) = (all.iter().find_map(ipv4), all.iter().find_map(ipv6));
    let known = address.is_some() || address6.is_some();
    (known && !ports.is_empty()).then_some(HostPorts { address, address6, ports })
}
