//! What the maps should hold: a pure function of Services, EndpointSlices and the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    sync::Arc,
    time::Duration,
};

use ipnet::{IpNet, Ipv6Net};
use pith_abi::{Frontend, Scope};

use crate::{
    annotations::{Balance, Forwarding, QuicServerId},
    cidr::Cidr,
    maglev,
    service::{Endpoint, HostPorts, Policy, Protocol, Service, ServiceName, ServicePort, Slice, ipv4, ipv6},
};

/// The node the plan is for, and what of the others matters to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    pub name: Arc<str>,
    pub zone: Option<Arc<str>>,
    /// Its pods.
    pub pods: Option<Cidr>,
    pub pods6: Option<Ipv6Net>,
    /// Nodes that are ready: one of them announces a load balancer's address.
    pub ready: BTreeSet<Arc<str>>,
    /// Addresses of other nodes on the uplink's own link, to which packets can be handed on as they came.
    pub neighbours: BTreeMap<Arc<str>, Ipv4Addr>,
}

impl NodeIdentity {
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            zone: None,
            pods: None,
            pods6: None,
            ready: BTreeSet::new(),
            neighbours: BTreeMap::new(),
        }
    }
}

/// Where traffic to a Service comes from; groups differ where policies do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reach {
    /// From pods, to the Service's own address.
    Internal,
    /// From pods, to its other addresses: no detour over the outside, hence every endpoint.
    Cluster,
    /// From outside.
    External,
    /// From outside, to a load balancer's address that serves some sources only.
    Balancer,
    /// From outside, by another node that has handed it on to one of the backends here.
    Handed,
    /// The same, to a load balancer's address that serves some sources only.
    HandedBalancer,
}

/// A set of backends among which a frontend's connections are balanced.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    pub service: ServiceName,
    /// Name of the Service's port.
    pub port: Arc<str>,
    pub protocol: Protocol,
    pub family: Family,
    pub reach: Reach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// What a group holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// In order and without repetition: a change of one moves the others' slots by at most one.
    pub backends: Vec<SocketAddrV4>,
    /// Weights of the backends, above 0; all 1 where it is empty.
    pub weights: Vec<u16>,
    pub balance: Balance,
    pub affinity: Option<Duration>,
    /// Sources that are served; all where it is empty.
    pub sources: Vec<IpNet>,
    /// In the order of backends, the nodes that are handed packets on for them; nobody is where it is empty.
    pub via: Vec<Option<Ipv4Addr>>,
    /// Endpoints that get no new connections but are still there, in order: connections to them go on.
    pub others: Vec<SocketAddrV4>,
    /// Whether packets of no flow may name the backend of their connection, whatever policies say of new ones.
    pub named: bool,
}

/// A group of backends that have IPv6 addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group6 {
    /// As in [`Group`].
    pub backends: Vec<SocketAddrV6>,
    pub others: Vec<SocketAddrV6>,
    /// Everything else, with no backends.
    pub like: Group,
}

/// A [`Frontend`] whose address is an IPv6 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend6 {
    /// Every address of the node where there is none.
    pub address: Option<Ipv6Addr>,
    pub port: u16,
    pub protocol: Protocol,
    /// A [`Scope`] of IPv6.
    pub scope: u8,
}

/// What there is of a Service in IPv6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Six {
    pub groups: BTreeMap<GroupKey, Group6>,
    pub frontends: BTreeMap<Frontend6, GroupKey>,
    /// As [`ServicePlan::addresses`].
    pub inside: BTreeSet<Ipv6Addr>,
    /// As [`ServicePlan::outside`].
    pub outside: BTreeMap<Ipv6Addr, bool>,
}

impl Six {
    /// Every address that is named, some more than once.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv6Addr> {
        let backends = self.groups.values().flat_map(|group| group.backends.iter().chain(&group.others));
        let frontends = self.frontends.keys().filter_map(|frontend| frontend.address);
        let named = frontends.chain(backends.map(|place| *place.ip()));
        named.chain(self.inside.iter().copied()).chain(self.outside.keys().copied())
    }
}

