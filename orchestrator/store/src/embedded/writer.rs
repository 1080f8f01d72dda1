//! The writer thread: takes what waits in the queue, and makes it durable with one sync.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{Shared, disk::Disk};
use crate::{Committed, Entry, Error, Event, Expect, Key, Revision};

/// At most so many writes share a sync; and at most so many bytes.
const MAX_BATCH: usize = 1024;
const MAX_BATCH_BYTES: usize = 8 << 20;

pub(super) enum Change {
    Put { key: Key, value: Bytes },
    Delete { key: Key },
}

impl Change {
    fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Put { value, .. } => value.len(),
            Self::Delete { .. } => 0,
        }
    }
}

type Outcome = Result<Committed, Error>;

pub(super) enum Request {
    Write { change: Change, expect: Expect, reply: oneshot::Sender<Outcome> },
    Compact { through: Revision, reply: oneshot::Sender<()> },
}

/// Writes that were accepted, and are not on disk yet.
struct Batch {
    revision: Revision,
    events: Vec<Arc<Event>>,
    /// What is answered once the batch is on disk: also a refusal for what only the batch knows. Whoever gets it
    /// reads again, and must find what was in the way.
    replies: Vec<(oneshot::Sender<Outcome>, Outcome)>,
    /// The latest state of keys changed in this batch, which the index does not show yet.
    pending: HashMap<Key, Option<Entry>>,
    bytes: usize,
}

/// Serves the queue until all senders are gone.
pub(super) fn run(disk: &Disk, shared: &Shared, mut queue: mpsc::Receiver<Request>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = Batch::behind(shared.read().revision());
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Write { change, expect, reply } => batch.add(shared, change, expect, reply),
                Request::Compact { through, reply } => {
                    shared.index.write().unwrap_or_else(PoisonError::into_inner).compact(through);
                    // Whoever asked may have stopped waiting.
                    let _ = reply.send(());
                }
            }
            next = match batch.events.len() < MAX_BATCH && batch.bytes < MAX_BATCH_BYTES {
                true => queue.try_recv().ok(),
                false => None,
            };
        }
        batch.commit(disk, shared);
    }
}

impl Batch {
    fn behind(revision: Revision) -> Self {
        Self { revision, events: Vec::new(), replies: Vec::new(), pending: HashMap::new(), bytes: 0 }
    }

    /// Takes a write in, or refuses it; at once, where the reason is on disk.
    fn add(&mut self, shared: &Shared, change: Change, expect: Expect, reply: oneshot::Sender<Outcome>) {
        let pending = self.pending.get(change.key());
        let current = match pending {
            Some(pending) => pending.clone(),
            None => shared.read().get(change.key()),
        };
        if let Err(error) = check(&change, expect, current.as_ref()) {
            match pending {
                Some(_) => self.replies.push((reply, Err(error))),
                // Whoever asked may have stopped waiting; here and below.
                None => drop(reply.send(Err(error))),
            }
            return;
        }
        let revision = Revision(self.revision.0 + 1);
        self.revision = revision;
        self.bytes += change.bytes();
        let (key, value) = match change {
            Change::Put { key, value } => (key, Some(value)),
            Change::Delete { key } => (key, None),
        };
        let entry = value.clone().map(|value| Entry { key: key.clone(), value, revision });
        self.pending.insert(key.clone(), entry);
        self.events.push(Arc::new(Event { key, revision, value, previous: current.clone() }));
        self.replies.push((reply, Ok(Committed { revision, previous: current })));
    }

    fn commit(self, disk: &Disk, shared: &Shared) {
        if self.events.is_empty() {
            return;
        }
        if let Err(error) = disk.write(&self.events, self.revision) {
            tracing::error!(%error, writes = self.events.len(), "the store cannot write");
            for (reply, _) in self.replies {
                let _ = reply.send(Err(error.clone()));
            }
            return;
        }
        shared.index.write().unwrap_or_else(PoisonError::into_inner).apply(&self.events, Instant::now());
        let mut woken: Vec<&str> = Vec::new();
        for event in &self.events {
            if !woken.contains(&event.key.collection()) {
                woken.push(event.key.collection());
                shared.wakers.wake(event.key.collection(), self.revision);
            }
        }
        for (reply, answer) in self.replies {
            let _ = reply.send(answer);
        }
    }
}

fn check(change: &Change, expect: Expect, current: Option<&Entry>) -> Result<(), Error> {
    let absent = || Error::Absent { key: change.key().clone() };
    match (expect, current) {
        (Expect::Absent, None) => Ok(()),
        (Expect::Absent, Some(_)) => Err(Error::Exists { key: change.key().clone() }),
        (Expect::At(_), None) => Err(absent()),
        (Expect::At(wanted), Some(current)) if current.revision == wanted => Ok(()),
        (Expect::At(_), Some(current)) => Err(Error::Changed { current: current.clone() }),
        (Expect::Any, None) if matches!(change, Change::Delete { .. }) => Err(absent()),
        (Expect::Any, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use super::*;
    use crate::{Collection, Limits, embedded::watcher::Wakers};

    #[test]
    fn a_refusal_waits_for_the_write_that_is_its_reason() {
        let dir = tempfile::tempdir().expect("a folder");
        let disk = Disk::open(dir.path()).expect("opens");
        let index = RwLock::new(disk.load(Limits::default()).expect("loads"));
        let shared = Shared { index, wakers: Wakers::new() };
        let key = Collection::new("", "pods").and_then(|pods| pods.key(Some("n"), "a")).expect("a key");
        let put = || Change::Put { key: key.clone(), value: "{}".into() };

        let mut batch = Batch::behind(shared.read().revision());
        let answers = [Expect::Absent, Expect::Absent].map(|expect| {
            let (reply, answer) = oneshot::channel();
            batch.add(&shared, put(), expect, reply);
            answer
        });
        let [mut first, mut second] = answers;
        assert!(
            first.try_recv().is_err() && second.try_recv().is_err(),
            "nobody hears of it before it is on disk"
        );
        batch.commit(&disk, &shared);
        assert!(matches!(first.try_recv(), Ok(Ok(_))));
        assert!(matches!(second.try_recv(), Ok(Err(Error::Exists { .. }))));
        assert!(shared.read().get(&key).is_some());

        let (reply, mut answer) = oneshot::channel();
        Batch::behind(shared.read().revision()).add(&shared, put(), Expect::Absent, reply);
        assert!(
            matches!(answer.try_recv(), Ok(Err(Error::Exists { .. }))),
            "what is on disk is told at once"
        );
    }
}
