//! The uplink on the host: verdicts and bytes.

use std::vec::Vec;

use pith_abi::{Flow, FlowState, Frontend, NodeClass, Reason, Tuple, proto};
use proptest::prelude::*;

use crate::{
    Verdict, fragment,
    host::{Buffer, Memory, wire},
    packet::{
        Header,
        tcp::{ACK, FIN, RST, SYN},
    },
    uplink::{egress, ingress},
};

const NODE: [u8; 4] = [172, 30, 0, 2];
const OTHER_NODE: [u8; 4] = [172, 30, 0, 3];
const CLIENT: [u8; 4] = [192, 0, 2, 7];
const LOCAL: [u8; 4] = [10, 244, 1, 5];
const REMOTE: [u8; 4] = [10, 244, 2, 6];
const NODE_PORT: u16 = 30_080;

fn node() -> Memory {
    let mut memory = Memory::of_node(NODE, ([10, 244, 1, 0], 24), ([10, 244, 0, 0], 16));
    memory.node_classes.insert(u32::from_ne_bytes(OTHER_NODE), NodeClass::OTHER);
    memory.clock_ns.set(1_000_000_000_000);
    memory
}

fn serving(protocol: u8, backends: &[([u8; 4], u16)]) -> Memory {
    let memory = node();
    memory.serve(Frontend::node_port(NODE_PORT.to_be(), protocol), 3, backends);
    memory
}

fn tuple(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16, protocol: u8) -> Tuple {
    Tuple::new(u32::from_ne_bytes(src), sport.to_be(), u32::from_ne_bytes(dst), dport.to_be(), protocol)
}

fn port(port_be: u16) -> u16 {
    u16::from_be(port_be)
}

#[test]
fn first_packets_to_a_node_port() {
    let to_port = tuple(CLIENT, 40_000, NODE, NODE_PORT, proto::TCP);
    let local = &[(LOCAL, 8080)][..];
    let cases = [
        ("backend here", to_port, SYN, local, Verdict::Pass(Reason::NodePortLocal)),
        ("backend elsewhere", to_port, SYN, &[(REMOTE, 8080)], Verdict::Forward(Reason::NodePortRemote)),
        ("backend is this node", to_port, SYN, &[(NODE, 9090)], Verdict::Pass(Reason::NodePortLocal)),
        ("no backend", to_port, SYN, &[], Verdict::Pass(Reason::NodePortNoEndpoints)),
        ("no beginning", to_port, ACK, local, Verdict::Pass(Reason::NodePortNoFlow)),
        ("answer to nothing", to_port, SYN | ACK, local, Verdict::Pass(Reason::NodePortNoFlow)),
        (
            "another port",
            tuple(CLIENT, 40_000, NODE, 30_081, proto::TCP),
            SYN,
            local,
            Verdict::Pass(Reason::UplinkPass),
        ),
        (
            "another protocol",
            tuple(CLIENT, 40_000, NODE, NODE_PORT, proto::UDP),
            0,
            local,
            Verdict::Pass(Reason::UplinkPass),
        ),
        (
            "another host",
            tuple(CLIENT, 40_000, OTHER_NODE, NODE_PORT, proto::TCP),
            SYN,
            local,
            Verdict::Pass(Reason::UplinkPass),
        ),
    ];
    for (name, tuple, flags, backends, expect) in cases {
        let memory = serving(proto::TCP, backends);
        let before = wire::packet(&tuple, flags, b"hello");
        let mut packet = before.clone();
        assert_eq!(ingress(&mut packet, &memory), expect, "{name}");
        assert!(wire::checksums_hold(&packet), "{name}");
        let translated = matches!(expect.reason(), Reason::NodePortLocal | Reason::NodePortRemote);
        assert_eq!(packet != before, translated, "{name}");
        assert_eq!(memory.flows.borrow().len(), usize::from(translated), "{name}");
    }
}

#[test]
fn a_local_backend_sees_the_client_and_a_remote_one_the_node() {
    let sent = tuple(CLIENT, 40_000, NODE, NODE_PORT, proto::TCP);
    let mut packet = wire::packet(&sent, SYN, b"");
    ingress(&mut packet, &serving(proto::TCP, &[(LOCAL, 8080)]));
    assert_eq!(wire::tuple(&packet), tuple(CLIENT, 40_000, LOCAL, 8080, proto::TCP));
    assert_eq!(packet.0[14 + 8], 64, "the stack counts the hop");

    let mut packet = wire::packet(&sent, SYN, b"");
    ingress(&mut packet, &serving(proto::TCP, &[(REMOTE, 8080)]));
    let seen = wire::tuple(&packet);
    assert_eq!(seen, Tuple { sport_be: seen.sport_be, ..tuple(NODE, 0, REMOTE, 8080, proto::TCP) });
    assert!((1024..=29_999).contains(&port(seen.sport_be)));
    assert_eq!(packet.0[14 + 8], 63, "the hop is counted here");
}

