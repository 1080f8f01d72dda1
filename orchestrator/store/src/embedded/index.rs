//! The objects in memory: one ordered map and one history a collection, one revision over all.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::history::History;
use crate::{Entry, Error, Event, Key, Limits, ListRequest, Listing, Prefix, Revision};

/// How often the histories of collections without writes are looked at.
const SWEEP: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Index {
    revision: Revision,
    /// Nothing is known of changes up to here, in any collection.
    floor: Revision,
    collections: HashMap<Box<str>, Collection>,
    limits: Limits,
    swept: Instant,
}

#[derive(Debug)]
struct Collection {
    entries: BTreeMap<Key, Slot>,
    history: History,
}

#[derive(Clone, Debug)]
struct Slot {
    value: Bytes,
    revision: Revision,
}

impl Slot {
    fn entry(&self, key: &Key) -> Entry {
        Entry { key: key.clone(), value: self.value.clone(), revision: self.revision }
    }
}

impl Index {
    pub(super) fn new(revision: Revision, limits: Limits) -> Self {
        Self { revision, floor: revision, collections: HashMap::new(), limits, swept: Instant::now() }
    }

    /// Puts in what was found on disk; not a change, so no history.
    pub(super) fn insert_loaded(&mut self, key: Key, value: Bytes, revision: Revision) {
        self.collection_mut(&key).entries.insert(key, Slot { value, revision });
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn get(&self, key: &Key) -> Option<Entry> {
        let collection = self.collections.get(key.collection())?;
        collection.entries.get(key).map(|slot| slot.entry(key))
    }

    /// Makes changes visible, all at once for whoever reads under the lock. Their revisions follow the index's.
    pub(super) fn apply(&mut self, events: &[Arc<Event>], now: Instant) {
        let limits = self.limits;
        for event in events {
            self.revision = event.revision;
            let collection = self.collection_mut(&event.key);
            match &event.value {
                Some(value) => {
                    let slot = Slot { value: value.clone(), revision: event.revision };
                    collection.entries.insert(event.key.clone(), slot);
                }
                None => {
                    collection.entries.remove(&event.key);
                }
            }
            collection.history.push(now, event.clone());
            collection.history.trim(&limits, now);
        }
        if now.duration_since(self.swept) > SWEEP {
            self.swept = now;
            for collection in self.collections.values_mut() {
                collection.history.trim(&limits, now);
            }
        }
    }

    pub(super) fn compact(&mut self, through: Revision) {
        let through = through.min(self.revision);
        self.floor = self.floor.max(through);
        for collection in self.collections.values_mut() {
            collection.history.forget(through);
        }
    }

    fn collection_mut(&mut self, key: &Key) -> &mut Collection {
        // `entry` would copy the name on every write.
        if !self.collections.contains_key(key.collection()) {
            let fresh = Collection { entries: BTreeMap::new(), history: History::starting(self.floor) };
            self.collections.insert(key.collection().into(), fresh);
        }
        self.collections.get_mut(key.collection()).expect("it was inserted above if it was not there")
    }

    /// The changes beneath a prefix behind a revision, at most `max` of them.
    pub(super) fn events(
        &self,
        prefix: &Prefix,
        after: Revision,
        max: usize,
    ) -> Result<Vec<Arc<Event>>, Error> {
        let events = self.history(prefix, after)?;
        Ok(events.filter(|event| prefix.contains(&event.key)).take(max).cloned().collect())
    }

    /// All changes of the prefix's collection behind a revision.
    fn history(&self, prefix: &Prefix, after: Revision) -> Result<impl Iterator<Item = &Arc<Event>>, Error> {
        if after > self.revision {
            return Err(Error::Future { wanted: after, latest: self.revision });
        }
        let events = match self.collections.get(prefix.collection()) {
            Some(collection) => Some(collection.history.after(after)?),
            None if after < self.floor => {
                return Err(Error::Compacted { wanted: after, oldest: self.floor });
            }
            None => None,
        };
        Ok(events.into_iter().flatten())
    }

    pub(super) fn list(&self, request: &ListRequest) -> Result<Listing, Error> {
        let at = request.at.unwrap_or(self.revision);
        // What the entries changed since then were before: the first change behind `at` tells.
        let mut before: BTreeMap<&str, Option<&Entry>> = BTreeMap::new();
        if at != self.revision {
            for event in self.history(&request.prefix, at)? {
                before.entry(event.key.as_str()).or_insert(event.previous.as_ref());
            }
        }
        let mut listing = Listing { entries: Vec::new(), revision: at, remaining: 0 };
        let limit = request.limit.unwrap_or(usize::MAX);
        let mut take = |entry: Entry| match listing.entries.len() < limit {
            true => listing.entries.push(entry),
            false => listing.remaining += 1,
        };
        let start = match &request.after {
            Some(key) => Bound::Excluded(key.as_str()),
            None => Bound::Included(request.prefix.as_str()),
        };
        let within = |key: &str| key.starts_with(request.prefix.as_str());
        let mut before = before
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| within(key))
            .map(|(key, old)| (*key, *old))
            .peekable();
        let now = self.collections.get(request.prefix.collection()).map(|found| &found.entries);
        let now = now.into_iter().flat_map(|entries| entries.range::<str, _>((start, Bound::Unbounded)));
        for (key, slot) in now.take_while(|(key, _)| within(key.as_str())) {
            while let Some((_, old)) = before.next_if(|(changed, _)| *changed < key.as_str()) {
                old.cloned().into_iter().for_each(&mut take);
            }
            match before.next_if(|(changed, _)| *changed == key.as_str()) {
                Some((_, old)) => old.cloned().into_iter().for_each(&mut take),
                None => take(slot.entry(key)),
            }
        }
        before.filter_map(|(_, old)| old.cloned()).for_each(take);
        Ok(listing)
    }
}
