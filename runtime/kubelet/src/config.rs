//! How a kubelet is set up, and what it is given to work with.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use tokio::sync::watch;

use crate::network::PodNetwork;

#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// The address that the API server and other nodes reach this one by.
    pub node_ip: IpAddr,
    /// The one of the other family, where the node has both.
    pub second_node_ip: Option<IpAddr>,
    /// Where the server listens.
    pub listen: SocketAddr,
    /// Labels of the Node beside the standard ones.
    pub labels: BTreeMap<String, String>,
    /// Survives a reboot: volumes, containers' changes, logs.
    pub state_dir: PathBuf,
    /// On memory: sockets, records, files from the API.
    pub run_dir: PathBuf,
    /// Path of this node's cgroup subtree, the same in every hierarchy: `pith-dev/replica-1`.
    pub cgroup: String,
    pub cluster_domain: String,
    pub max_pods: u32,
    /// Millicores to offer; the machine's unless given.
    pub cpu_milli: Option<i64>,
    /// Bytes to offer; the machine's unless given.
    pub memory: Option<i64>,
    /// Processes a pod may have.
    pub pids_limit: Option<i64>,
    /// Bytes after which a container's log begins a new file, and how many files are kept.
    pub log_max_size: u64,
    pub log_max_files: u32,
    /// Containers' roots are copies of their images' files, and no overlays of them.
    pub copy_roots: bool,
    /// When images that no container uses are removed.
    pub image_gc: pith_image::Policy,
}

impl Config {
    /// The defaults of a kubelet for one node.
    pub fn new(
        node_name: impl Into<String>,
        node_ip: IpAddr,
        state_dir: impl Into<PathBuf>,
        run_dir: impl Into<PathBuf>,
        cgroup: impl Into<String>,
    ) -> Self {
        Self {
            node_name: node_name.into(),
            node_ip,
            second_node_ip: None,
            listen: SocketAddr::new(node_ip, 10250),
            labels: BTreeMap::new(),
            state_dir: state_dir.into(),
            run_dir: run_dir.into(),
            cgroup: cgroup.into(),
            cluster_domain: "cluster.local".to_owned(),
            max_pods: 250,
            cpu_milli: None,
            memory: None,
            pids_limit: None,
            log_max_size: 10 << 20,
            log_max_files: 5,
            copy_roots: !pith_image::has_overlayfs(),
            image_gc: pith_image::Policy::default(),
        }
    }
}

impl Config {
    /// The node's addresses, the main one first.
    pub(crate) fn node_ips(&self) -> Vec<IpAddr> {
        std::iter::once(self.node_ip).chain(self.second_node_ip).collect()
    }
}

/// The server's certificate and whom it trusts, all PEM.
#[derive(Clone)]
pub struct Serving {
    pub certificate: String,
    pub key: String,
    /// The cluster CA, which has signed the clients' certificates.
    pub client_ca: String,
}

pub struct Deps {
    pub client: kube::Client,
    pub images: pith_image::Store,
    pub network: Arc<dyn PodNetwork>,
    /// The `pith-podd` program.
    pub podd: PathBuf,
    /// The newest; connections made from then on get it. Without any, nothing is served on port 10250.
    pub serving: Option<watch::Receiver<Serving>>,
}
