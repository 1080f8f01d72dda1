//! ReplicaSet: keeps as many pods as asked, adopting orphans and releasing what no longer matches.
//!
//! Each pass: settle ownership → plan → create or delete in batches → write the status the caches then show.

mod plan;
mod rank;

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::core::Selector;
use pith_informer::{Change, Key, Outcome, Queue, Recorder, Store, work};
use tokio_util::sync::CancellationToken;

use self::plan::Action;
use crate::batch::in_batches;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::{owner, pod};

/// ReplicaSets in hand at once.
const WORKERS: usize = 8;

pub(crate) fn controller(cluster: &Arc<Cluster>, cancel: CancellationToken) -> BoxFuture<'static, ()> {
    let queue = Queue::new();
    let (sets, queue_sets) = (cluster.replica_sets.clone(), queue.clone());
    sets.on_change(move |change| queue_sets.add(Key::of(change.latest().as_ref())));
    let (sets, queue_pods) = (cluster.replica_sets.clone(), queue.clone());
    cluster.pods.on_change(move |change| pod_changed(change, &sets, &queue_pods));
    let cluster = cluster.clone();
    Box::pin(async move {
        let recorder = cluster.events.named("replicaset-controller");
        tokio::join!(cluster.replica_sets.synced(), cluster.pods.synced());
        work("replicaset", queue, WORKERS, cancel, |key| reconcile(&cluster, &recorder, key)).await;
    })
}

/// Queues the sets that a pod's change may concern: who controlled it, who does, and who could adopt it.
fn pod_changed(change: &Change<Pod>, sets: &Store<ReplicaSet>, queue: &Queue<Key>) {
    for state in change.states() {
        if let Some(key) = owner::controller_key::<ReplicaSet>(&state.metadata) {
            queue.add(key);
        }
    }
    let Some(pod) = &change.new else { return };
    if owner::controller_of(&pod.metadata).is_some() {
        return;
    }
    for set in sets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
        if selector(&set).is_ok_and(|selector| owner::matches(&selector, &pod.metadata)) {
            queue.add(Key::of(set.as_ref()));
        }
    }
}

fn selector(set: &ReplicaSet) -> Result<Selector> {
    owner::selector_of(set, &set.spec.selector)
}

async fn reconcile(cluster: &Cluster, recorder: &Recorder, key: Key) -> Result<Outcome> {
    let Some(set) = cluster.replica_sets.get(&key) else { return Ok(Outcome::Done) };
    let selector = selector(&set)?;
    let pods = owner::settle(cluster, set.as_ref(), &selector, &cluster.pods).await?;
    let mut failure = None;
    if set.metadata.deletion_timestamp.is_none() {
        failure = match plan::replicas(&set, &pods) {
            Action::Nothing => None,
            Action::Create(count) => {
                create(cluster, recorder, &set, count).await.map(|error| ("FailedCreate", error))
            }
            Action::Delete(count) => {
                let active = pods.into_iter().filter(|pod| pod::is_active(pod)).collect();
                let related = related_pods_by_node(cluster, &set);
                let mut pods = rank::first_to_go(active, &related, Timestamp::now());
                pods.truncate(count);
                delete(cluster, recorder, &set, pods).await.map(|error| ("FailedDelete", error))
            }
        };
    }
    let outcome = write_status(cluster, &key, &selector, &failure).await?;
    match failure {
        Some((_, error)) if !error.is_namespace_terminating() => Err(error),
        _ => Ok(outcome),
    }
}

/// Writes the status that the caches show now, after what this pass has done.
async fn write_status(
    cluster: &Cluster,
    key: &Key,
    selector: &Selector,
    failure: &Option<(&'static str, Error)>,
) -> Result<Outcome> {
    let Some(set) = cluster.replica_sets.get(key) else { return Ok(Outcome::Done) };
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let mut pods = cluster.pods.find(&owner::controlled_by(uid));
    pods.retain(|pod| owner::matches(selector, &pod.metadata));
    let now = Timestamp::now();
    let failure = failure.as_ref().map(|(reason, error)| (*reason, error.said()));
    let (status, again) = plan::status(&set, &pods, failure, now);
    if set.status.as_ref() != Some(&status) {
        let mut set = ReplicaSet::clone(&set);
        set.status = Some(status);
        cluster.report_status(&cluster.replica_sets, &set).await?;
    }
    Ok(again.map_or(Outcome::Done, Outcome::After))
}

async fn create(cluster: &Cluster, recorder: &Recorder, set: &ReplicaSet, count: usize) -> Option<Error> {
    let template = set.spec.template.clone().unwrap_or_default();
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let pod = pod::from_template(&template, namespace, owner::reference_to(set));
    let result = in_batches(vec![(); count], |()| async {
        let created = cluster.create(&cluster.pods, &pod).await?;
        let name = created.metadata.name.unwrap_or_default();
        recorder.normal(set, "SuccessfulCreate", format!("Created pod: {name}"));
        Ok(())
    })
    .await;
    if let Some(error) = &result.error
        && !error.is_namespace_terminating()
    {
        recorder.warning(set, "FailedCreate", format!("Error creating: {}", error.said()));
    }
    result.error
}

async fn delete(
    cluster: &Cluster,
    recorder: &Recorder,
    set: &ReplicaSet,
    pods: Vec<Arc<Pod>>,
) -> Option<Error> {
    let result = in_batches(pods, |pod: Arc<Pod>| async move {
        cluster.delete(&cluster.pods, pod.as_ref(), DeleteParams::background()).await?;
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

/// How many active pods of this set and its siblings (the sets of the same Deployment) each node has.
fn related_pods_by_node(cluster: &Cluster, set: &ReplicaSet) -> HashMap<String, usize> {
    let siblings = match owner::controller_of(&set.metadata) {
        Some(controller) => cluster.replica_sets.find(&owner::controlled_by(&controller.uid)),
        None => vec![Arc::new(set.clone())],
    };
    let mut counts = HashMap::new();
    for sibling in siblings {
        let uid = sibling.metadata.uid.as_deref().unwrap_or_default();
        for pod in cluster.pods.find(&owner::controlled_by(uid)) {
            if let (true, Some(node)) = (pod::is_active(&pod), pod::node(&pod)) {
                *counts.entry(node.to_owned()).or_default() += 1;
            }
        }
    }
    counts
}
