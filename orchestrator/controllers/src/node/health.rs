//! Conditions of a silent node, and the taints that follow from a node's conditions. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NO_SCHEDULE: &str = "NoSchedule";
pub(crate) const NO_EXECUTE: &str = "NoExecute";

/// What the kubelet reports; all of it is unknown once the node is silent.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Conditions that keep pods away while they are true, and their taints.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn status_of<'a>(node: &'a Node, kind: &str) -> &'a str {
    condition(node, kind).map_or("Unknown", |condition| condition.status.as_str())
}

pub(crate) fn is_ready(node: &Node) -> bool {
    status_of(node, "Ready") == "True"
}

pub(crate) fn is_unknown(node: &Node) -> bool {
    status_of(node, "Ready") == "Unknown"
}

/// The status of a node that has gone silent; none where it says so already.
pub(crate) fn silent_status(node: &Node, now: Timestamp) -> Option<NodeStatus> {
    let mut status = node.status.clone().unwrap_or_default();
    let mut conditions = status.conditions.take().unwrap_or_default();
    let mut changed = false;
    for kind in REPORTED {
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                changed = true;
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(Time(now));
            }
            None => {
                changed = true;
                conditions.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(Time(now)),
                });
            }
        }
    }
    status.conditions = Some(conditions);
    changed.then_some(status)
}

/// The taints the node is to have; none where it has them. While no node at all is ready, no pod is driven
/// away: there is nowhere to go, and it is the primary that is cut off, more likely.
pub(crate) fn taints(node: &Node, all_down: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let spec = node.spec.clone().unwrap_or_default();
    let have = spec.taints.unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    // A kubelet that has not reported at all yet is starting: it is not ready, but not lost.
    let trouble = match condition(node, "Ready").map(|condition| condition.status.as_str()) {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        Some(_) | None => Some(NOT_READY),
    };
    if let Some(key) = trouble {
        wanted.push((key, NO_SCHEDULE));
        if !all_down {
            wanted.push((key, NO_EXECUTE));
        }
    }
    for (kind, key) in PRESSURES {
        if status_of(node, kind) == "True" {
            wanted.push((key, NO_SCHEDULE));
        }
    }
    if spec.unschedulable.unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let is = |taint: &Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    let mut taints: Vec<Taint> = have
        .iter()
        .filter(|taint| {
            !is_ours(taint) || wanted.iter().any(|want| is(taint, *want)) || stays(taint, trouble)
        })
        .cloned()
        .collect();
    for want in wanted {
        if !taints.iter().any(|taint| is(taint, want)) {
            let (key, effect) = (want.0.to_owned(), want.1.to_owned());
            taints.push(Taint { key, effect, value: None, time_added: Some(Time(now)) });
        }
    }
    (taints != have).then_some(taints)
}

/// A NoExecute taint stays as long as its reason does, also when the last ready node goes after it.
fn stays(taint: &Taint, trouble: Option<&str>) -> bool {
    taint.effect == NO_EXECUTE && Some(taint.key.as_str()) == trouble
}

/// Whether the taint is one that this controller sets and removes.
fn is_ours(taint: &Taint) -> bool {
    let key = taint.key.as_str();
    match taint.effect.as_str() {
        NO_EXECUTE => [NOT_READY, UNREACHABLE].contains(&key),
        NO_SCHEDULE => {
            [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key)
                || PRESSURES.iter().any(|(_, pressure)| *pressure == key)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn node(ready: Option<&str>, spec: Value) -> Node {
        let conditions: Vec<Value> =
            ready.map(|status| json!({ "type": "Ready", "status": status })).into_iter().collect();
        serde_json::from_value(
            json!({ "metadata": { "name": "n" }, "spec": spec, "status": { "conditions": conditions } }),
        )
        .expect("a valid node")
    }

    #[test]
    fn taints_table() {
        let own = json!({ "key": "gpu", "effect": "NoSchedule" });
        let lost = |effect: &str| json!({ "key": UNREACHABLE, "effect": effect, "timeAdded": "1970-01-01T00:00:00Z" });
        let cases = [
            ("ready, clean", node(Some("True"), json!({})), false, None),
            (
                "lost",
                node(Some("Unknown"), json!({})),
                false,
                Some(vec!["unreachable:NoSchedule", "unreachable:NoExecute"]),
            ),
            ("all are lost", node(Some("Unknown"), json!({})), true, Some(vec!["unreachable:NoSchedule"])),
            (
                "not ready",
                node(Some("False"), json!({})),
                false,
                Some(vec!["not-ready:NoSchedule", "not-ready:NoExecute"]),
            ),
            ("starting", node(None, json!({})), true, Some(vec!["not-ready:NoSchedule"])),
            (
                "back, with a taint of its own",
                node(Some("True"), json!({ "taints": [own, lost("NoSchedule"), lost("NoExecute")] })),
                false,
                Some(vec!["gpu:NoSchedule"]),
            ),
            (
                "the others went, too",
                node(Some("Unknown"), json!({ "taints": [lost("NoSchedule"), lost("NoExecute")] })),
                true,
                None,
            ),
            (
                "cordoned",
                node(Some("True"), json!({ "unschedulable": true })),
                false,
                Some(vec!["unschedulable:NoSchedule"]),
            ),
        ];
        for (name, node, all_down, expect) in cases {
            let got = taints(&node, all_down, NOW).map(|taints| {
                let show = |taint: Taint| {
                    format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect)
                };
                taints.into_iter().map(show).collect::<Vec<_>>()
            });
            assert_eq!(got, expect.map(|list| list.into_iter().map(String::from).collect()), "{name}");
        }
    }

    #[test]
    fn silence_is_told_once() {
        let before = node(Some("True"), json!({}));
        let status = silent_status(&before, NOW).expect("a change");
        let node = Node { status: Some(status), ..before };
        assert!(is_unknown(&node));
        let ready = condition(&node, "Ready").expect("it is there");
        assert_eq!(ready.message.as_deref(), Some("Kubelet stopped posting node status."));
        let memory = condition(&node, "MemoryPressure").expect("it is there");
        assert_eq!(memory.reason.as_deref(), Some("NodeStatusNeverUpdated"));
        assert!(silent_status(&node, NOW).is_none());
    }
}
