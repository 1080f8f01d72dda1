//! What Services promise beyond a cluster address and a node port, on a running cluster with stock kubectl: load
//! balancers' addresses from the cluster's pool, their sources and health checks, ports of the host, and
//! connections that stay near.

mod alone;
mod direct;
mod quic;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use pith_tests::{Cluster, Kubectl, until};
use serde_json::{Value, json};

const WEB: &str = include_str!("../manifests/six.yaml");
const CLIENT: &str = include_str!("../manifests/client.yaml");
/// How long an object may take to show in the programs of every replica.
const SOON: Duration = Duration::from_secs(30);

fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The pod that answered.
fn ask(address: SocketAddr) -> Result<String, ErrorKind> {
    let answer = get(address, "/").map_err(|error| error.kind())?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    Ok(body.lines().next().unwrap_or_default().to_owned())
}

fn balancer(name: &str, more: &Value) -> String {
    let mut spec = json!({
        "type": "LoadBalancer", "selector": { "app": "web" },
        "ports": [{ "name": "http", "port": 80, "targetPort": "http" }],
    });
    spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec }).to_string()
}

/// The address that a Service is given.
fn given(kubectl: &Kubectl, name: &str) -> Ipv4Addr {
    until("an address of the pool is given", SOON, || {
        let service = kubectl.json(&["get", "service", name]);
        let address = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().unwrap_or_default();
        address.parse().map_err(|_| service["status"].to_string())
    })
}

fn nodes(kubectl: &Kubectl) -> Vec<Ipv4Addr> {
    let path = r#"jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}"#;
    let nodes = kubectl.run(&["get", "nodes", "-o", path]);
    nodes.split_whitespace().map(|node| node.parse().expect("an address")).collect()
}

