//! IPv6 against the same [`model`](crate::model) as IPv4: each packet's mirror image goes through the core, and what
//! comes out is judged as the packet of IPv4 that it is the image of.
//!
//! An address `a.b.c.d` is `fd00:2ff::a.b.c.d` here. The words of that prefix add up to nothing in ones' complement, so
//! that checksums of TCP and UDP are the same in both families (RFC 6296, section 2.6).

use std::{vec, vec::Vec};

use pith_abi::{
    Address6, Backend, Flow, Frontend, FrontendTarget, Head, Known6, Networks6, NodeClass, NodeConfig,
    Reason, Scope, Service, StandIn, proto,
};
use proptest::prelude::*;

use crate::{
    Verdict, checksum, flow, fragment,
    host::{Buffer, Memory, wire},
    model::{Action, BALANCER, Event, Model, NODE, NODE_PORT, SERVICE_PORT, Side, System, TARGET},
    packet::tcp::{ACK, SYN},
    pods, six, uplink,
};

const PREFIX: [u8; 4] = [0xFD, 0x00, 0x02, 0xFF];
/// Adds up to nothing as well.
const GROUPS: [u8; 4] = [0xFF, 0x0E, 0x00, 0xF1];
const CLIENT: [u8; 4] = [192, 0, 2, 7];
const LOCAL: [u8; 4] = [10, 244, 1, 5];
const REMOTE: [u8; 4] = [10, 244, 2, 6];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// The image of an address; of groups' and broadcast addresses one of multicast.
fn image(address: [u8; 4]) -> Address6 {
    let mut octets = [0; 16];
    octets[..4].copy_from_slice(if address[0] < 224 { &PREFIX } else { &GROUPS });
    octets[12..].copy_from_slice(&address);
    Address6::from_octets(octets)
}

/// The ICMPv6 type that says what one of ICMP says; what says something else in IPv6 becomes what says nothing.
fn icmp_image(kind: u8) -> u8 {
    match kind {
        8 => six::icmp6::ECHO_REQUEST,
        0 => six::icmp6::ECHO_REPLY,
        3 => six::icmp6::UNREACHABLE,
        11 => six::icmp6::TIME_EXCEEDED,
        12 => six::icmp6::PARAMETER_PROBLEM,
        1 | 2 | 4 | 128 | 129 | 135 => 200,
        other => other,
    }
}

/// Adds what ICMPv6's checksum covers besides ICMP's: the pseudo header, and another type.
fn icmp_sum(frame: &[u8], from: u8, to: u8) -> u32 {
    let word = |at: usize| u32::from(u16::from_ne_bytes([frame[at], frame[at + 1]]));
    let addresses = (22..54).step_by(2).map(word).fold(0, checksum::add);
    let rest = [frame[18], frame[19], 0, 58].map(u32::from);
    let length = u32::from(u16::from_ne_bytes([rest[0] as u8, rest[1] as u8]));
    let proto = u32::from(u16::from_ne_bytes([0, 58]));
    let kind = |kind: u8| u32::from(u16::from_ne_bytes([kind, 0]));
    let pseudo = checksum::add(addresses, checksum::add(length, proto));
    checksum::add(pseudo, checksum::diff(kind(from), kind(to)))
}

fn update(frame: &mut [u8], at: usize, change: u32) {
    let old = u16::from_ne_bytes([frame[at], frame[at + 1]]);
    frame[at..at + 2].copy_from_slice(&checksum::apply(old, change).to_ne_bytes());
}

/// The image of a packet; `None` for headers that have none: with options, cut off, or with a protocol whose number is
/// something else in IPv6.
fn mirrored(packet: &Buffer) -> Option<Buffer> {
    let l3 = packet.0.get(14..34)?;
    if l3[0] != 0x45 || matches!(l3[9], 0 | 43 | 44 | 58 | 60) {
        return None;
    }
    let l4 = &packet.0[34..];
    let length = u16::from_be_bytes([l3[2], l3[3]]).saturating_sub(20).to_be_bytes();
    let next = if l3[9] == proto::ICMP { 58 } else { l3[9] };
    let addresses = [[l3[12], l3[13], l3[14], l3[15]], [l3[16], l3[17], l3[18], l3[19]]].map(image);
    let mut frame = [&packet.0[..12], &[0x86, 0xDD, 0x60, 0, 0, 0]].concat();
    frame.extend_from_slice(&[length[0], length[1], next, l3[8]]);
    frame.extend(addresses.iter().flat_map(|address| address.octets()));
    frame.extend_from_slice(l4);
    if next == 58 && l4.len() >= 4 {
        let kind = icmp_image(l4[0]);
        let change = icmp_sum(&frame, l4[0], kind);
        frame[54] = kind;
        update(&mut frame, 56, change);
    }
    Some(Buffer(frame))
}

