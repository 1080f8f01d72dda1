//! Deployment: rolls a pod template out through ReplicaSets, one for each template there has been.
//!
//! ```text
//!   settle ownership ─▶ plan ─▶ create | scale | delete ReplicaSets ─▶ annotate ─▶ status
//! ```
//! The plan is made from what is observed; each change it causes comes back as an event and leads to the
//! next pass, until nothing is left to do.

mod plan;
mod revision;
mod rolling;
mod scale;
mod sets;
mod status;

use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch};
use pith_informer::{Change, Key, Outcome, Queue, Recorder, Store, work};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::plan::{Action, Observed, Plan};
use self::sets::Sets;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::{owner, pod, template};

/// Deployments in hand at once.
const WORKERS: usize = 8;

pub(crate) fn controller(cluster: &Arc<Cluster>, cancel: CancellationToken) -> BoxFuture<'static, ()> {
    let queue = Queue::new();
    let to = queue.clone();
    cluster.deployments.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let (deployments, to) = (cluster.deployments.clone(), queue.clone());
    cluster.replica_sets.on_change(move |change| set_changed(change, &deployments, &to));
    let (sets, deployments, to) = (cluster.replica_sets.clone(), cluster.deployments.clone(), queue.clone());
    cluster.pods.on_change(move |change| pod_changed(change, &sets, &deployments, &to));
    let cluster = cluster.clone();
    Box::pin(async move {
        let recorder = cluster.events.named("deployment-controller");
        tokio::join!(cluster.deployments.synced(), cluster.replica_sets.synced(), cluster.pods.synced());
        work("deployment", queue, WORKERS, cancel, |key| reconcile(&cluster, &recorder, key)).await;
    })
}

/// Queues who controls the set, or who could adopt it.
fn set_changed(change: &Change<ReplicaSet>, deployments: &Store<Deployment>, queue: &Queue<Key>) {
    for state in change.states() {
        if let Some(key) = owner::controller_key::<Deployment>(&state.metadata) {
            queue.add(key);
        }
    }
    let Some(set) = &change.new else { return };
    if owner::controller_of(&set.metadata).is_some() {
        return;
    }
    for deployment in deployments.in_namespace(set.metadata.namespace.as_deref().unwrap_or_default()) {
        let selector = owner::selector_of(deployment.as_ref(), &deployment.spec.selector);
        if selector.is_ok_and(|selector| owner::matches(&selector, &set.metadata)) {
            queue.add(Key::of(deployment.as_ref()));
        }
    }
}

/// A Deployment with strategy Recreate waits for its old pods to end.
fn pod_changed(
    change: &Change<Pod>,
    sets: &Store<ReplicaSet>,
    deployments: &Store<Deployment>,
    queue: &Queue<Key>,
) {
    let ended = change.new.as_ref().is_none_or(|pod| pod::is_terminal(pod));
    let Some(pod) = change.old.as_ref().filter(|_| ended) else { return };
    let Some(set) = owner::controller_key::<ReplicaSet>(&pod.metadata).and_then(|key| sets.get(&key)) else {
        return;
    };
    let Some(key) = owner::controller_key::<Deployment>(&set.metadata) else { return };
    if deployments.get(&key).is_some_and(|deployment| plan::is_recreate(&deployment)) {
        queue.add(key);
    }
}

async fn reconcile(cluster: &Cluster, recorder: &Recorder, key: Key) -> Result<Outcome> {
    let Some(deployment) = cluster.deployments.get(&key) else { return Ok(Outcome::Done) };
    let selector = owner::selector_of(deployment.as_ref(), &deployment.spec.selector)?;
    let owned = owner::settle(cluster, deployment.as_ref(), &selector, &cluster.replica_sets).await?;
    let now = Timestamp::now();
    let sets = Sets::new(&deployment, owned);
    let old_pods_running = plan::is_recreate(&deployment) && old_pods_running(cluster, &sets);
    let plan = plan::plan(&Observed { deployment: &deployment, sets: &sets, old_pods_running, now });
    carry_out(cluster, recorder, Deployment::clone(&deployment), plan).await
}

