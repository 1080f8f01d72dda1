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
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
};

use pith_abi::{Frontend, FrontendTarget, Head, MAX_BACKENDS_A_SERVICE, Scope, Service, StandIn, map_name};

use crate::{
    flows::Asked,
    generation::{Change, Generation, Placed},
    gone::Gone,
    limit::{Limit, TableLimits},
    maps::{self, MapAccess, ServiceMaps},
    plan::{Group, GroupKey, Reach, ServicePlan, Six},
    service::ServiceName,
    slots::{Run, Slots},
    standins::{NoStandIn, StandIns},
};

/// Why a part of a plan is not in the maps. The rest of it is.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{service}: the limit of {limit} is reached ({max})")]
    Limit { service: ServiceName, limit: Limit, max: u32 },
    #[error("{service}: {address} belongs to {owner}")]
    Taken { service: ServiceName, address: String, owner: ServiceName },
    #[error("{service}")]
    Map {
        service: ServiceName,
        #[source]
        source: MapAccess,
    },
}

/// What the maps hold of one Service.
#[derive(Clone, Debug, Default)]
struct Owned {
    groups: BTreeSet<GroupKey>,
    frontends: BTreeSet<Frontend>,
    addresses: BTreeSet<Ipv4Addr>,
}

/// Mirror of FRONTENDS, SERVICES and BACKENDS.
#[derive(Debug)]
pub struct Table {
    services: HashMap<ServiceName, Owned>,
    groups: HashMap<GroupKey, Placed>,
    by_index: HashMap<u32, GroupKey>,
    frontends: HashMap<Frontend, (ServiceName, u32)>,
    /// How many Services answer at an address.
    addresses: HashMap<Ipv4Addr, usize>,
    gone: Gone,
    /// Whether a backend has gone since somebody asked.
    departed: bool,
    /// Left by a former proxy and not claimed by a plan yet.
    adopted_groups: BTreeMap<u32, Placed>,
    adopted_frontends: BTreeMap<Frontend, u32>,
    adopted_addresses: BTreeSet<Frontend>,
    standins: StandIns,
    slots: Slots,
    indexes: Slots,
    limits: TableLimits,
    tag: u16,
}

impl Table {
    /// Takes over what the maps hold.
    pub fn adopt(maps: &mut impl ServiceMaps, limits: TableLimits) -> Result<Self, MapAccess> {
        let mut table = Self {
            services: HashMap::new(),
            groups: HashMap::new(),
            by_index: HashMap::new(),
            frontends: HashMap::new(),
            addresses: HashMap::new(),
            gone: Gone::default(),
            departed: false,
            adopted_groups: BTreeMap::new(),
            adopted_frontends: BTreeMap::new(),
            adopted_addresses: BTreeSet::new(),
            standins: StandIns::new(limits.addresses),
            slots: Slots::new(limits.backends.min(pith_abi::MAX_SLOTS)),
            indexes: Slots::new(limits.services),
            limits,
            tag: 0,
        };
        let (mut sources, mut servers) = (maps.sources()?, maps.servers()?);
        for (frontend, target) in maps.frontends()? {
            if matches!(frontend.scope, Scope::GONE | Scope::GONE6) {
                table.gone.adopt(frontend);
                continue;
            }
            let index = match target.service(&frontend) {
                Some(FrontendTarget::NO_SERVICE) => {
                    table.adopted_addresses.insert(frontend);
                    continue;
                }
                Some(index) if index < limits.services => index,
                // A word that is not this frontend's was never written by a proxy of this layout.
                Some(_) | None => continue,
            };
            table.adopted_frontends.insert(frontend, index);
            if !table.adopted_groups.contains_key(&index) {
                let sources = sources.remove(&index).unwrap_or_default();
                table.indexes.reserve(Run { first: index, count: 1 });
                let servers = servers.remove(&index).unwrap_or_default();
                let placed = Placed::read(maps, index, &mut table.slots, sources, servers)?;
                table.tag = table.tag.max(placed.tag);
                table.adopted_groups.insert(index, placed);
            }
        }
        // Of Services that a former proxy had begun or not quite forgotten: others may get their indexes.
        for (index, stray) in sources {
            maps.set_sources(index, &stray, &[])?;
        }
        for (index, stray) in servers {
            maps.set_servers(index, &stray, &BTreeMap::new())?;
        }
        Ok(table)
    }

