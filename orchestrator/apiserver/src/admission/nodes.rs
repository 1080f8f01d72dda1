//! A node writes only about itself and the pods it runs (upstream: `NodeRestriction`), and reads only those
//! Secrets and ConfigMaps that these pods name (upstream: the node authorizer).

use pith_api::{ApiError, meta};
use pith_store::ListRequest;
use serde_json::Value;

use crate::{
    objects::{Objects, Stored, failed},
    verbs::Call,
};

/// Mirror pods show the pods that a kubelet runs from files.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Labels with these prefixes steer pods to nodes on purpose; a node must not give them to itself.
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io/";

fn refused(call: &Call, object: &Value, why: String) -> ApiError {
    ApiError::forbidden(call.target.kind.subject(meta::name(object)), why)
}

/// Looks at a get, list or watch that is about to happen; `name` is the one that it is limited to.
pub(crate) async fn read(call: &Call, name: Option<&str>) -> Result<(), ApiError> {
    let Some(node) = call.who.node() else { return Ok(()) };
    let kind = call.target.kind;
    if !kind.group.is_empty() || !matches!(kind.plural, "secrets" | "configmaps") {
        return Ok(());
    }
    let name = name.unwrap_or_default();
    let pods = pith_api::find("", "v1", "pods").expect("a core kind");
    let listing =
        call.state.objects.store.list(ListRequest::all(Objects::prefix(pods, call.namespace())?)).await;
    let listing = listing.map_err(|error| failed(kind.subject(name), error))?;
    for entry in listing.entries {
        // Most pods are told apart without parsing them.
        if !mentions(&entry.value, node) || !mentions(&entry.value, name) {
            continue;
        }
        let pod = Stored::from(entry).value(pods)?;
        if pod["spec"]["nodeName"] == node && names(&pod["spec"], kind.plural, name) {
            return Ok(());
        }
    }
    let why = format!("no relationship found between node {node:?} and this object");
    Err(ApiError::forbidden(kind.subject(name), why))
}

fn mentions(bytes: &[u8], text: &str) -> bool {
    let quoted = format!("\"{text}\"");
    bytes.windows(quoted.len()).any(|window| window == quoted.as_bytes())
}

/// Whether a pod's spec names a Secret or ConfigMap, anywhere it can.
fn names(spec: &Value, plural: &str, name: &str) -> bool {
    let each = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let (secret, field, key_ref, from_ref) = match plural {
        "secrets" => ("secret", "secretName", "secretKeyRef", "secretRef"),
        _ => ("configMap", "name", "configMapKeyRef", "configMapRef"),
    };
    let in_volumes = each(&spec["volumes"]).iter().any(|volume| {
        volume[secret][field] == name
            || each(&volume["projected"]["sources"]).iter().any(|source| source[secret]["name"] == name)
    });
    let in_containers = ["initContainers", "containers", "ephemeralContainers"].iter().any(|list| {
        each(&spec[*list]).iter().any(|container| {
            each(&container["envFrom"]).iter().any(|from| from[from_ref]["name"] == name)
                || each(&container["env"]).iter().any(|env| env["valueFrom"][key_ref]["name"] == name)
        })
    });
    let for_pulling =
        plural == "secrets" && each(&spec["imagePullSecrets"]).iter().any(|secret| secret["name"] == name);
    in_volumes || in_containers || for_pulling
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_way_to_name_a_secret_or_configmap() {
        for (spec, secret, map) in [
            (json!({"volumes": [{"secret": {"secretName": "x"}}]}), true, false),
            (json!({"volumes": [{"configMap": {"name": "x"}}]}), false, true),
            (json!({"volumes": [{"projected": {"sources": [{"secret": {"name": "x"}}]}}]}), true, false),
            (json!({"volumes": [{"projected": {"sources": [{"configMap": {"name": "x"}}]}}]}), false, true),
            (json!({"containers": [{"envFrom": [{"secretRef": {"name": "x"}}]}]}), true, false),
            (
                json!({"initContainers": [{"env": [{"valueFrom": {"configMapKeyRef": {"name": "x"}}}]}]}),
                false,
                true,
            ),
            (json!({"imagePullSecrets": [{"name": "x"}]}), true, false),
            (json!({"containers": [{"name": "x"}], "volumes": [{"name": "x"}]}), false, false),
        ] {
            assert_eq!(
                (names(&spec, "secrets", "x"), names(&spec, "configmaps", "x")),
                (secret, map),
                "{spec}"
            );
        }
    }
}
