//! A Deployment's status: counts, and the conditions Available, Progressing and ReplicaFailure with the
//! reasons and messages that kubectl prints and waits for. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{Action, Observed};
use super::sets::{self, Bounds, Sets};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// The status that is observed, and when a running progress deadline is to be looked at again.
pub(super) fn status(observed: &Observed<'_>, actions: &[Action]) -> (DeploymentStatus, Option<Duration>) {
    let Observed { deployment, sets, now, .. } = observed;
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = counts(deployment, sets, &old);
    let mut conditions = Conditions { list: old.conditions.clone().unwrap_or_default(), now: *now };
    let bounds = Bounds::of(deployment);
    if status.available_replicas.unwrap_or(0) >= bounds.min_available() {
        let message = "Deployment has minimum availability.";
        conditions.set(AVAILABLE, "True", "MinimumReplicasAvailable", message.into());
    } else {
        let message = "Deployment does not have minimum availability.";
        conditions.set(AVAILABLE, "False", "MinimumReplicasUnavailable", message.into());
    }
    if deployment.metadata.deletion_timestamp.is_none() {
        progress(observed, actions, &old, &status, &mut conditions);
    }
    replica_failure(sets, &mut conditions);
    let after = deadline_in(deployment, sets, &conditions);
    status.conditions = (!conditions.list.is_empty()).then_some(conditions.list);
    (status, after)
}

fn counts(deployment: &Deployment, sets: &Sets, old: &DeploymentStatus) -> DeploymentStatus {
    let count = |count: i32| (count != 0).then_some(count);
    let of = |set: &k8s_openapi::api::apps::v1::ReplicaSet| {
        set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
    };
    let available = sets.total_available();
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: count(sets.all().map(|set| sets::existing(set)).sum()),
        updated_replicas: count(sets.new.as_ref().map_or(0, |set| sets::existing(set))),
        ready_replicas: count(sets.all().map(|set| of(set)).sum()),
        available_replicas: count(available),
        unavailable_replicas: count((sets.total_replicas() - available).max(0)),
        collision_count: old.collision_count,
        conditions: None,
        terminating_replicas: None,
    }
}

/// The Progressing condition: what this pass starts, how far the roll-out is, or that it takes too long.
fn progress(
    observed: &Observed<'_>,
    actions: &[Action],
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Conditions,
) {
    let Observed { deployment, sets, now, .. } = observed;
    let Some(deadline) = deadline(deployment) else {
        conditions.list.retain(|condition| !is(condition, PROGRESSING));
        return;
    };
    let current = conditions.get(PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|condition| condition.reason.as_deref()).unwrap_or_default();
    if deployment.spec.paused.unwrap_or(false) {
        if reason != PAUSED && reason != TIMED_OUT {
            conditions.set(PROGRESSING, "Unknown", PAUSED, "Deployment is paused".into());
        }
        return;
    }
    if reason == PAUSED {
        conditions.set(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".into());
    }
    let created = actions.iter().find_map(|action| match action {
        Action::Create(set) => set.metadata.name.as_deref(),
        _ => None,
    });
    if let Some(name) = created {
        let message = format!("Created new replica set {name:?}");
        conditions.set(PROGRESSING, "True", "NewReplicaSetCreated", message);
        return;
    }
    let subject = match &sets.new {
        Some(set) => format!("ReplicaSet {:?}", set.metadata.name.as_deref().unwrap_or_default()),
        None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    if current.is_none() && sets.new.is_some() {
        let name = sets.new.as_ref().and_then(|set| set.metadata.name.as_deref()).unwrap_or_default();
        conditions.set(PROGRESSING, "True", "FoundNewReplicaSet", format!("Found new replica set {name:?}"));
    }
    // A roll-out that was completed stays so while pods come and go.
    let was_complete = status.replicas == status.updated_replicas && reason == COMPLETE;
    if was_complete {
        return;
    }
    if counts_are_complete(deployment, status) {
        conditions.set(PROGRESSING, "True", COMPLETE, format!("{subject} has successfully progressed."));
    } else if has_progressed(old, status) {
        conditions.renew(PROGRESSING, "True", "ReplicaSetUpdated", format!("{subject} is progressing."));
    } else if is_late(conditions.get(PROGRESSING), deadline, *now) {
        conditions.set(PROGRESSING, "False", TIMED_OUT, format!("{subject} has timed out progressing."));
    }
}

fn replica_failure(sets: &Sets, conditions: &mut Conditions) {
    let failure = sets.new.iter().chain(&sets.old).find_map(|set| {
        let failures = set.status.as_ref()?.conditions.as_ref()?;
        failures.iter().find(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE))
    });
    match failure {
        None => conditions.list.retain(|condition| !is(condition, REPLICA_FAILURE)),
        Some(failure) => conditions.set(
            REPLICA_FAILURE,
            failure.status.as_deref().unwrap_or_default(),
            failure.reason.as_deref().unwrap_or_default(),
            failure.message.clone().unwrap_or_default(),
        ),
    }
}

/// The status for a Deployment whose new ReplicaSet could not be created; none where it says so already.
pub(super) fn creation_failed(
    deployment: &Deployment,
    message: String,
    now: Timestamp,
) -> Option<DeploymentStatus> {
    deadline(deployment)?;
    let mut status = deployment.status.clone().unwrap_or_default();
    let mut conditions = Conditions { list: status.conditions.take().unwrap_or_default(), now };
    let reason = "ReplicaSetCreateError";
    if conditions.get(PROGRESSING).is_some_and(|condition| condition.reason.as_deref() == Some(reason)) {
        return None;
    }
    conditions.set(PROGRESSING, "False", reason, message);
    status.conditions = Some(conditions.list);
    Some(status)
}

/// Whether every replica runs the current template and is available.
pub(super) fn is_complete(deployment: &Deployment, sets: &Sets) -> bool {
    let status = counts(deployment, sets, &DeploymentStatus::default());
    counts_are_complete(deployment, &status)
}

fn counts_are_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Bounds::of(deployment).replicas;
    [status.updated_replicas, status.replicas, status.available_replicas]
        .iter()
        .all(|count| count.unwrap_or(0) == wanted)
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let number = |count: Option<i32>| count.unwrap_or(0);
    let outdated = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(new.updated_replicas) > number(old.updated_replicas)
        || outdated(new) < outdated(old)
        || number(new.ready_replicas) > number(old.ready_replicas)
        || number(new.available_replicas) > number(old.available_replicas)
}

