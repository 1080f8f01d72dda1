//! What one pod is to one Service: whether it belongs, at which addresses and ports, and how ready. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::pod;

const ZONE: &str = "topology.kubernetes.io/zone";

/// The endpoints that share an address family and a list of ports.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    /// `IPv4` or `IPv6`.
    pub family: String,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

/// Whether the Service's endpoints follow from its selector.
pub(super) fn is_managed(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    service.metadata.deletion_timestamp.is_none()
        && spec.type_.as_deref() != Some("ExternalName")
        && spec.selector.as_ref().is_some_and(|selector| !selector.is_empty())
}

pub(super) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

pub(super) fn selected(service: &Service, pod: &Pod) -> bool {
    if !is_managed(service) {
        return false;
    }
    let labels = pod.metadata.labels.as_ref();
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Everything of a pod that its endpoints show; two pods with equal facts give equal endpoints.
#[derive(PartialEq)]
pub(super) struct Facts<'a> {
    addresses: Vec<IpAddr>,
    ended: bool,
    ready: bool,
    terminating: bool,
    node: Option<&'a str>,
    hostname: Option<&'a str>,
    subdomain: Option<&'a str>,
}

pub(super) fn facts(pod: &Pod) -> Facts<'_> {
    let spec = pod.spec.as_ref();
    Facts {
        addresses: addresses(pod),
        ended: pod::is_terminal(pod),
        ready: pod::is_ready(pod),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        node: pod::node(pod),
        hostname: spec.and_then(|spec| spec.hostname.as_deref()),
        subdomain: spec.and_then(|spec| spec.subdomain.as_deref()),
    }
}

/// The pod's addresses, the main one first.
pub(super) fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let mut texts: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if texts.is_empty() {
        texts.extend(status.pod_ip.as_deref());
    }
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

pub(super) fn zone(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get(ZONE).cloned()
}

/// The pod's hostname within the Service's domain, where it asks for one.
pub(super) fn hostname<'a>(service: &Service, pod: &'a Pod) -> Option<&'a str> {
    let spec = pod.spec.as_ref()?;
    let in_domain = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname.as_deref().filter(|hostname| in_domain && !hostname.is_empty())
}

pub(super) fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The Service's ports as this pod serves them. One that the pod does not have is left out.
pub(super) fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    ports
        .into_iter()
        .flatten()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(port, pod)?),
                protocol: Some(protocol(port).to_owned()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter(|candidate| candidate.protocol.as_deref().unwrap_or("TCP") == protocol(port))
        .find(|candidate| candidate.name.as_deref() == Some(name))
        .map(|candidate| candidate.container_port)
}

/// The Service's endpoints, grouped as slices hold them. `zone` gives the zone of a node.
pub(super) fn groups(
    service: &Service,
    pods: &[Arc<Pod>],
    zone: impl Fn(&str) -> Option<String>,
) -> Vec<Group> {
    let mut groups: BTreeMap<(String, String), Group> = BTreeMap::new();
    for family in families(service) {
        for pod in pods.iter().filter(|pod| !pod::is_terminal(pod)) {
            let Some(endpoint) = endpoint(service, pod, &family, &zone) else { continue };
            let ports = ports(service, pod);
            let key = (family.clone(), format!("{ports:?}"));
            let new = || Group { family: family.clone(), ports, endpoints: Vec::new() };
            groups.entry(key).or_insert_with(new).endpoints.push(endpoint);
        }
    }
    groups.into_values().collect()
}

pub(super) fn families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if families.is_empty() { vec!["IPv4".into()] } else { families }
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    family: &str,
    zone: impl Fn(&str) -> Option<String>,
) -> Option<Endpoint> {
    let address = addresses(pod).into_iter().find(|ip| ip.is_ipv6() == (family == "IPv6"))?;
    let publish = publishes_unready(service);
    let serving = pod::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let node = pod::node(pod);
    let zone = node.and_then(zone);
    let ready = publish || (serving && !terminating);
    Some(Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod).map(str::to_owned),
        node_name: node.map(str::to_owned),
        target_ref: Some(target(pod)),
        hints: if ready { hints(service, node, zone.as_deref()) } else { None },
        zone,
        ..Endpoint::default()
    })
}

/// Whose traffic an endpoint is meant for, where the Service prefers what is near (KEP-4444, KEP-3015).
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let for_nodes = match service.spec.as_ref()?.traffic_distribution.as_deref()? {
        "PreferSameNode" => node.map(|node| vec![ForNode { name: node.to_owned() }]),
        "PreferClose" | "PreferSameZone" => None,
        _ => return None,
    };
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    (for_nodes.is_some() || for_zones.is_some()).then_some(EndpointHints { for_nodes, for_zones })
}

