//! The live maps as the core asks for them, with every question and its answer written down.
//!
//! Invariant: nothing is written to the maps. What the core would write is kept aside and read back by it, so that
//! a packet goes on as it would, and the next real one finds everything as it was.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use pith_abi::{
    Affinity, AffinityKey, AtPods, Backend, Flow, FlowState, Fragment, FragmentKey, Frontend, FrontendTarget,
    HandedOn, Head, NodeClass, NodeConfig, Scope, Service, SourceKey, Tuple, proto,
};
use pith_core::{NotAdded, Record, Tables};

use crate::{
    flows,
    maps::{self, MapAccess, Maps, ServiceMaps},
};

/// Any network namespace that is not the node's: a pod's.
const A_PODS_NAMESPACE: u64 = 1;

pub(crate) struct Live<'m> {
    maps: &'m Maps,
    node: NodeConfig,
    flows: RefCell<HashMap<Tuple, Flow>>,
    forwards: RefCell<HashMap<Tuple, Tuple>>,
    chance: Cell<u32>,
    questions: RefCell<Vec<String>>,
}

impl<'m> Live<'m> {
    pub(crate) fn new(maps: &'m Maps) -> Result<Self, MapAccess> {
        Ok(Self {
            maps,
            node: maps.node()?,
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
        self.note(format!("NODES {}: {what}", address(addr_be)));
        class
    }

    fn frontend(&self, frontend: &Frontend) -> Option<FrontendTarget> {
        let target = self.maps.frontend(frontend);
        let from = match frontend.scope {
            Scope::OUTSIDE => " from outside",
            Scope::GONE => " as a backend that is gone",
            Scope::HANDED => " by another node",
            _ => "",
        };
        let found = match target.and_then(|target| target.service(frontend)) {
            None => "nothing".to_owned(),
            Some(FrontendTarget::NO_SERVICE) => "an address of a Service".to_owned(),
            Some(service) => format!("service {service}"),
        };
        self.note(format!("FRONTENDS {}{from}: {found}", maps::show(frontend)));
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
            true => format!("the node {}", address(backend.addr_be())),
            false => place(backend.addr_be(), backend.port_be()).to_string(),
        };
        self.note(format!("BACKENDS {slot}: {to} of generation {}", backend.tag()));
        Some(backend)
    }

    fn serves_source(&self, service: u32, addr_be: u32) -> bool {
        let serves = self.maps.serves_source(&SourceKey { service, addr_be });
        let answer = if serves { "served" } else { "not served" };
        self.note(format!("SOURCES {} of service {service}: {answer}", address(addr_be)));
        serves
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        let affinity = self.maps.client(key);
        let found = affinity.map_or_else(
            || "nothing".to_owned(),
            |affinity| place(affinity.backend.addr_be(), affinity.backend.port_be()).to_string(),
        );
        self.note(format!("AFFINITY of the client to service {}: {found}", key.service));
        affinity
    }

    fn set_affinity(&self, _key: &AffinityKey, _affinity: &Affinity) {}

    fn flow(&self, key: &Tuple) -> Option<LiveRecord<'_, 'm>> {
        let flow = self.known_flow(key);
        let found = flow.map_or_else(
            || "nothing".to_owned(),
            |flow| format!("{:?}, began as {}", FlowState::from_raw(flow.state), words(&flow.forward)),
        );
        self.note(format!("FLOWS {}: {found}", words(key)));
        Some(LiveRecord { live: self, key: *key, flow: flow? })
    }

    fn add_flow(&self, key: &Tuple, flow: &Flow) -> Result<(), NotAdded> {
        if self.known_flow(key).is_some() {
            return Err(NotAdded::Exists);
        }
        self.note(format!("FLOWS: begins with replies {}", words(key)));
        self.flows.borrow_mut().insert(*key, *flow);
        Ok(())
    }

    fn remove_flow(&self, key: &Tuple) {
        self.flows.borrow_mut().remove(key);
    }

    fn forward(&self, forward: &Tuple) -> Option<Tuple> {
        let begun = self.forwards.borrow().get(forward).copied();
        let key = begun.or_else(|| self.maps.forward.get(forward, 0).ok());
        let found = key.map_or_else(|| "nothing".to_owned(), |key| format!("replies are {}", words(&key)));
        self.note(format!("FORWARD {}: {found}", words(forward)));
        key
    }

    fn set_forward(&self, forward: &Tuple, key: &Tuple) -> Result<(), NotAdded> {
        self.forwards.borrow_mut().insert(*forward, *key);
        Ok(())
    }

    fn handed_on(&self, tuple: &Tuple) -> Option<HandedOn> {
        let flow = self.maps.handed_on.get(tuple, 0).ok();
        let found = flow.map_or_else(|| "nothing".to_owned(), |flow| address(flow.node_be).to_string());
        self.note(format!("HANDED_ON {}: {found}", words(tuple)));
        flow
    }

    fn set_handed_on(&self, tuple: &Tuple, flow: &HandedOn) -> Result<(), NotAdded> {
        self.note(format!("HANDED_ON: begins with {} to {}", words(tuple), address(flow.node_be)));
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

pub(crate) fn address(addr_be: u32) -> Ipv4Addr {
    Ipv4Addr::from(addr_be.to_ne_bytes())
}

pub(crate) fn place(addr_be: u32, port_be: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address(addr_be), u16::from_be(port_be))
}

/// A tuple in words.
pub(crate) fn words(tuple: &Tuple) -> String {
    let (from, to) = (place(tuple.src_be, tuple.sport_be), place(tuple.dst_be, tuple.dport_be));
    match tuple.proto {
        proto::ICMP => format!("{} → {}/ICMP", from.ip(), to.ip()),
        proto::UDP => format!("{from} → {to}/UDP"),
        proto::SCTP => format!("{from} → {to}/SCTP"),
        _ => format!("{from} → {to}/TCP"),
    }
}