/// The packet of IPv4 that `after` is the image of, where `before` became it.
fn original(before: &Buffer, after: &Buffer) -> Buffer {
    let frame = &after.0;
    let mut packet = before.0[..34].to_vec();
    packet[22] = frame[21];
    packet[26..30].copy_from_slice(&frame[34..38]);
    packet[30..34].copy_from_slice(&frame[50..54]);
    let words = |of: &[u8], at: usize| u32::from_ne_bytes([of[at], of[at + 1], of[at + 2], of[at + 3]]);
    // IPv6 has no such checksum: what became of the others shows in it.
    for at in [22, 26, 30] {
        let (was, is) = if at == 22 {
            let word = |of: &[u8]| u32::from(u16::from_ne_bytes([of[22], of[23]]));
            (word(&before.0), word(&packet))
        } else {
            (words(&before.0, at), words(&packet, at))
        };
        update(&mut packet, 24, checksum::diff(was, is));
    }
    packet.extend_from_slice(&frame[54..]);
    if before.0[23] == proto::ICMP && frame.len() >= 58 {
        let kind = before.0[34];
        packet[34] = kind;
        let change = icmp_sum(frame, kind, frame[54]);
        update(&mut packet, 36, !change);
    }
    Buffer(packet)
}

/// A node of IPv6, which is all images.
fn node() -> Memory {
    let mut memory = Memory::of_node(NODE, ([10, 244, 1, 0], 24), ([10, 244, 0, 0], 16));
    let mask = |bits: u32| Address6::from_octets((!(u128::MAX >> bits)).to_be_bytes());
    memory.networks = Networks6 {
        pod_net: image([10, 244, 1, 0]),
        pod_mask: mask(96 + 24),
        cluster_net: image([10, 244, 0, 0]),
        cluster_mask: mask(96 + 16),
    };
    memory.clock_ns.set(1_000_000_000_000);
    let own = number(&memory, NODE);
    memory.node6 = NodeConfig { addr_be: own, mac: MAC, ..memory.node };
    let balancer = number(&memory, BALANCER);
    memory.node_classes.insert(own, NodeClass::OWN);
    memory.node_classes.insert(balancer, NodeClass::SERVICE | NodeClass::ANNOUNCED);
    memory
}

/// What stands for an address, as user space says it.
fn number(memory: &Memory, address: [u8; 4]) -> u32 {
    let address = image(address);
    let standin = StandIn::nth(&address, memory.node.seed, 0);
    let known = memory.addresses.borrow_mut().insert(standin, Known6 { address, used_ns: 0 });
    assert!(
        known.is_none_or(|known| known.address == address),
        "the tests' addresses have numbers of their own"
    );
    standin.addr_be
}

fn serve(memory: &Memory, frontend: Frontend, index: u32, backends: &[[u8; 4]], target: u16) {
    let first = index * 256;
    let tag = memory.services.borrow().get(&index).map_or(0, |service| Head::unpack(service.head).tag) + 1;
    for (slot, backend) in (first..).zip(backends) {
        let backend = Backend::new(number(memory, *backend), target.to_be(), tag);
        memory.backends.borrow_mut().insert(slot, backend);
    }
    let head = Head { first, count: backends.len() as u16, tag, flags: 0 };
    memory.services.borrow_mut().insert(index, Service { head: head.pack(), affinity_ns: 0 });
    for scope in [Scope::INSIDE6, Scope::OUTSIDE6] {
        let frontend = frontend.scoped(scope);
        memory.frontends.borrow_mut().insert(frontend, FrontendTarget::new(&frontend, index));
    }
}

struct Mirror(Memory);

impl System for Mirror {
    fn run(&mut self, side: Side, packet: &Buffer) -> (Action, Buffer) {
        let before = mirrored(packet).expect("those without an image are left out");
        let mut after = before.clone();
        let verdict = match side {
            Side::In => six::ingress(&mut after, &self.0),
            Side::Out => six::egress(&mut after, &self.0),
        };
        let action = match verdict {
            Verdict::Pass(_) => Action::Pass,
            Verdict::Forward(_) | Verdict::HandOn(..) | Verdict::Inward(_) | Verdict::Return(_) => {
                Action::Redirect
            }
            Verdict::Drop(_) | Verdict::Park(_) | Verdict::Release(_) => Action::Drop,
        };
        (action, if after == before { packet.clone() } else { original(packet, &after) })
    }

