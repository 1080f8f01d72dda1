//! [`Cluster`]: the one set of caches that all controllers share, the client, and writing through both.
//!
//! Invariant: every write of a controller goes through here, so that the caches show it at once.

use std::fmt::Debug;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use pith_informer::{Full, Key, Recorder, Store, follow, uid_of};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::owner;

/// Who writes, in `managedFields`.
pub(crate) const FIELD_MANAGER: &str = "kube-controller-manager";
/// The ConfigMap in each namespace that holds the cluster's CA.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";

pub(crate) struct Cluster {
    pub client: Client,
    pub events: Recorder,
    pub pods: Arc<Store<Pod>>,
    pub nodes: Arc<Store<Node>>,
    pub leases: Arc<Store<Lease>>,
    pub namespaces: Arc<Store<Namespace>>,
    pub service_accounts: Arc<Store<ServiceAccount>>,
    /// Only those named [`ROOT_CA`].
    pub root_cas: Arc<Store<ConfigMap>>,
    pub services: Arc<Store<Service>>,
    pub endpoints: Arc<Store<Endpoints>>,
    pub slices: Arc<Store<EndpointSlice>>,
    pub deployments: Arc<Store<Deployment>>,
    pub replica_sets: Arc<Store<ReplicaSet>>,
    pub daemon_sets: Arc<Store<DaemonSet>>,
    pub revisions: Arc<Store<ControllerRevision>>,
}

impl Cluster {
    pub(crate) fn new(client: Client, events: Recorder) -> Arc<Self> {
        Arc::new(Self {
            client,
            events,
            pods: Store::new(pod_terms, |_| ()),
            nodes: Store::new(|_| Vec::new(), trim_node),
            leases: Store::plain(),
            namespaces: Store::plain(),
            service_accounts: Store::plain(),
            root_cas: Store::plain(),
            services: Store::plain(),
            endpoints: Store::plain(),
            slices: Store::new(slice_terms, |_| ()),
            deployments: Store::plain(),
            replica_sets: Store::new(|set| vec![owner::term_of(set)], |_| ()),
            daemon_sets: Store::plain(),
            revisions: Store::new(|revision| vec![owner::term_of(revision)], |_| ()),
        })
    }

    /// Starts the watches that fill the caches.
    pub(crate) fn watch(&self, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
        self.watch_kind(&self.pods, "", tasks, cancel);
        self.watch_kind(&self.nodes, "", tasks, cancel);
        self.watch_kind(&self.leases, "metadata.namespace=kube-node-lease", tasks, cancel);
        self.watch_kind(&self.namespaces, "", tasks, cancel);
        self.watch_kind(&self.service_accounts, "", tasks, cancel);
        self.watch_kind(&self.root_cas, "metadata.name=kube-root-ca.crt", tasks, cancel);
        self.watch_kind(&self.services, "", tasks, cancel);
        self.watch_kind(&self.endpoints, "", tasks, cancel);
        self.watch_kind(&self.slices, "", tasks, cancel);
        self.watch_kind(&self.deployments, "", tasks, cancel);
        self.watch_kind(&self.replica_sets, "", tasks, cancel);
        self.watch_kind(&self.daemon_sets, "", tasks, cancel);
        self.watch_kind(&self.revisions, "", tasks, cancel);
    }

    fn watch_kind<K: Object>(
        &self,
        store: &Arc<Store<K>>,
        fields: &'static str,
        tasks: &mut JoinSet<()>,
        cancel: &CancellationToken,
    ) {
        let feed = Full { api: Api::<K>::all(self.client.clone()) };
        tasks.spawn(follow(feed, fields, store.clone(), cancel.clone()));
    }

    pub(crate) fn api<K: Object + Scoped>(&self, namespace: &str) -> Api<K> {
        K::api(self.client.clone(), namespace)
    }

    pub(crate) async fn create<K: Object + Scoped>(&self, store: &Store<K>, object: &K) -> Result<K> {
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        let api = self.api::<K>(&namespace);
        taken(store, "create", object, api.create(&by_us(), object)).await
    }

    /// Puts the whole object; its resourceVersion is the condition.
    pub(crate) async fn replace<K: Object + Scoped>(&self, store: &Store<K>, object: &K) -> Result<K> {
        let (api, name) = self.place(object);
        taken(store, "update", object, api.replace(&name, &by_us(), object)).await
    }

