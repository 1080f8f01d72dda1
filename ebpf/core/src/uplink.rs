//! Packets at the uplink: Services for those that come in, masquerade for those that leave.
//!
//! ```text
//!                 in                                          out
//!  node's or a Service's address? ─no─► pass     from a pod or this node? ──no──► pass
//!      │                                             │
//!  reply to a source port we gave ──► undo           reply of a backend here ──► undo ──► pass
//!      │                              │              │
//!  known flow ──► same backend ──┐    │          pod to the outside:
//!      │                         ▼    ▼            known flow ──► same source port ──► pass
//!  Service ──► select ──► rewrite ──► pod or          │
//!      │            │        this node: pass       new ──► free source port ──► pass
//!      │            │        elsewhere: forward
//!      │            └─► a node: handed on as it came ([`crate::direct`])
//!  node's address: pass      Service's address: this node refuses, or answers a ping
//! ```
//! A backend on this node sees the client's own address. One elsewhere sees the node's, because its
//! replies have to come back here.

use core::hint::black_box;

use pith_abi::{
    Backend, Flow, FlowFlags, Frontend, FrontendTarget, Head, HeadFlags, Hook, NodeClass, NodeConfig,
    NodeFlags, Reason, Scope, ServerKey, Tuple, proto,
};

use crate::{
    Packet, Tables, Verdict,
    begin::{Source, Start, begin},
    direct, flow, fragment, icmp,
    packet::{Header, Transport, tcp},
    select::{Client, Selection, select},
    translate::Hops,
};

/// A packet arrives at the uplink.
#[inline(always)]
pub fn ingress<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(node) = tables.node() else { return Verdict::Pass(Reason::UplinkPass) };
    let Some(header) = packet.header() else { return Verdict::Pass(Reason::UplinkMalformed) };
    if node.addr_be == 0 {
        return Verdict::Pass(Reason::UplinkPass);
    }
    let own = header.dst_be == node.addr_be;
    let class = if own { NodeClass::OWN } else { tables.node_class(header.dst_be) };
    // What another node hands on may have asked for that one's address.
    let handed_on = if node.flags & NodeFlags::DIRECT == 0 { 0 } else { NodeClass::OTHER };
    if class & (NodeClass::OWN | NodeClass::SERVICE | handed_on) == 0 {
        return Verdict::Pass(Reason::UplinkPass);
    }
    if header.later_fragment {
        return ingress_fragment(packet, tables, node, &header);
    }
    let done = match packet.transport(&header) {
        Some(Transport::Flow { tuple, tcp_flags }) => {
            ingress_flow(packet, tables, node, &Arrived { header: &header, tuple: &tuple, tcp_flags, class })
        }
        Some(Transport::IcmpError) => ingress_error(packet, tables, node, &header),
        Some(Transport::Other) => Err(Reason::UplinkPass),
        None => Err(Reason::UplinkMalformed),
    };
    let left = match done {
        Ok(verdict) => return verdict,
        Err(reason) => reason,
    };
    if fragment::lead_waiting(tables, &header, header.src_be, header.dst_be, Hook::UPLINK_INGRESS) {
        return Verdict::Release(Reason::FragmentsReleased);
    }
    Verdict::Pass(left)
}

/// A packet of a flow, which arrives.
struct Arrived<'a> {
    header: &'a Header,
    tuple: &'a Tuple,
    tcp_flags: u8,
    /// Bits of [`NodeClass`], of its destination.
    class: u32,
}

