//! Plans as tables, and the API's objects as the proxy reads them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use pith_abi::{Frontend, Scope};

use crate::{
    annotations::Forwarding,
    plan::{Frontend6, NodeIdentity, Reach, plan, plan_service},
    service::{Endpoint, Policy, Protocol, Service, ServiceName, ServicePort, Slice, service, slice},
};

const HERE: &str = "here";

fn node() -> NodeIdentity {
    NodeIdentity::new(HERE)
}

fn demo(internal: Policy, external: Policy) -> Service {
    let port = |name: &str, port, node_port| ServicePort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port,
        node_port,
    };
    Service {
        cluster_ips: vec![[10, 96, 0, 10].into()],
        ports: vec![port("web", 80, Some(30_080)), port("admin", 81, None)],
        internal,
        external,
        ..Service::named(ServiceName::new("default", "demo"))
    }
}

/// An endpoint as (last byte of the address, state, node); states are r(eady), d(raining), n(either).
type Brief = (u8, char, &'static str);

fn demo_slice(endpoints: &[Brief]) -> Slice {
    let endpoint = |(host, state, node): &Brief| Endpoint {
        ready: *state == 'r',
        draining: *state == 'd',
        node: Some(Arc::from(*node)),
        ..Endpoint::ready([10, 244, 0, *host].into())
    };
    Slice {
        service: ServiceName::new("default", "demo"),
        ports: vec![("web".into(), Protocol::Tcp, 8080), ("admin".into(), Protocol::Tcp, 9090)],
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

#[test]
fn which_endpoints_serve() {
    use Policy::{Cluster, Local};
    let cases: [(&str, Policy, &[Brief], &[u8]); 9] = [
        ("nothing", Cluster, &[], &[]),
        ("ready ones, in order", Cluster, &[(3, 'r', "a"), (1, 'r', HERE), (2, 'n', "a")], &[1, 3]),
        ("ready before draining", Cluster, &[(1, 'd', HERE), (2, 'r', "a")], &[2]),
        ("draining where none is ready", Cluster, &[(1, 'd', HERE), (2, 'd', "a"), (3, 'n', "a")], &[1, 2]),
        ("named twice", Cluster, &[(1, 'r', HERE), (1, 'r', HERE)], &[1]),
        ("local only", Local, &[(1, 'r', HERE), (2, 'r', "a")], &[1]),
        ("local draining before remote ready", Local, &[(1, 'd', HERE), (2, 'r', "a")], &[1]),
        ("none is local", Local, &[(2, 'r', "a")], &[]),
        ("local and not ready", Local, &[(1, 'n', HERE)], &[]),
    ];
    for (name, policy, endpoints, expect) in cases {
        let slice = demo_slice(endpoints);
        let plan = plan_service(&demo(policy, policy), [&slice].into_iter(), &node());
        // What pods reach by outside addresses is every endpoint, whatever the policies.
        for (key, group) in plan.groups.iter().filter(|(key, _)| key.reach != Reach::Cluster) {
            let hosts: Vec<u8> = group.backends.iter().map(|backend| backend.ip().octets()[3]).collect();
            assert_eq!(hosts, expect, "{name}: {key:?}");
            let port = if &*key.port == "web" { 8080 } else { 9090 };
            assert!(group.backends.iter().all(|backend| backend.port() == port), "{name}: {key:?}");
        }
    }
}

#[test]
fn frontends_and_policies() {
    use Policy::{Cluster, Local};
    let web = Frontend::new(u32::from_ne_bytes([10, 96, 0, 10]), 80u16.to_be(), 6);
    let node_port = Frontend::node_port(30_080u16.to_be(), 6);
    let from_outside = node_port.scoped(Scope::OUTSIDE);
    for (internal, external, reach) in [
        (Cluster, Cluster, Reach::Internal),
        (Local, Local, Reach::External),
        (Cluster, Local, Reach::External),
        (Local, Cluster, Reach::Cluster),
    ] {
        let slice = demo_slice(&[(1, 'r', HERE), (2, 'r', "a")]);
        let plan = plan_service(&demo(internal, external), [&slice].into_iter(), &node());
        assert_eq!(plan.frontends.len(), 4, "two cluster ports, a node port from inside and outside");
        let group = |frontend| &plan.groups[&plan.frontends[frontend]];
        let count = |policy| if policy == Local { 1 } else { 2 };
        assert_eq!(group(&web).backends.len(), count(internal));
        assert_eq!(group(&from_outside).backends.len(), count(external));
        assert_eq!(group(&node_port).backends.len(), 2, "pods of this node take no detour");
        assert_eq!(plan.frontends[&from_outside].reach, reach, "groups differ where policies do");
    }
}

/// Direct server return: a slot is the node of a backend elsewhere, and what another node hands on has backends here.
#[test]
fn backends_of_what_is_handed_on() {
    use Policy::{Cluster, Local};
    let backend = |host: u8| SocketAddrV4::new([10, 244, 0, host].into(), 8080);
    let node_a = SocketAddrV4::new([172, 30, 0, 3].into(), 0);
    let mut node = node();
    node.neighbours.insert("a".into(), *node_a.ip());
    let both: &[Brief] = &[(1, 'r', HERE), (2, 'r', "a"), (3, 'r', "a"), (4, 'r', "far")];
    let away: &[Brief] = &[(2, 'r', "a"), (3, 'n', HERE)];
    for (name, endpoints, policy, slots, taken) in [
        (
            "here, a neighbour's, and far away",
            both,
            Cluster,
            vec![backend(1), node_a, node_a, backend(4)],
            Some(vec![backend(1)]),
        ),
        ("none here", away, Cluster, vec![node_a], Some(vec![backend(2)])),
        ("those here answer anyhow", both, Local, vec![backend(1)], None),
    ] {
        let mut service = demo(Cluster, policy);
        service.annotations.forwarding = Forwarding::Dsr;
        service.balancer_ips = vec![[172, 30, 0, 200].into()];
        service.sources = vec!["192.0.2.0/24".parse().expect("a range")];
        let slice = demo_slice(endpoints);
        let plan = plan_service(&service, [&slice].into_iter(), &node);
        assert_eq!(plan.is_direct(), taken.is_some(), "{name}");
        let balancer = Frontend::new(u32::from_ne_bytes([172, 30, 0, 200]), 80u16.to_be(), 6);
        for (frontend, sources) in [(Frontend::node_port(30_080u16.to_be(), 6), 0), (balancer, 1)] {
            let group = |scope| plan.frontends.get(&frontend.scoped(scope)).map(|key| &plan.groups[key]);
            let outside = group(Scope::OUTSIDE).expect("it is reached from outside");
            assert_eq!((outside.slots(), outside.sources.len()), (slots.clone(), sources), "{name}");
            let handed = group(Scope::HANDED);
            assert_eq!(handed.map(|group| group.slots()), taken, "{name}");
            assert!(
                handed.is_none_or(|group| group.sources.len() == sources),
                "{name}: a mark is no way round"
            );
            if let Some(inside) = group(Scope::INSIDE) {
                assert!(inside.via.is_empty(), "{name}: pods take no detour");
            }
        }
    }
}

#[test]
fn each_family_has_its_own_endpoints() {
    let host = |last| Ipv6Addr::new(0xFD00, 0, 0, 0, 0, 0, 0, last);
    let mut six = demo_slice(&[(1, 'r', HERE), (2, 'r', "a"), (3, 'd', "a")]);
    for (endpoint, last) in six.endpoints.iter_mut().zip(1..) {
        endpoint.address = host(last).into();
    }
    let four = demo_slice(&[(9, 'r', HERE)]);
    let service = |policy, cluster_ips: &[&str]| {
        let cluster_ips: Vec<IpAddr> =
            cluster_ips.iter().map(|address| address.parse().expect("an address")).collect();
        Service {
            cluster_ips: cluster_ips.iter().filter_map(crate::service::ipv4).collect(),
            cluster_ips6: cluster_ips.iter().filter_map(crate::service::ipv6).collect(),
            ..demo(policy, policy)
        }
    };
    let hosts = |six: &[SocketAddrV6]| -> Vec<u16> { six.iter().map(|at| at.ip().segments()[7]).collect() };
    for (name, policy, cluster_ips, in4, in6, others) in [
        ("both", Policy::Cluster, &["10.96.0.10", "fd00::10"][..], Some(1), Some(&[1, 2][..]), &[3][..]),
        ("both, local", Policy::Local, &["10.96.0.10", "fd00::10"], Some(1), Some(&[1]), &[2, 3]),
        ("IPv4", Policy::Cluster, &["10.96.0.10"], Some(1), None, &[]),
        ("IPv6", Policy::Cluster, &["fd00::10"], None, Some(&[1, 2]), &[]),
    ] {
        let plan = plan_service(&service(policy, cluster_ips), [&four, &six].into_iter(), &node());
        let internal = plan.groups.iter().find(|(key, _)| key.reach == Reach::Internal);
        assert_eq!(internal.map(|(_, group)| group.backends.len()), in4, "{name}");
        assert_eq!(plan.frontends.is_empty(), in4.is_none(), "{name}");
        let at = |address, port, scope| Frontend6 { address, port, protocol: Protocol::Tcp, scope };
        for scope in [Scope::INSIDE6, Scope::OUTSIDE6] {
            let node_port = plan.six.frontends.contains_key(&at(None, 30_080, scope));
            assert_eq!(node_port, in6.is_some(), "{name}: node port of IPv6, {scope}");
        }
        let at = at(Some(host(0x10)), 80, Scope::INSIDE6);
        let group = plan.six.frontends.get(&at).map(|key| &plan.six.groups[key]);
        assert_eq!(group.map(|group| hosts(&group.backends)).as_deref(), in6, "{name}");
        if let Some(group) = group.filter(|_| !others.is_empty()) {
            assert_eq!(hosts(&group.others), others, "{name}");
        }
    }
}

#[test]
fn slices_of_others_are_ignored() {
    let mut foreign = demo_slice(&[(9, 'r', HERE)]);
    foreign.service = ServiceName::new("default", "other");
    let own = demo_slice(&[(1, 'r', HERE)]);
    let service = demo(Policy::Cluster, Policy::Cluster);
    let plans = plan([&service], &[foreign, own], &node());
    assert_eq!(plans.len(), 1);
    assert!(plans[&service.name].groups.values().all(|group| group.backends.len() == 1));
}

#[test]
fn services_as_the_api_has_them() {
    let parse = |spec: serde_json::Value| {
        let object = serde_json::json!({
            "metadata": { "namespace": "default", "name": "demo" },
            "spec": spec,
        });
        service(&serde_json::from_value::<core::Service>(object).expect("a Service"))
    };
    let ports = serde_json::json!([
        { "port": 80, "protocol": "TCP", "targetPort": "http", "nodePort": 30080 },
        { "port": 53, "protocol": "UDP", "name": "dns" },
        { "port": 99, "protocol": "SCTP", "name": "sctp" },
    ]);
    let whole = parse(serde_json::json!({
        "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::10"], "ports": ports,
        "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local",
    }))
    .expect("it has an address");
    assert_eq!(whole.cluster_ips, [Ipv4Addr::new(10, 96, 0, 10)]);
    assert_eq!(whole.cluster_ips6, [Ipv6Addr::new(0xFD00, 0, 0, 0, 0, 0, 0, 0x10)]);
    let seen: Vec<_> =
        whole.ports.iter().map(|port| (&*port.name, port.protocol, port.port, port.node_port)).collect();
    let sctp = ("sctp", Protocol::Sctp, 99, None);
    assert_eq!(seen, [("", Protocol::Tcp, 80, Some(30_080)), ("dns", Protocol::Udp, 53, None), sctp]);
    assert_eq!(whole.affinity, Some(Duration::from_secs(10_800)));
    assert_eq!((whole.internal, whole.external), (Policy::Cluster, Policy::Local));

    for (name, spec) in [
        ("headless", serde_json::json!({ "clusterIP": "None", "clusterIPs": ["None"] })),
        ("no address yet", serde_json::json!({})),
        ("external name", serde_json::json!({ "type": "ExternalName", "clusterIP": "10.96.0.1" })),
    ] {
        assert_eq!(parse(spec), None, "{name}");
    }
}

#[test]
fn slices_as_the_api_has_them() {
    let parse = |address_type: &str, conditions: serde_json::Value| {
        let object = serde_json::json!({
            "metadata": {
                "namespace": "default", "name": "demo-x",
                "labels": { "kubernetes.io/service-name": "demo" },
            },
            "addressType": address_type,
            "ports": [{ "name": "web", "port": 8080, "protocol": "TCP" }],
            "endpoints": [
                { "addresses": ["10.244.0.1"], "conditions": conditions, "nodeName": HERE },
                { "addresses": ["not an address"] },
            ],
        });
        slice(&serde_json::from_value::<discovery::EndpointSlice>(object).expect("an EndpointSlice"))
    };
    let cases = [
        ("unset", serde_json::json!({}), (true, false)),
        ("ready", serde_json::json!({ "ready": true }), (true, false)),
        ("not ready", serde_json::json!({ "ready": false, "serving": true }), (false, false)),
        (
            "draining",
            serde_json::json!({ "ready": false, "serving": true, "terminating": true }),
            (false, true),
        ),
        (
            "ending, does not serve",
            serde_json::json!({ "ready": false, "serving": false, "terminating": true }),
            (false, false),
        ),
    ];
    for (name, conditions, expect) in cases {
        let slice = parse("IPv4", conditions).expect("it is of a Service");
        assert_eq!(slice.endpoints.len(), 1, "{name}: what is no address is left out");
        let endpoint = &slice.endpoints[0];
        assert_eq!((endpoint.ready, endpoint.draining), expect, "{name}");
    }
    assert_eq!(parse("FQDN", serde_json::json!({})), None);
}
