//! What makes a workload unusable, and what of it may not change.

use serde_json::Value;

use crate::{
    field::{FieldError, Path},
    kind::Subresource,
    meta::immutable,
    object::{has, text},
    pod::{
        scheduling::label_selector,
        validate::{non_negative, template},
    },
    selector::LabelSelector,
};

type Errors = Vec<FieldError>;

pub(super) fn deployment(object: &Value, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    non_negative(&spec["replicas"], &path.child("replicas"), errors);
    selected_template(spec, "deployment", &path, errors);
    strategy(&spec["strategy"], &["Recreate", "RollingUpdate"], &path.child("strategy"), errors);
    non_negative(&spec["minReadySeconds"], &path.child("minReadySeconds"), errors);
    non_negative(&spec["revisionHistoryLimit"], &path.child("revisionHistoryLimit"), errors);
    let deadline = &spec["progressDeadlineSeconds"];
    non_negative(deadline, &path.child("progressDeadlineSeconds"), errors);
    if let Some(seconds) = deadline.as_i64()
        && seconds <= spec["minReadySeconds"].as_i64().unwrap_or(0)
    {
        errors.push(FieldError::invalid(
            path.child("progressDeadlineSeconds"),
            deadline,
            "must be greater than minReadySeconds",
        ));
    }
}

pub(super) fn replica_set(object: &Value, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    non_negative(&spec["replicas"], &path.child("replicas"), errors);
    non_negative(&spec["minReadySeconds"], &path.child("minReadySeconds"), errors);
    selected_template(spec, "replica set", &path, errors);
}

pub(super) fn daemon_set(object: &Value, errors: &mut Errors) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    selected_template(spec, "daemonset", &path, errors);
    non_negative(&spec["minReadySeconds"], &path.child("minReadySeconds"), errors);
    non_negative(&spec["revisionHistoryLimit"], &path.child("revisionHistoryLimit"), errors);
    strategy(&spec["updateStrategy"], &["OnDelete", "RollingUpdate"], &path.child("updateStrategy"), errors);
}

/// Selector and template, and that they belong together.
fn selected_template(spec: &Value, what: &str, path: &Path<'_>, errors: &mut Errors) {
    let selector = path.child("selector");
    let empty = spec["selector"].as_object().is_some_and(|s| s.is_empty());
    if !has(spec, "selector") {
        errors.push(FieldError::required(selector, ""));
    } else {
        label_selector(&spec["selector"], &selector, errors);
        if empty {
            let detail = format!("empty selector is invalid for {what}");
            errors.push(FieldError::invalid(selector, &spec["selector"], &detail));
        }
    }
    let path = path.child("template");
    let labels = &spec["template"]["metadata"]["labels"];
    if has(spec, "selector")
        && !empty
        && LabelSelector::from_object(&spec["selector"]).is_ok_and(|s| !s.matches(labels))
    {
        let metadata = path.child("metadata");
        let shown = if labels.is_null() { &Value::Object(serde_json::Map::new()) } else { labels };
        errors.push(FieldError::invalid(
            metadata.child("labels"),
            shown,
            "`selector` does not match template `labels`",
        ));
    }
    template(&spec["template"], &path, errors);
    let pod = path.child("spec");
    if spec["template"]["spec"]["restartPolicy"] != "Always" {
        errors.push(FieldError::not_supported(
            pod.child("restartPolicy"),
            &spec["template"]["spec"]["restartPolicy"],
            &["Always"],
        ));
    }
    if has(&spec["template"]["spec"], "activeDeadlineSeconds") {
        let detail = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden(pod.child("activeDeadlineSeconds"), detail));
    }
}

fn strategy(strategy: &Value, supported: &[&str], path: &Path<'_>, errors: &mut Errors) {
    let rolling = &strategy["rollingUpdate"];
    match text(&strategy["type"]) {
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            if rolling.is_null() {
                errors.push(FieldError::required(path, "this should be defaulted and never be nil"));
                return;
            }
            let unavailable = amount(&rolling["maxUnavailable"], &path.child("maxUnavailable"), errors);
            let surge = amount(&rolling["maxSurge"], &path.child("maxSurge"), errors);
            if unavailable == Some(0) && surge == Some(0) {
                let place = path.child("maxUnavailable");
                errors.push(FieldError::invalid(
                    place,
                    &rolling["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                ));
            } else if supported.contains(&"OnDelete")
                && unavailable.is_some_and(|n| n > 0)
                && surge.is_some_and(|n| n > 0)
            {
                let detail = "may not be set when maxUnavailable is non-zero";
                errors.push(FieldError::invalid(path.child("maxSurge"), &rolling["maxSurge"], detail));
            }
        }
        "Recreate" if !rolling.is_null() => errors.push(FieldError::forbidden(
            path.child("rollingUpdate"),
            "may not be specified when strategy `type` is 'Recreate'",
        )),
        kind if !supported.contains(&kind) => {
            errors.push(FieldError::not_supported(path.child("type"), &strategy["type"], supported));
        }
        _ => {}
    }
}

/// A count or a percentage; complains where it is neither.
fn amount(value: &Value, path: &Path<'_>, errors: &mut Errors) -> Option<i64> {
    if value.is_string() {
        let percent =
            text(value).strip_suffix('%').filter(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
        let Some(percent) = percent.and_then(|p| p.parse::<i64>().ok()) else {
            let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            errors.push(FieldError::invalid(path, value, detail));
            return None;
        };
        if path.to_string().ends_with("maxUnavailable") && percent > 100 {
            errors.push(FieldError::invalid(path, value, "must not be greater than 100%"));
        }
        return Some(percent);
    }
    non_negative(value, path, errors);
    value.as_i64()
}

pub(super) fn update_deployment(new: &Value, old: &Value, door: Subresource, errors: &mut Errors) {
    if door == Subresource::Status {
        return counts(&new["status"], errors);
    }
    deployment(new, errors);
    same_selector(new, old, errors);
}

pub(super) fn update_replica_set(new: &Value, old: &Value, door: Subresource, errors: &mut Errors) {
    if door == Subresource::Status {
        return counts(&new["status"], errors);
    }
    replica_set(new, errors);
    same_selector(new, old, errors);
}

pub(super) fn update_daemon_set(new: &Value, old: &Value, door: Subresource, errors: &mut Errors) {
    if door == Subresource::Status {
        return counts(&new["status"], errors);
    }
    daemon_set(new, errors);
    same_selector(new, old, errors);
}

fn same_selector(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    immutable(&new["spec"]["selector"], &old["spec"]["selector"], &path.child("selector"), errors);
}

/// No count of a status can be negative or exceed the replicas.
fn counts(status: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    for (name, value) in crate::object::entries(status).filter(|(_, v)| v.is_number()) {
        non_negative(value, &path.child(name), errors);
    }
    let Some(replicas) = status["replicas"].as_i64() else { return };
    for name in ["updatedReplicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
        if status[name].as_i64().is_some_and(|n| n > replicas) {
            errors.push(FieldError::invalid(
                path.child(name),
                &status[name],
                "cannot be greater than status.replicas",
            ));
        }
    }
}

pub(super) fn revision(object: &Value, errors: &mut Errors) {
    if object["data"].is_null() {
        errors.push(FieldError::required("data", "data is mandatory"));
    }
    non_negative(&object["revision"], &Path::new("revision"), errors);
}

pub(super) fn update_revision(new: &Value, old: &Value, _: Subresource, errors: &mut Errors) {
    revision(new, errors);
    immutable(&new["data"], &old["data"], &Path::new("data"), errors);
}
