//! What a ReplicaSet's pods call for, and the status they amount to. Pure.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod;

/// Pods created or deleted in one pass (upstream's BurstReplicas): bounds how long one set keeps a worker.
const BURST: usize = 500;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Create(usize),
    /// Delete as many; [`super::rank`] says which.
    Delete(usize),
}

/// `pods` are those that the set controls, in any state.
pub(super) fn replicas(set: &ReplicaSet, pods: &[Arc<Pod>]) -> Action {
    let wanted = wanted(set);
    let active = pods.iter().filter(|pod| pod::is_active(pod)).count();
    match active.cmp(&wanted) {
        Ordering::Less => Action::Create((wanted - active).min(BURST)),
        Ordering::Equal => Action::Nothing,
        Ordering::Greater => Action::Delete((active - wanted).min(BURST)),
    }
}

fn wanted(set: &ReplicaSet) -> usize {
    usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0)
}

/// The status, and when it will change although nothing happens (a ready pod becomes available).
pub(super) fn status(
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
    failure: Option<(&'static str, String)>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let template = set.spec.template.as_ref().and_then(|template| template.metadata.as_ref());
    let template_labels = template.and_then(|meta| meta.labels.clone()).unwrap_or_default();
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let min_ready = Duration::from_secs(u64::try_from(min_ready).unwrap_or(0));
    let (mut replicas, mut labelled, mut ready, mut available) = (0, 0, 0, 0);
    let mut again: Option<Duration> = None;
    for pod in pods.iter().filter(|pod| pod::is_active(pod)) {
        replicas += 1;
        let labels = pod.metadata.labels.as_ref();
        labelled += i32::from(
            template_labels.iter().all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value)),
        );
        ready += i32::from(pod::is_ready(pod));
        match pod::available_in(pod, min_ready, now) {
            Some(Duration::ZERO) => available += 1,
            Some(wait) => again = Some(again.map_or(wait, |soonest| soonest.min(wait))),
            None => {}
        }
    }
    let old = set.status.clone().unwrap_or_default();
    let status = ReplicaSetStatus {
        replicas,
        fully_labeled_replicas: count(labelled),
        ready_replicas: count(ready),
        available_replicas: count(available),
        observed_generation: set.metadata.generation,
        conditions: conditions(old.conditions.unwrap_or_default(), failure, now),
        terminating_replicas: None,
    };
    (status, again)
}

/// Zero is left out, as the Go types do.
fn count(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

fn conditions(
    old: Vec<ReplicaSetCondition>,
    failure: Option<(&'static str, String)>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions: Vec<_> =
        old.iter().filter(|c| c.type_.as_deref() != Some("ReplicaFailure")).cloned().collect();
    if let Some((reason, message)) = failure {
        let same = old
            .iter()
            .find(|c| c.type_.as_deref() == Some("ReplicaFailure") && c.reason.as_deref() == Some(reason));
        conditions.push(same.cloned().unwrap_or_else(|| ReplicaSetCondition {
            type_: Some("ReplicaFailure".into()),
            status: Some("True".into()),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        }));
    }
    (!conditions.is_empty()).then_some(conditions)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(replicas: i32, min_ready: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": { "name": "rs", "namespace": "d", "uid": "u", "generation": 3 },
            "spec": { "replicas": replicas, "minReadySeconds": min_ready, "selector": {},
                "template": { "metadata": { "labels": { "app": "web" } } } },
        }))
        .expect("a valid set")
    }

    fn pod(status: Value, deleted: bool) -> Arc<Pod> {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let pod = json!({ "metadata": { "name": "p", "labels": { "app": "web" }, "deletionTimestamp": deleted }, "status": status });
        Arc::new(serde_json::from_value(pod).expect("a valid pod"))
    }

    fn running(ready: &str, since: &str) -> Value {
        json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": since }] })
    }

    #[test]
    fn replicas_table() {
        let up = || pod(running("True", "2026-01-01T00:00:00Z"), false);
        let failed = || pod(json!({ "phase": "Failed" }), false);
        let going = || pod(running("True", "2026-01-01T00:00:00Z"), true);
        let cases = [
            ("none yet", 3, vec![], Action::Create(3)),
            ("as asked", 2, vec![up(), up()], Action::Nothing),
            ("one too many", 1, vec![up(), up()], Action::Delete(1)),
            ("failed ones are replaced", 1, vec![failed()], Action::Create(1)),
            ("terminating ones are replaced", 1, vec![going()], Action::Create(1)),
            ("to zero", 0, vec![up(), up(), going()], Action::Delete(2)),
            ("bounded", 2000, vec![], Action::Create(500)),
        ];
        for (name, wanted, pods, expect) in cases {
            assert_eq!(replicas(&set(wanted, 0), &pods), expect, "{name}");
        }
    }

    #[test]
    fn status_counts_and_waits() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().expect("a time");
        let pods = [
            pod(running("True", "2026-01-01T00:00:00Z"), false),
            pod(running("True", "2026-01-01T00:00:40Z"), false),
            pod(running("False", "2026-01-01T00:00:40Z"), false),
            pod(json!({ "phase": "Failed" }), false),
            pod(running("True", "2026-01-01T00:00:00Z"), true),
        ];
        let (status, again) = super::status(&set(3, 30), &pods, None, now);
        assert_eq!(
            (
                status.replicas,
                status.fully_labeled_replicas,
                status.ready_replicas,
                status.available_replicas
            ),
            (3, Some(3), Some(2), Some(1))
        );
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(again, Some(Duration::from_secs(10)));
        let (status, _) = super::status(&set(3, 30), &pods, Some(("FailedCreate", "no".into())), now);
        let conditions = status.conditions.expect("a condition");
        assert_eq!(
            (conditions[0].type_.as_deref(), conditions[0].status.as_deref()),
            (Some("ReplicaFailure"), Some("True"))
        );
    }
}
