//! What the API has told so far, and which Services have to be planned anew because of it.
//!
//! Invariant: a Service is dirty whenever its plan may differ from the one that was applied last.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv6Net;

use crate::{
    annotations::Forwarding,
    cidr::Cidr,
    plan::{NodeIdentity, ServicePlan, plan_host_ports, plan_service},
    service::{HostPorts, Node, Service, ServiceName, Slice, SliceName},
};

/// A change that a watch reports, for objects of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// A list begins: what it does not name is gone.
    ListBegins,
    /// The object is, or is now, this; `None`: nothing the proxy acts for.
    Is(ServiceName, Option<T>),
    Gone(ServiceName),
    ListEnds,
}

/// A change of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Service(Change<Service>),
    Slice(Change<Slice>),
    Node(Change<Node>),
    /// Of a pod of this node.
    Pod(Change<HostPorts>),
}

/// Objects of one kind. During a list the names it has not named yet are kept apart.
#[derive(Debug)]
struct Kind<T> {
    objects: HashMap<ServiceName, T>,
    unconfirmed: Option<BTreeSet<ServiceName>>,
    listed: bool,
}

impl<T> Default for Kind<T> {
    fn default() -> Self {
        Self { objects: HashMap::new(), unconfirmed: None, listed: false }
    }
}

impl<T: PartialEq> Kind<T> {
    /// Takes a change in; `changed` is called with the old and the new of what differs.
    fn take(&mut self, change: Change<T>, mut changed: impl FnMut(&ServiceName, Option<&T>, Option<&T>)) {
        match change {
            Change::ListBegins => self.unconfirmed = Some(self.objects.keys().cloned().collect()),
            Change::Is(name, object) => {
                if let Some(unconfirmed) = &mut self.unconfirmed {
                    unconfirmed.remove(&name);
                }
                let old = match object {
                    Some(object) => self.objects.insert(name.clone(), object),
                    None => self.objects.remove(&name),
                };
                let new = self.objects.get(&name);
                if old.as_ref() != new {
                    changed(&name, old.as_ref(), new);
                }
            }
            Change::Gone(name) => {
                if let Some(old) = self.objects.remove(&name) {
                    changed(&name, Some(&old), None);
                }
            }
            Change::ListEnds => {
                for name in self.unconfirmed.take().unwrap_or_default() {
                    if let Some(old) = self.objects.remove(&name) {
                        changed(&name, Some(&old), None);
                    }
                }
                self.listed = true;
            }
        }
    }
}

/// All of it.
#[derive(Debug)]
pub struct World {
    node: NodeIdentity,
    services: Kind<Service>,
    slices: Kind<Slice>,
    nodes: Kind<Node>,
    pods: Kind<HostPorts>,
    slices_of: HashMap<ServiceName, BTreeSet<SliceName>>,
    dirty: BTreeSet<ServiceName>,
    nodes_dirty: bool,
}

impl World {
    pub fn new(node: NodeIdentity) -> Self {
        Self {
            node,
            services: Kind::default(),
            slices: Kind::default(),
            nodes: Kind::default(),
            pods: Kind::default(),
            slices_of: HashMap::new(),
            dirty: BTreeSet::new(),
            nodes_dirty: false,
        }
    }

    pub fn take(&mut self, event: Event) {
        let Self { services, slices, nodes, pods, slices_of, dirty, nodes_dirty, .. } = self;
        match event {
            Event::Service(change) => services.take(change, |name, _, _| {
                dirty.insert(name.clone());
            }),
            Event::Slice(change) => slices.take(change, |name, old, new| {
                if let Some(old) = old
                    && let Some(of) = slices_of.get_mut(&old.service)
                {
                    of.remove(name);
                    if of.is_empty() {
                        slices_of.remove(&old.service);
                    }
                    dirty.insert(old.service.clone());
                }
                if let Some(new) = new {
                    slices_of.entry(new.service.clone()).or_default().insert(name.clone());
                    dirty.insert(new.service.clone());
                }
            }),
            Event::Node(change) => nodes.take(change, |_, _, _| *nodes_dirty = true),
            Event::Pod(change) => pods.take(change, |name, _, _| {
                dirty.insert(of_pod(name));
            }),
        }
    }

    /// Whether every kind has been listed once. Before that nothing may be removed from the maps.
    pub fn complete(&self) -> bool {
        self.services.listed && self.slices.listed && self.nodes.listed && self.pods.listed
    }