/// How long a roll-out may show no progress; none where it may take for ever.
fn deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| SignedDuration::from_secs(seconds.into()))
}

fn is_late(condition: Option<&DeploymentCondition>, deadline: SignedDuration, now: Timestamp) -> bool {
    let Some(condition) = condition else { return false };
    match condition.reason.as_deref() {
        Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        _ => condition.last_update_time.as_ref().is_some_and(|last| now.duration_since(last.0) > deadline),
    }
}

/// Upstream adds a second, since conditions keep whole seconds only.
fn deadline_in(deployment: &Deployment, sets: &Sets, conditions: &Conditions) -> Option<Duration> {
    let deadline = deadline(deployment)?;
    let condition = conditions.get(PROGRESSING)?;
    let settled = matches!(condition.reason.as_deref(), Some(TIMED_OUT | COMPLETE | PAUSED));
    if settled || is_complete(deployment, sets) {
        return None;
    }
    let passed = conditions.now.duration_since(condition.last_update_time.as_ref()?.0);
    let left = deadline.checked_sub(passed)?.max(SignedDuration::ZERO);
    Duration::try_from(left).ok().map(|left| left + Duration::from_secs(1))
}

fn is(condition: &DeploymentCondition, kind: &str) -> bool {
    condition.type_.as_deref() == Some(kind)
}

struct Conditions {
    list: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    fn get(&self, kind: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|condition| is(condition, kind))
    }

    /// Sets the condition; one with the same status and reason stays untouched.
    fn set(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let same = |condition: &DeploymentCondition| {
            condition.status.as_deref() == Some(status) && condition.reason.as_deref() == Some(reason)
        };
        if !self.get(kind).is_some_and(same) {
            self.renew(kind, status, reason, message);
        }
    }

    /// Sets the condition and the time of its last update, which the progress deadline counts from.
    fn renew(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let now = Some(Time(self.now));
        let transition = match self.get(kind) {
            Some(old) if old.status.as_deref() == Some(status) => old.last_transition_time.clone(),
            _ => now.clone(),
        };
        self.list.retain(|condition| !is(condition, kind));
        self.list.push(DeploymentCondition {
            type_: Some(kind.to_owned()),
            status: Some(status.to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_update_time: now,
            last_transition_time: transition,
        });
    }
}
