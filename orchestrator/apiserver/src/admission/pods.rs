//! What every pod is given: tolerations of node trouble, a priority.

use pith_api::{ApiError, Subject, meta};
use serde_json::{Value, json};

/// How long pods that do not say otherwise stay on a node in trouble (upstream: `DefaultTolerationSeconds`).
#[derive(Clone, Copy, Debug)]
pub struct Tolerations {
    pub not_ready_s: u32,
    pub unreachable_s: u32,
}

impl Default for Tolerations {
    fn default() -> Self {
        Self { not_ready_s: 300, unreachable_s: 300 }
    }
}

/// Priorities that exist without an object.
const SYSTEM_PRIORITIES: &[(&str, i64)] =
    &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

pub(super) fn create(pod: &mut Value, defaults: Tolerations) -> Result<(), ApiError> {
    tolerations(pod, defaults);
    priority(pod)
}

fn tolerations(pod: &mut Value, defaults: Tolerations) {
    let spec = &mut pod["spec"];
    let mut list = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let troubles = [
        ("node.kubernetes.io/not-ready", defaults.not_ready_s),
        ("node.kubernetes.io/unreachable", defaults.unreachable_s),
    ];
    for (key, seconds) in troubles {
        let tolerated = list.iter().any(|toleration| {
            let own_key = toleration["key"].as_str().unwrap_or_default();
            let effect = toleration["effect"].as_str().unwrap_or_default();
            (own_key == key || own_key.is_empty()) && matches!(effect, "" | "NoExecute")
        });
        if !tolerated {
            list.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
            }));
        }
    }
    spec["tolerations"] = list.into();
}

fn priority(pod: &mut Value) -> Result<(), ApiError> {
    let class = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let priority = match class.as_str() {
        "" => 0,
        class => match SYSTEM_PRIORITIES.iter().find(|(name, _)| *name == class) {
            Some((_, priority)) => *priority,
            None => {
                return Err(ApiError::forbidden(
                    Subject::new("", "pods", meta::name(pod)),
                    format!("no PriorityClass with name {class} was found"),
                ));
            }
        },
    };
    if pod["spec"]["priority"].as_i64().is_some_and(|given| given != priority) {
        return Err(ApiError::forbidden(
            Subject::new("", "pods", meta::name(pod)),
            format!(
                "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name",
                pod["spec"]["priority"]
            ),
        ));
    }
    pod["spec"]["priority"] = priority.into();
    if pod["spec"]["preemptionPolicy"].is_null() {
        pod["spec"]["preemptionPolicy"] = "PreemptLowerPriority".into();
    }
    Ok(())
}