    /// Plans for the Services that changed; they are clean afterwards.
    pub fn take_dirty(&mut self) -> Vec<ServicePlan> {
        std::mem::take(&mut self.dirty).into_iter().map(|name| self.plan(name)).collect()
    }

    /// Has a Service planned again although it did not change.
    pub fn mark(&mut self, service: ServiceName) {
        self.dirty.insert(service);
    }

    fn plan(&self, name: ServiceName) -> ServicePlan {
        if let Named::Pod(pod) = named(&name) {
            let host_ports = self.pods.objects.get(&pod);
            return host_ports.map_or_else(
                || ServicePlan::absent(name.clone()),
                |ports| plan_host_ports(name.clone(), ports),
            );
        }
        let Some(service) = self.services.objects.get(&name) else { return ServicePlan::absent(name) };
        let slices = self.slices_of.get(&name).into_iter().flatten();
        plan_service(service, slices.filter_map(|slice| self.slices.objects.get(slice)), &self.node)
    }

    /// Whether a Service has an endpoint at the node with an address, in whatever condition.
    pub fn has_endpoint_at(&self, service: &ServiceName, node: Ipv4Addr) -> bool {
        let Some(node) = self.nodes.objects.values().find(|known| known.addresses.contains(&node)) else {
            return false;
        };
        let slices = self.slices_of.get(service).into_iter().flatten();
        let slices = slices.filter_map(|slice| self.slices.objects.get(slice));
        slices.flat_map(|slice| &slice.endpoints).any(|endpoint| endpoint.node.as_ref() == Some(&node.name))
    }

    /// Addresses of all other nodes and the pods of this one, where nodes changed since the last call.
    /// Services whose plans depend on what changed are planned anew. `near` are the networks on the uplink's own link.
    pub fn take_nodes(&mut self, near: &[Cidr]) -> Option<Nodes> {
        if !std::mem::take(&mut self.nodes_dirty) {
            return None;
        }
        let own = |node: &&Node| node.name == self.node.name;
        let this = self.nodes.objects.values().find(own);
        let others = || self.nodes.objects.values().filter(|node| !own(node));
        let neighbour = |node: &Node| {
            let address =
                node.addresses.iter().find(|address| near.iter().any(|net| net.contains(**address)));
            Some((node.name.clone(), *address?))
        };
        let identity = NodeIdentity {
            name: self.node.name.clone(),
            zone: this.and_then(|node| node.zone.clone()),
            pods: this.and_then(|node| node.pod_cidr),
            pods6: this.and_then(|node| node.pod_cidr6),
            ready: self
                .nodes
                .objects
                .values()
                .filter(|node| node.ready)
                .map(|node| node.name.clone())
                .collect(),
            neighbours: others().filter_map(neighbour).collect(),
        };
        let others = others().flat_map(|node| {
            let four = node.addresses.iter().map(|address| IpAddr::from(*address));
            four.chain(node.addresses6.iter().map(|address| IpAddr::from(*address)))
        });
        let others = others.collect();
        if identity != self.node {
            let pods = |node: &NodeIdentity| (node.pods, node.pods6);
            let all = identity.zone != self.node.zone || pods(&identity) != pods(&self.node);
            let neighbours = identity.neighbours != self.node.neighbours;
            let concerned = |service: &&Service| {
                let dsr = service.annotations.forwarding == Forwarding::Dsr;
                let balancer = !service.balancer_ips.is_empty() || !service.balancer_ips6.is_empty();
                all || balancer || (neighbours && dsr)
            };
            self.dirty
                .extend(self.services.objects.values().filter(concerned).map(|service| service.name.clone()));
        }
        let (pods, pods6) = (identity.pods, identity.pods6);
        self.node = identity;
        Some(Nodes { pods, pods6, others })
    }
}

/// What the maps hold of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    /// This node's pods.
    pub pods: Option<Cidr>,
    pub pods6: Option<Ipv6Net>,
    /// Addresses of all other nodes.
    pub others: BTreeSet<IpAddr>,
}

/// What pods' ports of the node are planned under; no Service has such a name.
const POD: &str = "pod ";

/// What a plan's name stands for.
pub(crate) enum Named {
    Service,
    /// A pod with ports of the node.
    Pod(ServiceName),
}

pub(crate) fn named(name: &ServiceName) -> Named {
    name.0.strip_prefix(POD).map_or(Named::Service, |pod| Named::Pod(ServiceName(pod.into())))
}

fn of_pod(pod: &ServiceName) -> ServiceName {
    ServiceName(format!("{POD}{pod}").into())
}
