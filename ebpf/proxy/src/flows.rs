//! Collects flows that are over.
//!
//! Invariant: a record goes before its index, so that a packet between the two finds no flow rather than
//! half of one. Programs go on without this process; flows then only stay longer than they need.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use aya::maps::MapError;
use pith_abi::{Flow, FlowFlags, FlowState, Known6, StandIn, Tuple, map_name};
use pith_core::flow;

use crate::{
    live::{address, place},
    maps::{MapAccess, Maps, ServiceMaps},
};

/// How often flows that are over are collected.
pub(crate) const COLLECT_EVERY: Duration = Duration::from_secs(5);

/// Where the first packet of a flow wanted to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub place: SocketAddrV4,
    /// Number from [`pith_abi::proto`].
    pub protocol: u8,
}

impl Asked {
    fn by(first: &Tuple) -> Self {
        Self { place: place(first.dst_be, first.dport_be), protocol: first.proto }
    }
}

/// What a round of collection came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Flows that go on.
    pub live: usize,
    /// Flows that were over.
    pub ended: usize,
    /// Indexes that led nowhere.
    pub orphans: usize,
    /// Of those that go on, the ones that began at pods' links.
    pub at_pods: usize,
    /// Flows that are handed on to other nodes.
    pub handed_on: usize,
}

/// Removes what is over at `now_ns`, on the clock of `bpf_ktime_get_ns`.
///
/// `serves` says whether a Service, by its index or by where it was asked, still has a backend, be it draining. Flows to one that is gone end at once: the next datagram is led elsewhere, the next segment is
/// refused. Without that, clients would send into the void for as long as they keep sending. `hands_on` says the same
/// of what is handed on, by where it was asked and the address of the node.
pub(crate) fn collect(
    maps: &mut Maps,
    now_ns: u64,
    serves: impl Fn(u32, Asked, SocketAddrV4) -> bool,
    hands_on: impl Fn(Asked, Ipv4Addr) -> bool,
) -> Result<Collected, MapError> {
    let mut collected = Collected::default();
    let mut ended = Vec::new();
    for entry in maps.flows.iter() {
        let (key, flow) = entry?;
        if is_over(&key, &flow, now_ns, &serves) {
            ended.push((key, flow.forward));
        } else {
            collected.live += 1;
            collected.at_pods += usize::from(flow.flags & FlowFlags::AT_POD != 0);
        }
    }
    for (key, forward) in ended {
        forget(maps.flows.remove(&key))?;
        if maps.forward.get(&forward, 0).is_ok_and(|leads_to| leads_to == key) {
            forget(maps.forward.remove(&forward))?;
        }
        collected.ended += 1;
    }
    let mut orphans = Vec::new();
    for entry in maps.forward.iter() {
        let (forward, key) = entry?;
        if !maps.flows.get(&key, 0).is_ok_and(|flow| flow.forward == forward) {
            orphans.push(forward);
        }
    }
    for forward in orphans {
        forget(maps.forward.remove(&forward))?;
        collected.orphans += 1;
    }
    let mut ended = Vec::new();
    for entry in maps.handed_on.iter() {
        let (first, flow) = entry?;
        let state = FlowState::from_raw(flow.state);
        if flow::silent(first.proto, state, flow.last_ns, now_ns)
            || !hands_on(Asked::by(&first), address(flow.node_be))
        {
            ended.push(first);
        } else {
            collected.handed_on += 1;
        }
    }
    for first in ended {
        forget(maps.handed_on.remove(&first))?;
        collected.ended += 1;
    }
    Ok(collected)
}

/// How long an address is left alone that a program has just kept: a flow is about to begin with it.
const ADDRESS_RESTS_NS: u64 = 60_000_000_000;

/// Removes IPv6 addresses that are neither `known` nor those of any flow. Returns how many.
pub(crate) fn collect_addresses(
    maps: &mut Maps,
    now_ns: u64,
    known: &HashSet<StandIn>,
) -> Result<usize, MapAccess> {
    let unused = |known: &Known6| now_ns.saturating_sub(known.used_ns) > ADDRESS_RESTS_NS;
    let mut candidates: HashSet<StandIn> = maps
        .addresses()?
        .into_iter()
        .filter(|(standin, found)| !known.contains(standin) && unused(found))
        .map(|(standin, _)| standin)
        .collect();
    if candidates.is_empty() {
        return Ok(0);
    }
    let mut used = |tuple: &Tuple| {
        for addr_be in [tuple.src_be, tuple.dst_be] {
            candidates.remove(&StandIn { addr_be });
        }
    };
    for entry in maps.flows.iter() {
        let (key, flow) = entry.map_err(|source| MapAccess::Kernel { map: map_name::FLOWS, source })?;
        used(&key);
        used(&flow.forward);
    }
    let mut removed = 0;
    for standin in candidates {
        // It may have been used meanwhile.
        if maps.known(standin)?.is_some_and(|known| unused(&known)) {
            maps.forget_address(standin)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn is_over(
    key: &Tuple,
    flow: &Flow,
    now_ns: u64,
    serves: &impl Fn(u32, Asked, SocketAddrV4) -> bool,
) -> bool {
    let to_service = flow.flags & FlowFlags::DESTINATION != 0 && flow.service != Flow::NO_SERVICE;
    let served = || serves(flow.service, Asked::by(&flow.forward), place(key.src_be, key.sport_be));
    flow::expired(flow, now_ns) || (to_service && !served())
}

/// Removing what a program has removed already is no failure.
fn forget(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Now, on the clock of `bpf_ktime_get_ns`.
pub(crate) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use pith_abi::proto;

    use super::*;

    #[test]
    fn over_table() {
        const SECOND: u64 = 1_000_000_000;
        let key = |proto| Tuple::new(1, 2, 3, 4, proto);
        let flow = |proto, flags, state: FlowState| Flow {
            forward: Tuple::new(5, 6, 7, 8, proto),
            last_ns: 1_000 * SECOND,
            service: 9,
            state: state as u8,
            flags,
            zero: [0; 2],
        };
        let open = FlowState::Open;
        let cases = [
            ("udp, backend gone", proto::UDP, FlowFlags::DESTINATION, open, 1, false, true),
            ("udp, backend there", proto::UDP, FlowFlags::DESTINATION, open, 1, true, false),
            ("udp, masqueraded", proto::UDP, FlowFlags::SOURCE, open, 1, false, false),
            ("udp, silent", proto::UDP, FlowFlags::SOURCE, open, 121, true, true),
            ("tcp, backend gone", proto::TCP, FlowFlags::DESTINATION, open, 1, false, true),
            ("tcp, an hour of silence", proto::TCP, FlowFlags::DESTINATION, open, 3600, true, false),
            ("tcp, reset", proto::TCP, FlowFlags::DESTINATION, FlowState::Closed, 11, true, true),
        ];
        for (name, proto, flags, state, age, served, expect) in cases {
            let now = (1_000 + age) * SECOND;
            let over = is_over(&key(proto), &flow(proto, flags, state), now, &|_, _, _| served);
            assert_eq!(over, expect, "{name}");
        }
    }
}
