//! A whole cluster on one machine: its name, its folders, and the choices made when it was first started.
//!
//! ```text
//! D/cluster.json   name, subnets, port, replicas: written by the first `up`, read by all others
//! D/kubeconfig     admin credentials
//! D/primary/       store and keys          D/replicas/replica-N/   images, volumes, credentials
//! D/logs/          one file a process      /run/pith/NAME/         pid files, sockets
//! ```
//!
//! `up` is level-triggered: it starts whatever of this is not running, so it is also how a killed primary or
//! replica comes back. `down` removes all of it, whatever state it is in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use pith_network::names::ClusterName;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::cli::{ClusterArgs, DEFAULT_DIR, LimitArgs, ReplicaImageArgs, TimeArgs};

pub(crate) mod down;
pub(crate) mod process;
pub(crate) mod status;
pub(crate) mod up;

use process::{Daemon, write_atomically};

const RUN_DIR: &str = "/run/pith";
const BPF_DIR: &str = "/sys/fs/bpf";

/// What the first `up` settled and every later command relies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) node_cidr: Ipv4Net,
    pub(crate) pod_cidr: Ipv4Net,
    pub(crate) service_cidr: Ipv4Net,
    #[serde(default)]
    pub(crate) dual_stack: bool,
    pub(crate) port: u16,
    pub(crate) replicas: u16,
    #[serde(default)]
    pub(crate) times: TimeArgs,
    #[serde(default)]
    pub(crate) images: ReplicaImageArgs,
    #[serde(default)]
    pub(crate) limits: LimitArgs,
    /// What `--outside` said.
    #[serde(default = "outside_by_default")]
    pub(crate) outside: String,
}

fn outside_by_default() -> String {
    "auto".to_owned()
}

/// The folders of one cluster. They may not exist yet, or no more.
pub(crate) struct Cluster {
    pub(crate) name: ClusterName,
    pub(crate) dir: PathBuf,
}

impl Cluster {
    pub(crate) fn new(args: &ClusterArgs) -> Result<Self> {
        let dir = match &args.dir {
            Some(dir) => std::path::absolute(dir).with_context(|| format!("resolve {}", dir.display()))?,
            None => default_dir(&args.name),
        };
        Ok(Self { name: args.name.clone(), dir })
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub(crate) fn primary_dir(&self) -> PathBuf {
        self.dir.join("primary")
    }

    pub(crate) fn replica_dir(&self, replica: &str) -> PathBuf {
        self.dir.join("replicas").join(replica)
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        Path::new(RUN_DIR).join(self.name.to_string())
    }

    /// The cluster's subtree in each cgroup hierarchy, relative to its root.
    pub(crate) fn cgroup(&self) -> String {
        format!("pith-{}", self.name)
    }

    /// Where the cluster's maps and links are pinned.
    pub(crate) fn bpf_dir(&self) -> PathBuf {
        Path::new(BPF_DIR).join(format!("pith-{}", self.name))
    }

    /// Where those of the way out of this machine are.
    pub(crate) fn gateway_bpf_dir(&self) -> PathBuf {
        self.bpf_dir().join("gateway")
    }

    /// Exists when `up` had to mount the bpffs itself: then `down` unmounts it. Outside the run folder, since
    /// that goes first.
    pub(crate) fn bpffs_note(&self) -> PathBuf {
        Path::new(RUN_DIR).join("bpffs-mounted")
    }

    pub(crate) fn daemon(&self, name: &str) -> Daemon {
        Daemon::new(name, &self.run_dir(), &self.log_dir())
    }

    /// The settings of the first `up`; `None` when there was none.
    pub(crate) fn settings(&self) -> Result<Option<Settings>> {
        let path = self.dir.join("cluster.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let settings: Settings = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} is damaged: run `pith down`", path.display()))?;
                if settings.name != self.name.to_string() {
                    bail!(
                        "{} belongs to the cluster {:?}: use --name {} or another --dir",
                        self.dir.display(),
                        settings.name,
                        settings.name
                    );
                }
                Ok(Some(settings))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    pub(crate) fn save(&self, settings: &Settings) -> Result<()> {
        let text = serde_json::to_string_pretty(settings).context("write settings as JSON")?;
        write_atomically(&self.dir.join("cluster.json"), &text)
    }

    /// Keeps other `up`s and `down`s of this cluster away for as long as the file is held.
    pub(crate) fn lock(&self) -> Result<fs::File> {
        fs::create_dir_all(RUN_DIR).with_context(|| format!("create {RUN_DIR}"))?;
        let path = Path::new(RUN_DIR).join(format!("{}.lock", self.name));
        let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!("another `pith up` or `pith down` is at work on the cluster \"{}\"", self.name)
            }
            Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// Removes the lock file together with its folder, when nothing else of pith runs on this machine.
    pub(crate) fn remove_lock(&self, lock: fs::File) -> Result<()> {
        process::remove_if_there(&Path::new(RUN_DIR).join(format!("{}.lock", self.name)))?;
        drop(lock);
        match fs::remove_dir(RUN_DIR) {
            Err(error)
                if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) =>
            {
                Err(error).with_context(|| format!("remove {RUN_DIR}"))
            }
            _ => Ok(()),
        }
    }
}

pub(crate) fn replica_name(number: u16) -> String {
    format!("replica-{number}")
}

fn default_dir(name: &ClusterName) -> PathBuf {
    match name.to_string().as_str() {
        "pith" => PathBuf::from(DEFAULT_DIR),
        other => PathBuf::from(format!("{DEFAULT_DIR}-{other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_another_cluster_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mine = Cluster { name: ClusterName::parse("mine").expect("a name"), dir: dir.path().into() };
        assert_eq!(mine.settings().expect("an empty folder is fine"), None);
        let settings = Settings {
            name: "other".into(),
            node_cidr: "172.30.0.0/24".parse().expect("a network"),
            pod_cidr: "10.1.0.0/16".parse().expect("a network"),
            service_cidr: "10.96.0.0/16".parse().expect("a network"),
            dual_stack: false,
            port: 6443,
            replicas: 3,
            times: TimeArgs::default(),
            images: ReplicaImageArgs::default(),
            limits: LimitArgs::default(),
            outside: "none".into(),
        };
        mine.save(&settings).expect("saved");
        let error = mine.settings().expect_err("another name").to_string();
        assert!(error.contains("--name other"), "{error}");
    }
}
