//! What can go wrong with a cgroup, always with the file or the controller that it concerns.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::hierarchy::Controller;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cgroup path {path:?} is refused: {reason}")]
    BadPath { path: String, reason: &'static str },
    #[error("no cgroup hierarchy is mounted: neither cgroup2 nor a v1 controller is in {mountinfo}")]
    NotMounted { mountinfo: PathBuf },
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write {value:?} to {path}")]
    Write {
        path: PathBuf,
        value: String,
        #[source]
        source: io::Error,
    },
    #[error("the kernel offers no {controller} controller, which {wanted} needs")]
    NoController { controller: Controller, wanted: String },
    #[error("{wanted} does not exist on this host's cgroups ({reason})")]
    Unsupported { wanted: &'static str, reason: &'static str },
    #[error("{field} is {value}, but {reason}")]
    BadValue { field: &'static str, value: String, reason: &'static str },
    /// cgroups(7), "no internal processes": a v2 cgroup with processes cannot hand controllers to children.
    #[error("{path} holds processes itself, so its children get no controllers: move them to a leaf cgroup")]
    InternalProcesses { path: PathBuf },
    #[error("{path} reads {content:?}, which is not what the kernel documents")]
    Malformed { path: PathBuf, content: String },
    #[error("{path} still holds processes {pids:?} after {waited:?}")]
    StillPopulated { path: PathBuf, pids: Vec<i32>, waited: Duration },
    #[error("device rules of {path}")]
    Devices {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Teardown goes on after a failure; this carries all of them.
    #[error("{} cgroups could not be removed; the first: {}", .0.len(), .0[0])]
    Several(Vec<Error>),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
        Error::Io { action, path: path.to_path_buf(), source: source.into() }
    }

    /// The errno behind it, where there is one.
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Error::Io { source, .. } | Error::Write { source, .. } | Error::Devices { source, .. } => {
                Some(source)
            }
            Error::Several(errors) => errors.first().and_then(Error::io_error),
            Error::BadPath { .. }
            | Error::NotMounted { .. }
            | Error::NoController { .. }
            | Error::Unsupported { .. }
            | Error::BadValue { .. }
            | Error::InternalProcesses { .. }
            | Error::Malformed { .. }
            | Error::StillPopulated { .. } => None,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound)
    }
}

pub type Result<T> = std::result::Result<T, Error>;
