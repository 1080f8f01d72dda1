//! What pith's programs take for one packet, in nanoseconds, by BPF_PROG_TEST_RUN: no link, no stack, no clock of a
//! client's around it.
//!
//! A program changes its packet, so that a second run would see another one. Hence two ways of measuring: each packet is
//! run once, and the kernel's own reading of the clock is in every figure, also in that of a packet which is passed at
//! once; or one packet is run again and again which becomes what it was, its checksums and all written over.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use pith_abi::{Address6, Reason, Tuple, proto};
use pith_core::checksum;
use pith_core::host::{Buffer, wire};
use pith_core::packet::tcp;
use pith_core::wire6::{self, Ends};
use pith_proxy::annotations::Forwarding;
use pith_proxy::service::{Endpoint, Protocol, Service as Parsed, ServiceName, ServicePort, Slice};
use pith_proxy::{NodeIdentity, ServicePlan, Uplink, plan_service};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::StdRng};

use crate::cluster::{NODE_PORT, PORT, Service, TARGET_PORT, services};
use crate::contender::Contender;
use crate::ground::{BACKENDS, Ground, NODE};
use crate::pith::{NODE6, POD6, Pith};
use crate::plan::Plan;
use crate::report::{Better, Figure};
use crate::rounds::{Figures, Subject, Values};
use crate::statistics::percentile;
use crate::{interrupt, pin, progress};

/// Flows that stand, and packets of each kind in a round.
const FLOWS: u16 = 4_096;
/// First packets in a round: each begins a flow that stays.
const FIRSTS: u16 = 512;
/// Packets of one and the same flow in a round.
const SAME: usize = 1_024;
/// Runs in a row in a round.
const IN_A_ROW: u32 = 100_000;
/// ClusterIP of the Service whose node port is its backend's own.
const ITSELF: Ipv4Addr = Ipv4Addr::new(10, 96, 200, 1);
/// Node port of the Service whose backend's node answers itself.
const HANDED_PORT: u16 = 30_999;
/// That node.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 3);
const SEED: u64 = 0x7069_7468;

const WARM: Subject = Subject {
    id: "packet-warm",
    title: "Time of the program for a packet, the same flow again and again",
    unit: "ns",
    better: Better::Lower,
    how: "BPF_PROG_TEST_RUN of the attached program, one packet a run, median of a round. All that it looks up is in \
          the processor's caches. A packet that is not IPv4 is passed at once by the same program: what the \
          measurement itself takes.",
};

const COLD: Subject = Subject {
    id: "packet-random",
    title: "Time of the program for a packet, any of 4,096 flows",
    unit: "ns",
    better: Better::Lower,
    how: "As above, each packet of another flow, in an order without pattern.",
};

const STEADY: Subject = Subject {
    id: "packet-steady",
    title: "Time of the program for a packet, 100,000 in a row",
    unit: "ns",
    better: Better::Lower,
    how: "BPF_PROG_TEST_RUN of the attached program with 100,000 repetitions, as such figures are usually published: \
          the mean of a round. The backend is the node itself at the port that was asked, so that the packet is \
          rewritten to what it was. Beside it a packet that is not IPv4, passed at once by the same program.",
};

/// One kind of packets.
struct Kind {
    name: &'static str,
    /// Of a node of both families, whose programs are others.
    dual: bool,
    hook: Uplink,
    /// What the program must say of each: otherwise something else was measured.
    reason: Reason,
    packets: Vec<Vec<u8>>,
    /// Each packet can be of its kind once only.
    once: bool,
    /// One that is the same afterwards.
    unchanged: Option<Vec<u8>>,
}

impl Kind {
    fn check(&self, seen: u64, expected: u64) -> Result<()> {
        if seen != expected {
            bail!("{}: only {seen} of {expected} packets were `{}`", self.name, self.reason.name());
        }
        Ok(())
    }
}

