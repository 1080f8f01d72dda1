//! What people do with stock kubectl, in the oldest and the newest version that is promised.

mod nodes;
mod objects;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use pith_tests::{Cluster, Kubectl, until};

const WEB: &str = include_str!("../manifests/six.yaml");
const NEWEST: &str = "1.37";

#[test]
fn kubectl_1_29() {
    everyday("1.29");
}

#[test]
fn kubectl_1_32() {
    everyday("1.32");
}

#[test]
fn kubectl_1_37() {
    everyday(NEWEST);
}

fn everyday(version: &str) {
    let Some(cluster) = Cluster::start(3, &[]) else { return };
    let Some(kubectl) = cluster.kubectl(version) else { return };
    // The versions differ in how they talk; what is deleted with what, and where pods may run, is decided by the server.
    if version == NEWEST {
        objects::all(&cluster, &kubectl);
        nodes::all(&kubectl);
    }
    apply_and_get(&kubectl);
    describe(&kubectl);
    logs(&kubectl);
    exec(&kubectl);
    exec_with_a_terminal(&kubectl);
    port_forward(&kubectl);
    scale(&kubectl);
    rollout_and_undo(&kubectl);
    typed_creates(&kubectl);
    delete(&kubectl);
    cluster.down();
}

fn apply_and_get(kubectl: &Kubectl) {
    kubectl.apply(WEB);
    let printed = kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(printed.contains("deployment \"web\" successfully rolled out"), "{printed}");
    // By label: what earlier steps have deleted may still be on its way out.
    let wide = kubectl.run(&["get", "pods", "-l", "app=web", "-o", "wide"]);
    let lines: Vec<&str> = wide.lines().collect();
    let header = [
        "NAME",
        "READY",
        "STATUS",
        "RESTARTS",
        "AGE",
        "IP",
        "NODE",
        "NOMINATED",
        "NODE",
        "READINESS",
        "GATES",
    ];
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), header);
    assert_eq!(lines.len(), 7, "{wide}");
    for line in &lines[1..] {
        let columns: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(columns[1..4], ["1/1", "Running", "0"], "{line}");
        assert!(columns[6].starts_with("replica-"), "{line}");
    }
    let deployment = kubectl.run(&["get", "deployment", "web"]);
    assert!(
        deployment.lines().next().is_some_and(|line| line.starts_with("NAME   READY   UP-TO-DATE")),
        "{deployment}"
    );
    assert!(deployment.contains("6/6"), "{deployment}");
    let unchanged = kubectl.with_input(&["apply", "-f", "-"], WEB);
    assert!(unchanged.stdout.contains("deployment.apps/web unchanged"), "{}", unchanged.stdout);
}

/// Events follow what they tell of.
fn described(kubectl: &Kubectl, arguments: &[&str], expected: &[&str]) {
    until("the description is whole", Duration::from_secs(30), || {
        let printed = kubectl.run(arguments);
        match expected.iter().find(|text| !printed.contains(**text)) {
            None => Ok(()),
            Some(text) => Err(format!("no {text:?} in:\n{printed}")),
        }
    });
}

fn describe(kubectl: &Kubectl) {
    // One by its name: for several at once, kubectl 1.37 leaves out the events.
    let pod = first_pod(kubectl);
    let expected =
        ["Successfully assigned default/web-", "Container image", "Created", "Started", "QoS Class:"];
    described(kubectl, &["describe", "pod", &pod], &expected);
    let expected = ["ScalingReplicaSet", "6 desired | 6 updated | 6 total | 6 available", "RollingUpdate"];
    described(kubectl, &["describe", "deployment", "web"], &expected);
    let printed = kubectl.run(&["describe", "service", "web"]);
    assert!(printed.contains("NodePort:") && printed.contains(":8080"), "{printed}");
    let printed = kubectl.run(&["describe", "node", "replica-1"]);
    assert!(printed.contains("Allocated resources:"), "{printed}");
}

