//! The API's behaviour over HTTP, in process.

#[path = "../harness/mod.rs"]
mod harness;
mod kinds;
mod objects;
mod reads;

use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";

fn map(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "main", "image": "x"}]}})
}

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}
