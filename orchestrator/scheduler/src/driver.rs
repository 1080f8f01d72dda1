//! Feeds the [`Desk`] from watches and carries out its steps: bindings, conditions, events.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use pith_informer::{EventType, Key, Recorder, Revision, Sink, uid_of};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::desk::{Desk, GATED, Listed, PodRef, Step};

/// Requests to the API under way at once.
const REQUESTS: usize = 64;

/// The desk as its watches and the loop share it. Each holds the lock for one event or one decision.
#[derive(Clone, Default)]
pub(crate) struct Shared {
    desk: Arc<Mutex<Desk>>,
    changed: Arc<Notify>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().expect("nothing panics while it holds the desk")
    }

    fn change(&self, change: impl FnOnce(&mut Desk, Timestamp)) {
        change(&mut self.lock(), Timestamp::now());
        self.changed.notify_one();
    }
}

impl Sink<Pod> for Shared {
    fn replace(&self, pods: Vec<Pod>, _: Revision) {
        self.change(|desk, now| desk.all_pods(&pods, now));
    }

    fn apply(&self, pod: Pod) {
        self.change(|desk, now| desk.pod(&pod, now));
    }

    fn delete(&self, pod: Pod) {
        self.change(|desk, now| desk.pod_gone(&uid_of(&pod), now));
    }

    fn progress(&self, _: Revision) {}
}

impl Sink<Node> for Shared {
    fn replace(&self, nodes: Vec<Node>, _: Revision) {
        self.change(|desk, now| desk.all_nodes(&nodes, now));
    }

    fn apply(&self, node: Node) {
        self.change(|desk, now| desk.node(&node, now));
    }

    fn delete(&self, node: Node) {
        self.change(|desk, _| desk.node_gone(&Key::of(&node).name));
    }

    fn progress(&self, _: Revision) {}
}

impl Sink<Namespace> for Shared {
    fn replace(&self, namespaces: Vec<Namespace>, _: Revision) {
        self.change(|desk, _| {
            namespaces.iter().for_each(|namespace| desk.namespace(namespace));
            desk.listed(Listed::Namespaces);
        });
    }

    fn apply(&self, namespace: Namespace) {
        self.change(|desk, _| desk.namespace(&namespace));
    }

    fn delete(&self, namespace: Namespace) {
        self.change(|desk, _| desk.namespace_gone(&Key::of(&namespace).name));
    }

    fn progress(&self, _: Revision) {}
}

/// Decides and carries out, for ever.
pub(crate) async fn schedule(shared: Shared, client: Client, recorder: Recorder) {
    let mut requests = JoinSet::new();
    loop {
        while requests.try_join_next().is_some() {}
        if requests.len() >= REQUESTS {
            requests.join_next().await;
            continue;
        }
        let step = shared.lock().next(Timestamp::now());
        let (shared_, client, recorder) = (shared.clone(), client.clone(), recorder.clone());
        match step {
            Step::Bind { pod, node } => {
                requests.spawn(async move { bind(&shared_, &client, &recorder, &pod, &node).await });
            }
            Step::Unschedulable { pod, message, news } => {
                let about = reference(&pod);
                recorder.record(about, EventType::Warning, "FailedScheduling", message.clone());
                if news {
                    requests.spawn(async move { report(&client, &pod, "Unschedulable", &message).await });
                }
            }
            Step::Gated { pod } => {
                requests.spawn(async move { report(&client, &pod, "SchedulingGated", GATED).await });
            }
            Step::Idle(due) => {
                let wait = due.map_or(Duration::from_secs(3600), until);
                // A change is remembered by the notification, so being woken early or late loses nothing.
                let _woken = tokio::time::timeout(wait, shared.changed.notified()).await;
            }
        }
        // Bindings start while the next pods are being decided.
        tokio::task::yield_now().await;
    }
}

fn until(due: Timestamp) -> Duration {
    Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}

async fn bind(shared: &Shared, client: &Client, recorder: &Recorder, pod: &PodRef, node: &str) {
    let Key { namespace, name } = &pod.key;
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            uid: Some(pod.uid.0.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let result: kube::Result<Value> =
        api.create_subresource("binding", name, &PostParams::default(), &binding).await;
    let Err(error) = result else {
        let message = format!("Successfully assigned {} to {node}", pod.key);
        recorder.record(reference(pod), EventType::Normal, "Scheduled", message);
        return;
    };
    // Gone, or bound by somebody else: the watch will show it, there is nothing to retry.
    let settled = matches!(&error, kube::Error::Api(status) if status.is_not_found() || status.is_conflict());
    shared.change(|desk, now| desk.not_bound(&pod.uid, !settled, now));
    if !settled {
        tracing::warn!(pod = %pod.key, node, %error, "binding refused");
        let message = format!("binding rejected: {error}");
        recorder.record(reference(pod), EventType::Warning, "FailedScheduling", message);
    }
}

/// Writes the pod's PodScheduled condition. A pod that is gone meanwhile needs none.
async fn report(client: &Client, pod: &PodRef, reason: &str, message: &str) {
    let Key { namespace, name } = &pod.key;
    let patch = json!({
        "metadata": { "uid": pod.uid.0 },
        "status": { "conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastTransitionTime": Time(Timestamp::now()),
        }] },
    });
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let result = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
    if let Err(error) = result {
        tracing::debug!(pod = %pod.key, %error, "condition not written");
    }
}

fn reference(pod: &PodRef) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.key.namespace.clone()),
        name: Some(pod.key.name.clone()),
        uid: Some(pod.uid.0.clone()),
        ..ObjectReference::default()
    }
}
