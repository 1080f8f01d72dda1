//! Packets that name their backend.

use std::{vec, vec::Vec};

use pith_abi::{Backend, Frontend, Head, HeadFlags, Reason, ServerKey, Service, Tuple, proto};
use proptest::prelude::*;

use crate::{
    Packet, Tables, Verdict,
    host::{Buffer, Memory, wire},
    packet::Header,
    uplink::ingress,
};

const NODE: [u8; 4] = [172, 30, 0, 2];
const CLIENT: [u8; 4] = [192, 0, 2, 7];
const POD: [u8; 4] = [10, 244, 1, 5];
const OTHER: [u8; 4] = [10, 244, 2, 6];
const NODE_PORT: u16 = 30_443;
const SERVICE: u32 = 3;

/// A connection ID that names a server, in a configuration.
fn id(configuration: u8, server: [u8; 4]) -> Vec<u8> {
    [&[configuration << 5 | 9], &server[..], b"nonce"].concat()
}

fn short(id: &[u8]) -> Vec<u8> {
    [&[0x40], id, b"sealed"].concat()
}

fn long(id: &[u8]) -> Vec<u8> {
    [&[0xC0, 0, 0, 0, 1, id.len() as u8], id, &[0], b"sealed"].concat()
}

fn sent(sport: u16) -> Tuple {
    let be = u32::from_ne_bytes;
    Tuple::new(be(CLIENT), sport.to_be(), be(NODE), NODE_PORT.to_be(), proto::UDP)
}

/// A node whose Service has both as backends, chooses the first, and lets packets name either.
fn node() -> Memory {
    let memory = Memory::of_node(NODE, ([10, 244, 1, 0], 24), ([10, 244, 0, 0], 16));
    memory.clock_ns.set(1_000_000_000_000);
    memory.serve(Frontend::node_port(NODE_PORT.to_be(), proto::UDP), SERVICE, &[(POD, 443), (OTHER, 443)]);
    let head =
        Head { flags: HeadFlags::NAMED, ..Head::unpack(memory.service(SERVICE).expect("served").head) };
    memory.services.borrow_mut().insert(SERVICE, Service { head: head.pack(), affinity_ns: 0 });
    for server in [POD, OTHER] {
        let addr_be = u32::from_ne_bytes(server);
        let backend = Backend::new(addr_be, 443u16.to_be(), 0);
        memory.servers.borrow_mut().insert(ServerKey { service: SERVICE, addr_be }, backend);
    }
    memory.chance.borrow_mut().extend([0; 4]);
    memory
}

#[test]
fn who_is_named_table() {
    let cases = [
        ("a short header", short(&id(0, OTHER)), Some(OTHER)),
        ("any configuration", short(&id(6, OTHER)), Some(OTHER)),
        ("one that leads nowhere", short(&id(7, OTHER)), None),
        ("a long header", long(&id(1, OTHER)), Some(OTHER)),
        ("a long header, leads nowhere", long(&id(7, OTHER)), None),
        ("a long header with an ID that is too short", long(&id(1, OTHER)[..4]), None),
        ("a long header with no ID", long(&[]), None),
        ("who is no backend", short(&id(0, [10, 244, 2, 7])), None),
        ("cut off", short(&id(0, OTHER))[..4].to_vec(), None),
        ("nothing", vec![], None),
    ];
    for (name, payload, named) in cases {
        let memory = node();
        let mut packet = wire::packet(&sent(40_000), 0, &payload);
        let verdict = ingress(&mut packet, &memory);
        let expect = match named {
            Some(_) => Verdict::Forward(Reason::ConnectionNamed),
            None => Verdict::Pass(Reason::NodePortLocal),
        };
        assert_eq!(verdict, expect, "{name}");
        assert_eq!(wire::tuple(&packet).dst_be, u32::from_ne_bytes(named.unwrap_or(POD)), "{name}");
        assert!(wire::checksums_hold(&packet), "{name}");
    }
}

#[test]
fn a_client_that_moves_stays_with_its_server_and_is_answered() {
    let memory = node();
    for sport in 40_000..40_032 {
        let mut packet = wire::packet(&sent(sport), 0, &short(&id(0, OTHER)));
        assert_eq!(ingress(&mut packet, &memory), Verdict::Forward(Reason::ConnectionNamed));
        let mut next = wire::packet(&sent(sport), 0, &short(&id(7, POD)));
        assert_eq!(ingress(&mut next, &memory), Verdict::Forward(Reason::FlowForward), "a flow is a flow");
        let mut answer = wire::packet(&wire::tuple(&packet).reversed(), 0, b"answer");
        assert_eq!(ingress(&mut answer, &memory).reason(), Reason::FlowReply);
        assert_eq!(wire::tuple(&answer), sent(sport).reversed());
    }
}

#[test]
fn services_that_do_not_say_so_are_balanced_as_ever() {
    let memory = node();
    let head = Head { flags: 0, ..Head::unpack(memory.service(SERVICE).expect("served").head) };
    memory.services.borrow_mut().insert(SERVICE, Service { head: head.pack(), affinity_ns: 0 });
    let mut packet = wire::packet(&sent(40_000), 0, &short(&id(0, OTHER)));
    assert_eq!(ingress(&mut packet, &memory), Verdict::Pass(Reason::NodePortLocal));
}

proptest! {
    /// Whatever a packet says, it goes to a backend of its Service.
    #[test]
    fn hostile_payloads_lead_to_backends_only(payload in prop::collection::vec(any::<u8>(), 0..64)) {
        let memory = node();
        let mut packet = wire::packet(&sent(40_000), 0, &payload);
        ingress(&mut packet, &memory);
        prop_assert!([POD, OTHER].map(u32::from_ne_bytes).contains(&wire::tuple(&packet).dst_be));
    }

    /// Reading does not go beyond the packet, wherever it ends.
    #[test]
    fn cut_packets_name_nobody(id in prop::collection::vec(any::<u8>(), 0..24), at in 42usize..80) {
        let mut packet = wire::packet(&sent(40_000), 0, &long(&id)).0;
        packet.truncate(at);
        let packet = Buffer(packet);
        let header = Header::parse(&packet).expect("a header");
        prop_assert!(at >= 42 + 11 || packet.server(&header).is_none());
    }
}
