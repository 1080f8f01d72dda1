//! Where a pod may run: affinity, tolerations, spreading, gates.

use std::collections::HashSet;

use serde_json::Value;

use super::validate::{maybe_one_of, name, one_of};
use crate::{
    field::{FieldError, Path},
    names,
    object::{has, list, text},
};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn validate(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    tolerations(&spec["tolerations"], &path.child("tolerations"), errors);
    let affinity = path.child("affinity");
    node_affinity(&spec["affinity"]["nodeAffinity"], &affinity.child("nodeAffinity"), errors);
    for kind in ["podAffinity", "podAntiAffinity"] {
        pod_affinity(&spec["affinity"][kind], &affinity.child(kind), errors);
    }
    spread(&spec["topologySpreadConstraints"], &path.child("topologySpreadConstraints"), errors);
    let mut seen = HashSet::new();
    for (i, gate) in list(&spec["schedulingGates"]).iter().enumerate() {
        let gates = path.child("schedulingGates");
        let place = gates.index(i);
        if !seen.insert(text(&gate["name"])) {
            errors.push(FieldError::duplicate(place, &gate["name"]));
        }
        name(&gate["name"], names::qualified, &place, errors);
    }
}

pub(crate) fn tolerations(tolerations: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for (i, toleration) in list(tolerations).iter().enumerate() {
        let place = path.index(i);
        let (key, operator) = (text(&toleration["key"]), text(&toleration["operator"]));
        if key.is_empty() {
            if operator != "Exists" {
                let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
                errors.push(FieldError::invalid(place.child("operator"), &Value::from(operator), detail));
            }
        } else {
            name(&toleration["key"], names::qualified, &place.child("key"), errors);
        }
        if has(toleration, "tolerationSeconds") && toleration["effect"] != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(
                place.child("effect"),
                &Value::from(text(&toleration["effect"])),
                detail,
            ));
        }
        match operator {
            "" | "Equal" => {
                for problem in names::label_value(text(&toleration["value"])) {
                    errors.push(FieldError::invalid(place.child("operator"), &toleration["value"], &problem));
                }
            }
            "Exists" => {
                if !text(&toleration["value"]).is_empty() {
                    let detail = "value must be empty when `operator` is 'Exists'";
                    errors.push(FieldError::invalid(place.child("operator"), &toleration["value"], detail));
                }
            }
            _ => errors.push(FieldError::not_supported(
                place.child("operator"),
                &toleration["operator"],
                &["Equal", "Exists"],
            )),
        }
        maybe_one_of(&toleration["effect"], EFFECTS, &place.child("effect"), errors);
    }
}

/// Taints of a node.
pub(crate) fn taints(taints: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (i, taint) in list(taints).iter().enumerate() {
        let place = path.index(i);
        name(&taint["key"], names::qualified, &place.child("key"), errors);
        for problem in names::label_value(text(&taint["value"])) {
            errors.push(FieldError::invalid(place.child("value"), &taint["value"], &problem));
        }
        one_of(&taint["effect"], EFFECTS, &place.child("effect"), errors);
        if !seen.insert((text(&taint["key"]), text(&taint["effect"]))) {
            errors.push(FieldError::duplicate(place, taint));
        }
    }
}

fn node_affinity(affinity: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"];
    if !required.is_null() {
        let path = path.child("requiredDuringSchedulingIgnoredDuringExecution");
        let path = path.child("nodeSelectorTerms");
        if list(&required["nodeSelectorTerms"]).is_empty() {
            errors.push(FieldError::required(path, "must have at least one node selector term"));
        }
        for (i, term) in list(&required["nodeSelectorTerms"]).iter().enumerate() {
            node_term(term, &path.index(i), errors);
        }
    }
    let path = path.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (i, preferred) in
        list(&affinity["preferredDuringSchedulingIgnoredDuringExecution"]).iter().enumerate()
    {
        let place = path.index(i);
        weight(&preferred["weight"], &place.child("weight"), errors);
        node_term(&preferred["preference"], &place.child("preference"), errors);
    }
}

fn weight(value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if !value.as_i64().is_some_and(|w| (1..=100).contains(&w)) {
        errors.push(FieldError::invalid(path, value, "must be in the range 1-100"));
    }
}

