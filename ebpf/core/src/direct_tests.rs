//! Direct server return between two nodes in memory.

use pith_abi::{Frontend, FrontendTarget, NodeClass, NodeFlags, Reason, Scope, Tuple, proto};

use crate::{
    Verdict,
    host::{Buffer, Memory, wire},
    packet::tcp::{ACK, FIN, RST, SYN},
    uplink::{egress, ingress},
};

const ASKED: [u8; 4] = [172, 30, 0, 2];
const OTHER: [u8; 4] = [172, 30, 0, 3];
const BALANCER: [u8; 4] = [172, 30, 0, 200];
const CLIENT: [u8; 4] = [192, 0, 2, 7];
const LOCAL: [u8; 4] = [10, 244, 1, 5];
const REMOTE: [u8; 4] = [10, 244, 2, 6];
const PORT: u16 = 30_080;
const SECOND_NS: u64 = 1_000_000_000;
/// Index of a Service.
const SERVICE: u32 = 3;
/// Of its backends for what was handed on.
const TAKEN: u32 = 4;

fn be(address: [u8; 4]) -> u32 {
    u32::from_ne_bytes(address)
}

/// A node of the two, where a Service with these slots answers at the balancer's address and at a node port, and has
/// these backends for what the other hands on.
fn node(address: [u8; 4], slots: &[([u8; 4], u16)], own: &[([u8; 4], u16)]) -> Memory {
    let third = address[3] - 1;
    let mut memory = Memory::of_node(address, ([10, 244, third, 0], 24), ([10, 244, 0, 0], 16));
    let other = if address == ASKED { OTHER } else { ASKED };
    memory.node_classes.insert(be(other), NodeClass::OTHER);
    memory.node_classes.insert(be(BALANCER), NodeClass::SERVICE);
    memory.node.flags |= NodeFlags::DIRECT;
    memory.clock_ns.set(1_000 * SECOND_NS);
    for protocol in [proto::TCP, proto::UDP, proto::SCTP] {
        for at in frontends(protocol) {
            memory.serve(at, SERVICE, slots);
            memory.serve(at, TAKEN, own);
            memory.frontends.borrow_mut().insert(at, FrontendTarget::new(&at, SERVICE));
            for (scope, index) in [(Scope::OUTSIDE, SERVICE), (Scope::HANDED, TAKEN)] {
                let at = at.scoped(scope);
                memory.frontends.borrow_mut().insert(at, FrontendTarget::new(&at, index));
            }
        }
    }
    memory
}

fn frontends(protocol: u8) -> [Frontend; 2] {
    [Frontend::node_port(PORT.to_be(), protocol), Frontend::new(be(BALANCER), PORT.to_be(), protocol)]
}

/// The node that is asked, whose only slot is the other.
fn asked() -> Memory {
    node(ASKED, &[(OTHER, 0)], &[(REMOTE, 8080)])
}

/// The other, whose slots are the first.
fn other() -> Memory {
    node(OTHER, &[(ASKED, 0)], &[(REMOTE, 8080)])
}

fn tuple(dst: [u8; 4], protocol: u8) -> Tuple {
    Tuple::new(be(CLIENT), 40_000u16.to_be(), be(dst), PORT.to_be(), protocol)
}

fn to_backend(protocol: u8) -> Tuple {
    Tuple::new(be(CLIENT), 40_000u16.to_be(), be(REMOTE), 8080u16.to_be(), protocol)
}

fn flags(packet: &Buffer) -> u8 {
    packet.0[20]
}

/// The packet as it came, one hop further.
fn handed_on(before: &Buffer, marked: bool) -> Buffer {
    let mut after = before.clone();
    after.0[20] |= if marked { 0x80 } else { 0 };
    after.0[22] -= 1;
    wire::complete(&mut after);
    after
}

fn through(memory: &Memory, tuple: &Tuple, tcp_flags: u8) -> (Verdict, Buffer) {
    let mut packet = wire::packet(tuple, tcp_flags, b"word");
    (ingress(&mut packet, memory), packet)
}

