//! Bad input gets a clear answer that names the field, and nothing that runs or is stored is lost by it.

use std::time::Duration;

use pith_tests::{Cluster, Kubectl, until};

const WEB: &str = include_str!("manifests/six.yaml");

#[test]
fn bad_manifests_and_images() {
    let Some(cluster) = Cluster::start(1, &[]) else { return };
    let Some(kubectl) = cluster.kubectl("1.32") else { return };
    kubectl.apply(WEB);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    manifests(&kubectl);
    conflicting_updates(&kubectl);
    missing_image(&kubectl);
    missing_command(&kubectl);
    another_family(&cluster);
    let printed = kubectl.run(&["get", "deployment", "web"]);
    assert!(printed.contains("6/6"), "what ran goes on running: {printed}");
}

fn another_family(cluster: &Cluster) {
    let reply = cluster.pith(&["up", "--detach", "--outside", "none", "--replicas", "1", "--dual-stack"]);
    assert!(!reply.ok && reply.stderr.contains("was made with IPv4 alone"), "{}", reply.stderr);
}

fn manifests(kubectl: &Kubectl) {
    let cases = [
        (
            "no containers",
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: []}}",
            "spec.containers: Required value",
        ),
        (
            "bad name",
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: Upper_Case}}",
            "metadata.name: Invalid value: \"Upper_Case\"",
        ),
        (
            "selector does not match",
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {selector: {matchLabels: {a: b}}, \
              template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: i}]}}}}",
            "`selector` does not match template `labels`",
        ),
        (
            "unknown field",
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i, imagee: x}]}}",
            "unknown field \"spec.containers[0].imagee\"",
        ),
        (
            "wrong type",
            "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: many}]}}",
            "spec.ports",
        ),
        (
            "node port out of range",
            "{apiVersion: v1, kind: Service, metadata: {name: s}, \
              spec: {type: NodePort, ports: [{port: 80, nodePort: 80}]}}",
            "spec.ports[0].nodePort: Invalid value: 80",
        ),
        (
            "node port taken",
            "{apiVersion: v1, kind: Service, metadata: {name: s}, \
              spec: {type: NodePort, ports: [{port: 80, nodePort: 31080}]}}",
            "provided port is already allocated",
        ),
    ];
    for (name, manifest, expect) in cases {
        // A leading brace would make kubectl read it as JSON.
        let reply = kubectl.with_input(&["create", "-f", "-"], &format!("# {name}\n{manifest}"));
        assert!(
            !reply.ok && reply.stderr.contains(expect),
            "{name}: expected {expect:?} in:\n{}",
            reply.stderr
        );
    }
}

fn conflicting_updates(kubectl: &Kubectl) {
    kubectl.run(&["create", "configmap", "shared", "--from-literal=n=1"]);
    let old = kubectl.run(&["get", "configmap", "shared", "-o", "yaml"]);
    kubectl.run(&["patch", "configmap", "shared", "-p", r#"{"data":{"n":"2"}}"#]);
    let reply = kubectl.with_input(&["replace", "-f", "-"], &old);
    assert!(!reply.ok && reply.stderr.contains("the object has been modified"), "{}", reply.stderr);
    assert_eq!(kubectl.run(&["get", "configmap", "shared", "-o", "jsonpath={.data.n}"]), "2");
}

fn missing_image(kubectl: &Kubectl) {
    kubectl.run(&["run", "nowhere", "--image=127.0.0.1:9/none:v1"]);
    until("the pod says what is wrong with its image", Duration::from_secs(30), || {
        let shown = kubectl.run(&["get", "pod", "nowhere"]);
        let told = shown.contains("ErrImagePull") || shown.contains("ImagePullBackOff");
        if told { Ok(()) } else { Err(shown) }
    });
    until("an event says why", Duration::from_secs(30), || {
        let events = kubectl.run(&["events", "--for", "pod/nowhere"]);
        let told = events.contains("Failed to pull image \"127.0.0.1:9/none:v1\"");
        if told { Ok(()) } else { Err(events) }
    });
    kubectl.run(&["delete", "pod", "nowhere", "--timeout=30s"]);
}

fn missing_command(kubectl: &Kubectl) {
    kubectl.run(&[
        "run",
        "typo",
        "--image=pith.local/probe:latest",
        "--restart=Never",
        "--command",
        "--",
        "/no/such",
    ]);
    until("the pod says that its command does not exist", Duration::from_secs(30), || {
        let status =
            kubectl.run(&["get", "pod", "typo", "-o", "jsonpath={.status.containerStatuses[0].state}"]);
        let told = status.contains("StartError") && status.contains("/no/such");
        if told { Ok(()) } else { Err(status) }
    });
    kubectl.run(&["delete", "pod", "typo", "--timeout=30s"]);
}

#[test]
fn a_port_or_subnet_in_use() {
    let Some(cluster) = Cluster::start(1, &[]) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path().to_str().expect("UTF-8");
    let settings = std::fs::read_to_string(cluster.dir().join("cluster.json")).expect("written by up");
    let settings: serde_json::Value = serde_json::from_str(&settings).expect("JSON");
    let subnet = settings["node_cidr"].as_str().expect("text");
    let name = format!("{}b", cluster.name);
    let taken =
        cluster.pith_as(&name, &["up", "--detach", "--outside", "none", "--node-cidr", subnet], folder);
    assert!(!taken.ok && taken.stderr.contains(subnet), "{}", taken.stderr);
    let port = settings["port"].as_u64().expect("a number").to_string();
    let taken = cluster.pith_as(&name, &["up", "--detach", "--outside", "none", "--port", &port], folder);
    assert!(!taken.ok && taken.stderr.contains(&port), "{}", taken.stderr);
    let nonsense = cluster.pith_as(
        &name,
        &["up", "--detach", "--outside", "none", "--node-cidr", "300.1.1.0/24"],
        folder,
    );
    assert!(!nonsense.ok && nonsense.stderr.contains("300.1.1.0/24"), "{}", nonsense.stderr);
    assert!(cluster.pith_as(&name, &["down"], folder).ok);
    assert_eq!(cluster.status()["replicas"][0]["ready"], true, "the running cluster is untouched");
}
