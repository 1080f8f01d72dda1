//! What a supervisor leaves on files, so that a kubelet which was away knows what happened.
//!
//! `<run dir>/containers/<id>.json` holds one [`ContainerRecord`], replaced by rename whenever it changes;
//! `<run dir>/podd.json` the supervisor's pid. A record that says `running` is true only while the
//! supervisor answers: when it has died, so have its containers.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::ContainerRecord;

/// The supervisor's socket, in the run directory.
pub const SOCKET: &str = "podd.sock";
/// What it writes to standard error, in the run directory.
pub const ERRORS: &str = "podd.err";
/// Its pid in the host's namespace, in the run directory.
pub const PID_FILE: &str = "podd.pid";
const CONTAINERS: &str = "containers";

/// The folder of records below a run directory.
#[must_use]
pub fn folder(dir: &Path) -> PathBuf {
    dir.join(CONTAINERS)
}

/// Replaces the record of a container.
pub fn write(dir: &Path, record: &ContainerRecord) -> io::Result<()> {
    let folder = folder(dir);
    replace(&folder, &format!("{}.json", record.id), record)
}

/// Removes the record of a container; that it is not there is no error.
pub fn remove(dir: &Path, id: &str) -> io::Result<()> {
    match std::fs::remove_file(folder(dir).join(format!("{id}.json"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// All records of a pod, by id, whether or not its supervisor lives. An absent folder has none.
pub fn read(dir: &Path) -> io::Result<Vec<ContainerRecord>> {
    let entries = match std::fs::read_dir(folder(dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            records.push(parse(&path)?);
        }
    }
    records.sort_by(|a: &ContainerRecord, b| a.id.cmp(&b.id));
    Ok(records)
}

fn parse<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let bytes = std::fs::read(path)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display())))
}

fn replace<T: Serialize>(folder: &Path, name: &str, value: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    let partial = folder.join(format!("{name}.new"));
    std::fs::write(&partial, bytes)?;
    std::fs::rename(&partial, folder.join(name))
}
