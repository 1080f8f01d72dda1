//! Services, EndpointSlices and Nodes as the proxy needs them: parsed once, at the edge, into a fraction of
//! their size.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{Node as ApiNode, Service as ApiService},
    discovery::v1::EndpointSlice as ApiSlice,
};
use kube::ResourceExt;

use crate::cidr::Cidr;

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
}

impl Protocol {
    /// `None` for protocols that are not balanced.
    fn parse(text: Option<&str>) -> Option<Self> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => pith_abi::proto::TCP,
            Self::Udp => pith_abi::proto::UDP,
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
    pub ports: Vec<ServicePort>,
    /// ClientIP affinity and its timeout.
    pub affinity: Option<Duration>,
    pub internal: Policy,
    pub external: Policy,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: Ipv4Addr,
    /// Takes new connections.
    pub ready: bool,
    /// Terminating, but still able to serve.
    pub draining: bool,
    pub node: Option<Arc<str>>,
}

/// An EndpointSlice of IPv4 endpoints.
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
    pub pod_cidr: Option<Cidr>,
}

/// Time that ClientIP affinity lasts unless the Service says otherwise (the API's default).
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);

/// Label by which someone else's proxy claims a Service.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// `None` for Services that no proxy acts for: headless ones, names for names outside, other proxies'.
pub fn service(object: &ApiService) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") || object.labels().contains_key(PROXY_NAME) {
        return None;
    }
    let mut cluster_ips: Vec<Ipv4Addr> =
        spec.cluster_ips.iter().flatten().filter_map(|address| address.parse().ok()).collect();
    if cluster_ips.is_empty() {
        cluster_ips.extend(spec.cluster_ip.as_ref().and_then(|address| address.parse::<Ipv4Addr>().ok()));
    }
    if cluster_ips.is_empty() {
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
        cluster_ips,
        ports: ports.collect(),
        affinity,
        internal: policy(spec.internal_traffic_policy.as_deref()),
        external: policy(spec.external_traffic_policy.as_deref()),
    })
}

fn policy(text: Option<&str>) -> Policy {
    if text == Some("Local") { Policy::Local } else { Policy::Cluster }
}

/// `None` for slices of other address families and of no Service.
pub fn slice(object: &ApiSlice) -> Option<Slice> {
    if object.address_type != "IPv4" {
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
        Some(Endpoint {
            // All addresses of an endpoint are the same one; further ones are not used by anyone.
            address: endpoint.addresses.first()?.parse().ok()?,
            ready,
            draining: conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or(false),
            node: endpoint.node_name.as_deref().map(Arc::from),
        })
    });
    Some(Slice {
        service: ServiceName::new(&object.namespace()?, service),
        ports: ports.collect(),
        endpoints: endpoints.collect(),
    })
}

pub fn node(object: &ApiNode) -> Node {
    let addresses = object.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let wanted = |kind: &str| matches!(kind, "InternalIP" | "ExternalIP");
    Node {
        name: object.name_any().into(),
        addresses: addresses
            .filter(|address| wanted(&address.type_))
            .filter_map(|address| address.address.parse().ok())
            .collect(),
        pod_cidr: object.spec.as_ref().and_then(|spec| spec.pod_cidr.as_ref()?.parse().ok()),
    }
}
