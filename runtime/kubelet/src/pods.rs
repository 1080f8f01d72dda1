//! Which pods this node has: one watch, one worker a pod.

use std::{collections::HashMap, path::Path, sync::Arc};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit,
    context::{Context, PodCell, blocking},
    desired::{Desired, PodUid},
    record,
    worker::Worker,
};

/// The pods that have a worker, for the server.
pub(crate) type Cells = watch::Sender<HashMap<PodUid, Arc<PodCell>>>;

struct Handle {
    desired: watch::Sender<Desired>,
    task: Id,
}

pub(crate) struct Pods {
    node: Arc<Context>,
    cells: Cells,
    handles: HashMap<PodUid, Handle>,
    workers: JoinSet<PodUid>,
    /// What an earlier kubelet left and the API has not spoken of yet.
    left: HashMap<PodUid, Arc<Pod>>,
    audits: JoinSet<()>,
    stop: CancellationToken,
}

impl Pods {
    pub(crate) fn new(node: Arc<Context>, cells: Cells, stop: CancellationToken) -> Self {
        Self {
            node,
            cells,
            handles: HashMap::new(),
            workers: JoinSet::new(),
            left: HashMap::new(),
            audits: JoinSet::new(),
            stop,
        }
    }

    /// Follows the API until `stop`; also pods that others hand in through `local`.
    pub(crate) async fn run(mut self, mut local: mpsc::Receiver<Arc<Pod>>) {
        let run_dir = self.node.config.run_dir.clone();
        self.left = blocking(move || leftovers(&run_dir)).await;
        let api: Api<Pod> = Api::all(self.node.client.clone());
        let field = format!("spec.nodeName={}", self.node.config.node_name);
        let config = watcher::Config::default().fields(&field);
        let mut events = watcher::watcher(api, config).default_backoff().boxed();
        let mut listed = vec![];
        loop {
            tokio::select! {
                // Workers stop by the same token; nothing else is in hand.
                () = self.stop.cancelled() => break,
                // A stream and a channel lose nothing when their turn is not taken.
                event = events.next() => match event {
                    Some(Ok(event)) => self.on_event(event, &mut listed).await,
                    Some(Err(error)) => tracing::warn!(%error, "watching this node's pods"),
                    None => break,
                },
                Some(pod) = local.recv() => self.apply(pod),
                Some(done) = self.workers.join_next_with_id() => self.on_end(done),
            }
        }
        while self.workers.join_next().await.is_some() {}
    }

    async fn on_event(&mut self, event: Event<Pod>, listed: &mut Vec<PodUid>) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => {
                listed.extend(uid(&pod));
                self.apply(Arc::new(pod));
            }
            Event::InitDone => {
                let gone: Vec<_> = self.handles.keys().filter(|u| !listed.contains(u)).cloned().collect();
                for uid in gone {
                    self.vanish(&uid);
                }
                self.adopt_the_rest();
                let known = self.handles.keys().cloned().collect();
                audit::sweep(&self.node, known).await;
                let cells = self.cells.clone();
                let live = move || cells.borrow().keys().cloned().collect();
                self.audits.spawn(audit::sweep_network(self.node.clone(), live));
            }
            Event::Apply(pod) => self.apply(Arc::new(pod)),
            Event::Delete(pod) => {
                // The last state of the object says with what grace it was deleted.
                let uid = uid(&pod);
                self.apply(Arc::new(pod));
                if let Some(uid) = uid {
                    self.vanish(&uid);
                }
            }
        }
    }

    fn apply(&mut self, pod: Arc<Pod>) {
        let desired = match Desired::parse(pod) {
            Ok(desired) => desired,
            Err(error) => return tracing::warn!(%error, "a pod is left alone"),
        };
        self.left.remove(&desired.id.uid);
        match self.handles.get(&desired.id.uid) {
            Some(handle) => {
                handle.desired.send_replace(desired);
            }
            None => self.spawn(desired),
        }
    }

    /// The object is gone: whatever is left of the pod goes too.
    fn vanish(&mut self, uid: &PodUid) {
        if let Some(handle) = self.handles.get(uid) {
            handle.desired.send_modify(|d| *d = d.clone().removed());
        }
    }

    /// Pods that an earlier kubelet ran and that are gone from the API.
    fn adopt_the_rest(&mut self) {
        for (uid, pod) in std::mem::take(&mut self.left) {
            match Desired::parse(pod) {
                Ok(desired) => self.spawn(desired.removed()),
                Err(error) => tracing::warn!(%uid, %error, "what is left of a pod is not readable"),
            }
        }
    }

    fn spawn(&mut self, desired: Desired) {
        let id = desired.id.clone();
        let (sender, receiver) = watch::channel(desired);
        let cell = Arc::new(PodCell::new(self.node.clone(), id.clone(), receiver));
        self.cells.send_modify(|cells| {
            cells.insert(id.uid.clone(), cell.clone());
        });
        let worker = Worker::new(cell, self.stop.clone());
        let uid = id.uid.clone();
        let task = self.workers.spawn(async move {
            worker.run().await;
            uid
        });
        self.handles.insert(id.uid, Handle { desired: sender, task: task.id() });
    }

    fn on_end(&mut self, done: Result<(Id, PodUid), JoinError>) {
        let uid = match done {
            Ok((_, uid)) => uid,
            Err(error) => {
                tracing::error!(%error, "a pod's worker failed; the next restart takes the pod up again");
                let by_task = self.handles.iter().find(|(_, h)| h.task == error.id());
                let Some((uid, _)) = by_task else { return };
                uid.clone()
            }
        };
        self.handles.remove(&uid);
        self.cells.send_modify(|cells| {
            cells.remove(&uid);
        });
    }
}

fn uid(pod: &Pod) -> Option<PodUid> {
    PodUid::parse(pod.metadata.uid.as_deref()?).ok()
}

/// The pods whose folders an earlier kubelet left.
fn leftovers(run_dir: &Path) -> HashMap<PodUid, Arc<Pod>> {
    let entries = std::fs::read_dir(run_dir.join("pods")).into_iter().flatten().flatten();
    entries
        .filter_map(|e| {
            let uid = PodUid::parse(e.file_name().to_str()?).ok()?;
            match record::load_pod(&e.path()) {
                Ok(pod) => Some((uid, Arc::new(pod?))),
                Err(error) => {
                    tracing::warn!(%uid, %error, "what is left of a pod is not readable");
                    None
                }
            }
        })
        .collect()
}
