//! IPv6 addresses in the table, on maps in memory.

use std::{
    collections::BTreeMap,
    net::{SocketAddrV4, SocketAddrV6},
    sync::Arc,
};

use pith_abi::{Address6, Frontend, Scope, StandIn};

use crate::{
    limit::Limit,
    plan::{Family, Frontend6, Group, Group6, GroupKey, Reach, ServicePlan, Six},
    service::{Protocol, ServiceName},
    table::{ApplyError, Table},
    table_tests::{LIMITS, Watched},
};

/// Rounds after which an address that nobody uses is forgotten.
const ROUNDS: u64 = 26;

fn place(text: &str) -> SocketAddrV6 {
    text.parse().expect("an address and a port")
}

fn plan(name: &str, at: &str, backends: &[&str]) -> ServicePlan {
    let service = ServiceName::new("default", name);
    let port: Arc<str> = "".into();
    let key = GroupKey {
        service: service.clone(),
        port,
        protocol: Protocol::Tcp,
        family: Family::Ipv6,
        reach: Reach::Internal,
    };
    let backends = backends.iter().map(|backend| place(backend)).collect();
    let group = Group6 { backends, like: Group::default(), others: Vec::new() };
    let at = place(at);
    let (address, port) = (Some(*at.ip()), at.port());
    let frontend = Frontend6 { address, port, protocol: Protocol::Tcp, scope: Scope::INSIDE6 };
    let six = Six {
        groups: BTreeMap::from([(key.clone(), group)]),
        frontends: BTreeMap::from([(frontend, key)]),
        ..Six::default()
    };
    ServicePlan { six, ..ServicePlan::absent(service) }
}

fn standin(maps: &Watched, place: &SocketAddrV6) -> Option<StandIn> {
    let address = Address6::from_octets(place.ip().octets());
    maps.addresses().into_iter().find(|(_, known)| known.address == address).map(|(standin, _)| standin)
}

/// The backends that a client of an IPv6 place is led to.
fn lookup(maps: &Watched, at: &str) -> Vec<String> {
    let at = place(at);
    let Some(standin) = standin(maps, &at) else { return Vec::new() };
    let frontend = Frontend::new(standin.addr_be, at.port().to_be(), 6).scoped(Scope::INSIDE6);
    let real = |found: SocketAddrV4| {
        let standin = StandIn { addr_be: u32::from_ne_bytes(found.ip().octets()) };
        let address = maps.addresses()[&standin].address;
        SocketAddrV6::new(address.octets().into(), found.port(), 0, 0).to_string()
    };
    let mut found: Vec<String> = (0..50).filter_map(|_| maps.lookup(&frontend)).map(real).collect();
    found.sort();
    found.dedup();
    found
}

fn apply(table: &mut Table, maps: &mut Watched, plan: &ServicePlan) {
    let errors = table.apply(maps, plan);
    assert!(errors.is_empty(), "{errors:?}");
}

fn empty() -> (Watched, Table) {
    let mut maps = Watched::default();
    let table = Table::adopt(&mut maps, LIMITS).expect("memory does not fail");
    (maps, table)
}

const AT: &str = "[fd00:96::a]:80";

#[test]
fn a_service_leads_to_its_backends() {
    let (mut maps, mut table) = empty();
    apply(&mut table, &mut maps, &plan("web", AT, &[]));
    assert_eq!(lookup(&maps, AT), Vec::<String>::new());
    apply(&mut table, &mut maps, &plan("web", AT, &["[fd00::1]:8080", "[fd00::2]:8080"]));
    assert_eq!(lookup(&maps, AT), ["[fd00::1]:8080", "[fd00::2]:8080"]);
    apply(&mut table, &mut maps, &plan("web", AT, &["[fd00::2]:8080", "[fd00::2]:81"]));
    assert_eq!(lookup(&maps, AT), ["[fd00::2]:8080", "[fd00::2]:81"]);
    apply(&mut table, &mut maps, &ServicePlan::absent(ServiceName::new("default", "web")));
    assert_eq!(lookup(&maps, AT), Vec::<String>::new());
    assert_eq!(table.names().count(), 0);
}

