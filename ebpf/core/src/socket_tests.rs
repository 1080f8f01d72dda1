//! Sockets and selection on the host.

use std::{collections::HashSet, vec::Vec};

use pith_abi::{Frontend, Head, HeadFlags, Peers, Reason, Service, proto};

use crate::{
    host::Memory,
    select::{Client, Selection, select},
    socket::{Place, Resolution, connect, datagram, remember, reverse, service_at},
};

const SERVICE: [u8; 4] = [10, 96, 0, 10];
const NODE: [u8; 4] = [172, 30, 0, 2];

fn place(address: [u8; 4], port: u16) -> Place {
    Place { addr_be: u32::from_ne_bytes(address), port_be: port.to_be() }
}

fn serving(backends: &[([u8; 4], u16)]) -> Memory {
    let memory = Memory::of_node(NODE, ([10, 244, 1, 0], 24), ([10, 244, 0, 0], 16));
    let at = place(SERVICE, 80);
    memory.serve(Frontend::new(at.addr_be, at.port_be, proto::TCP), 5, backends);
    memory.serve(Frontend::node_port(30_080u16.to_be(), proto::TCP), 6, backends);
    memory
}

fn many(count: u8) -> Vec<([u8; 4], u16)> {
    (1..=count).map(|host| ([10, 244, 1, host], 8080)).collect()
}

#[test]
fn where_services_answer() {
    let other_namespace = Memory { cookie: 2, ..serving(&many(1)) };
    let node_namespace = Memory { cookie: 1, ..serving(&many(1)) };
    let cases = [
        ("cluster address", &other_namespace, SERVICE, 80, proto::TCP, Some(5)),
        ("another port", &other_namespace, SERVICE, 81, proto::TCP, None),
        ("another protocol", &other_namespace, SERVICE, 80, proto::UDP, None),
        ("node port at the node", &other_namespace, NODE, 30_080, proto::TCP, Some(6)),
        ("node port elsewhere", &other_namespace, [172, 30, 0, 3], 30_080, proto::TCP, None),
        ("node port at a cluster address", &other_namespace, SERVICE, 30_080, proto::TCP, None),
        ("a pod's own loopback", &other_namespace, [127, 0, 0, 1], 30_080, proto::TCP, None),
        ("the node's loopback", &node_namespace, [127, 0, 0, 1], 30_080, proto::TCP, Some(6)),
    ];
    for (name, memory, address, port, protocol, expect) in cases {
        assert_eq!(service_at(memory, place(address, port), protocol), expect, "{name}");
    }
}

#[test]
fn connections_spread_and_are_refused_without_backends() {
    let memory = serving(&many(10));
    let mut seen = HashSet::new();
    for _ in 0..200 {
        let Resolution::To { peer, reason } = connect(&memory, place(SERVICE, 80), proto::TCP) else {
            panic!("ten backends serve");
        };
        assert_eq!(reason, Reason::SocketTranslated);
        seen.insert(peer.backend_addr_be);
    }
    assert_eq!(seen.len(), 10);

    let none = connect(&serving(&[]), place(SERVICE, 80), proto::TCP);
    assert_eq!(none, Resolution::Refuse(Reason::SocketNoEndpoints));
    let direct = connect(&memory, place([10, 244, 1, 1], 8080), proto::TCP);
    assert_eq!(direct, Resolution::Direct);
}

/// A generation that is replaced while a lookup is under way: its slots carry another tag already.
#[test]
fn half_a_generation_is_never_used() {
    let memory = serving(&many(4));
    let head = Head::unpack(memory.services.borrow()[&5].head);
    for slot in head.first..head.first + 4 {
        let backend = memory.backends.borrow()[&slot];
        let next = pith_abi::Backend::new(u32::from_ne_bytes([9, 9, 9, 9]), 0, backend.tag() + 1);
        memory.backends.borrow_mut().insert(slot, next);
    }
    assert_eq!(select(&memory, 5, Client::Socket), Selection::Race);
}

#[test]
fn affinity_holds_until_it_is_over_or_the_backend_is_gone() {
    const TIMEOUT: u64 = 10_000_000_000;
    let sticky = |memory: &Memory, count: u8| {
        let at = place(SERVICE, 80);
        memory.serve(Frontend::new(at.addr_be, at.port_be, proto::TCP), 5, &many(count));
        let head = Head::unpack(memory.services.borrow()[&5].head);
        let head = Head { flags: HeadFlags::AFFINITY, ..head };
        let service = Service { head: head.pack(), affinity_ns: TIMEOUT };
        memory.services.borrow_mut().insert(5, service);
    };
    let memory = Memory { cookie: 42, ..serving(&[]) };
    sticky(&memory, 20);
    let ask = |client| match select(&memory, 5, client) {
        Selection::Chosen(choice) => choice.backend.addr_be(),
        other => panic!("{other:?}"),
    };
    let first = ask(Client::Socket);
    for _ in 0..20 {
        assert_eq!(ask(Client::Socket), first, "the same client");
    }
    sticky(&memory, 21);
    assert_eq!(ask(Client::Socket), first, "another generation that has the backend");
    let others: HashSet<u32> = (0..50).map(|client| ask(Client::Sender(client, 0))).collect();
    assert!(others.len() > 5, "other clients are balanced");

    memory.chance.borrow_mut().extend([u32::MAX, 0]);
    memory.clock_ns.set(TIMEOUT);
    let later = ask(Client::Socket);
    assert_eq!(later, u32::from_ne_bytes([10, 244, 1, 21]), "by chance, the last");
    sticky(&memory, 5);
    assert_eq!(ask(Client::Socket), u32::from_ne_bytes([10, 244, 1, 1]), "by chance, the first");
}

#[test]
fn a_socket_holds_several_services_apart() {
    let mut peers = Peers::default();
    let memory = Memory::of_node(NODE, ([10, 244, 1, 0], 24), ([10, 244, 0, 0], 16));
    let services: Vec<Place> = (1..=5).map(|host| place([10, 96, 0, host], 53)).collect();
    for (index, at) in services.iter().enumerate() {
        let backends = [([10, 244, 1, index as u8 + 1], 5353)];
        memory.serve(Frontend::new(at.addr_be, at.port_be, proto::UDP), index as u32, &backends);
        let resolved = datagram(&memory, None, Some(&peers), *at, index as u32);
        let Resolution::To { peer, .. } = resolved else { panic!("{resolved:?}") };
        remember(&mut peers, &peer);
        let backend = place([10, 244, 1, index as u8 + 1], 5353);
        assert_eq!(reverse(&peers, backend), Some(*at), "service {index}");
    }
    assert_eq!(reverse(&peers, place([10, 244, 1, 1], 5353)), None, "the oldest is forgotten");
    assert_eq!(reverse(&peers, place([10, 244, 1, 2], 5353)), Some(services[1]));
    assert_eq!(reverse(&peers, place([10, 244, 1, 2], 5354)), None, "another port is no backend");
    assert_eq!(reverse(&Peers::default(), place([0, 0, 0, 0], 0)), None, "nothing is remembered");
}
