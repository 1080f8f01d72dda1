//! A group of backends as it is in the maps: where it lies, and which generation is current.
//!
//! Invariant: a generation is written beside the old one and made current by one write of the head.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use ipnet::IpNet;
use pith_abi::{Backend, Head, HeadFlags, Service};

use crate::{
    annotations::Balance,
    maps::{MapAccess, ServiceMaps},
    plan::Group,
    slots::{Run, Slots},
};

/// A group as it is in the maps.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) index: u32,
    pub(crate) run: Run,
    pub(crate) tag: u16,
    pub(crate) generation: Generation,
    pub(crate) sources: Vec<IpNet>,
    /// Every backend that may have connections, in order: those in slots and those that drain.
    pub(crate) members: Vec<SocketAddrV4>,
}

impl Placed {
    /// Reads what a former proxy left at an index, and takes its slots. Sources and servers are those at the index.
    pub(crate) fn read(
        maps: &impl ServiceMaps,
        index: u32,
        slots: &mut Slots,
        sources: Vec<IpNet>,
        servers: BTreeMap<Ipv4Addr, SocketAddrV4>,
    ) -> Result<Self, MapAccess> {
        let service = maps.service(index)?;
        let head = Head::unpack(service.head);
        let mut run = Run { first: head.first, count: u32::from(head.count) };
        let mut backends = Vec::new();
        if slots.reserve(run) {
            for slot in run.first..run.first + run.count {
                let backend = maps.backend(slot)?;
                let address = Ipv4Addr::from(backend.addr_be().to_ne_bytes());
                backends.push(SocketAddrV4::new(address, u16::from_be(backend.port_be())));
            }
        } else {
            // Slots that two groups claim: treat this one as empty, so that it is written anew.
            run = Run::EMPTY;
        }
        let affinity =
            (head.flags & HeadFlags::AFFINITY != 0).then(|| Duration::from_nanos(service.affinity_ns));
        let mut members = backends.clone();
        members.sort_unstable();
        members.dedup();
        let generation = Generation { slots: backends, servers, affinity, flags: head.flags };
        Ok(Self { index, run, tag: head.tag, generation, sources, members })
    }

    /// Writes a generation beside the old one, then makes it current.
    pub(crate) fn write(
        &self,
        maps: &mut impl ServiceMaps,
        count: u16,
        old: Option<&Self>,
    ) -> Result<(), MapAccess> {
        let none = BTreeMap::new();
        let old_servers = old.map_or(&none, |old| &old.generation.servers);
        maps.set_servers(self.index, &none, &self.generation.servers)?;
        // New sources are served a moment early, old ones a moment longer: never fewer than either says.
        maps.set_sources(self.index, &[], &self.sources)?;
        for (slot, backend) in (self.run.first..).zip(&self.generation.slots) {
            let addr_be = u32::from_ne_bytes(backend.ip().octets());
            maps.set_backend(slot, Backend::new(addr_be, backend.port().to_be(), self.tag))?;
        }
        let affinity = self.generation.affinity;
        let head = Head { first: self.run.first, count, tag: self.tag, flags: self.generation.flags };
        let affinity_ns =
            affinity.map_or(0, |affinity| u64::try_from(affinity.as_nanos()).unwrap_or(u64::MAX));
        maps.set_service(self.index, Service { head: head.pack(), affinity_ns })?;
        maps.set_servers(self.index, old_servers, &self.generation.servers)?;
        maps.set_sources(self.index, old.map_or(&[], |old| &old.sources), &self.sources)
    }
}

/// What a head points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) slots: Vec<SocketAddrV4>,
    /// As [`Group::servers`].
    pub(crate) servers: BTreeMap<Ipv4Addr, SocketAddrV4>,
    pub(crate) affinity: Option<Duration>,
    /// [`HeadFlags`].
    pub(crate) flags: u8,
}

impl Generation {
    pub(crate) fn of(group: &Group) -> Self {
        let mut flags = match group.balance {
            Balance::Random => 0,
            Balance::Maglev => HeadFlags::HASH,
            Balance::MaglevClient => HeadFlags::HASH | HeadFlags::HASH_CLIENT,
        };
        if group.affinity.is_some() {
            flags = HeadFlags::AFFINITY;
        }
        if !group.sources.is_empty() {
            flags |= HeadFlags::SOURCES;
        }
        if group.named {
            flags |= HeadFlags::NAMED;
        }
        Self { slots: group.slots(), servers: group.servers(), affinity: group.affinity, flags }
    }
}

/// Members of a group that came and that left.
pub(crate) struct Change {
    pub(crate) come: Vec<SocketAddrV4>,
    pub(crate) left: Vec<SocketAddrV4>,
}

impl Change {
    /// Both lists are in order.
    pub(crate) fn between(old: &[SocketAddrV4], new: &[SocketAddrV4]) -> Self {
        let without = |all: &[SocketAddrV4], other: &[SocketAddrV4]| {
            all.iter().filter(|member| other.binary_search(member).is_err()).copied().collect()
        };
        Self { come: without(new, old), left: without(old, new) }
    }
}
