//! What goes out before the host has seen it: the same bytes and records as at the uplink's ingress, and nothing
//! else.

use core::cell::RefCell;

use std::vec::Vec;

use pith_abi::{FlowState, Frontend, NodeClass, NodeConfig, Reason, Tuple, proto};

use crate::{
    Bytes, Verdict,
    fast::{Fast, Leaving, Routes, forward},
    host::{Buffer, Memory, wire},
    packet::tcp::{ACK, FIN, RST, SYN},
    uplink::ingress,
};

const NODE: [u8; 4] = [172, 30, 0, 2];
const BALANCER: [u8; 4] = [172, 30, 0, 200];
const CLIENT: [u8; 4] = [192, 0, 2, 7];
const LOCAL: [u8; 4] = [10, 244, 1, 5];
const REMOTE: [u8; 4] = [10, 244, 2, 6];
const NODE_PORT: u16 = 30_080;
const HOP: [u8; 12] = [2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 9];
const SECOND_NS: u64 = 1_000_000_000;

/// Knows the way to everywhere, and what was asked; or to nowhere.
#[derive(Default)]
struct Ways {
    none: bool,
    asked: RefCell<Vec<Leaving>>,
}

impl Routes for Ways {
    fn next_hop(&self, _node: &NodeConfig, packet: &Leaving) -> Option<[u8; 12]> {
        self.asked.borrow_mut().push(*packet);
        (!self.none).then_some(HOP)
    }
}

fn serving(backend: [u8; 4]) -> Memory {
    let mut memory = Memory::of_node(NODE, ([10, 244, 1, 0], 24), ([10, 244, 0, 0], 16));
    memory.node_classes.insert(u32::from_ne_bytes(BALANCER), NodeClass::SERVICE);
    memory.clock_ns.set(1_000 * SECOND_NS);
    for protocol in [proto::TCP, proto::UDP] {
        memory.serve(Frontend::node_port(NODE_PORT.to_be(), protocol), 3, &[(backend, 8080)]);
        let balancer = Frontend::new(u32::from_ne_bytes(BALANCER), NODE_PORT.to_be(), protocol);
        memory.serve(balancer, 4, &[(backend, 8080)]);
    }
    memory
}

fn tuple(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16, protocol: u8) -> Tuple {
    Tuple::new(u32::from_ne_bytes(src), sport.to_be(), u32::from_ne_bytes(dst), dport.to_be(), protocol)
}

fn asked(protocol: u8) -> Tuple {
    tuple(CLIENT, 40_000, NODE, NODE_PORT, protocol)
}

/// Begins a flow as the uplink's ingress does; the tuple of its replies.
fn begun(memory: &Memory, first: &Tuple) -> Tuple {
    let mut packet = wire::packet(first, SYN, b"");
    ingress(&mut packet, memory);
    let reply = wire::tuple(&packet).reversed();
    let mut answer = wire::packet(&reply, SYN | ACK, b"");
    ingress(&mut answer, memory);
    reply
}

fn leaves(memory: &Memory, packet: &Buffer, routes: &Ways) -> bool {
    let mut after = packet.clone();
    let flows = memory.flows.borrow().clone();
    let left = forward(&mut after, memory, routes) == Fast::Leave;
    assert!(!left || (after == *packet && *memory.flows.borrow() == flows), "what is left is as it was");
    left
}

/// Of a packet: what goes out here and what goes out at the uplink's ingress are the same, records included.
#[test]
fn what_goes_out_is_what_the_ingress_makes_of_it() {
    for protocol in [proto::TCP, proto::UDP] {
        for first in [asked(protocol), tuple(CLIENT, 40_000, BALANCER, NODE_PORT, protocol)] {
            for flags in [ACK, FIN | ACK, RST] {
                for is_reply in [false, true] {
                    let (here, there) = (serving(REMOTE), serving(REMOTE));
                    let reply = begun(&here, &first);
                    assert_eq!(begun(&there, &first), reply);
                    let tuple = if is_reply { reply } else { first };
                    let sent = wire::packet(&tuple, flags, b"abc");
                    let (mut fast, mut slow) = (sent.clone(), sent.clone());
                    let routes = Ways::default();
                    let (reason, slow_reason) = if is_reply {
                        (Reason::FlowReplyXdp, Reason::FlowReply)
                    } else {
                        (Reason::FlowForwardXdp, Reason::FlowForward)
                    };
                    assert_eq!(forward(&mut fast, &here, &routes), Fast::Out(reason), "{tuple:?} {flags}");
                    assert_eq!(
                        ingress(&mut slow, &there),
                        Verdict::Forward(slow_reason),
                        "{tuple:?} {flags}"
                    );
                    assert_eq!(fast.0[..12], HOP);
                    assert_eq!(fast.0[12..], slow.0[12..], "{tuple:?} {flags}");
                    assert!(wire::checksums_hold(&fast));
                    assert_eq!(*here.flows.borrow(), *there.flows.borrow(), "{tuple:?} {flags}");
                    let leaving =
                        Leaving { to: wire::tuple(&fast), tos: 0, length: (sent.0.len() - 14) as u16 };
                    assert_eq!(*routes.asked.borrow(), [leaving]);
                }
            }
        }
    }
}

