//! The live maps as the core asks for them, with every question and its answer written down.
//!
//! Invariant: nothing is written to the maps. What the core would write is kept aside and read back by it, so that
//! a packet goes on as it would, and the next real one finds everything as it was.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
};

use pith_abi::{
    Address6, Affinity, AffinityKey, AtPods, Backend, Flow, FlowState, Fragment, FragmentKey, Frontend,
    FrontendTarget, HandedOn, Head, Known6, Networks6, NodeClass, NodeConfig, Scope, ServerKey, Service,
    SourceKey, StandIn, Tuple, proto,
};
use pith_core::{NotAdded, Record, Tables, six::Addresses};

use crate::{
    flows,
    maps::{MapAccess, Maps, ServiceMaps},
};

/// Any network namespace that is not the node's: a pod's.
const A_PODS_NAMESPACE: u64 = 1;

pub(crate) struct Live<'m> {
    maps: &'m Maps,
    node: NodeConfig,
    node6: NodeConfig,
    networks: Networks6,
    /// Addresses of IPv6 by their numbers, also those that the maps do not keep.
    named: RefCell<HashMap<StandIn, Known6>>,
    flows: RefCell<HashMap<Tuple, Flow>>,
    forwards: RefCell<HashMap<Tuple, Tuple>>,
    chance: Cell<u32>,
    questions: RefCell<Vec<String>>,
}

impl<'m> Live<'m> {
    pub(crate) fn new(maps: &'m Maps) -> Result<Self, MapAccess> {
        Ok(Self {
            maps,
            node: maps.node(NodeConfig::IPV4)?,
            node6: maps.node(NodeConfig::IPV6)?,
            networks: maps.networks()?,
            named: RefCell::default(),
            flows: RefCell::default(),
            forwards: RefCell::default(),
            // A seed; xorshift keeps it from 0.
            chance: Cell::new(flows::now_ns() as u32 | 1),
            questions: RefCell::default(),
        })
    }

    /// What was asked since the last call.
    pub(crate) fn take_questions(&self) -> Vec<String> {
        self.questions.take()
    }

    /// Has a number shown as the address that it stands for.
    pub(crate) fn name(&self, addr_be: u32, address: Ipv6Addr) {
        let known = Known6 { address: Address6::from_octets(address.octets()), used_ns: 0 };
        if let Some(standin) = StandIn::of(addr_be) {
            self.named.borrow_mut().insert(standin, known);
        }
    }

    pub(crate) fn address(&self, addr_be: u32) -> IpAddr {
        self.place(addr_be, 0).ip()
    }

    pub(crate) fn place(&self, addr_be: u32, port_be: u16) -> SocketAddr {
        let place = place(addr_be, port_be);
        let named = StandIn::of(addr_be).and_then(|standin| self.named.borrow().get(&standin).copied());
        match named {
            Some(known) => (Ipv6Addr::from(known.address.octets()), place.port()).into(),
            None => self.maps.real(place),
        }
    }

    /// A tuple in words.
    pub(crate) fn words(&self, tuple: &Tuple) -> String {
        let (from, to) = (self.place(tuple.src_be, tuple.sport_be), self.place(tuple.dst_be, tuple.dport_be));
        match tuple.proto {
            proto::ICMP => format!("{} → {}/ICMP", from.ip(), to.ip()),
            proto::UDP => format!("{from} → {to}/UDP"),
            proto::SCTP => format!("{from} → {to}/SCTP"),
            _ => format!("{from} → {to}/TCP"),
        }
    }

    fn note(&self, question: String) {
        self.questions.borrow_mut().push(question);
    }

    fn known_flow(&self, key: &Tuple) -> Option<Flow> {
        let begun = self.flows.borrow().get(key).copied();
        begun.or_else(|| self.maps.flows.get(key, 0).ok())
    }
}

/// A record of FLOWS, changed in memory only.
pub(crate) struct LiveRecord<'l, 'm> {
    live: &'l Live<'m>,
    key: Tuple,
    flow: Flow,
}

impl Record for LiveRecord<'_, '_> {
    fn get(&self) -> Flow {
        self.live.flows.borrow().get(&self.key).copied().unwrap_or(self.flow)
    }

    fn set_life(&self, state: FlowState, last_ns: u64) {
        self.replace(&Flow { state: state as u8, last_ns, ..self.get() });
    }

    fn replace(&self, flow: &Flow) {
        self.live.flows.borrow_mut().insert(self.key, *flow);
    }
}

