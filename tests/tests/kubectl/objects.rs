//! Objects in everyday life: what goes with what when it is deleted, changes by every means that kubectl has, a
//! DaemonSet's roll-outs, files in and out of a container, a look into one that has no tools.

use std::time::Duration;

use pith_tests::images::{self, Archive};
use pith_tests::{Cluster, Kubectl, until};

const AGENT: &str = include_str!("../manifests/agent.yaml");
const DEADLINE: Duration = Duration::from_secs(90);

pub(crate) fn all(cluster: &Cluster, kubectl: &Kubectl) {
    namespace(kubectl);
    cascades(kubectl);
    changes(kubectl);
    server_side(kubectl);
    words(kubectl);
    daemon_set(kubectl);
    debug(kubectl);
    copy(cluster, kubectl);
}

/// Everything in it goes with it, and it stays Terminating for as long as something holds out.
fn namespace(kubectl: &Kubectl) {
    kubectl.run(&["create", "namespace", "shop"]);
    kubectl.run(&["-n", "shop", "create", "deployment", "web", "--image=pith.local/demo:v1", "--replicas=2"]);
    kubectl.run(&["-n", "shop", "create", "configmap", "held"]);
    finalizers(kubectl, r#"["example.com/hold"]"#);
    kubectl.run(&["-n", "shop", "rollout", "status", "deployment/web", "--timeout=90s"]);
    let everything = kubectl.run(&["-n", "shop", "get", "all"]);
    for kind in ["pod/web-", "deployment.apps/web", "replicaset.apps/web-"] {
        assert!(everything.contains(kind), "get all lacks {kind}:\n{everything}");
    }

    kubectl.run(&["delete", "namespace", "shop", "--wait=false"]);
    until("only what holds out is left", DEADLINE, || {
        let left = kubectl.run(&["-n", "shop", "get", "pods,deployments,configmaps", "-o", "name"]);
        if left == "configmap/held\n" { Ok(()) } else { Err(left) }
    });
    let message = r#"jsonpath={.status.conditions[?(@.type=="NamespaceFinalizersRemaining")].message}"#;
    let told = until("the namespace says what it waits for", DEADLINE, || {
        let told = kubectl.run(&["get", "namespace", "shop", "-o", message]);
        if told.contains("example.com/hold") { Ok(told) } else { Err(told) }
    });
    assert!(told.contains("in 1 resource instances"), "{told}");
    assert!(kubectl.run(&["get", "namespace", "shop"]).contains("Terminating"));
    let late = kubectl.try_run(&["-n", "shop", "create", "configmap", "late"]);
    assert!(!late.ok && late.stderr.contains("because it is being terminated"), "{}", late.stderr);

    finalizers(kubectl, "null");
    kubectl.run(&["wait", "--for=delete", "namespace/shop", "--timeout=10s"]);
}

fn finalizers(kubectl: &Kubectl, list: &str) {
    let patch = format!(r#"{{"metadata":{{"finalizers":{list}}}}}"#);
    kubectl.run(&["-n", "shop", "patch", "configmap", "held", "--type=merge", "-p", &patch]);
}

/// `--cascade`: foreground waits for what hangs on an object, background does not, orphan leaves it.
fn cascades(kubectl: &Kubectl) {
    let left = |name: &str| {
        let label = format!("app={name}");
        kubectl.run(&["get", "deployments,replicasets,pods", "-l", &label, "-o", "name"])
    };
    for how in ["foreground", "background", "orphan"] {
        kubectl.run(&["create", "deployment", how, "--image=pith.local/demo:v1"]);
        kubectl.run(&["rollout", "status", &format!("deployment/{how}"), "--timeout=90s"]);
        kubectl.run(&["delete", "deployment", how, &format!("--cascade={how}"), "--timeout=90s"]);
        match how {
            "foreground" => assert_eq!(left(how), ""),
            "background" => {
                until(
                    "nothing is left",
                    DEADLINE,
                    || {
                        if left(how).is_empty() { Ok(()) } else { Err(left(how)) }
                    },
                )
            }
            _ => {
                let orphans = left(how);
                let kinds: Vec<&str> = orphans.lines().filter_map(|name| name.split('/').next()).collect();
                assert_eq!(kinds, ["replicaset.apps", "pod"], "{orphans}");
                let owners = "jsonpath={.items[*].metadata.ownerReferences}";
                let label = format!("app={how}");
                assert_eq!(kubectl.run(&["get", "replicasets", "-l", &label, "-o", owners]), "");
            }
        }
    }
    kubectl.run(&["delete", "replicasets", "-l", "app=orphan", "--timeout=90s"]);
}

fn changes(kubectl: &Kubectl) {
    let say = |arguments: &[&str], expect: &str| {
        let reply = kubectl.try_run(arguments);
        let all = format!("{}{}", reply.stdout, reply.stderr);
        assert!(all.contains(expect), "{arguments:?} lacks {expect:?}:\n{all}");
    };
    let replicas = || kubectl.run(&["get", "deployment", "box", "-o", "jsonpath={.spec.replicas}"]);
    kubectl.run(&["create", "deployment", "box", "--image=pith.local/demo:v1"]);
    say(&["wait", "--for=condition=Available", "deployment/box", "--timeout=90s"], "condition met");
    say(
        &["wait", "--for=jsonpath={.status.readyReplicas}=1", "deployment/box", "--timeout=90s"],
        "condition met",
    );
    say(&["wait", "--for=condition=Never", "deployment/box", "--timeout=1s"], "timed out waiting");
    say(&["label", "deployment", "box", "tier=front"], "labeled");
    say(&["label", "deployment", "box", "tier=back"], "already has a value (front)");
    say(&["label", "deployment", "box", "tier=back", "--overwrite"], "labeled");
    say(&["get", "deployment", "-l", "tier in (back)", "-L", "tier"], "back");
    say(&["label", "deployment", "box", "tier-"], "unlabeled");
    say(&["annotate", "deployment", "box", "note=hello"], "annotated");
    say(&["get", "deployment", "box", "-o", "jsonpath={.metadata.annotations.note}"], "hello");
    say(&["annotate", "deployment", "box", "note-"], "annotated");
    let strategic =
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"demo","env":[{"name":"A","value":"1"}]}]}}}}"#;
    say(&["patch", "deployment", "box", "-p", strategic], "patched");
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    say(&["get", "deployment", "box", "-o", image], "pith.local/demo:v1");
    let json = r#"[{"op":"replace","path":"/spec/replicas","value":2}]"#;
    say(&["patch", "deployment", "box", "--type=json", "-p", json], "patched");
    assert_eq!(replicas(), "2");
    say(&["patch", "deployment", "box", "--type=merge", "-p", r#"{"spec":{"replicas":1}}"#], "patched");
    let nonsense = r#"[{"op":"remove","path":"/spec/nothing"}]"#;
    say(&["patch", "deployment", "box", "--type=json", "-p", nonsense], "nothing");
    let mut edit = kubectl.command(&["edit", "deployment", "box"]);
    edit.env("KUBE_EDITOR", "sed -i 's/replicas: 1$/replicas: 0/'");
    assert!(edit.output().expect("kubectl starts").status.success());
    assert_eq!(replicas(), "0");
    let diff = kubectl.run(&["get", "deployment", "box", "-o", "yaml"]).replace("replicas: 0", "replicas: 3");
    let diff = kubectl.with_input(&["diff", "-f", "-"], &diff);
    assert!(diff.stdout.contains("-  replicas: 0\n+  replicas: 3"), "{}{}", diff.stdout, diff.stderr);
    assert_eq!(replicas(), "0", "a dry run changes nothing");
    kubectl.run(&["delete", "deployment", "box"]);
}

fn server_side(kubectl: &Kubectl) {
    let apply = |value: &str, more: &[&str]| {
        let arguments = [&["apply", "--server-side", "-f", "-"], more].concat();
        let manifest =
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ours}}\ndata: {{size: '{value}'}}\n");
        kubectl.with_input(&arguments, &manifest)
    };
    assert!(apply("1", &[]).stdout.contains("configmap/ours serverside-applied"));
    let other = apply("2", &["--field-manager=other"]);
    assert!(other.stderr.contains("conflict with \"kubectl\": .data.size"), "{}", other.stderr);
    assert!(apply("2", &["--field-manager=other", "--force-conflicts"]).ok);
    assert_eq!(kubectl.run(&["get", "configmap", "ours", "-o", "jsonpath={.data.size}"]), "2");
    kubectl.run(&["delete", "configmap", "ours"]);
}

