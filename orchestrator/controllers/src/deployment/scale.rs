//! Scaling a Deployment, also in the middle of a roll-out: the change is shared out in proportion. Pure.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::plan::Action;
use super::rolling::{resize, resize_or_note};
use super::sets::{self, Bounds, DESIRED, MAX, Sets};

pub(super) fn scale(sets: &Sets, bounds: Bounds) -> Vec<Action> {
    if let Some(only) = sets.active_or_latest() {
        return resize_or_note(only, bounds.replicas, bounds).into_iter().collect();
    }
    if sets.new.as_ref().is_some_and(|set| is_saturated(set, bounds)) {
        return sets.old.iter().filter_map(|set| resize(set, 0, bounds)).collect();
    }
    share_out(sets, bounds)
}

/// Whether the new set alone serves the Deployment already.
fn is_saturated(new: &ReplicaSet, bounds: Bounds) -> bool {
    sets::replicas(new) == bounds.replicas
        && sets::annotation(new, DESIRED) == Some(bounds.replicas)
        && sets::available(new) == bounds.replicas
}

/// Gives each active set its share of what is to be added (largest first; what rounding leaves goes to the
/// first). When shrinking, older sets of the same size give first.
fn share_out(sets: &Sets, bounds: Bounds) -> Vec<Action> {
    let mut active: Vec<&Arc<ReplicaSet>> = sets.active();
    let allowed = if bounds.replicas > 0 { bounds.max() } else { 0 };
    let to_add = allowed - sets.total_replicas();
    let created = |set: &ReplicaSet| set.metadata.creation_timestamp.as_ref().map(|time| time.0);
    if to_add > 0 {
        active.sort_by_key(|set| Reverse((sets::replicas(set), created(set))));
    } else {
        active.sort_by_key(|set| (Reverse(sets::replicas(set)), created(set)));
    }
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(active.len());
    for set in &active {
        let share = share(set, bounds, to_add, added);
        added += share;
        sizes.push(sets::replicas(set) + share);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    active.into_iter().zip(sizes).filter_map(|(set, size)| resize_or_note(set, size, bounds)).collect()
}

fn share(set: &ReplicaSet, bounds: Bounds, to_add: i32, added: i32) -> i32 {
    let left = to_add - added;
    if left == 0 {
        return 0;
    }
    let fraction = fraction(set, bounds);
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

/// What this set would gain if it grew as the Deployment did.
fn fraction(set: &ReplicaSet, bounds: Bounds) -> i32 {
    let size = sets::replicas(set);
    if bounds.replicas == 0 {
        return -size;
    }
    let before = sets::annotation(set, MAX).filter(|max| *max > 0).unwrap_or(size);
    if before == 0 {
        return 0;
    }
    let grown = (i64::from(size) * i64::from(bounds.max())) as f64 / f64::from(before);
    grown.round() as i32 - size
}
