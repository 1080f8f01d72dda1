//! Stock Helm installs, upgrades, rolls back and removes a chart whose pods really run.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pith_tests::{Cluster, Kubectl, Reply, tools_dir, until};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/charts/web");

#[test]
fn helm_3() {
    everyday("3");
}

#[test]
fn helm_4() {
    everyday("4");
}

fn everyday(version: &str) {
    let program = tools_dir().join(format!("helm-{version}"));
    if !program.exists() {
        eprintln!("SKIPPED: helm {version} is not at {}: run `cargo xtask test`", program.display());
        return;
    }
    let Some(cluster) = Cluster::start(1, &[]) else { return };
    let Some(kubectl) = cluster.kubectl("1.32") else { return };
    let helm = |arguments: &[&str]| run(&program, &cluster, arguments);
    let installed = helm(&["install", "one", CHART, "--create-namespace", "--wait", "--timeout=60s"]);
    assert!(installed.contains("STATUS: deployed"), "{installed}");
    is(&kubectl, "hello 2");
    helm(&["upgrade", "one", CHART, "--set", "greeting=bye,replicas=3", "--wait", "--timeout=60s"]);
    is(&kubectl, "bye 3");
    let history = helm(&["history", "one"]);
    assert_eq!(history.matches("superseded").count(), 1, "{history}");
    helm(&["upgrade", "one", CHART, "--dry-run=server", "--set", "replicas=9"]);
    assert_eq!(state(&kubectl), "bye 3", "a dry run changes nothing");
    helm(&["rollback", "one", "1", "--wait", "--timeout=60s"]);
    is(&kubectl, "hello 2");
    helm(&["uninstall", "one", "--wait", "--timeout=60s"]);
    let left =
        kubectl.run(&["get", "deployments,services,secrets,serviceaccounts", "-n", "team", "-o", "name"]);
    assert_eq!(left.trim(), "serviceaccount/default");
    cluster.down();
}

/// Helm waits for the new pods; the Deployment counts the old ones too until they are gone.
fn is(kubectl: &Kubectl, wanted: &str) {
    until("the chart's objects are as wanted", Duration::from_secs(60), || match state(kubectl) {
        now if now == wanted => Ok(()),
        now => Err(now),
    });
}

/// What the chart's objects say: the greeting, and how many pods are ready.
fn state(kubectl: &Kubectl) -> String {
    let greeting = kubectl.run(&["get", "configmap", "one", "-n", "team", "-o", "jsonpath={.data.greeting}"]);
    let ready =
        kubectl.run(&["get", "deployment", "one", "-n", "team", "-o", "jsonpath={.status.readyReplicas}"]);
    format!("{greeting} {ready}")
}

fn run(program: &Path, cluster: &Cluster, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).args(["--namespace", "team"]);
    command.env("KUBECONFIG", cluster.kubeconfig()).env("HOME", cluster.dir());
    let reply = Reply::from(command.output().expect("helm starts"));
    assert!(reply.ok, "helm {arguments:?} failed:\n{}{}", reply.stdout, reply.stderr);
    reply.stdout
}