impl<'m> Tables for Live<'m> {
    type Record<'a>
        = LiveRecord<'a, 'm>
    where
        Self: 'a;

    fn node(&self) -> Option<&NodeConfig> {
        Some(&self.node)
    }

    fn node_class(&self, addr_be: u32) -> u32 {
        let class = self.maps.node_class(addr_be);
        let words = [
            (NodeClass::OWN, "this node's"),
            (NodeClass::OTHER, "another node's"),
            (NodeClass::SERVICE, "a Service's"),
            (NodeClass::ANNOUNCED, "announced here"),
        ];
        let what: Vec<&str> =
            words.iter().filter(|(bit, _)| class & bit != 0).map(|(_, word)| *word).collect();
        let what = if what.is_empty() { "nobody's here".to_owned() } else { what.join(", ") };
        self.note(format!("NODES {}: {what}", self.address(addr_be)));
        class
    }

    fn frontend(&self, frontend: &Frontend) -> Option<FrontendTarget> {
        let target = self.maps.frontend(frontend);
        let from = match frontend.scope {
            Scope::OUTSIDE | Scope::OUTSIDE6 => " from outside",
            Scope::GONE | Scope::GONE6 => " as a backend that is gone",
            Scope::HANDED => " by another node",
            _ => "",
        };
        let found = match target.and_then(|target| target.service(frontend)) {
            None => "nothing".to_owned(),
            Some(FrontendTarget::NO_SERVICE) => "an address of a Service".to_owned(),
            Some(service) => format!("service {service}"),
        };
        self.note(format!("FRONTENDS {}{from}: {found}", self.maps.show(frontend)));
        target
    }

    fn service(&self, index: u32) -> Option<Service> {
        let service = self.maps.service(index).ok();
        let found = service.map_or_else(
            || "nothing".to_owned(),
            |service| {
                let head = Head::unpack(service.head);
                format!("generation {} of {} slots, from slot {}", head.tag, head.count, head.first)
            },
        );
        self.note(format!("SERVICES {index}: {found}"));
        service
    }

    fn backend(&self, slot: u32) -> Option<Backend> {
        let backend = self.maps.backend(slot).ok()?;
        let to = match backend.is_node() {
            true => format!("the node {}", self.address(backend.addr_be())),
            false => self.place(backend.addr_be(), backend.port_be()).to_string(),
        };
        self.note(format!("BACKENDS {slot}: {to} of generation {}", backend.tag()));
        Some(backend)
    }

    fn serves_source(&self, service: u32, addr_be: u32) -> bool {
        let serves = self.maps.serves_source(&SourceKey { service, addr_be });
        let answer = if serves { "served" } else { "not served" };
        self.note(format!("SOURCES {} of service {service}: {answer}", self.address(addr_be)));
        serves
    }

    fn server(&self, key: &ServerKey) -> Option<Backend> {
        let backend = self.maps.server(key);
        let found = backend.map_or_else(
            || "nobody".to_owned(),
            |backend| self.place(backend.addr_be(), backend.port_be()).to_string(),
        );
        self.note(format!("SERVERS {} of service {}: {found}", self.address(key.addr_be), key.service));
        backend
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        let affinity = self.maps.client(key);
        let found = affinity.map_or_else(
            || "nothing".to_owned(),
            |affinity| self.place(affinity.backend.addr_be(), affinity.backend.port_be()).to_string(),
        );
        self.note(format!("AFFINITY of the client to service {}: {found}", key.service));
        affinity
    }

    fn set_affinity(&self, _key: &AffinityKey, _affinity: &Affinity) {}

    fn flow(&self, key: &Tuple) -> Option<LiveRecord<'_, 'm>> {
        let flow = self.known_flow(key);
        let found = flow.map_or_else(
            || "nothing".to_owned(),
            |flow| format!("{:?}, began as {}", FlowState::from_raw(flow.state), self.words(&flow.forward)),
        );
        self.note(format!("FLOWS {}: {found}", self.words(key)));
        Some(LiveRecord { live: self, key: *key, flow: flow? })
    }

    fn add_flow(&self, key: &Tuple, flow: &Flow) -> Result<(), NotAdded> {
        if self.known_flow(key).is_some() {
            return Err(NotAdded::Exists);
        }
        self.note(format!("FLOWS: begins with replies {}", self.words(key)));
        self.flows.borrow_mut().insert(*key, *flow);
        Ok(())
    }