/// More slots than this are spent on weights only where there are more backends.
const SLOTS_FOR_WEIGHTS: u32 = 4096;

impl Group {
    /// What each slot leads to: a backend, or with port 0 the node of one ([`pith_abi::Backend`]).
    pub fn slots(&self) -> Vec<SocketAddrV4> {
        let mut slots = self.backends_of_slots();
        let via: BTreeMap<SocketAddrV4, Ipv4Addr> = self
            .backends
            .iter()
            .zip(&self.via)
            .filter_map(|(backend, node)| Some((*backend, (*node)?)))
            .collect();
        for slot in &mut slots {
            if let Some(node) = via.get(slot) {
                *slot = SocketAddrV4::new(*node, 0);
            }
        }
        slots
    }

    /// Whom packets may name by which address, and where that leads.
    pub fn servers(&self) -> BTreeMap<Ipv4Addr, SocketAddrV4> {
        if !self.named {
            return BTreeMap::new();
        }
        let via = |at: usize| Some(SocketAddrV4::new((*self.via.get(at)?)?, 0));
        let serving = self.backends.iter().enumerate();
        let serving = serving.map(|(at, backend)| (*backend.ip(), via(at).unwrap_or(*backend)));
        // Who serves goes before who has the same address and does not.
        self.others.iter().map(|other| (*other.ip(), *other)).chain(serving).collect()
    }

    fn backends_of_slots(&self) -> Vec<SocketAddrV4> {
        let weight = |at: usize| self.weights.get(at).copied().unwrap_or(1);
        let weighted = || self.backends.iter().enumerate().map(|(at, backend)| (*backend, weight(at)));
        // A client that is remembered is looked for near its last slot, so those stay in order.
        if self.balance != Balance::Random && self.affinity.is_none() {
            return maglev::table(&weighted().collect::<Vec<_>>());
        }
        if self.weights.is_empty() {
            return self.backends.clone();
        }
        let divisor = self.weights.iter().fold(0, |divisor, weight| gcd(divisor, *weight)).max(1);
        let total: u32 = self.weights.iter().map(|weight| u32::from(weight / divisor)).sum();
        let times = |weight: u16| match u32::from(weight / divisor) {
            units if total <= SLOTS_FOR_WEIGHTS => units,
            units => (units * SLOTS_FOR_WEIGHTS / total).max(1),
        };
        let repeat = |(backend, weight)| std::iter::repeat_n(backend, times(weight) as usize);
        weighted().flat_map(repeat).collect()
    }
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// An answer to load balancers that ask for a Service's endpoints on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    pub port: u16,
    pub endpoints: usize,
}

/// What the maps should hold for one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    pub service: ServiceName,
    pub groups: BTreeMap<GroupKey, Group>,
    pub frontends: BTreeMap<Frontend, GroupKey>,
    pub six: Six,
    /// Addresses at which it answers pods: at ports that are not among the frontends they are refused.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Addresses at which it is reached from outside, and whether this node announces them.
    pub outside: BTreeMap<Ipv4Addr, bool>,
    pub health: Option<Health>,
}

impl ServicePlan {
    /// Whether packets from outside may be handed on to other nodes, or by them to this one.
    pub fn is_direct(&self) -> bool {
        self.frontends.keys().any(|frontend| frontend.scope == Scope::HANDED)
    }

