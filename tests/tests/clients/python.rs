//! The Python client library as its users have it: `everyday.py` raises where a cluster is not what it expects.

use std::process::Command;

use pith_tests::{Cluster, Reply, tools_dir};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/everyday.py");

#[test]
fn python() {
    let python = tools_dir().join("python/bin/python");
    if !python.exists() {
        eprintln!("SKIPPED: the Python client is not at {}: run `cargo xtask test`", python.display());
        return;
    }
    let Some(cluster) = Cluster::start(1, &[]) else { return };
    let mut command = Command::new(python);
    command.arg(SCRIPT).env("KUBECONFIG", cluster.kubeconfig()).env("HOME", cluster.dir());
    let reply = Reply::from(command.output().expect("python starts"));
    assert!(reply.ok, "{}{}", reply.stdout, reply.stderr);
    let done: Vec<&str> = reply.stdout.lines().collect();
    assert_eq!(done, ["pods", "streams", "objects", "errors", "dynamic"]);
    cluster.down();
}
