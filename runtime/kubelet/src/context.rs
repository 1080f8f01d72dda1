//! What all pods of a node share, and what the tasks of one pod share among themselves.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use pith_cgroup::{Cgroup, Hierarchy};
use pith_container::supervisor::{Supervisor, protocol::CgroupDirs};
use tokio::sync::{Semaphore, watch};

use crate::{
    config::Config,
    desired::{Desired, PodId},
    downward::PodFacts,
    etc::Dns,
    events::Recorder,
    network::PodNetwork,
    objects::{Data, Known, ObjectKind, ObjectRef, Objects, Subscription},
    observed::ContainerId,
    record::Record,
    resources::NodeSize,
    services::Services,
    volumes::{Folders, Places, tokens::Tokens},
};

/// Whether pods can have a network.
pub(crate) type NetworkState = Result<(), String>;

/// Shared by all pods.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) client: kube::Client,
    pub(crate) images: pith_image::Store,
    pub(crate) network: Arc<dyn PodNetwork>,
    /// `Err` says why pods cannot have a network yet.
    pub(crate) network_state: watch::Sender<NetworkState>,
    pub(crate) podd: PathBuf,
    pub(crate) hierarchy: Arc<Hierarchy>,
    pub(crate) size: NodeSize,
    pub(crate) events: Recorder,
    pub(crate) objects: Objects,
    pub(crate) services: Services,
    /// Sandboxes and containers that are made at the same time: more than the processors can work on
    /// would only make each of them later.
    pub(crate) starts: Semaphore,
    /// The node's own /etc/resolv.conf.
    pub(crate) resolv: String,
    /// What this machine does not allow, as far as it has been logged.
    pub(crate) notices: Mutex<BTreeSet<String>>,
}

/// The machine is the same for all pods: what it does not allow is said once. There are far fewer such texts.
const NOTICES_MAX: usize = 64;

impl Context {
    /// Waits until the network is set up; the reason it is not, after `deadline`.
    pub(crate) async fn network_ready(&self, deadline: Duration) -> NetworkState {
        let mut state = self.network_state.subscribe();
        match tokio::time::timeout(deadline, state.wait_for(Result::is_ok)).await {
            Ok(_) => Ok(()),
            Err(_) => self.network_state.borrow().clone(),
        }
    }

    /// Whether this notice about the machine has not been given before.
    pub(crate) fn is_news(&self, notice: &str) -> bool {
        let mut known = self.notices.lock().expect("no holder of this lock panics");
        known.len() < NOTICES_MAX && known.insert(notice.to_owned())
    }

    pub(crate) fn dns(&self) -> Dns {
        Dns {
            servers: self.network.name_servers(),
            domain: self.config.cluster_domain.clone(),
            node: self.resolv.clone(),
        }
    }

    /// The pod's cgroup, or with a name one below it.
    pub(crate) fn cgroup(&self, pod: &PodId, below: Option<&str>) -> Result<Cgroup, pith_cgroup::Error> {
        let path = format!("{}/pod{}", self.config.cgroup, pod.uid);
        match below {
            Some(name) => Cgroup::open(&self.hierarchy, &format!("{path}/{name}")),
            None => Cgroup::open(&self.hierarchy, &path),
        }
    }
}

/// The directories of a cgroup as supervisors are told them.
pub(crate) fn dirs(cgroup: &Cgroup) -> CgroupDirs {
    let unified = cgroup.v2_dir();
    let legacy = cgroup.dirs().into_iter().filter(|d| Some(d) != unified.as_ref()).collect();
    CgroupDirs { unified, legacy }
}

/// A pod's running supervisor.
#[derive(Clone)]
pub(crate) struct Sandbox {
    pub(crate) supervisor: Supervisor,
    pub(crate) addresses: Vec<IpAddr>,
}

/// Shared by the tasks of one pod and by the server.
pub(crate) struct PodCell {
    pub(crate) id: PodId,
    pub(crate) node: Arc<Context>,
    pub(crate) folders: Folders,
    pub(crate) logs: PathBuf,
    pub(crate) desired: watch::Receiver<Desired>,
    /// The newest status, whether or not the API has it yet.
    pub(crate) status: watch::Sender<Option<Arc<PodStatus>>>,
    pub(crate) tokens: tokio::sync::Mutex<Tokens>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    sandbox: Option<Sandbox>,
    places: Places,
    record: Record,
    subscriptions: HashMap<ObjectRef, Subscription>,
    renew_at: Option<Timestamp>,
}