#[test]
fn masquerade_table() {
    let cases = [
        ("outside", LOCAL, CLIENT, Verdict::Pass(Reason::Masqueraded)),
        ("another pod", LOCAL, REMOTE, Verdict::Pass(Reason::UplinkPass)),
        ("another node", LOCAL, OTHER_NODE, Verdict::Pass(Reason::UplinkPass)),
        ("a group", LOCAL, [224, 0, 0, 1], Verdict::Pass(Reason::UplinkPass)),
        ("from the node itself", NODE, CLIENT, Verdict::Pass(Reason::UplinkPass)),
        ("from someone else", REMOTE, CLIENT, Verdict::Pass(Reason::UplinkPass)),
    ];
    for (name, src, dst, expect) in cases {
        for protocol in [proto::TCP, proto::UDP, proto::ICMP] {
            let memory = node();
            let dport = if protocol == proto::ICMP { 0 } else { 443 };
            let sent = tuple(src, 40_000, dst, dport, protocol);
            let mut packet = wire::packet(&sent, SYN, b"data");
            assert_eq!(egress(&mut packet, &memory), expect, "{name} {protocol}");
            assert!(wire::checksums_hold(&packet), "{name} {protocol}");
            if expect.reason() != Reason::Masqueraded {
                assert_eq!(wire::tuple(&packet), sent, "{name} {protocol}");
                continue;
            }
            assert_eq!(wire::tuple(&packet).src_be, u32::from_ne_bytes(NODE), "{name} {protocol}");
            let mut answer = wire::packet(&wire::tuple(&packet).reversed(), ACK, b"more");
            assert_eq!(ingress(&mut answer, &memory), Verdict::Pass(Reason::FlowReply), "{name} {protocol}");
            assert_eq!(wire::tuple(&answer), sent.reversed(), "{name} {protocol}");
            assert!(wire::checksums_hold(&answer), "{name} {protocol}");
        }
    }
}

#[test]
fn what_must_be_masqueraded_and_cannot_is_dropped() {
    let sent = tuple(LOCAL, 40_000, CLIENT, 443, proto::TCP);
    let fragment = |mut packet: Buffer| {
        packet.0[14 + 6..14 + 8].copy_from_slice(&100u16.to_be_bytes());
        packet
    };
    let full = || {
        let memory = Memory { max_flows: 1, ..node() };
        egress(&mut wire::packet(&tuple(LOCAL, 1, CLIENT, 443, proto::TCP), SYN, b""), &memory);
        memory
    };
    let cases = [
        ("reset of nothing", wire::packet(&sent, RST, b""), node(), Reason::MasqueradeNoFlow),
        ("later fragment", fragment(wire::packet(&sent, SYN, b"")), node(), Reason::UplinkFragment),
        ("table full", wire::packet(&sent, SYN, b""), full(), Reason::FlowTableFull),
    ];
    for (name, mut packet, memory, reason) in cases {
        assert_eq!(egress(&mut packet, &memory), Verdict::Drop(reason), "{name}");
    }
}

/// A later piece of a packet, or its first.
fn piece(mut packet: Buffer, offset: u16, more: bool) -> Buffer {
    packet.0[14 + 4..14 + 6].copy_from_slice(&77u16.to_be_bytes());
    let word = u16::from(more) << 13 | offset;
    packet.0[14 + 6..14 + 8].copy_from_slice(&word.to_be_bytes());
    packet
}

