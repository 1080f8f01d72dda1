//! What the API tells, in every order it may tell it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use crate::{
    annotations::Forwarding,
    plan::{NodeIdentity, Reach},
    service::{Endpoint, Node, Protocol, Service, ServiceName, ServicePort, Slice},
    world::{Change, Event, Nodes, World},
};

fn name(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

fn service(of: &str) -> Event {
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    let service = Service {
        cluster_ips: vec![Ipv4Addr::new(10, 96, 0, 10)],
        ports: vec![port],
        ..Service::named(name(of))
    };
    Event::Service(Change::Is(name(of), Some(service)))
}

fn slice(slice: &str, of: &str, hosts: &[u8]) -> Event {
    let endpoint = |host: &u8| Endpoint::ready([10, 244, 0, *host].into());
    let ports = vec![(Arc::from(""), Protocol::Tcp, 8080)];
    let endpoints = hosts.iter().map(endpoint).collect();
    Event::Slice(Change::Is(name(slice), Some(Slice { service: name(of), ports, endpoints })))
}

fn world(events: Vec<Event>) -> World {
    let mut world = World::new(NodeIdentity::new("here"));
    events.into_iter().for_each(|event| world.take(event));
    world
}

/// Names and backends of what has to be planned anew.
fn dirty(world: &mut World) -> Vec<(String, Vec<u8>)> {
    let hosts = |plan: &crate::ServicePlan| {
        let backends = plan.groups.values().flat_map(|group| &group.backends);
        backends.map(|backend| backend.ip().octets()[3]).collect()
    };
    world.take_dirty().iter().map(|plan| (plan.service.to_string(), hosts(plan))).collect()
}

#[test]
fn changes_reach_the_services_they_concern() {
    let a = |hosts: &[u8]| vec![("default/a".to_owned(), hosts.to_vec())];
    let mut world = world(vec![slice("a-1", "a", &[1]), service("a"), service("b"), slice("b-1", "b", &[9])]);
    assert_eq!(dirty(&mut world), [("default/a".to_owned(), vec![1]), ("default/b".to_owned(), vec![9])]);
    assert_eq!(dirty(&mut world), []);

    let cases = [
        ("a second slice", slice("a-2", "a", &[2, 3]), a(&[1, 2, 3])),
        ("the same again", slice("a-2", "a", &[2, 3]), vec![]),
        ("fewer", slice("a-2", "a", &[3]), a(&[1, 3])),
        ("a slice goes", Event::Slice(Change::Gone(name("a-1"))), a(&[3])),
        ("it goes again", Event::Slice(Change::Gone(name("a-1"))), vec![]),
        (
            "a slice moves to another Service",
            slice("a-2", "b", &[3]),
            vec![("default/a".to_owned(), vec![]), ("default/b".to_owned(), vec![3, 9])],
        ),
        ("it becomes headless", Event::Service(Change::Is(name("a"), None)), a(&[])),
        ("it is deleted", Event::Service(Change::Gone(name("a"))), vec![]),
    ];
    for (name, event, expect) in cases {
        world.take(event);
        assert_eq!(dirty(&mut world), expect, "{name}");
    }
}

#[test]
fn what_a_new_list_does_not_name_is_gone() {
    let mut world = world(vec![service("a"), service("b")]);
    assert!(!world.complete());
    dirty(&mut world);
    world.take(Event::Service(Change::ListBegins));
    world.take(service("b"));
    assert_eq!(dirty(&mut world), [], "not before the list ends");
    world.take(Event::Service(Change::ListEnds));
    assert_eq!(dirty(&mut world), [("default/a".to_owned(), vec![])]);
    assert!(!world.complete());
    world.take(Event::Slice(Change::ListEnds));
    world.take(Event::Node(Change::ListEnds));
    world.take(Event::Pod(Change::ListEnds));
    assert!(world.complete());
}

#[test]
fn nodes_are_told_apart() {
    let node = |node: &str, host: u8| {
        let pod_cidr = format!("10.244.{host}.0/24").parse().ok();
        let addresses = vec![Ipv4Addr::new(172, 30, 0, host)];
        let node_object = Node {
            name: node.into(),
            addresses,
            addresses6: Vec::new(),
            pod_cidr,
            pod_cidr6: None,
            zone: None,
            ready: true,
        };
        Event::Node(Change::Is(name(node), Some(node_object)))
    };
    let mut world = world(vec![node("here", 2), node("there", 3), node("yonder", 4)]);
    let Nodes { pods: pod_cidr, others, .. } = world.take_nodes(&[]).expect("they are new");
    assert_eq!(pod_cidr.map(|cidr| cidr.to_string()).as_deref(), Some("10.244.2.0/24"));
    assert_eq!(others, BTreeSet::from([3, 4].map(|host| IpAddr::from([172, 30, 0, host]))));
    assert_eq!(world.take_nodes(&[]), None);
    world.take(node("there", 3));
    assert_eq!(world.take_nodes(&[]), None, "nothing changed");
}

/// A node on the uplink's own link is handed packets on, once it is known that it is there.
#[test]
fn neighbours_are_handed_on_to() {
    let node = |node: &str, host: u8| {
        let addresses = vec![Ipv4Addr::new(172, 30, 0, host)];
        let object = Node {
            name: node.into(),
            addresses,
            addresses6: Vec::new(),
            pod_cidr: None,
            pod_cidr6: None,
            zone: None,
            ready: true,
        };
        Event::Node(Change::Is(name(node), Some(object)))
    };
    let Event::Service(Change::Is(_, Some(mut direct))) = service("a") else { unreachable!() };
    direct.annotations.forwarding = Forwarding::Dsr;
    direct.external_ips = vec![Ipv4Addr::new(198, 51, 100, 7)];
    let mut endpoints = slice("a-1", "a", &[1, 2]);
    if let Event::Slice(Change::Is(_, Some(slice))) = &mut endpoints {
        slice.endpoints[0].node = Some("there".into());
        slice.endpoints[1].node = Some("yonder".into());
    }
    let is = Event::Service(Change::Is(name("a"), Some(direct)));
    let mut world = world(vec![is, endpoints, service("b")]);
    dirty(&mut world);
    world.take(node("there", 3));
    world.take(node("yonder", 9));
    world.take_nodes(&["172.30.0.0/29".parse().expect("a network")]).expect("they are new");
    let plans = world.take_dirty();
    let [plan] = plans.as_slice() else { panic!("{plans:?}") };
    let outside = plan.groups.iter().find(|(key, _)| key.reach == Reach::External).expect("from outside");
    let slots: Vec<String> = outside.1.slots().iter().map(ToString::to_string).collect();
    assert_eq!(slots, ["172.30.0.3:0", "10.244.0.2:8080"]);

    let at = |host| world.has_endpoint_at(&name("a"), Ipv4Addr::new(172, 30, 0, host));
    assert!(at(3) && at(9) && !at(4));
    assert!(!world.has_endpoint_at(&name("b"), Ipv4Addr::new(172, 30, 0, 3)));
}
