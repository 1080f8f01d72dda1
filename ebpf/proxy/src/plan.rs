//! What the maps should hold: a pure function of Services, EndpointSlices and the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddrV4,
    sync::Arc,
    time::Duration,
};

use pith_abi::Frontend;

use crate::service::{Endpoint, Policy, Protocol, Service, ServiceName, ServicePort, Slice};

/// The node the plan is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    pub name: Arc<str>,
}

impl NodeIdentity {
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into() }
    }
}

/// Where traffic to a Service comes from; the two differ where their policies do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reach {
    Internal,
    External,
}

/// A set of backends among which a frontend's connections are balanced.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    pub service: ServiceName,
    /// Name of the Service's port.
    pub port: Arc<str>,
    pub protocol: Protocol,
    pub reach: Reach,
}

/// What a group holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// In order and without repetition: a change of one moves the others' slots by at most one.
    pub backends: Vec<SocketAddrV4>,
    pub affinity: Option<Duration>,
}

/// What the maps should hold for one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    pub service: ServiceName,
    pub groups: BTreeMap<GroupKey, Group>,
    pub frontends: BTreeMap<Frontend, GroupKey>,
}

impl ServicePlan {
    /// The plan for a Service that is not, or not any more.
    pub fn absent(service: ServiceName) -> Self {
        Self { service, groups: BTreeMap::new(), frontends: BTreeMap::new() }
    }
}

/// What the maps should hold. Slices of Services that are not there are ignored.
pub fn plan<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: &[Slice],
    node: &NodeIdentity,
) -> BTreeMap<ServiceName, ServicePlan> {
    let plan = |service: &Service| {
        let own = slices.iter().filter(|slice| slice.service == service.name);
        (service.name.clone(), plan_service(service, own, node))
    };
    services.into_iter().map(plan).collect()
}

/// What the maps should hold for one Service, given its own slices.
pub fn plan_service<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &NodeIdentity,
) -> ServicePlan {
    let mut plan = ServicePlan::absent(service.name.clone());
    for port in &service.ports {
        let key = |reach| GroupKey {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
            reach,
        };
        let group = |policy| Group {
            backends: backends(port, slices.clone(), policy, node),
            affinity: service.affinity,
        };
        let internal = key(Reach::Internal);
        plan.groups.insert(internal.clone(), group(service.internal));
        for address in &service.cluster_ips {
            let addr_be = u32::from_ne_bytes(address.octets());
            let frontend = Frontend::new(addr_be, port.port.to_be(), port.protocol.number());
            plan.frontends.insert(frontend, internal.clone());
        }
        if let Some(node_port) = port.node_port {
            let external = if service.external == service.internal {
                internal
            } else {
                let external = key(Reach::External);
                plan.groups.insert(external.clone(), group(service.external));
                external
            };
            let frontend = Frontend::node_port(node_port.to_be(), port.protocol.number());
            plan.frontends.insert(frontend, external);
        }
    }
    plan
}

/// Ready endpoints; where there are none, those that are draining: they still answer, and their going
/// away is no reason to refuse a client before they have.
fn backends<'a>(
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    policy: Policy,
    node: &NodeIdentity,
) -> Vec<SocketAddrV4> {
    let here = |endpoint: &Endpoint| match policy {
        Policy::Cluster => true,
        Policy::Local => endpoint.node.as_deref() == Some(&*node.name),
    };
    let choose = |wanted: fn(&Endpoint) -> bool| -> BTreeSet<SocketAddrV4> {
        let ports = slices.clone().flat_map(|slice| {
            let number = slice
                .ports
                .iter()
                .find(|(name, protocol, _)| *name == port.name && *protocol == port.protocol)
                .map(|(_, _, number)| *number);
            slice.endpoints.iter().filter_map(move |endpoint| Some((endpoint, number?)))
        });
        ports
            .filter(|(endpoint, _)| here(endpoint) && wanted(endpoint))
            .map(|(endpoint, number)| SocketAddrV4::new(endpoint.address, number))
            .collect()
    };
    let ready = choose(|endpoint| endpoint.ready);
    let chosen = if ready.is_empty() { choose(|endpoint| endpoint.draining) } else { ready };
    chosen.into_iter().collect()
}
