//! Spreading a Service's endpoints over EndpointSlices with as few writes as can be. Pure.
//!
//! Invariant: a slice holds at most [`FULL`] endpoints; an endpoint stays in the slice it is in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use pith_informer::Key;

use super::backend::{self, Group};
use crate::owner;

const FULL: usize = 100;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const OURS: &str = "endpointslice-controller.k8s.io";
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

#[derive(Debug)]
pub(super) enum Action {
    Create(EndpointSlice),
    Update(EndpointSlice),
    Delete(EndpointSlice),
}

pub(super) fn is_ours(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).map(String::as_str) == Some(OURS)
}

/// The Service a slice belongs to.
pub(super) fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(Key::new(slice.metadata.namespace.clone().unwrap_or_default(), service.clone()))
}

pub(super) fn plan(
    service: &Service,
    mut groups: Vec<Group>,
    existing: &[Arc<EndpointSlice>],
) -> Vec<Action> {
    // A family without endpoints keeps one empty slice, so that watchers see it is known and empty.
    for family in backend::families(service) {
        if !groups.iter().any(|group| group.family == family) {
            groups.push(Group { family, ports: Vec::new(), endpoints: Vec::new() });
        }
    }
    let mut actions = Vec::new();
    let mut unused: Vec<&Arc<EndpointSlice>> =
        existing.iter().filter(|slice| slice.metadata.deletion_timestamp.is_none()).collect();
    for group in groups {
        let belongs = |slice: &&Arc<EndpointSlice>| {
            slice.address_type == group.family && same_ports(slice.ports.as_deref(), &group.ports)
        };
        let (slices, rest) = unused.into_iter().partition(belongs);
        unused = rest;
        plan_group(service, group, slices, &mut actions);
    }
    // Creations and updates first: no endpoint is missing at any moment.
    actions.extend(unused.into_iter().map(|slice| Action::Delete(EndpointSlice::clone(slice))));
    actions
}

fn same_ports(a: Option<&[EndpointPort]>, b: &[EndpointPort]) -> bool {
    a.unwrap_or_default() == b
}

fn plan_group(service: &Service, group: Group, slices: Vec<&Arc<EndpointSlice>>, actions: &mut Vec<Action>) {
    let mut waiting: HashMap<String, Endpoint> = HashMap::new();
    let mut order = Vec::new();
    for endpoint in group.endpoints {
        order.push(identity(&endpoint));
        waiting.insert(identity(&endpoint), endpoint);
    }
    // Each slice keeps what it has and is still wanted.
    let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let endpoints = slice.endpoints.iter().flatten();
        let stay = endpoints.filter_map(|endpoint| waiting.remove(&identity(endpoint))).take(FULL);
        kept.push((slice, stay.collect()));
    }
    let mut left: Vec<Endpoint> =
        order.into_iter().filter_map(|identity| waiting.remove(&identity)).collect();
    // What is new goes into slices that are written anyhow, then into those with room for most of it.
    kept.sort_by_key(|(slice, stay)| {
        let untouched = slice.endpoints.as_deref().unwrap_or_default() == stay.as_slice();
        (untouched, FULL - stay.len())
    });
    for (_, stay) in &mut kept {
        let room = (FULL - stay.len()).min(left.len());
        stay.extend(left.drain(..room));
    }
    let all_empty = kept.iter().all(|(_, stay)| stay.is_empty()) && left.is_empty();
    let mut placeholder = all_empty;
    for (slice, endpoints) in kept {
        if endpoints.is_empty() && !placeholder {
            actions.push(Action::Delete(EndpointSlice::clone(slice)));
            continue;
        }
        // One of several empty ones stays.
        placeholder = placeholder && !endpoints.is_empty();
        let desired = with_content(service, slice, endpoints);
        if desired != **slice {
            actions.push(Action::Update(desired));
        }
    }
    for chunk in left.chunks(FULL) {
        actions.push(Action::Create(new_slice(service, &group.family, &group.ports, chunk.to_vec())));
    }
    if placeholder {
        actions.push(Action::Create(new_slice(service, &group.family, &group.ports, Vec::new())));
    }
}

/// What makes an endpoint the same one after its pod has changed.
fn identity(endpoint: &Endpoint) -> String {
    match endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()) {
        Some(uid) => uid.to_owned(),
        None => endpoint.addresses.join(","),
    }
}

fn with_content(service: &Service, slice: &EndpointSlice, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut slice = slice.clone();
    slice.endpoints = Some(endpoints).filter(|endpoints| !endpoints.is_empty() || slice.endpoints.is_some());
    slice.metadata.labels = Some(labels(service));
    slice
}

