//! `pith down` leaves the machine as it was before `pith up`, also after processes were killed.

use std::fs;
use std::time::Duration;

use pith_tests::{Cluster, Snapshot, missing_right, until};

const PODS: &str = include_str!("manifests/six.yaml");

#[test]
fn down_leaves_nothing() {
    let before = Snapshot::take();
    let Some(cluster) = Cluster::start(3, &[]) else { return };
    run_pods(&cluster);
    cluster.down();
    nothing_is_left(&before);
}

#[test]
fn down_leaves_nothing_after_sigkill_of_everything() {
    let before = Snapshot::take();
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    run_pods(&cluster);
    for replica in ["replica-1", "replica-2"] {
        cluster.kill_replica(replica);
    }
    cluster.kill_primary();
    cluster.down();
    nothing_is_left(&before);
}

/// A second cluster neither meets the first nor is touched when the first goes.
#[test]
fn clusters_side_by_side() {
    let before = Snapshot::take();
    let Some(first) = Cluster::start(1, &[]) else { return };
    let second = Cluster::start(1, &[]).expect("the first could start");
    let Some(kubectl) = second.kubectl("1.32") else { return };
    first.down();
    kubectl.apply(PODS);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    second.down();
    nothing_is_left(&before);
}

#[test]
fn down_without_a_cluster_is_fine_and_up_refuses_a_foreign_folder() {
    if let Some(reason) = missing_right() {
        eprintln!("SKIPPED: down_without_a_cluster_is_fine: {reason}");
        return;
    }
    let Some(cluster) = Cluster::start(1, &[]) else { return };
    let folder = cluster.dir().to_str().expect("UTF-8").to_owned();
    let other = cluster.pith_as("other", &["up", "--detach", "--outside", "none"], &folder);
    assert!(!other.ok && other.stderr.contains("belongs to the cluster"), "{}", other.stderr);
    assert!(fs::exists(cluster.kubeconfig()).expect("readable"), "the folder is untouched");
    assert!(cluster.pith(&["down"]).ok);
    assert!(cluster.pith(&["down"]).ok, "nothing to do is no error");
}

/// Of a program that was let go the kernel forgets the number a moment later.
fn nothing_is_left(before: &Snapshot) {
    until("the machine is as before", Duration::from_secs(30), || {
        let changes = Snapshot::take().changes(before);
        if changes.is_empty() { Ok(()) } else { Err(changes.join("\n")) }
    });
}

fn run_pods(cluster: &Cluster) {
    let Some(kubectl) = cluster.kubectl("1.32") else { return };
    kubectl.apply(PODS);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
}
