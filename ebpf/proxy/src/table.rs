//! The table of Services in the maps: what it holds, and how it becomes what the plan says.
//!
//! Invariant: at every single write a lookup sees each Service whole. New backends are written into free
//! slots; one write of the Service's head makes them current; only then are the old slots free. A frontend
//! appears after its group and disappears before it.
//!
//! ```text
//!  apply:  slots ──► head ──► new frontends ──► old frontends away ──► old groups away
//!  adopt:  what a former proxy left is taken over where the plan agrees, so that a restart writes nothing
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{Ipv4Addr, SocketAddrV4},
};

use pith_abi::{
    Backend, Frontend, FrontendTarget, Head, HeadFlags, MAX_BACKENDS_A_SERVICE, Service, map_name,
};

use crate::{
    maps::{MapAccess, ServiceMaps},
    plan::{Group, GroupKey, ServicePlan},
    service::ServiceName,
    slots::{Run, Slots},
};

/// Why a part of a plan is not in the maps. The rest of it is.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{service}: the limit `{limit}` is reached ({max})")]
    Limit { service: ServiceName, limit: &'static str, max: u32 },
    #[error("{service}: {address} belongs to {owner}")]
    Taken { service: ServiceName, address: String, owner: ServiceName },
    #[error("{service}")]
    Map {
        service: ServiceName,
        #[source]
        source: MapAccess,
    },
}

/// A group as it is in the maps.
#[derive(Clone, Debug)]
struct Placed {
    index: u32,
    run: Run,
    tag: u16,
    group: Group,
}

/// What the maps hold of one Service.
#[derive(Clone, Debug, Default)]
struct Owned {
    groups: BTreeSet<GroupKey>,
    frontends: BTreeSet<Frontend>,
}

/// Mirror of FRONTENDS, SERVICES and BACKENDS.
#[derive(Debug)]
pub struct Table {
    services: HashMap<ServiceName, Owned>,
    groups: HashMap<GroupKey, Placed>,
    by_index: HashMap<u32, GroupKey>,
    frontends: HashMap<Frontend, (ServiceName, u32)>,
    /// Left by a former proxy and not claimed by a plan yet.
    adopted_groups: BTreeMap<u32, Placed>,
    adopted_frontends: BTreeMap<Frontend, u32>,
    slots: Slots,
    indexes: Slots,
    limits: TableLimits,
    tag: u16,
}

/// Sizes of the three maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLimits {
    pub frontends: u32,
    pub services: u32,
    pub backends: u32,
}

impl Table {
    /// Takes over what the maps hold.
    pub fn adopt(maps: &impl ServiceMaps, limits: TableLimits) -> Result<Self, MapAccess> {
        let mut table = Self {
            services: HashMap::new(),
            groups: HashMap::new(),
            by_index: HashMap::new(),
            frontends: HashMap::new(),
            adopted_groups: BTreeMap::new(),
            adopted_frontends: BTreeMap::new(),
            slots: Slots::new(limits.backends.min(pith_abi::MAX_SLOTS)),
            indexes: Slots::new(limits.services),
            limits,
            tag: 0,
        };
        for (frontend, target) in maps.frontends()? {
            // A word that is not this frontend's was never written by a proxy of this layout.
            let Some(index) = target.service(&frontend).filter(|index| *index < limits.services) else {
                continue;
            };
            table.adopted_frontends.insert(frontend, index);
            if !table.adopted_groups.contains_key(&index) {
                let placed = table.adopt_group(maps, index)?;
                table.adopted_groups.insert(index, placed);
            }
        }
        Ok(table)
    }

    fn adopt_group(&mut self, maps: &impl ServiceMaps, index: u32) -> Result<Placed, MapAccess> {
        let service = maps.service(index)?;
        let head = Head::unpack(service.head);
        let mut run = Run { first: head.first, count: u32::from(head.count) };
        self.indexes.reserve(Run { first: index, count: 1 });
        let mut backends = Vec::new();
        if self.slots.reserve(run) {
            for slot in run.first..run.first + run.count {
                let backend = maps.backend(slot)?;
                let address = Ipv4Addr::from(backend.addr_be().to_ne_bytes());
                backends.push(SocketAddrV4::new(address, u16::from_be(backend.port_be())));
            }
        } else {
            // Slots that two groups claim: treat this one as empty, so that it is written anew.
            run = Run::EMPTY;
        }
        self.tag = self.tag.max(head.tag);
        let affinity = (head.flags & HeadFlags::AFFINITY != 0)
            .then(|| std::time::Duration::from_nanos(service.affinity_ns));
        Ok(Placed { index, run, tag: head.tag, group: Group { backends, affinity } })
    }

