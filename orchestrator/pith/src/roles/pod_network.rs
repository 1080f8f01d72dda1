//! What the kubelet asks of the network, answered by `pith-network`: interfaces of pods, and with the first word of
//! the node's pod range also DNS and the routes to other replicas, which need it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kube::Client;
use pith_kubelet::{NetworkError, PodNetwork};
use pith_kubelet::{PodId, PodUid as KubeletPodUid};
use pith_network::dns::resolv::ResolvConf;
use pith_network::names::PodUid;
use pith_network::pods::{Config, PodNet};
use pith_network::{dns, peers};
use tokio::sync::{Mutex, OnceCell};

use super::tasks::Tasks;

const DNS_PORT: u16 = 53;
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Where the replica is, as far as its network is concerned.
pub(crate) struct Place {
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(crate) uplink: String,
    /// For the addresses that pods have been given.
    pub(crate) state_dir: PathBuf,
    /// Where this machine's resolvers are reached, which may be on its loopback.
    pub(crate) host_netns: OwnedFd,
    /// All pods of the cluster, of each family.
    pub(crate) cluster_cidrs: Vec<IpNet>,
    pub(crate) tasks: Tasks,
}

/// The network of one replica.
pub(crate) struct ReplicaNetwork {
    place: Place,
    pods: OnceCell<(Ipv4Net, Arc<PodNet>)>,
    /// Held while the network is set up, so that it is set up once.
    setting_up: Mutex<()>,
}

/// What a request cannot be answered with.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the node's pod range is not known yet")]
    NotConfigured,
    #[error("{0:?} is not an IPv4 range: node.spec.podCIDRs needs one")]
    NoRange(Vec<String>),
    #[error("the node's pod range cannot change from {from} to {to} while pods run")]
    Changed { from: Ipv4Net, to: Ipv4Net },
}

impl Place {
    /// Answers for the cluster itself and asks this machine's resolvers for other names.
    fn name_server(&self, gateway: Ipv4Addr) -> std::io::Result<dns::Config> {
        Ok(dns::Config {
            listen: SocketAddr::from((gateway, DNS_PORT)),
            domain: CLUSTER_DOMAIN.to_owned(),
            resolvers: dns::resolvers(&ResolvConf::of_machine().nameservers),
            resolvers_netns: Some(self.host_netns.try_clone()?),
            own_addresses: self.cluster_cidrs.clone(),
        })
    }
}

impl ReplicaNetwork {
    pub(crate) fn new(place: Place) -> Self {
        Self { place, pods: OnceCell::new(), setting_up: Mutex::new(()) }
    }

    fn pods(&self) -> Result<Arc<PodNet>, NetworkError> {
        let (_, pods) = self.pods.get().ok_or_else(|| NetworkError::new(Refusal::NotConfigured))?;
        Ok(Arc::clone(pods))
    }

    async fn set_up(&self, ranges: &[String]) -> Result<(), NetworkError> {
        let range = ranges.iter().find_map(|range| range.parse::<Ipv4Net>().ok());
        let range = range.ok_or_else(|| NetworkError::new(Refusal::NoRange(ranges.to_vec())))?;
        let six = ranges.iter().find_map(|range| range.parse::<Ipv6Net>().ok());
        let _once = self.setting_up.lock().await;
        match self.pods.get() {
            Some((known, _)) if *known == range => return Ok(()),
            Some((known, _)) => return Err(NetworkError::new(Refusal::Changed { from: *known, to: range })),
            None => {}
        }
        let place = &self.place;
        let config = Config {
            state_dir: place.state_dir.clone(),
            pod_cidr: range,
            pod_cidr6: six,
            uplink: Some(place.uplink.clone()),
            netns: None,
        };
        let pods = Arc::new(PodNet::open(config).await.map_err(NetworkError::new)?);
        let names = place.name_server(pods.gateway()).map_err(NetworkError::new)?;
        let (tasks, client) = (&place.tasks, &place.client);
        tasks.start("DNS", dns::run(client.clone(), names, tasks.cancel()));
        tasks.start("routes", peers::run(client.clone(), Some(place.node.clone()), tasks.cancel()));
        self.pods.set((range, pods)).expect("set only here, under the lock");
        Ok(())
    }
}

fn uid(uid: &KubeletPodUid) -> Result<PodUid, NetworkError> {
    PodUid::parse(uid.as_str()).map_err(NetworkError::new)
}

impl PodNetwork for ReplicaNetwork {
    fn configure(&self, pod_cidrs: &[String]) -> BoxFuture<'_, Result<(), NetworkError>> {
        let ranges = pod_cidrs.to_vec();
        async move { self.set_up(&ranges).await }.boxed()
    }

    fn attach(&self, pod: &PodId, netns: OwnedFd) -> BoxFuture<'_, Result<Vec<IpAddr>, NetworkError>> {
        let pod = uid(&pod.uid);
        async move {
            let attached = self.pods()?.attach(&pod?, netns.as_fd()).await.map_err(NetworkError::new)?;
            let six = attached.address6.map(IpAddr::from);
            Ok(std::iter::once(attached.address.into()).chain(six).collect())
        }
        .boxed()
    }

    fn detach(&self, pod: &PodId) -> BoxFuture<'_, Result<(), NetworkError>> {
        let pod = uid(&pod.uid);
        async move { self.pods()?.detach(&pod?).await.map_err(NetworkError::new) }.boxed()
    }

    fn reconcile(&self, live: &[KubeletPodUid]) -> BoxFuture<'_, Result<(), NetworkError>> {
        let live: Result<Vec<PodUid>, NetworkError> = live.iter().map(uid).collect();
        async move {
            let removed = self.pods()?.reconcile(live?).await.map_err(NetworkError::new)?;
            for pod in removed {
                tracing::info!(%pod, "removed the network of a pod that is gone");
            }
            Ok(())
        }
        .boxed()
    }

    fn name_servers(&self) -> Vec<IpAddr> {
        self.pods.get().map(|(_, pods)| pods.gateway().into()).into_iter().collect()
    }
}
