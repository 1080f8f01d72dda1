//! Direct server return: packets from outside are handed on as they came to the node of a backend, and that node
//! answers the client itself.
//!
//! ```text
//!  client ──► asked node ── as it came, the first packet marked ──► backend's node ──► backend
//!    ▲        its Service's slot is a node                          chooses among its own     │
//!    └───────────────── under the address that the client asked ◄────────────────────────────┘
//! ```
//! A slot that is a node stands for one backend there, so that weights, Maglev tables and affinity choose nodes as
//! they choose backends. Nothing is translated at the asked node, hence the backend sees its client; nor does a reply
//! come by there, and all it remembers is where a flow went. At the backend's node such a flow is like any other.
//!
//! Invariant: a marked packet is not handed on, so that first packets do not go round. Those that follow are handed on
//! without a mark, which would keep the backend's node from joining segments (GRO); every one is a hop, so that they
//! come to an end even if two nodes remember different things.

use pith_abi::{FlowState, HandedOn, Hook, Reason, Tuple, proto};

use crate::{
    Packet, Tables, Verdict,
    flow::{self, Direction},
    fragment,
    packet::{Header, tcp},
};

/// A packet that is handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hand {
    node_be: u32,
    marked: bool,
    reason: Reason,
}

/// A packet of a flow that is handed on.
#[inline(always)]
pub(crate) fn known<T: Tables>(tables: &T, tuple: &Tuple, tcp_flags: u8) -> Option<Hand> {
    let flow = tables.handed_on(tuple)?;
    let state = FlowState::from_raw(flow.state);
    let opens = tcp::opens(tcp_flags);
    // A new connection from the port of one that is over has to be balanced anew.
    if opens && matches!(state, FlowState::ClosedByFirst | FlowState::Closed) {
        return None;
    }
    let now_ns = tables.now_ns();
    let aged = flow::aged(flow.last_ns, now_ns);
    // Who goes on has been answered. A datagram may be the first one once more.
    let answered = if tuple.proto == proto::TCP { !opens } else { aged };
    let opening = state as u8 == FlowState::Opening as u8;
    let seen = if opening && answered { FlowState::Open } else { state };
    let next = flow::step(seen, Direction::Forward, tcp_flags);
    if next as u8 != state as u8 || aged {
        tables.note_handed_on(tuple, next, now_ns);
    }
    let marked = opening && !answered;
    Some(Hand { node_be: flow.node_be, marked, reason: Reason::DirectForward })
}

/// Begins a flow that is handed on to a node.
#[inline(always)]
pub(crate) fn begin<T: Tables>(tables: &T, tuple: &Tuple, node_be: u32) -> Result<Hand, Reason> {
    let flow = HandedOn { last_ns: tables.now_ns(), node_be, state: FlowState::Opening as u8, zero: [0; 3] };
    match tables.set_handed_on(tuple, &flow) {
        Ok(()) => Ok(Hand { node_be, marked: true, reason: Reason::DirectBegun }),
        Err(_) => Err(Reason::FlowTableFull),
    }
}

/// Where an ICMP error goes that is about a reply of such a flow: the node that sent the reply has to hear of it.
#[inline(always)]
pub(crate) fn error<P: Packet, T: Tables>(packet: &P, tables: &T, header: &Header) -> Option<Hand> {
    let reply = packet.inside(header)?;
    let node_be = tables.handed_on(&reply.reversed())?.node_be;
    Some(Hand { node_be, marked: false, reason: Reason::IcmpError })
}

#[inline(always)]
pub(crate) fn carry_out<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    header: &Header,
    hand: Hand,
) -> Verdict {
    let Hand { node_be, marked, reason } = hand;
    if header.ttl <= 1 {
        return Verdict::Drop(Reason::TtlExceeded);
    }
    if fragment::lead_waiting(tables, header, 0, node_be, Hook::UPLINK_INGRESS) {
        return Verdict::Release(Reason::FragmentsReleased);
    }
    match packet.hand_on(header, marked) {
        Some(()) => Verdict::HandOn(reason, node_be),
        None => Verdict::Drop(Reason::RewriteFailed),
    }
}

/// A piece of a datagram, other than the first, which was handed on.
#[inline(always)]
pub(crate) fn fragment<P: Packet>(packet: &mut P, header: &Header, node_be: u32) -> Verdict {
    if header.ttl <= 1 {
        return Verdict::Drop(Reason::TtlExceeded);
    }
    match packet.hand_on(header, false) {
        Some(()) => Verdict::HandOn(Reason::FragmentTranslated, node_be),
        None => Verdict::Drop(Reason::RewriteFailed),
    }
}