/// Whether an address is known to the table: what is not is taken from the maps when no flow has it.
fn is_known(maps: &Watched, table: &Table, at: &str) -> bool {
    standin(maps, &place(at)).is_some_and(|standin| table.stand_ins().contains(&standin))
}

#[test]
fn an_address_that_nobody_uses_rests_before_it_is_forgotten() {
    let (mut maps, mut table) = empty();
    apply(&mut table, &mut maps, &plan("web", AT, &["[fd00::1]:8080"]));
    apply(&mut table, &mut maps, &plan("other", "[fd00:96::b]:80", &["[fd00::1]:9090"]));
    apply(&mut table, &mut maps, &plan("web", AT, &["[fd00::2]:8080"]));
    let at = "[fd00::1]:0";
    let pass = |table: &mut Table, maps: &mut Watched, rounds| {
        (0..rounds).for_each(|_| table.tick(maps).expect("memory does not fail"));
    };
    pass(&mut table, &mut maps, ROUNDS);
    assert!(is_known(&maps, &table, at), "another Service uses it");

    apply(&mut table, &mut maps, &plan("other", "[fd00:96::b]:80", &[]));
    pass(&mut table, &mut maps, 1);
    assert!(is_known(&maps, &table, at), "it rests");
    apply(&mut table, &mut maps, &plan("other", "[fd00:96::b]:80", &["[fd00::1]:9090"]));
    pass(&mut table, &mut maps, ROUNDS);
    assert!(is_known(&maps, &table, at), "it is used again");

    apply(&mut table, &mut maps, &plan("other", "[fd00:96::b]:80", &[]));
    pass(&mut table, &mut maps, ROUNDS);
    assert!(!is_known(&maps, &table, at));
    assert_eq!(lookup(&maps, AT), ["[fd00::2]:8080"]);
}

#[test]
fn a_restart_keeps_stand_ins() {
    let (mut maps, mut table) = empty();
    apply(&mut table, &mut maps, &plan("web", AT, &["[fd00::1]:8080"]));
    apply(&mut table, &mut maps, &plan("gone", "[fd00:96::b]:80", &["[fd00::9]:1"]));
    let before = maps.addresses();
    let mut table = Table::adopt(&mut maps, LIMITS).expect("memory does not fail");
    apply(&mut table, &mut maps, &plan("web", AT, &["[fd00::1]:8080"]));
    table.finish_adoption(&mut maps).expect("memory does not fail");
    assert_eq!(maps.addresses(), before);
    assert_eq!(lookup(&maps, AT), ["[fd00::1]:8080"]);
    assert_eq!(table.stand_ins().len(), 2, "of four that a former process knew");
}

#[test]
fn what_finds_no_room_is_named_and_the_rest_goes_on() {
    let (mut maps, mut table) = empty();
    let many: Vec<String> = (1..=9).map(|host| format!("[fd00::{host}]:80")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let errors = table.apply(&mut maps, &plan("web", AT, &many));
    assert!(matches!(errors[..], [ApplyError::Limit { limit: Limit::Addresses, max: 8, .. }]), "{errors:?}");
    assert_eq!(lookup(&maps, AT), &many[..7], "eight addresses have room, one is the Service's");
    // There is room again, but only after a rest.
    apply(&mut table, &mut maps, &plan("web", AT, &many[..1]));
    assert!(!table.apply(&mut maps, &plan("web", AT, &[many[0], many[8]])).is_empty());
    (0..ROUNDS).for_each(|_| table.tick(&mut maps).expect("memory does not fail"));
    apply(&mut table, &mut maps, &plan("web", AT, &[many[0], many[8]]));
    assert_eq!(lookup(&maps, AT), [many[0], many[8]]);
}
