//! IPv6 addresses in the maps, each with a stand-in that the rest of them is made of (see `pith_abi::Address6`).
//!
//! ```text
//!  unknown ──a plan names it──► used ──no plan names it──► resting ──minutes later──► unknown
//!                                 ▲──────a plan names it──────┘
//! ```
//! Invariant: an address keeps its stand-in for as long as it is used or resting, also over a restart. A stand-in
//! that became free waits until every other was given: sockets may remember it for as long as they live.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
};

use pith_abi::{Address6, Frontend, Scope, StandIn};

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
    free: VecDeque<u32>,
    /// The first index that was never given.
    next: u32,
    /// How many elements ADDRESSES has; the first is none's.
    size: u32,
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

/// No stand-in is free, or the maps refuse.
#[derive(Debug)]
pub(crate) enum NoStandIn {
    Full,
    Map(MapAccess),
}

/// Groups and frontends of a plan's IPv6 part, as the maps hold them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) groups: BTreeMap<GroupKey, Group>,
    pub(crate) frontends: BTreeMap<Frontend, GroupKey>,
}

impl StandIns {
    /// Takes over what the maps hold; what no plan names in time is forgotten.
    pub(crate) fn adopt(maps: &impl ServiceMaps, size: u32) -> Result<Self, MapAccess> {
        let mut standins = Self { size, next: 1, ..Self::default() };
        for (address, standin) in maps.addresses()? {
            let address = Ipv6Addr::from(address.octets());
            standins.next = standins.next.max(standin.index() + 1);
            standins.known.insert(address, Known { standin, services: 0, since: 0 });
            standins.resting.push_back((0, address));
        }
        let given: BTreeSet<u32> = standins.known.values().map(|known| known.standin.index()).collect();
        standins.free = (1..standins.next).filter(|index| !given.contains(index)).collect();
        Ok(standins)
    }

    /// How many addresses are known.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
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
        let frontends = six.frontends.iter().filter_map(|((place, protocol), key)| {
            let place = self.place(place)?;
            let addr_be = u32::from_ne_bytes(place.ip().octets());
            let frontend = Frontend::new(addr_be, place.port().to_be(), protocol.number());
            Some((frontend.scoped(Scope::INSIDE6), key.clone()))
        });
        (Resolved { groups: groups.collect(), frontends: frontends.collect() }, lacking)
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

    /// A round has passed.
    pub(crate) fn tick(&mut self, maps: &mut impl ServiceMaps) -> Result<(), MapAccess> {
        self.round += 1;
        while let Some((since, address)) = self.resting.front().copied()
            && since + ROUNDS < self.round
        {
            // One that was used again since, and rests again, stands further back.
            if let Some(known) = self.known.get(&address)
                && known.services == 0
                && known.since == since
            {
                maps.remove_address(Address6::from_octets(address.octets()))?;
                self.free.push_back(known.standin.index());
                self.known.remove(&address);
            }
            self.resting.pop_front();
        }
        Ok(())
    }

    fn take(&mut self, maps: &mut impl ServiceMaps, address: Ipv6Addr) -> Result<(), NoStandIn> {
        if let Some(known) = self.known.get_mut(&address) {
            known.services += 1;
            return Ok(());
        }
        let fresh = (self.next < self.size.min(StandIn::MAX)).then_some(self.next);
        let index = fresh.or_else(|| self.free.front().copied()).ok_or(NoStandIn::Full)?;
        let standin = StandIn::new(index);
        match maps.set_address(Address6::from_octets(address.octets()), standin) {
            Err(MapAccess::Full { .. }) => return Err(NoStandIn::Full),
            other => other.map_err(NoStandIn::Map)?,
        }
        if fresh.is_some() {
            self.next += 1;
        } else {
            self.free.pop_front();
        }
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
        let standin = self.known.get(place.ip())?.standin;
        Some(SocketAddrV4::new(Ipv4Addr::from(standin.addr_be.to_ne_bytes()), place.port()))
    }
}