    fn remove_flow(&self, key: &Tuple) {
        self.flows.borrow_mut().remove(key);
    }

    fn forward(&self, forward: &Tuple) -> Option<Tuple> {
        let begun = self.forwards.borrow().get(forward).copied();
        let key = begun.or_else(|| self.maps.forward.get(forward, 0).ok());
        let found =
            key.map_or_else(|| "nothing".to_owned(), |key| format!("replies are {}", self.words(&key)));
        self.note(format!("FORWARD {}: {found}", self.words(forward)));
        key
    }

    fn set_forward(&self, forward: &Tuple, key: &Tuple) -> Result<(), NotAdded> {
        self.forwards.borrow_mut().insert(*forward, *key);
        Ok(())
    }

    fn handed_on(&self, tuple: &Tuple) -> Option<HandedOn> {
        let flow = self.maps.handed_on.get(tuple, 0).ok();
        let found = flow.map_or_else(|| "nothing".to_owned(), |flow| self.address(flow.node_be).to_string());
        self.note(format!("HANDED_ON {}: {found}", self.words(tuple)));
        flow
    }

    fn set_handed_on(&self, tuple: &Tuple, flow: &HandedOn) -> Result<(), NotAdded> {
        self.note(format!("HANDED_ON: begins with {} to {}", self.words(tuple), self.address(flow.node_be)));
        Ok(())
    }

    fn note_handed_on(&self, _tuple: &Tuple, _state: FlowState, _last_ns: u64) {}

    fn pods_have_flows(&self) -> bool {
        let here = self.flows.borrow().values().any(|flow| flow.flags & pith_abi::FlowFlags::AT_POD != 0);
        let words = [AtPods::BEGUN, AtPods::SETTLED].map(|word| self.maps.at_pods(word));
        let have = here || words[0] != words[1];
        self.note(format!("AT_PODS: {} flows began at pods' links", if have { "some" } else { "no" }));
        have
    }

    fn pod_flow_begun(&self) {}

    fn any_gone(&self) -> bool {
        let any = self.maps.at_pods(AtPods::GONE) != 0;
        self.note(format!("AT_PODS: {} backends are remembered as gone", if any { "some" } else { "no" }));
        any
    }

    fn fragment(&self, _key: &FragmentKey) -> Option<Fragment> {
        // The packet is whole.
        None
    }

    fn set_fragment(&self, _key: &FragmentKey, _fragment: &Fragment) {}

    fn any_parked(&self, _key: &FragmentKey) -> bool {
        false
    }

    fn random(&self) -> u32 {
        // Marsaglia's xorshift: chance enough to choose one of several.
        let mut next = self.chance.get();
        next ^= next << 13;
        next ^= next >> 17;
        next ^= next << 5;
        self.chance.set(next);
        next
    }

    fn now_ns(&self) -> u64 {
        flows::now_ns()
    }

    fn netns_cookie(&self) -> u64 {
        A_PODS_NAMESPACE
    }
}

impl Addresses for Live<'_> {
    fn node6(&self) -> Option<&NodeConfig> {
        Some(&self.node6)
    }

    fn networks(&self) -> Option<&Networks6> {
        Some(&self.networks)
    }

    fn seed(&self) -> u64 {
        self.node.seed
    }

    fn known(&self, standin: StandIn) -> Option<Known6> {
        let named = self.named.borrow().get(&standin).copied();
        // What cannot be read is as good as unknown: nothing is decided by it but what is shown.
        named.or_else(|| self.maps.known(standin).ok().flatten())
    }

    fn keep(&self, standin: StandIn, known: &Known6) -> Result<(), NotAdded> {
        self.note(format!("ADDRESSES: {} is kept", Ipv6Addr::from(known.address.octets())));
        self.named.borrow_mut().entry(standin).or_insert(*known);
        Ok(())
    }

    fn touch(&self, _standin: StandIn, _used_ns: u64) {}

    fn serves_source6(&self, service: u32, address: &Address6) -> bool {
        let serves = self.maps.serves_source6(service, address);
        let answer = if serves { "served" } else { "not served" };
        self.note(format!("SOURCES6 {} of service {service}: {answer}", Ipv6Addr::from(address.octets())));
        serves
    }
}

pub(crate) fn address(addr_be: u32) -> Ipv4Addr {
    Ipv4Addr::from(addr_be.to_ne_bytes())
}

pub(crate) fn place(addr_be: u32, port_be: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address(addr_be), u16::from_be(port_be))
}
