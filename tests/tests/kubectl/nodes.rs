//! Nodes that are taken out of service: cordon, drain, taint. Needs the DaemonSet that [`super::objects`] leaves.

use std::time::Duration;

use pith_tests::{Kubectl, until};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(90);

pub(crate) fn all(kubectl: &Kubectl) {
    kubectl.run(&["create", "deployment", "guest", "--image=pith.local/demo:v1", "--replicas=4"]);
    kubectl.run(&["rollout", "status", "deployment/guest", "--timeout=90s"]);
    drain(kubectl);
    taint(kubectl);
    kubectl.run(&["delete", "deployment/guest", "daemonset/agent", "--timeout=90s"]);
    kubectl.run(&["wait", "--for=delete", "pods", "-l", "app in (guest, agent)", "--timeout=90s"]);
}

/// How many pods of the app are on a node and not on their way out.
fn on(kubectl: &Kubectl, node: &str, app: &str) -> usize {
    let selector = format!("spec.nodeName={node}");
    let pods = kubectl.json(&["get", "pods", "-l", &format!("app={app}"), "--field-selector", &selector]);
    let pods = pods["items"].as_array().expect("a list");
    pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"] == Value::Null).count()
}

fn drain(kubectl: &Kubectl) {
    assert!(on(kubectl, "replica-1", "guest") > 0, "four pods are spread over three nodes");
    kubectl.run(&["cordon", "replica-1"]);
    let nodes = kubectl.run(&["get", "nodes"]);
    assert!(nodes.contains("Ready,SchedulingDisabled"), "{nodes}");
    let refused = kubectl.try_run(&["drain", "replica-1", "--timeout=20s"]);
    assert!(refused.stderr.contains("cannot delete DaemonSet-managed Pods"), "{}", refused.stderr);
    let drained = kubectl.run(&["drain", "replica-1", "--ignore-daemonsets", "--timeout=90s"]);
    assert!(drained.contains("pod/guest-") && drained.contains("node/replica-1 drained"), "{drained}");
    kubectl.run(&["rollout", "status", "deployment/guest", "--timeout=90s"]);
    assert_eq!((on(kubectl, "replica-1", "guest"), on(kubectl, "replica-1", "agent")), (0, 1));
    kubectl.run(&["uncordon", "replica-1"]);
}

/// `NoSchedule` keeps new pods away, `NoExecute` sends those away that are there.
fn taint(kubectl: &Kubectl) {
    let before = on(kubectl, "replica-2", "guest");
    kubectl.run(&["taint", "nodes", "replica-2", "out=yes:NoSchedule"]);
    kubectl.run(&["scale", "deployment/guest", "--replicas=6"]);
    kubectl.run(&["rollout", "status", "deployment/guest", "--timeout=90s"]);
    assert_eq!(on(kubectl, "replica-2", "guest"), before);
    kubectl.run(&["taint", "nodes", "replica-2", "out=yes:NoExecute"]);
    until("they run elsewhere", DEADLINE, || match on(kubectl, "replica-2", "guest") {
        0 => Ok(()),
        left => Err(left.to_string()),
    });
    kubectl.run(&["taint", "nodes", "replica-2", "out-"]);
    kubectl.run(&["rollout", "status", "deployment/guest", "--timeout=90s"]);
    until("the DaemonSet's pod is back", DEADLINE, || match on(kubectl, "replica-2", "agent") {
        1 => Ok(()),
        other => Err(other.to_string()),
    });
}
