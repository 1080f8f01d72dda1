//! Clients of QUIC that move, on a running cluster: whichever replica they ask and from wherever, the pod answers that
//! their connection ID names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use pith_tests::{Cluster, Kubectl, until};
use serde_json::json;

use super::{SOON, given, nodes};

const NODE_PORT: u16 = 31_443;
/// From so many places.
const MOVES: usize = 20;

/// The pod that answers a packet with a short header from a new socket.
fn ask(place: SocketAddr, server: Ipv4Addr) -> Result<String, String> {
    let packet = [b"\x40\x09", &server.octets()[..], b"nonce and what is sealed"].concat();
    let ask = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(&packet, place)?;
        let mut answer = [0; 256];
        let (length, _) = socket.recv_from(&mut answer)?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    let answer = ask().map_err(|error| format!("{place}: {error}"))?;
    Ok(answer.split(' ').next().unwrap_or_default().to_owned())
}

fn answers(place: SocketAddr, server: Ipv4Addr) -> Result<BTreeSet<String>, String> {
    (0..MOVES).map(|_| ask(place, server)).collect()
}

pub(crate) fn clients_that_move_find_their_pod(cluster: &Cluster, kubectl: &Kubectl) {
    let labels = json!({ "app": "quic" });
    let container = json!({
        "name": "echo", "image": "pith.local/probe:latest", "imagePullPolicy": "Never", "args": ["udp-echo"],
        "ports": [{ "name": "quic", "containerPort": 7, "protocol": "UDP" }],
    });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "quic" },
        "spec": {
            "replicas": 4, "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": { "terminationGracePeriodSeconds": 0, "containers": [container] } },
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "quic", "annotations": { "pith.dev/quic-server-id": "pod-ip" } },
        "spec": {
            "type": "LoadBalancer", "selector": labels,
            "ports": [{ "port": 443, "targetPort": "quic", "protocol": "UDP", "nodePort": NODE_PORT }],
        },
    });
    kubectl.apply(&deployment.to_string());
    kubectl.apply(&service.to_string());
    kubectl.run(&["rollout", "status", "deployment/quic", "--timeout=60s"]);
    let list = kubectl.json(&["get", "pods", "-l", "app=quic"]);
    let pods: BTreeMap<String, Ipv4Addr> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pod| {
            let text = |value: &serde_json::Value| value.as_str().expect("a running pod has it").to_owned();
            (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]).parse().expect("an address"))
        })
        .collect();
    assert_eq!(pods.len(), 4, "{list}");

    let mut places: Vec<SocketAddr> =
        nodes(kubectl).into_iter().map(|node| (node, NODE_PORT).into()).collect();
    places.push((given(kubectl, "quic"), 443).into());
    for place in places {
        for (pod, address) in &pods {
            until("its pod answers wherever the client is", SOON, || match answers(place, *address)? {
                answers if answers.iter().eq([pod]) => Ok(()),
                answers => Err(format!("{place}: {answers:?} and not {pod}")),
            });
        }
        until("who is nobody's backend leads to any", SOON, || match answers(place, [10, 0, 0, 1].into())? {
            answers if answers.len() > 1 => Ok(()),
            answers => Err(format!("{place}: {answers:?}")),
        });
    }
    let shown = cluster.pith(&["services", "--replica", "replica-1"]);
    let said = |words| shown.ok && shown.stdout.contains(words);
    assert!(said("QUIC by pod-ip") && said("connection_named"), "{}{}", shown.stdout, shown.stderr);
    kubectl.run(&["delete", "service/quic", "deployment/quic"]);
}
