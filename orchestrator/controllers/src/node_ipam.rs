//! Node IPAM: gives every node a range of pod addresses (`spec.podCIDR`) out of the cluster's.
//!
//! What is taken is read from the nodes themselves, so there is no second record that could disagree. One pass
//! over the nodes gives all that lack a range theirs, and the cache shows its writes before the next pass begins,
//! so no range is given twice.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use kube::api::Patch;
use pith_informer::{Outcome, Queue, work};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::error::Result;

/// Length of a node's prefix: 254 pod addresses.
const NODE_PREFIX: u8 = 24;

/// Requests under way at once.
const REQUESTS: usize = 32;

/// An IPv4 network, such as `10.244.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: u32,
    prefix: u8,
}

/// A text that is no IPv4 network.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no IPv4 network such as 10.244.0.0/16")]
pub struct NoCidr(String);

impl FromStr for Cidr {
    type Err = NoCidr;

    fn from_str(text: &str) -> Result<Self, NoCidr> {
        let refuse = || NoCidr(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(refuse)?;
        let address = u32::from(address.parse::<Ipv4Addr>().map_err(|_| refuse())?);
        let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(refuse)?;
        let cidr = Self { address, prefix };
        (cidr.address & !cidr.mask() == 0).then_some(cidr).ok_or_else(refuse)
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.address), self.prefix)
    }
}

impl Cidr {
    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == self.address
    }

    /// Every address of it, in order.
    pub(crate) fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        self.parts(32).map(|part| Ipv4Addr::from(part.address))
    }

    /// The networks of this prefix within it, in order.
    fn parts(self, prefix: u8) -> impl Iterator<Item = Self> {
        let count = if prefix < self.prefix { 0 } else { 1u64 << (prefix - self.prefix) };
        let step = 1u64 << (32 - prefix);
        // Within the network, so it fits an address.
        (0..count).map(move |i| Self { address: self.address | (i * step) as u32, prefix })
    }
}

pub(crate) fn controller(
    cluster: &Arc<Cluster>,
    range: Cidr,
    cancel: CancellationToken,
) -> BoxFuture<'static, ()> {
    let queue = Queue::new();
    let to = queue.clone();
    cluster.nodes.on_change(move |change| {
        // A node that goes may free the range that another waits for; that one is retried anyhow.
        if change.new.as_ref().is_some_and(|node| pod_cidr(node).is_none()) {
            to.add(());
        }
    });
    let cluster = cluster.clone();
    Box::pin(async move {
        cluster.nodes.synced().await;
        work("node-ipam", queue, 1, cancel, |()| reconcile(&cluster, range)).await;
    })
}

async fn reconcile(cluster: &Cluster, range: Cidr) -> Result<Outcome> {
    let writes = stream::iter(plan(range, &cluster.nodes.all()))
        .map(|(node, free)| async move { assign(cluster, range, &node, free).await });
    // One that fails holds up nobody else.
    let results: Vec<Result<()>> = writes.buffer_unordered(REQUESTS).collect().await;
    results.into_iter().collect::<Result<()>>()?;
    Ok(Outcome::Done)
}

async fn assign(cluster: &Cluster, range: Cidr, node: &Node, free: Option<Cidr>) -> Result<()> {
    let Some(free) = free else {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let message = format!("Node {name} status is now: CIDRNotAvailable");
        cluster.events.named("cidrAllocator").warning(node, "CIDRNotAvailable", message);
        return Err(crate::Error::object(node, format!("no free /{NODE_PREFIX} in {range}")));
    };
    let patch = json!({ "spec": { "podCIDR": free.to_string(), "podCIDRs": [free.to_string()] } });
    match cluster.patch(&cluster.nodes, node, &Patch::Merge(patch)).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

fn pod_cidr(node: &Node) -> Option<Cidr> {
    node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok()
}

/// For each node without a range the first that no other has, as long as there are any. A cluster network
/// smaller than one node's share is given whole.
fn plan(range: Cidr, nodes: &[Arc<Node>]) -> Vec<(Arc<Node>, Option<Cidr>)> {
    let taken: HashSet<Cidr> = nodes.iter().filter_map(|node| pod_cidr(node)).collect();
    let mut free = range.parts(NODE_PREFIX.max(range.prefix)).filter(|part| !taken.contains(part));
    let lacking = nodes.iter().filter(|node| pod_cidr(node).is_none());
    lacking.map(|node| (node.clone(), free.next())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cidr: &str) -> Arc<Node> {
        let node = json!({ "metadata": { "name": cidr }, "spec": { "podCIDR": cidr } });
        Arc::new(serde_json::from_value(node).expect("a valid node"))
    }

    #[test]
    fn plan_table() {
        let cases = [
            ("first", "10.244.0.0/16", vec![""], "10.244.0.0/24"),
            ("next", "10.244.0.0/16", vec!["10.244.0.0/24", ""], "10.244.1.0/24"),
            (
                "gaps",
                "10.244.0.0/16",
                vec!["", "10.244.0.0/24", "", "10.244.2.0/24"],
                "10.244.1.0/24 10.244.3.0/24",
            ),
            ("exhausted", "10.244.0.0/23", vec!["10.244.0.0/24", "", ""], "10.244.1.0/24 none"),
            ("small cluster network", "10.244.0.0/26", vec![""], "10.244.0.0/26"),
            ("nobody lacks one", "10.244.0.0/16", vec!["10.244.0.0/24"], ""),
        ];
        for (name, range, nodes, expect) in cases {
            let nodes: Vec<_> = nodes.into_iter().map(node).collect();
            let plan = plan(range.parse().expect("a network"), &nodes);
            let show = |cidr: Option<Cidr>| cidr.map_or("none".to_owned(), |cidr| cidr.to_string());
            let got: Vec<String> = plan.into_iter().map(|(_, cidr)| show(cidr)).collect();
            assert_eq!(got.join(" "), expect, "{name}");
        }
    }

    #[test]
    fn networks_are_checked() {
        for bad in ["10.244.0.0", "10.244.0.1/16", "10.244.0.0/33", "x/16"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