    /// Makes the maps hold what `plan` says of its Service. Returns what could not be done; a later call
    /// with the same plan tries again.
    pub fn apply(&mut self, maps: &mut impl ServiceMaps, plan: &ServicePlan) -> Vec<ApplyError> {
        let mut errors = Vec::new();
        let mut owned = self.services.remove(&plan.service).unwrap_or_default();
        for (key, group) in &plan.groups {
            errors.extend(self.place(maps, plan, key, group).err());
            // Also where its new backends could not be written: then the old ones go on.
            if self.groups.contains_key(key) {
                owned.groups.insert(key.clone());
            }
        }
        for (frontend, key) in &plan.frontends {
            match self.place_frontend(maps, &plan.service, frontend, key) {
                Ok(true) => drop(owned.frontends.insert(*frontend)),
                Ok(false) => {}
                Err(error) => errors.push(error),
            }
        }
        let gone = |frontend: &&Frontend| !plan.frontends.contains_key(*frontend);
        let old_frontends: Vec<Frontend> = owned.frontends.iter().filter(gone).copied().collect();
        for frontend in old_frontends {
            match maps.remove_frontend(&frontend) {
                Ok(()) => {
                    owned.frontends.remove(&frontend);
                    self.frontends.remove(&frontend);
                }
                Err(source) => errors.push(ApplyError::Map { service: plan.service.clone(), source }),
            }
        }
        let gone = |key: &&GroupKey| !plan.groups.contains_key(*key);
        let old_groups: Vec<GroupKey> = owned.groups.iter().filter(gone).cloned().collect();
        for key in old_groups {
            owned.groups.remove(&key);
            if let Some(placed) = self.groups.remove(&key)
                && let Err(source) = self.release(maps, &placed)
            {
                errors.push(ApplyError::Map { service: plan.service.clone(), source });
            }
        }
        if !owned.groups.is_empty() || !owned.frontends.is_empty() {
            self.services.insert(plan.service.clone(), owned);
        }
        errors
    }

    /// Removes what a former proxy left and no plan has claimed. To be called once every Service that
    /// there is has been applied.
    pub fn finish_adoption(&mut self, maps: &mut impl ServiceMaps) -> Result<(), MapAccess> {
        while let Some((frontend, _)) = self.adopted_frontends.pop_first() {
            maps.remove_frontend(&frontend)?;
        }
        while let Some((_, placed)) = self.adopted_groups.pop_first() {
            self.release(maps, &placed)?;
        }
        Ok(())
    }

    /// Services in the maps.
    pub fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// Whether the group at an index has a backend.
    pub fn serves(&self, index: u32, backend: SocketAddrV4) -> bool {
        let has = |placed: &Placed| placed.group.backends.binary_search(&backend).is_ok();
        match self.by_index.get(&index) {
            Some(key) => self.groups.get(key).is_some_and(has),
            None => self.adopted_groups.get(&index).is_some_and(has),
        }
    }

    /// Gives a group its backends.
    fn place(
        &mut self,
        maps: &mut impl ServiceMaps,
        plan: &ServicePlan,
        key: &GroupKey,
        group: &Group,
    ) -> Result<(), ApplyError> {
        let service = || plan.service.clone();
        let old = match self.groups.get(key) {
            Some(placed) => Some(placed.clone()),
            None => self.claim(plan, key),
        };
        if let Some(placed) = &old
            && placed.group == *group
        {
            self.record(key, placed.clone());
            return Ok(());
        }
        let limit = |limit, max| ApplyError::Limit { service: service(), limit, max };
        let count = u32::try_from(group.backends.len()).unwrap_or(u32::MAX);
        let placed = (|| {
            let count16 =
                u16::try_from(count).map_err(|_| limit("backends of one Service", MAX_BACKENDS_A_SERVICE))?;
            let run = self.slots.allocate(count).ok_or_else(|| limit("backends", self.limits.backends))?;
            let index = match &old {
                Some(placed) => placed.index,
                None => match self.indexes.allocate(1) {
                    Some(index) => index.first,
                    None => {
                        self.slots.free(run);
                        return Err(limit("services", self.limits.services));
                    }
                },
            };
            self.tag = self.tag.wrapping_add(1);
            let placed = Placed { index, run, tag: self.tag, group: group.clone() };
            match write(maps, &placed, count16) {
                Ok(()) => Ok(placed),
                Err(source) => {
                    self.slots.free(run);
                    if old.is_none() {
                        self.indexes.free(Run { first: index, count: 1 });
                    }
                    Err(ApplyError::Map { service: service(), source })
                }
            }
        })();
        match (placed, old) {
            (Ok(placed), old) => {
                if let Some(old) = old {
                    self.slots.free(old.run);
                }
                self.record(key, placed);
                Ok(())
            }
            (Err(error), old) => {
                // The old generation goes on, also one that was just claimed.
                if let Some(old) = old {
                    self.record(key, old);
                }
                Err(error)
            }
        }
    }

