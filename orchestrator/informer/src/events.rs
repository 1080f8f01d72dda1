//! [`Recorder`]: Events as `kubectl describe` shows them.
//!
//! Recording never waits and never fails the caller: events go through a bounded channel to one task, which
//! folds repeats into a count and limits how many one object may cause, as client-go's correlator does.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::key::Uid;

/// Events waiting to be written. More than that are dropped: they are hints, not state.
const WAITING: usize = 2048;
/// Writes under way at once.
const WRITERS: usize = 8;
/// Events remembered so that a repeat raises a count, and objects whose budget is (client-go's maxLruCacheEntries).
const REMEMBERED: usize = 4096;
/// A repeat after this time is a new event (client-go's aggregation interval).
const FOLD_FOR: Duration = Duration::from_secs(600);
/// One object and source may cause this many events at once, then one every [`REFILL`] (client-go's filter).
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Records events in the name of one component. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    component: &'static str,
    sender: mpsc::Sender<Record>,
    /// Events for which there was no room since the writer last caught up.
    dropped: Arc<AtomicUsize>,
}

struct Record {
    about: ObjectReference,
    component: &'static str,
    kind: EventType,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

impl Recorder {
    /// The recorder, and the task that writes what it records; the task ends with `cancel`.
    pub fn new(
        client: Client,
        component: &'static str,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let dropped = Arc::new(AtomicUsize::new(0));
        let writer = write_all(client, receiver, dropped.clone());
        let task = async move {
            // Events that are not written yet at shutdown are dropped with the rest of the hints.
            let _cancelled = cancel.run_until_cancelled(writer).await;
        };
        (Self { component, sender, dropped }, task)
    }

    /// The same recorder in the name of another component.
    pub fn named(&self, component: &'static str) -> Self {
        Self { component, ..self.clone() }
    }

    pub fn normal<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.record(reference_of(about), EventType::Normal, reason, message.into());
    }

    pub fn warning<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.record(reference_of(about), EventType::Warning, reason, message.into());
    }

    pub fn record(&self, about: ObjectReference, kind: EventType, reason: &'static str, message: String) {
        let record = Record { about, component: self.component, kind, reason, message, at: Timestamp::now() };
        if let Err(mpsc::error::TrySendError::Full(_)) = self.sender.try_send(record) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn reference_of<K: Resource<DynamicType = ()>>(about: &K) -> ObjectReference {
    let meta = about.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

async fn write_all(client: Client, receiver: mpsc::Receiver<Record>, dropped: Arc<AtomicUsize>) {
    let correlator = Arc::new(std::sync::Mutex::new(Correlator::default()));
    let records = futures::stream::unfold((receiver, dropped), async |(mut receiver, dropped)| {
        if receiver.is_empty() {
            // Said once, when the burst is over.
            let missing = dropped.swap(0, Ordering::Relaxed);
            if missing > 0 {
                tracing::warn!(missing, "events were dropped: more at once than can wait");
            }
        }
        receiver.recv().await.map(|record| (record, (receiver, dropped)))
    });
    records
        .for_each_concurrent(WRITERS, |record| {
            let (client, correlator) = (client.clone(), correlator.clone());
            async move {
                let decide = || correlator.lock().expect("nothing panics under this lock").decide(&record);
                let result = match decide() {
                    Decision::Drop => Ok(()),
                    Decision::Create { name } => create(&client, &record, name).await,
                    Decision::Raise { name, count } => raise(&client, &record, &name, count).await,
                };
                if let Err(error) = result {
                    tracing::debug!(reason = record.reason, %error, "event not written");
                }
            }
        })
        .await;
}

async fn create(client: &Client, record: &Record, name: String) -> kube::Result<()> {
    let namespace = namespace_of(record);
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: record.about.clone(),
        type_: Some(record.kind.as_str().to_owned()),
        reason: Some(record.reason.to_owned()),
        message: Some(record.message.clone()),
        source: Some(EventSource { component: Some(record.component.to_owned()), host: None }),
        reporting_component: Some(record.component.to_owned()),
        first_timestamp: Some(Time(record.at)),
        last_timestamp: Some(Time(record.at)),
        count: Some(1),
        ..Event::default()
    };
    Api::<Event>::namespaced(client.clone(), namespace).create(&PostParams::default(), &event).await.map(drop)
}

async fn raise(client: &Client, record: &Record, name: &str, count: i32) -> kube::Result<()> {
    let patch = json!({ "count": count, "lastTimestamp": Time(record.at) });
    let api = Api::<Event>::namespaced(client.clone(), namespace_of(record));
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        // The server has expired the first one meanwhile.
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            create(client, record, name.to_owned()).await
        }
        other => other.map(drop),
    }
}

