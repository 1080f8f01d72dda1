//! Lives of pods: start, configuration, restart, end, adoption.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::json;

use crate::node::isolated;

fn container<'a>(pod: &'a Pod, name: &str) -> &'a ContainerStatus {
    let statuses = pod.status.as_ref().expect("has a status");
    let mut all =
        statuses.container_statuses.iter().flatten().chain(statuses.init_container_statuses.iter().flatten());
    all.find(|c| c.name == name).expect("has the container")
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

#[test]
fn a_pod_runs_and_is_deleted_without_a_trace() {
    isolated("plain", async |mut node| {
        node.start().await;
        node.create(
            "web",
            json!({"containers": [
            {"name": "a", "args": ["serve"]},
            {"name": "b", "args": ["sleep", "3600"]}]}),
        )
        .await;
        let pod = node.until("web", "Ready", is_ready).await;
        let status = pod.status.as_ref().expect("has a status");
        assert_eq!(status.pod_ip.as_deref().map(|ip| ip.starts_with("10.244.77.")), Some(true));
        assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
        let a = container(&pod, "a");
        assert!(a.container_id.as_deref().is_some_and(|id| id.starts_with("pith://")), "{a:?}");
        assert!(a.image_id.contains("sha256:"), "{a:?}");
        node.until_event("web", "Started: ").await;
        node.delete("web", Some(1)).await;
        node.until_gone("web").await;
        node.until_no_leftovers().await;
        node.stop().await;
    });
}

#[test]
fn containers_see_what_their_pod_describes() {
    isolated("config", async |mut node| {
        node.start().await;
        node.config_map("conf", json!({"COLOR": "red", "file.txt": "one"})).await;
        node.create("web", json!({
            "hostname": "named",
            "securityContext": {"runAsUser": 7, "fsGroup": 99},
            "initContainers": [{"name": "init", "args": ["ls", "/shared"],
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}],
            "containers": [
                {"name": "env", "args": ["env"], "env": [
                    {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "COLOR"}}},
                    {"name": "WHO", "value": "$(COLOR)-pod"},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]},
                {"name": "cat", "args": ["cat", "/conf/file.txt", "/sub.txt", "/etc/hostname", "/etc/podinfo/labels",
                    "/var/run/secrets/kubernetes.io/serviceaccount/namespace"],
                    "volumeMounts": [{"name": "conf", "mountPath": "/conf"}, {"name": "info", "mountPath": "/etc/podinfo"},
                        {"name": "conf", "mountPath": "/sub.txt", "subPath": "file.txt"}]},
                {"name": "id", "args": ["id"]},
                {"name": "stay", "args": ["sleep", "3600"], "volumeMounts": [{"name": "conf", "mountPath": "/conf"}]}],
            "volumes": [{"name": "shared", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "conf"}},
                {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}],
            "restartPolicy": "OnFailure",
        })).await;
        let done = |p: &Pod, name: &str| {
            container(p, name).state.as_ref().and_then(|s| s.terminated.as_ref()).is_some()
        };
        let pod = node
            .until("web", "through", |p| {
                p.status.as_ref().is_some_and(|s| s.container_statuses.is_some())
                    && ["env", "cat", "id"].iter().all(|c| done(p, c))
                    && container(p, "stay").container_id.is_some()
            })
            .await;
        let env = node.log(&pod, "env", 0);
        for line in [
            "COLOR=red",
            "WHO=red-pod",
            "FROM_IMAGE=yes",
            "HOSTNAME=named",
            "KUBERNETES_SERVICE_HOST=10.96.0.1",
            "IP=10.244.77.",
        ] {
            assert!(env.lines().any(|l| l.starts_with(line)), "{line} in {env}");
        }
        assert_eq!(node.log(&pod, "cat", 0), "oneonenamed\napp=\"web\"default\n");
        let id = node.log(&pod, "id", 0);
        let has = |name: &str, value: &str| id.lines().any(|l| l.starts_with(name) && l.contains(value));
        assert!(has("Uid:", "7") && has("Gid:", "8") && has("Groups:", "99") && has("Seccomp:", "2"), "{id}");
        // The file of a running container follows its ConfigMap.
        let file = format!("/proc/{}/root/conf/file.txt", node.pid(&pod, "stay"));
        node.config_map("conf", json!({"file.txt": "two"})).await;
        let deadline = Instant::now() + crate::node::DEADLINE;
        while std::fs::read_to_string(&file).ok().as_deref() != Some("two") {
            assert!(Instant::now() < deadline, "the file is not brought up to date");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        node.delete("web", Some(0)).await;
        node.until_gone("web").await;
    });
}

