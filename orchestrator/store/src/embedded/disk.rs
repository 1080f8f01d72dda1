//! The store on disk: a fjall keyspace.
//!
//! A record is the key's text → 8 bytes revision (big-endian) and the value. One more record, whose key no
//! object can have, holds the latest revision, for the last write may have been a deletion. A batch of writes is
//! one fjall batch: after a crash it is there as a whole or not at all.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{index::Index, repair};
use crate::{Error, Event, Key, Limits, Revision};

const REVISION_KEY: &[u8] = b"\0revision";
const REVISION_BYTES: usize = 8;

/// Everything is read once, at the start; there is nothing to gain from a block cache.
const CACHE_BYTES: u64 = 1 << 20;

/// Written data stays in memory a second time until this much has come together.
const MEMTABLE_BYTES: u64 = 4 << 20;

/// The least that fjall takes.
const JOURNAL_BYTES: u64 = 64 << 20;

pub(super) struct Disk {
    path: PathBuf,
    database: Database,
    objects: Keyspace,
}

impl Disk {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        repair::drop_torn_tail(path)?;
        let failed = |source| Error::Open { path: path.to_owned(), source: Arc::new(source) };
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let objects = database.keyspace("objects", options).map_err(failed)?;
        Ok(Self { path: path.to_owned(), database, objects })
    }

    /// Reads everything.
    pub(super) fn load(&self, limits: Limits) -> Result<Index, Error> {
        let failed = |source| Error::Open { path: self.path.clone(), source: Arc::new(source) };
        let latest = match self.objects.get(REVISION_KEY).map_err(failed)? {
            Some(record) => self.revision_of(REVISION_KEY, &record)?.0,
            // Revision 0 means "any" in the API, so the first reading of an empty store is true for 1.
            None => Revision(1),
        };
        let mut index = Index::new(latest, limits);
        for record in self.objects.iter() {
            let (key, record) = record.into_inner().map_err(failed)?;
            if &*key == REVISION_KEY {
                continue;
            }
            let (revision, value) = self.revision_of(&key, &record)?;
            let text = std::str::from_utf8(&key).map_err(|_| self.not_a_record(&key))?;
            let key = Key::parse(text).map_err(|_| self.not_a_record(&key))?;
            // Copied, so that it does not keep the block it was read from.
            index.insert_loaded(key, Bytes::copy_from_slice(value), revision);
        }
        Ok(index)
    }

    /// Writes changes and waits until they are durable.
    pub(super) fn write(&self, events: &[Arc<Event>], latest: Revision) -> Result<(), Error> {
        let failed = |source| Error::Disk(Arc::new(source));
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for event in events {
            let key = event.key.as_str().as_bytes();
            match &event.value {
                Some(value) => {
                    let mut record = Vec::with_capacity(REVISION_BYTES + value.len());
                    record.extend_from_slice(&event.revision.0.to_be_bytes());
                    record.extend_from_slice(value);
                    batch.insert(&self.objects, key, record);
                }
                None => batch.remove(&self.objects, key),
            }
        }
        batch.insert(&self.objects, REVISION_KEY, latest.0.to_be_bytes());
        batch.commit().map_err(failed)
    }

    fn revision_of<'a>(&self, key: &[u8], record: &'a [u8]) -> Result<(Revision, &'a [u8]), Error> {
        let (revision, value) =
            record.split_first_chunk::<REVISION_BYTES>().ok_or_else(|| self.not_a_record(key))?;
        Ok((Revision(u64::from_be_bytes(*revision)), value))
    }

    fn not_a_record(&self, key: &[u8]) -> Error {
        Error::Record { path: self.path.clone(), key: String::from_utf8_lossy(key).into_owned() }
    }
}
