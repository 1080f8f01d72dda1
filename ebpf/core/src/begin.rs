//! How a translated flow begins: a reply tuple that is nobody else's, a record under it, an index that leads
//! there.

use core::hint::black_box;

use pith_abi::{Flow, FlowFlags, FlowState, NodeConfig, Reason, Tuple};

use crate::{NotAdded, Record, Tables, flow};

/// Source ports tried before a flow is given up. With half of the range taken towards one destination the
/// chance that all are taken is 2^-16.
const PORT_TRIES: u32 = 16;

/// Under which address the other side sees the sender of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Source {
    /// Its own, and its own port unless another flow would get the same replies.
    Own = 1,
    /// The node's.
    Node,
    /// The address it asked for: a pod that reaches itself must not see itself as the sender.
    Asked,
}

/// Where the first packet of a flow is led. The order of the fields is part of [`begin`]'s trick: the verifier
/// remembers constants that are stored where a word begins, and those here stand elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Start {
    pub(crate) addr_be: u32,
    /// Index into SERVICES, or [`Flow::NO_SERVICE`].
    pub(crate) service: u32,
    pub(crate) word: u8,
    pub(crate) source: Source,
    /// [`FlowFlags`].
    pub(crate) flags: u8,
    pub(crate) reason: Reason,
    pub(crate) port_be: u16,
}

impl Start {
    /// To this node's own stack: to a port at which nobody can listen, so that it refuses, or, for a ping,
    /// so that it answers. What it says is translated back like any reply.
    #[inline(always)]
    pub(crate) fn answer(node: &NodeConfig, reason: Reason) -> Self {
        Self {
            source: Source::Own,
            addr_be: node.addr_be,
            port_be: 0,
            word: 0,
            service: Flow::NO_SERVICE,
            flags: FlowFlags::DESTINATION,
            reason,
        }
    }
}

/// Begins a flow, returns what its first packet becomes. It is the largest part of a program: to be called in
/// one place of each, once it is decided where the packet is led.
#[inline(always)]
pub(crate) fn begin<T: Tables>(
    tables: &T,
    node: &NodeConfig,
    tuple: &Tuple,
    start: &Start,
) -> Result<(Tuple, Reason), Reason> {
    // Else the verifier walks all of this once for each way that leads here.
    let start = &black_box(*start);
    if tables.begins().is_err() {
        return Err(Reason::FlowTableFull);
    }
    let flow = Flow {
        forward: *tuple,
        last_ns: tables.now_ns(),
        service: start.service,
        state: FlowState::Opening as u8,
        flags: start.flags,
        zero: [0; 2],
    };
    let key = with_source_port(tables, node, start, &flow)?;
    match tables.set_forward(tuple, &key) {
        Ok(()) => Ok((key.reversed(), start.reason)),
        Err(_) => {
            tables.remove_flow(&key);
            Err(Reason::FlowTableFull)
        }
    }
}

/// Adds a flow under a source port that is free towards its destination: its own where that may be used, else
/// one by chance.
#[inline(always)]
fn with_source_port<T: Tables>(
    tables: &T,
    node: &NodeConfig,
    start: &Start,
    flow: &Flow,
) -> Result<Tuple, Reason> {
    let forward = &flow.forward;
    let src_be = match start.source {
        Source::Own => forward.src_be,
        Source::Node => node.addr_be,
        Source::Asked => forward.dst_be,
    };
    let first = u32::from(node.snat_first);
    let ports = u32::from(node.snat_last).wrapping_sub(first).wrapping_add(1) & 0xFFFF;
    let own = u32::from(u16::from_be(forward.sport_be)).wrapping_sub(first);
    let mut key = Tuple::new(start.addr_be, start.port_be, src_be, forward.sport_be, forward.proto);
    // Ports of the node outside the range are its own sockets'.
    if !matches!(start.source, Source::Node) || own < ports {
        match add_or_take_over(tables, &key, flow) {
            Ok(()) => return Ok(key),
            Err(NotAdded::Full) => return Err(Reason::FlowTableFull),
            Err(NotAdded::Exists) => {}
        }
    }
    let mut tries = 0;
    while tries < PORT_TRIES {
        let by_chance = first + ((u64::from(tables.random()) * u64::from(ports)) >> 32) as u32;
        key.dport_be = (by_chance as u16).to_be();
        match tables.add_flow(&key, flow) {
            Ok(()) => return Ok(key),
            Err(NotAdded::Full) => return Err(Reason::FlowTableFull),
            Err(NotAdded::Exists) => tries += 1,
        }
    }
    Err(Reason::NoSourcePort)
}

/// The tuple of a flow's own port may be taken by the same flow, begun on another CPU, or by one that is
/// over.
#[inline(always)]
fn add_or_take_over<T: Tables>(tables: &T, key: &Tuple, flow: &Flow) -> Result<(), NotAdded> {
    match tables.add_flow(key, flow) {
        Err(NotAdded::Exists) => {
            let Some(record) = tables.flow(key) else { return Err(NotAdded::Exists) };
            let old = record.get();
            if old.state == FlowState::Closed as u8 || flow::expired(&old, flow.last_ns) {
                record.replace(flow);
                return Ok(());
            }
            if old.forward == flow.forward { Ok(()) } else { Err(NotAdded::Exists) }
        }
        other => other,
    }
}