fn first_pod(kubectl: &Kubectl) -> String {
    kubectl.run(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"])
}

/// `logs -f` shows what was written before and what is written after it began.
fn logs(kubectl: &Kubectl) {
    let pod = first_pod(kubectl);
    let mut follow =
        kubectl.command(&["logs", "-f", &pod]).stdout(Stdio::piped()).spawn().expect("kubectl starts");
    let mut lines = BufReader::new(follow.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("the program says that it listens").expect("readable");
    assert!(first.contains("8080"), "{first}");
    kubectl.run(&[
        "exec",
        &pod,
        "--",
        "/pith-probe",
        "client",
        "--url",
        "http://127.0.0.1:8080/marker",
        "--count",
        "1",
    ]);
    let marked = lines.map_while(Result::ok).any(|line| line.contains("/marker"));
    assert!(marked, "the followed log shows the new request");
    follow.kill().expect("still following");
    follow.wait().expect("ended");
}

fn exec(kubectl: &Kubectl) {
    let pod = first_pod(kubectl);
    let printed = kubectl.run(&["exec", &pod, "--", "/pith-probe", "env"]);
    assert!(
        printed.contains(&format!("HOSTNAME={pod}")) && printed.contains("KUBERNETES_SERVICE_HOST="),
        "{printed}"
    );
    let failed = kubectl.try_run(&["exec", &pod, "--", "/pith-probe", "exit", "7"]);
    assert!(failed.stderr.contains("command terminated with exit code 7"), "{}", failed.stderr);
    let missing = kubectl.try_run(&["exec", &pod, "--", "no-such-command"]);
    assert!(missing.stderr.contains("executable file not found in $PATH"), "{}", missing.stderr);
    let echoed =
        kubectl.with_input(&["exec", "-i", &pod, "--", "/pith-probe", "cat"], "through\nthe stream\n");
    assert_eq!(echoed.stdout, "through\nthe stream\n", "{}", echoed.stderr);
}

/// script(1) gives kubectl a terminal, as a person would.
fn exec_with_a_terminal(kubectl: &Kubectl) {
    let pod = first_pod(kubectl);
    let command = kubectl.command(&["exec", "-it", &pod, "--", "/pith-probe", "sh"]);
    let line = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    script.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut session = script.spawn().expect("script(1) is part of Debian's base system");
    let mut keyboard = session.stdin.take().expect("piped");
    keyboard.write_all(b"echo from-the-terminal\nexit\n").expect("typed");
    let mut shown = String::new();
    session.stdout.take().expect("piped").read_to_string(&mut shown).expect("readable");
    assert!(session.wait().expect("ended").success(), "{shown}");
    assert!(shown.contains("from-the-terminal"), "{shown}");
}

fn port_forward(kubectl: &Kubectl) {
    let mut forward = kubectl
        .command(&["port-forward", "service/web", ":80"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut lines = BufReader::new(forward.stdout.take().expect("piped")).lines();
    let line = lines.next().expect("kubectl says where it listens").expect("readable");
    // "Forwarding from 127.0.0.1:41234 -> 8080"
    let address = line.split_whitespace().nth(2).expect("an address").to_owned();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(&address).expect("kubectl listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("web-"), "{answer}");
    }
    forward.kill().expect("still forwarding");
    forward.wait().expect("ended");
}

fn scale(kubectl: &Kubectl) {
    for (replicas, ready) in [("12", "12/12"), ("2", "2/2")] {
        kubectl.run(&["scale", "deployment/web", &format!("--replicas={replicas}")]);
        kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        until("as many as wanted are there", Duration::from_secs(60), || {
            let printed = kubectl.run(&["get", "deployment", "web"]);
            if printed.contains(&format!(" {ready} ")) { Ok(()) } else { Err(printed) }
        });
    }
    until("pods that are not wanted go", Duration::from_secs(40), || {
        let names = kubectl.run(&["get", "pods", "-l", "app=web", "-o", "name"]);
        if names.lines().count() == 2 { Ok(()) } else { Err(names) }
    });
}

fn rollout_and_undo(kubectl: &Kubectl) {
    let image = || {
        kubectl.run(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.containers[0].image}"])
    };
    kubectl.run(&["set", "image", "deployment/web", "web=pith.local/demo:v2"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(image().contains("pith.local/demo:v2"));
    let history = kubectl.run(&["rollout", "history", "deployment/web"]);
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    kubectl.run(&["rollout", "undo", "deployment/web"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    until("the first image is back", Duration::from_secs(40), || {
        let images = image();
        if images.contains(":v2") { Err(images) } else { Ok(()) }
    });
}

/// From 1.32 on kubectl sends these as protobuf.
fn typed_creates(kubectl: &Kubectl) {
    kubectl.run(&["create", "configmap", "settings", "--from-literal=color=blue"]);
    assert_eq!(kubectl.run(&["get", "configmap", "settings", "-o", "jsonpath={.data.color}"]), "blue");
    kubectl.run(&["create", "deployment", "typed", "--image=pith.local/demo:v1", "--replicas=1"]);
    kubectl.run(&["wait", "--for=condition=Available", "deployment/typed", "--timeout=60s"]);
    kubectl.run(&["create", "secret", "generic", "key", "--from-literal=password=hush"]);
    assert_eq!(kubectl.run(&["get", "secret", "key", "-o", "jsonpath={.data.password}"]), "aHVzaA==");
}

fn delete(kubectl: &Kubectl) {
    kubectl.run(&["delete", "deployment/web", "deployment/typed", "service/web", "--timeout=60s"]);
    kubectl.run(&["wait", "--for=delete", "pods", "-l", "app=web", "--timeout=60s"]);
    let left = kubectl.try_run(&["get", "pods"]);
    until("all pods go", Duration::from_secs(60), || {
        let left = kubectl.try_run(&["get", "pods"]);
        if left.stderr.contains("No resources found in default namespace.") {
            Ok(())
        } else {
            Err(left.stdout)
        }
    });
    assert!(left.ok);
}
