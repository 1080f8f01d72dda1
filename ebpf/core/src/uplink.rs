//! Packets at the uplink: node ports for those that come in, masquerade for those that leave.
//!
//! ```text
//!                 in                                          out
//!  own address? ──no──► pass                     from a pod or this node? ──no──► pass
//!      │                                             │
//!  reply to a source port we gave ──► undo           reply of a backend here ──► undo ──► pass
//!      │                              │              │
//!  known flow ──► same backend ──┐    │          pod to the outside:
//!      │                         ▼    ▼            known flow ──► same source port ──► pass
//!  node port ──► select ──► rewrite ──► pod or        │
//!      │                     this node: pass       new ──► free source port ──► pass
//!  pass                      elsewhere: forward
//! ```
//! A backend on this node sees the client's own address. One elsewhere sees the node's, because its
//! replies have to come back here.

use pith_abi::{
    Flow, FlowFlags, FlowState, Frontend, NodeClass, NodeConfig, NodeFlags, Reason, Tuple, proto,
};

use crate::{
    NotAdded, Packet, Record, Tables, Verdict, flow, icmp,
    packet::{Header, Transport, tcp},
    select::{Client, Selection, select},
    translate::{Hops, translate},
};

/// Source ports tried before a flow is given up. With half of the range taken towards one destination the
/// chance that all are taken is 2^-16.
const PORT_TRIES: u32 = 16;

/// A packet arrives at the uplink.
#[inline(always)]
pub fn ingress<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(node) = tables.node() else { return Verdict::Pass(Reason::UplinkPass) };
    let Some(header) = Header::parse(packet) else { return Verdict::Pass(Reason::UplinkMalformed) };
    if node.addr_be == 0 || !is_own(tables, node, header.dst_be) {
        return Verdict::Pass(Reason::UplinkPass);
    }
    if header.later_fragment {
        return Verdict::Pass(Reason::UplinkFragment);
    }
    match header.transport(packet) {
        Some(Transport::Flow { tuple, tcp_flags }) => {
            ingress_flow(packet, tables, node, &header, &tuple, tcp_flags)
        }
        Some(Transport::IcmpError) => ingress_error(packet, tables, node, &header),
        Some(Transport::Other) => Verdict::Pass(Reason::UplinkPass),
        None => Verdict::Pass(Reason::UplinkMalformed),
    }
}

#[inline(always)]
fn ingress_flow<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    node: &NodeConfig,
    header: &Header,
    tuple: &Tuple,
    tcp_flags: u8,
) -> Verdict {
    match resolve_ingress(tables, node, tuple, tcp_flags) {
        Ok((to, reason)) => {
            let way = Way::to(tables, node, to.dst_be);
            if way.is_hop() && header.ttl <= 1 {
                return Verdict::Drop(Reason::TtlExceeded);
            }
            match translate(packet, header, tuple, &to, way.hops()) {
                None => Verdict::Drop(Reason::RewriteFailed),
                Some(()) => way.verdict(reason),
            }
        }
        Err(reason) => Verdict::Pass(reason),
    }
}

/// What an arriving packet becomes, or why it is left as it is.
#[inline(always)]
fn resolve_ingress<T: Tables>(
    tables: &T,
    node: &NodeConfig,
    tuple: &Tuple,
    tcp_flags: u8,
) -> Result<(Tuple, Reason), Reason> {
    let dport = u16::from_be(tuple.dport_be);
    if dport >= node.snat_first
        && dport <= node.snat_last
        && let Some(forward) = flow::reply(tables, tuple, tcp_flags)
    {
        return Ok((forward.reversed(), Reason::FlowReply));
    }
    if let Some(key) = flow::forward(tables, tuple, tcp_flags) {
        return Ok((key.reversed(), Reason::FlowForward));
    }
    node_port(tables, node, tuple, tcp_flags)
}

