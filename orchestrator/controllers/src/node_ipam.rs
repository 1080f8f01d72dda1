//! Node IPAM: gives every node a range of pod addresses (`spec.podCIDR`) out of the cluster's.
//!
//! What is taken is read from the nodes themselves, so there is no second record that could disagree. One pass
//! over the nodes gives all that lack a range theirs, and the cache shows its writes before the next pass begins,
//! so no range is given twice.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
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

    /// The networks of this prefix within it, in order.
    fn parts(self, prefix: u8) -> impl Iterator<Item = Self> {
        let count = if prefix < self.prefix { 0 } else { 1u64 << (prefix - self.prefix) };
        let step = 1u64 << (32 - prefix);
        // Within the network, so it fits an address.
        (0..count).map(move |i| Self { address: self.address | (i * step) as u32, prefix })
    }
}

/// Length of a node's IPv6 prefix (kube-controller-manager's `--node-cidr-mask-size-ipv6`).
const NODE_PREFIX6: u8 = 64;

/// An IPv6 network that has prefixes for nodes, such as `fd00:244::/48`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr6 {
    address: u128,
    prefix: u8,
}

/// A text that is no such network.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no IPv6 network such as fd00:244::/48, of 40 to {NODE_PREFIX6} bits")]
pub struct NoCidr6(String);

impl FromStr for Cidr6 {
    type Err = NoCidr6;

    fn from_str(text: &str) -> Result<Self, NoCidr6> {
        let refuse = || NoCidr6(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(refuse)?;
        let address = u128::from(address.parse::<Ipv6Addr>().map_err(|_| refuse())?);
        let sizes = 40..=NODE_PREFIX6;
        let prefix: u8 = prefix.parse().ok().filter(|prefix| sizes.contains(prefix)).ok_or_else(refuse)?;
        let host = (1u128 << (128 - prefix)) - 1;
        (address & host == 0).then_some(Self { address, prefix }).ok_or_else(refuse)
    }
}

impl std::fmt::Display for Cidr6 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from(self.address), self.prefix)
    }
}

impl Cidr6 {
    /// The network of the node that has the IPv4 range `four` of `range`: the one of the same number, so that one
    /// record of what is taken does for both. `None` where there are not as many.
    fn beside(self, range: Cidr, four: Cidr) -> Option<Self> {
        let number = (four.address - range.address) >> (32 - u32::from(four.prefix));
        let count = 1u64 << (NODE_PREFIX6 - self.prefix);
        let offset = u128::from(number) << (128 - NODE_PREFIX6);
        (u64::from(number) < count).then_some(Self { address: self.address | offset, prefix: NODE_PREFIX6 })
    }
}

/// The addresses of pods: of IPv4, and in a cluster of both families also of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterCidr {
    pub four: Cidr,
    pub six: Option<Cidr6>,
}

/// A text that says no addresses of pods.
#[derive(Debug, thiserror::Error)]
pub enum NoClusterCidr {
    #[error(transparent)]
    Four(#[from] NoCidr),
    #[error(transparent)]
    Six(#[from] NoCidr6),
}

/// `10.244.0.0/16` or `10.244.0.0/16,fd00:244::/48`
impl FromStr for ClusterCidr {
    type Err = NoClusterCidr;

    fn from_str(text: &str) -> Result<Self, NoClusterCidr> {
        match text.split_once(',') {
            Some((four, six)) => Ok(Self { four: four.parse()?, six: Some(six.parse()?) }),
            None => Ok(Self { four: text.parse()?, six: None }),
        }
    }
}

impl From<Cidr> for ClusterCidr {
    fn from(four: Cidr) -> Self {
        Self { four, six: None }
    }
}

impl ClusterCidr {
    /// A node's `spec.podCIDRs`.
    fn of_node(self, four: Cidr) -> Option<Vec<String>> {
        let six = match self.six {
            Some(six) => Some(six.beside(self.four, four)?.to_string()),
            None => None,
        };
        Some(std::iter::once(four.to_string()).chain(six).collect())
    }
}

pub(crate) fn controller(
    cluster: &Arc<Cluster>,
    range: ClusterCidr,
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

async fn reconcile(cluster: &Cluster, range: ClusterCidr) -> Result<Outcome> {
    let writes = stream::iter(plan(range.four, &cluster.nodes.all()))
        .map(|(node, free)| async move { assign(cluster, range, &node, free).await });
    // One that fails holds up nobody else.
    let results: Vec<Result<()>> = writes.buffer_unordered(REQUESTS).collect().await;
    results.into_iter().collect::<Result<()>>()?;
    Ok(Outcome::Done)
}

async fn assign(cluster: &Cluster, range: ClusterCidr, node: &Node, free: Option<Cidr>) -> Result<()> {
    let Some(free) = free.and_then(|four| range.of_node(four)) else {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let message = format!("Node {name} status is now: CIDRNotAvailable");
        cluster.events.named("cidrAllocator").warning(node, "CIDRNotAvailable", message);
        return Err(crate::Error::object(node, format!("no free /{NODE_PREFIX} in {}", range.four)));
    };
    let patch = json!({ "spec": { "podCIDR": free[0], "podCIDRs": free } });
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
    fn both_families_have_the_same_number() {
        for (six, node, expect) in [
            (None, "10.244.3.0/24", Some("10.244.3.0/24")),
            (Some("fd00:244::/48"), "10.244.0.0/24", Some("10.244.0.0/24 fd00:244::/64")),
            (Some("fd00:244::/48"), "10.244.255.0/24", Some("10.244.255.0/24 fd00:244:0:ff::/64")),
            (Some("fd00:244::/62"), "10.244.3.0/24", Some("10.244.3.0/24 fd00:244:0:3::/64")),
            (Some("fd00:244::/62"), "10.244.4.0/24", None),
        ] {
            let four = "10.244.0.0/16".parse().expect("a network");
            let range = ClusterCidr { four, six: six.map(|six| six.parse().expect("a network")) };
            let given = range.of_node(node.parse().expect("a network")).map(|given| given.join(" "));
            assert_eq!(given.as_deref(), expect, "{six:?} {node}");
        }
        for bad in ["fd00::", "fd00::1/48", "fd00::/65", "fd00::/32", "10.0.0.0/48"] {
            assert!(bad.parse::<Cidr6>().is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_are_checked() {
        for bad in ["10.244.0.0", "10.244.0.1/16", "10.244.0.0/33", "x/16"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