#[test]
fn a_piece_waits_for_its_first_and_not_for_ever() {
    let memory = serving(proto::UDP, &[(LOCAL, 8080)]);
    let sent = tuple(CLIENT, 40_000, NODE, NODE_PORT, proto::UDP);
    let (first, later) = (
        piece(wire::packet(&sent, 0, &[1; 80]), 0, true),
        piece(wire::packet(&sent, 0, &[2; 80]), 11, false),
    );
    let run = |packet: &Buffer| {
        let mut packet = packet.clone();
        (ingress(&mut packet, &memory), packet)
    };
    assert_eq!(run(&later), (Verdict::Park(Reason::FragmentParked), later.clone()));
    let key = fragment::key(&Header::parse(&later).expect("a header"), pith_abi::Hook::UPLINK_INGRESS);
    memory.parked.borrow_mut().insert(key, [later.clone()].into());
    assert_eq!(run(&first), (Verdict::Release(Reason::FragmentsReleased), first.clone()));
    memory.parked.borrow_mut().clear();
    let (verdict, packet) = run(&first);
    assert_eq!(verdict, Verdict::Pass(Reason::FlowForward));
    assert_eq!(packet.0[14 + 16..14 + 20], LOCAL);
    let (verdict, packet) = run(&later);
    assert_eq!(verdict, Verdict::Pass(Reason::FragmentTranslated));
    assert_eq!(packet.0[14 + 16..14 + 20], LOCAL);

    memory.clock_ns.update(|now| now + fragment::WAIT_NS + 1);
    assert_eq!(run(&later).0, Verdict::Park(Reason::FragmentParked), "the identifier is another datagram's");

    let mut large = later.clone();
    large.0[14 + 2..14 + 4].copy_from_slice(&4000u16.to_be_bytes());
    assert_eq!(run(&large).0, Verdict::Drop(Reason::FragmentTooLarge));

    // To the node itself: pieces wait as well, because nobody knows yet, and go on as they came.
    let own = |packet: Buffer| {
        let mut packet = packet;
        packet.0[14 + 4] = 9;
        packet.0[14 + 22..14 + 24].copy_from_slice(&53u16.to_be_bytes());
        packet
    };
    let (first, later) = (own(first), own(later));
    assert_eq!(run(&later).0, Verdict::Park(Reason::FragmentParked));
    assert_eq!(run(&first), (Verdict::Pass(Reason::UplinkPass), first));
    assert_eq!(run(&later), (Verdict::Pass(Reason::UplinkFragment), later));
}

#[test]
fn source_ports_do_not_collide() {
    let memory = node();
    let mut seen = Vec::new();
    for pod in 1..=200 {
        // All pods use the same port towards the same place, one that lies in the range.
        let mut packet = wire::packet(&tuple([10, 244, 1, pod], 2000, CLIENT, 443, proto::TCP), SYN, b"");
        assert_eq!(egress(&mut packet, &memory), Verdict::Pass(Reason::Masqueraded), "pod {pod}");
        let tuple = wire::tuple(&packet);
        assert!(!seen.contains(&tuple), "pod {pod}: {tuple:?}");
        seen.push(tuple);
    }
    assert_eq!(port(seen[0].sport_be), 2000, "the first keeps its own port");
}

#[test]
fn a_closed_connection_is_balanced_anew() {
    let memory = serving(proto::TCP, &[(LOCAL, 8080)]);
    let sent = tuple(CLIENT, 40_000, NODE, NODE_PORT, proto::TCP);
    ingress(&mut wire::packet(&sent, SYN, b""), &memory);
    let answer = tuple(LOCAL, 8080, CLIENT, 40_000, proto::TCP);
    assert_eq!(egress(&mut wire::packet(&answer, RST | ACK, b""), &memory), Verdict::Pass(Reason::FlowReply));
    memory.serve(Frontend::node_port(NODE_PORT.to_be(), proto::TCP), 3, &[([10, 244, 1, 9], 8080)]);
    let mut again = wire::packet(&sent, SYN, b"");
    assert_eq!(ingress(&mut again, &memory), Verdict::Pass(Reason::NodePortLocal));
    assert_eq!(wire::tuple(&again).dst_be, u32::from_ne_bytes([10, 244, 1, 9]));
}

/// One client port to one backend through two node ports: the replies would look alike, so that the second
/// flow is given another port.
#[test]
fn replies_never_look_alike() {
    let memory = serving(proto::TCP, &[(LOCAL, 8080)]);
    memory.serve(Frontend::node_port(30_081u16.to_be(), proto::TCP), 4, &[(LOCAL, 8080)]);
    let first = tuple(CLIENT, 40_000, NODE, NODE_PORT, proto::TCP);
    let second = tuple(CLIENT, 40_000, NODE, 30_081, proto::TCP);
    assert_eq!(ingress(&mut wire::packet(&first, SYN, b""), &memory), Verdict::Pass(Reason::NodePortLocal));
    let mut packet = wire::packet(&second, SYN, b"");
    assert_eq!(ingress(&mut packet, &memory), Verdict::Pass(Reason::NodePortLocal));
    let seen = wire::tuple(&packet);
    assert_eq!(seen, Tuple { sport_be: seen.sport_be, ..tuple(CLIENT, 0, LOCAL, 8080, proto::TCP) });
    assert_ne!(seen.sport_be, first.sport_be);
    let mut answer = wire::packet(&seen.reversed(), SYN | ACK, b"");
    assert_eq!(egress(&mut answer, &memory), Verdict::Pass(Reason::FlowReply));
    assert_eq!(wire::tuple(&answer), second.reversed());
}

