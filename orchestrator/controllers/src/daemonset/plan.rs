//! Which pods of a DaemonSet are to be created and deleted, and its status. Pure.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::fit::{self, Fit, HASH_LABEL};
use crate::{pod, template};

pub(super) struct Observed<'a> {
    pub set: &'a DaemonSet,
    /// The pods it controls, in any state.
    pub pods: &'a [Arc<Pod>],
    pub nodes: &'a [Arc<Node>],
    /// The hash of the current template.
    pub hash: &'a str,
    pub now: Timestamp,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Names of nodes that are to get a pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Those of the deleted that have failed, and their nodes.
    pub failed: Vec<(Arc<Pod>, String)>,
}

/// One node and the set's pods on it, oldest first.
struct Place<'a> {
    node: &'a str,
    fit: Fit,
    pods: Vec<&'a Arc<Pod>>,
}

pub(super) fn plan(observed: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    let places = places(observed);
    let surge = bounds(observed, &places).surge > 0;
    for place in &places {
        keep_one(observed, place, surge, &mut plan);
    }
    // Pods bound to nodes that do not exist can never be placed.
    let known: HashSet<&str> = places.iter().map(|place| place.node).collect();
    let lost = observed.pods.iter().filter(|pod| {
        let placeable = fit::node_of(pod).is_some_and(|node| known.contains(node));
        pod::is_active(pod) && pod::node(pod).is_none() && !placeable
    });
    plan.delete.extend(lost.cloned());
    if strategy(observed.set) == "RollingUpdate" {
        roll(observed, &places, &mut plan);
    }
    plan
}

fn places<'a>(observed: &Observed<'a>) -> Vec<Place<'a>> {
    let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in observed.pods {
        if let Some(node) = fit::node_of(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    let created = |pod: &&Arc<Pod>| {
        (pod.metadata.creation_timestamp.as_ref().map(|time| time.0), pod.metadata.name.clone())
    };
    let place = |node: &'a Arc<Node>| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut pods = by_node.remove(name).unwrap_or_default();
        pods.sort_by_key(created);
        Place { node: name, fit: fit::fit(observed.set, node), pods }
    };
    observed.nodes.iter().map(place).collect()
}

/// Brings one node to one pod (two while a surge replaces one by the other), or to none.
fn keep_one(observed: &Observed<'_>, place: &Place<'_>, surge: bool, plan: &mut Plan) {
    let (ended, running): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
        alive(place).partition(|pod| pod::is_terminal(pod));
    if place.fit == Fit::No {
        plan.delete.extend(alive(place).cloned());
        return;
    }
    for pod in ended {
        if pod::phase(pod) == "Failed" {
            plan.failed.push((pod.clone(), place.node.to_owned()));
        }
        plan.delete.push(pod.clone());
    }
    // A pod on its way out keeps its place until it is gone, so that never two run side by side.
    if place.fit == Fit::Run && place.pods.is_empty() {
        plan.create.push(place.node.to_owned());
    }
    if surge {
        let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| is_current(observed, pod));
        plan.delete.extend(new.into_iter().skip(1).cloned());
        plan.delete.extend(old.into_iter().skip(1).cloned());
    } else {
        plan.delete.extend(running.into_iter().skip(1).cloned());
    }
}

fn alive<'a>(place: &Place<'a>) -> impl Iterator<Item = &'a Arc<Pod>> {
    place.pods.iter().copied().filter(|pod| pod.metadata.deletion_timestamp.is_none())
}

fn is_current(observed: &Observed<'_>, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(HASH_LABEL)).is_some_and(|hash| hash == observed.hash)
}

fn min_ready(set: &DaemonSet) -> Duration {
    Duration::from_secs(u64::try_from(set.spec.min_ready_seconds.unwrap_or(0)).unwrap_or(0))
}

fn is_available(observed: &Observed<'_>, pod: &Pod) -> bool {
    pod::available_in(pod, min_ready(observed.set), observed.now) == Some(Duration::ZERO)
}

fn strategy(set: &DaemonSet) -> &str {
    set.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()).unwrap_or("RollingUpdate")
}

/// How far a roll-out may go at once.
struct Bounds {
    surge: usize,
    unavailable: usize,
}

