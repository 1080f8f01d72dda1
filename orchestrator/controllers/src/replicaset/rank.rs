//! The order in which a ReplicaSet gives up pods: the least useful first. Pure.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::pod;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Sorts `pods` so that the first to delete come first, as upstream's `ActivePodsWithRanks`: unscheduled
/// before scheduled, pending before unknown before running, unready before ready, cheaper before dearer,
/// on nodes with more related pods before fewer, ready for a shorter time, more restarts, younger.
///
/// Times compare by their order of magnitude, so that the youngest are not always the ones to go.
pub(super) fn first_to_go(
    mut pods: Vec<Arc<Pod>>,
    related: &HashMap<String, usize>,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    pods.sort_by_cached_key(|pod| {
        let node = pod::node(pod);
        let phase = match pod::phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let crowd = node.and_then(|node| related.get(node)).copied().unwrap_or(0);
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (
            node.is_some(),
            phase,
            pod::is_ready(pod),
            deletion_cost(pod),
            Reverse(crowd),
            age_rank(pod::ready_since(pod), now),
            Reverse(restarts(pod)),
            age_rank(created, now),
            pod.metadata.uid.clone(),
        )
    });
    pods
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(DELETION_COST)?.parse().ok()).unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
}

/// The order of magnitude of an age; an unknown time counts as just now.
fn age_rank(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let seconds = since.map_or(0, |since| now.duration_since(since).as_secs().max(0));
    match seconds.cmp(&0) {
        Ordering::Greater => seconds.ilog2() + 1,
        Ordering::Less | Ordering::Equal => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, change: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": { "name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "nodeName": "n1", "containers": [] },
            "status": { "phase": "Running", "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }] },
        });
        merge(&mut pod, change);
        Arc::new(serde_json::from_value(pod).expect("a valid pod"))
    }

    fn merge(into: &mut Value, change: Value) {
        match (into, change) {
            (Value::Object(into), Value::Object(change)) => {
                for (key, value) in change {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, change) => *into = change,
        }
    }

    #[test]
    fn each_criterion_in_its_order() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().expect("a time");
        let related: HashMap<String, usize> = [("n1".into(), 1), ("n2".into(), 2)].into();
        let better = json!({});
        let cases = [
            ("unscheduled", json!({ "spec": { "nodeName": null } })),
            ("pending", json!({ "status": { "phase": "Pending" } })),
            ("unready", json!({ "status": { "conditions": [] } })),
            ("cheap", json!({ "metadata": { "annotations": { (DELETION_COST): "-1" } } })),
            ("crowded", json!({ "spec": { "nodeName": "n2" } })),
            (
                "ready later",
                json!({ "status": { "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T23:00:00Z" }] } }),
            ),
            (
                "restarted",
                json!({ "status": { "containerStatuses": [{ "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 4 }] } }),
            ),
            ("younger", json!({ "metadata": { "creationTimestamp": "2026-01-01T23:59:00Z" } })),
        ];
        for (name, worse) in &cases {
            let pods = vec![pod("a-better", better.clone()), pod("b-worse", worse.clone())];
            let order = first_to_go(pods, &related, now);
            assert_eq!(order[0].metadata.name.as_deref(), Some("b-worse"), "{name}");
        }
        // Each criterion outweighs all later ones together.
        for pair in cases.windows(2) {
            let [(stronger, first), (weaker, second)] = pair else { continue };
            let pods = vec![pod("weaker", second.clone()), pod("stronger", first.clone())];
            let order = first_to_go(pods, &related, now);
            assert_eq!(order[0].metadata.name.as_deref(), Some("stronger"), "{stronger} before {weaker}");
        }
    }
}