    fn record(&mut self, key: &GroupKey, placed: Placed) {
        self.by_index.insert(placed.index, key.clone());
        self.groups.insert(key.clone(), placed);
    }

    /// The group that a former proxy left for one of this group's frontends.
    fn claim(&mut self, plan: &ServicePlan, key: &GroupKey) -> Option<Placed> {
        let own = plan.frontends.iter().filter(|(_, group)| *group == key);
        let index = own
            .filter_map(|(frontend, _)| self.adopted_frontends.get(frontend))
            .find(|index| self.adopted_groups.contains_key(index))?;
        self.adopted_groups.remove(index)
    }

    /// Leads a frontend to its group; `false` when the group has no place.
    fn place_frontend(
        &mut self,
        maps: &mut impl ServiceMaps,
        service: &ServiceName,
        frontend: &Frontend,
        key: &GroupKey,
    ) -> Result<bool, ApplyError> {
        let Some(index) = self.groups.get(key).map(|placed| placed.index) else { return Ok(false) };
        match self.frontends.get(frontend) {
            Some((owner, _)) if owner != service => {
                return Err(ApplyError::Taken {
                    service: service.clone(),
                    address: show(frontend),
                    owner: owner.clone(),
                });
            }
            Some((_, old)) if *old == index => return Ok(true),
            _ => {}
        }
        if self.adopted_frontends.remove(frontend) != Some(index) {
            maps.set_frontend(frontend, FrontendTarget::new(frontend, index)).map_err(
                |source| match source {
                    MapAccess::Full { map: map_name::FRONTENDS } => ApplyError::Limit {
                        service: service.clone(),
                        limit: "frontends",
                        max: self.limits.frontends,
                    },
                    source => ApplyError::Map { service: service.clone(), source },
                },
            )?;
        }
        self.frontends.insert(*frontend, (service.clone(), index));
        Ok(true)
    }

    /// Gives a group's place back.
    fn release(&mut self, maps: &mut impl ServiceMaps, placed: &Placed) -> Result<(), MapAccess> {
        // A program that is late finds a Service without endpoints, and refuses.
        maps.set_service(placed.index, Service { head: Head::default().pack(), affinity_ns: 0 })?;
        if placed.group.affinity.is_some() {
            maps.forget_clients(placed.index)?;
        }
        self.by_index.remove(&placed.index);
        self.slots.free(placed.run);
        self.indexes.free(Run { first: placed.index, count: 1 });
        Ok(())
    }
}

/// Writes a generation beside the old one, then makes it current.
fn write(maps: &mut impl ServiceMaps, placed: &Placed, count: u16) -> Result<(), MapAccess> {
    for (slot, backend) in (placed.run.first..).zip(&placed.group.backends) {
        let addr_be = u32::from_ne_bytes(backend.ip().octets());
        maps.set_backend(slot, Backend::new(addr_be, backend.port().to_be(), placed.tag))?;
    }
    let affinity = placed.group.affinity;
    let head = Head {
        first: placed.run.first,
        count,
        tag: placed.tag,
        flags: if affinity.is_some() { HeadFlags::AFFINITY } else { 0 },
    };
    let affinity_ns = affinity.map_or(0, |affinity| u64::try_from(affinity.as_nanos()).unwrap_or(u64::MAX));
    maps.set_service(placed.index, Service { head: head.pack(), affinity_ns })
}

/// A frontend in words.
fn show(frontend: &Frontend) -> String {
    let port = u16::from_be(frontend.port_be);
    let protocol = if frontend.proto == pith_abi::proto::UDP { "UDP" } else { "TCP" };
    match frontend.addr_be {
        0 => format!("node port {port}/{protocol}"),
        addr_be => format!("{}:{port}/{protocol}", Ipv4Addr::from(addr_be.to_ne_bytes())),
    }
}