/// `Err` with the reason where the packet is left as it is.
#[inline(always)]
fn ingress_flow<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    node: &NodeConfig,
    arrived: &Arrived<'_>,
) -> Result<Verdict, Reason> {
    let Arrived { header, tuple, class, .. } = *arrived;
    Ok(match resolve_ingress(packet, tables, node, arrived) {
        Ok(Goes::HandedOn(hand)) => direct::carry_out(packet, tables, header, hand),
        Ok(Goes::As(to, reason)) => {
            // Else the verifier walks the rest once for each way that leads here.
            let Becomes { to, reason, way, .. } =
                black_box(Becomes { to, word: 0, reason, way: Way::to(tables, node, to.dst_be) });
            if way.is_hop() && header.ttl <= 1 {
                return Ok(Verdict::Drop(Reason::TtlExceeded));
            }
            if fragment::lead_waiting(tables, header, to.src_be, to.dst_be, Hook::UPLINK_INGRESS) {
                return Ok(Verdict::Release(Reason::FragmentsReleased));
            }
            match packet.translate(header, tuple, &to, way.hops()) {
                None => Verdict::Drop(Reason::RewriteFailed),
                Some(()) => way.verdict(reason),
            }
        }
        Err(Reason::SourceDenied) => Verdict::Drop(Reason::SourceDenied),
        Err(reason) if class & NodeClass::SERVICE == 0 => return Err(reason),
        // The stack knows no such address: it would send the packet on, and get it back.
        Err(reason) => Verdict::Drop(reason),
    })
}

/// What an arriving packet becomes.
enum Goes {
    As(Tuple, Reason),
    HandedOn(direct::Hand),
}

/// What an arriving packet becomes, or why it is left as it is.
#[inline(always)]
fn resolve_ingress<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    node: &NodeConfig,
    arrived: &Arrived<'_>,
) -> Result<Goes, Reason> {
    let Arrived { tuple, tcp_flags, class, .. } = *arrived;
    let own = class & NodeClass::OWN != 0;
    let dport = u16::from_be(tuple.dport_be);
    if own
        && dport >= node.snat_first
        && dport <= node.snat_last
        && let Some(forward) = flow::reply(tables, tuple, tcp_flags)
    {
        return Ok(Goes::As(forward.reversed(), Reason::FlowReply));
    }
    if let Some(key) = flow::forward(tables, tuple, tcp_flags) {
        return Ok(Goes::As(key.reversed(), Reason::FlowForward));
    }
    let direct = node.flags & NodeFlags::DIRECT != 0;
    if direct && let Some(hand) = direct::known(tables, tuple, tcp_flags) {
        return Ok(Goes::HandedOn(hand));
    }
    let handed = direct && (class & NodeClass::OTHER != 0 || packet.is_handed_on());
    match first_packet(packet, tables, node, arrived, handed)? {
        First::Start(start) => {
            let (to, reason) = begin(tables, node, tuple, &start)?;
            Ok(Goes::As(to, reason))
        }
        First::HandOn { node_be } => direct::begin(tables, tuple, node_be).map(Goes::HandedOn),
    }
}

/// The Service that a packet asks for, or [`FrontendTarget::NO_SERVICE`]. No Option: what lies in none would be kept on the
/// stack undefined, which the verifier does not take.
#[inline(always)]
fn service_at<T: Tables>(tables: &T, tuple: &Tuple, scope: u8, class: u32) -> u32 {
    let exact = Frontend::new(tuple.dst_be, tuple.dport_be, tuple.proto).scoped(scope);
    if let Some(target) = tables.frontend(&exact) {
        return target.service(&exact).unwrap_or(FrontendTarget::NO_SERVICE);
    }
    if class & NodeClass::SERVICE != 0 {
        return FrontendTarget::NO_SERVICE;
    }
    let node_port = Frontend::node_port(tuple.dport_be, tuple.proto).scoped(scope);
    match tables.frontend(&node_port) {
        Some(target) => target.service(&node_port).unwrap_or(FrontendTarget::NO_SERVICE),
        None => FrontendTarget::NO_SERVICE,
    }
}

/// Why a packet to a Service's address is answered by this node: it is to none of its ports.
#[inline(always)]
pub(crate) fn no_port(tuple: &Tuple) -> Reason {
    if tuple.proto == proto::ICMP { Reason::ServicePing } else { Reason::ServiceNoPort }
}

/// Whether this is an echo reply, with which no flow begins.
#[inline(always)]
pub(crate) fn is_pong(tuple: &Tuple) -> bool {
    tuple.proto == proto::ICMP && tuple.dport_be != 0
}

