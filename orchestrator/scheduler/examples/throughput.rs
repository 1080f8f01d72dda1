//! How many pods a second the scheduler's decisions allow, without any API: `cargo run --release --example
//! throughput [nodes] [pods]`. Prints one line a workload.

use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use pith_scheduler::{Desk, Listed, Step};
use serde_json::{Value, json};

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let nodes: usize = arguments.next().unwrap_or(5000);
    let pods: usize = arguments.next().unwrap_or(10_000);
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let term = |key: &str| json!({ "labelSelector": { "matchLabels": { "app": "a0" } }, "topologyKey": key });
    let zone = "topology.kubernetes.io/zone";
    let spread = json!([{ "maxSkew": 5, "topologyKey": zone, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": { "matchLabels": { "app": "a0" } } }]);
    let workloads = [
        ("plain", json!({})),
        ("affinity by zone", json!({ "affinity": { "podAffinity": { required: [term(zone)] } } })),
        (
            "anti-affinity by host",
            json!({ "affinity": { "podAntiAffinity": { required: [term("kubernetes.io/hostname")] } } }),
        ),
        ("hard spread by zone", json!({ "topologySpreadConstraints": spread })),
    ];
    for (name, spec) in workloads {
        // No two pods with anti-affinity share a host.
        let pods = if name.starts_with("anti") { pods.min(nodes) } else { pods };
        let rate = measure(nodes, pods, &spec);
        println!("{name:<24} {nodes} nodes  {pods} pods  {rate:>9.0} pods/s");
    }
}

fn measure(nodes: usize, pods: usize, spec: &Value) -> f64 {
    let now = Timestamp::UNIX_EPOCH;
    let mut desk = Desk::default();
    desk.listed(Listed::Namespaces);
    desk.all_nodes(&(0..nodes).map(node).collect::<Vec<_>>(), now);
    desk.all_pods(&(0..pods).map(|index| pod(index, spec)).collect::<Vec<_>>(), now);
    let start = Instant::now();
    let mut bound = 0;
    while let Step::Bind { .. } = desk.next(now) {
        bound += 1;
    }
    assert_eq!(bound, pods, "every pod finds a node");
    f64::from(bound as u32) / start.elapsed().as_secs_f64()
}

fn node(index: usize) -> Node {
    let name = format!("node-{index}");
    serde_json::from_value(json!({
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
            "topology.kubernetes.io/zone": format!("zone-{}", index % 10) } },
        "status": { "allocatable": { "cpu": "32", "memory": "256Gi", "pods": "110" } },
    }))
    .expect("a valid node")
}

fn pod(index: usize, spec: &Value) -> Pod {
    let app = if spec.as_object().is_some_and(|spec| spec.is_empty()) { index % 100 } else { 0 };
    let mut pod = json!({
        "metadata": { "name": format!("pod-{index}"), "namespace": "default", "uid": format!("uid-{index}"),
            "labels": { "app": format!("a{app}") },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs",
                "uid": format!("rs-{app}"), "controller": true }] },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } } }] },
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    serde_json::from_value(pod).expect("a valid pod")
}
