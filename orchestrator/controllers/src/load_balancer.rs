//! Load balancers: gives every Service of that type an address of each of its families out of the cluster's pools
//! (`status.loadBalancer.ingress`). The proxies of the nodes announce it and answer there.
//!
//! What is taken is read from the Services themselves, so there is no second record that could disagree. One
//! worker assigns, and the cache shows its own writes, so no address is given twice.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use ipnet::{IpNet, Ipv4AddrRange, Ipv6AddrRange};
use k8s_openapi::api::core::v1::Service;
use kube::api::Patch;
use pith_informer::{Key, Outcome, Queue, work};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::error;

/// What is to be done about one Service's address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Nothing,
    /// It has these from now on: those that it keeps, and new ones.
    Give(Vec<IpAddr>),
    /// It is no load balancer any more.
    TakeBack,
    /// None can be given, in words.
    Wait(String),
}

pub(crate) fn controller(
    cluster: &Arc<Cluster>,
    pools: Vec<IpNet>,
    cancel: CancellationToken,
) -> BoxFuture<'static, ()> {
    let queue = Queue::new();
    let to = queue.clone();
    cluster.services.on_change(move |change| {
        // A Service that goes may free the address that another waits for; that one is retried anyhow.
        if let Some(service) = &change.new
            && (is_balanced(service) || addresses(service).next().is_some())
        {
            to.add(Key::of(service.as_ref()));
        }
    });
    let cluster = cluster.clone();
    Box::pin(async move {
        cluster.services.synced().await;
        // One worker: two would pick the same free address.
        work("load-balancer", queue, 1, cancel, |key| reconcile(&cluster, &pools, key)).await;
    })
}

async fn reconcile(cluster: &Cluster, pools: &[IpNet], key: Key) -> error::Result<Outcome> {
    let Some(service) = cluster.services.get(&key) else { return Ok(Outcome::Done) };
    let ingress = match plan(pools, &service, &cluster.services.all()) {
        Action::Nothing => return Ok(Outcome::Done),
        Action::Give(addresses) => {
            let ingress =
                addresses.iter().map(|address| json!({ "ip": address.to_string(), "ipMode": "VIP" }));
            ingress.collect()
        }
        Action::TakeBack => json!(null),
        Action::Wait(why) => {
            let events = cluster.events.named("service-controller");
            events.warning(service.as_ref(), "SyncLoadBalancerFailed", why.clone());
            return Err(crate::Error::object(service.as_ref(), why));
        }
    };
    let patch = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
    match cluster.patch_status(&cluster.services, service.as_ref(), &Patch::Merge(patch)).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(Outcome::Done),
    }
}

fn plan(pools: &[IpNet], service: &Service, all: &[Arc<Service>]) -> Action {
    let has: Vec<IpAddr> = addresses(service).collect();
    match (is_balanced(service), has.is_empty()) {
        (false, true) => return Action::Nothing,
        (false, false) => return Action::TakeBack,
        (true, _) => {}
    }
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    let of_ipv6: Vec<bool> = match families {
        [] => vec![false],
        families => families.iter().map(|family| family == "IPv6").collect(),
    };
    let taken: HashSet<IpAddr> = all.iter().flat_map(|service| addresses(service)).collect();
    let mut given = Vec::new();
    for six in &of_ipv6 {
        let its = |address: &&IpAddr| address.is_ipv6() == *six;
        if let Some(known) = has.iter().find(its) {
            given.push(*known);
        } else if let Some(pool) = pools.iter().find(|pool| matches!(pool, IpNet::V6(_)) == *six) {
            match choose(pool, service, &taken) {
                Ok(address) => given.push(address),
                Err(why) => return Action::Wait(why),
            }
        }
    }
    match given {
        given if given.is_empty() => {
            let family = if of_ipv6 == [true] { "IPv6" } else { "IPv4" };
            Action::Wait(format!("there is no pool of addresses of {family} (spec.ipFamilies)"))
        }
        given if given == has => Action::Nothing,
        given => Action::Give(given),
    }
}

/// A free address of a pool: the one that the Service asks for where it asks for one of this family.
fn choose(pool: &IpNet, service: &Service, taken: &HashSet<IpAddr>) -> Result<IpAddr, String> {
    let free = |address: &IpAddr| !taken.contains(address);
    let wanted = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_deref()).unwrap_or_default();
    let of_another_family = |address: IpAddr| address.is_ipv6() != matches!(pool, IpNet::V6(_));
    if wanted.is_empty() || wanted.parse().is_ok_and(of_another_family) {
        let any = match pool {
            IpNet::V4(pool) => {
                Ipv4AddrRange::new(pool.network(), pool.broadcast()).map(IpAddr::from).find(free)
            }
            // The first is the routers' (RFC 4291, section 2.6.1).
            IpNet::V6(pool) => {
                Ipv6AddrRange::new(pool.network(), pool.broadcast()).skip(1).map(IpAddr::from).find(free)
            }
        };
        return any.ok_or_else(|| format!("no address of the pool {pool} is free"));
    }
    match wanted.parse::<IpAddr>().ok().filter(|address| pool.contains(address)) {
        Some(address) if free(&address) => Ok(address),
        Some(address) => Err(format!("loadBalancerIP {address} is another Service's")),
        None => Err(format!("loadBalancerIP {wanted} is not in the pool {pool}")),
    }
}

