//! Moving pods from the old ReplicaSets to the new one, within surge and unavailability. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::plan::{Action, note_size};
use super::sets::{self, Bounds, Sets};

/// The size the new set is to have now.
pub(super) fn new_size(deployment: &Deployment, bounds: Bounds, sets: &Sets) -> i32 {
    let current = sets.new.as_ref().map_or(0, |set| sets::replicas(set));
    if current > bounds.replicas {
        return bounds.replicas;
    }
    if current == bounds.replicas {
        return current;
    }
    sets::new_set_size(deployment, bounds, sets)
}

/// The update that gives `set` this size and notes the Deployment's, where that changes its size.
pub(super) fn resize(set: &ReplicaSet, size: i32, bounds: Bounds) -> Option<Action> {
    let from = sets::replicas(set);
    (from != size).then(|| sized(set, size, bounds))
}

/// As [`resize`], also where only what is noted about the size changes.
pub(super) fn resize_or_note(set: &ReplicaSet, size: i32, bounds: Bounds) -> Option<Action> {
    let mut noted = set.clone();
    let changes = note_size(&mut noted, bounds);
    (changes || sets::replicas(set) != size).then(|| sized(set, size, bounds))
}

fn sized(set: &ReplicaSet, size: i32, bounds: Bounds) -> Action {
    let from = sets::replicas(set);
    let mut set = set.clone();
    note_size(&mut set, bounds);
    set.spec.replicas = Some(size);
    Action::Update { set, from }
}

/// Recreate: all old sets go first.
pub(super) fn old_to_zero(sets: &Sets, bounds: Bounds) -> Vec<Action> {
    sets.old.iter().filter_map(|set| resize(set, 0, bounds)).collect()
}

/// Takes replicas from the old sets: first those that are not available anyhow, then as many as the
/// available ones of all sets allow.
pub(super) fn shrink_old(bounds: Bounds, sets: &Sets) -> Vec<Action> {
    let mut sizes: Vec<i32> = sets.old.iter().map(|set| sets::replicas(set)).collect();
    if sizes.iter().sum::<i32>() == 0 {
        return Vec::new();
    }
    let new = sets.new.as_ref();
    let new_unavailable = new.map_or(0, |set| sets::replicas(set) - sets::available(set));
    let room = sets.total_replicas() - bounds.min_available() - new_unavailable;
    if room <= 0 {
        return Vec::new();
    }
    let mut left = room;
    for (set, size) in sets.old.iter().zip(&mut sizes) {
        let unhealthy = (*size - sets::available(set)).max(0);
        let take = unhealthy.min(left);
        *size -= take;
        left -= take;
    }
    // A set that was told to let some go is about to have as many as it was told, whatever its status still says;
    // Kubernetes takes the status, and falls below the bound where the sets' controller is late.
    let kept = |set: &Arc<ReplicaSet>| sets::available(set).min(sets::replicas(set));
    let mut spare = sets.all().map(kept).sum::<i32>() - bounds.min_available();
    for size in &mut sizes {
        let take = (*size).min(spare).max(0);
        *size -= take;
        spare -= take;
    }
    sets.old.iter().zip(sizes).filter_map(|(set, size)| resize(set, size, bounds)).collect()
}