pub(super) fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        let service = json!({ "metadata": { "name": "web", "namespace": "d" }, "spec": spec });
        serde_json::from_value(service).expect("a valid service")
    }

    fn pod(ready: &str, deleted: bool, ip: &str) -> Pod {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "d", "uid": "u", "labels": { "app": "web" }, "deletionTimestamp": deleted },
            "spec": { "nodeName": "n1", "containers": [{ "name": "c", "ports": [
                { "name": "http", "containerPort": 8080 }, { "name": "dns", "containerPort": 53, "protocol": "UDP" }] }] },
            "status": { "phase": "Running", "podIP": ip, "conditions": [{ "type": "Ready", "status": ready }] },
        }))
        .expect("a valid pod")
    }

    #[test]
    fn conditions_table() {
        let plain = json!({ "selector": { "app": "web" } });
        let publish = json!({ "selector": { "app": "web" }, "publishNotReadyAddresses": true });
        let cases = [
            ("ready", &plain, pod("True", false, "10.0.0.1"), Some((true, true, false))),
            ("unready", &plain, pod("False", false, "10.0.0.1"), Some((false, false, false))),
            ("terminating", &plain, pod("True", true, "10.0.0.1"), Some((false, true, true))),
            ("unready but published", &publish, pod("False", false, "10.0.0.1"), Some((true, false, false))),
            ("no address yet", &plain, pod("False", false, ""), None),
        ];
        for (name, spec, pod, expect) in cases {
            let groups = groups(&service(spec.clone()), &[Arc::new(pod)], |_| None);
            let got = groups.first().and_then(|group| group.endpoints[0].conditions.clone());
            let got =
                got.map(|c| (c.ready == Some(true), c.serving == Some(true), c.terminating == Some(true)));
            assert_eq!(got, expect, "{name}");
        }
    }

    #[test]
    fn hints_table() {
        let zone = || json!({ "forZones": [{ "name": "z1" }] });
        let both = || json!({ "forNodes": [{ "name": "n1" }], "forZones": [{ "name": "z1" }] });
        let node = || json!({ "forNodes": [{ "name": "n1" }] });
        for (name, wish, ready, zone_of_node, expect) in [
            ("no wish", Value::Null, "True", Some("z1"), Value::Null),
            ("same zone", json!("PreferSameZone"), "True", Some("z1"), zone()),
            ("its old name", json!("PreferClose"), "True", Some("z1"), zone()),
            ("same node", json!("PreferSameNode"), "True", Some("z1"), both()),
            ("same node, no zones", json!("PreferSameNode"), "True", None, node()),
            ("no zones", json!("PreferSameZone"), "True", None, Value::Null),
            ("unready", json!("PreferSameZone"), "False", Some("z1"), Value::Null),
            ("unknown", json!("PreferFar"), "True", Some("z1"), Value::Null),
        ] {
            let service = service(json!({ "selector": { "app": "web" }, "trafficDistribution": wish }));
            let pods = [Arc::new(pod(ready, false, "10.0.0.1"))];
            let groups = groups(&service, &pods, |_| zone_of_node.map(str::to_owned));
            let hints = serde_json::to_value(&groups[0].endpoints[0].hints).expect("hints are JSON");
            assert_eq!(hints, expect, "{name}");
        }
    }

    #[test]
    fn ports_table() {
        let cases = [
            ("number", json!([{ "port": 80, "targetPort": 8080 }]), vec![8080]),
            ("absent", json!([{ "port": 80 }]), vec![80]),
            ("name", json!([{ "port": 80, "targetPort": "http" }]), vec![8080]),
            ("name, other protocol", json!([{ "port": 80, "targetPort": "dns" }]), vec![]),
            (
                "name, same protocol",
                json!([{ "port": 53, "targetPort": "dns", "protocol": "UDP" }]),
                vec![53],
            ),
            ("unknown name", json!([{ "port": 80, "targetPort": "grpc" }]), vec![]),
        ];
        for (name, ports, expect) in cases {
            let service = service(json!({ "selector": { "app": "web" }, "ports": ports }));
            let got: Vec<i32> = super::ports(&service, &pod("True", false, "10.0.0.1"))
                .iter()
                .filter_map(|port| port.port)
                .collect();
            assert_eq!(got, expect, "{name}");
        }
    }
}