/// Where the first packet of a flow is led.
enum First {
    Start(Start),
    HandOn { node_be: u32 },
}

/// Where the first packet of a flow is led. What was `handed` on to here is not handed on any further.
#[inline(always)]
fn first_packet<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    node: &NodeConfig,
    arrived: &Arrived<'_>,
    handed: bool,
) -> Result<First, Reason> {
    let Arrived { header, tuple, tcp_flags, class } = *arrived;
    let own = class & NodeClass::OWN != 0;
    // For its own addresses the stack refuses by itself, at whatever port.
    let refuse = |own: bool, of_own, of_service| {
        if own { Err(of_own) } else { Ok(First::Start(Start::answer(node, of_service))) }
    };
    let mut service = FrontendTarget::NO_SERVICE;
    if handed {
        service = service_at(tables, tuple, Scope::HANDED, class);
    }
    if service == FrontendTarget::NO_SERVICE && class & NodeClass::OTHER == 0 {
        service = service_at(tables, tuple, Scope::OUTSIDE, class);
    }
    if service == FrontendTarget::NO_SERVICE {
        if class & NodeClass::SERVICE == 0 {
            return Err(Reason::UplinkPass);
        }
        if is_pong(tuple) {
            return Err(Reason::ServiceNoFlow);
        }
        return refuse(own, Reason::UplinkPass, no_port(tuple));
    }
    if tuple.proto == proto::TCP && !tcp::opens(tcp_flags) {
        return refuse(own, Reason::NodePortNoFlow, Reason::ServiceNoFlow);
    }
    let flags = Head::unpack(tables.service(service).map_or(0, |service| service.head)).flags;
    if flags & HeadFlags::SOURCES != 0 && !tables.serves_source(service, tuple.src_be) {
        return Err(Reason::SourceDenied);
    }
    // Else the verifier walks the selection once for each kind of address.
    let own = black_box([0, u8::from(own) + 1, 0, 0])[1] > 1;
    let named =
        if flags & HeadFlags::NAMED == 0 { Backend(0) } else { named(packet, tables, header, service) };
    let backend = if named.0 != 0 {
        named
    } else {
        match select(tables, service, Client::Sender(tuple.src_be, tuple.sport_be)) {
            Selection::Chosen(choice) => choice.backend,
            Selection::Empty => return refuse(own, Reason::NodePortNoEndpoints, Reason::ServiceNoEndpoints),
            Selection::Race => return Err(Reason::GenerationRace),
        }
    };
    let (addr_be, port_be) = (backend.addr_be(), backend.port_be());
    if backend.is_node() {
        // Its own backends for such packets are not in the maps yet; the sender tries again.
        if handed {
            return Err(Reason::GenerationRace);
        }
        return Ok(First::HandOn { node_be: addr_be });
    }
    let stays = stays_here(tables, node, addr_be);
    let (source, flags) = if stays {
        (Source::Own, FlowFlags::DESTINATION)
    } else {
        (Source::Node, FlowFlags::DESTINATION | FlowFlags::SOURCE)
    };
    let reason = match (own, stays) {
        _ if named.0 != 0 => Reason::ConnectionNamed,
        _ if handed => Reason::DirectTaken,
        (true, true) => Reason::NodePortLocal,
        (true, false) => Reason::NodePortRemote,
        (false, true) => Reason::ServiceLocal,
        (false, false) => Reason::ServiceRemote,
    };
    Ok(First::Start(Start { addr_be, service, word: 0, source, flags, reason, port_be }))
}

/// The backend that a packet itself names; a word of 0 where it names none.
#[inline(always)]
fn named<P: Packet, T: Tables>(packet: &P, tables: &T, header: &Header, service: u32) -> Backend {
    let Some(addr_be) = packet.server(header) else { return Backend(0) };
    tables.server(&ServerKey { service, addr_be }).unwrap_or(Backend(0))
}