#[test]
fn load_balancers_have_addresses_that_answer() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let Some(kubectl) = cluster.kubectl("1.32") else { return };
    kubectl.apply(WEB);
    kubectl.apply(CLIENT);
    kubectl.apply(&balancer("first", &json!({})));
    kubectl.apply(&balancer("second", &json!({ "loadBalancerSourceRanges": ["203.0.113.0/24"] })));
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"]);

    let (first, second) = (given(&kubectl, "first"), given(&kubectl, "second"));
    assert_ne!(first, second);
    let place = SocketAddr::from((first, 80));
    until("the address answers", SOON, || ask(place).map_err(|error| error.to_string()));
    let mut pods = BTreeSet::new();
    until("every pod answers", SOON, || {
        pods.insert(ask(place).expect("it answered before"));
        if pods.len() == 6 { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    assert_eq!(ask((first, 81).into()), Err(ErrorKind::ConnectionRefused), "no such port");
    assert!(ask((second, 80).into()).is_err(), "this machine is not among the sources");

    exhausted_and_asked_for(&kubectl, first);
    health_checks(&kubectl);
    host_ports(&kubectl);
    seen_inside(&cluster, &kubectl);
    metrics(&kubectl);
    direct::pods_see_their_clients(&cluster, &kubectl);
    quic::clients_that_move_find_their_pod(&cluster, &kubectl);
    alone::serves_and_is_taken_away(&cluster, &kubectl);
    nearest_first(&kubectl);

    kubectl.run(&["patch", "service", "first", "--patch", r#"{"spec":{"type":"ClusterIP"}}"#]);
    until("the address is taken back", SOON, || match ask(place) {
        Err(_) => Ok(()),
        Ok(pod) => Err(format!("{pod} answers")),
    });
    let service = kubectl.json(&["get", "service", "first"]);
    assert_eq!(service["status"], json!({ "loadBalancer": {} }));
    cluster.down();
}

/// One that asks for what another has waits, says so, and is served when it is free.
fn exhausted_and_asked_for(kubectl: &Kubectl, taken: Ipv4Addr) {
    kubectl.apply(&balancer("third", &json!({ "loadBalancerIP": taken })));
    until("an event says why it waits", SOON, || {
        let events = kubectl.run(&["get", "events", "--field-selector=involvedObject.name=third"]);
        if events.contains("another Service's") { Ok(()) } else { Err(events) }
    });
    kubectl.run(&["delete", "service", "third"]);
}

/// With externalTrafficPolicy Local each node says how many endpoints it has.
fn health_checks(kubectl: &Kubectl) {
    kubectl.apply(&balancer("local", &json!({ "externalTrafficPolicy": "Local" })));
    let service = kubectl.json(&["get", "service", "local"]);
    let port = service["spec"]["healthCheckNodePort"].as_u64().expect("the API server allocates one");
    let port = u16::try_from(port).expect("a port");
    let answers = |status: &str| {
        for node in nodes(kubectl) {
            until("a node says what it has", SOON, || {
                let answer = get((node, port).into(), "/healthz").map_err(|error| error.to_string())?;
                if answer.starts_with(&format!("HTTP/1.1 {status}")) { Ok(()) } else { Err(answer) }
            });
        }
    };
    answers("200");
    kubectl.run(&["patch", "service", "local", "--patch", r#"{"spec":{"selector":{"app":"none"}}}"#]);
    answers("503");
}

fn host_ports(kubectl: &Kubectl) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "hosted" },
        "spec": { "nodeName": "replica-2", "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "web", "image": "pith.local/demo:v1",
            "ports": [{ "containerPort": 8080, "hostPort": 18080 }],
        }] },
    });
    kubectl.apply(&pod.to_string());
    kubectl.run(&["wait", "--for=condition=Ready", "pod/hosted", "--timeout=60s"]);
    let path = "jsonpath={.status.hostIP}";
    let node: Ipv4Addr =
        kubectl.run(&["get", "pod", "hosted", "-o", path]).parse().expect("its node's address");
    let place = SocketAddr::from((node, 18080));
    let pod = until("the host's port answers", SOON, || ask(place).map_err(|error| error.to_string()));
    assert_eq!(pod, "hosted");
    kubectl.run(&["delete", "pod", "hosted"]);
    until("nobody listens any more", SOON, || match ask(place) {
        Err(ErrorKind::ConnectionRefused) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// With trafficDistribution a pod's connections stay on its node.
fn nearest_first(kubectl: &Kubectl) {
    let wish = r#"{"spec":{"trafficDistribution":"PreferSameNode"}}"#;
    kubectl.run(&["patch", "service", "web", "--patch", wish]);
    let pods = kubectl.json(&["get", "pods", "-l", "app=web"]);
    let pods = pods["items"].as_array().expect("a list");
    let here: BTreeSet<&str> = pods
        .iter()
        .filter(|pod| pod["spec"]["nodeName"] == "replica-1")
        .filter_map(|pod| pod["metadata"]["name"].as_str())
        .collect();
    assert!(here.len() < pods.len(), "some run elsewhere");
    until("only pods of the client's node answer", SOON, || {
        let ask = ["exec", "client", "--", "/pith-probe", "client", "--url", "http://web/", "--count", "60"];
        let printed = kubectl.run(&ask);
        let tally: Value = serde_json::from_str(printed.lines().last().unwrap_or_default())
            .map_err(|error| format!("{error}: {printed}"))?;
        let answers = tally["answers"].as_object().ok_or("no answers")?;
        let seen: BTreeSet<&str> = answers.keys().map(String::as_str).collect();
        if seen == here { Ok(()) } else { Err(tally.to_string()) }
    });
}

/// Each replica's proxy is measured through the API server, as Prometheus does.
fn metrics(kubectl: &Kubectl) {
    for node in ["replica-1", "replica-2"] {
        let text = kubectl.run(&["get", "--raw", &format!("/api/v1/nodes/{node}:10249/proxy/metrics")]);
        for name in
            ["pith_proxy_verdicts_total{reason=\"", "kubeproxy_sync_proxy_rules_duration_seconds_count "]
        {
            assert!(text.contains(name), "{node} has no {name}: {text}");
        }
    }
    for node in nodes(kubectl) {
        let answer = get((node, 10256).into(), "/healthz").expect("each node says how it is");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

/// What `pith services` reads out of a replica's maps is what the API says.
fn seen_inside(cluster: &Cluster, kubectl: &Kubectl) {
    let reply = cluster.pith(&["services", "--replica", "replica-2", "--output", "json"]);
    assert!(reply.ok, "{}", reply.stderr);
    let report: Value = serde_json::from_str(&reply.stdout).expect("JSON");
    let services = report["services"].as_array().expect("a list");
    let web = services.iter().find(|service| service["name"] == "default/web").expect("by name");
    let address = kubectl.run(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let places = [json!(format!("{address}:80/TCP")), json!("node port 31080/TCP")];
    assert_eq!(web["inside"], json!(places));
    assert_eq!(web["backends"].as_array().map(Vec::len), Some(6), "{web}");
    let text = cluster.pith(&["services"]);
    assert!(text.ok && text.stdout.contains("default/web"), "{}{}", text.stdout, text.stderr);
    let reply = cluster.pith(&["why", "client", "web:80/TCP"]);
    assert!(reply.ok && reply.stdout.contains("on replica-1"), "{}{}", reply.stdout, reply.stderr);
    assert!(reply.stdout.contains("socket_translated"), "{}", reply.stdout);
    let absent = cluster.pith(&["services", "--replica", "replica-9"]);
    assert!(!absent.ok && absent.stderr.contains("no datapath is pinned in"), "{}", absent.stderr);
}
