//! The default store: one process, one folder.
//!
//! ```text
//!  put, delete ──► queue ──► writer thread: check, number, ┬─► journal, one sync for all who wait
//!                            owns every change             └─► index ──► answers, watchers woken
//!  get, list, watch ◄──────────────────────────────────── index (ordered maps + bounded history)
//! ```
//!
//! Invariant: the index never shows what is not on disk. A change is applied to it only after the sync that made
//! it durable, all changes of one sync together.

mod disk;
mod history;
mod index;
mod repair;
mod watcher;
mod writer;

use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    thread::JoinHandle,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use self::{
    disk::Disk,
    index::Index,
    watcher::Watcher,
    writer::{Change, Request},
};
use crate::{
    Answer, Committed, Entry, Error, Expect, Key, ListRequest, Listing, Prefix, Revision, Store, Watch,
};

/// Writes that may wait for the writer thread; further writers wait to be let in.
const MAX_QUEUED_WRITES: usize = 4096;

/// The largest value the store takes, in bytes. The API server's own limit on request bodies is below.
const MAX_VALUE_BYTES: usize = 8 << 20;

/// How much history each collection keeps for watches and for reads of the past.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Never more changes than this.
    pub max_events: usize,
    /// Never more bytes of values than this.
    pub max_bytes: usize,
    /// So many bytes are kept whatever their age.
    pub min_bytes: usize,
    /// Beyond `min_bytes`, changes older than this are forgotten.
    pub max_age: std::time::Duration,
}

impl Default for Limits {
    /// Upstream forgets after five minutes (`--etcd-compaction-interval`); a quiet collection keeps more here.
    fn default() -> Self {
        Self {
            max_events: 16_384,
            max_bytes: 16 << 20,
            min_bytes: 256 << 10,
            max_age: std::time::Duration::from_secs(300),
        }
    }
}

/// The embedded store. Dropping it waits for the writes in the queue.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

/// What readers share with the writer. Only the writer thread takes the lock for writing, and nobody holds it
/// across an await or a system call.
#[derive(Debug)]
struct Shared {
    index: RwLock<Index>,
    wakers: watcher::Wakers,
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Index> {
        // The writer's changes to the index cannot panic half way (see `Index::apply`).
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Embedded {
    /// Opens the store in a folder, which is created if need be, and reads all of it into memory.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_with(dir, Limits::default())
    }

    /// [`Embedded::open`] with other limits on the history.
    pub fn open_with(dir: &Path, limits: Limits) -> Result<Self, Error> {
        let disk = Disk::open(dir)?;
        let index = disk.load(limits)?;
        let shared = Arc::new(Shared { index: RwLock::new(index), wakers: watcher::Wakers::new() });
        let (requests, queue) = mpsc::channel(MAX_QUEUED_WRITES);
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn({
                let shared = shared.clone();
                move || writer::run(&disk, &shared, queue)
            })
            .map_err(|source| Error::File {
                action: "cannot start the writer of",
                path: dir.to_owned(),
                source: Arc::new(source),
            })?;
        Ok(Self { shared, requests: Some(requests), writer: Some(writer) })
    }

    async fn change(&self, change: Change, expect: Expect) -> Result<Committed, Error> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(Error::Closed)?;
        requests.send(Request::Write { change, expect, reply }).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

impl Store for Embedded {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        Box::pin(async move { Ok(self.shared.read().get(key)) })
    }

    fn list(&self, request: ListRequest) -> Answer<'_, Listing> {
        Box::pin(async move { self.shared.read().list(&request) })
    }

    fn put(&self, key: Key, value: Bytes, expect: Expect) -> Answer<'_, Committed> {
        Box::pin(async move {
            if value.len() > MAX_VALUE_BYTES {
                return Err(Error::TooLarge { key, size: value.len(), limit: MAX_VALUE_BYTES });
            }
            self.change(Change::Put { key, value }, expect).await
        })
    }

    fn delete(&self, key: Key, expect: Expect) -> Answer<'_, Committed> {
        Box::pin(self.change(Change::Delete { key }, expect))
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> Answer<'_, Box<dyn Watch>> {
        Box::pin(async move {
            let watcher = Watcher::start(self.shared.clone(), prefix, after)?;
            Ok(Box::new(watcher) as Box<dyn Watch>)
        })
    }

    fn revision(&self) -> Answer<'_, Revision> {
        Box::pin(async move { Ok(self.shared.read().revision()) })
    }

    fn compact(&self, through: Revision) -> Answer<'_, ()> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let requests = self.requests.as_ref().ok_or(Error::Closed)?;
            requests.send(Request::Compact { through, reply }).await.map_err(|_| Error::Closed)?;
            answer.await.map_err(|_| Error::Closed)
        })
    }
}