fn bounds(observed: &Observed<'_>, places: &[Place<'_>]) -> Bounds {
    let wanted = places.iter().filter(|place| place.fit == Fit::Run).count();
    let wanted = i32::try_from(wanted).unwrap_or(i32::MAX);
    let rolling = observed.set.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let surge = template::resolve(rolling.and_then(|r| r.max_surge.as_ref()), wanted, true);
    let unavailable = match rolling.and_then(|r| r.max_unavailable.as_ref()) {
        Some(value) => template::resolve(Some(value), wanted, true),
        None => i32::from(surge == 0),
    };
    let count = |value: i32| usize::try_from(value).unwrap_or(0);
    Bounds { surge: count(surge), unavailable: count(unavailable) }
}

/// Replaces pods of earlier templates, as many at once as the bounds allow.
fn roll(observed: &Observed<'_>, places: &[Place<'_>], plan: &mut Plan) {
    let bounds = bounds(observed, places);
    if observed.hash.is_empty() {
        return;
    }
    let mut free = Vec::new();
    let mut candidates = Vec::new();
    let mut busy = 0;
    for place in places.iter().filter(|place| place.fit == Fit::Run) {
        let pods: Vec<&Arc<Pod>> = alive(place).filter(|pod| !pod::is_terminal(pod)).collect();
        let new = pods.iter().copied().find(|pod| is_current(observed, pod));
        let old = pods.iter().copied().find(|pod| !is_current(observed, pod));
        match (new, old) {
            (Some(new), Some(old)) if bounds.surge > 0 => {
                if is_available(observed, new) {
                    plan.delete.push(old.clone());
                } else {
                    busy += 1;
                }
            }
            (None, Some(old)) if is_available(observed, old) => candidates.push((place.node, old)),
            // It serves nobody: replacing it costs nothing.
            (None, Some(old)) => free.push((place.node, old)),
            (Some(new), _) if is_available(observed, new) => {}
            (Some(_), _) | (None, None) => busy += usize::from(bounds.surge == 0),
        }
    }
    let room = if bounds.surge > 0 { bounds.surge } else { bounds.unavailable };
    let chosen = free.into_iter().chain(candidates.into_iter().take(room.saturating_sub(busy)));
    for (node, old) in chosen {
        if bounds.surge > 0 {
            plan.create.push(node.to_owned());
        } else if !plan.delete.iter().any(|pod| Arc::ptr_eq(pod, old)) {
            plan.delete.push(old.clone());
        }
    }
}

