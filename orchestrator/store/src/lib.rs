//! Revisioned keys and watches behind one trait.
//!
//! Every write gets the next number of one counter, the revision; a key carries the revision that wrote it, a
//! watch delivers changes in revision order without gaps, and a read names the revision it is true for.
//! A write is answered only once it would survive a power cut.
//!
//! [`Embedded`] keeps the objects in memory and on disk. Its one writer thread owns every change; readers and
//! watches share an ordered index with a bounded history (see `embedded/`).

mod embedded;
mod error;
mod key;

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;

pub use self::{
    embedded::{Embedded, Limits},
    error::Error,
    key::{Collection, Key, Prefix},
};

/// A point in the store's history. Starts at 1 for an empty store and only grows, also across restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A stored value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Key,
    pub value: Bytes,
    pub revision: Revision,
}

/// What must be true of a key for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists and was last written at this revision.
    At(Revision),
    /// Whatever is there; a delete of a key that is not there still fails with [`Error::Absent`].
    Any,
}

/// Which part of a collection to read.
#[derive(Clone, Debug)]
pub struct ListRequest {
    pub prefix: Prefix,
    /// At most so many entries; `None` for all.
    pub limit: Option<usize>,
    /// Continue behind this key.
    pub after: Option<Key>,
    /// As it was at this revision; `None` for now. Fails with [`Error::Compacted`] once forgotten.
    pub at: Option<Revision>,
}

impl ListRequest {
    /// Everything beneath `prefix` as it is now.
    pub fn all(prefix: Prefix) -> Self {
        Self { prefix, limit: None, after: None, at: None }
    }
}

/// A consistent reading of a collection.
#[derive(Clone, Debug)]
pub struct Listing {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The revision this reading is true for.
    pub revision: Revision,
    /// How many entries were left out behind the last one because of the limit.
    pub remaining: usize,
}

/// A write that is on disk.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The revision of this write.
    pub revision: Revision,
    /// What it replaced or removed.
    pub previous: Option<Entry>,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Key,
    pub revision: Revision,
    /// The new value; `None` when the key was deleted.
    pub value: Option<Bytes>,
    /// What was there before; `None` when the key was created.
    pub previous: Option<Entry>,
}

/// The answer of a store operation, boxed so that the trait can be used as an object.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Revisioned keys. All operations may be cancelled; a cancelled write may or may not happen.
pub trait Store: Send + Sync + 'static {
    /// The entry of a key, if there is one.
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>>;

    /// The entries beneath a prefix, all true at one revision.
    fn list(&self, request: ListRequest) -> Answer<'_, Listing>;

    /// Writes a key. Fails with [`Error::Exists`], [`Error::Absent`] or [`Error::Changed`] when `expect` does
    /// not hold, and then changes nothing.
    fn put(&self, key: Key, value: Bytes, expect: Expect) -> Answer<'_, Committed>;

    /// Removes a key. Fails like [`Store::put`].
    fn delete(&self, key: Key, expect: Expect) -> Answer<'_, Committed>;

    /// Every change beneath a prefix behind a revision, without gaps. Fails with [`Error::Compacted`] when that
    /// part of the history is forgotten and with [`Error::Future`] when the revision was never reached.
    fn watch(&self, prefix: Prefix, after: Revision) -> Answer<'_, Box<dyn Watch>>;

    /// The revision of the latest write.
    fn revision(&self) -> Answer<'_, Revision>;

    /// Forgets the history up to and including a revision. Stores forget by themselves too.
    fn compact(&self, through: Revision) -> Answer<'_, ()>;
}

/// A running watch. Dropping it ends it.
pub trait Watch: Send {
    /// The next changes, at least one, in revision order. Waits until there are some; cancelling the wait loses
    /// nothing. Fails with [`Error::Compacted`] when the reader was so slow that changes were forgotten; the
    /// watch is over then.
    fn next(&mut self) -> Answer<'_, Vec<Arc<Event>>>;

    /// A revision up to which nothing is outstanding: a watch started behind it continues this one.
    fn progress(&mut self) -> Answer<'_, Revision>;
}
