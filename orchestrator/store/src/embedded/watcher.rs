//! Watches: a place in a collection's history, and being woken when it grows.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use tokio::sync::watch;

use super::Shared;
use crate::{Answer, Error, Event, Prefix, Revision, Watch};

/// Events handed over at a time, so that a watcher far behind does not hold the lock for long.
const MAX_EVENTS: usize = 512;

/// Collections share this many wakers; a wake-up for another collection is harmless.
const WAKERS: usize = 64;

/// Wakes the watchers of a collection.
#[derive(Debug)]
pub(super) struct Wakers([watch::Sender<Revision>; WAKERS]);

impl Wakers {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| watch::Sender::new(Revision(0))))
    }

    fn of(&self, collection: &str) -> &watch::Sender<Revision> {
        let mut hasher = DefaultHasher::new();
        collection.hash(&mut hasher);
        &self.0[hasher.finish() as usize % WAKERS]
    }

    /// To be called after the index was changed.
    pub(super) fn wake(&self, collection: &str, revision: Revision) {
        self.of(collection).send_replace(revision);
    }
}

pub(super) struct Watcher {
    shared: Arc<Shared>,
    prefix: Prefix,
    /// Everything up to here was handed over, or was not for this watcher.
    seen: Revision,
    wake: watch::Receiver<Revision>,
}

impl Watcher {
    pub(super) fn start(shared: Arc<Shared>, prefix: Prefix, after: Revision) -> Result<Self, Error> {
        let wake = shared.wakers.of(prefix.collection()).subscribe();
        // An empty reading checks that the revision can be watched from.
        shared.read().events(&prefix, after, 0)?;
        Ok(Self { shared, prefix, seen: after, wake })
    }

    /// What happened since the last look, without waiting.
    fn look(&mut self) -> Result<Vec<Arc<Event>>, Error> {
        let index = self.shared.read();
        let events = index.events(&self.prefix, self.seen, MAX_EVENTS)?;
        self.seen = match events.last() {
            Some(last) if events.len() == MAX_EVENTS => last.revision,
            _ => index.revision(),
        };
        Ok(events)
    }
}

impl Watch for Watcher {
    fn next(&mut self) -> Answer<'_, Vec<Arc<Event>>> {
        Box::pin(async move {
            loop {
                // Mark before looking, so that a change right after the look wakes.
                self.wake.mark_unchanged();
                let events = self.look()?;
                if !events.is_empty() {
                    return Ok(events);
                }
                // Cancellation here loses nothing: `seen` only moves together with the answer.
                self.wake.changed().await.map_err(|_| Error::Closed)?;
            }
        })
    }

    fn progress(&mut self) -> Answer<'_, Revision> {
        Box::pin(async move {
            let index = self.shared.read();
            if index.events(&self.prefix, self.seen, 1)?.is_empty() {
                self.seen = index.revision();
            }
            Ok(self.seen)
        })
    }
}
