//! Routes to the pods of the other replicas, by way of their nodes, with which this one shares a link.
//!
//! Invariant: only routes of protocol [`ROUTES_TO_PEERS`] are ever changed or removed; all others are
//! somebody else's. What to do follows from the Nodes and the routes there are alone ([`plan`]), so that
//! it does not matter what an earlier process did. Routes stay when the process ends: traffic goes on.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use futures::TryStreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use netlink_packet_route::route::{RouteProtocol, RouteType};
use nix::errno::Errno;
use pith_netlink::{Request, Rtnl, RtnlError};
use tokio_util::sync::CancellationToken;

use crate::message::Route;

/// Marks the routes to peers: free in iproute2's rt_protos; `q` in ASCII, beside
/// [`ROUTES_TO_PODS`](crate::pods::ROUTES_TO_PODS).
pub const ROUTES_TO_PEERS: u8 = 113;
/// Routes go without a word when their interface goes down and up: look again this often.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Another replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its node's name.
    pub node: String,
    /// Where its pods are.
    pub pods: IpNet,
    /// Its node's address, of the same family.
    pub via: IpAddr,
}

impl Peer {
    /// One for each family in which the node has pods and an address of its own.
    fn of(node: &Node) -> Vec<Self> {
        let spec = node.spec.iter();
        let cidrs = spec.flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
        let cidrs: Vec<IpNet> = cidrs.filter_map(|cidr| cidr.parse().ok()).collect();
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let internal = addresses.filter(|address| address.type_ == "InternalIP");
        let internal: Vec<IpAddr> = internal.filter_map(|address| address.address.parse().ok()).collect();
        let of = |six: bool| {
            let pods = cidrs.iter().find(|cidr| cidr.addr().is_ipv6() == six)?.trunc();
            let via = *internal.iter().find(|address| address.is_ipv6() == six)?;
            Some(Self { node: node.name_any(), pods, via })
        };
        [of(false), of(true)].into_iter().flatten().collect()
    }
}

/// One change to the routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the route, or make it right.
    Set(Peer),
    /// No peer has these pods any more.
    Remove(IpNet),
}

/// The routes' next hops by destination, as observed.
pub type Observed = BTreeMap<IpNet, IpAddr>;

/// What turns `observed` into routes to exactly the `desired` peers. Of two peers that claim the same
/// pods the first by name has them.
pub fn plan(desired: &[Peer], observed: &Observed) -> Vec<Action> {
    let mut wanted: BTreeMap<IpNet, &Peer> = BTreeMap::new();
    for peer in desired {
        let holder = wanted.entry(peer.pods).or_insert(peer);
        if peer.node < holder.node {
            *holder = peer;
        }
    }
    let removals = observed.keys().filter(|pods| !wanted.contains_key(*pods)).copied();
    let wrong = wanted.values().filter(|peer| observed.get(&peer.pods) != Some(&peer.via));
    removals.map(Action::Remove).chain(wrong.map(|peer| Action::Set((*peer).clone()))).collect()
}

/// The routes of one network namespace.
#[derive(Debug)]
pub struct Routes(Rtnl);

impl Routes {
    /// Those of the calling thread's namespace.
    ///
    /// # Errors
    /// A netlink socket cannot be opened.
    pub fn open() -> Result<Self, RtnlError> {
        Ok(Self(Rtnl::open()?))
    }

    /// Routes to peers, as they are.
    ///
    /// # Errors
    /// The routes cannot be listed.
    pub fn observe(&mut self) -> Result<Observed, RtnlError> {
        let routes = Route::all(&self.0.dump("list routes", Route::dump_message())?);
        let ours = routes.into_iter().filter(|route| route.protocol == protocol());
        Ok(ours.filter_map(|route| Some((route.destination, route.via?))).collect())
    }

    /// Carries out one action; blocks for some microseconds.
    ///
    /// # Errors
    /// The kernel refuses, e.g. a peer on no link of this machine.
    pub fn execute(&mut self, action: &Action) -> Result<(), RtnlError> {
        let request = match action {
            Action::Set(peer) => {
                let what = format!("route {} via {} ({})", peer.pods, peer.via, peer.node);
                Request::replace(what, route(peer.pods, Some(peer.via)).new_message())
            }
            Action::Remove(pods) => {
                let delete = route(*pods, None).delete_message();
                Request::set(format!("remove the route to {pods}"), delete).tolerating(&[Errno::ESRCH])
            }
        };
        self.0.batch(vec![request]).map(drop)
    }

    /// Makes the routes lead to exactly these peers, as far as the kernel lets it.
    ///
    /// # Errors
    /// What failed, after all was tried.
    pub fn apply(&mut self, desired: &[Peer]) -> Result<(), Vec<RtnlError>> {
        let observed = self.observe().map_err(|error| vec![error])?;
        let actions = plan(desired, &observed);
        let errors: Vec<_> = actions.iter().filter_map(|action| self.execute(action).err()).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

/// Keeps the calling thread's network namespace routed to every node's pods but those of `node` (the
/// node this is; `None` where it is none, as on the host of a `pith up`), until cancelled.
///
/// # Errors
/// A netlink socket cannot be opened. Failures of the API and of single routes are logged and tried again.
pub async fn run(client: Client, node: Option<String>, cancel: CancellationToken) -> Result<(), RtnlError> {
    let mut routes = Some(Routes::open()?);
    let mut peers: BTreeMap<String, Vec<Peer>> = BTreeMap::new();
    // Until the first list is complete a missing node means nothing.
    let mut complete = false;
    let mut fresh: BTreeMap<String, Vec<Peer>> = BTreeMap::new();
    let nodes = watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff();
    let mut nodes = std::pin::pin!(nodes);
    let mut look_again = tokio::time::interval(LOOK_AGAIN);
    loop {
        // A stream's next item, a tick and a cancellation are not lost when another arm wins.
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            _ = look_again.tick() => {}
            event = nodes.try_next() => match event {
                Ok(Some(watcher::Event::Init)) => {
                    fresh.clear();
                    continue;
                }
                Ok(Some(watcher::Event::InitApply(object))) => {
                    note(&mut fresh, &object, node.as_deref());
                    continue;
                }
                Ok(Some(watcher::Event::InitDone)) => {
                    peers = std::mem::take(&mut fresh);
                    complete = true;
                }
                Ok(Some(watcher::Event::Apply(object))) => {
                    if !note(&mut peers, &object, node.as_deref()) {
                        continue;
                    }
                }
                Ok(Some(watcher::Event::Delete(object))) => drop(peers.remove(&object.name_any())),
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::debug!(%error, "watching nodes");
                    continue;
                }
            },
        }
        if complete {
            let desired: Vec<Peer> = peers.values().flatten().cloned().collect();
            routes = apply_off_thread(routes, desired).await?;
        }
    }
}