#[test]
fn ends_are_told_with_their_reasons() {
    isolated("ends", async |mut node| {
        node.start().await;
        let never = |args: serde_json::Value| json!({"restartPolicy": "Never", "containers": [{"name": "a", "args": args}]});
        node.create("ok", never(json!(["true"]))).await;
        node.create("bad", never(json!(["exit", "3"]))).await;
        node.create(
            "hungry",
            json!({"restartPolicy": "Never", "containers": [{"name": "a", "args": ["mem", "64"],
            "resources": {"limits": {"memory": "16Mi"}}}]}),
        )
        .await;
        node.create("nosuch", json!({"containers": [{"name": "a", "command": ["/nosuch"]}]})).await;
        node.create("noimage", json!({"containers": [{"name": "a", "image": "127.0.0.1:1/none:1"}]})).await;
        node.create(
            "noconf",
            json!({"containers": [{"name": "a", "envFrom": [{"configMapRef": {"name": "late"}}]}]}),
        )
        .await;
        for (name, phase, code, reason) in [
            ("ok", "Succeeded", 0, "Completed"),
            ("bad", "Failed", 3, "Error"),
            ("hungry", "Failed", 137, "OOMKilled"),
        ] {
            let pod = node.until_phase(name, phase).await;
            let end = container(&pod, "a").state.clone().and_then(|s| s.terminated).expect("has ended");
            assert_eq!((end.exit_code, end.reason.as_deref()), (code, Some(reason)), "{name}");
        }
        let reason = |p: &Pod| {
            let status = p.status.as_ref()?.container_statuses.as_ref()?.first()?;
            status.state.as_ref()?.waiting.as_ref()?.reason.clone()
        };
        let pod =
            node.until("nosuch", "backing off", |p| reason(p).as_deref() == Some("CrashLoopBackOff")).await;
        let last = container(&pod, "a").last_state.clone().and_then(|s| s.terminated).expect("failed before");
        assert_eq!((last.exit_code, last.reason.as_deref()), (128, Some("StartError")));
        assert!(last.message.is_some_and(|m| m.contains("/nosuch")));
        node.until("noimage", "backing off", |p| reason(p).as_deref() == Some("ImagePullBackOff")).await;
        node.until_event("noimage", "Failed: Failed to pull image \"127.0.0.1:1/none:1\"").await;
        node.until("noconf", "waiting for its configuration", |p| {
            reason(p).as_deref() == Some("CreateContainerConfigError")
        })
        .await;
        node.config_map("late", json!({"A": "b"})).await;
        node.until_phase("noconf", "Running").await;
        for name in ["ok", "bad", "hungry", "nosuch", "noimage", "noconf"] {
            node.delete(name, Some(0)).await;
            node.until_gone(name).await;
        }
        node.until_no_leftovers().await;
    });
}

#[test]
fn probes_decide_readiness_and_restarts() {
    isolated("probes", async |mut node| {
        node.start().await;
        let probe = |mut what: serde_json::Value, failures: u32| {
            what["periodSeconds"] = json!(1);
            what["failureThreshold"] = json!(failures);
            what
        };
        node.create(
            "web",
            json!({"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "http", "args": ["serve"],
                "startupProbe": probe(json!({"httpGet": {"path": "/healthz", "port": 8080}}), 60),
                "readinessProbe": probe(json!({"httpGet": {"path": "/healthz", "port": 8080}}), 1),
                "livenessProbe": probe(json!({"tcpSocket": {"port": 8080}}), 30)},
            {"name": "sick", "args": ["sleep", "3600"],
                "livenessProbe": probe(json!({"exec": {"command": ["/pith-probe", "exit", "5"]}}), 1)}]}),
        )
        .await;
        let pod = node
            .until("web", "restarted by its probe", |p| {
                p.status.as_ref().is_some_and(|s| s.container_statuses.is_some())
                    && container(p, "sick").restart_count > 0
                    && container(p, "http").ready
            })
            .await;
        assert_eq!(container(&pod, "http").restart_count, 0);
        node.until_event("web", "Unhealthy: Liveness probe failed: ").await;
        node.until_event("web", "Killing: Container sick failed liveness probe").await;
        node.delete("web", Some(0)).await;
        node.until_gone("web").await;
    });
}