/// Whether an address of the pool is to be given. A Service that names a class waits for somebody else.
fn is_balanced(service: &Service) -> bool {
    service.metadata.deletion_timestamp.is_none()
        && service.spec.as_ref().is_some_and(|spec| {
            spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
        })
}

/// The addresses that a Service has been given.
fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, kind: &str, wanted: Option<&str>, given: Option<&str>) -> Arc<Service> {
        let ingress: Vec<_> = given.iter().map(|ip| json!({ "ip": ip })).collect();
        let service = json!({
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "type": kind, "loadBalancerIP": wanted },
            "status": { "loadBalancer": { "ingress": ingress } },
        });
        Arc::new(serde_json::from_value(service).expect("a valid Service"))
    }

    #[test]
    fn plan_table() {
        let give = |address: [u8; 4]| Action::Give(vec![address.into()]);
        let wait = |why: &str| Action::Wait(why.to_owned());
        let balancer = "LoadBalancer";
        let cases = [
            ("first", service("a", balancer, None, None), vec![], give([192, 0, 2, 4])),
            ("next", service("a", balancer, None, None), vec!["192.0.2.4"], give([192, 0, 2, 5])),
            ("gap", service("a", balancer, None, None), vec!["192.0.2.5"], give([192, 0, 2, 4])),
            ("has one", service("a", balancer, None, Some("192.0.2.4")), vec![], Action::Nothing),
            ("another kind", service("a", "ClusterIP", None, None), vec![], Action::Nothing),
            ("no more", service("a", "NodePort", None, Some("192.0.2.4")), vec![], Action::TakeBack),
            ("asked for", service("a", balancer, Some("192.0.2.7"), None), vec![], give([192, 0, 2, 7])),
            (
                "asked for, taken",
                service("a", balancer, Some("192.0.2.7"), None),
                vec!["192.0.2.7"],
                wait("loadBalancerIP 192.0.2.7 is another Service's"),
            ),
            (
                "asked for, elsewhere",
                service("a", balancer, Some("203.0.113.1"), None),
                vec![],
                wait("loadBalancerIP 203.0.113.1 is not in the pool 192.0.2.4/30"),
            ),
            (
                "exhausted",
                service("a", balancer, None, None),
                vec!["192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7"],
                wait("no address of the pool 192.0.2.4/30 is free"),
            ),
        ];
        for (name, service_at_hand, given, expect) in cases {
            let others = given.into_iter().map(|address| service(address, balancer, None, Some(address)));
            let all: Vec<_> = others.chain([service_at_hand.clone()]).collect();
            let pool = "192.0.2.4/30".parse().expect("a network");
            assert_eq!(plan(&[pool], &service_at_hand, &all), expect, "{name}");
        }
    }

    #[test]
    fn each_family_has_its_address() {
        let pools: Vec<IpNet> =
            ["192.0.2.4/30", "fd00::/126"].map(|pool| pool.parse().expect("a network")).to_vec();
        let (four, six) = ("192.0.2.4", "fd00::1");
        for (name, pools, families, wanted, had, expect) in [
            ("IPv4", &pools[..], &["IPv4"][..], None, &[][..], Ok(&[four][..])),
            ("IPv6", &pools, &["IPv6"], None, &[], Ok(&[six])),
            ("both", &pools, &["IPv6", "IPv4"], None, &[], Ok(&[six, four])),
            ("a second one", &pools, &["IPv4", "IPv6"], None, &[four], Ok(&[four, six])),
            ("one less", &pools, &["IPv4"], None, &[four, six], Ok(&[four])),
            ("no change", &pools, &["IPv4", "IPv6"], None, &[four, six], Err("")),
            ("asked for", &pools, &["IPv4", "IPv6"], Some("fd00::3"), &[], Ok(&[four, "fd00::3"])),
            ("one pool", &pools[..1], &["IPv4", "IPv6"], None, &[], Ok(&[four])),
            (
                "no pool",
                &pools[..1],
                &["IPv6"],
                None,
                &[],
                Err("there is no pool of addresses of IPv6 (spec.ipFamilies)"),
            ),
        ] {
            let mut service = (*service("a", "LoadBalancer", wanted, None)).clone();
            service.spec.get_or_insert_default().ip_families =
                Some(families.iter().map(ToString::to_string).collect());
            let ingress: Vec<_> = had.iter().map(|ip| json!({ "ip": ip })).collect();
            let status = json!({ "loadBalancer": { "ingress": ingress } });
            service.status = Some(serde_json::from_value(status).expect("a status"));
            let expect = match expect {
                Ok(given) => Action::Give(given.iter().map(|ip| ip.parse().expect("an address")).collect()),
                Err("") => Action::Nothing,
                Err(why) => Action::Wait(why.to_owned()),
            };
            assert_eq!(plan(pools, &service, &[]), expect, "{name}");
        }
    }

    #[test]
    fn a_class_is_somebody_elses() {
        let mut classed = (*service("a", "LoadBalancer", None, None)).clone();
        classed.spec.get_or_insert_default().load_balancer_class = Some("example.com/lb".into());
        assert!(!is_balanced(&classed));
    }
}