#[test]
fn everything_else_is_left_as_it_came() {
    let remote = || {
        let memory = serving(REMOTE);
        let reply = begun(&memory, &asked(proto::TCP));
        (memory, reply)
    };
    let data = wire::packet(&asked(proto::TCP), ACK, b"abc");
    let changed = |change: fn(&mut Buffer)| {
        let mut packet = data.clone();
        change(&mut packet);
        packet
    };
    let cases = [
        ("IPv6", changed(|packet| packet.0[12..14].copy_from_slice(&[0x86, 0xDD]))),
        ("a VLAN", changed(|packet| packet.0[12..14].copy_from_slice(&[0x81, 0]))),
        ("a first piece", changed(|packet| packet.0[14 + 6] = 0x20)),
        ("a later piece", changed(|packet| packet.0[14 + 7] = 4)),
        ("options", changed(|packet| packet.0[14] = 0x46)),
        ("no hops left", changed(|packet| packet.0[14 + 8] = 1)),
        ("cut off", changed(|packet| packet.0.truncate(14 + 20 + 19))),
        ("empty", changed(|packet| packet.0.truncate(13))),
        ("a first packet", wire::packet(&tuple(CLIENT, 40_001, NODE, NODE_PORT, proto::TCP), SYN, b"")),
        ("no flow", wire::packet(&tuple(CLIENT, 40_001, NODE, NODE_PORT, proto::TCP), ACK, b"")),
        ("another protocol", wire::packet(&asked(proto::UDP), 0, b"abc")),
        ("SCTP", wire::packet(&asked(proto::SCTP), 0, b"abc")),
        ("a ping", wire::packet(&tuple(CLIENT, 7, NODE, 0, proto::ICMP), 0, b"abc")),
        ("another host", wire::packet(&tuple(CLIENT, 40_000, REMOTE, 80, proto::TCP), ACK, b"")),
    ];
    for (name, packet) in cases {
        let (memory, _) = remote();
        let routes = Ways::default();
        assert!(leaves(&memory, &packet, &routes), "{name}");
        assert!(routes.asked.borrow().is_empty(), "{name}");
    }

    let (memory, reply) = remote();
    assert!(leaves(&memory, &data, &Ways { none: true, ..Ways::default() }), "no next hop is known");
    let answer = wire::packet(&reply, ACK, b"abc");
    assert!(leaves(&memory, &answer, &Ways { none: true, ..Ways::default() }), "nor for a reply");
    assert!(!leaves(&memory, &data, &Ways::default()), "then it is");
    assert!(!leaves(&memory, &answer, &Ways::default()), "and for replies");

    // A connection that ended and begins again is balanced anew.
    assert!(!leaves(&memory, &wire::packet(&asked(proto::TCP), RST, b""), &Ways::default()));
    assert!(leaves(&memory, &wire::packet(&asked(proto::TCP), SYN, b""), &Ways::default()), "closed");

    // To a backend here, of whom the client is known by its own address.
    let memory = serving(LOCAL);
    begun(&memory, &asked(proto::TCP));
    assert!(leaves(&memory, &data, &Ways::default()), "a backend here");
    // Masqueraded, the replies of which are a pod's.
    let memory = serving(REMOTE);
    let mut sent = wire::packet(&tuple(LOCAL, 2000, CLIENT, 443, proto::UDP), 0, b"abc");
    crate::uplink::egress(&mut sent, &memory);
    let reply = wire::packet(&wire::tuple(&sent).reversed(), 0, b"abc");
    assert!(leaves(&memory, &reply, &Ways::default()), "masqueraded");

    // Before the uplink is known.
    let unknown = Memory::default();
    assert!(leaves(&unknown, &data, &Ways::default()), "no node");
}

/// Once a second the stack sees a packet of each flow, and what it writes lets the next ones go by again.
#[test]
fn the_stack_sees_a_packet_a_second() {
    let memory = serving(REMOTE);
    begun(&memory, &asked(proto::TCP));
    let data = wire::packet(&asked(proto::TCP), ACK, b"abc");
    assert!(!leaves(&memory, &data, &Ways::default()));
    memory.clock_ns.update(|now| now + SECOND_NS + 1);
    assert!(leaves(&memory, &data, &Ways::default()), "a second later");
    assert_eq!(ingress(&mut data.clone(), &memory), Verdict::Forward(Reason::FlowForward));
    assert!(!leaves(&memory, &data, &Ways::default()), "it has been seen");
    let state = memory.flows.borrow().values().next().map(|flow| FlowState::from_raw(flow.state));
    assert_eq!(state, Some(FlowState::Open));
    assert_eq!(data.peek::<1>(14), Some([0x45]));
}
