//! The controllers: loops that make the cluster what its objects say it should be.
//!
//! Each is a module with a pure `plan` and a small driver, and one task; all share one set of watched caches
//! ([`cluster`]). Nothing polls: a change in a cache queues the keys it concerns.
//!
//! | task | does |
//! |---|---|
//! | `deployment` | rolls a template out through ReplicaSets |
//! | `replicaset` | keeps a number of pods |
//! | `daemonset` | keeps a pod on each node that fits |
//! | `endpoints` | EndpointSlices and Endpoints of Services |
//! | `garbage` | deletes what has lost its owners |
//! | `namespace` | empties namespaces that are being deleted |
//! | `service_account` | default ServiceAccount and CA of each namespace |
//! | `node` | notices lost nodes, taints them, marks their pods |
//! | `node::eviction` | pods leave nodes that they do not tolerate |
//! | `node::orphans` | pods of nodes that are gone for good |
//! | `load_balancer` | addresses for Services of that type |
//! | `node_ipam` | each node's range of pod addresses |
//! | one a kind | watches that feed the caches; `garbage` has its own, of metadata |
//!
//! Invariants: every pass is idempotent and starts from what is observed; nothing is remembered between
//! passes but caches and timers. Only one primary may run this at a time: a leader election belongs around
//! [`run`], which can be stopped and started again at any point.

mod batch;
mod cluster;
mod daemonset;
mod deployment;
mod discovered;
mod endpoints;
mod error;
mod garbage;
mod load_balancer;
mod namespace;
mod node;
mod node_ipam;
mod owner;
mod pod;
mod replicaset;
mod service_account;
mod template;

use std::time::Duration;

use ipnet::IpNet;
use kube::Client;
use pith_informer::Recorder;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
pub use crate::error::{Error, Result};
pub use crate::node_ipam::{Cidr, Cidr6, ClusterCidr, NoCidr, NoCidr6, NoClusterCidr};

/// What can be set; the defaults are as Kubernetes has them.
#[derive(Clone, Debug)]
pub struct Options {
    /// The network that nodes get their ranges of pod addresses from; none leaves that to others.
    pub cluster_cidr: Option<ClusterCidr>,
    /// The pools of addresses for Services of type LoadBalancer, at most one of a family; none leaves those to others.
    pub balancer_pools: Vec<IpNet>,
    /// The PEM bundle that pods verify the API server with, kept in each namespace.
    pub root_ca: Option<String>,
    /// How long a node may be silent before it counts as lost (40 s).
    pub lease_grace: Duration,
    /// Pods leave a lost node after this time at the latest, even if they tolerate it for longer.
    pub eviction_limit: Option<Duration>,
    /// How long a Node object must be absent before the pods bound to it are removed (40 s).
    pub orphan_grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster_cidr: None,
            balancer_pools: Vec::new(),
            root_ca: None,
            lease_grace: Duration::from_secs(40),
            eviction_limit: None,
            orphan_grace: Duration::from_secs(40),
        }
    }
}

/// Runs all controllers until cancelled.
pub async fn run(client: Client, options: Options, cancel: CancellationToken) -> Result<()> {
    let (recorder, events) = Recorder::new(client.clone(), "kube-controller-manager", cancel.clone());
    let cluster = Cluster::new(client, recorder);
    let mut tasks = JoinSet::new();
    // Controllers subscribe to the caches here, before anything flows into them below.
    tasks.spawn(deployment::controller(&cluster, cancel.clone()));
    tasks.spawn(daemonset::controller(&cluster, cancel.clone()));
    tasks.spawn(replicaset::controller(&cluster, cancel.clone()));
    tasks.spawn(garbage::controller(&cluster, cancel.clone()));
    tasks.spawn(namespace::controller(&cluster, cancel.clone()));
    tasks.spawn(endpoints::controller(&cluster, cancel.clone()));
    tasks.spawn(service_account::controller(&cluster, options.root_ca, cancel.clone()));
    tasks.spawn(node::controller(&cluster, options.lease_grace, cancel.clone()));
    tasks.spawn(node::eviction::controller(&cluster, options.eviction_limit, cancel.clone()));
    tasks.spawn(node::orphans::controller(&cluster, options.orphan_grace, cancel.clone()));
    if let Some(range) = options.cluster_cidr {
        tasks.spawn(node_ipam::controller(&cluster, range, cancel.clone()));
    }
    if !options.balancer_pools.is_empty() {
        tasks.spawn(load_balancer::controller(&cluster, options.balancer_pools, cancel.clone()));
    }
    tasks.spawn(events);
    cluster.watch(&mut tasks, &cancel);
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(Error::Task)?;
    }
    Ok(())
}
