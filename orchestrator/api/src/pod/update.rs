//! What of a pod may still change once it exists: almost nothing.

use serde_json::{Value, json};

use super::{scheduling, validate as spec};
use crate::{
    field::{FieldError, Path},
    kind::Subresource,
    object::{entries, list, list_mut, remove, text},
};

const ALLOWED: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
                       `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                       `spec.tolerations` (only additions to existing tolerations),\
                       `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn validate(new: &Value, old: &Value, door: Subresource, errors: &mut Vec<FieldError>) {
    match door {
        Subresource::Main => main(new, old, errors),
        Subresource::EphemeralContainers => ephemeral(new, old, errors),
        Subresource::Resize => resize(new, old, errors),
        Subresource::Status => status(new, old, errors),
        Subresource::Scale | Subresource::Approval | Subresource::Finalize => {}
    }
}

fn main(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    let (new, old) = (&new["spec"], &old["spec"]);
    for group in ["containers", "initContainers"] {
        let path = path.child(group);
        if list(&new[group]).len() != list(&old[group]).len() {
            errors.push(FieldError::forbidden(path, "pod updates may not add or remove containers"));
            return;
        }
        for (i, container) in list(&new[group]).iter().enumerate() {
            if text(&container["image"]).is_empty() {
                errors.push(FieldError::required(path.index(i).child("image"), ""));
            }
        }
    }
    active_deadline(new, old, &path, errors);
    scheduling::tolerations(&new["tolerations"], &path.child("tolerations"), errors);
    gates(new, old, &path, errors);
    let unfinished = list(&old["tolerations"]).iter().any(|t| !list(&new["tolerations"]).contains(t));
    if unfinished {
        errors.push(FieldError::forbidden(
            path.child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    // Everything else has to be as it was: put the old values of what may change into the new spec and compare.
    let mut masked = new.clone();
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        restore(&mut masked, old, field);
    }
    let gated = !list(&old["schedulingGates"]).is_empty();
    if gated {
        // A gated pod may be narrowed down while it waits.
        restore(&mut masked, old, "nodeSelector");
        restore(&mut masked, old, "affinity");
        narrowed(new, old, &path, errors);
    }
    if old["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0)
        && new["terminationGracePeriodSeconds"] == 1
    {
        restore(&mut masked, old, "terminationGracePeriodSeconds");
    }
    for group in ["containers", "initContainers"] {
        for (i, container) in list_mut(&mut masked, group).iter_mut().enumerate() {
            restore(container, &old[group][i], "image");
        }
    }
    if masked != *old {
        let changed: Vec<&str> = changed_fields(&masked, old);
        errors.push(FieldError::forbidden(path, &format!("{ALLOWED}\n  changed: {}", changed.join(", "))));
    }
}

/// Names of the fields directly below the spec that differ.
fn changed_fields<'a>(new: &'a Value, old: &'a Value) -> Vec<&'a str> {
    let mut names: Vec<&str> = entries(new)
        .chain(entries(old))
        .map(|(name, _)| name)
        .filter(|name| new[*name] != old[*name])
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn restore(new: &mut Value, old: &Value, field: &str) {
    match old.get(field) {
        Some(value) => new[field] = value.clone(),
        None => {
            remove(new, field);
        }
    }
}

fn active_deadline(new: &Value, old: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let place = path.child("activeDeadlineSeconds");
    match (new["activeDeadlineSeconds"].as_i64(), old["activeDeadlineSeconds"].as_i64()) {
        (Some(new_seconds), _) if !(1..=i64::from(i32::MAX)).contains(&new_seconds) => {
            errors.push(FieldError::invalid(
                place,
                &new["activeDeadlineSeconds"],
                "must be between 1 and 2147483647, inclusive",
            ));
        }
        (Some(new_seconds), Some(old_seconds)) if new_seconds > old_seconds => {
            errors.push(FieldError::invalid(
                place,
                &new["activeDeadlineSeconds"],
                "must be less than or equal to previous value",
            ));
        }
        (None, Some(_)) => {
            errors.push(FieldError::invalid(
                place,
                &Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
}

/// Gates can only be removed.
fn gates(new: &Value, old: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let added = list(&new["schedulingGates"]).iter().filter(|g| !list(&old["schedulingGates"]).contains(g));
    for gate in added {
        let detail =
            format!("only deletion is allowed, but found new scheduling gate '{}'", text(&gate["name"]));
        errors.push(FieldError::forbidden(path.child("schedulingGates"), &detail));
    }
}

fn narrowed(new: &Value, old: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let kept = entries(&old["nodeSelector"]).all(|(key, value)| new["nodeSelector"][key] == *value);
    if !kept {
        errors.push(FieldError::invalid(
            path.child("nodeSelector"),
            &new["nodeSelector"],
            "only additions are allowed to spec.nodeSelector (no mutations or deletions)",
        ));
    }
    scheduling::validate(new, path, errors);
}

fn ephemeral(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    spec::spec(&new["spec"], &path, errors);
    let path = path.child("ephemeralContainers");
    for existing in list(&old["spec"]["ephemeralContainers"]) {
        let now = list(&new["spec"]["ephemeralContainers"]).iter().find(|c| c["name"] == existing["name"]);
        let name = text(&existing["name"]);
        match now {
            None => errors.push(FieldError::forbidden(
                path,
                &format!("existing ephemeral containers {name:?} may not be removed\n"),
            )),
            Some(now) if now != existing => errors.push(FieldError::forbidden(
                path,
                &format!("existing ephemeral containers {name:?} may not be changed\n"),
            )),
            Some(_) => {}
        }
    }
}

/// Through `resize` nothing but containers' resources passes.
pub(super) fn keep_all_but_resources(new: &mut Value, old: &Value) {
    let mut kept = old.clone();
    for group in ["containers", "initContainers"] {
        for container in list_mut(&mut kept["spec"], group) {
            let asked = list(&new["spec"][group]).iter().find(|c| c["name"] == container["name"]);
            if let Some(asked) = asked {
                for field in ["resources", "resizePolicy"] {
                    restore(container, asked, field);
                }
            }
        }
    }
    if let Some(version) = new["metadata"].get("resourceVersion") {
        kept["metadata"]["resourceVersion"] = version.clone();
    }
    *new = kept;
}

fn resize(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    spec::spec(&new["spec"], &path, errors);
    let class = super::qos::of(&new["spec"]);
    if !old["status"]["qosClass"].is_null() && old["status"]["qosClass"] != class {
        errors.push(FieldError::invalid(
            Path::new("metadata"),
            &json!(class),
            "Pod QOS Class may not change as a result of resizing",
        ));
    }
}

fn status(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("status");
    // A container that ran to its end under restartPolicy Never cannot come back to life.
    let never = old["spec"]["restartPolicy"] == "Never";
    let path = path.child("containerStatuses");
    for (i, container) in list(&new["status"]["containerStatuses"]).iter().enumerate() {
        let before =
            list(&old["status"]["containerStatuses"]).iter().find(|c| c["name"] == container["name"]);
        let was_done = before.is_some_and(|b| b["state"].get("terminated").is_some());
        if never && was_done && container["state"].get("terminated").is_none() {
            errors.push(FieldError::forbidden(
                path.index(i).child("state"),
                "may not be transitioned to non-terminated state",
            ));
        }
    }
}