#[test]
fn a_packet_without_hops_left_is_not_forwarded() {
    let memory = serving(proto::TCP, &[(REMOTE, 8080)]);
    let mut packet = wire::packet(&tuple(CLIENT, 40_000, NODE, NODE_PORT, proto::TCP), SYN, b"");
    packet.0[14 + 8] = 1;
    assert_eq!(ingress(&mut packet, &memory), Verdict::Drop(Reason::TtlExceeded));
}

#[test]
fn an_error_names_the_packet_as_its_sender_knows_it() {
    const UNREACHABLE: u8 = 3;
    let be = u32::from_ne_bytes;
    let router = [198, 51, 100, 1];
    for protocol in [proto::TCP, proto::UDP] {
        // A pod to the outside; a router on the way complains.
        let memory = node();
        let sent = tuple(LOCAL, 40_000, CLIENT, 443, protocol);
        let mut packet = wire::packet(&sent, SYN, b"some data here");
        egress(&mut packet, &memory);
        let mut error = wire::error(UNREACHABLE, be(router), be(NODE), &packet);
        assert_eq!(ingress(&mut error, &memory), Verdict::Pass(Reason::IcmpError), "{protocol}");
        check_error(&error, router, LOCAL, &sent);

        // The outside answers, and the pod complains.
        let mut answer = wire::packet(&wire::tuple(&packet).reversed(), ACK, b"some data here");
        let answered = answer.clone();
        ingress(&mut answer, &memory);
        let mut error = wire::error(UNREACHABLE, be(LOCAL), be(CLIENT), &answer);
        assert_eq!(egress(&mut error, &memory), Verdict::Pass(Reason::IcmpError), "{protocol}");
        check_error(&error, NODE, CLIENT, &wire::tuple(&answered));

        // A client of a node port, whose backend here complains.
        let memory = serving(protocol, &[(LOCAL, 8080)]);
        let sent = tuple(CLIENT, 40_000, NODE, NODE_PORT, protocol);
        let mut packet = wire::packet(&sent, SYN, b"some data here");
        ingress(&mut packet, &memory);
        let mut error = wire::error(UNREACHABLE, be(LOCAL), be(CLIENT), &packet);
        assert_eq!(egress(&mut error, &memory), Verdict::Pass(Reason::IcmpError), "{protocol}");
        check_error(&error, NODE, CLIENT, &sent);

        // The same with a backend elsewhere.
        let memory = serving(protocol, &[(REMOTE, 8080)]);
        let mut packet = wire::packet(&sent, SYN, b"some data here");
        ingress(&mut packet, &memory);
        let mut error = wire::error(UNREACHABLE, be(REMOTE), be(NODE), &packet);
        assert_eq!(ingress(&mut error, &memory), Verdict::Forward(Reason::IcmpError), "{protocol}");
        check_error(&error, NODE, CLIENT, &sent);
    }
}

fn check_error(error: &Buffer, src: [u8; 4], dst: [u8; 4], about: &Tuple) {
    assert!(wire::checksums_hold(error));
    assert_eq!(error.0[14 + 12..14 + 16], src);
    assert_eq!(error.0[14 + 16..14 + 20], dst);
    let inside = wire::inside(error);
    assert_eq!(wire::tuple(&inside), *about);
    let whole = inside.0.len() >= 14 + 20 + 22;
    assert!(whole && about.proto != proto::UDP || wire::checksums_hold(&inside), "inner checksums");
}

#[test]
fn errors_about_other_things_pass() {
    let memory = node();
    let about = wire::packet(&tuple(NODE, 5000, CLIENT, 443, proto::TCP), SYN, b"some data here");
    let before = wire::error(3, u32::from_ne_bytes(CLIENT), u32::from_ne_bytes(NODE), &about);
    let mut error = before.clone();
    assert_eq!(ingress(&mut error, &memory), Verdict::Pass(Reason::UplinkPass));
    assert_eq!(error, before);
}

