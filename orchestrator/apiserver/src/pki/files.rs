//! Files of the pki folder: written whole or not at all, keys readable by their owner only.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use super::Error;

/// Who may read a file.
#[derive(Clone, Copy)]
pub(super) enum Access {
    OwnerOnly,
    Everyone,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::File { action, path: path.to_owned(), source }
}

pub(super) fn make_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("cannot create", path))
}

pub(super) fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("cannot read", path)(error)),
    }
}

/// Durable before it returns: an authority that is lost in a power cut locks everyone out.
pub(super) fn write(path: &Path, text: &str, access: Access) -> Result<(), Error> {
    let mode = match access {
        Access::OwnerOnly => 0o600,
        Access::Everyone => 0o644,
    };
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)
        .map_err(failed("cannot create", &fresh))?;
    file.write_all(text.as_bytes()).map_err(failed("cannot write", &fresh))?;
    file.sync_all().map_err(failed("cannot sync", &fresh))?;
    fs::rename(&fresh, path).map_err(failed("cannot replace", path))?;
    let Some(dir) = path.parent() else { return Ok(()) };
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("cannot sync", dir))
}
