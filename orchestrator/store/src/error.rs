//! What can go wrong in a store.

use std::{path::PathBuf, sync::Arc};

use crate::{Entry, Key, Revision};

/// Why an operation did not happen. A failed write changed nothing, except after [`Error::Disk`], where it may
/// or may not be found after a restart.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("key {key} exists already")]
    Exists { key: Key },
    #[error("key {key} does not exist")]
    Absent { key: Key },
    #[error("key {} was changed at revision {}", current.key, current.revision)]
    Changed { current: Entry },
    #[error("the history up to revision {oldest} is forgotten, revision {wanted} was asked for")]
    Compacted { wanted: Revision, oldest: Revision },
    #[error("revision {wanted} was asked for, the latest is {latest}")]
    Future { wanted: Revision, latest: Revision },
    #[error("{what:?} is not a valid part of a key")]
    InvalidKey { what: String },
    #[error("{key}: a value of {size} bytes is over the limit of {limit}")]
    TooLarge { key: Key, size: usize, limit: usize },
    #[error("cannot open the store at {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: Arc<fjall::Error>,
    },
    #[error("the store at {path} holds something that is not a record: key {key}")]
    Record { path: PathBuf, key: String },
    #[error("journal {path} is damaged at byte {position}, with valid records behind it")]
    Journal { path: PathBuf, position: u64 },
    #[error("{action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    #[error("writing to the store failed")]
    Disk(#[source] Arc<fjall::Error>),
    #[error("the store is closed")]
    Closed,
}