    /// The plan for a Service that is not, or not any more.
    pub fn absent(service: ServiceName) -> Self {
        Self {
            service,
            groups: BTreeMap::new(),
            frontends: BTreeMap::new(),
            six: Six::default(),
            addresses: BTreeSet::new(),
            outside: BTreeMap::new(),
            health: None,
        }
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
    plan.addresses.extend(service.cluster_ips.iter().chain(&service.external_ips));
    plan.outside.extend(service.external_ips.iter().map(|address| (*address, false)));
    for address in &service.balancer_ips {
        plan.outside.insert(*address, announces(service, (*address).into(), slices.clone(), node));
    }
    let six = &mut plan.six;
    six.inside.extend(service.cluster_ips6.iter().chain(&service.external_ips6));
    six.outside.extend(service.external_ips6.iter().map(|address| (*address, false)));
    for address in &service.balancer_ips6 {
        six.outside.insert(*address, announces(service, (*address).into(), slices.clone(), node));
    }
    let (pods_may, pods_may6) =
        (pods_may(service, node, Family::Ipv4), pods_may(service, node, Family::Ipv6));
    if pods_may {
        plan.addresses.extend(&service.balancer_ips);
    }
    if pods_may6 {
        plan.six.inside.extend(&service.balancer_ips6);
    }
    for port in &service.ports {
        if !service.cluster_ips.is_empty() || service.cluster_ips6.is_empty() {
            plan_port(&mut plan, service, port, slices.clone(), node, pods_may);
        }
        if !service.cluster_ips6.is_empty() {
            plan_port6(&mut plan.six, service, port, slices.clone(), node, pods_may6);
        }
    }
    plan.health = service.health_port.map(|health_port| {
        let mut endpoints: BTreeSet<IpAddr> = BTreeSet::new();
        for port in &service.ports {
            let four = members::<SocketAddrV4>(port, slices.clone(), Policy::Local, node, service).0;
            endpoints.extend(four.iter().map(|serving| IpAddr::from(*serving.place.ip())));
            if service.cluster_ips.is_empty() {
                let six = members::<SocketAddrV6>(port, slices.clone(), Policy::Local, node, service).0;
                endpoints.extend(six.iter().map(|serving| IpAddr::from(*serving.place.ip())));
            }
        }
        Health { port: health_port, endpoints: endpoints.len() }
    });
    plan
}

/// The same as [`plan_port`] for IPv6, in which nothing is handed on.
fn plan_port6<'a>(
    six: &mut Six,
    service: &Service,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &NodeIdentity,
    pods_may: bool,
) {
    let Six { groups, frontends, .. } = six;
    let mut group = |reach| {
        let key = GroupKey {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
            family: Family::Ipv6,
            reach,
        };
        groups.entry(key.clone()).or_insert_with(|| {
            let (backends, others) = members(port, slices.clone(), policy(reach, service), node, service);
            let like = Group {
                weights: weights(&backends),
                sources: sources(reach, service, Family::Ipv6),
                ..like(service, port)
            };
            Group6 { backends: backends.into_iter().map(|serving| serving.place).collect(), others, like }
        });
        key
    };
    let at =
        |address: Option<Ipv6Addr>, port: u16, protocol, scope| Frontend6 { address, port, protocol, scope };
    let internal = group(Reach::Internal);
    for address in &service.cluster_ips6 {
        frontends.insert(at(Some(*address), port.port, port.protocol, Scope::INSIDE6), internal.clone());
    }
    if port.node_port.is_none() && service.external_ips6.is_empty() && service.balancer_ips6.is_empty() {
        return;
    }
    let inside = if service.internal == Policy::Cluster { internal } else { group(Reach::Cluster) };
    let outside = if service.external == Policy::Cluster { inside.clone() } else { group(Reach::External) };
    let by_source = !sources(Reach::Balancer, service, Family::Ipv6).is_empty();
    let balancer = if by_source { group(Reach::Balancer) } else { outside.clone() };
    let mut add = |address: Option<Ipv6Addr>, number: u16, from_inside: bool, group: &GroupKey| {
        if from_inside {
            frontends.insert(at(address, number, port.protocol, Scope::INSIDE6), inside.clone());
        }
        frontends.insert(at(address, number, port.protocol, Scope::OUTSIDE6), group.clone());
    };
    if let Some(node_port) = port.node_port {
        add(None, node_port, true, &outside);
    }
    for address in &service.external_ips6 {
        add(Some(*address), port.port, true, &outside);
    }
    for address in &service.balancer_ips6 {
        add(Some(*address), port.port, pods_may, &balancer);
    }
}

