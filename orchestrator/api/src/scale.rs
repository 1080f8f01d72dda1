//! The `scale` subresource: `autoscaling/v1 Scale` as a view of a workload.

use serde_json::{Value, json};

use crate::{kind::Kind, selector};

/// The Scale of a Deployment or ReplicaSet.
pub fn of(kind: &Kind, object: &Value) -> Value {
    let mut metadata = serde_json::Map::new();
    for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(name) {
            metadata.insert(name.into(), value.clone());
        }
    }
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    let selector = if kind.kind == "ReplicationController" {
        selector::format_set(&object["spec"]["selector"])
    } else {
        selector::format_label_selector(&object["spec"]["selector"])
    };
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    let mut spec = json!({});
    if let Some(replicas @ 1..) = object["spec"]["replicas"].as_i64() {
        spec["replicas"] = replicas.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// Replicas that a Scale asks for; absent means 0, as in Go.
pub fn replicas(scale: &Value) -> i64 {
    scale["spec"]["replicas"].as_i64().unwrap_or(0)
}

/// Carries a Scale's replicas into the workload.
pub fn apply(scale: &Value, object: &mut Value) {
    object["spec"]["replicas"] = replicas(scale).into();
}
