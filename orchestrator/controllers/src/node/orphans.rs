//! Pods that nobody will ever report on again: their node is gone, or marked as out of service. They are
//! removed at once, without waiting for a kubelet. Also removes the oldest ended pods beyond a limit.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch};
use pith_informer::{Key, Outcome, Queue, Recorder, Store, work};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, node_term};
use crate::error::{Error, Result};
use crate::pod;

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Ended pods that are kept (upstream's terminated-pod-gc-threshold).
const ENDED_KEPT: usize = 12_500;
/// Pods in hand at once.
const WORKERS: usize = 16;

/// `wait` is how long a node must be absent: one that registers anew keeps its pods.
pub(crate) fn controller(
    cluster: &Arc<Cluster>,
    wait: Duration,
    cancel: CancellationToken,
) -> BoxFuture<'static, ()> {
    let queue = Queue::new();
    let (to, pods) = (queue.clone(), cluster.pods.clone());
    cluster.nodes.on_change(move |change| {
        let node = change.latest();
        let on_node = || pods.find(&node_term(node.metadata.name.as_deref().unwrap_or_default()));
        if change.new.is_none() {
            on_node().iter().for_each(|pod| to.add_after(Key::of(pod.as_ref()), wait));
        } else if is_out_of_service(node) {
            on_node().iter().for_each(|pod| to.add(Key::of(pod.as_ref())));
        }
    });
    let (to, nodes, pods) = (queue.clone(), cluster.nodes.clone(), cluster.pods.clone());
    cluster.pods.on_change(move |change| {
        let Some(pod) = &change.new else { return };
        let key = Key::of(pod.as_ref());
        match pod::node(pod).map(|name| nodes.get(&Key::cluster(name))) {
            Some(None) => to.add_after(key, wait),
            Some(Some(node)) if is_out_of_service(&node) => to.add(key),
            Some(Some(_)) | None => {}
        }
        let ended = pod::is_terminal(pod) && !change.old.as_ref().is_some_and(|old| pod::is_terminal(old));
        if ended && pods.len() > ENDED_KEPT {
            oldest_ended(&pods).into_iter().for_each(|key| to.add(key));
        }
    });
    let cluster = cluster.clone();
    Box::pin(async move {
        let recorder = cluster.events.named("pod-garbage-collector");
        tokio::join!(cluster.nodes.synced(), cluster.pods.synced());
        work("podgc", queue, WORKERS, cancel, |key| reconcile(&cluster, &recorder, key)).await;
    })
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// The ended pods beyond the limit, oldest first.
fn oldest_ended(pods: &Store<Pod>) -> Vec<Key> {
    let mut ended: Vec<Arc<Pod>> = pods.all().into_iter().filter(|pod| pod::is_terminal(pod)).collect();
    ended.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let excess = ended.len().saturating_sub(ENDED_KEPT);
    ended.iter().take(excess).map(|pod| Key::of(pod.as_ref())).collect()
}

/// Why a pod is removed.
#[derive(Debug, PartialEq, Eq)]
enum Reason {
    NodeGone,
    OutOfService,
    TooManyEnded,
}

fn reason(pod: &Pod, node: Option<&Node>, too_many_ended: bool) -> Option<Reason> {
    match (pod::node(pod), node) {
        (Some(_), None) => Some(Reason::NodeGone),
        (_, Some(node)) if is_out_of_service(node) && pod.metadata.deletion_timestamp.is_some() => {
            Some(Reason::OutOfService)
        }
        _ => (too_many_ended && pod::is_terminal(pod)).then_some(Reason::TooManyEnded),
    }
}

async fn reconcile(cluster: &Cluster, recorder: &Recorder, key: Key) -> Result<Outcome> {
    let Some(pod) = cluster.pods.get(&key) else { return Ok(Outcome::Done) };
    let node = pod::node(&pod).and_then(|name| cluster.nodes.get(&Key::cluster(name)));
    let too_many = cluster.pods.len() > ENDED_KEPT && oldest_ended(&cluster.pods).contains(&key);
    let Some(reason) = reason(&pod, node.as_deref(), too_many) else { return Ok(Outcome::Done) };
    // The cache may be behind: a node that has just registered is asked for itself.
    if reason == Reason::NodeGone && node_exists(cluster, &pod).await? {
        return Ok(Outcome::Done);
    }
    if !pod::is_terminal(&pod) {
        let message = "PodGC: node no longer exists";
        let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": {
            "phase": "Failed",
            "conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": message,
                "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now()),
            }],
        }});
        match cluster.patch_status(&cluster.pods, pod.as_ref(), &Patch::Strategic(patch)).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        recorder.normal(pod.as_ref(), "PodGC", message);
    }
    cluster.delete::<Pod>(&cluster.pods, &pod, DeleteParams::default().grace_period(0)).await?;
    Ok(Outcome::Done)
}

async fn node_exists(cluster: &Cluster, pod: &Pod) -> Result<bool> {
    let Some(name) = pod::node(pod) else { return Ok(true) };
    let found = cluster.api::<Node>("").get_metadata_opt(name).await;
    found.map(|node| node.is_some()).map_err(|source| Error::write("get the node of", pod, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_table() {
        let pod = |node: Option<&str>, phase: &str, deleted: bool| -> Pod {
            let deleted = deleted.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({ "metadata": { "name": "p", "deletionTimestamp": deleted },
                "spec": { "nodeName": node, "containers": [] }, "status": { "phase": phase } }))
            .expect("valid")
        };
        let node = |taint: Option<&str>| -> Node {
            let taints: Vec<_> =
                taint.map(|key| json!({ "key": key, "effect": "NoExecute" })).into_iter().collect();
            serde_json::from_value(json!({ "metadata": { "name": "n" }, "spec": { "taints": taints } }))
                .expect("valid")
        };
        let (healthy, out) = (node(None), node(Some(OUT_OF_SERVICE)));
        let cases = [
            ("well", pod(Some("n"), "Running", false), Some(&healthy), false, None),
            ("not scheduled yet", pod(None, "Pending", false), None, false, None),
            ("node gone", pod(Some("n"), "Running", false), None, false, Some(Reason::NodeGone)),
            (
                "out of service, going",
                pod(Some("n"), "Running", true),
                Some(&out),
                false,
                Some(Reason::OutOfService),
            ),
            ("out of service, not evicted yet", pod(Some("n"), "Running", false), Some(&out), false, None),
            (
                "ended, too many",
                pod(Some("n"), "Failed", false),
                Some(&healthy),
                true,
                Some(Reason::TooManyEnded),
            ),
            ("running, too many ended", pod(Some("n"), "Running", false), Some(&healthy), true, None),
        ];
        for (name, pod, node, too_many, expect) in cases {
            assert_eq!(reason(&pod, node, too_many), expect, "{name}");
        }
    }
}