    fn serve(&mut self, backends: &[[u8; 4]]) {
        for (index, protocol) in [(1, proto::TCP), (2, proto::UDP), (3, proto::SCTP)] {
            let at = Frontend::new(number(&self.0, BALANCER), SERVICE_PORT.to_be(), protocol);
            serve(&self.0, Frontend::node_port(NODE_PORT.to_be(), protocol), index, backends, TARGET);
            serve(&self.0, at, index, backends, TARGET);
        }
        let serves: Vec<u32> = backends.iter().map(|backend| number(&self.0, *backend)).collect();
        let mut flows = self.0.flows.borrow_mut();
        flows.retain(|key, flow| flow.service == Flow::NO_SERVICE || serves.contains(&key.src_be));
        drop(flows);
        self.pass(0);
    }

    fn pass(&mut self, time_ns: u64) {
        self.0.clock_ns.update(|now| now + time_ns);
        let now = self.0.clock_ns.get();
        self.0.flows.borrow_mut().retain(|_, record| !flow::expired(record, now));
        let flows = self.0.flows.borrow();
        let leads = |first: &_, key: &_| flows.get(key).is_some_and(|flow| flow.forward == *first);
        self.0.forwards.borrow_mut().retain(|first, key| leads(first, key));
    }

    fn restart(&mut self) {}
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_core_does_in_ipv6_what_the_model_says(events in prop::collection::vec(any::<[u8; 4]>(), 1..120)) {
        let mut mirror = Mirror(node());
        let mut model = Model::default();
        mirror.serve(&[]);
        for (number, numbers) in events.into_iter().enumerate() {
            let event = model.event(numbers);
            if matches!(&event, Event::Packet(_, packet) if mirrored(packet).is_none()) {
                continue;
            }
            if let Err(difference) = model.step(&mut mirror, &event) {
                prop_assert!(false, "event {number}, {event:02x?}: {difference}");
            }
        }
    }

    #[test]
    fn what_is_malformed_is_left_alone(bytes in prop::collection::vec(any::<u8>(), 0..160), cut in 0usize..160) {
        let memory = serving(proto::TCP, &[LOCAL]);
        let mut sound = mirrored(&to_node_port(proto::TCP)).expect("it has one").0;
        sound.truncate(cut);
        let mut begun = bytes;
        begun.splice(0..begun.len().min(15), mirrored(&to_node_port(proto::TCP)).expect("it has one").0[..15].to_vec());
        for before in [sound, begun] {
            let mut packet = Buffer(before.clone());
            let verdict = six::ingress(&mut packet, &memory);
            if !matches!(verdict, Verdict::Pass(Reason::NodePortLocal)) {
                prop_assert_eq!(&packet.0, &before);
            }
            six::egress(&mut packet, &memory);
            six::from_pod(&mut packet, &memory);
            six::to_pod(&mut packet, &memory);
        }
    }
}

fn serving(protocol: u8, backends: &[[u8; 4]]) -> Memory {
    let memory = node();
    serve(&memory, Frontend::node_port(NODE_PORT.to_be(), protocol), 3, backends, 8080);
    memory
}

fn tuple(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16, protocol: u8) -> pith_abi::Tuple {
    let be = u32::from_ne_bytes;
    pith_abi::Tuple::new(be(src), sport.to_be(), be(dst), dport.to_be(), protocol)
}

fn to_node_port(protocol: u8) -> Buffer {
    wire::packet(&tuple(CLIENT, 40_000, NODE, NODE_PORT, protocol), SYN, b"some data")
}

fn image_of(packet: &Buffer) -> Buffer {
    mirrored(packet).expect("it has an image")
}

/// With extension headers of these types between header and payload, 8 bytes each.
fn extended(packet: &Buffer, kinds: &[u8]) -> Buffer {
    let mut frame = image_of(packet).0;
    let mut next = std::mem::replace(&mut frame[20], kinds.first().copied().unwrap_or(6));
    let mut extensions = Vec::new();
    for (at, _) in kinds.iter().enumerate() {
        let follows = kinds.get(at + 1).copied().unwrap_or(next);
        extensions.extend_from_slice(&[follows, 0, 1, 4, 0, 0, 0, 0]);
        next = if at + 1 == kinds.len() { follows } else { next };
    }
    let length = u16::from_be_bytes([frame[18], frame[19]]) + extensions.len() as u16;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame.splice(54..54, extensions);
    Buffer(frame)
}

