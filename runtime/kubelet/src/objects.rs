//! ConfigMaps and Secrets that pods of this node use: one watch an object, shared by all pods that name it,
//! ended some time after the last of them let go.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{sync::watch, task::JoinSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ObjectKind {
    ConfigMap,
    Secret,
}

impl ObjectKind {
    /// As messages about a missing object have it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

pub(crate) type Data = BTreeMap<String, Vec<u8>>;

/// What is known of an object: nothing yet, that it does not exist, or its data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Known {
    #[default]
    NotYet,
    Missing,
    Data(Arc<Data>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectRef {
    pub(crate) kind: ObjectKind,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Keeps the watch alive while it is held.
#[derive(Clone)]
pub(crate) struct Subscription {
    pub(crate) seen: watch::Receiver<Known>,
    _entry: Arc<Entry>,
}

struct Entry {
    /// Dropped with the last subscription: tells the watching task to end.
    _held: watch::Sender<()>,
}

/// A handle on all watches; cheap to clone.
#[derive(Clone)]
pub(crate) struct Objects {
    client: kube::Client,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    watches: HashMap<ObjectRef, (Weak<Entry>, watch::Receiver<Known>)>,
    tasks: JoinSet<()>,
}

/// Pods of one Deployment come and go; a watch that starts over for each would cost more than it saves.
const LINGER: Duration = Duration::from_secs(30);

impl Objects {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client, shared: Arc::default() }
    }

    pub(crate) fn subscribe(&self, object: &ObjectRef) -> Subscription {
        let mut shared = self.shared.lock().expect("no holder of this lock panics");
        while shared.tasks.try_join_next().is_some() {}
        if let Some((entry, seen)) = shared.watches.get(object)
            && let Some(entry) = entry.upgrade()
        {
            return Subscription { seen: seen.clone(), _entry: entry };
        }
        let (tx, seen) = watch::channel(Known::NotYet);
        let (held, released) = watch::channel(());
        let entry = Arc::new(Entry { _held: held });
        shared.watches.insert(object.clone(), (Arc::downgrade(&entry), seen.clone()));
        shared.tasks.spawn(keep(self.client.clone(), object.clone(), tx, released, entry.clone()));
        Subscription { seen, _entry: entry }
    }
}

async fn keep(
    client: kube::Client,
    object: ObjectRef,
    tx: watch::Sender<Known>,
    mut released: watch::Receiver<()>,
    linger: Arc<Entry>,
) {
    let watching = async {
        match object.kind {
            ObjectKind::ConfigMap => {
                let api: Api<ConfigMap> = Api::namespaced(client, &object.namespace);
                follow(api, &object, &tx, |c| {
                    let text = c.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
                    let binary = c.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0));
                    text.chain(binary).collect()
                })
                .await;
            }
            ObjectKind::Secret => {
                let api: Api<Secret> = Api::namespaced(client, &object.namespace);
                follow(api, &object, &tx, |s| s.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect())
                    .await;
            }
        }
    };
    let unused = async move {
        tokio::time::sleep(LINGER).await;
        drop(linger);
        // An error means that the last holder is gone.
        while released.changed().await.is_ok() {}
    };
    tokio::select! {
        // A watch holds nothing that would be lost with it.
        () = watching => {}
        () = unused => {}
    }
}

async fn follow<K>(api: Api<K>, object: &ObjectRef, tx: &watch::Sender<Known>, data: impl Fn(K) -> Data)
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut stream = watcher::watch_object(api, &object.name).default_backoff().boxed();
    while let Some(event) = stream.next().await {
        let known = match event {
            Ok(Some(found)) => Known::Data(Arc::new(data(found))),
            Ok(None) => Known::Missing,
            Err(error) => {
                tracing::warn!(%error, ?object, "watching");
                continue;
            }
        };
        tx.send_if_modified(|old| {
            let changed = *old != known;
            *old = known;
            changed
        });
    }
}