#[test]
fn nothing_is_done_before_the_uplink_is_known() {
    let memory = Memory::default();
    let before = wire::packet(&tuple(LOCAL, 40_000, CLIENT, 443, proto::TCP), SYN, b"");
    for direction in [ingress::<Buffer, Memory>, egress] {
        let mut packet = before.clone();
        assert_eq!(direction(&mut packet, &memory), Verdict::Pass(Reason::UplinkPass));
        assert_eq!(packet, before);
    }
}

#[test]
fn life_of_a_connection() {
    let memory = serving(proto::TCP, &[(LOCAL, 8080)]);
    let forward = tuple(CLIENT, 40_000, NODE, NODE_PORT, proto::TCP);
    let reply = tuple(LOCAL, 8080, CLIENT, 40_000, proto::TCP);
    let state = || memory.flows.borrow().get(&reply).map(|flow: &Flow| flow.state);
    let steps = [
        ("syn", true, SYN, FlowState::Opening),
        ("syn again", true, SYN, FlowState::Opening),
        ("syn ack", false, SYN | ACK, FlowState::Open),
        ("ack", true, ACK, FlowState::Open),
        ("fin", true, FIN | ACK, FlowState::ClosedByFirst),
        ("data the other way", false, ACK, FlowState::ClosedByFirst),
        ("fin the other way", false, FIN | ACK, FlowState::Closed),
        ("last ack", true, ACK, FlowState::Closed),
    ];
    for (name, from_client, flags, expect) in steps {
        if from_client {
            ingress(&mut wire::packet(&forward, flags, b""), &memory);
        } else {
            egress(&mut wire::packet(&reply, flags, b""), &memory);
        }
        assert_eq!(state(), Some(expect as u8), "{name}");
    }
}

fn protocol() -> impl Strategy<Value = u8> {
    prop_oneof![Just(proto::TCP), Just(proto::UDP)]
}

proptest! {
    /// What is translated and comes back reversed is what was sent, reversed.
    #[test]
    fn there_and_back_is_identity(
        protocol in protocol(),
        client in (11u8..100, any::<u8>(), any::<u8>(), 1u8..255),
        sport in 1u16..,
        remote: bool,
        payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let client = [client.0, client.1, client.2, client.3];
        let backend = if remote { REMOTE } else { LOCAL };
        let memory = serving(protocol, &[(backend, 8080)]);
        let sent = tuple(client, sport, NODE, NODE_PORT, protocol);
        let mut packet = wire::packet(&sent, SYN, &payload);
        ingress(&mut packet, &memory);
        prop_assert!(wire::checksums_hold(&packet));
        prop_assert_eq!(wire::tuple(&packet).dst_be, u32::from_ne_bytes(backend));

        let mut answer = wire::packet(&wire::tuple(&packet).reversed(), SYN | ACK, &payload);
        let verdict = if remote { ingress(&mut answer, &memory) } else { egress(&mut answer, &memory) };
        prop_assert_eq!(verdict.reason(), Reason::FlowReply);
        prop_assert!(wire::checksums_hold(&answer));
        prop_assert_eq!(wire::tuple(&answer), sent.reversed());
        let mut expect = wire::packet(&sent.reversed(), SYN | ACK, &payload);
        if remote {
            // The hop that was counted.
            let sum = expect.0[14 + 10..14 + 12].to_vec();
            expect.0[14 + 8] -= 1;
            prop_assert_ne!(&sum, &answer.0[14 + 10..14 + 12]);
            expect.0[14 + 10..14 + 12].copy_from_slice(&answer.0[14 + 10..14 + 12]);
        }
        prop_assert_eq!(answer, expect);
    }

    /// Whatever comes, nothing panics, nothing is read or written beyond the packet.
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..120), out: bool, ipv4: bool) {
        let memory = serving(proto::TCP, &[(LOCAL, 8080), (REMOTE, 8080)]);
        let mut packet = Buffer(bytes);
        if ipv4 && packet.0.len() > 34 {
            packet.0[14] = 0x45;
            packet.0[20..22].fill(0);
            packet.0[23] = proto::ICMP;
            packet.0[30..34].copy_from_slice(&NODE);
            packet.0[26..30].copy_from_slice(&LOCAL);
        }
        let length = packet.0.len();
        if out { egress(&mut packet, &memory) } else { ingress(&mut packet, &memory) };
        prop_assert_eq!(packet.0.len(), length);
    }
}
