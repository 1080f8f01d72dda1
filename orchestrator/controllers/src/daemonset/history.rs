//! A DaemonSet's templates as ControllerRevisions, for `kubectl rollout history` and `undo`. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use super::fit::HASH_LABEL;
use crate::{owner, template};

/// Revisions kept where the DaemonSet does not say.
const LIMIT: i32 = 10;

#[derive(Debug)]
pub(super) enum Action {
    Nothing {
        hash: String,
    },
    /// The template was used before: its revision becomes the latest again.
    Renew {
        hash: String,
        revision: ControllerRevision,
    },
    Create {
        hash: String,
        revision: ControllerRevision,
    },
}

/// The template as a patch that replaces it: this is what `kubectl rollout undo` applies.
fn data(set: &DaemonSet) -> Value {
    let mut template = serde_json::to_value(&set.spec.template).expect("a template has string keys only");
    template["$patch"] = "replace".into();
    json!({ "spec": { "template": template } })
}

fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

fn current<'a>(
    set: &DaemonSet,
    revisions: &'a [Arc<ControllerRevision>],
) -> Option<&'a Arc<ControllerRevision>> {
    let same = |revision: &&Arc<ControllerRevision>| {
        template_of(revision).is_some_and(|template| template::same(&template, &set.spec.template))
    };
    revisions.iter().filter(same).max_by_key(|revision| revision.revision)
}

fn hash_of(revision: &ControllerRevision) -> String {
    let labels = revision.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(HASH_LABEL).cloned()).unwrap_or_default()
}

/// The hash of the current template, empty where it has no revision yet.
pub(super) fn current_hash(set: &DaemonSet, revisions: &[Arc<ControllerRevision>]) -> String {
    current(set, revisions).map(|revision| hash_of(revision)).unwrap_or_default()
}

pub(super) fn plan(set: &DaemonSet, revisions: &[Arc<ControllerRevision>]) -> Action {
    let latest = revisions.iter().filter_map(|revision| revision.revision).max().unwrap_or(0);
    if let Some(current) = current(set, revisions) {
        let hash = hash_of(current);
        if current.revision == Some(latest) {
            return Action::Nothing { hash };
        }
        let mut revision = ControllerRevision::clone(current);
        revision.revision = Some(latest + 1);
        return Action::Renew { hash, revision };
    }
    let collisions = set.status.as_ref().and_then(|status| status.collision_count);
    let hash = template::hash(&set.spec.template, collisions);
    let meta = set.spec.template.metadata.clone().unwrap_or_default();
    let mut labels = meta.labels.unwrap_or_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let revision = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: set.metadata.annotations.clone(),
            owner_references: Some(vec![owner::reference_to(set)]),
            ..ObjectMeta::default()
        },
        data: RawExtension(data(set)),
        revision: Some(latest + 1),
    };
    Action::Create { hash, revision }
}

/// The oldest revisions beyond the limit that no pod is of.
pub(super) fn outdated(
    set: &DaemonSet,
    revisions: &[Arc<ControllerRevision>],
    pods: &[Arc<Pod>],
    hash: &str,
) -> Vec<Arc<ControllerRevision>> {
    let limit = usize::try_from(set.spec.revision_history_limit.unwrap_or(LIMIT)).unwrap_or(0);
    let hash_on =
        |pod: &Arc<Pod>| pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL).cloned());
    let used = |hash: &str| pods.iter().any(|pod| hash_on(pod).as_deref() == Some(hash));
    let mut unused: Vec<_> = revisions
        .iter()
        .filter(|revision| {
            let of = hash_of(revision);
            of != hash && !used(&of)
        })
        .cloned()
        .collect();
    unused.sort_by_key(|revision| revision.revision);
    unused.truncate(unused.len().saturating_sub(limit));
    unused
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(image: &str) -> DaemonSet {
        serde_json::from_value(json!({ "metadata": { "name": "ds", "namespace": "d", "uid": "u" }, "spec": {
            "selector": {}, "revisionHistoryLimit": 1, "template": { "metadata": { "labels": { "app": "x" } },
            "spec": { "containers": [{ "name": "c", "image": image }] } } } }))
        .expect("a valid set")
    }

    #[test]
    fn a_template_that_returns_renews_its_revision() {
        let mut revisions = Vec::new();
        for image in ["a", "b", "c"] {
            let Action::Create { revision, .. } = plan(&set(image), &revisions) else {
                panic!("{image}: a new template makes a revision");
            };
            revisions.push(Arc::new(revision));
        }
        let numbers: Vec<_> = revisions.iter().filter_map(|revision| revision.revision).collect();
        assert_eq!(numbers, [1, 2, 3]);
        assert!(matches!(plan(&set("c"), &revisions), Action::Nothing { .. }));
        let Action::Renew { revision, hash } = plan(&set("a"), &revisions) else {
            panic!("a known template makes no new revision");
        };
        assert_eq!((revision.revision, hash), (Some(4), hash_of(&revisions[0])));
        let gone = outdated(&set("c"), &revisions, &[], &hash_of(&revisions[2]));
        assert_eq!(gone.iter().filter_map(|revision| revision.revision).collect::<Vec<_>>(), [1]);
    }
}