    /// Puts the object's status; its resourceVersion is the condition.
    pub(crate) async fn replace_status<K: Object + Scoped>(&self, store: &Store<K>, object: &K) -> Result<K> {
        let (api, name) = self.place(object);
        taken(store, "update status of", object, api.replace_status(&name, &by_us(), object)).await
    }

    /// The same for an object that may be gone by now, with its status.
    pub(crate) async fn report_status<K: Object + Scoped>(&self, store: &Store<K>, object: &K) -> Result<()> {
        match self.replace_status(store, object).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }

    pub(crate) async fn patch<K: Object + Scoped>(
        &self,
        store: &Store<K>,
        object: &K,
        patch: &Patch<Value>,
    ) -> Result<K> {
        let (api, name) = self.place(object);
        taken(store, "patch", object, api.patch(&name, &patched_by_us(), patch)).await
    }

    pub(crate) async fn patch_status<K: Object + Scoped>(
        &self,
        store: &Store<K>,
        object: &K,
        patch: &Patch<Value>,
    ) -> Result<K> {
        let (api, name) = self.place(object);
        taken(store, "patch status of", object, api.patch_status(&name, &patched_by_us(), patch)).await
    }

    /// Where an object is written.
    fn place<K: Object + Scoped>(&self, object: &K) -> (Api<K>, String) {
        let Key { namespace, name } = Key::of(object);
        (self.api(&namespace), name)
    }

    /// Deletes exactly this object (its uid is the condition). One that is gone already is a success.
    pub(crate) async fn delete<K: Object + Scoped>(
        &self,
        store: &Store<K>,
        object: &K,
        parameters: DeleteParams,
    ) -> Result<()> {
        let (key, uid) = (Key::of(object), uid_of(object));
        let parameters =
            parameters.preconditions(Preconditions { uid: Some(uid.0.clone()), resource_version: None });
        match self.api::<K>(&key.namespace).delete(&key.name, &parameters).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() || is_another(&status) => {}
            Err(source) => return Err(Error::write("delete", object, source)),
        }
        store.deleted(&key, &uid, Timestamp::now());
        Ok(())
    }
}

fn by_us() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
}

fn patched_by_us() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

/// Carries out a write and shows it in the cache once the server has taken it.
async fn taken<K: Object>(
    store: &Store<K>,
    verb: &'static str,
    object: &K,
    write: impl Future<Output = kube::Result<K>>,
) -> Result<K> {
    let written = write.await.map_err(|source| Error::write(verb, object, source))?;
    store.wrote(written.clone());
    Ok(written)
}

/// Whether a deletion was refused because the name now belongs to another object: ours is gone, then.
fn is_another(status: &kube::core::Status) -> bool {
    status.is_conflict() && status.message.contains("UID in precondition")
}

/// What the caches hold.
pub(crate) trait Object:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

/// Where a kind's objects are written: in a namespace or cluster-wide.
pub(crate) trait Scoped: Sized {
    fn api(client: Client, namespace: &str) -> Api<Self>;
}

macro_rules! scoped {
    ($scope:ty, $constructor:expr, $($kind:ty),+) => {
        $(impl Scoped for $kind {
            fn api(client: Client, namespace: &str) -> Api<Self> {
                const fn in_scope<K: Resource<Scope = $scope>>() {}
                in_scope::<$kind>();
                $constructor(client, namespace)
            }
        })+
    };
}

scoped!(
    NamespaceResourceScope,
    Api::namespaced,
    Pod,
    Lease,
    ServiceAccount,
    ConfigMap,
    Service,
    Endpoints,
    EndpointSlice,
    Deployment,
    ReplicaSet,
    DaemonSet,
    ControllerRevision
);
scoped!(ClusterResourceScope, |client, _| Api::all(client), Node, Namespace);

/// Pods are found by who controls them and by where they run.
fn pod_terms(pod: &Pod) -> Vec<String> {
    let mut terms = vec![owner::term_of(pod)];
    if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
        terms.push(node_term(node));
    }
    terms
}

/// The index term of the pods on a node.
pub(crate) fn node_term(node: &str) -> String {
    format!("node/{node}")
}

/// Slices are found by their Service.
fn slice_terms(slice: &EndpointSlice) -> Vec<String> {
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    let labels = slice.metadata.labels.as_ref();
    let service = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
    service.map(|service| service_term(&Key::new(namespace, service))).into_iter().collect()
}

/// The index term of the slices of a Service.
pub(crate) fn service_term(service: &Key) -> String {
    format!("service/{service}")
}

/// The images of a node are many and nobody here reads them.
fn trim_node(node: &mut Node) {
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}
