//! Events for people: counted, aggregated, bounded, and never in the way of what they tell about.

use std::{collections::HashMap, fmt::Write};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::desired::{PodId, Role, Unit};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

impl Severity {
    fn text(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Subject {
    kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
    field: Option<String>,
}

impl Subject {
    pub(crate) fn pod(pod: &PodId) -> Self {
        Self {
            kind: "Pod",
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.to_string(),
            field: None,
        }
    }

    /// Nodes have no namespace: as with upstream, what is told about them is in the default one, by name.
    pub(crate) fn node(name: &str) -> Self {
        let (name, uid) = (name.to_owned(), name.to_owned());
        Self { kind: "Node", namespace: "default".to_owned(), name, uid, field: None }
    }

    pub(crate) fn container(pod: &PodId, unit: &Unit) -> Self {
        let list = match unit.role {
            Role::Init | Role::Sidecar => "initContainers",
            Role::Main => "containers",
            Role::Ephemeral => "ephemeralContainers",
        };
        Self { field: Some(format!("spec.{list}{{{}}}", unit.name)), ..Self::pod(pod) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    subject: Subject,
    severity: Severity,
    reason: &'static str,
    message: String,
}

/// Hands events to the task that sends them; cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<(Key, Timestamp)>,
}

/// Events that wait to be sent; beyond it they are dropped, for they are only news.
const QUEUE_MAX: usize = 1024;
/// Distinct events remembered for counting.
const REMEMBERED_MAX: usize = 2048;

impl Recorder {
    pub(crate) fn normal(&self, subject: Subject, reason: &'static str, message: impl Into<String>) {
        self.record(subject, Severity::Normal, reason, message.into());
    }

    pub(crate) fn warning(&self, subject: Subject, reason: &'static str, message: impl Into<String>) {
        self.record(subject, Severity::Warning, reason, message.into());
    }

    fn record(&self, subject: Subject, severity: Severity, reason: &'static str, message: String) {
        let key = Key { subject, severity, reason, message };
        if self.queue.try_send((key, Timestamp::now())).is_err() {
            tracing::debug!(reason, "an event was dropped: the queue is full");
        }
    }
}

/// The recorder, and the task that sends what it is told until `stop`.
pub(crate) fn recorder(
    client: kube::Client,
    node: String,
    stop: CancellationToken,
) -> (Recorder, impl Future<Output = ()> + Send + 'static) {
    let (queue, inbox) = mpsc::channel(QUEUE_MAX);
    let sender = Sender { client, node, sent: HashMap::new(), serial: 0 };
    (Recorder { queue }, sender.run(inbox, stop))
}

struct Sender {
    client: kube::Client,
    node: String,
    /// Name and count of the Event object that stands for each.
    sent: HashMap<Key, (String, i32)>,
    serial: u64,
}

impl Sender {
    async fn run(mut self, mut inbox: mpsc::Receiver<(Key, Timestamp)>, stop: CancellationToken) {
        loop {
            let (key, at) = tokio::select! {
                // Events that wait are lost with the process: only news.
                () = stop.cancelled() => return,
                next = inbox.recv() => match next {
                    Some(next) => next,
                    None => return,
                },
            };
            if let Err(error) = self.send(&key, at).await {
                tracing::debug!(%error, reason = key.reason, "an event could not be sent");
            }
        }
    }

    async fn send(&mut self, key: &Key, at: Timestamp) -> Result<(), kube::Error> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &key.subject.namespace);
        if let Some((name, count)) = self.sent.get_mut(key) {
            *count += 1;
            let patch = json!({"count": count, "lastTimestamp": Time(at)});
            match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                result => return result.map(|_| ()),
            }
        }
        self.serial += 1;
        let event = self.event(key, at);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        if self.sent.len() >= REMEMBERED_MAX {
            self.sent.clear();
        }
        self.sent.insert(key.clone(), (name, 1));
        Ok(())
    }

    fn event(&self, key: &Key, at: Timestamp) -> Event {
        let s = &key.subject;
        let mut name = s.name.clone();
        let stamp = at.as_nanosecond().unsigned_abs() + u128::from(self.serial);
        let _ = write!(name, ".{stamp:x}");
        Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(s.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some(s.kind.to_owned()),
                name: Some(s.name.clone()),
                namespace: (s.kind != "Node").then(|| s.namespace.clone()),
                uid: Some(s.uid.clone()),
                field_path: s.field.clone(),
                resource_version: None,
            },
            type_: Some(key.severity.text().to_owned()),
            reason: Some(key.reason.to_owned()),
            message: Some(key.message.clone()),
            count: Some(1),
            first_timestamp: Some(Time(at)),
            last_timestamp: Some(Time(at)),
            source: Some(EventSource {
                component: Some("kubelet".to_owned()),
                host: Some(self.node.clone()),
            }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        }
    }
}