fn new_slice(
    service: &Service,
    family: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service)),
            owner_references: Some(vec![owner::reference_to(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.to_vec()),
    }
}

/// The Service's own labels and those by which slices are found.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if backend::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), OURS.into());
    labels
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service() -> Service {
        serde_json::from_value(
            json!({ "metadata": { "name": "web", "namespace": "d", "uid": "s" }, "spec": {} }),
        )
        .expect("a valid service")
    }

    fn endpoint(id: usize, ready: bool) -> Endpoint {
        serde_json::from_value(json!({
            "addresses": [format!("10.0.0.{id}")], "conditions": { "ready": ready }, "targetRef": { "uid": format!("u{id}") },
        }))
        .expect("a valid endpoint")
    }

    fn group(endpoints: Vec<Endpoint>) -> Group {
        let port = EndpointPort { port: Some(80), ..EndpointPort::default() };
        Group { family: "IPv4".into(), ports: vec![port], endpoints }
    }

    fn stored(endpoints: Vec<Endpoint>) -> Arc<EndpointSlice> {
        Arc::new(new_slice(&service(), "IPv4", &group(vec![]).ports, endpoints))
    }

    #[test]
    fn each_family_has_a_slice() {
        let mut service = service();
        service.spec.get_or_insert_default().ip_families = Some(vec!["IPv4".into(), "IPv6".into()]);
        let actions = plan(&service, vec![group(vec![endpoint(1, true)])], &[]);
        assert_eq!(shape(&actions), [("create", 1), ("create", 0)]);
        let slices: Vec<_> = actions
            .into_iter()
            .map(|action| match action {
                Action::Create(slice) | Action::Update(slice) | Action::Delete(slice) => Arc::new(slice),
            })
            .collect();
        assert_eq!(slices.iter().map(|slice| &*slice.address_type).collect::<Vec<_>>(), ["IPv4", "IPv6"]);
        service.spec.get_or_insert_default().ip_families = Some(vec!["IPv4".into()]);
        let actions = plan(&service, vec![group(vec![endpoint(1, true)])], &slices);
        assert_eq!(shape(&actions), [("delete", 0)]);
    }

    /// Per action: what it does and how many endpoints the slice then has.
    fn shape(actions: &[Action]) -> Vec<(&'static str, usize)> {
        let count = |slice: &EndpointSlice| slice.endpoints.as_ref().map_or(0, Vec::len);
        actions
            .iter()
            .map(|action| match action {
                Action::Create(slice) => ("create", count(slice)),
                Action::Update(slice) => ("update", count(slice)),
                Action::Delete(_) => ("delete", 0),
            })
            .collect()
    }

    #[test]
    fn plan_table() {
        let ready = |range: std::ops::Range<usize>| range.map(|id| endpoint(id, true)).collect::<Vec<_>>();
        let mut one_changed = ready(0..3);
        one_changed[1] = endpoint(1, false);
        let cases = [
            ("first", vec![group(ready(0..3))], vec![], vec![("create", 3)]),
            (
                "many",
                vec![group(ready(0..250))],
                vec![],
                vec![("create", 100), ("create", 100), ("create", 50)],
            ),
            ("nothing to do", vec![group(ready(0..3))], vec![stored(ready(0..3))], vec![]),
            ("one changed", vec![group(one_changed)], vec![stored(ready(0..3))], vec![("update", 3)]),
            ("one more", vec![group(ready(0..4))], vec![stored(ready(0..3))], vec![("update", 4)]),
            (
                "only the slice with room is written",
                vec![group(ready(0..151))],
                vec![stored(ready(0..100)), stored(ready(100..150))],
                vec![("update", 51)],
            ),
            (
                "one slice runs empty",
                vec![group(ready(0..100))],
                vec![stored(ready(0..100)), stored(ready(100..150))],
                vec![("delete", 0)],
            ),
            ("no endpoints, none known", vec![], vec![], vec![("create", 0)]),
            ("other ports", vec![], vec![stored(ready(0..3))], vec![("create", 0), ("delete", 0)]),
            ("all gone", vec![group(vec![])], vec![stored(ready(0..3))], vec![("update", 0)]),
            ("stays empty", vec![group(vec![])], vec![stored(vec![])], vec![]),
            (
                "one of several empty ones stays",
                vec![group(vec![])],
                vec![stored(vec![]), stored(vec![])],
                vec![("delete", 0)],
            ),
        ];
        for (name, groups, existing, expect) in cases {
            assert_eq!(shape(&plan(&service(), groups, &existing)), expect, "{name}");
        }
    }
}