/// Which endpoints may serve those that come from there.
fn policy(reach: Reach, service: &Service) -> Policy {
    match reach {
        Reach::Internal => service.internal,
        Reach::Cluster => Policy::Cluster,
        Reach::External | Reach::Balancer => service.external,
        Reach::Handed | Reach::HandedBalancer => Policy::Local,
    }
}

/// Who of a family is served.
fn sources(reach: Reach, service: &Service, family: Family) -> Vec<IpNet> {
    if !matches!(reach, Reach::Balancer | Reach::HandedBalancer) {
        return Vec::new();
    }
    let of = |range: &&IpNet| matches!(range, IpNet::V4(_)) == (family == Family::Ipv4);
    service.sources.iter().filter(of).copied().collect()
}

/// A group without backends.
fn like(service: &Service, port: &ServicePort) -> Group {
    Group {
        balance: service.annotations.balance,
        affinity: service.affinity,
        named: port.protocol == Protocol::Udp && service.annotations.quic_server_id == QuicServerId::PodIp,
        ..Group::default()
    }
}

/// None where they are all 1.
fn weights<P>(backends: &[Serving<'_, P>]) -> Vec<u16> {
    let plain = backends.iter().all(|serving| serving.weight == 1);
    backends.iter().filter(|_| !plain).map(|serving| serving.weight).collect()
}

fn plan_port<'a>(
    plan: &mut ServicePlan,
    service: &Service,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &NodeIdentity,
    pods_may: bool,
) {
    // With the policy Local every backend is at the node that is asked, and answers itself anyhow.
    let dsr = service.annotations.forwarding == Forwarding::Dsr && service.external == Policy::Cluster;
    let mut group = |reach| {
        let key = GroupKey {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
            family: Family::Ipv4,
            reach,
        };
        plan.groups.entry(key.clone()).or_insert_with(|| {
            let (mut backends, mut others) =
                members(port, slices.clone(), policy(reach, service), node, service);
            // What was handed on is served, though its backend here has gone meanwhile.
            if backends.is_empty() && matches!(reach, Reach::Handed | Reach::HandedBalancer) {
                (backends, others) = members(port, slices.clone(), Policy::Cluster, node, service);
            }
            let handed_on = dsr && matches!(reach, Reach::External | Reach::Balancer);
            let via = backends.iter().filter(|_| handed_on);
            Group {
                weights: weights(&backends),
                via: via
                    .map(|serving| node.neighbours.get(serving.endpoint.node.as_deref()?).copied())
                    .collect(),
                backends: backends.into_iter().map(|serving| serving.place).collect(),
                sources: sources(reach, service, Family::Ipv4),
                others,
                ..like(service, port)
            }
        });
        key
    };
    let at = |address: Ipv4Addr| {
        Frontend::new(u32::from_ne_bytes(address.octets()), port.port.to_be(), port.protocol.number())
    };
    let internal = group(Reach::Internal);
    let mut frontends: Vec<(Frontend, GroupKey)> =
        service.cluster_ips.iter().map(|address| (at(*address), internal.clone())).collect();
    if port.node_port.is_some() || !service.external_ips.is_empty() || !service.balancer_ips.is_empty() {
        let inside = if service.internal == Policy::Cluster { internal } else { group(Reach::Cluster) };
        let outside =
            if service.external == Policy::Cluster && !dsr { inside.clone() } else { group(Reach::External) };
        let by_source = !sources(Reach::Balancer, service, Family::Ipv4).is_empty();
        let balancer = if by_source { group(Reach::Balancer) } else { outside.clone() };
        let handed = dsr.then(|| group(Reach::Handed));
        let handed_balancer =
            if by_source { dsr.then(|| group(Reach::HandedBalancer)) } else { handed.clone() };
        let mut add = |frontend: Frontend, from_inside: bool, group: &GroupKey, handed: &Option<GroupKey>| {
            if from_inside {
                frontends.push((frontend, inside.clone()));
            }
            frontends.push((frontend.scoped(Scope::OUTSIDE), group.clone()));
            frontends.extend(handed.iter().map(|handed| (frontend.scoped(Scope::HANDED), handed.clone())));
        };
        if let Some(node_port) = port.node_port {
            add(Frontend::node_port(node_port.to_be(), port.protocol.number()), true, &outside, &handed);
        }
        for address in &service.external_ips {
            add(at(*address), true, &outside, &handed);
        }
        for address in &service.balancer_ips {
            add(at(*address), pods_may, &balancer, &handed_balancer);
        }
    }
    plan.frontends.extend(frontends);
}

