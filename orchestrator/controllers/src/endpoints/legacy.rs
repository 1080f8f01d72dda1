//! The one Endpoints object of a Service, for clients that predate EndpointSlices. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::backend;
use super::slices::HEADLESS;
use crate::pod;

/// More addresses than this are cut off, and an annotation says so (upstream's maxCapacity).
const CAPACITY: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OURS: &str = "endpoint-controller";

pub(super) fn is_ours(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).map(String::as_str) == Some(OURS)
}

/// The object to write; none where the existing one is as it should be.
pub(super) fn plan(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Option<Endpoints> {
    let (subsets, truncated) = subsets(service, pods);
    let mut desired = existing.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    desired.subsets = (!subsets.is_empty()).then_some(subsets);
    desired.metadata.labels = Some(labels(service));
    let mut annotations = desired.metadata.annotations.take().unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    if truncated {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    }
    desired.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    (existing != Some(&desired)).then_some(desired)
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if backend::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), OURS.into());
    labels
}

/// The pods' addresses, grouped by the ports they have, and whether some had to be left out.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let publish = backend::publishes_unready(service);
    let ipv6 = backend::families(service)[0] == "IPv6";
    let mut found: Vec<(IpAddr, &Pod)> = pods
        .iter()
        .filter(|pod| !pod::is_terminal(pod) && (publish || pod.metadata.deletion_timestamp.is_none()))
        .filter_map(|pod| {
            let ip = backend::addresses(pod).into_iter().find(|ip| ip.is_ipv6() == ipv6)?;
            Some((ip, pod.as_ref()))
        })
        .collect();
    // Ready ones come first, so that those are not the ones cut off.
    found.sort_by_key(|(ip, pod)| (!pod::is_ready(pod), *ip));
    let truncated = found.len() > CAPACITY;
    found.truncate(CAPACITY);
    let mut by_ports: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    for (ip, pod) in found {
        let ports = ports(service, pod);
        let subset = by_ports.entry(format!("{ports:?}")).or_insert_with(|| EndpointSubset {
            ports: (!ports.is_empty()).then_some(ports),
            ..EndpointSubset::default()
        });
        let ready = publish || pod::is_ready(pod);
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(EndpointAddress {
            ip: ip.to_string(),
            hostname: backend::hostname(service, pod).map(str::to_owned),
            node_name: pod::node(pod).map(str::to_owned),
            target_ref: Some(backend::target(pod)),
        });
    }
    (by_ports.into_values().collect(), truncated)
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = backend::ports(service, pod).into_iter();
    ports
        .filter_map(|port| {
            Some(EndpointPort {
                name: port.name.filter(|name| !name.is_empty()),
                port: port.port?,
                protocol: port.protocol,
                app_protocol: port.app_protocol,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ip: &str, ready: bool) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        let pod = json!({ "metadata": { "name": ip, "namespace": "d", "uid": ip }, "status": {
            "phase": "Running", "podIP": ip, "conditions": [{ "type": "Ready", "status": ready }] } });
        Arc::new(serde_json::from_value(pod).expect("a valid pod"))
    }

    #[test]
    fn readiness_decides_the_list_and_equal_objects_are_not_written() {
        let service: Service =
            serde_json::from_value(json!({ "metadata": { "name": "web", "namespace": "d" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }] } }))
            .expect("valid");
        let pods = [pod("10.0.0.2", true), pod("10.0.0.10", true), pod("10.0.0.3", false)];
        let endpoints = plan(&service, &pods, None).expect("nothing exists yet");
        let subsets = endpoints.subsets.clone().expect("one subset");
        let ips = |list: &Option<Vec<EndpointAddress>>| -> Vec<String> {
            list.iter().flatten().map(|address| address.ip.clone()).collect()
        };
        assert_eq!(subsets.len(), 1);
        assert_eq!(ips(&subsets[0].addresses), ["10.0.0.2", "10.0.0.10"]);
        assert_eq!(ips(&subsets[0].not_ready_addresses), ["10.0.0.3"]);
        assert_eq!(plan(&service, &pods, Some(&endpoints)), None);
    }
}
