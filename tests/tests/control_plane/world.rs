//! [`World`]: an API server in this process, controllers, scheduler, and nodes whose kubelets pretend.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use pith_apiserver::{Config, Identity, Server};
use pith_informer::{Full, Key, Queue, Store, follow};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// After this, what is awaited will not come.
const DEADLINE: Duration = Duration::from_secs(60);
/// Short, so that a node is found dead within a test, and longer than a busy disk takes for a renewal.
const LEASE_GRACE: Duration = Duration::from_secs(8);
const RENEW: Duration = Duration::from_millis(200);

pub(crate) struct World {
    pub client: Client,
    pods: Arc<Store<Pod>>,
    deployments: Arc<Store<Deployment>>,
    nodes: Arc<Store<Node>>,
    changed: Arc<Notify>,
    kubelets: Mutex<HashMap<String, CancellationToken>>,
    tasks: Mutex<JoinSet<()>>,
    cancel: CancellationToken,
    _dir: tempfile::TempDir,
}

/// The last part of the next pod's address.
static ADDRESS: AtomicU32 = AtomicU32::new(1);

impl World {
    /// With nodes `replica-1` and so on.
    pub(crate) async fn start(nodes: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let store = Arc::new(pith_store::Embedded::open(&dir.path().join("store"))?);
        let config = Config {
            dir: dir.path().to_owned(),
            cluster_name: "test".into(),
            advertise: ([127, 0, 0, 1], 6443).into(),
            further_addresses: Vec::new(),
            further_names: Vec::new(),
            service_cidr: "10.96.0.0/16".parse()?,
            certificate_lifetime: pith_apiserver::pki::CLIENT_LIFETIME,
            tolerations: Default::default(),
        };
        let server = Server::open(config, store).await?;
        let (cancel, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let options = pith_controllers::Options {
            cluster_cidr: Some("10.9.0.0/16".parse::<pith_controllers::Cidr>()?.into()),
            balancer_pools: Vec::new(),
            root_ca: Some("PEM".into()),
            lease_grace: LEASE_GRACE,
            eviction_limit: Some(Duration::ZERO),
            orphan_grace: Duration::ZERO,
        };
        let controllers =
            pith_controllers::run(server.client(Identity::controllers()), options, cancel.clone());
        tasks.spawn(
            async move { controllers.await.expect("the controllers run until they are told to stop") },
        );
        let scheduler = pith_scheduler::run(server.client(Identity::scheduler()), cancel.clone());
        tasks.spawn(async move { scheduler.await.expect("the scheduler runs until it is told to stop") });
        let client = server.client(Identity::admin());
        let world = Self {
            pods: Store::new(|_| Vec::new(), |_| ()),
            deployments: Store::plain(),
            nodes: Store::plain(),
            changed: Arc::default(),
            kubelets: Mutex::default(),
            tasks: Mutex::new(tasks),
            cancel,
            _dir: dir,
            client,
        };
        world.observe(&world.pods);
        world.observe(&world.deployments);
        world.observe(&world.nodes);
        for index in 1..=nodes {
            world.add_node(&format!("replica-{index}")).await?;
        }
        Ok(world)
    }

    fn observe<K>(&self, store: &Arc<Store<K>>)
    where
        K: Resource<DynamicType = ()>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug
            + Send
            + Sync
            + 'static,
    {
        let changed = self.changed.clone();
        store.on_change(move |_| changed.notify_one());
        let feed = Full { api: Api::<K>::all(self.client.clone()) };
        self.spawn(follow(feed, "", store.clone(), self.cancel.clone()));
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().expect("no task panics under it").spawn(task);
    }

    /// Registers a node and runs a kubelet for it that reports each pod as running at once.
    pub(crate) async fn add_node(&self, name: &str) -> Result<()> {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "status": {
                "allocatable": { "cpu": "8", "memory": "16Gi", "pods": "110" },
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        }))?;
        Api::<Node>::all(self.client.clone())
            .create(&PostParams::default(), &node)
            .await
            .context("register")?;
        let cancel = self.cancel.child_token();
        self.kubelets.lock().expect("no task panics under it").insert(name.to_owned(), cancel.clone());
        self.spawn(renew_lease(self.client.clone(), name.to_owned(), cancel.clone()));
        let queue = Queue::new();
        let (to, on) = (queue.clone(), name.to_owned());
        let mine = move |pod: &Pod| {
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(on.as_str())
        };
        let (also, too) = (to.clone(), mine.clone());
        self.pods.on_change(move |change| {
            if let Some(pod) = change.new.as_ref().filter(|pod| mine(pod)) {
                to.add(Key::of(pod.as_ref()));
            }
        });
        // After that, so that none comes between; the queue holds each once.
        let already: Vec<_> = self.pods.all().into_iter().filter(|pod| too(pod)).collect();
        already.iter().for_each(|pod| also.add(Key::of(pod.as_ref())));
        let (client, pods) = (self.client.clone(), self.pods.clone());
        self.spawn(async move {
            let _dead = cancel.run_until_cancelled(kubelet(client, pods, queue)).await;
        });
        Ok(())
    }

    /// The node's kubelet stops: nothing is reported from there any more.
    pub(crate) fn kill(&self, node: &str) {
        self.kubelets.lock().expect("no task panics under it")[node].cancel();
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// The pods with this `app` label.
    pub(crate) fn pods(&self, app: &str) -> Vec<Pod> {
        let pods = self.pods.all().into_iter().map(|pod| Pod::clone(&pod));
        pods.filter(|pod| pod.labels().get("app").map(String::as_str) == Some(app)).collect()
    }

    pub(crate) fn deployment(&self, name: &str) -> Option<Deployment> {
        self.deployments.get(&Key::new("default", name)).map(|deployment| Deployment::clone(&deployment))
    }

    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.nodes.all().iter().map(|node| Node::clone(node)).collect()
    }

    /// Waits until what is watched is as wanted; looks at every change.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let waited = async {
            while !wanted(self) {
                self.changed.notified().await;
            }
        };
        if tokio::time::timeout(DEADLINE, waited).await.is_err() {
            let pods: Vec<_> = self.pods.all().iter().map(|pod| summary(pod)).collect();
            panic!("{what}: not within {DEADLINE:?}\n{}", pods.join("\n"));
        }
    }

    /// As [`World::until`], for what has to be asked for.
    pub(crate) async fn until_api(&self, what: &str, wanted: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let waited = async {
            while !wanted().await? {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        };
        match tokio::time::timeout(DEADLINE, waited).await {
            Ok(result) => result,
            Err(_) => panic!("{what}: not within {DEADLINE:?}"),
        }
    }

    /// Stops everything; what ended badly fails the test.
    pub(crate) async fn stop(self) -> Result<()> {
        self.cancel.cancel();
        let mut tasks = self.tasks.into_inner().expect("no task panics under it");
        while let Some(ended) = tasks.join_next().await {
            ended?;
        }
        Ok(())
    }
}

