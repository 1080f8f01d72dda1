//! A node writes only about itself and the pods it runs (upstream: `NodeRestriction`).

use pith_api::{ApiError, meta};
use serde_json::Value;

use crate::verbs::Call;

/// Mirror pods show the pods that a kubelet runs from files.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Labels with these prefixes steer pods to nodes on purpose; a node must not give them to itself.
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io/";

fn refused(call: &Call, object: &Value, why: String) -> ApiError {
    ApiError::forbidden(call.target.kind.subject(meta::name(object)), why)
}

pub(super) fn create(call: &Call, object: &Value) -> Result<(), ApiError> {
    let Some(node) = call.who.node() else { return Ok(()) };
    match (call.target.kind.group, call.target.kind.plural) {
        ("", "nodes") | ("coordination.k8s.io", "leases") if meta::name(object) != node => {
            Err(refused(call, object, format!("node {node:?} is not allowed to create this object")))
        }
        ("", "nodes") => labels(call, object, None),
        ("", "pods") => {
            let mirror = !object["metadata"]["annotations"][MIRROR].is_null();
            match mirror && object["spec"]["nodeName"] == node {
                true => Ok(()),
                false => Err(refused(
                    call,
                    object,
                    format!(
                        "pod does not have {MIRROR:?} annotation or is not bound to it, node {node:?} can only create mirror pods"
                    ),
                )),
            }
        }
        _ => Ok(()),
    }
}

pub(super) fn update(call: &Call, new: &Value, old: &Value) -> Result<(), ApiError> {
    let Some(node) = call.who.node() else { return Ok(()) };
    match (call.target.kind.group, call.target.kind.plural) {
        ("", "nodes") => labels(call, new, Some(old)),
        ("", "pods") => own_pod(call, old, node),
        _ => Ok(()),
    }
}

pub(super) fn delete(call: &Call, old: &Value) -> Result<(), ApiError> {
    let Some(node) = call.who.node() else { return Ok(()) };
    match (call.target.kind.group, call.target.kind.plural) {
        ("", "pods") => own_pod(call, old, node),
        _ => Ok(()),
    }
}

fn own_pod(call: &Call, pod: &Value, node: &str) -> Result<(), ApiError> {
    if pod["spec"]["nodeName"] == node {
        return Ok(());
    }
    Err(refused(call, pod, format!("node {node:?} can only change pods with spec.nodeName set to itself")))
}

fn labels(call: &Call, new: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let of = |object: &Value| object["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let before = old.map(of).unwrap_or_default();
    let restricted = |key: &&String| key.starts_with(RESTRICTED_LABELS);
    let after = of(new);
    let changed =
        after.keys().chain(before.keys()).filter(restricted).find(|key| after.get(*key) != before.get(*key));
    match changed {
        Some(key) => Err(refused(call, new, format!("is not allowed to modify the label {key}"))),
        None => Ok(()),
    }
}