/// The status, and when it will change although nothing happens.
pub(super) fn status(observed: &Observed<'_>) -> (DaemonSetStatus, Option<Duration>) {
    let old = observed.set.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        observed_generation: observed.set.metadata.generation,
        collision_count: old.collision_count,
        conditions: old.conditions,
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    let mut again: Option<Duration> = None;
    for place in places(observed) {
        let scheduled = place.pods.iter().copied().filter(|pod| pod::node(pod).is_some());
        let scheduled: Vec<&Arc<Pod>> = scheduled.collect();
        if place.fit != Fit::Run {
            status.number_misscheduled += i32::from(!scheduled.is_empty() && place.fit == Fit::No);
            continue;
        }
        status.desired_number_scheduled += 1;
        if scheduled.is_empty() {
            continue;
        }
        status.current_number_scheduled += 1;
        updated += i32::from(scheduled.iter().any(|pod| is_current(observed, pod)));
        status.number_ready += i32::from(scheduled.iter().any(|pod| pod::is_ready(pod)));
        let waits =
            scheduled.iter().filter_map(|pod| pod::available_in(pod, min_ready(observed.set), observed.now));
        match waits.min() {
            Some(Duration::ZERO) => available += 1,
            Some(wait) => again = Some(again.map_or(wait, |soonest| soonest.min(wait))),
            None => {}
        }
    }
    let count = |count: i32| (count != 0).then_some(count);
    status.updated_number_scheduled = count(updated);
    status.number_available = count(available);
    status.number_unavailable = count(status.desired_number_scheduled - available);
    (status, again)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(change: Value) -> DaemonSet {
        let mut set = json!({ "metadata": { "name": "ds", "namespace": "d", "uid": "u", "generation": 1 },
            "spec": { "selector": { "matchLabels": { "app": "x" } }, "template": {
                "metadata": { "labels": { "app": "x" } }, "spec": { "containers": [] } } } });
        for (key, value) in change.as_object().into_iter().flatten() {
            set["spec"][key] = value.clone();
        }
        serde_json::from_value(set).expect("a valid set")
    }

    fn node(name: &str, taints: Value) -> Arc<Node> {
        let node = json!({ "metadata": { "name": name }, "spec": { "taints": taints } });
        Arc::new(serde_json::from_value(node).expect("a valid node"))
    }

    fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        let pod = json!({
            "metadata": { "name": name, "namespace": "d", "labels": { "app": "x", (HASH_LABEL): hash } },
            "spec": { "nodeName": node, "containers": [] },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] },
        });
        Arc::new(serde_json::from_value(pod).expect("a valid pod"))
    }

    fn rolling(bounds: Value) -> DaemonSet {
        set(json!({ "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": bounds } }))
    }

    #[test]
    fn plan_table() {
        let nodes = || vec![node("a", json!([])), node("b", json!([])), node("c", json!([]))];
        let cordoned = json!([{ "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule" }]);
        let taint = |effect: &str| json!([{ "key": "gpu", "effect": effect }]);
        let all = |hash: &str| {
            vec![pod("pa", "a", hash, true), pod("pb", "b", hash, true), pod("pc", "c", hash, true)]
        };
        let plain = || set(json!({}));
        let surge = || rolling(json!({ "maxSurge": 1, "maxUnavailable": 0 }));
        let on_delete = set(json!({ "updateStrategy": { "type": "OnDelete" } }));
        let mut one_down = all("new");
        one_down[0] = pod("pa", "a", "new", false);
        one_down[1] = pod("pb", "b", "old", true);
        let mut old_down = all("old");
        old_down[2] = pod("pc", "c", "old", false);
        let mut surging = all("old");
        surging.push(pod("pz", "a", "new", true));
        let one = |hash: &str| vec![pod("pa", "a", hash, true)];
        let cases = [
            ("new set", plain(), nodes(), vec![], vec!["a", "b", "c"], vec![]),
            ("complete", plain(), nodes(), all("new"), vec![], vec![]),
            ("cordoned nodes count", plain(), vec![node("a", cordoned)], vec![], vec!["a"], vec![]),
            ("repelled", plain(), vec![node("a", taint("NoSchedule"))], vec![], vec![], vec![]),
            (
                "repelled later: stays",
                plain(),
                vec![node("a", taint("NoSchedule"))],
                one("new"),
                vec![],
                vec![],
            ),
            ("driven away", plain(), vec![node("a", taint("NoExecute"))], one("new"), vec![], vec!["pa"]),
            ("rolls one by one", plain(), nodes(), all("old"), vec![], vec!["pa"]),
            (
                "rolls two at once",
                rolling(json!({ "maxUnavailable": 2 })),
                nodes(),
                all("old"),
                vec![],
                vec!["pa", "pb"],
            ),
            ("waits for the new one", plain(), nodes(), one_down, vec![], vec![]),
            ("replaces what is down anyhow", plain(), nodes(), old_down, vec![], vec!["pc", "pa"]),
            ("on delete", on_delete, nodes(), all("old"), vec![], vec![]),
            ("surges one", surge(), nodes(), all("old"), vec!["a"], vec![]),
            ("the surged one takes over", surge(), nodes(), surging, vec!["b"], vec!["pa"]),
        ];
        for (name, set, nodes, pods, create, delete) in cases {
            let now = Timestamp::UNIX_EPOCH;
            let plan = plan(&Observed { set: &set, pods: &pods, nodes: &nodes, hash: "new", now });
            let deleted: Vec<_> = plan.delete.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
            assert_eq!(
                (plan.create, deleted),
                (create.into_iter().map(String::from).collect(), delete),
                "{name}"
            );
        }
    }

    #[test]
    fn status_counts() {
        let repelled = json!([{ "key": "x", "effect": "NoExecute" }]);
        let nodes = [node("a", json!([])), node("b", json!([])), node("c", repelled)];
        let pods = [pod("pa", "a", "new", true), pod("pb", "b", "old", false), pod("pc", "c", "new", true)];
        let (set, now) = (set(json!({})), Timestamp::UNIX_EPOCH);
        let (status, _) =
            super::status(&Observed { set: &set, pods: &pods, nodes: &nodes, hash: "new", now });
        let expect = DaemonSetStatus {
            desired_number_scheduled: 2,
            current_number_scheduled: 2,
            number_misscheduled: 1,
            number_ready: 1,
            updated_number_scheduled: Some(1),
            number_available: Some(1),
            number_unavailable: Some(1),
            observed_generation: Some(1),
            ..DaemonSetStatus::default()
        };
        assert_eq!(status, expect);
    }
}
