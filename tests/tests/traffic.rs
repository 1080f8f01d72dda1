//! Service traffic through eBPF: by name from a pod, through every replica's NodePort from the host, and while
//! endpoints come and go.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use pith_tests::{Cluster, Kubectl, until};
use serde_json::Value;

const WEB: &str = include_str!("manifests/six.yaml");
const CLIENT: &str = include_str!("manifests/client.yaml");
const NODE_PORT: u16 = 31080;

fn start(cluster: &Cluster) -> Option<Kubectl> {
    start_with(cluster, WEB)
}

fn start_with(cluster: &Cluster, web: &str) -> Option<Kubectl> {
    let kubectl = cluster.kubectl("1.32")?;
    kubectl.apply(web);
    kubectl.apply(CLIENT);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/client", "pod/echo", "--timeout=60s"]);
    Some(kubectl)
}

/// What the client in the pod counted.
fn ask_from_pod(kubectl: &Kubectl, url: &str, count: u32, more: &[&str]) -> Value {
    let count = count.to_string();
    let mut arguments =
        vec!["exec", "client", "--", "/pith-probe", "client", "--url", url, "--count", &count];
    arguments.extend(more);
    let reply = kubectl.try_run(&arguments);
    let line = reply.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|_| panic!("no tally in:\n{}{}", reply.stdout, reply.stderr))
}

fn pods_of(kubectl: &Kubectl) -> Vec<String> {
    let names = kubectl.run(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}"]);
    names.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn every_endpoint_answers_and_no_request_fails() {
    let Some(cluster) = Cluster::start(3, &[]) else { return };
    let Some(kubectl) = start(&cluster) else { return };
    let pods = pods_of(&kubectl);
    for url in ["http://web/", "http://web.default.svc.cluster.local/"] {
        let tally = ask_from_pod(&kubectl, url, 600, &["--concurrency", "4"]);
        assert_eq!(tally["ok"], 600, "{tally}");
        for pod in &pods {
            assert!(tally["answers"][pod].as_u64() > Some(0), "{pod} never answered: {tally}");
        }
    }
    from_the_host(&kubectl, &pods);
    udp(&kubectl);
    pod_to_pod(&kubectl);
    api_from_a_pod(&kubectl);
    refused_without_endpoints(&kubectl);
    cluster.down();
}

/// 600 requests in all, through each replica's address in turn.
fn from_the_host(kubectl: &Kubectl, pods: &[String]) {
    let path = r#"jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}"#;
    let nodes = kubectl.run(&["get", "nodes", "-o", path]);
    let mut answers: BTreeMap<String, u32> = BTreeMap::new();
    for node in nodes.split_whitespace().cycle().take(600) {
        let address: SocketAddr = format!("{node}:{NODE_PORT}").parse().expect("an address");
        *answers.entry(get(address).expect("a NodePort answers")).or_default() += 1;
    }
    for pod in pods {
        assert!(answers.contains_key(pod), "{pod} never answered through NodePorts: {answers:?}");
    }
}

fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    Ok(body.lines().next().unwrap_or_default().to_owned())
}

/// The answer comes, as far as the client can see, from the Service's own address.
fn udp(kubectl: &Kubectl) {
    let service = kubectl.run(&["get", "service", "echo", "-o", "jsonpath={.spec.clusterIP}"]);
    let printed = kubectl.run(&["exec", "client", "--", "/pith-probe", "udp-client", "echo:7", "hello"]);
    assert!(printed.starts_with("echo hello from"), "{printed}");
    assert!(printed.contains(&service), "the answer came from another address than {service}: {printed}");
}

fn pod_to_pod(kubectl: &Kubectl) {
    let path = "jsonpath={range .items[*]}{.status.podIP} {.metadata.name}{\"\\n\"}{end}";
    let pods = kubectl.run(&["get", "pods", "-l", "app=web", "-o", path]);
    for line in pods.lines() {
        let (address, name) = line.split_once(' ').expect("address and name");
        let tally = ask_from_pod(kubectl, &format!("http://{address}:8080/"), 1, &[]);
        assert_eq!(tally["answers"][name], 1, "{tally}");
    }
}

/// The `kubernetes` Service leads to the primary, which is outside of every pod network. It speaks TLS only, so a plain
/// request is answered with something that is no HTTP success: what counts is that it answers.
fn api_from_a_pod(kubectl: &Kubectl) {
    let tally = ask_from_pod(kubectl, "http://kubernetes:443/", 1, &[]);
    let errors = tally["errors"].to_string();
    assert!(!errors.contains("connect") && !errors.contains("resolve"), "{tally}");
}

/// Nothing behind the Service: the client is told at once, it does not wait.
fn refused_without_endpoints(kubectl: &Kubectl) {
    kubectl.apply("# nothing behind it\n{apiVersion: v1, kind: Service, metadata: {name: empty}, spec: {selector: {app: none}, ports: [{port: 80}]}}");
    until("the Service is known on the client's replica", Duration::from_secs(10), || {
        let tally = ask_from_pod(kubectl, "http://empty/", 1, &["--timeout-ms", "3000"]);
        let errors = tally["errors"].to_string();
        if errors.contains("refused") || errors.contains("not permitted") { Ok(()) } else { Err(errors) }
    });
}

/// 50 requests a second while endpoints go from 2 to 12 and back and single pods are deleted.
#[test]
fn churn_fails_no_request() {
    let Some(cluster) = Cluster::start(3, &[]) else { return };
    // A pod that is told to go serves until every proxy has surely heard of it, on a slow disk as well.
    let image = "image: pith.local/demo:v1";
    let web = WEB.replace(image, &format!("{image}\n          args: [--drain-ms, \"5000\"]"));
    let Some(kubectl) = start_with(&cluster, &web) else { return };
    let client = kubectl
        .command(&[
            "exec",
            "client",
            "--",
            "/pith-probe",
            "client",
            "--url",
            "http://web/",
            "--count",
            "1500",
            "--rate",
            "50",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    for replicas in ["12", "2", "12", "2", "6"] {
        kubectl.run(&["scale", "deployment/web", &format!("--replicas={replicas}")]);
        kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        let pod = pods_of(&kubectl).pop().expect("pods run");
        kubectl.run(&["delete", "pod", &pod, "--wait=false", "--ignore-not-found"]);
    }
    let output = client.wait_with_output().expect("the client ends");
    let printed = String::from_utf8_lossy(&output.stdout);
    let tally: Value = serde_json::from_str(printed.lines().last().unwrap_or_default()).expect("a tally");
    assert_eq!(tally["failed"], 0, "{tally}");
    assert_eq!(tally["ok"], 1500, "{tally}");
    cluster.down();
}

/// A connection through the Service's address lives on while its replica's process and the proxy are killed.
#[test]
fn a_connection_survives_its_replicas_process() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let Some(kubectl) = start(&cluster) else { return };
    let mut hold = kubectl
        .command(&[
            "exec",
            "client",
            "--",
            "/pith-probe",
            "hold",
            "echo:7",
            "--lines",
            "100",
            "--pause-ms",
            "100",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    // The exec stream itself goes through the client's replica, so the other one is killed: the echo server's.
    cluster.kill_replica("replica-2");
    let reply = cluster.pith(&["up", "--detach", "--replicas", "2"]);
    assert!(reply.ok, "{}", reply.stderr);
    let mut printed = String::new();
    hold.stdout.take().expect("piped").read_to_string(&mut printed).expect("readable");
    assert!(hold.wait().expect("ended").success() && printed.contains("100 lines came back"), "{printed}");
    cluster.down();
}
