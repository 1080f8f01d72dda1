//! Taint eviction: pods leave a node whose NoExecute taints they do not tolerate, or no longer.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};
use kube::api::DeleteParams;
use pith_api::placement;
use pith_informer::{Key, Outcome, Queue, Recorder, work};
use tokio_util::sync::CancellationToken;

use super::health::{NO_EXECUTE, NOT_READY, UNREACHABLE};
use crate::cluster::{Cluster, node_term};
use crate::error::Result;
use crate::pod;

/// Pods in hand at once.
const WORKERS: usize = 16;

/// `limit` bounds how long pods stay on a node that does not answer, whatever they tolerate.
pub(crate) fn controller(
    cluster: &Arc<Cluster>,
    limit: Option<Duration>,
    cancel: CancellationToken,
) -> BoxFuture<'static, ()> {
    let queue = Queue::new();
    let (to, pods) = (queue.clone(), cluster.pods.clone());
    cluster.nodes.on_change(move |change| {
        let taints = |node: &Option<Arc<_>>| node.as_ref().map(|node| no_execute(node));
        let (old, new) = (taints(&change.old).unwrap_or_default(), taints(&change.new).unwrap_or_default());
        if old != new {
            let name = change.latest().metadata.name.as_deref().unwrap_or_default();
            pods.find(&node_term(name)).iter().for_each(|pod| to.add(Key::of(pod.as_ref())));
        }
    });
    let (to, nodes) = (queue.clone(), cluster.nodes.clone());
    cluster.pods.on_change(move |change| {
        let Some(pod) = &change.new else { return };
        let moved = change.old.as_ref().is_none_or(|old| pod::node(old) != pod::node(pod));
        let node = pod::node(pod).filter(|_| moved).and_then(|name| nodes.get(&Key::cluster(name)));
        if node.is_some_and(|node| !no_execute(&node).is_empty()) {
            to.add(Key::of(pod.as_ref()));
        }
    });
    let cluster = cluster.clone();
    Box::pin(async move {
        let recorder = cluster.events.named("taint-eviction-controller");
        tokio::join!(cluster.nodes.synced(), cluster.pods.synced());
        work("taint-eviction", queue, WORKERS, cancel, |key| reconcile(&cluster, &recorder, limit, key))
            .await;
    })
}

fn no_execute(node: &k8s_openapi::api::core::v1::Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    taints.into_iter().filter(|taint| taint.effect == NO_EXECUTE).collect()
}

async fn reconcile(
    cluster: &Cluster,
    recorder: &Recorder,
    limit: Option<Duration>,
    key: Key,
) -> Result<Outcome> {
    let Some(pod) = cluster.pods.get(&key).filter(|pod| pod::is_active(pod)) else {
        return Ok(Outcome::Done);
    };
    let Some(node) = pod::node(&pod).and_then(|name| cluster.nodes.get(&Key::cluster(name))) else {
        return Ok(Outcome::Done);
    };
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    match plan(&no_execute(&node), tolerations, limit, Timestamp::now()) {
        Stay::ForEver => Ok(Outcome::Done),
        Stay::For(time) if !time.is_zero() => Ok(Outcome::After(time)),
        Stay::For(_) => {
            recorder.normal(pod.as_ref(), "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
            cluster.delete::<Pod>(&cluster.pods, &pod, DeleteParams::default()).await?;
            Ok(Outcome::Done)
        }
    }
}

/// How long a pod may stay.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    ForEver,
    For(Duration),
}

fn plan(taints: &[Taint], tolerations: &[Toleration], limit: Option<Duration>, now: Timestamp) -> Stay {
    let mut stay: Option<Duration> = None;
    for taint in taints {
        let tolerating = tolerations.iter().filter(|toleration| placement::tolerates(toleration, taint));
        let times: Vec<Option<i64>> = tolerating.map(|toleration| toleration.toleration_seconds).collect();
        if times.is_empty() {
            return Stay::For(Duration::ZERO);
        }
        // Of several tolerations the shortest counts; one without a time tolerates for ever.
        let shortest = times.into_iter().flatten().min();
        let tolerated = shortest.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
        let silent = [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
        // A pod that tolerates it for ever (a DaemonSet's) stays in any case.
        let bounded =
            tolerated.map(|time| if silent { limit.map_or(time, |limit| limit.min(time)) } else { time });
        let Some(time) = bounded else { continue };
        let since = taint.time_added.as_ref().map_or(Duration::ZERO, |added| {
            Duration::try_from(now.duration_since(added.0)).unwrap_or(Duration::ZERO)
        });
        let left = time.saturating_sub(since);
        stay = Some(stay.map_or(left, |least| least.min(left)));
    }
    stay.map_or(Stay::ForEver, Stay::For)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn stay_table() {
        let parse = |value: Value| serde_json::from_value::<Vec<Toleration>>(value).expect("valid");
        let taints: Vec<Taint> = serde_json::from_value(json!([
            { "key": UNREACHABLE, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z" }]))
        .expect("valid");
        let now: Timestamp = "2026-01-01T00:01:40Z".parse().expect("a time");
        let seconds = |seconds: u64| Stay::For(Duration::from_secs(seconds));
        let tolerate = |time: Value| json!([{ "key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": time }]);
        let cases = [
            ("no toleration", json!([]), None, seconds(0)),
            ("the default", tolerate(json!(300)), None, seconds(200)),
            ("over", tolerate(json!(60)), None, seconds(0)),
            ("for ever", tolerate(json!(null)), None, Stay::ForEver),
            ("for ever, limit or not", tolerate(json!(null)), Some(5), Stay::ForEver),
            ("limited", tolerate(json!(300)), Some(150), seconds(50)),
            ("everything tolerated", json!([{ "operator": "Exists" }]), None, Stay::ForEver),
        ];
        for (name, tolerations, limit, expect) in cases {
            let got = plan(&taints, &parse(tolerations), limit.map(Duration::from_secs), now);
            assert_eq!(got, expect, "{name}");
        }
        assert_eq!(plan(&[], &[], None, now), Stay::ForEver);
    }
}
