//! Load balancers: gives every Service of that type an address out of the cluster's pool
//! (`status.loadBalancer.ingress`). The proxies of the nodes announce it and answer there.
//!
//! What is taken is read from the Services themselves, so there is no second record that could disagree. One
//! worker assigns, and the cache shows its own writes, so no address is given twice.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Service;
use kube::api::Patch;
use pith_informer::{Key, Outcome, Queue, work};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::error::Result;
use crate::node_ipam::Cidr;

/// What is to be done about one Service's address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Nothing,
    Give(Ipv4Addr),
    /// It is no load balancer any more.
    TakeBack,
    /// None can be given, in words.
    Wait(String),
}

pub(crate) fn controller(
    cluster: &Arc<Cluster>,
    pool: Cidr,
    cancel: CancellationToken,
) -> BoxFuture<'static, ()> {
    let queue = Queue::new();
    let to = queue.clone();
    cluster.services.on_change(move |change| {
        // A Service that goes may free the address that another waits for; that one is retried anyhow.
        if let Some(service) = &change.new
            && is_balanced(service) != addresses(service).next().is_some()
        {
            to.add(Key::of(service.as_ref()));
        }
    });
    let cluster = cluster.clone();
    Box::pin(async move {
        cluster.services.synced().await;
        // One worker: two would pick the same free address.
        work("load-balancer", queue, 1, cancel, |key| reconcile(&cluster, pool, key)).await;
    })
}

async fn reconcile(cluster: &Cluster, pool: Cidr, key: Key) -> Result<Outcome> {
    let Some(service) = cluster.services.get(&key) else { return Ok(Outcome::Done) };
    let ingress = match plan(pool, &service, &cluster.services.all()) {
        Action::Nothing => return Ok(Outcome::Done),
        Action::Give(address) => json!([{ "ip": address.to_string(), "ipMode": "VIP" }]),
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

fn plan(pool: Cidr, service: &Service, all: &[Arc<Service>]) -> Action {
    let has_address = addresses(service).next().is_some();
    match (is_balanced(service), has_address) {
        (true, true) | (false, false) => return Action::Nothing,
        (false, true) => return Action::TakeBack,
        (true, false) => {}
    }
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    if families == ["IPv6"] {
        let why = "load balancers' addresses are of IPv4, and the Service has IPv6 alone (spec.ipFamilies)";
        return Action::Wait(why.to_owned());
    }
    let taken: HashSet<Ipv4Addr> = all.iter().flat_map(|service| addresses(service)).collect();
    let free = |address: &Ipv4Addr| !taken.contains(address);
    let wanted = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_deref());
    match wanted.filter(|wanted| !wanted.is_empty()) {
        None => match pool.addresses().find(free) {
            Some(address) => Action::Give(address),
            None => Action::Wait(format!("no address of the pool {pool} is free")),
        },
        Some(wanted) => match wanted.parse().ok().filter(|address| pool.contains(*address)) {
            Some(address) if free(&address) => Action::Give(address),
            Some(address) => Action::Wait(format!("loadBalancerIP {address} is another Service's")),
            None => Action::Wait(format!("loadBalancerIP {wanted} is not in the pool {pool}")),
        },
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
fn addresses(service: &Service) -> impl Iterator<Item = Ipv4Addr> {
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
        let give = |address: [u8; 4]| Action::Give(address.into());
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
            assert_eq!(plan(pool, &service_at_hand, &all), expect, "{name}");
        }
    }

    #[test]
    fn addresses_are_for_services_of_their_family() {
        let pool = "192.0.2.4/30".parse().expect("a network");
        for (families, given) in [(&["IPv4"][..], true), (&["IPv6", "IPv4"], true), (&["IPv6"], false)] {
            let mut service = (*service("a", "LoadBalancer", None, None)).clone();
            service.spec.get_or_insert_default().ip_families =
                Some(families.iter().map(ToString::to_string).collect());
            let action = plan(pool, &service, &[]);
            assert_eq!(matches!(action, Action::Give(_)), given, "{families:?}: {action:?}");
        }
    }

    #[test]
    fn a_class_is_somebody_elses() {
        let mut classed = (*service("a", "LoadBalancer", None, None)).clone();
        classed.spec.get_or_insert_default().load_balancer_class = Some("example.com/lb".into());
        assert!(!is_balanced(&classed));
    }
}