/// What the schemas know, and what is not there said as such.
fn words(kubectl: &Kubectl) {
    let told = kubectl.run(&["explain", "pod.spec.containers.livenessProbe"]);
    assert!(told.contains("livenessProbe <Probe>") && told.contains("failureThreshold\t<integer>"), "{told}");
    let told = kubectl.run(&["explain", "daemonset", "--recursive"]);
    assert!(told.contains("updateStrategy"), "{told}");
    let top = kubectl.try_run(&["top", "nodes"]);
    assert!(!top.ok && top.stderr.contains("Metrics API not available"), "{}", top.stderr);
}

fn daemon_set(kubectl: &Kubectl) {
    let rolled_out = || kubectl.run(&["rollout", "status", "daemonset/agent", "--timeout=90s"]);
    let images = || {
        kubectl.run(&[
            "get",
            "pods",
            "-l",
            "app=agent",
            "-o",
            "jsonpath={.items[*].spec.containers[0].image}",
        ])
    };
    kubectl.apply(AGENT);
    assert!(rolled_out().contains("daemon set \"agent\" successfully rolled out"));
    kubectl.run(&["set", "image", "daemonset/agent", "agent=pith.local/demo:v2"]);
    rolled_out();
    assert_eq!(images(), ["pith.local/demo:v2"; 3].join(" "));
    let history = kubectl.run(&["rollout", "history", "daemonset/agent"]);
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    let second = kubectl.run(&["rollout", "history", "daemonset/agent", "--revision=2"]);
    assert!(second.contains("pith.local/demo:v2"), "{second}");
    kubectl.run(&["rollout", "undo", "daemonset/agent"]);
    rolled_out();
    assert_eq!(images(), ["pith.local/demo:v1"; 3].join(" "));
    let history = kubectl.run(&["rollout", "history", "daemonset/agent"]);
    assert!(!history.contains("\n1 ") && history.contains("\n3 "), "the first is the third now: {history}");
}

