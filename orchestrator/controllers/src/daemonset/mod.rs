//! DaemonSet: one pod on each node that fits.
//!
//! ```text
//!   settle ownership ─▶ history (which revision is current) ─▶ plan ─▶ create | delete pods ─▶ status
//! ```
//! Its pods name their node in their affinity and go through the scheduler like all others.

mod fit;
mod history;
mod plan;

use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::DeleteParams;
use pith_informer::{Change, Key, Outcome, Queue, Recorder, Store, work};
use tokio_util::sync::CancellationToken;

use self::plan::Observed;
use crate::batch::in_batches;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::owner;

/// DaemonSets in hand at once.
const WORKERS: usize = 4;

pub(crate) fn controller(cluster: &Arc<Cluster>, cancel: CancellationToken) -> BoxFuture<'static, ()> {
    let queue = Queue::new();
    let to = queue.clone();
    cluster.daemon_sets.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let to = queue.clone();
    cluster.revisions.on_change(move |change| {
        for state in change.states() {
            owner::controller_key::<DaemonSet>(&state.metadata).into_iter().for_each(|key| to.add(key));
        }
    });
    let (sets, to) = (cluster.daemon_sets.clone(), queue.clone());
    cluster.pods.on_change(move |change| pod_changed(change, &sets, &to));
    let (sets, to) = (cluster.daemon_sets.clone(), queue.clone());
    cluster.nodes.on_change(move |change| {
        if node_matters(change) {
            sets.keys().into_iter().for_each(|key| to.add(key));
        }
    });
    let cluster = cluster.clone();
    Box::pin(async move {
        let recorder = cluster.events.named("daemonset-controller");
        tokio::join!(
            cluster.daemon_sets.synced(),
            cluster.revisions.synced(),
            cluster.pods.synced(),
            cluster.nodes.synced(),
        );
        work("daemonset", queue, WORKERS, cancel, |key| reconcile(&cluster, &recorder, key)).await;
    })
}

fn pod_changed(change: &Change<Pod>, sets: &Store<DaemonSet>, queue: &Queue<Key>) {
    for state in change.states() {
        owner::controller_key::<DaemonSet>(&state.metadata).into_iter().for_each(|key| queue.add(key));
    }
    let Some(pod) = &change.new else { return };
    if owner::controller_of(&pod.metadata).is_some() {
        return;
    }
    for set in sets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
        let selector = owner::selector_of(set.as_ref(), &set.spec.selector);
        if selector.is_ok_and(|selector| owner::matches(&selector, &pod.metadata)) {
            queue.add(Key::of(set.as_ref()));
        }
    }
}

/// Whether something changed that decides which sets run on the node: not its heartbeats.
fn node_matters(change: &Change<Node>) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return true };
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
}

async fn reconcile(cluster: &Cluster, recorder: &Recorder, key: Key) -> Result<Outcome> {
    let Some(set) = cluster.daemon_sets.get(&key) else { return Ok(Outcome::Done) };
    let selector = owner::selector_of(set.as_ref(), &set.spec.selector)?;
    let pods = owner::settle(cluster, set.as_ref(), &selector, &cluster.pods).await?;
    let revisions = owner::settle(cluster, set.as_ref(), &selector, &cluster.revisions).await?;
    let mut failure = None;
    if set.metadata.deletion_timestamp.is_none() {
        let hash = write_history(cluster, &set, &revisions).await?;
        let nodes = cluster.nodes.all();
        let observed = Observed { set: &set, pods: &pods, nodes: &nodes, hash: &hash, now: Timestamp::now() };
        let plan = plan::plan(&observed);
        for (pod, node) in &plan.failed {
            let key = Key::of(pod.as_ref());
            let message = format!("Found failed daemon pod {key} on node {node}, will try to kill it");
            recorder.warning(set.as_ref(), "FailedDaemonPod", message);
        }
        failure = delete(cluster, recorder, &set, plan.delete).await;
        failure = failure.or(create(cluster, recorder, &set, &hash, plan.create).await);
        if failure.is_none() {
            for outdated in history::outdated(&set, &revisions, &pods, &hash) {
                cluster
                    .delete::<ControllerRevision>(&cluster.revisions, &outdated, DeleteParams::default())
                    .await?;
            }
        }
    }
    let outcome = write_status(cluster, &key).await?;
    failure.filter(|error| !error.is_namespace_terminating()).map_or(Ok(outcome), Err)
}

/// Makes sure that the current template has the latest revision. Answers with its hash.
async fn write_history(
    cluster: &Cluster,
    set: &DaemonSet,
    revisions: &[Arc<ControllerRevision>],
) -> Result<String> {
    match history::plan(set, revisions) {
        history::Action::Nothing { hash } => Ok(hash),
        history::Action::Renew { hash, revision } => {
            cluster.replace(&cluster.revisions, &revision).await?;
            Ok(hash)
        }
        history::Action::Create { hash, revision } => {
            match cluster.create(&cluster.revisions, &revision).await {
                Err(error) if error.is_already_exists() => {
                    // Of this name with other content: the next attempt takes another name.
                    let mut set = set.clone();
                    let mut status = set.status.clone().unwrap_or_default();
                    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                    set.status = Some(status);
                    cluster.replace_status(&cluster.daemon_sets, &set).await?;
                    Err(error)
                }
                other => other.map(|_| hash),
            }
        }
    }
}

async fn write_status(cluster: &Cluster, key: &Key) -> Result<Outcome> {
    let Some(set) = cluster.daemon_sets.get(key) else { return Ok(Outcome::Done) };
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let pods = cluster.pods.find(&owner::controlled_by(uid));
    let (nodes, revisions) = (cluster.nodes.all(), cluster.revisions.find(&owner::controlled_by(uid)));
    let hash = history::current_hash(&set, &revisions);
    let observed = Observed { set: &set, pods: &pods, nodes: &nodes, hash: &hash, now: Timestamp::now() };
    let (status, again) = plan::status(&observed);
    if set.status.as_ref() != Some(&status) {
        let mut set = DaemonSet::clone(&set);
        set.status = Some(status);
        cluster.report_status(&cluster.daemon_sets, &set).await?;
    }
    Ok(again.map_or(Outcome::Done, Outcome::After))
}

async fn create(
    cluster: &Cluster,
    recorder: &Recorder,
    set: &DaemonSet,
    hash: &str,
    nodes: Vec<String>,
) -> Option<Error> {
    let result = in_batches(nodes, |node: String| async move {
        let created = cluster.create(&cluster.pods, &fit::pod_for(set, &node, hash)).await?;
        let name = created.metadata.name.unwrap_or_default();
        recorder.normal(set, "SuccessfulCreate", format!("Created pod: {name}"));
        Ok(())
    })
    .await;
    if let Some(error) = result.error.as_ref().filter(|error| !error.is_namespace_terminating()) {
        recorder.warning(set, "FailedCreate", format!("Error creating: {}", error.said()));
    }
    result.error
}

async fn delete(
    cluster: &Cluster,
    recorder: &Recorder,
    set: &DaemonSet,
    pods: Vec<Arc<Pod>>,
) -> Option<Error> {
    let result = in_batches(pods, |pod: Arc<Pod>| async move {
        cluster.delete::<Pod>(&cluster.pods, &pod, DeleteParams::background()).await?;
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        recorder.normal(set, "SuccessfulDelete", format!("Deleted pod: {name}"));
        Ok(())
    })
    .await;
    if let Some(error) = &result.error {
        recorder.warning(set, "FailedDelete", format!("Error deleting: {}", error.said()));
    }
    result.error
}