/// Measures all kinds with pith alone: nobody else has programs to run.
pub(crate) fn run(run: &str, plan: &Plan) -> Result<Vec<Figure>> {
    pin::to_client_cpu();
    let ground = Ground::new()?;
    let mut pith = Pith::new(&ground)?;
    let mut all = services(1_000, &BACKENDS);
    let to_itself =
        Service { number: 1_000, address: ITSELF, node_port: Some(TARGET_PORT), endpoints: vec![NODE] };
    all.push(to_itself);
    pith.apply(&all)?;
    let mut kinds = kinds(&pith, &all[all.len() / 2], plan.rounds)?;
    let mut dual = Pith::dual(&ground)?;
    dual.apply_plan(&service_of_ipv6())?;
    dual.apply_plan(&handed_on_service())?;
    kinds.extend(kinds_of_ipv6(&dual)?);
    kinds.push(handed_on(&dual)?);
    let both = [pith, dual];
    let names = kinds.iter().map(|kind| kind.name.to_owned()).collect();
    let mut figures = Figures::named(run, "packets", names);
    let mut random = StdRng::seed_from_u64(SEED);
    for (place, kind) in (0_u32..).zip(&mut kinds) {
        let mut values = Values::default();
        let pith = &both[usize::from(kind.dual)];
        for _ in 0..plan.rounds {
            interrupt::check()?;
            if let Some(packet) = &kind.unchanged {
                values.add(STEADY.id, Contender::AtOnce, Some(in_a_row(pith, kind.hook, &passed_at_once())?));
                let before = count(pith, kind.reason)?;
                values.add(STEADY.id, Contender::Pith, Some(in_a_row(pith, kind.hook, packet)?));
                kind.check(count(pith, kind.reason)? - before, u64::from(IN_A_ROW))?;
            }
            kind.packets.shuffle(&mut random);
            let at_once = at_once(pith, kind.hook)?;
            values.add(COLD.id, Contender::AtOnce, Some(at_once));
            if kind.once {
                let rest = kind.packets.split_off(usize::from(FIRSTS));
                let packets = std::mem::replace(&mut kind.packets, rest);
                values.add(COLD.id, Contender::Pith, Some(measure(pith, kind, packets.iter())?));
                continue;
            }
            let same = kind.packets.iter().take(1).cycle().take(SAME);
            values.add(WARM.id, Contender::AtOnce, Some(at_once));
            values.add(WARM.id, Contender::Pith, Some(measure(pith, kind, same)?));
            values.add(COLD.id, Contender::Pith, Some(measure(pith, kind, kind.packets.iter())?));
        }
        progress::step(&format!("packets: {}", kind.name));
        for subject in [&WARM, &COLD, &STEADY] {
            figures.add(subject, values.points(subject.id, f64::from(place)));
        }
    }
    Ok(figures.into_figures())
}

/// Median of what the program takes for each of these, in nanoseconds.
fn measure<'p>(pith: &Pith, kind: &Kind, packets: impl Iterator<Item = &'p Vec<u8>>) -> Result<f64> {
    let before = count(pith, kind.reason)?;
    let mut nanos = Vec::new();
    for packet in packets {
        nanos.push(pith.datapath.replay(kind.hook, packet)?.duration.as_secs_f64() * 1e9);
    }
    kind.check(count(pith, kind.reason)? - before, nanos.len() as u64)?;
    percentile(&nanos, 0.5).context("no packets")
}

/// Mean of what the program takes for the same packet, in nanoseconds.
fn in_a_row(pith: &Pith, hook: Uplink, packet: &[u8]) -> Result<f64> {
    Ok(pith.datapath.time(hook, packet, IN_A_ROW)?.as_secs_f64() * 1e9)
}

fn passed_at_once() -> Vec<u8> {
    let mut packet = wire::packet(&Tuple::new(0, 0, 0, 0, proto::UDP), 0, &[]).0;
    packet[12..14].copy_from_slice(&[0x88, 0xb5]); // Local experimental (IEEE 802).
    packet
}

fn at_once(pith: &Pith, hook: Uplink) -> Result<f64> {
    let packet = passed_at_once();
    let nanos: Result<Vec<f64>> =
        (0..SAME).map(|_| Ok(pith.datapath.replay(hook, &packet)?.duration.as_secs_f64() * 1e9)).collect();
    percentile(&nanos?, 0.5).context("no packets")
}

fn count(pith: &Pith, reason: Reason) -> Result<u64> {
    let reasons = pith.datapath.reasons()?;
    Ok(reasons.into_iter().find(|(found, _)| *found == reason).map_or(0, |(_, count)| count))
}

