//! Services in IPv6 from outside of the cluster: this machine's own sockets, on the bridge in front of the nodes.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use pith_tests::{Cluster, Kubectl, until};
use serde_json::{Value, json};

use super::{Pod, SOON, addresses, ask};

const NODE_PORT: u16 = 31_090;
const HOST_PORT: u16 = 18_090;
const PATIENCE: Duration = Duration::from_secs(2);

/// The pod that answered, and the address under which it saw its client.
fn get(place: SocketAddr) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&place, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    let client = body.lines().find_map(|line| line.strip_prefix("from ")).unwrap_or_default();
    let client = client.rsplit_once(':').map_or(client, |(client, _)| client);
    Ok((body.lines().next().unwrap_or_default().to_owned(), client.to_owned()))
}

/// Who answers of many that ask.
fn answers(place: SocketAddr) -> Result<BTreeSet<String>, String> {
    (0..40).map(|_| get(place).map(|(pod, _)| pod).map_err(|error| format!("{place}: {error}"))).collect()
}

pub(crate) fn services_are_reached(cluster: &Cluster, kubectl: &Kubectl, pods: &[Pod]) {
    let everybody: BTreeSet<String> = pods.iter().map(|pod| pod.name.clone()).collect();
    let nodes: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| pod.hosts.clone()).collect();
    kubectl.apply(&balancer("both", &json!({ "ipFamilyPolicy": "RequireDualStack" }), NODE_PORT));
    let given = given(kubectl, "both");
    assert!(super::is_pair(&given), "{given:?}");
    let mut places: Vec<SocketAddr> = nodes.iter().map(|node| (*node, NODE_PORT).into()).collect();
    places.extend(given.iter().map(|address| SocketAddr::from((*address, 80))));
    for place in &places {
        until("every pod answers", SOON, || match answers(*place)? {
            answers if answers == everybody => Ok(()),
            answers => Err(format!("{place}: {answers:?}")),
        });
        // From a pod, at the socket.
        assert_eq!(ask(kubectl, &format!("http://{place}/")), Ok(everybody.clone()), "{place}");
    }
    let refused = TcpStream::connect_timeout(&(given[1], 81).into(), PATIENCE).expect_err("no such port");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    // Of those that only serve at their own node, each sees this machine itself.
    kubectl.apply(&balancer("here", &json!({ "ipFamilies": ["IPv6"], "externalTrafficPolicy": "Local" }), 0));
    let [here] = self::given(kubectl, "here")[..] else { panic!("one address is given") };
    let own: BTreeSet<String> = nodes.iter().map(|node| format!("[{node}]")).collect();
    until("the source is kept", SOON, || {
        let (pod, client) = get((here, 80).into()).map_err(|error| error.to_string())?;
        assert!(!own.contains(&client), "{pod} saw the node {client}");
        Ok(())
    });

    host_port(kubectl);
    let shown = cluster.pith(&["services", "--replica", "replica-1"]);
    let place = SocketAddr::from((given[1], 80)).to_string();
    assert!(shown.ok && shown.stdout.contains(&place), "{place} is not in:\n{}", shown.stdout);
    let reply = cluster.pith(&["why", "client", "six:80/TCP"]);
    assert!(reply.ok && reply.stdout.contains("socket_translated: "), "{}{}", reply.stdout, reply.stderr);
    kubectl.run(&["delete", "service", "both", "here"]);
    until("the address is nobody's", SOON, || match get((given[1], 80).into()) {
        Err(_) => Ok(()),
        Ok((pod, _)) => Err(format!("{pod} still answers")),
    });
}

fn balancer(name: &str, more: &Value, node_port: u16) -> String {
    let mut port = json!({ "name": "http", "port": 80, "targetPort": "http" });
    if node_port != 0 {
        port["nodePort"] = node_port.into();
    }
    let mut spec = json!({ "type": "LoadBalancer", "selector": { "app": "web" }, "ports": [port] });
    spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec }).to_string()
}

/// The addresses that a Service is given, one for each of its families.
fn given(kubectl: &Kubectl, name: &str) -> Vec<IpAddr> {
    until("addresses of the pools are given", SOON, || {
        let service = kubectl.json(&["get", "service", name]);
        let families = service["spec"]["ipFamilies"].as_array().map_or(0, Vec::len);
        let given = addresses(&service["status"]["loadBalancer"]["ingress"], "ip");
        if given.len() == families { Ok(given) } else { Err(service["status"].to_string()) }
    })
}

fn host_port(kubectl: &Kubectl) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "host-port" },
        "spec": { "containers": [{
            "name": "web", "image": "pith.local/demo:v1", "imagePullPolicy": "Never",
            "ports": [{ "containerPort": 8080, "hostPort": HOST_PORT }],
        }] },
    });
    kubectl.apply(&pod.to_string());
    kubectl.run(&["wait", "--for=condition=Ready", "pod/host-port", "--timeout=60s"]);
    let status = kubectl.json(&["get", "pod", "host-port"])["status"].take();
    for host in addresses(&status["hostIPs"], "ip") {
        let place = SocketAddr::from((host, HOST_PORT));
        until("the pod answers at its node's port", SOON, || match get(place) {
            Ok((pod, _)) if pod == "host-port" => Ok(()),
            other => Err(format!("{place}: {other:?}")),
        });
    }
}