fn summary(pod: &Pod) -> String {
    let status = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let image = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.as_deref()).unwrap_or_default();
    let ready = is_ready(pod);
    format!("{} of {image} on {node:?}: {status}, ready: {ready}, deleted: {deleted}", pod.name_any())
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub(crate) fn pod_cidr(node: &Node) -> Option<String> {
    node.spec.as_ref()?.pod_cidr.clone()
}

async fn renew_lease(client: Client, node: String, cancel: CancellationToken) {
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let renew = async {
        loop {
            let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": { "name": node },
                "spec": { "holderIdentity": node, "renewTime": MicroTime(Timestamp::now()) } });
            if leases.get_opt(&node).await.expect("the server answers").is_none() {
                let lease = serde_json::from_value(lease).expect("a valid lease");
                leases.create(&PostParams::default(), &lease).await.expect("a lease can be made");
            } else {
                let patch = Patch::Merge(lease);
                leases.patch(&node, &PatchParams::default(), &patch).await.expect("a lease can be renewed");
            }
            tokio::time::sleep(RENEW).await;
        }
    };
    let _dead: Option<()> = cancel.run_until_cancelled(renew).await;
}

/// Reports pods as running, and as gone when they are told to stop.
async fn kubelet(client: Client, pods: Arc<Store<Pod>>, queue: Queue<Key>) {
    loop {
        let key = queue.next().await;
        if let Some(pod) = pods.get(&key) {
            let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
            let result = if pod.metadata.deletion_timestamp.is_some() {
                let uid = Preconditions { uid: pod.uid(), resource_version: None };
                let now = DeleteParams::default().grace_period(0).preconditions(uid);
                api.delete(&key.name, &now).await.map(drop)
            } else if !is_ready(&pod) {
                let patch = Patch::Strategic(running());
                api.patch_status(&key.name, &PatchParams::default(), &patch).await.map(drop)
            } else {
                Ok(())
            };
            match result {
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
                other => other.expect("the server takes what a kubelet reports"),
            }
        }
        queue.done(&key);
    }
}

fn running() -> Value {
    let number = ADDRESS.fetch_add(1, Ordering::Relaxed);
    json!({ "status": {
        "phase": "Running",
        "podIP": format!("10.9.{}.{}", number / 250, number % 250 + 1),
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": Time(Timestamp::now()) }],
    } })
}