impl PodCell {
    pub(crate) fn new(node: Arc<Context>, id: PodId, desired: watch::Receiver<Desired>) -> Self {
        let folder = |base: &PathBuf| base.join("pods").join(id.uid.as_str());
        let folders = Folders { run: folder(&node.config.run_dir), state: folder(&node.config.state_dir) };
        let logs =
            node.config.state_dir.join("logs").join(format!("{}_{}_{}", id.namespace, id.name, id.uid));
        Self {
            id,
            node,
            folders,
            logs,
            desired,
            status: watch::Sender::new(None),
            tokens: tokio::sync::Mutex::default(),
            inner: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }

    pub(crate) fn desired(&self) -> Desired {
        self.desired.borrow().clone()
    }

    pub(crate) fn sandbox(&self) -> Option<Sandbox> {
        self.inner().sandbox.clone()
    }

    pub(crate) fn set_sandbox(&self, sandbox: Option<Sandbox>) {
        self.inner().sandbox = sandbox;
    }

    pub(crate) fn places(&self) -> Places {
        self.inner().places.clone()
    }

    pub(crate) fn set_places(&self, places: Places) {
        self.inner().places = places;
    }

    pub(crate) fn record(&self) -> Record {
        self.inner().record.clone()
    }

    /// Changes the record and writes it down.
    pub(crate) fn update_record(&self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let mut inner = self.inner();
        change(&mut inner.record);
        inner.record.save(&self.folders.run)
    }

    pub(crate) fn set_record(&self, record: Record) {
        self.inner().record = record;
    }

    /// The id of the newest container under that name.
    pub(crate) fn container_id(&self, name: &str) -> Option<ContainerId> {
        self.inner().record.containers.get(name).map(|c| c.id.clone())
    }

    /// The name and attempt of a container.
    pub(crate) fn name_of(&self, id: &ContainerId) -> Option<String> {
        let inner = self.inner();
        inner.record.containers.iter().find(|(_, c)| c.id == *id).map(|(n, _)| n.clone())
    }

    pub(crate) fn log_path(&self, container: &str, attempt: u32) -> PathBuf {
        self.logs.join(container).join(format!("{attempt}.log"))
    }

    pub(crate) fn facts(&self) -> PodFacts {
        let host_ips = self.node.config.node_ips();
        let pod_ips = match self.sandbox() {
            Some(_) if self.desired.borrow().host_network => host_ips.clone(),
            Some(s) => s.addresses,
            None => vec![],
        };
        PodFacts { host_ips, pod_ips, node_name: self.node.config.node_name.clone() }
    }

    /// Holds a watch on each of these objects, and on no others.
    /// True if that changed anything.
    pub(crate) fn subscribe(&self, wanted: &[ObjectRef]) -> bool {
        let mut inner = self.inner();
        let before = inner.subscriptions.len();
        inner.subscriptions.retain(|r, _| wanted.contains(r));
        let mut changed = inner.subscriptions.len() != before;
        for object in wanted {
            if !inner.subscriptions.contains_key(object) {
                let subscription = self.node.objects.subscribe(object);
                inner.subscriptions.insert(object.clone(), subscription);
                changed = true;
            }
        }
        changed
    }

    /// When the oldest of the pod's tokens wants to be renewed.
    pub(crate) fn renew_at(&self) -> Option<Timestamp> {
        self.inner().renew_at
    }

    pub(crate) fn set_renew_at(&self, at: Option<Timestamp>) {
        self.inner().renew_at = at;
    }

    pub(crate) fn subscriptions(&self) -> Vec<Subscription> {
        self.inner().subscriptions.values().cloned().collect()
    }

    /// The data of an object that is subscribed to, as last seen.
    pub(crate) fn object(&self, kind: ObjectKind, name: &str) -> Option<Arc<Data>> {
        let namespace = self.id.namespace.clone();
        let object = ObjectRef { kind, namespace, name: name.to_owned() };
        let inner = self.inner();
        let seen = inner.subscriptions.get(&object)?.seen.borrow();
        match &*seen {
            Known::Data(data) => Some(data.clone()),
            Known::NotYet | Known::Missing => None,
        }
    }

    /// Waits until every subscribed object is known to exist or not to.
    pub(crate) async fn objects_seen(&self) {
        for mut subscription in self.subscriptions() {
            // An error means that the watch has ended with its last holder, which is not us.
            let _ = subscription.seen.wait_for(|k| *k != Known::NotYet).await;
        }
    }
}

/// Runs blocking work on a thread for that. A panic there is one here.
pub(crate) async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(f).await {
        Ok(value) => value,
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}
