//! What survives what: a killed replica process, a killed primary, a replica lost with all its pods.

use std::collections::BTreeMap;
use std::time::Duration;

use pith_tests::{Cluster, Kubectl, until};
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
    let memory = pod_mounts(&cluster);
    assert!(memory.len() <= 2, "one a replica, or none where /run is in memory: {memory:?}");
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
    assert_eq!(pod_mounts(&cluster), memory, "what is in memory is found again");
    for replica in ["replica-1", "replica-2"] {
        let pods = format!("/run/pith/{}/{replica}/pods", cluster.name);
        let kind = nix::sys::statfs::statfs(pods.as_str()).expect("it is there").filesystem_type();
        assert_eq!(kind, nix::sys::statfs::TMPFS_MAGIC, "Secrets are on no disk");
    }
    cluster.down();
}

/// Mounts of this cluster's pods that everybody on the machine sees.
fn pod_mounts(cluster: &Cluster) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("readable");
    let ours = format!(" /run/pith/{}/", cluster.name);
    mounts.lines().filter(|line| line.contains(&ours)).map(str::to_owned).collect()
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

const SIGNING: &str = "--cluster-signing-duration=12s";

/// Certificates of 12 s expire while this runs; the process, its containers and everything that passes between primary
/// and kubelet in both directions go on.
#[test]
fn certificates_are_renewed_while_everything_runs() {
    let Some(cluster) = Cluster::start(1, &[SIGNING]) else { return };
    let Some(kubectl) = start_web(&cluster) else { return };
    let before = (cluster.status()["replicas"][0]["pid"].clone(), containers(&kubectl));
    let file = cluster.dir().join("replicas/replica-1/credentials/serving.pem");
    let read = || std::fs::read_to_string(&file).expect("it has joined");
    for number in 1..=2 {
        let old = read();
        until(&format!("renewal {number}"), Duration::from_secs(90), || {
            if read() == old { Err("the same certificate".to_owned()) } else { Ok(()) }
        });
    }
    assert_eq!((cluster.status()["replicas"][0]["pid"].clone(), containers(&kubectl)), before);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&file).expect("it is there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let logs = kubectl.run(&["logs", "deployment/web"]);
    assert!(logs.contains("8080"), "{logs}");
    kubectl.run(&["scale", "deployment/web", "--replicas=7"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.down();
}

/// A kubelet renews its lease every 10 s; the grace leaves room for one that is late.
const GRACES: &[&str] = &[
    "--node-monitor-grace-period=16s",
    "--default-not-ready-toleration-seconds=1",
    "--default-unreachable-toleration-seconds=1",
];
const LOST_DEADLINE: Duration = Duration::from_secs(90);

#[test]
fn pods_of_a_lost_replica_run_elsewhere() {
    let Some(cluster) = Cluster::start(2, GRACES) else { return };
    let Some(kubectl) = start_web(&cluster) else { return };
    cluster.kill_replica("replica-2");
    cluster.kill_pods("replica-2");
    until("six pods are ready on the replica that is left", LOST_DEADLINE, || {
        let pods = kubectl.json(&["get", "pods", "-l", "app=web"]);
        let on_replica_1 = |pod: &&Value| {
            pod["spec"]["nodeName"] == "replica-1" && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
        };
        let pods = pods["items"].as_array().expect("a list");
        let count = pods.iter().filter(on_replica_1).filter(ready).count();
        if count == 6 { Ok(()) } else { Err(format!("{count} of 6")) }
    });
    let nodes = kubectl.run(&["get", "nodes"]);
    assert!(nodes.lines().any(|line| line.starts_with("replica-2") && line.contains("NotReady")), "{nodes}");
    assert_eq!(taints(&kubectl), ["node.kubernetes.io/unreachable", "node.kubernetes.io/unreachable"]);

    // Back again, it clears away what was its own, and takes new pods.
    let reply = cluster.pith(&["up", "--detach", "--replicas", "2"]);
    assert!(reply.ok, "{}", reply.stderr);
    until("the replica is trusted again and its old pods are gone", LOST_DEADLINE, || {
        let pods = kubectl.json(&["get", "pods", "-l", "app=web"]);
        let count = pods["items"].as_array().expect("a list").len();
        let taints = taints(&kubectl);
        if taints.is_empty() && count == 6 { Ok(()) } else { Err(format!("{taints:?}, {count} pods")) }
    });
    kubectl.run(&["scale", "deployment/web", "--replicas=12"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.down();
}

/// Keys of the second replica's taints.
fn taints(kubectl: &Kubectl) -> Vec<String> {
    let node = kubectl.json(&["get", "node", "replica-2"]);
    let taints = node["spec"]["taints"].as_array().map(Vec::as_slice).unwrap_or_default();
    taints.iter().map(|taint| taint["key"].as_str().expect("a key").to_owned()).collect()
}
