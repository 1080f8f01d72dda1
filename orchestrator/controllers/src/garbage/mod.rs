//! Garbage collection: objects go when all their owners are gone.
//!
//! ```text
//!   metadata watches of every kind ─▶ Graph ─▶ uids to look at ─▶ judge ─▶ delete | drop references | finalizers
//! ```
//! - background: the owner goes at once, its dependents after it.
//! - foreground: the owner waits, with a finalizer, for the dependents that block its deletion.
//! - orphan: the owner waits until its dependents no longer refer to it.
//!
//! The graph may lag, each kind for itself: so an owner that it does not know is looked up in the API before
//! anything is deleted for its absence.

mod graph;
mod judge;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{
    DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::core::discovery::ApiResource;
use kube::{Api, Client, ResourceExt};
use pith_informer::{Key, Metadata, Outcome, Queue, Revision, Sink, Uid, follow, uid_of, work};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::graph::{Graph, KindId, Looked};
use self::judge::{Owner, Verdict};
use crate::cluster::Cluster;
use crate::discovered::{self, Kind};
use crate::error::{Error, Result};

/// Objects in hand at once.
const WORKERS: usize = 16;
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

pub(crate) fn controller(cluster: &Arc<Cluster>, cancel: CancellationToken) -> BoxFuture<'static, ()> {
    let client = cluster.client.clone();
    Box::pin(async move {
        let Some(kinds) = cancel.run_until_cancelled(discovered::kinds(&client)).await else { return };
        // Events own nothing and are owned by nothing, but there are many.
        let kinds: Vec<Kind> = kinds.into_iter().filter(|kind| kind.resource.kind != "Event").collect();
        let collector = Arc::new(Collector::new(client, kinds));
        let mut watches = JoinSet::new();
        for (index, kind) in collector.kinds.iter().enumerate() {
            let feed =
                Metadata { api: kind.everywhere(&collector.client), plural: kind.resource.plural.clone() };
            let sink =
                Watched { collector: collector.clone(), kind: KindId(index), listed: AtomicBool::new(false) };
            watches.spawn(follow(feed, "", sink, cancel.clone()));
        }
        // Before all kinds are listed, most owners would seem to be missing.
        let mut listed = collector.listed.subscribe();
        let all_listed = listed.wait_for(|listed| *listed >= collector.kinds.len());
        if cancel.run_until_cancelled(all_listed).await.is_none() {
            return;
        }
        let queue = collector.queue.clone();
        work("garbage", queue, WORKERS, cancel, |uid| reconcile(&collector, uid)).await;
        watches.shutdown().await;
    })
}

struct Collector {
    client: Client,
    kinds: Vec<Kind>,
    /// Kinds by API version and kind, as owner references name them.
    by_name: HashMap<(String, String), KindId>,
    graph: Mutex<Graph>,
    queue: Queue<Uid>,
    /// How many kinds have been listed.
    listed: watch::Sender<usize>,
}

impl Collector {
    fn new(client: Client, kinds: Vec<Kind>) -> Self {
        let name = |resource: &ApiResource| (resource.api_version.clone(), resource.kind.clone());
        let by_name =
            kinds.iter().enumerate().map(|(index, kind)| (name(&kind.resource), KindId(index))).collect();
        Self {
            client,
            kinds,
            by_name,
            graph: Mutex::default(),
            queue: Queue::new(),
            listed: watch::Sender::new(0),
        }
    }

    /// Held for one event or one look, never across a request.
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().expect("nothing panics while it holds the graph")
    }

    fn api(&self, kind: KindId, namespace: &str) -> Api<DynamicObject> {
        self.kinds[kind.0].api(&self.client, namespace)
    }

    fn failed(&self, action: &'static str, kind: KindId, key: &Key, source: kube::Error) -> Error {
        let kind = self.kinds[kind.0].resource.kind.clone();
        Error::Api { action, kind, key: key.clone(), source: Box::new(source) }
    }
}

/// Feeds the graph from the watch of one kind.
struct Watched {
    collector: Arc<Collector>,
    kind: KindId,
    listed: AtomicBool,
}

impl Watched {
    fn look_at(&self, uids: Vec<Uid>) {
        uids.into_iter().for_each(|uid| self.collector.queue.add(uid));
    }
}

impl Sink<PartialObjectMeta<DynamicObject>> for Watched {
    fn replace(&self, objects: Vec<PartialObjectMeta<DynamicObject>>, _: Revision) {
        let metas = objects.into_iter().map(|object| object.metadata).collect();
        let look = self.collector.graph().replace(self.kind, metas);
        self.look_at(look);
        if !self.listed.swap(true, Ordering::Relaxed) {
            self.collector.listed.send_modify(|listed| *listed += 1);
        }
    }

    fn apply(&self, object: PartialObjectMeta<DynamicObject>) {
        let look = self.collector.graph().put(self.kind, &object.metadata);
        self.look_at(look);
    }

    fn delete(&self, object: PartialObjectMeta<DynamicObject>) {
        let look = self.collector.graph().remove(&uid_of(&object));
        self.look_at(look);
    }

    fn progress(&self, _: Revision) {}
}