/// A piece of a datagram, other than the first, arrives.
#[inline(always)]
fn ingress_fragment<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    node: &NodeConfig,
    header: &Header,
) -> Verdict {
    let Some(to) = fragment::led(tables, &fragment::key(header, Hook::UPLINK_INGRESS)) else {
        return match fragment::parked_length(header) {
            Some(_) => Verdict::Park(Reason::FragmentParked),
            None => Verdict::Drop(Reason::FragmentTooLarge),
        };
    };
    if to.src_be == 0 {
        return direct::fragment(packet, header, to.dst_be);
    }
    if to.dst_be == header.dst_be {
        return Verdict::Pass(Reason::UplinkFragment);
    }
    let way = Way::to(tables, node, to.dst_be);
    if way.is_hop() && header.ttl <= 1 {
        return Verdict::Drop(Reason::TtlExceeded);
    }
    match packet.readdress(header, to.src_be, to.dst_be, way.hops()) {
        None => Verdict::Drop(Reason::RewriteFailed),
        Some(()) => way.verdict(Reason::FragmentTranslated),
    }
}

#[inline(always)]
fn ingress_error<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    node: &NodeConfig,
    header: &Header,
) -> Result<Verdict, Reason> {
    let Some(error) = icmp::parse(packet, tables, header, node) else {
        if node.flags & NodeFlags::DIRECT != 0
            && let Some(hand) = direct::error(packet, tables, header)
        {
            return Ok(direct::carry_out(packet, tables, header, hand));
        }
        return Err(Reason::UplinkPass);
    };
    let way = Way::to(tables, node, error.dst_be);
    if way.is_hop() && header.ttl <= 1 {
        return Ok(Verdict::Drop(Reason::TtlExceeded));
    }
    Ok(match packet.translate_error(header, &error, way.hops()) {
        None => Verdict::Drop(Reason::RewriteFailed),
        Some(()) => way.verdict(Reason::IcmpError),
    })
}

/// A packet leaves by the uplink.
#[inline(always)]
pub fn egress<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(node) = tables.node() else { return Verdict::Pass(Reason::UplinkPass) };
    let Some(header) = packet.header() else { return Verdict::Pass(Reason::UplinkMalformed) };
    let from_pod = tables.is_local_pod(node, header.src_be);
    if node.addr_be == 0 || !(from_pod || is_own(tables, node, header.src_be)) {
        return Verdict::Pass(Reason::UplinkPass);
    }
    let outside = from_pod && is_outside(tables, node, header.dst_be);
    // What must leave under the node's address and cannot is dropped: nobody could answer it.
    let left = |reason| if outside { Verdict::Drop(reason) } else { Verdict::Pass(reason) };
    if header.later_fragment {
        let Some(to) = fragment::led(tables, &fragment::key(&header, Hook::UPLINK_EGRESS)) else {
            return left(Reason::UplinkFragment);
        };
        return match packet.readdress(&header, to.src_be, to.dst_be, Hops::Keep) {
            Some(()) => Verdict::Pass(Reason::FragmentTranslated),
            None => Verdict::Drop(Reason::RewriteFailed),
        };
    }
    match packet.transport(&header) {
        Some(Transport::Flow { tuple, tcp_flags }) => {
            match resolve_egress(tables, node, &tuple, tcp_flags, outside) {
                Ok((to, reason)) => {
                    fragment::lead(tables, &header, &to, Hook::UPLINK_EGRESS);
                    match packet.translate(&header, &tuple, &to, Hops::Keep) {
                        Some(()) => Verdict::Pass(reason),
                        None => Verdict::Drop(Reason::RewriteFailed),
                    }
                }
                Err(reason) => left(reason),
            }
        }
        Some(Transport::IcmpError) => match icmp::parse(packet, tables, &header, node) {
            Some(error) => match packet.translate_error(&header, &error, Hops::Keep) {
                Some(()) => Verdict::Pass(Reason::IcmpError),
                None => Verdict::Drop(Reason::RewriteFailed),
            },
            None => left(no_flow(outside)),
        },
        Some(Transport::Other) => left(no_flow(outside)),
        None => left(Reason::UplinkMalformed),
    }
}

