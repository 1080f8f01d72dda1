//! What a Deployment calls for next. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::sets::{self, Bounds, DESIRED, MAX, Sets};
use super::{revision, rolling, scale, status};
use crate::{owner, template};

/// Old sets kept for rollbacks where the Deployment does not say.
const HISTORY_LIMIT: i32 = 10;

pub(super) struct Observed<'a> {
    pub deployment: &'a Deployment,
    pub sets: &'a Sets,
    /// Whether pods of earlier templates still run (only looked at for Recreate).
    pub old_pods_running: bool,
    pub now: Timestamp,
}

#[derive(Debug)]
pub(super) enum Action {
    Create(ReplicaSet),
    /// Put this set, whose size was `from`.
    Update {
        set: ReplicaSet,
        from: i32,
    },
    Delete(Arc<ReplicaSet>),
    /// Note this revision on the Deployment.
    Revision(String),
    Status(DeploymentStatus),
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub actions: Vec<Action>,
    /// Look again then: a progress deadline runs.
    pub after: Option<Duration>,
}

pub(super) fn is_recreate(deployment: &Deployment) -> bool {
    sets::is_recreate(&deployment.spec)
}

pub(super) fn plan(observed: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    let Observed { deployment, sets, .. } = observed;
    if deployment.metadata.deletion_timestamp.is_none() {
        let paused = deployment.spec.paused.unwrap_or(false);
        let bounds = Bounds::of(deployment);
        if paused || is_resized(sets, bounds) {
            plan.actions = scale::scale(sets, bounds);
            if paused {
                plan.actions.extend(clean_up(deployment, sets));
            }
            plan.actions.extend(note_revision(deployment, sets));
        } else {
            plan.actions = roll(observed, bounds);
        }
    }
    let (status, after) = status::status(observed, &plan.actions);
    if deployment.status.as_ref() != Some(&status) {
        plan.actions.push(Action::Status(status));
    }
    plan.after = after;
    plan
}

/// Whether the Deployment's size has changed since its sets were last scaled.
fn is_resized(sets: &Sets, bounds: Bounds) -> bool {
    sets.active().iter().any(|set| sets::annotation(set, DESIRED).is_some_and(|size| size != bounds.replicas))
}

fn roll(observed: &Observed<'_>, bounds: Bounds) -> Vec<Action> {
    let Observed { deployment, sets, .. } = observed;
    let mut actions = Vec::new();
    let next = sets.last_old_revision() + 1;
    let mut revision = next;
    let recreate = is_recreate(deployment);
    if recreate {
        let old = rolling::old_to_zero(sets, bounds);
        if !old.is_empty() || (sets.new.is_none() && observed.old_pods_running) {
            actions.extend(old);
            return actions;
        }
    }
    match &sets.new {
        None => actions.push(Action::Create(new_set(deployment, bounds, sets, next))),
        Some(set) => {
            let annotations = revision::annotate(deployment, set, next);
            let mut updated = ReplicaSet::clone(set);
            revision =
                annotations.get(revision::ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or(next);
            updated.metadata.annotations = Some(annotations);
            updated.spec.min_ready_seconds = deployment.spec.min_ready_seconds;
            let hold = recreate && observed.old_pods_running;
            let size = if hold { sets::replicas(set) } else { rolling::new_size(deployment, bounds, sets) };
            let scaled = rolling::resize(&updated, size, bounds);
            // As upstream: the new set first, the old ones once it stands as it should.
            match scaled {
                Some(action) => actions.push(action),
                None if differs(&updated, set) => {
                    actions.push(Action::Update { from: sets::replicas(set), set: updated });
                }
                None if !recreate => actions.extend(rolling::shrink_old(bounds, sets)),
                None => {}
            }
        }
    }
    if actions.is_empty() && status::is_complete(deployment, sets) {
        actions.extend(clean_up(deployment, sets));
    }
    if revision::of(&deployment.metadata) != revision {
        actions.push(Action::Revision(revision.to_string()));
    }
    actions
}

/// A paused or resized Deployment keeps showing the revision of its current set.
fn note_revision(deployment: &Deployment, sets: &Sets) -> Option<Action> {
    let current = revision::of(&sets.new.as_ref()?.metadata);
    (current > 0 && current != revision::of(&deployment.metadata))
        .then(|| Action::Revision(current.to_string()))
}

fn differs(updated: &ReplicaSet, set: &ReplicaSet) -> bool {
    let min_ready = |set: &ReplicaSet| set.spec.min_ready_seconds.unwrap_or(0);
    updated.metadata.annotations != set.metadata.annotations || min_ready(updated) != min_ready(set)
}

fn new_set(deployment: &Deployment, bounds: Bounds, sets: &Sets, next: i64) -> ReplicaSet {
    let spec = deployment.spec.clone();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = template::hash(&spec.template, collisions);
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let mut template = spec.template;
    let meta = template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().insert(template::HASH_LABEL.into(), hash.clone());
    let labels = meta.labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(template::HASH_LABEL.into(), hash.clone());
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: deployment.metadata.namespace.clone(),
            labels,
            owner_references: Some(vec![owner::reference_to(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(sets::new_set_size(deployment, bounds, sets)),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    };
    let mut annotations = revision::annotate(deployment, &set, next);
    revision::note_size(&mut annotations, bounds);
    set.metadata.annotations = Some(annotations);
    set
}

/// Deletes the oldest revisions beyond the limit, where nothing of them is left.
fn clean_up(deployment: &Deployment, sets: &Sets) -> Vec<Action> {
    let limit = deployment.spec.revision_history_limit.unwrap_or(HISTORY_LIMIT);
    let mut old: Vec<&Arc<ReplicaSet>> =
        sets.old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
    old.sort_by_key(|set| revision::of(&set.metadata));
    let excess = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    let observed = |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.observed_generation);
    old.into_iter()
        .take(excess)
        .filter(|set| {
            sets::existing(set) == 0
                && sets::replicas(set) == 0
                && set.metadata.generation.unwrap_or(0) <= observed(set).unwrap_or(0)
        })
        .map(|set| Action::Delete(set.clone()))
        .collect()
}

/// Notes the size on the set's annotations; says whether they changed.
pub(super) fn note_size(set: &mut ReplicaSet, bounds: Bounds) -> bool {
    let annotations = set.metadata.annotations.get_or_insert_default();
    let before = (annotations.get(DESIRED).cloned(), annotations.get(MAX).cloned());
    revision::note_size(annotations, bounds);
    before != (annotations.get(DESIRED).cloned(), annotations.get(MAX).cloned())
}

#[cfg(test)]
mod tests;
