//! Revisions: which template of a Deployment came when, for `kubectl rollout history` and `undo`. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::sets::{Bounds, DESIRED, MAX};

pub(super) const ANNOTATION: &str = "deployment.kubernetes.io/revision";
/// The revisions that a ReplicaSet had before it was rolled back to.
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotations of a Deployment that its ReplicaSets do not take over.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    ANNOTATION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// The revision an object carries, zero where it has none.
pub(super) fn of(meta: &ObjectMeta) -> i64 {
    let annotations = meta.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(ANNOTATION)?.parse().ok()).unwrap_or(0)
}

/// The annotations of the new set: the Deployment's, and its revision, which never falls.
pub(super) fn annotate(deployment: &Deployment, set: &ReplicaSet, next: i64) -> BTreeMap<String, String> {
    let mut annotations = set.metadata.annotations.clone().unwrap_or_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let old = annotations.get(ANNOTATION).cloned();
    let old_number: i64 = old.as_deref().and_then(|old| old.parse().ok()).unwrap_or(0);
    if old_number < next {
        annotations.insert(ANNOTATION.into(), next.to_string());
        if let Some(old) = old {
            let history = annotations.entry(HISTORY.into()).or_default();
            if history.is_empty() {
                *history = old;
            } else {
                *history = format!("{history},{old}");
            }
        }
    }
    annotations
}

/// The annotations by which a later change of the Deployment's size is recognised and shared out.
pub(super) fn note_size(annotations: &mut BTreeMap<String, String>, bounds: Bounds) {
    annotations.insert(DESIRED.into(), bounds.replicas.to_string());
    annotations.insert(MAX.into(), bounds.max().to_string());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn annotations_follow_the_deployment() {
        let deployment: Deployment = serde_json::from_value(json!({ "metadata": { "name": "d", "annotations": {
            "kubernetes.io/change-cause": "new image", (ANNOTATION): "9", "kubectl.kubernetes.io/last-applied-configuration": "{}" } } }))
        .expect("valid");
        let set = |annotations| -> ReplicaSet {
            serde_json::from_value(json!({ "metadata": { "name": "s", "annotations": annotations } }))
                .expect("valid")
        };
        let cases = [
            ("first", json!({}), 1, json!({ "kubernetes.io/change-cause": "new image", (ANNOTATION): "1" })),
            (
                "rolled back to",
                json!({ (ANNOTATION): "1" }),
                3,
                json!({ "kubernetes.io/change-cause": "new image", (ANNOTATION): "3", (HISTORY): "1" }),
            ),
            (
                "and again",
                json!({ (ANNOTATION): "3", (HISTORY): "1" }),
                5,
                json!({ "kubernetes.io/change-cause": "new image", (ANNOTATION): "5", (HISTORY): "1,3" }),
            ),
            (
                "already newest",
                json!({ (ANNOTATION): "3" }),
                2,
                json!({ "kubernetes.io/change-cause": "new image", (ANNOTATION): "3" }),
            ),
        ];
        for (name, before, next, expect) in cases {
            let after = annotate(&deployment, &set(before), next);
            assert_eq!(serde_json::to_value(after).expect("strings"), expect, "{name}");
        }
    }
}