#[test]
fn there_by_two_nodes_and_back_by_one() {
    for (protocol, dst) in
        [proto::TCP, proto::UDP, proto::SCTP].into_iter().flat_map(|it| [(it, BALANCER), (it, ASKED)])
    {
        let (first, second) = (asked(), other());
        let begins = tuple(dst, protocol);
        let sent = wire::packet(&begins, SYN, b"word");
        let mut packet = sent.clone();
        assert_eq!(ingress(&mut packet, &first), Verdict::HandOn(Reason::DirectBegun, be(OTHER)));
        assert_eq!(packet, handed_on(&sent, true), "{protocol} to {dst:?}");

        assert_eq!(
            ingress(&mut packet, &second),
            Verdict::Pass(Reason::DirectTaken),
            "{protocol} to {dst:?}"
        );
        assert_eq!(wire::tuple(&packet), to_backend(protocol), "the backend sees its client");
        assert!(wire::checksums_hold(&packet));

        let mut reply = wire::packet(&to_backend(protocol).reversed(), SYN | ACK, b"word");
        assert_eq!(egress(&mut reply, &second), Verdict::Pass(Reason::FlowReply));
        assert_eq!(wire::tuple(&reply), begins.reversed(), "the client sees whom it asked");

        // A datagram may be the first one once more, until a second has passed.
        first.clock_ns.update(|now| now + 2 * SECOND_NS);
        let sent = wire::packet(&begins, ACK, b"more");
        let mut packet = sent.clone();
        assert_eq!(ingress(&mut packet, &first), Verdict::HandOn(Reason::DirectForward, be(OTHER)));
        assert_eq!(packet, handed_on(&sent, false));
        assert_eq!(ingress(&mut packet, &second), Verdict::Pass(Reason::FlowForward));
        assert_eq!(wire::tuple(&packet), to_backend(protocol));
    }
}

#[test]
fn what_is_lost_is_marked_again() {
    let first = asked();
    for protocol in [proto::TCP, proto::UDP] {
        for _ in 0..3 {
            assert_eq!(flags(&through(&first, &tuple(BALANCER, protocol), SYN).1), 0x80, "{protocol}");
        }
    }
}

#[test]
fn what_was_handed_on_is_not_handed_on_again() {
    let (first, second) = (asked(), other());
    for dst in [BALANCER, ASKED] {
        let (_, mut packet) = through(&first, &tuple(dst, proto::TCP), SYN);
        assert_eq!(ingress(&mut packet, &second).reason(), Reason::DirectTaken);
    }
    // Its own Service is at a node as well, so that what comes there first is handed on.
    let (verdict, _) = through(&second, &Tuple { sport_be: 7, ..tuple(BALANCER, proto::TCP) }, SYN);
    assert_eq!(verdict, Verdict::HandOn(Reason::DirectBegun, be(ASKED)));
    // Nor where what it is to do with such packets is not in its maps yet.
    let unknowing = other();
    unknowing.frontends.borrow_mut().retain(|at, _| at.scope != Scope::HANDED);
    let (_, mut packet) = through(&first, &tuple(BALANCER, proto::TCP), SYN);
    assert_eq!(ingress(&mut packet, &unknowing), Verdict::Drop(Reason::GenerationRace));
    // Without a backend of its own it takes one elsewhere, and answers for it.
    let far = node(OTHER, &[(ASKED, 0)], &[(LOCAL, 8080)]);
    let (_, mut packet) = through(&first, &tuple(BALANCER, proto::UDP), 0);
    assert_eq!(ingress(&mut packet, &far), Verdict::Forward(Reason::DirectTaken));
    assert_eq!((wire::tuple(&packet).src_be, wire::tuple(&packet).dst_be), (be(OTHER), be(LOCAL)));
}