/// Events about cluster-scoped objects live in `default`.
fn namespace_of(record: &Record) -> &str {
    record.about.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Create { name: String },
    Raise { name: String, count: i32 },
    Drop,
}

/// Decides what becomes of each record. Pure: time comes with the record.
#[derive(Default)]
struct Correlator {
    known: Recent<Same, Known>,
    budgets: Recent<(Uid, &'static str), Budget>,
}

/// A map of what came last: the oldest beyond [`REMEMBERED`] are forgotten.
struct Recent<K, V> {
    values: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { values: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    fn insert(&mut self, key: K, value: V) {
        if self.values.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.values.remove(&oldest);
        }
    }
}

/// Two records with equal `Same` are one event.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Same {
    uid: Uid,
    name: String,
    component: &'static str,
    kind: EventType,
    reason: &'static str,
    message: String,
}

struct Known {
    name: String,
    count: i32,
    last: Timestamp,
}

struct Budget {
    left: f64,
    at: Timestamp,
}

impl Correlator {
    fn decide(&mut self, record: &Record) -> Decision {
        let same = Same {
            uid: Uid(record.about.uid.clone().unwrap_or_default()),
            name: record.about.name.clone().unwrap_or_default(),
            component: record.component,
            kind: record.kind,
            reason: record.reason,
            message: record.message.clone(),
        };
        if !self.spend((same.uid.clone(), record.component), record.at) {
            return Decision::Drop;
        }
        if let Some(known) = self.known.values.get_mut(&same)
            && record.at.duration_since(known.last).unsigned_abs() < FOLD_FOR
        {
            known.count += 1;
            known.last = record.at;
            return Decision::Raise { name: known.name.clone(), count: known.count };
        }
        // client-go's form; nanoseconds keep two events of one object apart.
        let name = format!("{}.{:x}", same.name, record.at.as_nanosecond());
        let known = Known { name: name.clone(), count: 1, last: record.at };
        self.known.insert(same, known);
        Decision::Create { name }
    }

    fn spend(&mut self, who: (Uid, &'static str), now: Timestamp) -> bool {
        let known = self.budgets.values.get(&who);
        let left = known.map_or(BURST, |budget| budget.refilled(now));
        let spends = left >= 1.0;
        self.budgets.insert(who, Budget { left: if spends { left - 1.0 } else { left }, at: now });
        spends
    }
}

impl Budget {
    fn refilled(&self, now: Timestamp) -> f64 {
        let passed = now.duration_since(self.at).as_secs_f64().max(0.0);
        (self.left + passed / REFILL.as_secs_f64()).min(BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: &str, message: &str, second: i64) -> Record {
        Record {
            about: ObjectReference {
                uid: Some(uid.into()),
                name: Some("web".into()),
                ..ObjectReference::default()
            },
            component: "tester",
            kind: EventType::Normal,
            reason: "Tested",
            message: message.into(),
            at: Timestamp::from_second(second).expect("in range"),
        }
    }

    #[test]
    fn repeats_raise_the_count() {
        let mut correlator = Correlator::default();
        let name = |second: i64| format!("web.{:x}", i128::from(second) * 1_000_000_000);
        let cases = [
            ("first", record("u", "m", 1), Decision::Create { name: name(1) }),
            ("repeat", record("u", "m", 2), Decision::Raise { name: name(1), count: 2 }),
            ("other message", record("u", "n", 3), Decision::Create { name: name(3) }),
            ("other object", record("v", "m", 4), Decision::Create { name: name(4) }),
            (
                "repeat within the interval",
                record("u", "m", 500),
                Decision::Raise { name: name(1), count: 3 },
            ),
            ("repeat too late", record("u", "m", 2000), Decision::Create { name: name(2000) }),
        ];
        for (case, record, expect) in cases {
            assert_eq!(correlator.decide(&record), expect, "{case}");
        }
    }

    #[test]
    fn one_object_cannot_flood() {
        let mut correlator = Correlator::default();
        let mut written = |second: i64, tries: usize| {
            (0..tries)
                .filter(|i| correlator.decide(&record("u", &i.to_string(), second)) != Decision::Drop)
                .count()
        };
        assert_eq!(written(0, 40), 25);
        assert_eq!(written(299, 5), 0);
        assert_eq!(written(601, 5), 2);
    }
}