/// The first packet of a flow to a node port.
#[inline(always)]
fn node_port<T: Tables>(
    tables: &T,
    node: &NodeConfig,
    tuple: &Tuple,
    tcp_flags: u8,
) -> Result<(Tuple, Reason), Reason> {
    let frontend = Frontend::node_port(tuple.dport_be, tuple.proto);
    let service = tables.frontend(&frontend).and_then(|target| target.service(&frontend));
    let Some(service) = service else { return Err(Reason::UplinkPass) };
    if tuple.proto == proto::TCP && !tcp::opens(tcp_flags) {
        return Err(Reason::NodePortNoFlow);
    }
    let choice = match select(tables, service, Client::Address(tuple.src_be)) {
        Selection::Chosen(choice) => choice,
        Selection::Empty => return Err(Reason::NodePortNoEndpoints),
        Selection::Race => return Err(Reason::GenerationRace),
    };
    let (addr_be, port_be) = (choice.backend.addr_be(), choice.backend.port_be());
    let mut flow = new_flow(tuple, service, FlowFlags::DESTINATION, tables.now_ns());
    if stays_here(tables, node, addr_be) {
        let key = Tuple::new(addr_be, port_be, tuple.src_be, tuple.sport_be, tuple.proto);
        add_or_take_over(tables, &key, &flow)?;
        index(tables, tuple, &key)?;
        return Ok((key.reversed(), Reason::NodePortLocal));
    }
    flow.flags |= FlowFlags::SOURCE;
    let key = with_source_port(tables, node, addr_be, port_be, &flow)?;
    index(tables, tuple, &key)?;
    Ok((key.reversed(), Reason::NodePortRemote))
}

/// A packet leaves by the uplink.
#[inline(always)]
pub fn egress<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(node) = tables.node() else { return Verdict::Pass(Reason::UplinkPass) };
    let Some(header) = Header::parse(packet) else { return Verdict::Pass(Reason::UplinkMalformed) };
    let from_pod = node.is_local_pod(header.src_be);
    if node.addr_be == 0 || !(from_pod || is_own(tables, node, header.src_be)) {
        return Verdict::Pass(Reason::UplinkPass);
    }
    let outside = from_pod && is_outside(tables, node, header.dst_be);
    // What must leave under the node's address and cannot is dropped: nobody could answer it.
    let no_flow =
        if outside { Verdict::Drop(Reason::MasqueradeNoFlow) } else { Verdict::Pass(Reason::UplinkPass) };
    if header.later_fragment {
        return if outside {
            Verdict::Drop(Reason::UplinkFragment)
        } else {
            Verdict::Pass(Reason::UplinkFragment)
        };
    }
    match header.transport(packet) {
        Some(Transport::Flow { tuple, tcp_flags }) => {
            match resolve_egress(tables, node, &tuple, tcp_flags, outside) {
                Ok((to, reason)) => match translate(packet, &header, &tuple, &to, Hops::Keep) {
                    Some(()) => Verdict::Pass(reason),
                    None => Verdict::Drop(Reason::RewriteFailed),
                },
                Err(reason) if outside => Verdict::Drop(reason),
                Err(reason) => Verdict::Pass(reason),
            }
        }
        Some(Transport::IcmpError) => {
            let Some(error) = icmp::parse(packet, tables, &header, node) else { return no_flow };
            match icmp::translate(packet, &header, &error, Hops::Keep) {
                Some(()) => Verdict::Pass(Reason::IcmpError),
                None => Verdict::Drop(Reason::RewriteFailed),
            }
        }
        Some(Transport::Other) => no_flow,
        None if outside => Verdict::Drop(Reason::UplinkMalformed),
        None => Verdict::Pass(Reason::UplinkMalformed),
    }
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
    // other side refuses it; a reset that belongs to nothing would only fill the table.
    if tcp_flags & tcp::RST != 0 {
        return Err(Reason::MasqueradeNoFlow);
    }
    let flow = new_flow(tuple, Flow::NO_SERVICE, FlowFlags::SOURCE, tables.now_ns());
    let key = with_source_port(tables, node, tuple.dst_be, tuple.dport_be, &flow)?;
    index(tables, tuple, &key)?;
    Ok((key.reversed(), Reason::Masqueraded))
}

