//! Tells the API a pod's status: always the newest, one request at a time, again until it is taken.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::desired::PodId;

#[derive(Clone)]
pub(crate) struct Teller {
    newest: watch::Sender<Option<Arc<PodStatus>>>,
    taken: watch::Receiver<Option<Taken>>,
}

/// A status that the API has taken.
#[derive(Clone)]
struct Taken {
    status: Arc<PodStatus>,
    /// The object's resourceVersion with this status; none when the object was gone.
    version: Option<u64>,
}

/// How long a request that failed waits for the next attempt.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// How long a final status may hold up what comes after it.
const FLUSH: Duration = Duration::from_secs(5);

impl Teller {
    pub(crate) fn tell(&self, status: Arc<PodStatus>) {
        self.newest.send_replace(Some(status));
    }

    /// Whether the API took `status` and `pod`, as watched, is newer than that.
    pub(crate) fn is_behind(&self, pod: &Pod, status: &Arc<PodStatus>) -> bool {
        let taken = self.taken.borrow();
        let Some(taken) = taken.as_ref().filter(|t| Arc::ptr_eq(&t.status, status)) else { return false };
        taken.version.is_some_and(|ours| version(pod).is_some_and(|theirs| theirs > ours))
    }

    /// Tells this and waits until it has been taken; gives up after a while.
    pub(crate) async fn flush(&self, status: Arc<PodStatus>) {
        self.tell(status.clone());
        let mut taken = self.taken.clone();
        let is_it = |t: &Option<Taken>| t.as_ref().is_some_and(|t| Arc::ptr_eq(&t.status, &status));
        // A status that could not be told is lost with the object that is about to go.
        let _ = tokio::time::timeout(FLUSH, taken.wait_for(is_it)).await;
    }
}

/// The handle, and the task behind it, which ends with the last handle.
pub(crate) fn teller(
    client: kube::Client,
    pod: PodId,
) -> (Teller, impl Future<Output = ()> + Send + 'static) {
    let (newest, wanted) = watch::channel(None);
    let (took, taken) = watch::channel(None);
    (Teller { newest, taken }, run(client, pod, wanted, took))
}

async fn run(
    client: kube::Client,
    pod: PodId,
    mut wanted: watch::Receiver<Option<Arc<PodStatus>>>,
    took: watch::Sender<Option<Taken>>,
) {
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let mut pause = RETRY_FIRST;
    while wanted.changed().await.is_ok() {
        loop {
            let Some(status) = wanted.borrow_and_update().clone() else { break };
            let patch = Patch::Merge(body(&pod, &status));
            match api.patch_status(&pod.name, &PatchParams::default(), &patch).await {
                Ok(pod) => {
                    pause = RETRY_FIRST;
                    took.send_replace(Some(Taken { status, version: version(&pod) }));
                    break;
                }
                // Gone, or another pod of that name: nobody wants this status any more.
                Err(kube::Error::Api(e)) if matches!(e.code, 404 | 409) => {
                    took.send_replace(Some(Taken { status, version: None }));
                    break;
                }
                Err(error) => {
                    tracing::warn!(%pod, %error, "telling the pod's status");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LONGEST);
                }
            }
        }
    }
}

/// Resource versions of one kind can be ordered, as numbers (KEP-5504).
fn version(pod: &Pod) -> Option<u64> {
    pod.metadata.resource_version.as_deref()?.parse().ok()
}

/// A merge patch that leaves the status exactly as given, for this pod and none that comes after it.
fn body(pod: &PodId, status: &PodStatus) -> Value {
    let mut fields = match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) | Err(_) => Map::new(),
    };
    for field in ["reason", "message", "podIP", "podIPs"] {
        fields.entry(field).or_insert(Value::Null);
    }
    json!({"metadata": {"uid": pod.uid}, "status": fields})
}
