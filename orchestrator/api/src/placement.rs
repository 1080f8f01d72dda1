//! Whether a pod may run on a node: taints and tolerations, node selectors and node affinity. Pure.
//!
//! Typed, unlike the rest of this crate: its callers are clients (the scheduler, the DaemonSet controller),
//! which must agree, or one would create pods that the other can never place.

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// Whether the toleration covers the taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "" | "Equal" => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        "Exists" => true,
        _ => false,
    }
}

/// The first taint with one of these effects that no toleration covers.
pub fn untolerated<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    effects: &[&str],
) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// Whether the node satisfies the pod's nodeSelector and its required node affinity.
pub fn selects(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let wanted = spec.node_selector.iter().flatten();
    for (key, value) in wanted {
        if labels.and_then(|labels| labels.get(key)) != Some(value) {
            return false;
        }
    }
    required_affinity(spec).is_none_or(|selector| selector_matches(selector, node))
}

/// The node affinity a pod requires, if any.
pub fn required_affinity(spec: &PodSpec) -> Option<&NodeSelector> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity.required_during_scheduling_ignored_during_execution.as_ref()
}

/// The terms are alternatives.
pub fn selector_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// All requirements of the term hold. A term without any matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = node.metadata.labels.as_ref();
    expressions.iter().all(|requirement| {
        holds(requirement, labels.and_then(|labels| labels.get(&requirement.key)).map(String::as_str))
    }) && fields.iter().all(|requirement| {
        requirement.key == "metadata.name" && holds(requirement, node.metadata.name.as_deref())
    })
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|candidate| candidate == value);
    let compare = |holds: fn(i64, i64) -> bool| {
        let [bound] = values else { return false };
        let numbers = (value.and_then(|value| value.parse().ok()), bound.parse().ok());
        matches!(numbers, (Some(value), Some(bound)) if holds(value, bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, bound| value > bound),
        "Lt" => compare(|value, bound| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("a valid object")
    }

    #[test]
    fn tolerations_table() {
        let taint: Taint = parse(json!({ "key": "gpu", "value": "a", "effect": "NoSchedule" }));
        let cases = [
            ("equal", json!({ "key": "gpu", "value": "a", "effect": "NoSchedule" }), true),
            ("other value", json!({ "key": "gpu", "value": "b", "effect": "NoSchedule" }), false),
            ("other effect", json!({ "key": "gpu", "value": "a", "effect": "NoExecute" }), false),
            ("any effect", json!({ "key": "gpu", "value": "a" }), true),
            ("exists", json!({ "key": "gpu", "operator": "Exists" }), true),
            ("everything", json!({ "operator": "Exists" }), true),
            ("other key", json!({ "key": "disk", "operator": "Exists" }), false),
        ];
        for (name, toleration, expect) in cases {
            assert_eq!(tolerates(&parse(toleration), &taint), expect, "{name}");
        }
    }

    #[test]
    fn effects_that_do_not_matter_are_passed_over() {
        let taints: Vec<Taint> = parse(json!([
            { "key": "a", "effect": "PreferNoSchedule" },
            { "key": "b", "effect": "NoExecute" },
        ]));
        let found = untolerated(&taints, &[], &["NoSchedule", "NoExecute"]).map(|taint| taint.key.as_str());
        assert_eq!(found, Some("b"));
        assert!(untolerated(&taints, &[], &["NoSchedule"]).is_none());
    }

    #[test]
    fn selection_table() {
        let node: Node =
            parse(json!({ "metadata": { "name": "n1", "labels": { "zone": "a", "cores": "8" } } }));
        let affinity = |terms: Value| {
            json!({ "containers": [], "affinity": { "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } })
        };
        let one = |key: &str, operator: &str, values: &[&str]| {
            affinity(
                json!([{ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] }]),
            )
        };
        let cases = [
            ("nothing asked", json!({ "containers": [] }), true),
            ("selector", json!({ "containers": [], "nodeSelector": { "zone": "a" } }), true),
            ("selector, other value", json!({ "containers": [], "nodeSelector": { "zone": "b" } }), false),
            ("in", one("zone", "In", &["b", "a"]), true),
            ("not in", one("zone", "NotIn", &["a"]), false),
            ("not in, absent", one("rack", "NotIn", &["a"]), true),
            ("exists", one("zone", "Exists", &[]), true),
            ("does not exist", one("zone", "DoesNotExist", &[]), false),
            ("greater", one("cores", "Gt", &["4"]), true),
            ("less", one("cores", "Lt", &["8"]), false),
            ("greater, no number", one("zone", "Gt", &["4"]), false),
            ("empty term", affinity(json!([{}])), false),
            ("no terms", affinity(json!([])), false),
            (
                "by name",
                affinity(
                    json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n1"] }] }]),
                ),
                true,
            ),
            (
                "second alternative",
                affinity(json!([
                    { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["b"] }] },
                    { "matchExpressions": [{ "key": "cores", "operator": "Exists" }] },
                ])),
                true,
            ),
        ];
        for (name, spec, expect) in cases {
            assert_eq!(selects(&parse(spec), &node), expect, "{name}");
        }
    }
}
