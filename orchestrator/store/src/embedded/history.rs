//! The recent changes of one collection, bounded.
//!
//! Invariant: `events` holds every change of the collection behind `forgotten`, in revision order. It serves as
//! the queue of every watcher at once: a watcher keeps only its place, and one that falls behind `forgotten`
//! is told so. A slow reader therefore costs no memory.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use crate::{Error, Event, Limits, Revision};

#[derive(Debug)]
pub(super) struct History {
    events: VecDeque<(Instant, Arc<Event>)>,
    bytes: usize,
    forgotten: Revision,
}

/// What an event holds in memory, roughly: its value counts once, the previous one belongs to the event before.
fn cost(event: &Event) -> usize {
    const BOOKKEEPING: usize = 160;
    BOOKKEEPING + event.key.as_str().len() + event.value.as_ref().map_or(0, |value| value.len())
}

impl History {
    /// A history that knows nothing of what happened up to `forgotten`.
    pub(super) fn starting(forgotten: Revision) -> Self {
        Self { events: VecDeque::new(), bytes: 0, forgotten }
    }

    pub(super) fn push(&mut self, now: Instant, event: Arc<Event>) {
        self.bytes += cost(&event);
        self.events.push_back((now, event));
    }

    /// Forgets what the limits do not allow to keep.
    pub(super) fn trim(&mut self, limits: &Limits, now: Instant) {
        while let Some((since, _)) = self.events.front() {
            let aged = now.duration_since(*since) > limits.max_age && self.bytes > limits.min_bytes;
            if !aged && self.bytes <= limits.max_bytes && self.events.len() <= limits.max_events {
                break;
            }
            self.forget_first();
        }
        // A burst leaves a large ring behind; give it back once it is mostly empty.
        if self.events.capacity() > 1024 && self.events.len() < self.events.capacity() / 4 {
            self.events.shrink_to(self.events.len() * 2);
        }
    }

    /// Forgets everything up to and including `through`.
    pub(super) fn forget(&mut self, through: Revision) {
        while self.events.front().is_some_and(|(_, event)| event.revision <= through) {
            self.forget_first();
        }
        self.forgotten = self.forgotten.max(through);
    }

    fn forget_first(&mut self) {
        if let Some((_, event)) = self.events.pop_front() {
            self.bytes -= cost(&event);
            self.forgotten = event.revision;
        }
    }

    /// The changes behind a revision, or that they are no longer all known.
    pub(super) fn after(&self, revision: Revision) -> Result<impl Iterator<Item = &Arc<Event>>, Error> {
        if revision < self.forgotten {
            return Err(Error::Compacted { wanted: revision, oldest: self.forgotten });
        }
        let start = self.events.partition_point(|(_, event)| event.revision <= revision);
        Ok(self.events.range(start..).map(|(_, event)| event))
    }
}
