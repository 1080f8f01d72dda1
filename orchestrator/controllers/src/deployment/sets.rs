//! [`Sets`]: a Deployment's ReplicaSets, told apart into the one of the current template and the others. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};

use super::revision;
use crate::template;

/// How many replicas the Deployment wanted when the set was last scaled.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// How many there could be, surge included, when the set was last scaled.
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";

pub(super) struct Sets {
    /// The set of the current template.
    pub new: Option<Arc<ReplicaSet>>,
    /// All others, oldest first.
    pub old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    pub(super) fn new(deployment: &Deployment, mut owned: Vec<Arc<ReplicaSet>>) -> Self {
        owned.sort_by_key(|set| {
            (set.metadata.creation_timestamp.as_ref().map(|time| time.0), set.metadata.name.clone())
        });
        let wanted = &deployment.spec.template;
        let current = owned.iter().position(|set| {
            set.spec.template.as_ref().is_some_and(|template| template::same(template, wanted))
        });
        let new = current.map(|index| owned.remove(index));
        Self { new, old: owned }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(self.new.iter())
    }

    pub(super) fn total_replicas(&self) -> i32 {
        self.all().map(|set| replicas(set)).sum()
    }

    pub(super) fn total_available(&self) -> i32 {
        self.all().map(|set| available(set)).sum()
    }

    /// The sets that have or want pods.
    pub(super) fn active(&self) -> Vec<&Arc<ReplicaSet>> {
        self.all().filter(|set| replicas(set) > 0).collect()
    }

    /// The set that alone is to be scaled: the only active one, or the newest where none is.
    pub(super) fn active_or_latest(&self) -> Option<&Arc<ReplicaSet>> {
        match self.active().as_slice() {
            [] => self.new.as_ref().or(self.old.last()),
            [only] => Some(*only),
            _ => None,
        }
    }

    pub(super) fn last_old_revision(&self) -> i64 {
        self.old.iter().map(|set| revision::of(&set.metadata)).max().unwrap_or(0)
    }
}

pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

pub(super) fn existing(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

pub(super) fn annotation(set: &ReplicaSet, name: &str) -> Option<i32> {
    set.metadata.annotations.as_ref()?.get(name)?.parse().ok()
}

/// How many replicas a Deployment wants, and by how many it may deviate while it rolls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub replicas: i32,
    pub surge: i32,
    pub unavailable: i32,
}

impl Bounds {
    pub(super) fn of(deployment: &Deployment) -> Self {
        let spec = &deployment.spec;
        let replicas = spec.replicas.unwrap_or(1);
        if is_recreate(spec) || replicas == 0 {
            return Self { replicas, surge: 0, unavailable: 0 };
        }
        let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let surge = template::resolve(rolling.and_then(|r| r.max_surge.as_ref()), replicas, true);
        let unavailable =
            template::resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), replicas, false);
        // With neither, nothing could ever move.
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable.min(replicas) };
        Self { replicas, surge, unavailable }
    }

    /// The most pods there may be.
    pub(super) fn max(&self) -> i32 {
        self.replicas + self.surge
    }

    /// The fewest that must be available.
    pub(super) fn min_available(&self) -> i32 {
        self.replicas - self.unavailable
    }
}

pub(super) fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// How large the new set may be now, without exceeding what the surge allows in all.
pub(super) fn new_set_size(deployment: &Deployment, bounds: Bounds, sets: &Sets) -> i32 {
    let current = sets.new.as_ref().map_or(0, |set| replicas(set));
    if is_recreate(&deployment.spec) {
        return bounds.replicas;
    }
    // Pods that a set was told to let go of and still has count as well. Kubernetes leaves them out, and exceeds the
    // surge for as long as the sets' controller takes.
    let there: i32 = sets.all().map(|set| replicas(set).max(existing(set))).sum();
    let room = bounds.max() - there;
    if room <= 0 { current } else { current + room.min(bounds.replicas - current) }
}
