//! What a kubelet leaves on files in a pod's run folder, so that the next one can take over.
//!
//! | file | content |
//! |---|---|
//! | `pod.json` | the object, for a pod that is gone from the API meanwhile |
//! | `kubelet.json` | [`Record`]: addresses, attempts, images, exits |
//! | `specs/<container id>.json` | [`Base`]: what `exec` needs |
//!
//! The folder is on memory, files are replaced by rename, nothing is synced: after a power cut no
//! container runs either.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use pith_container::supervisor::protocol::CgroupDirs;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    backoff::Backoff,
    observed::{ContainerId, Exit},
};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) start_time: Option<Timestamp>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) containers: BTreeMap<String, ContainerRecord>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    /// The container of the newest attempt.
    pub(crate) id: ContainerId,
    pub(crate) attempt: u32,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) backoff: Backoff,
    pub(crate) last: Option<Exit>,
    pub(crate) exit: Option<Exit>,
}

/// The specification a container was made from, and what it does not say.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Base {
    pub(crate) spec: oci_spec::runtime::Spec,
    pub(crate) user: String,
    pub(crate) default_seccomp: bool,
    pub(crate) cgroup: CgroupDirs,
    pub(crate) stop_signal: Option<String>,
    pub(crate) pid: i32,
}

const POD: &str = "pod.json";
const RECORD: &str = "kubelet.json";
const SPECS: &str = "specs";

impl Record {
    pub(crate) fn save(&self, run: &Path) -> io::Result<()> {
        replace(&run.join(RECORD), self)
    }

    /// The record of a pod; an empty one if there is none.
    pub(crate) fn load(run: &Path) -> io::Result<Self> {
        Ok(read(&run.join(RECORD))?.unwrap_or_default())
    }
}

pub(crate) fn save_pod(run: &Path, pod: &Pod) -> io::Result<()> {
    replace(&run.join(POD), pod)
}

pub(crate) fn load_pod(run: &Path) -> io::Result<Option<Pod>> {
    read(&run.join(POD))
}

fn base_path(run: &Path, id: &ContainerId) -> PathBuf {
    run.join(SPECS).join(format!("{}.json", id.0))
}

pub(crate) fn save_base(run: &Path, id: &ContainerId, base: &Base) -> io::Result<()> {
    fs::create_dir_all(run.join(SPECS))?;
    replace(&base_path(run, id), base)
}

pub(crate) fn load_base(run: &Path, id: &ContainerId) -> io::Result<Option<Base>> {
    read(&base_path(run, id))
}

pub(crate) fn remove_base(run: &Path, id: &ContainerId) {
    // Nothing depends on it being gone; the whole folder goes with the pod.
    let _ = fs::remove_file(base_path(run, id));
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let value = serde_json::from_slice(&bytes);
    value
        .map(Some)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display())))
}

fn replace<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let partial = path.with_extension("new");
    fs::write(&partial, serde_json::to_vec(value)?)?;
    fs::rename(&partial, path)
}