fn be(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// A TCP flow from somewhere to a place.
fn tuple(from: [u8; 2], number: u16, to: Ipv4Addr, port: u16) -> Tuple {
    let [high, low] = number.to_be_bytes();
    let source = Ipv4Addr::new(from[0], from[1], high, low);
    Tuple::new(be(source), (20_000 + number).to_be(), be(to), port.to_be(), proto::TCP)
}

/// Every kind, with the flows that its packets belong to.
fn kinds(pith: &Pith, service: &Service, rounds: usize) -> Result<Vec<Kind>> {
    let at_node = |number| tuple([203, 0], number, NODE, NODE_PORT);
    let from_pod = |number| tuple([10, 244], number, service.address, PORT);
    let segment = |tuple: &Tuple, flags| wire::packet(tuple, flags, &[]).0;
    let mut replies = Vec::new();
    for number in 0..FLOWS {
        let begun = pith.datapath.replay(Uplink::Ingress, &segment(&at_node(number), tcp::SYN))?;
        let reply = wire::tuple(&Buffer(begun.packet)).reversed();
        pith.datapath.replay(Uplink::Egress, &segment(&reply, tcp::SYN | tcp::ACK))?;
        pith.datapath.replay(Uplink::Ingress, &segment(&at_node(number), tcp::ACK))?;
        pith.datapath.replay(Uplink::FromPod, &segment(&from_pod(number), tcp::SYN))?;
        replies.push(reply);
    }
    let standing =
        |of: &dyn Fn(u16) -> Tuple| (0..FLOWS).map(|number| segment(&of(number), tcp::ACK)).collect();
    let firsts = u16::try_from(rounds).context("many rounds")? * FIRSTS;
    let first = (0..firsts).map(|number| segment(&tuple([203, 1], number, NODE, NODE_PORT), tcp::SYN));
    let pieces = |number: u16| -> Result<Vec<u8>> {
        let packet = wire::packet(&at_node(number), tcp::ACK, &[0; 64]).0;
        pith.datapath.replay(Uplink::Ingress, &piece(packet.clone(), number, 0, true))?;
        Ok(piece(packet, number, 8, false))
    };
    let error = |reply: &Tuple| {
        // A router on the way to the client says of a reply, as it left this node, that it is too large.
        let left = Tuple { src_be: be(NODE), sport_be: NODE_PORT.to_be(), ..*reply };
        wire::error(3, be(Ipv4Addr::new(203, 0, 113, 1)), be(NODE), &wire::packet(&left, tcp::ACK, &[0; 64]))
            .0
    };
    let kind = |name, hook, reason, packets| Kind {
        name,
        dual: false,
        hook,
        reason,
        packets,
        once: false,
        unchanged: None,
    };
    let same = |kind: Kind| Kind { unchanged: kind.packets.first().cloned(), ..kind };
    let itself = tuple([203, 3], 0, NODE, TARGET_PORT);
    pith.datapath.replay(Uplink::Ingress, &segment(&itself, tcp::SYN))?;
    pith.datapath.replay(Uplink::Egress, &segment(&itself.reversed(), tcp::SYN | tcp::ACK))?;
    Ok(vec![
        Kind {
            unchanged: Some(segment(&itself, tcp::ACK)),
            ..kind("established, in", Uplink::Ingress, Reason::FlowForward, standing(&at_node))
        },
        Kind {
            unchanged: Some(segment(&itself.reversed(), tcp::ACK)),
            ..kind(
                "established, out",
                Uplink::Egress,
                Reason::FlowReply,
                replies.iter().map(|reply| segment(reply, tcp::ACK)).collect(),
            )
        },
        Kind {
            once: true,
            ..kind("first of a flow", Uplink::Ingress, Reason::NodePortLocal, first.collect())
        },
        same(kind(
            "of no flow",
            Uplink::Ingress,
            Reason::NodePortNoFlow,
            standing(&|number| tuple([203, 2], number, NODE, NODE_PORT)),
        )),
        kind(
            "later fragment",
            Uplink::Ingress,
            Reason::FragmentTranslated,
            (0..FLOWS / 4).map(pieces).collect::<Result<_>>()?,
        ),
        kind("ICMP error", Uplink::Ingress, Reason::IcmpError, replies.iter().map(error).collect()),
        same(kind(
            "pod to pod",
            Uplink::FromPod,
            Reason::PodPass,
            standing(&|number| tuple([10, 244], number, BACKENDS[0], TARGET_PORT)),
        )),
        kind("raw, pod to Service", Uplink::FromPod, Reason::FlowForward, standing(&from_pod)),
    ])
}

/// A Service with direct server return, whose backend is on another node.
fn handed_on_service() -> ServicePlan {
    let mut of = demo(vec![ServicePort {
        name: "".into(),
        protocol: Protocol::Tcp,
        port: PORT,
        node_port: Some(HANDED_PORT),
    }]);
    of.service.cluster_ips = vec![Ipv4Addr::new(10, 96, 200, 2)];
    of.service.annotations.forwarding = Forwarding::Dsr;
    let mut node = NodeIdentity::new("node");
    node.neighbours.insert("other".into(), NEIGHBOUR);
    of.slice.endpoints = vec![Endpoint { node: Some("other".into()), ..Endpoint::ready(BACKENDS[0].into()) }];
    plan_service(&of.service, [&of.slice].into_iter(), &node)
}

/// A Service of IPv6 at a node port, with a pod of the node's.
fn service_of_ipv6() -> ServicePlan {
    let mut of = demo(vec![ServicePort {
        name: "".into(),
        protocol: Protocol::Tcp,
        port: PORT,
        node_port: Some(NODE_PORT),
    }]);
    of.service.cluster_ips6 = vec![Ipv6Addr::new(0xFD96, 0, 0, 0, 0, 0, 0, 1)];
    of.slice.endpoints = vec![Endpoint::ready(POD6.into())];
    plan_service(&of.service, [&of.slice].into_iter(), &NodeIdentity::new("node"))
}

struct Demo {
    service: Parsed,
    slice: Slice,
}

fn demo(ports: Vec<ServicePort>) -> Demo {
    let name =
        ServiceName::new(Service::NAMESPACE, &format!("alone-{}", ports[0].node_port.unwrap_or_default()));
    let slice = Slice {
        service: name.clone(),
        ports: vec![("".into(), Protocol::Tcp, TARGET_PORT)],
        endpoints: Vec::new(),
    };
    Demo { service: Parsed { ports, ..Parsed::named(name) }, slice }
}

/// Packets that another node's backend answers. They have a datapath that has nothing else to do: that there is such a
/// Service costs packets of no flow a lookup.
fn handed_on(pith: &Pith) -> Result<Kind> {
    let to_other = |number, flags| wire::packet(&tuple([203, 4], number, NODE, HANDED_PORT), flags, &[]).0;
    for number in 0..FLOWS {
        pith.datapath.replay(Uplink::Ingress, &to_other(number, tcp::SYN))?;
    }
    Ok(Kind {
        name: "handed on",
        dual: true,
        hook: Uplink::Ingress,
        reason: Reason::DirectForward,
        packets: (0..FLOWS).map(|number| to_other(number, tcp::ACK)).collect(),
        once: false,
        unchanged: None,
    })
}

/// What of IPv6 differs: addresses are looked up by their numbers before anything else.
fn kinds_of_ipv6(pith: &Pith) -> Result<Vec<Kind>> {
    let address = |address: Ipv6Addr| Address6::from_octets(address.octets());
    let ends = |from: u16, number: u16| Ends {
        src: (address(Ipv6Addr::new(0x2001, 0xDB8, from, 0, 0, 0, 0, number)), 20_000),
        dst: (address(NODE6), NODE_PORT),
    };
    let segment = |ends: Ends, flags| wire6::segment(ends, flags, &[]).0;
    let mut replies = Vec::new();
    for number in 0..FLOWS {
        let begun = pith.datapath.replay(Uplink::Ingress, &segment(ends(0, number), tcp::SYN))?;
        let reply = Ends::of(&Buffer(begun.packet)).reversed();
        pith.datapath.replay(Uplink::Egress, &segment(reply, tcp::SYN | tcp::ACK))?;
        pith.datapath.replay(Uplink::Ingress, &segment(ends(0, number), tcp::ACK))?;
        replies.push(segment(reply, tcp::ACK));
    }
    let kind = |name, hook, reason, packets| {
        let unchanged = None;
        Kind { name, dual: true, hook, reason, packets, once: false, unchanged }
    };
    let all = |from| (0..FLOWS).map(|number| segment(ends(from, number), tcp::ACK)).collect::<Vec<_>>();
    let no_flow = all(1);
    Ok(vec![
        kind("IPv6: established, in", Uplink::Ingress, Reason::FlowForward, all(0)),
        kind("IPv6: established, out", Uplink::Egress, Reason::FlowReply, replies),
        Kind {
            unchanged: no_flow.first().cloned(),
            ..kind("IPv6: of no flow", Uplink::Ingress, Reason::NodePortNoFlow, no_flow)
        },
    ])
}

/// Makes a packet a fragment of a datagram, at an offset in units of eight bytes (RFC 791, section 3.1).
fn piece(mut packet: Vec<u8>, id: u16, offset: u16, more: bool) -> Vec<u8> {
    let header = &mut packet[14..34];
    let place = offset | if more { 0x2000 } else { 0 };
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[6..8].copy_from_slice(&place.to_be_bytes());
    header[10..12].fill(0);
    let words = header.chunks_exact(2).map(|word| u32::from(u16::from_ne_bytes([word[0], word[1]])));
    let sum = !checksum::fold(words.fold(0, checksum::add));
    header[10..12].copy_from_slice(&sum.to_ne_bytes());
    packet
}
