//! IPv6 addresses in the maps, each with a stand-in that the rest of them is made of (see `pith_abi::Address6`).
//!
//! ```text
//!  unknown ──a plan names it──► used ──no plan names it──► resting ──minutes later──► unknown
//!                                 ▲──────a plan names it──────┘
//! ```
//! Programs give stand-ins by the same rule to whom flows begin with, so that an address may have one before it is
//! known here, and keep it afterwards.
//!
//! Invariant: an address keeps its stand-in for as long as it is used or resting, also over a restart.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
};

use pith_abi::{Frontend, StandIn};

use crate::{
    maps::{MapAccess, ServiceMaps},
    plan::{Group, Group6, GroupKey, Six},
    service::ServiceName,
};

/// Rounds of collection for which an address rests: two minutes, in which programs that are late and clients that
/// hold on to a backend have long gone.
const ROUNDS: u64 = 24;

#[derive(Debug, Default)]
pub(crate) struct StandIns {
    known: HashMap<Ipv6Addr, Known>,
    /// Addresses that each Service's plan names.
    used: HashMap<ServiceName, BTreeSet<Ipv6Addr>>,
    /// In the order in which they began to rest, with that round.
    resting: VecDeque<(u64, Ipv6Addr)>,
    /// How many addresses plans may name.
    limit: u32,
    round: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    standin: StandIn,
    /// How many Services use it.
    services: usize,
    /// Since when it rests, where none does.
    since: u64,
}

/// As many are known as may be, or the maps refuse.
#[derive(Debug)]
pub(crate) enum NoStandIn {
    Full,
    Map(MapAccess),
}

/// A plan's IPv6 part, as the maps hold it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) groups: BTreeMap<GroupKey, Group>,
    pub(crate) frontends: BTreeMap<Frontend, GroupKey>,
    pub(crate) addresses: BTreeSet<Ipv4Addr>,
}

impl StandIns {
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, ..Self::default() }
    }

    /// How many addresses are known.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// The stand-ins of all of them.
    pub(crate) fn all(&self) -> HashSet<StandIn> {
        self.known.values().map(|known| known.standin).collect()
    }

    /// The stand-in of an address that a plan names.
    pub(crate) fn of(&self, address: Ipv6Addr) -> Option<StandIn> {
        self.known.get(&address).map(|known| known.standin)
    }

    /// Gives every address of a Service's plan its stand-in, and says why some have none: what needs those is left
    /// out. The addresses of its former plan keep theirs until [`StandIns::settle`].
    pub(crate) fn resolve(
        &mut self,
        maps: &mut impl ServiceMaps,
        service: &ServiceName,
        six: &Six,
    ) -> (Resolved, Option<NoStandIn>) {
        let mut lacking = None;
        for address in six.addresses() {
            if self.used.get(service).is_some_and(|used| used.contains(&address)) {
                continue;
            }
            match self.take(maps, address) {
                Ok(()) => drop(self.used.entry(service.clone()).or_default().insert(address)),
                Err(error) => lacking = Some(error),
            }
        }
        let groups = six.groups.iter().map(|(key, group)| (key.clone(), self.group(group)));
        let frontends = six.frontends.iter().filter_map(|(frontend, key)| {
            let addr_be = match frontend.address {
                Some(address) => self.of(address)?.addr_be,
                None => 0,
            };
            let place = Frontend::new(addr_be, frontend.port.to_be(), frontend.protocol.number());
            Some((place.scoped(frontend.scope), key.clone()))
        });
        let addresses = six.inside.iter().filter_map(|address| self.of(*address)).map(shown);
        let resolved = Resolved {
            groups: groups.collect(),
            frontends: frontends.collect(),
            addresses: addresses.collect(),
        };
        (resolved, lacking)
    }

    /// The plan is in the maps: addresses that it does not name begin to rest.
    pub(crate) fn settle(&mut self, service: &ServiceName, six: &Six) {
        let Some(used) = self.used.get_mut(service) else { return };
        let named: BTreeSet<Ipv6Addr> = six.addresses().collect();
        let left: Vec<Ipv6Addr> = used.difference(&named).copied().collect();
        used.retain(|address| named.contains(address));
        if used.is_empty() {
            self.used.remove(service);
        }
        for address in left {
            let Some(known) = self.known.get_mut(&address) else { continue };
            known.services -= 1;
            if known.services == 0 {
                known.since = self.round;
                self.resting.push_back((self.round, address));
            }
        }
    }

    /// A round has passed. What is forgotten here is taken from the maps when no flow has it any more.
    pub(crate) fn tick(&mut self) {
        self.round += 1;
        while let Some((since, address)) = self.resting.front().copied()
            && since + ROUNDS < self.round
        {
            // One that was used again since, and rests again, stands further back.
            if let Some(known) = self.known.get(&address)
                && known.services == 0
                && known.since == since
            {
                self.known.remove(&address);
            }
            self.resting.pop_front();
        }
    }

    fn take(&mut self, maps: &mut impl ServiceMaps, address: Ipv6Addr) -> Result<(), NoStandIn> {
        if let Some(known) = self.known.get_mut(&address) {
            known.services += 1;
            return Ok(());
        }
        if self.known.len() >= self.limit as usize {
            return Err(NoStandIn::Full);
        }
        let standin = match maps.stand_in(address) {
            Err(MapAccess::Full { .. }) => return Err(NoStandIn::Full),
            other => other.map_err(NoStandIn::Map)?,
        };
        self.known.insert(address, Known { standin, services: 1, since: 0 });
        Ok(())
    }

    fn group(&self, six: &Group6) -> Group {
        let weight = |at: usize| six.like.weights.get(at).copied();
        let known = six.backends.iter().enumerate().filter_map(|(at, place)| Some((at, self.place(place)?)));
        let known: Vec<(usize, SocketAddrV4)> = known.collect();
        let mut others: Vec<SocketAddrV4> = six.others.iter().filter_map(|place| self.place(place)).collect();
        others.sort_unstable();
        Group {
            weights: known.iter().filter_map(|(at, _)| weight(*at)).collect(),
            backends: known.into_iter().map(|(_, place)| place).collect(),
            others,
            ..six.like.clone()
        }
    }

    /// The stand-in's, where the address has one.
    fn place(&self, place: &SocketAddrV6) -> Option<SocketAddrV4> {
        Some(SocketAddrV4::new(shown(self.of(*place.ip())?), place.port()))
    }
}

/// As the maps' other addresses are handled.
fn shown(standin: StandIn) -> Ipv4Addr {
    Ipv4Addr::from(standin.addr_be.to_ne_bytes())
}