#[test]
fn extension_headers_are_looked_behind() {
    const REACHES: Verdict = Verdict::Pass(Reason::NodePortLocal);
    const LEFT: Verdict = Verdict::Pass(Reason::UplinkPass);
    for (kinds, expect) in [
        (&[][..], REACHES),
        (&[0], REACHES),
        (&[60], REACHES),
        (&[0, 43, 60], REACHES),
        (&[0, 43, 60, 60], LEFT),
        (&[51], LEFT),
    ] {
        let memory = serving(proto::TCP, &[LOCAL]);
        let mut packet = extended(&to_node_port(proto::TCP), kinds);
        assert_eq!(six::ingress(&mut packet, &memory), expect, "{kinds:?}");
        let at = packet.0.len() - b"some data".len() - 20;
        let port = u16::from_be_bytes([packet.0[at + 2], packet.0[at + 3]]);
        assert_eq!(port, if expect == REACHES { 8080 } else { NODE_PORT }, "{kinds:?}");
    }
}

/// A piece of a datagram to the node port.
fn piece(first: bool) -> Buffer {
    let mut packet = extended(&to_node_port(proto::UDP), &[44]);
    let offset: u16 = if first { 1 } else { 16 };
    packet.0[56..58].copy_from_slice(&offset.to_be_bytes());
    packet.0[58..62].copy_from_slice(b"1234");
    packet
}

#[test]
fn pieces_follow_their_first() {
    let memory = serving(proto::UDP, &[LOCAL]);
    let mut later = piece(false);
    assert_eq!(six::ingress(&mut later, &memory), Verdict::Park(Reason::FragmentParked));
    let header = six::header(&later, &memory).expect("it is whole");
    let key = fragment::key(&header, pith_abi::Hook::UPLINK_INGRESS);
    memory.parked.borrow_mut().insert(key, vec![later.clone()]);

    let mut first = piece(true);
    assert_eq!(six::ingress(&mut first, &memory), Verdict::Release(Reason::FragmentsReleased));
    memory.parked.borrow_mut().clear();
    assert_eq!(six::ingress(&mut first, &memory), Verdict::Pass(Reason::FlowForward));
    assert_eq!(six::ingress(&mut later, &memory), Verdict::Pass(Reason::FragmentTranslated));
    for packet in [first, later] {
        assert_eq!(packet.0[38..54], image(LOCAL).octets());
    }
}

#[test]
fn neighbours_are_answered_for_announced_addresses() {
    let solicitation = |target: [u8; 4], hops: u8| {
        let (src, target) = (image(CLIENT).octets(), image(target).octets());
        let mut group = [0xFF, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xFF, 0, 0, 0];
        group[13..].copy_from_slice(&target[13..]);
        let ethernet = [0x33, 0x33, 0xFF, 0, 0, 1, 2, 0, 0, 0, 0, 7, 0x86, 0xDD];
        let ip = [0x60, 0, 0, 0, 0, 32, 58, hops];
        let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target, &[1, 1, 2, 0, 0, 0, 0, 7]].concat();
        Buffer([&ethernet[..], &ip, &src, &group, &message].concat())
    };
    for (name, target, hops, answered) in [
        ("announced", BALANCER, 255, true),
        ("from elsewhere", BALANCER, 254, false),
        ("the node's own", NODE, 255, false),
        ("nobody's", REMOTE, 255, false),
    ] {
        let before = solicitation(target, hops);
        let mut packet = before.clone();
        let verdict = six::ingress(&mut packet, &node());
        assert_eq!(verdict == Verdict::Return(Reason::Announced), answered, "{name}: {verdict:?}");
        if !answered {
            assert_eq!(packet, before, "{name}");
            continue;
        }
        let frame = &packet.0;
        assert_eq!((&frame[..6], &frame[6..12]), (&[2, 0, 0, 0, 0, 7][..], &MAC[..]));
        assert_eq!((frame[54], frame[58]), (136, 0x60), "solicited, to be put in the place of what is known");
        assert_eq!((&frame[22..38], &frame[38..54]), (&before.0[62..78], &before.0[22..38]));
        assert_eq!((&frame[62..78], &frame[80..]), (&before.0[62..78], &MAC[..]));
        let whole = frame[54..].chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]])));
        let sum = whole.fold(icmp_sum(frame, 0, 0), checksum::add);
        assert_eq!(checksum::fold(sum), 0xFFFF);
    }
}