    /// Makes the maps hold what `plan` says of its Service. Returns what could not be done; a later call
    /// with the same plan tries again.
    pub fn apply(&mut self, maps: &mut impl ServiceMaps, plan: &ServicePlan) -> Vec<ApplyError> {
        let mut errors = Vec::new();
        let mut whole = None;
        if plan.six != Six::default() {
            let (resolved, lacking) = self.standins.resolve(maps, &plan.service, &plan.six);
            let service = || plan.service.clone();
            errors.extend(lacking.map(|lacking| match lacking {
                NoStandIn::Full => {
                    let (limit, max) = (Limit::Addresses, self.limits.addresses);
                    ApplyError::Limit { service: service(), limit, max }
                }
                NoStandIn::Map(source) => ApplyError::Map { service: service(), source },
            }));
            let whole = whole.insert(plan.clone());
            whole.groups.extend(resolved.groups);
            whole.frontends.extend(resolved.frontends);
            whole.addresses.extend(resolved.addresses);
        }
        let failed = self.apply_resolved(maps, whole.as_ref().unwrap_or(plan));
        // Where something failed an old generation may go on, and needs its addresses.
        if failed.is_empty() {
            self.standins.settle(&plan.service, &plan.six);
        }
        errors.extend(failed);
        errors
    }

