//! A pod's class of service, by which the kernel decides who is killed first.

use serde_json::Value;

use crate::{
    object::{list, text},
    quantity::Quantity,
};

/// `Guaranteed` where every container limits cpu and memory and requests exactly that, `BestEffort` where
/// nothing is asked for, `Burstable` otherwise.
pub fn of(spec: &Value) -> &'static str {
    let amount = |resources: &Value, kind: &str, name: &str| -> Option<Quantity> {
        text(&resources[kind][name]).parse().ok().filter(|q: &Quantity| !q.is_zero())
    };
    let pod_level = &spec["resources"];
    let all: Vec<&Value> = if pod_level.as_object().is_some_and(|r| !r.is_empty()) {
        vec![pod_level]
    } else {
        list(&spec["initContainers"])
            .iter()
            .chain(list(&spec["containers"]))
            .map(|c| &c["resources"])
            .collect()
    };
    let (mut any, mut guaranteed) = (false, true);
    for resources in all {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(resources, "requests", name), amount(resources, "limits", name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes_follow_requests_and_limits() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "0"}}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": both}), "Guaranteed"),
            (json!({"limits": both, "requests": {"cpu": "1000m", "memory": "1024Mi"}}), "Guaranteed"),
            (json!({"limits": both, "requests": {"cpu": "500m"}}), "Burstable"),
        ] {
            assert_eq!(of(&json!({"containers": [{"resources": resources}]})), class, "{resources}");
        }
        let mixed = json!({"containers": [{"resources": {"limits": both}}, {}]});
        assert_eq!(of(&mixed), "Burstable");
    }
}