async fn reconcile(collector: &Collector, uid: Uid) -> Result<Outcome> {
    let looked = {
        let graph = collector.graph();
        graph.look(&uid).filter(|_| !graph.is_settled(&uid))
    };
    let Some(looked) = looked else { return Ok(Outcome::Done) };
    if looked.deleting && !looked.foreground && !looked.orphan {
        return Ok(Outcome::Done);
    }
    let Some(live) = live(collector, looked.kind, &looked.key).await?.filter(|live| uid_of(live) == uid)
    else {
        // The watch is late: it is gone.
        let look = collector.graph().remove(&uid);
        look.into_iter().for_each(|uid| collector.queue.add(uid));
        return Ok(Outcome::Done);
    };
    if looked.deleting {
        finish_deletion(collector, &looked, &live).await?;
        return Ok(Outcome::Done);
    }
    let mut owners = Vec::new();
    for reference in live.metadata.owner_references.iter().flatten() {
        owners.push((Uid(reference.uid.clone()), owner_state(collector, &looked, reference).await?));
    }
    match judge::judge(&owners, &looked) {
        Verdict::Keep => {}
        Verdict::DropReferences(gone) => drop_references(collector, &looked, &live, &gone).await?,
        Verdict::Delete(propagation) => delete(collector, &looked, &live, propagation).await?,
    }
    Ok(Outcome::Done)
}

async fn live(
    collector: &Collector,
    kind: KindId,
    key: &Key,
) -> Result<Option<PartialObjectMeta<DynamicObject>>> {
    let api = collector.api(kind, &key.namespace);
    api.get_metadata_opt(&key.name).await.map_err(|source| collector.failed("get", kind, key, source))
}

/// Whether the owner is there. The graph is believed when it says so, not when it does not know it.
async fn owner_state(collector: &Collector, looked: &Looked, reference: &OwnerReference) -> Result<Owner> {
    let uid = Uid(reference.uid.clone());
    {
        let graph = collector.graph();
        if let Some(state) = graph.owner(&uid) {
            return Ok(state);
        }
        if graph.was_removed(&uid) {
            return Ok(Owner::Gone);
        }
    }
    let name = (reference.api_version.clone(), reference.kind.clone());
    let Some(kind) = collector.by_name.get(&name).copied() else {
        // A kind that is not served: as upstream, nothing is deleted for an owner nobody can look up.
        return Ok(Owner::Unknown);
    };
    let namespaced = collector.kinds[kind.0].namespaced;
    let namespace = if namespaced { looked.key.namespace.clone() } else { String::new() };
    let found = live(collector, kind, &Key::new(namespace, reference.name.clone())).await?;
    Ok(match found.filter(|found| uid_of(found) == uid) {
        None => Owner::Gone,
        Some(owner) if waits_for_dependents(&owner.metadata) => Owner::Waiting,
        Some(_) => Owner::There,
    })
}

fn waits_for_dependents(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
        && meta.finalizers.iter().flatten().any(|finalizer| finalizer == FOREGROUND)
}

/// An object that is being deleted and waits for us: its dependents are deleted or released, then it is let go.
async fn finish_deletion(
    collector: &Collector,
    looked: &Looked,
    live: &PartialObjectMeta<DynamicObject>,
) -> Result<()> {
    let uid = uid_of(live);
    if looked.orphan {
        let dependents = collector.graph().dependents(&uid);
        for (kind, key) in dependents {
            let Some(dependent) = self::live(collector, kind, &key).await? else { continue };
            let dependent_looked = Looked { kind, key, ..looked.clone() };
            drop_references(collector, &dependent_looked, &dependent, std::slice::from_ref(&uid)).await?;
        }
        return remove_finalizer(collector, looked, live, ORPHAN).await;
    }
    let blocking = collector.graph().blocking(&uid);
    if blocking.is_empty() {
        return remove_finalizer(collector, looked, live, FOREGROUND).await;
    }
    // Their removal leads back here.
    blocking.into_iter().for_each(|dependent| collector.queue.add(dependent));
    Ok(())
}

async fn delete(
    collector: &Collector,
    looked: &Looked,
    live: &PartialObjectMeta<DynamicObject>,
    propagation: PropagationPolicy,
) -> Result<()> {
    let parameters = DeleteParams {
        propagation_policy: Some(propagation),
        preconditions: Some(Preconditions { uid: live.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    let api = collector.api(looked.kind, &looked.key.namespace);
    match api.delete(&looked.key.name, &parameters).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(source) => Err(collector.failed("delete", looked.kind, &looked.key, source)),
    }
}

async fn drop_references(
    collector: &Collector,
    looked: &Looked,
    live: &PartialObjectMeta<DynamicObject>,
    gone: &[Uid],
) -> Result<()> {
    let references = live.metadata.owner_references.clone().unwrap_or_default();
    let left: Vec<_> =
        references.iter().filter(|reference| !gone.iter().any(|uid| uid.0 == reference.uid)).collect();
    if left.len() == references.len() {
        return Ok(());
    }
    patch(collector, looked, live, json!({ "ownerReferences": left })).await
}

async fn remove_finalizer(
    collector: &Collector,
    looked: &Looked,
    live: &PartialObjectMeta<DynamicObject>,
    finalizer: &str,
) -> Result<()> {
    let finalizers = live.metadata.finalizers.clone().unwrap_or_default();
    let left: Vec<_> = finalizers.iter().filter(|other| *other != finalizer).collect();
    if left.len() == finalizers.len() {
        return Ok(());
    }
    patch(collector, looked, live, json!({ "finalizers": left })).await
}

/// Patches metadata on the condition that the object has not changed since it was read.
async fn patch(
    collector: &Collector,
    looked: &Looked,
    live: &PartialObjectMeta<DynamicObject>,
    mut change: serde_json::Value,
) -> Result<()> {
    change["resourceVersion"] = json!(live.metadata.resource_version);
    change["uid"] = json!(live.metadata.uid);
    let api = collector.api(looked.kind, &looked.key.namespace);
    let patch = Patch::Merge(json!({ "metadata": change }));
    match api.patch_metadata(&looked.key.name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(source) => Err(collector.failed("patch", looked.kind, &looked.key, source)),
    }
}