/// Whether the node's peers have changed.
fn note(peers: &mut BTreeMap<String, Vec<Peer>>, object: &Node, own: Option<&str>) -> bool {
    let name = object.name_any();
    if own == Some(name.as_str()) {
        return false;
    }
    let of = Peer::of(object);
    if of.is_empty() {
        return peers.remove(&name).is_some();
    }
    peers.insert(name, of.clone()).as_ref() != Some(&of)
}

/// The socket outlives the namespace of the blocking thread that uses it; a socket lost with a panicked
/// thread is opened again.
async fn apply_off_thread(routes: Option<Routes>, desired: Vec<Peer>) -> Result<Option<Routes>, RtnlError> {
    let mut routes = match routes {
        Some(routes) => routes,
        None => Routes::open()?,
    };
    let applied = tokio::task::spawn_blocking(move || {
        for error in routes.apply(&desired).err().into_iter().flatten() {
            tracing::warn!(%error, "a route to another replica's pods is missing");
        }
        routes
    });
    Ok(applied.await.ok())
}

fn protocol() -> RouteProtocol {
    RouteProtocol::Other(ROUTES_TO_PEERS)
}

fn route(destination: IpNet, via: Option<IpAddr>) -> Route {
    Route {
        destination,
        via,
        device: None,
        kind: RouteType::Unicast,
        protocol: protocol(),
        metric: None,
        source: None,
        on_link: false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeAddress, NodeSpec, NodeStatus};

    use super::*;

    fn peer(node: &str, pods: &str, via: &str) -> Peer {
        Peer {
            node: node.to_owned(),
            pods: pods.parse().expect("a subnet"),
            via: via.parse().expect("an address"),
        }
    }

    fn observed(routes: &[(&str, &str)]) -> Observed {
        let parse =
            |(pods, via): &(&str, &str)| (pods.parse().expect("a subnet"), via.parse().expect("an address"));
        routes.iter().map(parse).collect()
    }

    #[test]
    fn plans() {
        let a = peer("a", "10.244.0.0/24", "10.200.0.2");
        let b = peer("b", "10.244.1.0/24", "10.200.0.3");
        let a_moved = peer("a", "10.244.0.0/24", "10.200.0.9");
        let a_again = peer("z", "10.244.0.0/24", "10.200.0.4");
        let at_a = ("10.244.0.0/24", "10.200.0.2");
        for (name, desired, routes, expect) in [
            ("nothing to do", vec![a.clone()], vec![at_a], vec![]),
            ("a new peer", vec![a.clone(), b.clone()], vec![at_a], vec![Action::Set(b.clone())]),
            ("gone", vec![], vec![at_a], vec![Action::Remove(a.pods)]),
            ("moved", vec![a_moved.clone()], vec![at_a], vec![Action::Set(a_moved)]),
            ("replaced", vec![b.clone()], vec![at_a], vec![Action::Remove(a.pods), Action::Set(b)]),
            ("two claim one", vec![a_again, a.clone()], vec![], vec![Action::Set(a)]),
        ] {
            assert_eq!(plan(&desired, &observed(&routes)), expect, "{name}");
        }
    }

    #[test]
    fn nodes_become_peers_when_they_are_complete() {
        let node = |cidrs: &[&str], addresses: &[(&str, &str)]| {
            let mut node = Node {
                spec: Some(NodeSpec {
                    pod_cidrs: Some(cidrs.iter().map(ToString::to_string).collect()),
                    ..NodeSpec::default()
                }),
                status: Some(NodeStatus {
                    addresses: Some(
                        addresses
                            .iter()
                            .map(|(kind, address)| NodeAddress {
                                type_: kind.to_string(),
                                address: address.to_string(),
                            })
                            .collect(),
                    ),
                    ..NodeStatus::default()
                }),
                ..Node::default()
            };
            node.metadata.name = Some("a".to_owned());
            Peer::of(&node)
        };
        let four = peer("a", "10.244.0.0/24", "10.200.0.2");
        let six = peer("a", "fd00::/64", "fd01::1");
        let (internal, internal6) = (("InternalIP", "10.200.0.2"), ("InternalIP", "fd01::1"));
        assert_eq!(node(&["10.244.0.0/24"], &[("Hostname", "a"), internal]), std::slice::from_ref(&four));
        assert_eq!(node(&["fd00::/64", "10.244.0.0/24"], &[internal6, internal]), [four.clone(), six]);
        assert_eq!(node(&["fd00::/64", "10.244.0.0/24"], &[internal]), [four]);
        assert_eq!(node(&[], &[internal]), []);
        assert_eq!(node(&["10.244.0.0/24"], &[("ExternalIP", "10.200.0.2")]), []);
    }
}