/// The ports of the node that lead to a pod.
pub fn plan_host_ports(name: ServiceName, pod: &HostPorts) -> ServicePlan {
    let mut plan = ServicePlan::absent(name.clone());
    for port in &pod.ports {
        let key = |family| GroupKey {
            service: name.clone(),
            port: format!("{:?} {}", port.host, port.port).into(),
            protocol: port.protocol,
            family,
            reach: Reach::Internal,
        };
        let host = port.host.as_ref();
        if let Some(address) = pod.address
            && host.is_none_or(IpAddr::is_ipv4)
        {
            let number = port.protocol.number();
            let frontend = match host.and_then(ipv4) {
                Some(host) => Frontend::new(u32::from_ne_bytes(host.octets()), port.port.to_be(), number),
                None => Frontend::node_port(port.port.to_be(), number),
            };
            let backends = vec![SocketAddrV4::new(address, port.target)];
            let key = key(Family::Ipv4);
            plan.groups.insert(key.clone(), Group { backends, ..Group::default() });
            plan.frontends.insert(frontend, key.clone());
            plan.frontends.insert(frontend.scoped(Scope::OUTSIDE), key);
        }
        if let Some(address) = pod.address6
            && host.is_none_or(IpAddr::is_ipv6)
        {
            let backends = vec![SocketAddrV6::new(address, port.target, 0, 0)];
            let key = key(Family::Ipv6);
            plan.six.groups.insert(key.clone(), Group6 { backends, ..Group6::default() });
            for scope in [Scope::INSIDE6, Scope::OUTSIDE6] {
                let address = host.and_then(ipv6);
                let frontend = Frontend6 { address, port: port.port, protocol: port.protocol, scope };
                plan.six.frontends.insert(frontend, key.clone());
            }
        }
    }
    plan
}

/// Whether the load balancer's sources take in this node's pods. Where they do not, a pod's packets are left
/// to take their way, and are refused like anybody's.
fn pods_may(service: &Service, node: &NodeIdentity, family: Family) -> bool {
    let pods = match family {
        Family::Ipv4 => node.pods.and_then(|pods| IpNet::new(pods.net().into(), pods.prefix()).ok()),
        Family::Ipv6 => node.pods6.map(IpNet::V6),
    };
    let ranges = sources(Reach::Balancer, service, family);
    ranges.is_empty() || pods.is_some_and(|pods| ranges.iter().any(|range| range.contains(&pods)))
}

/// Whether this node announces a load balancer's address: one of those that can serve, the same for all who
/// ask, and another one for another address.
fn announces<'a>(
    service: &Service,
    address: IpAddr,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &NodeIdentity,
) -> bool {
    let mut able: BTreeSet<&str> = BTreeSet::new();
    if service.external == Policy::Local {
        let serving =
            slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.ready || endpoint.draining);
        let serving = serving.filter(|endpoint| endpoint.address.is_ipv4() == address.is_ipv4());
        able.extend(serving.filter_map(|endpoint| endpoint.node.as_deref()));
        able.retain(|name| node.ready.contains(*name));
    }
    if able.is_empty() {
        able.extend(node.ready.iter().map(|name| &**name));
    }
    let rank = |name: &&str| {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let bytes = octets.into_iter().chain(name.bytes());
        // FNV-1a, with the bits that change least stirred in at the end.
        let hash = bytes.fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        hash ^ (hash >> 29)
    };
    able.into_iter().max_by_key(rank) == Some(&*node.name)
}

