//! Node lifecycle: notices nodes that have gone silent, taints them, and moves their pods elsewhere.
//!
//! ```text
//!   lease renewed ─▶ heard of now
//!   silent for the grace period ─▶ Ready Unknown ─▶ taints ─▶ pods not ready ─▶ evicted when no longer tolerated
//! ```
//! - [`health`]: what a node's silence makes of its conditions, and which taints follow from these.
//! - [`eviction`]: which pods a NoExecute taint drives away, and when.
//! - [`orphans`]: pods whose node is gone for good, removed without waiting for it.

pub(crate) mod eviction;
pub(crate) mod health;
pub(crate) mod orphans;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::Patch;
use pith_informer::{Key, Outcome, Queue, Recorder, work};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, node_term};
use crate::error::Result;
use crate::pod;

/// Nodes in hand at once.
const WORKERS: usize = 8;
/// Requests under way at once for the pods of one node.
const REQUESTS: usize = 16;

/// When each node was last heard of, by this process's own clock: the nodes' clocks may differ.
#[derive(Default)]
struct Heard(Mutex<HashMap<String, (Option<MicroTime>, Instant)>>);

impl Heard {
    /// Notes the lease's renewal; one that is not new says nothing.
    fn note(&self, node: &str, renewed: Option<MicroTime>) {
        let mut heard = self.0.lock().expect("nothing panics under this lock");
        match heard.get(node) {
            Some((known, _)) if *known == renewed => {}
            _ => drop(heard.insert(node.to_owned(), (renewed, Instant::now()))),
        }
    }

    /// For how long the node has been silent; a node first asked about counts as heard of now.
    fn silence(&self, node: &str) -> Duration {
        let mut heard = self.0.lock().expect("nothing panics under this lock");
        heard.entry(node.to_owned()).or_insert_with(|| (None, Instant::now())).1.elapsed()
    }

    fn forget(&self, node: &str) {
        self.0.lock().expect("nothing panics under this lock").remove(node);
    }
}

/// `grace` is how long a node may be silent.
pub(crate) fn controller(
    cluster: &Arc<Cluster>,
    grace: Duration,
    cancel: CancellationToken,
) -> BoxFuture<'static, ()> {
    let queue = Queue::new();
    let heard = Arc::new(Heard::default());
    let (to, heard_of) = (queue.clone(), heard.clone());
    cluster.nodes.on_change(move |change| {
        let key = Key::of(change.latest().as_ref());
        if change.new.is_none() {
            heard_of.forget(&key.name);
        }
        to.add(key);
    });
    let (to, heard_of, nodes) = (queue.clone(), heard.clone(), cluster.nodes.clone());
    cluster.leases.on_change(move |change| {
        let Some(lease) = &change.new else { return };
        let name = lease.metadata.name.clone().unwrap_or_default();
        heard_of.note(&name, renewed(lease));
        // Only the return of a silent node needs a look now; the timer of the others just runs again.
        if nodes.get(&Key::cluster(name.clone())).is_some_and(|node| health::is_unknown(&node)) {
            to.add(Key::cluster(name));
        }
    });
    let cluster = cluster.clone();
    Box::pin(async move {
        let recorder = cluster.events.named("node-controller");
        tokio::join!(cluster.nodes.synced(), cluster.leases.synced(), cluster.pods.synced());
        let reconcile = |key| reconcile(&cluster, &recorder, &heard, grace, key);
        work("node", queue, WORKERS, cancel, reconcile).await;
    })
}

fn renewed(lease: &Lease) -> Option<MicroTime> {
    lease.spec.as_ref().and_then(|spec| spec.renew_time.clone())
}

async fn reconcile(
    cluster: &Cluster,
    recorder: &Recorder,
    heard: &Heard,
    grace: Duration,
    key: Key,
) -> Result<Outcome> {
    let Some(node) = cluster.nodes.get(&key) else { return Ok(Outcome::Done) };
    let silence = heard.silence(&key.name);
    let mut node = Node::clone(&node);
    let now = Timestamp::now();
    if silence >= grace
        && let Some(status) = health::silent_status(&node, now)
    {
        node.status = Some(status);
        node = cluster.replace_status(&cluster.nodes, &node).await?;
        recorder.normal(&node, "NodeNotReady", format!("Node {} status is now: NodeNotReady", key.name));
    }
    let all_down = cluster.nodes.all().iter().all(|node| !health::is_ready(node));
    if let Some(taints) = health::taints(&node, all_down, now) {
        let patch = json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "spec": { "taints": taints },
        });
        node = cluster.patch(&cluster.nodes, &node, &Patch::Merge(patch)).await?;
    }
    if !health::is_ready(&node) {
        let pods = cluster.pods.find(&node_term(&key.name));
        let ready: Vec<Arc<Pod>> = pods.into_iter().filter(|pod| pod::is_ready(pod)).collect();
        let writes =
            stream::iter(ready).map(|pod| async move { mark_unready(cluster, recorder, &pod).await });
        let results: Vec<Result<()>> = writes.buffer_unordered(REQUESTS).collect().await;
        results.into_iter().collect::<Result<()>>()?;
    }
    if silence >= grace {
        return Ok(Outcome::Done);
    }
    Ok(Outcome::After(grace - silence))
}

/// A pod on a node that is not ready serves nobody: its Ready condition takes it out of its Services.
async fn mark_unready(cluster: &Cluster, recorder: &Recorder, pod: &Pod) -> Result<()> {
    let patch = json!({
        "metadata": { "uid": pod.metadata.uid },
        "status": { "conditions": [{
            "type": "Ready",
            "status": "False",
            "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()),
        }] },
    });
    match cluster.patch_status(&cluster.pods, pod, &Patch::Strategic(patch)).await {
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            recorder.warning(pod, "NodeNotReady", "Node is not ready");
            Ok(())
        }
    }
}