#[test]
fn who_begins_a_flow_is_kept_and_nobody_else() {
    let memory = serving(proto::TCP, &[LOCAL]);
    let known = memory.addresses.borrow().len();
    for host in 0..200 {
        for (port, flags) in [(NODE_PORT, ACK), (22, SYN)] {
            let asks = wire::packet(&tuple([198, 51, 100, host], 40_000, NODE, port, proto::TCP), flags, b"");
            six::ingress(&mut image_of(&asks), &memory);
        }
    }
    assert_eq!(memory.addresses.borrow().len(), known, "packets that begin nothing leave nothing behind");
    let verdict = six::ingress(&mut image_of(&to_node_port(proto::TCP)), &memory);
    assert_eq!(verdict, Verdict::Pass(Reason::NodePortLocal));
    assert_eq!(memory.addresses.borrow().len(), known + 1);
}

#[test]
fn links_and_groups_are_not_masqueraded() {
    let sent = image_of(&wire::packet(&tuple(LOCAL, 40_000, CLIENT, 443, proto::TCP), SYN, b""));
    for (name, head, expect) in [
        ("outside", PREFIX, Verdict::Pass(Reason::Masqueraded)),
        ("of the link", [0xFE, 0x80, 0, 0], Verdict::Pass(Reason::UplinkPass)),
        ("a group", [0xFF, 2, 0, 0], Verdict::Pass(Reason::UplinkPass)),
    ] {
        let mut packet = sent.clone();
        packet.0[38..42].copy_from_slice(&head);
        assert_eq!(six::egress(&mut packet, &node()), expect, "{name}");
    }
}

/// Path MTU discovery works through a Service: the client finds its own packet in the error.
#[test]
fn errors_show_the_packet_as_it_was_sent() {
    for protocol in [proto::TCP, proto::UDP] {
        let memory = serving(protocol, &[REMOTE]);
        let sent = image_of(&to_node_port(protocol));
        let mut went = sent.clone();
        assert_eq!(six::ingress(&mut went, &memory), Verdict::Forward(Reason::NodePortRemote));
        // A router on the way cannot take it; IPv4's "unreachable" has the same form as "too big".
        let hop = [203, 0, 113, 1];
        let be = u32::from_ne_bytes;
        let mut error = image_of(&wire::error(3, be(hop), be(NODE), &Buffer(vec![0; 14])));
        error.0.truncate(54 + 8);
        error.0.extend_from_slice(&went.0[14..]);
        let length = (error.0.len() - 54) as u16;
        error.0[18..20].copy_from_slice(&length.to_be_bytes());
        error.0[54] = six::icmp6::TOO_BIG;
        error.0[56..58].fill(0);
        let whole = |frame: &[u8]| {
            let words = frame[54..].chunks(2);
            let words =
                words.map(|pair| u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
            checksum::fold(words.fold(icmp_sum(frame, 0, 0), checksum::add))
        };
        let sum = !whole(&error.0);
        error.0[56..58].copy_from_slice(&sum.to_ne_bytes());
        assert_eq!(whole(&error.0), 0xFFFF);

        assert_eq!(six::ingress(&mut error, &memory), Verdict::Forward(Reason::IcmpError));
        assert_eq!(error.0[38..54], image(CLIENT).octets());
        assert_eq!(whole(&error.0), 0xFFFF, "{protocol}");
        let inside = &error.0[62..];
        assert_eq!(inside[8..40], sent.0[22..54], "addresses");
        assert_eq!(inside[40..44], sent.0[54..58], "ports");
        if protocol == proto::UDP {
            assert_eq!(inside[46..48], sent.0[60..62], "checksum");
        }
    }
}

/// The numbers are nobody's addresses: no packet of IPv4 comes where one of IPv6 would.
#[test]
fn packets_to_numbers_go_nowhere() {
    let memory = serving(proto::TCP, &[LOCAL]);
    let balancer = number(&memory, BALANCER);
    let at = Frontend::new(balancer, SERVICE_PORT.to_be(), proto::TCP);
    serve(&memory, at, 4, &[LOCAL], 8080);
    for dst_be in [balancer, number(&memory, NODE), number(&memory, LOCAL)] {
        let asks = pith_abi::Tuple { dst_be, ..tuple(CLIENT, 40_000, NODE, SERVICE_PORT, proto::TCP) };
        let before = wire::packet(&asks, SYN, b"");
        let mut packet = before.clone();
        for verdict in [
            uplink::ingress(&mut packet, &memory),
            uplink::egress(&mut packet, &memory),
            pods::from_pod(&mut packet, &memory),
            pods::to_pod(&mut packet, &memory),
        ] {
            assert!(matches!(verdict, Verdict::Pass(_)), "{verdict:?}");
        }
        assert_eq!(packet, before);
        assert!(memory.flows.borrow().is_empty());
    }
}