/// A container more, in a pod that runs.
fn debug(kubectl: &Kubectl) {
    kubectl.run(&["run", "bare", "--image=pith.local/demo:v1"]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/bare", "--timeout=90s"]);
    let image = "--image=pith.local/probe:latest";
    kubectl.run(&["debug", "bare", image, "-c", "look", "--", "/pith-probe", "echo", "seen"]);
    until("the debugging container has run", DEADLINE, || {
        let log = kubectl.try_run(&["logs", "bare", "-c", "look"]);
        if log.stdout == "seen\n" { Ok(()) } else { Err(log.stderr) }
    });
    let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
    assert_eq!(kubectl.run(&["get", "pod", "bare", "-o", restarts]), "0");
    kubectl.run(&["delete", "pod", "bare", "--grace-period=1"]);
}

/// `kubectl cp` runs tar in the container, which busybox has.
fn copy(cluster: &Cluster, kubectl: &Kubectl) {
    match images::busybox() {
        Ok(Archive { path, .. }) => cluster.import(&path),
        Err(error) => return eprintln!("SKIPPED: kubectl cp: {error:#}"),
    }
    kubectl.run(&["run", "box", "--image=pith.local/busybox:debian", "--", "sleep", "3600"]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/box", "--timeout=90s"]);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&there, &content).expect("written");
    kubectl.run(&["cp", there.to_str().expect("UTF-8"), "box:/tmp/it"]);
    kubectl.run(&["cp", "box:/tmp/it", back.to_str().expect("UTF-8")]);
    assert!(std::fs::read(&back).expect("copied back") == content, "4 MB came back as they went");
    kubectl.run(&["delete", "pod", "box", "--grace-period=1"]);
}