/// Where a backend is reached, in one of the families.
trait Place: Copy + Ord {
    /// `None` for an address of the other family.
    fn of(address: IpAddr, port: u16) -> Option<Self>;
}

impl Place for SocketAddrV4 {
    fn of(address: IpAddr, port: u16) -> Option<Self> {
        ipv4(&address).map(|address| Self::new(address, port))
    }
}

impl Place for SocketAddrV6 {
    fn of(address: IpAddr, port: u16) -> Option<Self> {
        ipv6(&address).map(|address| Self::new(address, port, 0, 0))
    }
}

/// An endpoint that takes new connections.
struct Serving<'a, P> {
    place: P,
    weight: u16,
    endpoint: &'a Endpoint,
}

/// Who serves a port, and who is there besides. Those who serve are ready; where there are
/// none, those that are draining: they still answer, and their going away is no reason to refuse a client
/// before they have.
fn members<'a, P: Place>(
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice>,
    policy: Policy,
    node: &NodeIdentity,
    service: &Service,
) -> (Vec<Serving<'a, P>>, Vec<P>) {
    let mut all: BTreeMap<P, &Endpoint> = BTreeMap::new();
    for slice in slices {
        let matches = |(name, protocol, _): &&(Arc<str>, Protocol, u16)| {
            *name == port.name && *protocol == port.protocol
        };
        let Some((_, _, number)) = slice.ports.iter().find(matches) else { continue };
        for endpoint in &slice.endpoints {
            let Some(place) = P::of(endpoint.address, *number) else { continue };
            // Named twice while it moves from one slice to another: what serves counts.
            if !all.get(&place).is_some_and(|known| known.ready) {
                all.insert(place, endpoint);
            }
        }
    }
    let weight = |endpoint: &Endpoint| service.annotations.weights.of(endpoint.pod.as_deref());
    let able = |endpoint: &Endpoint| {
        let here = policy == Policy::Cluster || endpoint.node.as_deref() == Some(&*node.name);
        here && weight(endpoint) > 0
    };
    let choose = |wanted: &dyn Fn(&Endpoint) -> bool| -> BTreeMap<P, &Endpoint> {
        let chosen = all.iter().filter(|(_, endpoint)| able(endpoint) && wanted(endpoint));
        chosen.map(|(place, endpoint)| (*place, *endpoint)).collect()
    };
    let mut chosen = choose(&|endpoint| endpoint.ready);
    if policy == Policy::Cluster {
        chosen = nearest(chosen, node);
    }
    if chosen.is_empty() {
        chosen = choose(&|endpoint| endpoint.draining);
    }
    let others = all.keys().filter(|place| !chosen.contains_key(place)).copied().collect();
    let serving = chosen.into_iter();
    let serving = serving.map(|(place, endpoint)| Serving { place, weight: weight(endpoint), endpoint });
    (serving.collect(), others)
}

/// Those that are meant for this node, else for its zone. Hints hold only where every endpoint has them: else
/// some are from before and would get nothing, or everything.
fn nearest<'a, P: Place>(ready: BTreeMap<P, &'a Endpoint>, node: &NodeIdentity) -> BTreeMap<P, &'a Endpoint> {
    let keep = |meant: &dyn Fn(&Endpoint) -> bool| -> BTreeMap<P, &'a Endpoint> {
        let near = ready.iter().filter(|(_, endpoint)| meant(endpoint));
        near.map(|(place, endpoint)| (*place, *endpoint)).collect()
    };
    if ready.values().all(|endpoint| !endpoint.nodes.is_empty()) {
        let here = keep(&|endpoint| endpoint.nodes.contains(&node.name));
        if !here.is_empty() {
            return here;
        }
    }
    if let Some(zone) = &node.zone
        && ready.values().all(|endpoint| !endpoint.zones.is_empty())
    {
        let near = keep(&|endpoint| endpoint.zones.contains(zone));
        if !near.is_empty() {
            return near;
        }
    }
    ready
}