/// Whether a pod of an earlier template has not ended yet.
fn old_pods_running(cluster: &Cluster, sets: &Sets) -> bool {
    sets.old.iter().any(|set| {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        cluster.pods.find(&owner::controlled_by(uid)).iter().any(|pod| !pod::is_terminal(pod))
    })
}

async fn carry_out(
    cluster: &Cluster,
    recorder: &Recorder,
    mut deployment: Deployment,
    plan: Plan,
) -> Result<Outcome> {
    for action in plan.actions {
        match action {
            Action::Create(set) => create(cluster, recorder, &mut deployment, set).await?,
            Action::Update { set, from } => update(cluster, recorder, &deployment, set, from).await?,
            Action::Delete(set) => {
                cluster.delete(&cluster.replica_sets, set.as_ref(), DeleteParams::background()).await?;
            }
            Action::Revision(revision) => {
                let patch = json!({ "metadata": { "annotations": { (revision::ANNOTATION): revision } } });
                deployment = cluster.patch(&cluster.deployments, &deployment, &Patch::Merge(patch)).await?;
            }
            Action::Status(status) => {
                deployment.status = Some(status);
                deployment = cluster.replace_status(&cluster.deployments, &deployment).await?;
            }
        }
    }
    Ok(plan.after.map_or(Outcome::Done, Outcome::After))
}

async fn create(
    cluster: &Cluster,
    recorder: &Recorder,
    deployment: &mut Deployment,
    set: ReplicaSet,
) -> Result<()> {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    match cluster.create(&cluster.replica_sets, &set).await {
        Ok(_) => {
            let replicas = sets::replicas(&set);
            if replicas > 0 {
                let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                recorder.normal(deployment, "ScalingReplicaSet", message);
            }
            Ok(())
        }
        Err(error) if error.is_already_exists() => resolve_collision(cluster, deployment, &set).await,
        Err(error) if error.is_namespace_terminating() => Ok(()),
        Err(error) => {
            let message = format!("Failed to create new replica set {name:?}: {}", error.said());
            let failed = status::creation_failed(deployment, message.clone(), Timestamp::now());
            if let Some(failed) = failed {
                deployment.status = Some(failed);
                *deployment = cluster.replace_status(&cluster.deployments, deployment).await?;
            }
            recorder.warning(deployment, "ReplicaSetCreateError", message);
            Err(error)
        }
    }
}

/// The name is taken. By our own set that the cache does not show yet, or by one without an owner, which is
/// adopted next: fine. By another template whose hash is the same: count the collision, which gives the next
/// attempt another name.
async fn resolve_collision(cluster: &Cluster, deployment: &mut Deployment, set: &ReplicaSet) -> Result<()> {
    let key = Key::of(set);
    let taken = cluster.api::<ReplicaSet>(&key.namespace).get(&key.name).await;
    let taken = taken.map_err(|source| Error::write("get", set, source))?;
    let owner = owner::controller_of(&taken.metadata).map(|owner| &owner.uid);
    let ours = owner.is_none() || owner == deployment.metadata.uid.as_ref();
    let template = |set: &ReplicaSet| set.spec.template.clone().unwrap_or_default();
    if ours && template::same(&template(&taken), &template(set)) {
        cluster.replica_sets.wrote(taken);
        return Ok(());
    }
    let mut status = deployment.status.clone().unwrap_or_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
    deployment.status = Some(status);
    *deployment = cluster.replace_status(&cluster.deployments, deployment).await?;
    Err(Error::object(set, "the name is taken by another template"))
}

async fn update(
    cluster: &Cluster,
    recorder: &Recorder,
    deployment: &Deployment,
    set: ReplicaSet,
    from: i32,
) -> Result<()> {
    let name = set.metadata.name.clone().unwrap_or_default();
    let to = sets::replicas(&set);
    cluster.replace(&cluster.replica_sets, &set).await?;
    if from != to {
        let direction = if from < to { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
        recorder.normal(deployment, "ScalingReplicaSet", message);
    }
    Ok(())
}