#[test]
fn stopping_takes_the_grace_it_needs() {
    isolated("grace", async |mut node| {
        node.start().await;
        // The first process of a pid namespace ignores a SIGTERM that it does not handle (pid_namespaces(7)).
        node.create(
            "deaf",
            json!({"containers": [{"name": "a", "args": ["sleep", "3600"],
            "lifecycle": {"preStop": {"exec": {"command": ["/pith-probe", "echo", "bye"]}}}}]}),
        )
        .await;
        node.until_phase("deaf", "Running").await;
        let began = Instant::now();
        node.delete("deaf", Some(2)).await;
        node.until_gone("deaf").await;
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(2), "killed after its grace, not before: {took:?}");
        node.until_no_leftovers().await;
    });
}

#[test]
fn a_new_kubelet_takes_over() {
    isolated("adopt", async |mut node| {
        node.start().await;
        node.create("stays", json!({"containers": [{"name": "a", "args": ["sleep", "3600"]}]})).await;
        node.create(
            "ends",
            json!({"restartPolicy": "Never", "containers": [{"name": "a", "args": ["sleep", "3600"]}]}),
        )
        .await;
        node.create("goes", json!({"containers": [{"name": "a", "args": ["sleep", "3600"]}]})).await;
        let before = node.until_phase("stays", "Running").await;
        let ends = node.until_phase("ends", "Running").await;
        let goes = node.until_phase("goes", "Running").await;
        node.stop().await;
        let pid = node.pid(&before, "a");
        // Meanwhile one container is killed, and one pod leaves the API.
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(node.pid(&ends, "a")).expect("a pid"),
            rustix::process::Signal::KILL,
        )
        .expect("it runs");
        node.delete("goes", Some(0)).await;
        node.start().await;
        let ended = node.until_phase("ends", "Failed").await;
        let end = container(&ended, "a").state.clone().and_then(|s| s.terminated).expect("has ended");
        assert_eq!((end.exit_code, end.reason.as_deref()), (137, Some("Error")));
        let after = node.until("stays", "Ready", is_ready).await;
        assert_eq!(container(&after, "a").container_id, container(&before, "a").container_id);
        assert_eq!(container(&after, "a").restart_count, 0);
        assert_eq!(node.pid(&after, "a"), pid, "the same process");
        let left = node.pod_run_dir(&goes);
        let deadline = Instant::now() + crate::node::DEADLINE;
        while left.exists() {
            assert!(Instant::now() < deadline, "what the API no longer knows is still here");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for name in ["stays", "ends"] {
            node.delete(name, Some(0)).await;
            node.until_gone(name).await;
        }
        node.until_no_leftovers().await;
    });
}

#[test]
fn a_dead_supervisor_costs_one_pod() {
    isolated("supervisor", async |mut node| {
        node.start().await;
        for name in ["one", "two"] {
            node.create(name, json!({"containers": [{"name": "a", "args": ["sleep", "3600"]}]})).await;
        }
        let one = node.until_phase("one", "Running").await;
        let two = node.until_phase("two", "Running").await;
        let supervisor = rustix::process::Pid::from_raw(node.supervisor(&one)).expect("a pid");
        rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).expect("it runs");
        let again = node
            .until("one", "running again", |p| {
                is_ready(p) && container(p, "a").container_id != container(&one, "a").container_id
            })
            .await;
        assert_eq!(container(&again, "a").restart_count, 1);
        let last = container(&again, "a").last_state.clone().and_then(|s| s.terminated);
        assert_eq!(last.map(|t| t.exit_code), Some(137));
        let still = node.until("two", "Ready", is_ready).await;
        assert_eq!(container(&still, "a").container_id, container(&two, "a").container_id);
        for name in ["one", "two"] {
            node.delete(name, Some(0)).await;
            node.until_gone(name).await;
        }
    });
}