#[test]
fn a_node_that_does_not_know_yet() {
    let unknowing = other();
    unknowing.frontends.borrow_mut().retain(|at, _| at.scope != Scope::HANDED);
    unknowing.serve(frontends(proto::TCP)[1], SERVICE, &[(REMOTE, 8080)]);
    let (_, mut packet) = through(&asked(), &tuple(BALANCER, proto::TCP), SYN);
    assert_eq!(ingress(&mut packet, &unknowing).reason(), Reason::DirectTaken);
    assert_eq!(wire::tuple(&packet), to_backend(proto::TCP));
    // Another node's address is that one's, to which the packet goes back and stays.
    let first = node(ASKED, &[(OTHER, 0)], &[(LOCAL, 8080)]);
    let (_, mut packet) = through(&first, &tuple(ASKED, proto::TCP), SYN);
    assert_eq!(ingress(&mut packet, &unknowing), Verdict::Pass(Reason::UplinkPass));
    first.handed_on.borrow_mut().clear();
    assert_eq!(ingress(&mut packet, &first), Verdict::Pass(Reason::DirectTaken));
    assert_eq!(wire::tuple(&packet).dst_be, be(LOCAL));
}

#[test]
fn backends_at_the_asked_node_are_served_there() {
    let first = node(ASKED, &[(LOCAL, 8080)], &[(LOCAL, 8080)]);
    let (verdict, packet) = through(&first, &tuple(ASKED, proto::TCP), SYN);
    assert_eq!(verdict, Verdict::Pass(Reason::NodePortLocal));
    assert_eq!(wire::tuple(&packet).dst_be, be(LOCAL));
    assert!(first.handed_on.borrow().is_empty());
}

#[test]
fn packets_of_no_flow() {
    for (name, memory, dst, tcp_flags, expect) in [
        ("a segment to a balancer", asked(), BALANCER, ACK, Verdict::Pass(Reason::ServiceNoFlow)),
        ("a segment to a node port", asked(), ASKED, ACK, Verdict::Pass(Reason::NodePortNoFlow)),
        ("a segment that was handed on", other(), ASKED, ACK, Verdict::Pass(Reason::ServiceNoFlow)),
        (
            "no backends for what was handed on",
            node(OTHER, &[], &[]),
            ASKED,
            SYN,
            Verdict::Pass(Reason::ServiceNoEndpoints),
        ),
    ] {
        let (verdict, _) = through(&memory, &tuple(dst, proto::TCP), tcp_flags);
        assert_eq!(verdict, expect, "{name}");
    }
    // Another node's address, and no port of a Service.
    let stranger = Tuple { dport_be: 22u16.to_be(), ..tuple(ASKED, proto::TCP) };
    assert_eq!(through(&other(), &stranger, SYN).0, Verdict::Pass(Reason::UplinkPass));
    let ping = Tuple { dport_be: 0, ..tuple(ASKED, proto::ICMP) };
    assert_eq!(through(&other(), &ping, 0).0, Verdict::Pass(Reason::UplinkPass));
}

#[test]
fn without_such_services_other_nodes_packets_are_passed() {
    let mut second = other();
    second.node.flags &= !NodeFlags::DIRECT;
    let (_, mut packet) = through(&asked(), &tuple(ASKED, proto::TCP), SYN);
    assert_eq!(ingress(&mut packet, &second), Verdict::Pass(Reason::UplinkPass));
}

#[test]
fn a_connection_that_is_over_is_balanced_anew() {
    for ends in [FIN | ACK, RST] {
        let first = asked();
        let begins = tuple(BALANCER, proto::TCP);
        assert_eq!(through(&first, &begins, SYN).0.reason(), Reason::DirectBegun);
        assert_eq!(through(&first, &begins, ACK).0.reason(), Reason::DirectForward);
        assert_eq!(through(&first, &begins, ends).0.reason(), Reason::DirectForward);
        assert_eq!(through(&first, &begins, ACK).0.reason(), Reason::DirectForward, "the last words");
        let (verdict, packet) = through(&first, &begins, SYN);
        assert_eq!((verdict.reason(), flags(&packet)), (Reason::DirectBegun, 0x80));
    }
}

