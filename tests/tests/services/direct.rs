//! Direct server return on a running cluster: whichever replica is asked, and wherever the pod is, it sees its client.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use pith_tests::{Cluster, Kubectl, until};

use super::{SOON, get, nodes};

const NODE_PORT: u16 = 31_080;

/// Pods that answered at a replica's node port, and whom they saw.
fn seen(node: Ipv4Addr) -> Result<(BTreeSet<String>, BTreeSet<String>), String> {
    let place = SocketAddr::from((node, NODE_PORT));
    let (mut pods, mut clients) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..40 {
        let answer = get(place, "/").map_err(|error| error.to_string())?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        pods.extend(body.lines().next().map(str::to_owned));
        let from = body.lines().find_map(|line| line.strip_prefix("from ")).ok_or(body)?;
        clients.extend(from.rsplit_once(':').map(|(client, _)| client.to_owned()));
    }
    Ok((pods, clients))
}

pub(crate) fn pods_see_their_clients(cluster: &Cluster, kubectl: &Kubectl) {
    let nodes = nodes(kubectl);
    for (forwarding, expect) in [("dsr", 1), ("snat", 2), ("dsr", 1)] {
        let annotation = format!("pith.dev/forwarding={forwarding}");
        kubectl.run(&["annotate", "--overwrite", "service", "web", &annotation]);
        for node in &nodes {
            until("all pods answer, and see whom they should", SOON, || match seen(*node)? {
                (pods, clients) if pods.len() == 6 && clients.len() == expect => Ok(()),
                other => Err(format!("{forwarding} at {node}: {other:?}")),
            });
        }
    }
    let shown = cluster.pith(&["services", "--replica", "replica-1"]);
    let said = |words| shown.ok && shown.stdout.contains(words);
    assert!(said("from other nodes") && said("the node "), "{}{}", shown.stdout, shown.stderr);
    kubectl.run(&["annotate", "--overwrite", "service", "web", "pith.dev/forwarding=sideways"]);
    until("an event says that nobody knows what that is", SOON, || {
        let events = kubectl.run(&["get", "events", "--field-selector=reason=AnnotationMisread"]);
        if events.contains("sideways") { Ok(()) } else { Err(events) }
    });
    kubectl.run(&["annotate", "service", "web", "pith.dev/forwarding-"]);
}
