//! The table on maps in memory, with a lookup after every single write.

use std::{
    collections::{BTreeMap, HashSet},
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use ipnet::IpNet;
use pith_abi::{
    Backend, Frontend, FrontendTarget, Head, Known6, ServerKey, Service as Entry, SourceKey, StandIn,
    map_name,
};
use pith_core::{
    Tables,
    host::Memory,
    select::{Client, Selection, select},
    six::Addresses,
};
use proptest::prelude::*;

use crate::{
    limit::{Limit, TableLimits},
    maps::{MapAccess, ServiceMaps},
    plan::{Family, Group, GroupKey, Reach, ServicePlan},
    service::{Protocol, ServiceName},
    table::{ApplyError, Table},
};

pub(crate) const LIMITS: TableLimits =
    TableLimits { frontends: 8, services: 8, backends: 64, sources: 8, servers: 8, addresses: 8 };

/// Maps in memory that look every watched frontend up after each write.
#[derive(Default)]
pub(crate) struct Watched {
    memory: Memory,
    /// Backends of which a lookup must find one, by frontend; where there are none it must find none.
    allowed: BTreeMap<Frontend, HashSet<SocketAddrV4>>,
    writes: usize,
}

impl Watched {
    /// The IPv6 addresses that are known, and by what.
    pub(crate) fn addresses(&self) -> BTreeMap<StandIn, Known6> {
        self.memory.addresses.borrow().iter().map(|(standin, known)| (*standin, *known)).collect()
    }

    pub(crate) fn lookup(&self, frontend: &Frontend) -> Option<SocketAddrV4> {
        let index = self.memory.frontend(frontend)?.service(frontend)?;
        match select(&self.memory, index, Client::Socket) {
            Selection::Chosen(choice) => {
                let address = Ipv4Addr::from(choice.backend.addr_be().to_ne_bytes());
                Some(SocketAddrV4::new(address, u16::from_be(choice.backend.port_be())))
            }
            Selection::Empty => None,
            Selection::Race => panic!("half a generation"),
        }
    }

    fn wrote(&mut self) {
        self.writes += 1;
        for (frontend, allowed) in &self.allowed {
            let found = self.lookup(frontend);
            let right = found.map_or(allowed.is_empty(), |found| allowed.contains(&found));
            assert!(right, "{frontend:?} leads to {found:?}, not to one of {allowed:?}");
        }
    }
}

impl ServiceMaps for Watched {
    fn frontends(&self) -> Result<Vec<(Frontend, FrontendTarget)>, MapAccess> {
        Ok(self.memory.frontends.borrow().iter().map(|(key, value)| (*key, *value)).collect())
    }

    fn service(&self, index: u32) -> Result<Entry, MapAccess> {
        Ok(Tables::service(&self.memory, index).unwrap_or(Entry { head: 0, affinity_ns: 0 }))
    }

    fn backend(&self, slot: u32) -> Result<Backend, MapAccess> {
        Ok(Tables::backend(&self.memory, slot).unwrap_or(Backend(0)))
    }

    fn set_frontend(&mut self, frontend: &Frontend, target: FrontendTarget) -> Result<(), MapAccess> {
        let full = self.memory.frontends.borrow().len() >= LIMITS.frontends as usize;
        if full && self.memory.frontend(frontend).is_none() {
            return Err(MapAccess::Full { map: map_name::FRONTENDS });
        }
        self.memory.frontends.borrow_mut().insert(*frontend, target);
        self.wrote();
        Ok(())
    }

    fn remove_frontend(&mut self, frontend: &Frontend) -> Result<(), MapAccess> {
        self.memory.frontends.borrow_mut().remove(frontend);
        self.wrote();
        Ok(())
    }

    fn set_service(&mut self, index: u32, service: Entry) -> Result<(), MapAccess> {
        assert!(index < LIMITS.services);
        self.memory.services.borrow_mut().insert(index, service);
        self.wrote();
        Ok(())
    }

    fn set_backend(&mut self, slot: u32, backend: Backend) -> Result<(), MapAccess> {
        assert!(slot < LIMITS.backends);
        self.memory.backends.borrow_mut().insert(slot, backend);
        self.wrote();
        Ok(())
    }

    fn sources(&self) -> Result<BTreeMap<u32, Vec<IpNet>>, MapAccess> {
        let mut all: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
        for (prefix, key) in &*self.memory.sources.borrow() {
            let net = IpNet::new(Ipv4Addr::from(key.addr_be.to_ne_bytes()).into(), *prefix);
            all.entry(key.service).or_default().extend(net.ok());
        }
        Ok(all)
    }

    fn set_sources(&mut self, service: u32, old: &[IpNet], new: &[IpNet]) -> Result<(), MapAccess> {
        let key = |range: &IpNet| {
            let IpNet::V4(range) = range else { panic!("{range} is no range of these tests") };
            let addr_be = u32::from_ne_bytes(range.network().octets());
            (range.prefix_len(), SourceKey { service, addr_be })
        };
        let mut sources = self.memory.sources.borrow_mut();
        let all = |ranges: &[IpNet]| -> Vec<_> { ranges.iter().map(key).collect() };
        sources.retain(|source| !all(old).contains(source) && !all(new).contains(source));
        sources.extend(all(new));
        Ok(())
    }

    fn servers(&self) -> Result<BTreeMap<u32, BTreeMap<Ipv4Addr, SocketAddrV4>>, MapAccess> {
        let mut all: BTreeMap<u32, BTreeMap<Ipv4Addr, SocketAddrV4>> = BTreeMap::new();
        let address = |addr_be: u32| Ipv4Addr::from(addr_be.to_ne_bytes());
        for (key, backend) in &*self.memory.servers.borrow() {
            let place = SocketAddrV4::new(address(backend.addr_be()), u16::from_be(backend.port_be()));
            all.entry(key.service).or_default().insert(address(key.addr_be), place);
        }
        Ok(all)
    }

    fn set_servers(
        &mut self,
        service: u32,
        old: &BTreeMap<Ipv4Addr, SocketAddrV4>,
        new: &BTreeMap<Ipv4Addr, SocketAddrV4>,
    ) -> Result<(), MapAccess> {
        let addr_be = |address: &Ipv4Addr| u32::from_ne_bytes(address.octets());
        let key = |address: &Ipv4Addr| ServerKey { service, addr_be: addr_be(address) };
        let mut servers = self.memory.servers.borrow_mut();
        if servers.len() + new.len() > 2 * LIMITS.servers as usize {
            return Err(MapAccess::Full { map: map_name::SERVERS });
        }
        for address in old.keys() {
            servers.remove(&key(address));
        }
        for (address, place) in new {
            servers.insert(key(address), Backend::new(addr_be(place.ip()), place.port().to_be(), 0));
        }
        Ok(())
    }

    fn addresses(&self) -> Result<Vec<(StandIn, Known6)>, MapAccess> {
        Ok(self.addresses().into_iter().collect())
    }

    fn known(&self, standin: StandIn) -> Result<Option<Known6>, MapAccess> {
        Ok(self.memory.known(standin))
    }

    fn seed(&self) -> Result<u64, MapAccess> {
        Ok(1)
    }

    fn keep(&mut self, standin: StandIn, known: &Known6) -> Result<(), MapAccess> {
        Addresses::keep(&self.memory, standin, known).expect("memory has room");
        Ok(())
    }

    fn set_any_gone(&mut self, _any: bool) -> Result<(), MapAccess> {
        Ok(())
    }

    fn forget_connections(&mut self, _service: u32) -> Result<(), MapAccess> {
        Ok(())
    }

    fn forget_clients(&mut self, _service: u32) -> Result<(), MapAccess> {
        Ok(())
    }
}

fn place(host: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 244, 0, host), 8080)
}