#[inline(always)]
fn ingress_error<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    node: &NodeConfig,
    header: &Header,
) -> Verdict {
    let Some(error) = icmp::parse(packet, tables, header, node) else {
        return Verdict::Pass(Reason::UplinkPass);
    };
    let way = Way::to(tables, node, error.dst_be);
    if way.is_hop() && header.ttl <= 1 {
        return Verdict::Drop(Reason::TtlExceeded);
    }
    match icmp::translate(packet, header, &error, way.hops()) {
        None => Verdict::Drop(Reason::RewriteFailed),
        Some(()) => way.verdict(Reason::IcmpError),
    }
}

/// How a translated packet goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Stack,
    /// Out again: it now comes from this node, which the stack would take for forged.
    Uplink,
    /// To the pods, on a host that is only their gateway.
    Inner,
}

impl Way {
    #[inline(always)]
    fn to<T: Tables>(tables: &T, node: &NodeConfig, dst_be: u32) -> Self {
        if node.is_local_pod(dst_be) {
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
    fn hops(self) -> Hops {
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
    node.is_local_pod(addr_be) || is_own(tables, node, addr_be)
}

/// Whether pods reach an address under the node's. Group and broadcast addresses are nobody's to answer.
#[inline(always)]
fn is_outside<T: Tables>(tables: &T, node: &NodeConfig, addr_be: u32) -> bool {
    node.flags & NodeFlags::MASQUERADE != 0
        && !node.is_pod(addr_be)
        && addr_be.to_ne_bytes()[0] < 224
        && tables.node_class(addr_be) == 0
}

#[inline(always)]
fn new_flow(forward: &Tuple, service: u32, flags: u8, now_ns: u64) -> Flow {
    Flow { forward: *forward, last_ns: now_ns, service, state: FlowState::Opening as u8, flags, zero: [0; 2] }
}

/// Adds a flow whose reply tuple is given by client and backend. The tuple may be taken by the same flow,
/// begun on another CPU, or by one that is over.
#[inline(always)]
fn add_or_take_over<T: Tables>(tables: &T, key: &Tuple, flow: &Flow) -> Result<(), Reason> {
    match tables.add_flow(key, flow) {
        Ok(()) => Ok(()),
        Err(NotAdded::Full) => Err(Reason::FlowTableFull),
        Err(NotAdded::Exists) => {
            let Some(record) = tables.flow(key) else { return Err(Reason::ReplyTaken) };
            let old = record.get();
            if old.state == FlowState::Closed as u8 || flow::expired(&old, flow.last_ns) {
                record.replace(flow);
                return Ok(());
            }
            if old.forward == flow.forward { Ok(()) } else { Err(Reason::ReplyTaken) }
        }
    }
}

/// Adds a flow towards a destination under a source port of the node that is free there: its own where
/// that lies in the range, else one by chance.
#[inline(always)]
fn with_source_port<T: Tables>(
    tables: &T,
    node: &NodeConfig,
    dst_be: u32,
    dport_be: u16,
    flow: &Flow,
) -> Result<Tuple, Reason> {
    let first = u32::from(node.snat_first);
    let ports = u32::from(node.snat_last).wrapping_sub(first).wrapping_add(1) & 0xFFFF;
    let own = u32::from(u16::from_be(flow.forward.sport_be)).wrapping_sub(first);
    let mut tries = 0;
    while tries < PORT_TRIES {
        let by_chance = ((u64::from(tables.random()) * u64::from(ports)) >> 32) as u32;
        let offset = if tries == 0 && own < ports { own } else { by_chance };
        let port_be = ((first + offset) as u16).to_be();
        let key = Tuple::new(dst_be, dport_be, node.addr_be, port_be, flow.forward.proto);
        match tables.add_flow(&key, flow) {
            Ok(()) => return Ok(key),
            Err(NotAdded::Full) => return Err(Reason::FlowTableFull),
            Err(NotAdded::Exists) => tries += 1,
        }
    }
    Err(Reason::NoSourcePort)
}

/// Leads forward packets to a new record, or takes the record back.
#[inline(always)]
fn index<T: Tables>(tables: &T, forward: &Tuple, key: &Tuple) -> Result<(), Reason> {
    match tables.set_forward(forward, key) {
        Ok(()) => Ok(()),
        Err(_) => {
            tables.remove_flow(key);
            Err(Reason::FlowTableFull)
        }
    }
}
