//! What can go wrong with images. The kubelet turns these into reasons and events: each says what, and where.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither in this store nor (after a pull) in the registry.
    #[error("image {reference} not found")]
    NotFound { reference: String },
    #[error("{text:?} is not an image reference: {reason}")]
    BadReference { text: String, reason: String },
    /// The bytes are not what their format says; `blob` is a digest or a file of an archive.
    #[error("{blob} is corrupt at {position}: {reason}")]
    Corrupt { blob: String, position: String, reason: String },
    #[error("{blob} has digest {got}, expected {expected}")]
    DigestMismatch { blob: String, expected: Digest, got: Digest },
    #[error("{image} is for {}, this machine needs {wanted}", .has.join(", "))]
    WrongPlatform { image: String, wanted: String, has: Vec<String> },
    #[error("{registry} refuses access to {repository}: {reason}")]
    Unauthorised { registry: String, repository: String, reason: String },
    #[error("{registry}: {action} failed: {reason}")]
    Registry { registry: String, action: String, reason: String },
    /// A docker configuration, a pull secret or a credential helper.
    #[error("credentials in {origin}: {reason}")]
    BadCredentials { origin: String, reason: String },
    #[error("{}: {reason}", path.display())]
    BadConfiguration { path: PathBuf, reason: String },
    #[error("no space left for {path}")]
    DiskFull { path: PathBuf },
    /// An archive that tries to reach out of where it is unpacked.
    #[error("refused entry {entry:?} of {blob}: {reason}")]
    Hostile { blob: String, entry: String, reason: &'static str },
    #[error("{what} is larger than the limit of {limit}")]
    TooLarge { what: String, limit: u64 },
    #[error("{what} is not supported: {reason}")]
    Unsupported { what: String, reason: String },
    #[error("image {reference} is used by {}", .holders.join(", "))]
    InUse { reference: String, holders: Vec<String> },
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the operating system; a full disk is its own kind.
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::DiskFull { path: path.to_path_buf() }
            }
            _ => Error::Io { action, path: path.to_path_buf(), source },
        }
    }

    pub(crate) fn corrupt(
        blob: impl Into<String>,
        position: impl Into<String>,
        reason: impl ToString,
    ) -> Error {
        Error::Corrupt { blob: blob.into(), position: position.into(), reason: reason.to_string() }
    }

    /// Whether trying again later can help: not when the image itself is at fault.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Registry { .. } | Error::DiskFull { .. } | Error::Io { .. } | Error::InUse { .. } => true,
            Error::NotFound { .. }
            | Error::BadReference { .. }
            | Error::Corrupt { .. }
            | Error::DigestMismatch { .. }
            | Error::WrongPlatform { .. }
            | Error::Unauthorised { .. }
            | Error::BadCredentials { .. }
            | Error::BadConfiguration { .. }
            | Error::Hostile { .. }
            | Error::TooLarge { .. }
            | Error::Unsupported { .. } => false,
        }
    }
}

/// Adds what was done to which path to an error of the operating system.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::io(action, path, source))
    }
}
