//! Life of a translated flow.
//!
//! ```text
//!            reply             FIN first            FIN other
//! Opening ─────────► Open ───────────────► ClosedByFirst ─────┐
//!    │                │  └───────────────► ClosedByOther ───┐ │
//!    │                │       FIN other        FIN first    ▼ ▼
//!    └──── RST ───────┴──────── RST, from either ───────► Closed
//!                                                            │ SYN first
//!                                    Opening ◄───────────────┘
//! ```
//! A flow that saw no packet for [`timeout_ns`] is over.

use pith_abi::{Flow, FlowState, Tuple, proto};

use crate::{
    Record, Tables,
    packet::tcp::{self, FIN, RST},
};

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As the flow's first packet.
    Forward,
    Reply,
}

const SECOND_NS: u64 = 1_000_000_000;

/// The record of a live flow is written at most this often when only its age changes, so that CPUs
/// that share the flow do not fight for its cache line.
const TOUCH_NS: u64 = SECOND_NS;

/// Whether a record that was written at `last_ns` is to be written again, whatever else a packet does.
#[inline(always)]
pub(crate) fn aged(last_ns: u64, now_ns: u64) -> bool {
    now_ns.wrapping_sub(last_ns) > TOUCH_NS
}

/// State after a packet.
#[inline(always)]
pub fn step(state: FlowState, direction: Direction, tcp_flags: u8) -> FlowState {
    use Direction::{Forward, Reply};
    use FlowState::{Closed, ClosedByFirst, ClosedByOther, Open, Opening};

    if tcp_flags & RST != 0 {
        return Closed;
    }
    let fin = tcp_flags & FIN != 0;
    match (state, direction) {
        (Closed, Forward) if tcp::opens(tcp_flags) => Opening,
        (Closed, Forward | Reply) => Closed,
        (Opening, Forward) if fin => ClosedByFirst,
        (Opening, Forward) => Opening,
        (Opening | Open, Reply) if fin => ClosedByOther,
        (Opening | Open, Reply) => Open,
        (Open, Forward) if fin => ClosedByFirst,
        (Open, Forward) => Open,
        (ClosedByFirst, Reply) if fin => Closed,
        (ClosedByFirst, Forward | Reply) => ClosedByFirst,
        (ClosedByOther, Forward) if fin => Closed,
        (ClosedByOther, Forward | Reply) => ClosedByOther,
    }
}

/// How long a flow may be silent before it is over. For TCP the established time is what RFC 5382 asks
/// of address translators (2 h 4 min); the others are those of Linux connection tracking, except that a
/// closed flow is kept for 10 s only: its last segments may come twice, but nothing answers them.
#[inline(always)]
pub const fn timeout_ns(proto: u8, state: FlowState) -> u64 {
    let seconds = match (proto, state) {
        (proto::TCP, FlowState::Opening) => 120,
        (proto::TCP, FlowState::Open) => 2 * 3600 + 4 * 60,
        (proto::TCP, FlowState::ClosedByFirst | FlowState::ClosedByOther) => 120,
        (proto::TCP, FlowState::Closed) => 10,
        (proto::UDP, FlowState::Open) => 120,
        (proto::SCTP, FlowState::Open) => 210,
        (_, _) => 30,
    };
    seconds * SECOND_NS
}

/// Whether a flow is over.
#[inline(always)]
pub const fn expired(flow: &Flow, now_ns: u64) -> bool {
    silent(flow.forward.proto, FlowState::from_raw(flow.state), flow.last_ns, now_ns)
}

/// Whether a flow of which nothing was seen since `last_ns` is over.
#[inline(always)]
pub const fn silent(proto: u8, state: FlowState, last_ns: u64, now_ns: u64) -> bool {
    now_ns.saturating_sub(last_ns) > timeout_ns(proto, state)
}

/// Notes a packet in a flow's record.
#[inline(always)]
fn note(record: &impl Record, flow: &Flow, direction: Direction, tcp_flags: u8, now_ns: u64) {
    let state = FlowState::from_raw(flow.state);
    let next = step(state, direction, tcp_flags);
    if next as u8 != state as u8 || aged(flow.last_ns, now_ns) {
        record.set_life(next, now_ns);
    }
}

/// A packet's place in a known flow.
pub(crate) struct Known<R> {
    record: R,
    pub(crate) flow: Flow,
    direction: Direction,
    pub(crate) key: Tuple,
}

impl<R: Record> Known<R> {
    #[inline(always)]
    pub(crate) fn note(&self, tcp_flags: u8, now_ns: u64) {
        note(&self.record, &self.flow, self.direction, tcp_flags, now_ns);
    }
}

#[inline(always)]
pub(crate) fn find_forward<'t, T: Tables>(
    tables: &'t T,
    tuple: &Tuple,
    tcp_flags: u8,
) -> Option<Known<T::Record<'t>>> {
    let key = tables.forward(tuple)?;
    let record = tables.flow(&key)?;
    let flow = record.get();
    // The index may be older than the record: ports are used again.
    if flow.forward != *tuple {
        return None;
    }
    // A new connection from the port of a closed one has to be balanced anew.
    if flow.state == FlowState::Closed as u8 && tcp::opens(tcp_flags) {
        return None;
    }
    Some(Known { record, flow, direction: Direction::Forward, key })
}

#[inline(always)]
pub(crate) fn find_reply<'t, T: Tables>(tables: &'t T, tuple: &Tuple) -> Option<Known<T::Record<'t>>> {
    let record = tables.flow(tuple)?;
    let flow = record.get();
    Some(Known { record, flow, direction: Direction::Reply, key: *tuple })
}

/// A forward packet of a known flow: the key of its record.
#[inline(always)]
pub fn forward<T: Tables>(tables: &T, tuple: &Tuple, tcp_flags: u8) -> Option<Tuple> {
    let known = find_forward(tables, tuple, tcp_flags)?;
    known.note(tcp_flags, tables.now_ns());
    Some(known.key)
}

/// A reply packet of a known flow: the tuple its flow's first packet had.
#[inline(always)]
pub fn reply<T: Tables>(tables: &T, tuple: &Tuple, tcp_flags: u8) -> Option<Tuple> {
    let known = find_reply(tables, tuple)?;
    known.note(tcp_flags, tables.now_ns());
    Some(known.flow.forward)
}