#[test]
fn a_record_ages_and_says_how_far_the_flow_is() {
    use pith_abi::FlowState::{ClosedByFirst, Open, Opening};
    let first = asked();
    let begins = tuple(BALANCER, proto::TCP);
    for (after_s, tcp_flags, state) in
        [(0, SYN, Opening), (1, ACK, Open), (5, ACK, Open), (0, FIN, ClosedByFirst)]
    {
        first.clock_ns.update(|now| now + after_s * SECOND_NS);
        through(&first, &begins, tcp_flags);
        let record = first.handed_on.borrow()[&begins];
        assert_eq!((record.state, record.last_ns), (state as u8, first.clock_ns.get()), "{tcp_flags:#x}");
    }
}

#[test]
fn limits() {
    let mut full = asked();
    full.max_flows = 1;
    assert_eq!(through(&full, &tuple(BALANCER, proto::TCP), SYN).0.reason(), Reason::DirectBegun);
    let another = Tuple { sport_be: 9, ..tuple(BALANCER, proto::TCP) };
    assert_eq!(through(&full, &another, SYN).0, Verdict::Drop(Reason::FlowTableFull));
    assert_eq!(through(&full, &tuple(BALANCER, proto::TCP), ACK).0.reason(), Reason::DirectForward);

    let mut last_hop = wire::packet(&tuple(BALANCER, proto::TCP), SYN, b"");
    last_hop.0[22] = 1;
    assert_eq!(ingress(&mut last_hop, &asked()), Verdict::Drop(Reason::TtlExceeded));
}

#[test]
fn an_error_about_a_reply_finds_the_backend() {
    let (first, second) = (asked(), other());
    let begins = tuple(BALANCER, proto::UDP);
    let (_, mut packet) = through(&first, &begins, 0);
    ingress(&mut packet, &second);
    let mut reply = wire::packet(&to_backend(proto::UDP).reversed(), 0, &[7; 64]);
    egress(&mut reply, &second);

    let mut error = wire::error(3, be(CLIENT), be(BALANCER), &reply);
    assert_eq!(ingress(&mut error, &first), Verdict::HandOn(Reason::IcmpError, be(OTHER)));
    assert_eq!(ingress(&mut error, &second), Verdict::Pass(Reason::IcmpError));
    assert!(wire::checksums_hold(&error));
    assert_eq!(wire::tuple(&wire::inside(&error)), to_backend(proto::UDP).reversed());
    // About nothing that was handed on.
    let stranger = wire::packet(&Tuple { dport_be: 9, ..begins.reversed() }, 0, &[7; 64]);
    let mut error = wire::error(3, be(CLIENT), be(BALANCER), &stranger);
    assert_eq!(ingress(&mut error, &first), Verdict::Pass(Reason::UplinkPass));
}

/// A piece of a datagram.
fn piece(mut packet: Buffer, offset: u16, more: bool) -> Buffer {
    let word = (offset / 8) | if more { 0x2000 } else { 0 };
    packet.0[20..22].copy_from_slice(&word.to_be_bytes());
    wire::complete(&mut packet);
    packet
}

#[test]
fn pieces_follow_their_first() {
    let (first, second) = (asked(), other());
    let begins = tuple(ASKED, proto::UDP);
    let lead = piece(wire::packet(&begins, 0, &[1; 64]), 0, true);
    let later = piece(wire::packet(&begins, 0, &[2; 64]), 72, false);

    // Before its first it waits, at both nodes.
    let mut early = later.clone();
    assert_eq!(ingress(&mut early, &first).reason(), Reason::FragmentParked);
    assert_eq!(ingress(&mut early, &second).reason(), Reason::FragmentParked);

    let mut packet = lead.clone();
    assert_eq!(ingress(&mut packet, &first).reason(), Reason::DirectBegun);
    assert_eq!(ingress(&mut packet, &second).reason(), Reason::DirectTaken);
    let mut packet = later.clone();
    assert_eq!(ingress(&mut packet, &first), Verdict::HandOn(Reason::FragmentTranslated, be(OTHER)));
    assert_eq!(packet, handed_on(&later, false));
    assert_eq!(ingress(&mut packet, &second).reason(), Reason::FragmentTranslated);
    assert_eq!(&packet.0[30..34], &REMOTE);
}