    /// The same, with every IPv6 address by its stand-in.
    fn apply_resolved(&mut self, maps: &mut impl ServiceMaps, plan: &ServicePlan) -> Vec<ApplyError> {
        let mut errors = Vec::new();
        let mut owned = self.services.remove(&plan.service).unwrap_or_default();
        for (key, group) in &plan.groups {
            errors.extend(self.place(maps, plan, key, group).err());
            // Also where its new backends could not be written: then the old ones go on.
            if self.groups.contains_key(key) {
                owned.groups.insert(key.clone());
            }
        }
        for address in &plan.addresses {
            match self.place_address(maps, &plan.service, *address, &owned) {
                Ok(()) => drop(owned.addresses.insert(*address)),
                Err(error) => errors.push(error),
            }
        }
        for (frontend, key) in &plan.frontends {
            match self.place_frontend(maps, &plan.service, frontend, key) {
                Ok(true) => drop(owned.frontends.insert(*frontend)),
                Ok(false) => {}
                Err(error) => errors.push(error),
            }
        }
        let mut failed = |source| errors.push(ApplyError::Map { service: plan.service.clone(), source });
        let gone = |frontend: &&Frontend| !plan.frontends.contains_key(*frontend);
        let old_frontends: Vec<Frontend> = owned.frontends.iter().filter(gone).copied().collect();
        for frontend in old_frontends {
            match maps.remove_frontend(&frontend) {
                Ok(()) => {
                    owned.frontends.remove(&frontend);
                    self.frontends.remove(&frontend);
                }
                Err(source) => failed(source),
            }
        }
        let old_addresses: Vec<Ipv4Addr> = owned.addresses.difference(&plan.addresses).copied().collect();
        for address in old_addresses {
            match self.remove_address(maps, address) {
                Ok(()) => drop(owned.addresses.remove(&address)),
                Err(source) => failed(source),
            }
        }
        let gone = |key: &&GroupKey| !plan.groups.contains_key(*key);
        let old_groups: Vec<GroupKey> = owned.groups.iter().filter(gone).cloned().collect();
        for key in old_groups {
            owned.groups.remove(&key);
            if let Some(placed) = self.groups.remove(&key) {
                if is_counted(&key) {
                    self.gone.without(&key, &placed.members);
                }
                if let Err(source) = self.release(maps, &placed) {
                    failed(source);
                }
            }
        }
        if !owned.groups.is_empty() || !owned.frontends.is_empty() || !owned.addresses.is_empty() {
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
        while let Some(frontend) = self.adopted_addresses.pop_first() {
            maps.remove_frontend(&frontend)?;
        }
        while let Some((_, placed)) = self.adopted_groups.pop_first() {
            self.release(maps, &placed)?;
        }
        self.gone.finish_adoption(maps)
    }

    /// Whether a backend has gone since the last call: flows to it are to be ended.
    pub fn take_departed(&mut self) -> bool {
        std::mem::take(&mut self.departed)
    }

    /// Lets time pass for what is remembered of backends that are gone.
    pub fn tick(&mut self, maps: &mut impl ServiceMaps) -> Result<(), MapAccess> {
        self.gone.tick(maps)?;
        self.standins.tick();
        Ok(())
    }

    /// Says which IPv6 addresses somebody uses who has no plan.
    pub(crate) fn hold(
        &mut self,
        maps: &mut impl ServiceMaps,
        holder: &ServiceName,
        addresses: &BTreeSet<Ipv6Addr>,
    ) -> Result<(), MapAccess> {
        let six = Six { inside: addresses.clone(), ..Six::default() };
        match self.standins.resolve(maps, holder, &six).1 {
            None => {}
            Some(NoStandIn::Full) => return Err(MapAccess::Full { map: map_name::ADDRESSES }),
            Some(NoStandIn::Map(error)) => return Err(error),
        }
        self.standins.settle(holder, &six);
        Ok(())
    }

    /// Those of all that are used, or were lately.
    pub(crate) fn stand_ins(&self) -> HashSet<StandIn> {
        self.standins.all()
    }

    /// How full the maps are: name, entries, and how many there can be.
    pub fn fill(&self) -> [(&'static str, usize, u32); 4] {
        let frontends = self.frontends.len() + self.addresses.len() + self.gone.len();
        let TableLimits { frontends: max_frontends, services, backends, addresses, .. } = self.limits;
        [
            (map_name::FRONTENDS, frontends, max_frontends),
            (map_name::SERVICES, self.indexes.used() as usize, services),
            (map_name::BACKENDS, self.slots.used() as usize, backends),
            (map_name::ADDRESSES, self.standins.len(), addresses),
        ]
    }

    /// Services in the maps.
    pub fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// Whether a backend may have connections by the group at an index; or by whom they asked, where that group is no
    /// more because their Service is balanced otherwise now.
    pub fn serves(&self, index: u32, asked: Asked, backend: SocketAddrV4) -> bool {
        let has = |placed: &Placed| placed.members.binary_search(&backend).is_ok();
        let by_index = match self.by_index.get(&index) {
            Some(key) => self.groups.get(key).is_some_and(has),
            None => self.adopted_groups.get(&index).is_some_and(has),
        };
        let service = || self.outside(asked).and_then(|service| self.services.get(service));
        let all = |owned: &Owned| {
            let counted = owned.groups.iter().filter(|key| is_counted(key));
            counted.filter_map(|key| self.groups.get(key)).any(has)
        };
        by_index || service().is_some_and(all)
    }

    /// The Service that answers packets from outside at a place: its own, or any address of the node.
    pub fn outside(&self, asked: Asked) -> Option<&ServiceName> {
        let Asked { place, protocol } = asked;
        let own = Frontend::new(u32::from_ne_bytes(place.ip().octets()), place.port().to_be(), protocol);
        let frontends = [own, Frontend::node_port(place.port().to_be(), protocol)];
        let scope = match StandIn::of(own.addr_be) {
            Some(_) => Scope::OUTSIDE6,
            None => Scope::OUTSIDE,
        };
        let known = frontends.iter().find_map(|at| self.frontends.get(&at.scoped(scope)));
        known.map(|(service, _)| service)
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
        let generation = Generation::of(group);
        let mut members = [&group.backends[..], &group.others].concat();
        members.sort_unstable();
        let known = self.groups.get(key).map_or(&[][..], |placed| &placed.members);
        let change = is_counted(key).then(|| Change::between(known, &members));
        if let Some(change) = &change {
            self.gone
                .arrive(maps, key, &change.come)
                .map_err(|source| ApplyError::Map { service: service(), source })?;
        }
        if let Some(placed) = &old
            && placed.generation == generation
            && placed.sources == group.sources
        {
            let index = placed.index;
            self.record(key, Placed { members, ..placed.clone() });
            return self.depart(maps, key, index, change);
        }
        let limit = |limit, max| ApplyError::Limit { service: service(), limit, max };
        let count = u32::try_from(generation.slots.len()).unwrap_or(u32::MAX);
        let placed = (|| {
            let count16 =
                u16::try_from(count).map_err(|_| limit(Limit::BackendsOfOne, MAX_BACKENDS_A_SERVICE))?;
            let run =
                self.slots.allocate(count).ok_or_else(|| limit(Limit::Backends, self.limits.backends))?;
            let index = match &old {
                Some(placed) => placed.index,
                None => match self.indexes.allocate(1) {
                    Some(index) => index.first,
                    None => {
                        self.slots.free(run);
                        return Err(limit(Limit::Services, self.limits.services));
                    }
                },
            };
            self.tag = self.tag.wrapping_add(1);
            let sources = group.sources.clone();
            let placed = Placed { index, run, tag: self.tag, generation, sources, members };
            match placed.write(maps, count16, old.as_ref()) {
                Ok(()) => Ok(placed),
                Err(source) => {
                    self.slots.free(run);
                    if old.is_none() {
                        self.indexes.free(Run { first: index, count: 1 });
                    }
                    Err(match source {
                        MapAccess::Full { map: map_name::SOURCES } => {
                            limit(Limit::Sources, self.limits.sources)
                        }
                        MapAccess::Full { map: map_name::SERVERS } => {
                            limit(Limit::Servers, self.limits.servers)
                        }
                        source => ApplyError::Map { service: service(), source },
                    })
                }
            }
        })();
        match (placed, old) {
            (Ok(placed), old) => {
                if let Some(old) = old {
                    self.slots.free(old.run);
                }
                let index = placed.index;
                self.record(key, placed);
                self.depart(maps, key, index, change)
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

    /// Remembers backends that a group had and has no more.
    fn depart(
        &mut self,
        maps: &mut impl ServiceMaps,
        key: &GroupKey,
        index: u32,
        change: Option<Change>,
    ) -> Result<(), ApplyError> {
        let Some(change) = change else { return Ok(()) };
        self.departed |= !change.left.is_empty();
        self.gone
            .depart(maps, key, index, &change.left)
            .map_err(|source| ApplyError::Map { service: key.service.clone(), source })
    }

    /// Makes an address known as one of a Service's.
    fn place_address(
        &mut self,
        maps: &mut impl ServiceMaps,
        service: &ServiceName,
        address: Ipv4Addr,
        owned: &Owned,
    ) -> Result<(), ApplyError> {
        if owned.addresses.contains(&address) {
            return Ok(());
        }
        let frontend = at(address);
        if !self.addresses.contains_key(&address) && !self.adopted_addresses.remove(&frontend) {
            self.set_frontend(maps, service, &frontend, FrontendTarget::NO_SERVICE)?;
        }
        *self.addresses.entry(address).or_default() += 1;
        Ok(())
    }

    fn remove_address(&mut self, maps: &mut impl ServiceMaps, address: Ipv4Addr) -> Result<(), MapAccess> {
        let services = self.addresses.get(&address).copied().unwrap_or_default();
        if services > 1 {
            self.addresses.insert(address, services - 1);
            return Ok(());
        }
        maps.remove_frontend(&at(address))?;
        self.addresses.remove(&address);
        Ok(())
    }

    fn set_frontend(
        &mut self,
        maps: &mut impl ServiceMaps,
        service: &ServiceName,
        frontend: &Frontend,
        index: u32,
    ) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Map { service: service.clone(), source };
        let target = FrontendTarget::new(frontend, index);
        loop {
            match maps.set_frontend(frontend, target) {
                // What is there goes before what is gone.
                Err(MapAccess::Full { .. }) if self.gone.give_way(maps).map_err(failed)? => {}
                Err(MapAccess::Full { map: map_name::FRONTENDS }) => {
                    let (service, max) = (service.clone(), self.limits.frontends);
                    return Err(ApplyError::Limit { service, limit: Limit::Frontends, max });
                }
                other => return other.map_err(failed),
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
                    address: maps::show(frontend),
                    owner: owner.clone(),
                });
            }
            Some((_, old)) if *old == index => return Ok(true),
            _ => {}
        }
        if self.adopted_frontends.remove(frontend) != Some(index) {
            self.set_frontend(maps, service, frontend, index)?;
        }
        self.frontends.insert(*frontend, (service.clone(), index));
        Ok(true)
    }

    /// Gives a group's place back.
    fn release(&mut self, maps: &mut impl ServiceMaps, placed: &Placed) -> Result<(), MapAccess> {
        // A program that is late finds a Service without endpoints, and refuses.
        maps.set_service(placed.index, Service { head: Head::default().pack(), affinity_ns: 0 })?;
        maps.forget_connections(placed.index)?;
        if placed.generation.affinity.is_some() {
            maps.forget_clients(placed.index)?;
        }
        maps.set_sources(placed.index, &placed.sources, &[])?;
        maps.set_servers(placed.index, &placed.generation.servers, &BTreeMap::new())?;
        self.gone.release(maps, placed.index)?;
        self.by_index.remove(&placed.index);
        self.slots.free(placed.run);
        self.indexes.free(Run { first: placed.index, count: 1 });
        Ok(())
    }
}

/// What stands for an address whatever the port, also a stand-in's.
fn at(address: Ipv4Addr) -> Frontend {
    let frontend = Frontend::address(u32::from_ne_bytes(address.octets()));
    match StandIn::of(frontend.addr_be) {
        Some(_) => frontend.scoped(Scope::INSIDE6),
        None => frontend,
    }
}

/// Whether the members of a group tell which backends there are: one group of each port does, the one whose
/// policy leaves none out.
fn is_counted(key: &GroupKey) -> bool {
    key.reach == Reach::Internal
}
