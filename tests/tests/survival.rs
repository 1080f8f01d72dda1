//! What survives what: a killed replica, a killed primary.

use std::collections::BTreeMap;

use pith_tests::{Cluster, Kubectl};
use serde_json::Value;

const WEB: &str = include_str!("manifests/six.yaml");

/// Container ids and restart counts by pod: equal before and after means that nothing was restarted.
fn containers(kubectl: &Kubectl) -> BTreeMap<String, (String, u64)> {
    let pods = kubectl.json(&["get", "pods", "-l", "app=web"]);
    let items = pods["items"].as_array().expect("a list");
    let entry = |pod: &Value| {
        let status = &pod["status"]["containerStatuses"][0];
        let id = status["containerID"].as_str().unwrap_or_default().to_owned();
        let name = pod["metadata"]["name"].as_str().expect("named").to_owned();
        (name, (id, status["restartCount"].as_u64().unwrap_or_default()))
    };
    items.iter().map(entry).collect()
}

fn start_web(cluster: &Cluster) -> Option<Kubectl> {
    let kubectl = cluster.kubectl("1.32")?;
    kubectl.apply(WEB);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    Some(kubectl)
}

#[test]
fn a_killed_replica_process_comes_back_to_its_containers() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let Some(kubectl) = start_web(&cluster) else { return };
    let before = containers(&kubectl);
    cluster.kill_replica("replica-1");
    let reply = cluster.pith(&["up", "--detach", "--replicas", "2"]);
    assert!(reply.ok, "{}", reply.stderr);
    assert_eq!(containers(&kubectl), before);
    // The restarted replica works on: a new pod starts there and Services follow.
    kubectl.run(&["scale", "deployment/web", "--replicas=8"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let after = containers(&kubectl);
    for (pod, container) in &before {
        assert_eq!(after.get(pod), Some(container), "{pod} was restarted");
    }
    cluster.down();
}

#[test]
fn a_killed_primary_has_every_acknowledged_object() {
    let Some(cluster) = Cluster::start(1, &[]) else { return };
    let Some(kubectl) = start_web(&cluster) else { return };
    let before = containers(&kubectl);
    for number in 0..20 {
        kubectl.run(&["create", "configmap", &format!("kept-{number}"), "--from-literal=a=b"]);
    }
    cluster.kill_primary();
    let reply = cluster.pith(&["up", "--detach", "--replicas", "1"]);
    assert!(reply.ok, "{}", reply.stderr);
    let names = kubectl.run(&["get", "configmaps", "-o", "name"]);
    assert_eq!(names.lines().filter(|name| name.contains("/kept-")).count(), 20, "{names}");
    assert_eq!(containers(&kubectl), before);
    // Replicas take up their watches again with a primary that has forgotten the history.
    kubectl.run(&["scale", "deployment/web", "--replicas=7"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.down();
}