fn node_term(term: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for (i, requirement) in list(&term["matchExpressions"]).iter().enumerate() {
        let expressions = path.child("matchExpressions");
        let place = expressions.index(i);
        expression(requirement, Operators::AndNumbers, &place, errors);
        name(&requirement["key"], names::qualified, &place.child("key"), errors);
    }
    for (i, requirement) in list(&term["matchFields"]).iter().enumerate() {
        let fields = path.child("matchFields");
        let place = fields.index(i);
        if !matches!(text(&requirement["operator"]), "In" | "NotIn") {
            errors.push(FieldError::invalid(
                place.child("operator"),
                &requirement["operator"],
                "not a valid selector operator",
            ));
        } else if list(&requirement["values"]).len() != 1 {
            errors.push(FieldError::required(
                place.child("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ));
        }
        if requirement["key"] != "metadata.name" {
            errors.push(FieldError::invalid(
                place.child("key"),
                &requirement["key"],
                "not a valid field selector key",
            ));
        }
    }
}

fn pod_affinity(affinity: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let required = path.child("requiredDuringSchedulingIgnoredDuringExecution");
    for (i, term) in list(&affinity["requiredDuringSchedulingIgnoredDuringExecution"]).iter().enumerate() {
        pod_term(term, &required.index(i), errors);
    }
    let preferred = path.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (i, weighted) in list(&affinity["preferredDuringSchedulingIgnoredDuringExecution"]).iter().enumerate()
    {
        let place = preferred.index(i);
        weight(&weighted["weight"], &place.child("weight"), errors);
        pod_term(&weighted["podAffinityTerm"], &place.child("podAffinityTerm"), errors);
    }
}

fn pod_term(term: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for field in ["labelSelector", "namespaceSelector"] {
        label_selector(&term[field], &path.child(field), errors);
    }
    for (i, namespace) in list(&term["namespaces"]).iter().enumerate() {
        name(namespace, names::label, &path.child("namespaces").index(i), errors);
    }
    if text(&term["topologyKey"]).is_empty() {
        errors.push(FieldError::required(path.child("topologyKey"), "can not be empty"));
    } else {
        name(&term["topologyKey"], names::qualified, &path.child("topologyKey"), errors);
    }
}

fn spread(constraints: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (i, constraint) in list(constraints).iter().enumerate() {
        let place = path.index(i);
        if constraint["maxSkew"].as_i64().unwrap_or(0) <= 0 {
            errors.push(FieldError::invalid(
                place.child("maxSkew"),
                &constraint["maxSkew"],
                "must be greater than zero",
            ));
        }
        if text(&constraint["topologyKey"]).is_empty() {
            errors.push(FieldError::required(place.child("topologyKey"), "can not be empty"));
        } else {
            name(&constraint["topologyKey"], names::qualified, &place.child("topologyKey"), errors);
        }
        let when = &constraint["whenUnsatisfiable"];
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&text(when)) {
            errors.push(FieldError::not_supported(
                place.child("whenUnsatisfiable"),
                when,
                &["DoNotSchedule", "ScheduleAnyway"],
            ));
        }
        if !seen.insert((text(&constraint["topologyKey"]), text(when))) {
            let pair = format!("{{{}, {}}}", text(&constraint["topologyKey"]), text(when));
            errors.push(FieldError::duplicate(place.child("{topologyKey, whenUnsatisfiable}"), &pair.into()));
        }
        if has(constraint, "minDomains") && constraint["minDomains"].as_i64().unwrap_or(0) <= 0 {
            errors.push(FieldError::invalid(
                place.child("minDomains"),
                &constraint["minDomains"],
                "must be greater than zero",
            ));
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            maybe_one_of(&constraint[field], &["Honor", "Ignore"], &place.child(field), errors);
        }
        label_selector(&constraint["labelSelector"], &place.child("labelSelector"), errors);
    }
}

/// A `metav1.LabelSelector`.
pub(crate) fn label_selector(selector: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    crate::meta::validate_labels(&selector["matchLabels"], &path.child("matchLabels"), errors);
    for (i, requirement) in list(&selector["matchExpressions"]).iter().enumerate() {
        let expressions = path.child("matchExpressions");
        let place = expressions.index(i);
        expression(requirement, Operators::OfSets, &place, errors);
        for problem in names::qualified(text(&requirement["key"])) {
            errors.push(FieldError::invalid(place.child("key"), &requirement["key"], &problem));
        }
        for (j, value) in list(&requirement["values"]).iter().enumerate() {
            name(value, names::label_value, &place.child("values").index(j), errors);
        }
    }
}

/// What a `matchExpressions` may ask: of labels whether they are in a set, of nodes also how numbers compare.
#[derive(Clone, Copy, PartialEq)]
enum Operators {
    OfSets,
    AndNumbers,
}

fn expression(requirement: &Value, allowed: Operators, place: &Path<'_>, errors: &mut Vec<FieldError>) {
    let values = list(&requirement["values"]);
    match text(&requirement["operator"]) {
        "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
            place.child("values"),
            "must be specified when `operator` is 'In' or 'NotIn'",
        )),
        "In" | "NotIn" => {}
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
            place.child("values"),
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )),
        "Exists" | "DoesNotExist" => {}
        "Gt" | "Lt" if allowed == Operators::AndNumbers => {
            if values.len() != 1 {
                errors.push(FieldError::required(
                    place.child("values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                ));
            }
        }
        _ => errors.push(FieldError::invalid(
            place.child("operator"),
            &requirement["operator"],
            "not a valid selector operator",
        )),
    }
}
