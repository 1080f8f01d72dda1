//! The core in memory against the [`model`](crate::model): shrinkable streams of events. The loaded programs are
//! put through the same in the tests of the proxy.

use std::vec::Vec;

use pith_abi::{Frontend, NodeClass, Scope, proto};
use proptest::prelude::*;

use crate::{
    Verdict, flow,
    host::{Buffer, Memory},
    model::{Action, BALANCER, Model, NODE, NODE_PORT, SERVICE_PORT, Side, System, TARGET},
    uplink,
};

impl System for Memory {
    fn run(&mut self, side: Side, packet: &Buffer) -> (Action, Buffer) {
        let mut packet = packet.clone();
        let verdict = match side {
            Side::In => uplink::ingress(&mut packet, self),
            Side::Out => uplink::egress(&mut packet, self),
        };
        let action = match verdict {
            Verdict::Pass(_) => Action::Pass,
            Verdict::Forward(_) | Verdict::HandOn(..) | Verdict::Inward(_) | Verdict::Return(_) => {
                Action::Redirect
            }
            Verdict::Drop(_) | Verdict::Park(_) | Verdict::Release(_) => Action::Drop,
        };
        (action, packet)
    }

    fn serve(&mut self, backends: &[[u8; 4]]) {
        let places: Vec<_> = backends.iter().map(|backend| (*backend, TARGET)).collect();
        for (index, protocol) in [(1, proto::TCP), (2, proto::UDP), (3, proto::SCTP)] {
            let at = Frontend::new(u32::from_ne_bytes(BALANCER), SERVICE_PORT.to_be(), protocol);
            Memory::serve(self, Frontend::node_port(NODE_PORT.to_be(), protocol), index, &places);
            Memory::serve(self, at, index, &places);
            assert!(self.frontends.borrow().contains_key(&at.scoped(Scope::OUTSIDE)));
        }
        let serves = |addr_be: u32| backends.iter().any(|backend| u32::from_ne_bytes(*backend) == addr_be);
        self.flows
            .borrow_mut()
            .retain(|key, flow| flow.service == pith_abi::Flow::NO_SERVICE || serves(key.src_be));
        self.pass(0);
    }

    fn pass(&mut self, time_ns: u64) {
        self.clock_ns.update(|now| now + time_ns);
        let now = self.clock_ns.get();
        self.flows.borrow_mut().retain(|_, record| !flow::expired(record, now));
        let flows = self.flows.borrow();
        self.forwards
            .borrow_mut()
            .retain(|first, key| flows.get(key).is_some_and(|flow| flow.forward == *first));
    }

    fn restart(&mut self) {}
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_core_does_what_the_model_says(events in prop::collection::vec(any::<[u8; 4]>(), 1..120)) {
        let mut memory = Memory::of_node(NODE, ([10, 244, 1, 0], 24), ([10, 244, 0, 0], 16));
        memory.node_classes.insert(u32::from_ne_bytes(BALANCER), NodeClass::SERVICE | NodeClass::ANNOUNCED);
        memory.clock_ns.set(1_000_000_000_000);
        let mut model = Model::default();
        System::serve(&mut memory, &[]);
        for (number, numbers) in events.into_iter().enumerate() {
            let event = model.event(numbers);
            if let Err(difference) = model.step(&mut memory, &event) {
                prop_assert!(false, "event {number}, {event:02x?}: {difference}");
            }
        }
    }
}
