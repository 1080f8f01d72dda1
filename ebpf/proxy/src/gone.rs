//! Backends that are gone, for as long as clients may still hold on to them.
//!
//! A socket that was given a backend keeps it: nothing translates its packets any more. When the backend goes,
//! its place is remembered here with the Service that had it; packets of pods to it are then led to another
//! backend (datagrams) or refused (segments), see `pith_core::pods`.
//!
//! Invariant: no place is remembered as gone while any Service has it, nor leads to a Service that has been
//! given another's index.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddrV4,
};

use pith_abi::{Frontend, FrontendTarget, Scope};

use crate::{
    maps::{MapAccess, ServiceMaps},
    plan::{Family, GroupKey},
};

/// How many are remembered; the oldest are forgotten beyond that.
const MAX: usize = 4096;

/// Rounds of collection for which one is remembered: two minutes. Longer than clients take to notice, and not
/// long after the address may have become another pod's.
const ROUNDS: u64 = 24;

#[derive(Debug, Default)]
pub(crate) struct Gone {
    /// How many groups have a place as a member.
    members: HashMap<Frontend, usize>,
    places: HashMap<Frontend, Place>,
    by_age: BTreeMap<u64, Frontend>,
    /// Left by a former proxy: which Service had them is not known any more.
    adopted: Vec<Frontend>,
    round: u64,
    sequence: u64,
}

/// A place that nobody has.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Index of the Service that had it.
    service: u32,
    /// When it was remembered.
    round: u64,
    sequence: u64,
}

impl Gone {
    /// Members came: they are not gone, whoever had them before.
    pub(crate) fn arrive(
        &mut self,
        maps: &mut impl ServiceMaps,
        key: &GroupKey,
        come: &[SocketAddrV4],
    ) -> Result<(), MapAccess> {
        for member in come {
            let place = place(key, *member);
            self.forget(maps, &place)?;
            *self.members.entry(place).or_default() += 1;
        }
        Ok(())
    }

    /// How many are remembered.
    pub(crate) fn len(&self) -> usize {
        self.places.len() + self.adopted.len()
    }

    /// Members left a group that has this index.
    pub(crate) fn depart(
        &mut self,
        maps: &mut impl ServiceMaps,
        key: &GroupKey,
        index: u32,
        left: &[SocketAddrV4],
    ) -> Result<(), MapAccess> {
        for member in left {
            let place = place(key, *member);
            if self.leave(&place) {
                self.remember(maps, place, index)?;
            }
        }
        Ok(())
    }

    /// A group went with all its members: they may well live on.
    pub(crate) fn without(&mut self, key: &GroupKey, members: &[SocketAddrV4]) {
        for member in members {
            self.leave(&place(key, *member));
        }
    }

    /// The index may become another Service's.
    pub(crate) fn release(&mut self, maps: &mut impl ServiceMaps, index: u32) -> Result<(), MapAccess> {
        for (frontend, place) in &mut self.places {
            if place.service == index {
                maps.set_frontend(frontend, FrontendTarget::new(frontend, FrontendTarget::NO_SERVICE))?;
                place.service = FrontendTarget::NO_SERVICE;
            }
        }
        Ok(())
    }

    /// Takes over what a former proxy remembered.
    pub(crate) fn adopt(&mut self, place: Frontend) {
        self.adopted.push(place);
    }

    /// Every Service is known: what is still gone is refused, since nobody knows whose it was.
    pub(crate) fn finish_adoption(&mut self, maps: &mut impl ServiceMaps) -> Result<(), MapAccess> {
        for place in std::mem::take(&mut self.adopted) {
            if self.members.contains_key(&place) || self.places.contains_key(&place) {
                continue;
            }
            self.remember(maps, place, FrontendTarget::NO_SERVICE)?;
        }
        self.tell(maps)
    }

    /// A round has passed.
    pub(crate) fn tick(&mut self, maps: &mut impl ServiceMaps) -> Result<(), MapAccess> {
        self.round += 1;
        while let Some((_, place)) = self.by_age.first_key_value() {
            let place = *place;
            let old = self.places.get(&place).is_some_and(|place| place.round + ROUNDS < self.round);
            if !old {
                break;
            }
            self.forget(maps, &place)?;
        }
        Ok(())
    }

    /// Forgets the oldest; `false` when there is none.
    pub(crate) fn give_way(&mut self, maps: &mut impl ServiceMaps) -> Result<bool, MapAccess> {
        let Some((_, oldest)) = self.by_age.first_key_value() else { return Ok(false) };
        let oldest = *oldest;
        self.forget(maps, &oldest)?;
        Ok(true)
    }

    /// Whether nobody has the place any more.
    fn leave(&mut self, place: &Frontend) -> bool {
        match self.members.get_mut(place) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => {
                self.members.remove(place);
                true
            }
        }
    }

    fn remember(
        &mut self,
        maps: &mut impl ServiceMaps,
        place: Frontend,
        index: u32,
    ) -> Result<(), MapAccess> {
        if self.places.len() >= MAX {
            self.give_way(maps)?;
        }
        // Before the first: programs do not look otherwise.
        if self.is_empty() {
            maps.set_any_gone(true)?;
        }
        match maps.set_frontend(&place, FrontendTarget::new(&place, index)) {
            // Services come first: without room, clients find out by themselves.
            Err(MapAccess::Full { .. }) => return Ok(()),
            other => other?,
        }
        self.sequence += 1;
        self.by_age.insert(self.sequence, place);
        let remembered = Place { service: index, round: self.round, sequence: self.sequence };
        if let Some(before) = self.places.insert(place, remembered) {
            self.by_age.remove(&before.sequence);
        }
        Ok(())
    }

    fn forget(&mut self, maps: &mut impl ServiceMaps, place: &Frontend) -> Result<(), MapAccess> {
        if self.adopted.contains(place) {
            self.adopted.retain(|adopted| adopted != place);
            maps.remove_frontend(place)?;
            return self.tell(maps);
        }
        if let Some(remembered) = self.places.get(place) {
            maps.remove_frontend(place)?;
            self.by_age.remove(&remembered.sequence);
            self.places.remove(place);
            self.tell(maps)?;
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.places.is_empty() && self.adopted.is_empty()
    }

    /// Spares programs the look where nothing is remembered.
    fn tell(&self, maps: &mut impl ServiceMaps) -> Result<(), MapAccess> {
        if self.is_empty() { maps.set_any_gone(false) } else { Ok(()) }
    }
}

fn place(key: &GroupKey, member: SocketAddrV4) -> Frontend {
    let addr_be = u32::from_ne_bytes(member.ip().octets());
    let scope = match key.family {
        Family::Ipv4 => Scope::GONE,
        Family::Ipv6 => Scope::GONE6,
    };
    Frontend::new(addr_be, member.port().to_be(), key.protocol.number()).scoped(scope)
}