fn frontend(number: u8) -> Frontend {
    Frontend::new(u32::from_ne_bytes([10, 96, 0, number]), 80u16.to_be(), 6)
}

/// A Service with one port at one address.
fn plan(number: u8, hosts: &[u8]) -> ServicePlan {
    let service = ServiceName::new("default", &format!("s{number}"));
    let port: Arc<str> = "".into();
    let key = GroupKey {
        service: service.clone(),
        port,
        protocol: Protocol::Tcp,
        family: Family::Ipv4,
        reach: Reach::Internal,
    };
    let backends = hosts.iter().map(|host| place(*host)).collect();
    ServicePlan {
        service,
        groups: BTreeMap::from([(key.clone(), Group { backends, ..Group::default() })]),
        frontends: BTreeMap::from([(frontend(number), key)]),
        ..ServicePlan::absent(ServiceName::new("default", ""))
    }
}

fn absent(number: u8) -> ServicePlan {
    ServicePlan::absent(ServiceName::new("default", &format!("s{number}")))
}

fn empty() -> (Watched, Table) {
    let mut maps = Watched::default();
    let table = Table::adopt(&mut maps, LIMITS).expect("memory does not fail");
    (maps, table)
}

fn apply(table: &mut Table, maps: &mut Watched, plan: &ServicePlan) {
    let errors = table.apply(maps, plan);
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn the_same_plan_writes_nothing() {
    let (mut maps, mut table) = empty();
    apply(&mut table, &mut maps, &plan(1, &[1, 2]));
    let writes = maps.writes;
    assert_eq!(writes, 4, "two backends, the head, the frontend");
    apply(&mut table, &mut maps, &plan(1, &[1, 2]));
    assert_eq!(maps.writes, writes);
}

#[test]
fn a_removed_service_leaves_room() {
    let (mut maps, mut table) = empty();
    for _ in 0..100 {
        for number in 0..8 {
            apply(&mut table, &mut maps, &plan(number, &[1, 2, 3, 4, 5, 6]));
        }
        for number in 0..8 {
            apply(&mut table, &mut maps, &absent(number));
        }
    }
    assert!(maps.memory.frontends.borrow().is_empty());
    assert_eq!(table.names().count(), 0);
}

#[test]
fn limits_are_named_and_the_rest_goes_on() {
    let many: Vec<u8> = (0..=70).collect();
    let (mut maps, mut table) = empty();
    apply(&mut table, &mut maps, &plan(1, &[1]));

    let errors = table.apply(&mut maps, &plan(2, &many));
    assert!(matches!(errors[..], [ApplyError::Limit { limit: Limit::Backends, max: 64, .. }]), "{errors:?}");
    let errors = table.apply(&mut maps, &plan(1, &many));
    assert!(matches!(errors[..], [ApplyError::Limit { limit: Limit::Backends, .. }]), "{errors:?}");
    assert_eq!(maps.lookup(&frontend(1)), Some(place(1)), "the old generation goes on");

    for number in 2..9 {
        apply(&mut table, &mut maps, &plan(number, &[number]));
    }
    let errors = table.apply(&mut maps, &plan(9, &[9]));
    assert!(matches!(errors[..], [ApplyError::Limit { limit: Limit::Services, max: 8, .. }]), "{errors:?}");
    apply(&mut table, &mut maps, &absent(2));
    apply(&mut table, &mut maps, &plan(9, &[9]));
    assert_eq!(maps.lookup(&frontend(9)), Some(place(9)));
}

#[test]
fn an_address_belongs_to_one_service() {
    let (mut maps, mut table) = empty();
    apply(&mut table, &mut maps, &plan(1, &[1]));
    let mut thief = plan(2, &[2]);
    let (_, key) = thief.frontends.pop_first().expect("it has one");
    thief.frontends.insert(frontend(1), key);
    let errors = table.apply(&mut maps, &thief);
    assert!(matches!(&errors[..], [ApplyError::Taken { address, .. }] if address == "10.96.0.1:80/TCP"));
    assert_eq!(maps.lookup(&frontend(1)), Some(place(1)));

    apply(&mut table, &mut maps, &absent(1));
    apply(&mut table, &mut maps, &thief);
    assert_eq!(maps.lookup(&frontend(1)), Some(place(2)), "free again");
}

#[test]
fn a_restart_writes_what_changed_only() {
    let (mut maps, mut table) = empty();
    for number in 1..=4 {
        apply(&mut table, &mut maps, &plan(number, &[number, 100]));
    }
    let mut table = Table::adopt(&mut maps, LIMITS).expect("memory does not fail");
    let before = maps.writes;
    apply(&mut table, &mut maps, &plan(1, &[1, 100]));
    apply(&mut table, &mut maps, &plan(2, &[2, 100]));
    assert_eq!(maps.writes, before, "nothing changed");
    apply(&mut table, &mut maps, &plan(3, &[3]));
    assert_eq!(maps.writes, before + 2, "a backend and the head");
    assert!(maps.lookup(&frontend(4)).is_some(), "nobody has said that it is gone");
    table.finish_adoption(&mut maps).expect("memory does not fail");
    assert_eq!(maps.lookup(&frontend(4)), None, "gone while nobody looked");
    assert_eq!(maps.memory.frontends.borrow().len(), 3);

    let heads: HashSet<u64> = maps.memory.services.borrow().values().map(|service| service.head).collect();
    let runs: Vec<(u32, u16)> = heads
        .into_iter()
        .map(Head::unpack)
        .filter(|head| head.count > 0)
        .map(|head| (head.first, head.count))
        .collect();
    for (at, (first, count)) in runs.iter().enumerate() {
        for (other, _) in &runs[at + 1..] {
            assert!(!(*first..first + u32::from(*count)).contains(other), "runs overlap: {runs:?}");
        }
    }
}

#[test]
fn whom_packets_may_name_follows_the_plan_and_a_restart() {
    let (mut maps, mut table) = empty();
    let named = |hosts: &[u8], others: &[u8]| {
        let mut plan = plan(1, hosts);
        for group in plan.groups.values_mut() {
            group.named = true;
            group.others = others.iter().map(|host| place(*host)).collect();
        }
        plan
    };
    let now = |maps: &Watched| -> Vec<Ipv4Addr> {
        let all = maps.servers().expect("memory does not fail");
        all.into_values().flatten().map(|(address, _)| address).collect()
    };
    let are = |hosts: &[u8]| -> Vec<Ipv4Addr> { hosts.iter().map(|host| *place(*host).ip()).collect() };
    apply(&mut table, &mut maps, &named(&[1, 2], &[]));
    assert_eq!(now(&maps), are(&[1, 2]));
    apply(&mut table, &mut maps, &named(&[2], &[1]));
    assert_eq!(now(&maps), are(&[1, 2]), "who drains is still there");
    // What a proxy had written that was killed before it was in force.
    let stray = BTreeMap::from([(*place(9).ip(), place(9))]);
    maps.set_servers(7, &BTreeMap::new(), &stray).expect("memory does not fail");
    let mut table = Table::adopt(&mut maps, LIMITS).expect("memory does not fail");
    apply(&mut table, &mut maps, &named(&[2, 3], &[]));
    assert_eq!(now(&maps), are(&[2, 3]));
    apply(&mut table, &mut maps, &plan(1, &[2, 3]));
    assert_eq!(now(&maps), are(&[]), "the annotation is gone");
    apply(&mut table, &mut maps, &named(&[2], &[]));
    apply(&mut table, &mut maps, &absent(1));
    assert_eq!(now(&maps), are(&[]));
}

#[test]
fn a_restart_serves_no_source_that_is_not_named_any_more() {
    let (mut maps, mut table) = empty();
    let sources = |ranges: [&str; 2]| {
        let mut plan = plan(1, &[1]);
        for group in plan.groups.values_mut() {
            group.sources = ranges.iter().map(|range| range.parse().expect("a network")).collect();
        }
        plan
    };
    apply(&mut table, &mut maps, &sources(["192.0.2.0/24", "198.51.100.0/24"]));
    let mut table = Table::adopt(&mut maps, LIMITS).expect("memory does not fail");
    apply(&mut table, &mut maps, &sources(["192.0.2.0/24", "203.0.113.0/24"]));
    let served = maps.sources().expect("memory does not fail");
    let served: Vec<String> = served.values().flatten().map(ToString::to_string).collect();
    assert_eq!(served, ["192.0.2.0/24", "203.0.113.0/24"]);
}

proptest! {
    /// Whatever changes in whatever order, restarts included: at every single write each Service answers
    /// with a backend of its old or of its new set.
    #[test]
    fn no_write_shows_half_a_service(
        steps in prop::collection::vec((0u8..6, prop::collection::btree_set(1u8..30, 1..8), any::<u8>()), 1..60),
    ) {
        let (mut maps, mut table) = empty();
        let mut current: BTreeMap<u8, HashSet<SocketAddrV4>> = BTreeMap::new();
        for (number, hosts, dice) in steps {
            if dice < 16 {
                table = Table::adopt(&mut maps, LIMITS).expect("memory does not fail");
                for (number, places) in &current {
                    let mut hosts: Vec<u8> = places.iter().map(|place| place.ip().octets()[3]).collect();
                    hosts.sort_unstable();
                    apply(&mut table, &mut maps, &plan(*number, &hosts));
                }
                table.finish_adoption(&mut maps).expect("memory does not fail");
            }
            let hosts: Vec<u8> = hosts.into_iter().collect();
            let next: HashSet<SocketAddrV4> = hosts.iter().map(|host| place(*host)).collect();
            let old = current.get(&number).cloned();
            maps.allowed = current.iter().map(|(number, set)| (frontend(*number), set.clone())).collect();
            if dice > 200 {
                // A Service that goes may refuse at any time.
                maps.allowed.remove(&frontend(number));
                apply(&mut table, &mut maps, &absent(number));
                current.remove(&number);
                prop_assert_eq!(maps.lookup(&frontend(number)), None);
                continue;
            }
            if let Some(old) = old {
                maps.allowed.insert(frontend(number), old.union(&next).copied().collect());
            }
            apply(&mut table, &mut maps, &plan(number, &hosts));
            let found = maps.lookup(&frontend(number)).expect("it has backends");
            prop_assert!(next.contains(&found));
            current.insert(number, next);
        }
    }
}