#[inline(always)]
fn no_flow(outside: bool) -> Reason {
    if outside { Reason::MasqueradeNoFlow } else { Reason::UplinkPass }
}

/// What a leaving packet becomes, or why it is left as it is.
#[inline(always)]
fn resolve_egress<T: Tables>(
    tables: &T,
    node: &NodeConfig,
    tuple: &Tuple,
    tcp_flags: u8,
    outside: bool,
) -> Result<(Tuple, Reason), Reason> {
    if let Some(forward) = flow::reply(tables, tuple, tcp_flags) {
        return Ok((forward.reversed(), Reason::FlowReply));
    }
    if !outside {
        return Err(Reason::UplinkPass);
    }
    if let Some(key) = flow::forward(tables, tuple, tcp_flags) {
        return Ok((key.reversed(), Reason::FlowForward));
    }
    // A connection that began before its record was lost may go on under a new source port, where the
    // other side refuses it; a reset or a pong that belongs to nothing would only fill the table.
    if tcp_flags & tcp::RST != 0 || is_pong(tuple) {
        return Err(Reason::MasqueradeNoFlow);
    }
    let start = Start {
        word: 0,
        source: Source::Node,
        addr_be: tuple.dst_be,
        port_be: tuple.dport_be,
        service: Flow::NO_SERVICE,
        flags: FlowFlags::SOURCE,
        reason: Reason::Masqueraded,
    };
    begin(tables, node, tuple, &start)
}

/// What an arriving packet becomes. The order of the fields is part of the trick, see [`Start`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Becomes {
    to: Tuple,
    word: u8,
    reason: Reason,
    way: Way,
}

/// How a translated packet goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Way {
    Stack = 1,
    /// Out again: it now comes from this node, which the stack would take for forged.
    Uplink,
    /// To the pods, on a host that is only their gateway.
    Inner,
}

impl Way {
    #[inline(always)]
    pub(crate) fn to<T: Tables>(tables: &T, node: &NodeConfig, dst_be: u32) -> Self {
        if tables.is_local_pod(node, dst_be) {
            return if node.inner == 0 { Self::Stack } else { Self::Inner };
        }
        if is_own(tables, node, dst_be) { Self::Stack } else { Self::Uplink }
    }

    /// Whether this is a hop that nobody else counts.
    #[inline(always)]
    fn is_hop(self) -> bool {
        !matches!(self, Self::Stack)
    }

    #[inline(always)]
    pub(crate) fn hops(self) -> Hops {
        if self.is_hop() { Hops::Count } else { Hops::Keep }
    }

    #[inline(always)]
    fn verdict(self, reason: Reason) -> Verdict {
        match self {
            Self::Stack => Verdict::Pass(reason),
            Self::Uplink => Verdict::Forward(reason),
            Self::Inner => Verdict::Inward(reason),
        }
    }
}

#[inline(always)]
fn is_own<T: Tables>(tables: &T, node: &NodeConfig, addr_be: u32) -> bool {
    addr_be == node.addr_be || tables.node_class(addr_be) & NodeClass::OWN != 0
}

/// Whether a packet to an address is for this node or one of its pods.
#[inline(always)]
fn stays_here<T: Tables>(tables: &T, node: &NodeConfig, addr_be: u32) -> bool {
    tables.is_local_pod(node, addr_be) || is_own(tables, node, addr_be)
}

/// Whether pods reach an address under the node's. Group and broadcast addresses are nobody's to answer.
#[inline(always)]
fn is_outside<T: Tables>(tables: &T, node: &NodeConfig, addr_be: u32) -> bool {
    node.flags & NodeFlags::MASQUERADE != 0
        && !tables.is_pod(node, addr_be)
        && tables.is_hosts(addr_be)
        && tables.node_class(addr_be) & (NodeClass::OWN | NodeClass::OTHER) == 0
}
