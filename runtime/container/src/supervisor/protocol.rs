//! What the kubelet and `pith-podd` say to each other.
//!
//! The socket is `podd.sock` in the pod's run directory, of type SOCK_SEQPACKET: one packet is one JSON
//! message with the descriptors that belong to it. A connection carries one [`Request`]:
//!
//! ```text
//! most requests   → Request   ← Reply                                     close
//! Subscribe       → Request   ← Reply::State  ← Event  ← Event  …         until either side closes
//! Exec            → Request   ← Reply::Started  ← Reply::Exited           closing early kills the process
//! ```
//!
//! A message larger than [`MAX_PACKET`] travels in a memfd, as the first descriptor of an empty packet.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::plan::{Failure, Plan, WindowSize};

/// The largest message sent as a packet; the default socket buffer takes 208 KiB.
pub const MAX_PACKET: usize = 64 * 1024;
/// The largest message at all: environments are bounded by the kernel's 2 MiB for execve.
pub const MAX_MESSAGE: usize = 8 * 1024 * 1024;
/// Descriptors a message may carry.
pub const MAX_FDS: usize = 4;
/// Version of this protocol; podd of an older kubelet is spoken to or refused by it.
pub const PROTOCOL: u32 = 1;

/// Nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixNanos(pub u64);

/// Directories of one cgroup in the hierarchies of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupDirs {
    /// In the version 2 tree (also where that tree has no controllers): for tracking and killing.
    pub unified: Option<PathBuf>,
    /// In each version 1 controller.
    pub legacy: Vec<PathBuf>,
}

/// What a pod's supervisor holds for all its containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The pod's run directory (must exist, best on tmpfs): socket and records live here.
    pub dir: PathBuf,
    pub hostname: String,
    #[serde(default)]
    pub host_network: bool,
    #[serde(default)]
    pub host_ipc: bool,
    #[serde(default)]
    pub host_pid: bool,
    /// One pid namespace for all containers of the pod, under a process of the supervisor.
    #[serde(default)]
    pub share_pid: bool,
    /// Namespaced kernel parameters (`net.*`, `kernel.shm*`, …).
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    /// Where the supervisor itself belongs.
    #[serde(default)]
    pub cgroup: CgroupDirs,
    /// Memory-backed file systems of the pod, mounted in the supervisor's own mount namespace: there the
    /// containers' bind mounts find them, and they end with the supervisor. Reachable from outside as
    /// `/proc/<pid of the supervisor>/root/<path>`. /dev/shm of the pod is one of them.
    #[serde(default)]
    pub tmpfs: Vec<SharedTmpfs>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedTmpfs {
    /// An existing directory.
    pub path: PathBuf,
    /// Bytes; 0 leaves the kernel's default (half of memory).
    #[serde(default)]
    pub size: u64,
    /// Permission bits of its root, `0o1777` for /dev/shm.
    pub mode: u32,
    #[serde(default)]
    pub noexec: bool,
}

/// One container to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique in the pod; letters, digits, `-`, `_` and `.`.
    pub id: String,
    pub plan: Plan,
    /// Its cgroup; the supervisor kills through it what is left when the container's process ends.
    pub cgroup: CgroupDirs,
    pub log: Option<LogSpec>,
    /// Keeps a standard input open for `attach`; otherwise it is /dev/null.
    #[serde(default)]
    pub stdin: bool,
    /// The first `attach` that closes its input ends the container's.
    #[serde(default)]
    pub stdin_once: bool,
    /// The plan has a `Terminal` step; all output is one stream.
    #[serde(default)]
    pub tty: bool,
}

/// A log file in CRI format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpec {
    pub path: PathBuf,
    /// Rotated once it is at least this long, in bytes; 0 never.
    #[serde(default)]
    pub max_size: u64,
    /// Files kept, with the one being written.
    #[serde(default)]
    pub max_files: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Sets a container up to just before `execve`; with `start` goes on into the program.
    Create {
        spec: Box<ContainerSpec>,
        start: bool,
    },
    /// Lets a created container execute its program.
    Start {
        id: String,
    },
    /// Sends a signal to the container's first process, or with `all` SIGKILLs its whole cgroup.
    Signal {
        id: String,
        signal: i32,
        #[serde(default)]
        all: bool,
    },
    /// Runs a process in a running container. Descriptors: stdin, stdout, stderr in this order, those
    /// that `stdio` names. With `tty` there are none, and `Started` brings the terminal's master.
    Exec {
        id: String,
        plan: Box<Plan>,
        stdio: ExecStdio,
        tty: Option<WindowSize>,
    },
    /// Connects to a running container. Descriptors sent: where to copy stdout and stderr to, those named.
    /// The reply brings the write end of stdin if it was asked for (with a terminal: its master, which
    /// also takes resizes).
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Begins a new log file, as after the kubelet moved the old one away.
    ReopenLog {
        id: String,
    },
    /// Forgets a container that has ended (or never started) and its record.
    Delete {
        id: String,
    },
    State,
    Subscribe,
    /// Kills every container, then ends the supervisor.
    Shutdown,
}

/// Which of its standard streams a process gets from the caller; the others are /dev/null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStdio {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    Done,
    State(SandboxState),
    /// A container or an exec reached this state.
    Container(ContainerRecord),
    Started {
        pid: i32,
    },
    Exited(Exit),
    Refused(Refusal),
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum Refusal {
    #[error("container {id} does not exist")]
    NoSuchContainer { id: String },
    #[error("container {id} exists already")]
    Exists { id: String },
    #[error("container {id} is {phase}, the request needs it {needed}")]
    WrongPhase { id: String, phase: Phase, needed: String },
    #[error("{0}")]
    Start(Failure),
    #[error("invalid request: {message}")]
    Invalid { message: String },
    #[error("{operation}: {message}")]
    System { operation: String, errno: i32, message: String },
    #[error("the pod is shutting down")]
    ShuttingDown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Being set up.
    Creating,
    /// Set up, waiting for `Start`.
    Created,
    Running,
    /// Ended, or failed to start.
    Exited,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Phase::Creating => "being created",
            Phase::Created => "created",
            Phase::Running => "running",
            Phase::Exited => "not running",
        })
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code; 128 + signal for one that was killed.
    pub code: i32,
    /// The signal that killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    pub at: UnixNanos,
}

/// All that is known of a container; also the content of `containers/<id>.json` in the run directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub phase: Phase,
    /// Its process in the host's pid namespace; 0 before there is one.
    pub pid: i32,
    pub created_at: UnixNanos,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<UnixNanos>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Why it never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What had to be left out on this machine (a limit that needs a missing capability, …).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
}

/// The supervisor and everything in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    pub protocol: u32,
    /// The supervisor, in the host's pid namespace.
    pub pid: i32,
    pub containers: Vec<ContainerRecord>,
}

/// Something that happened, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// A container changed its phase; the record as it is now.
    Container(ContainerRecord),
    /// A container was deleted.
    Deleted { id: String },
}

/// What a freshly started supervisor says on its first descriptor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Boot {
    /// It listens. `notices`: what this machine does not allow.
    Ready {
        notices: Vec<String>,
    },
    Failed {
        message: String,
    },
}

impl From<&pith_cgroup::Cgroup> for CgroupDirs {
    /// The directories that exist now: call it after limits were applied.
    fn from(cgroup: &pith_cgroup::Cgroup) -> CgroupDirs {
        let unified = cgroup.v2_dir();
        let legacy = cgroup.dirs().into_iter().filter(|dir| Some(dir) != unified.as_ref()).collect();
        CgroupDirs { unified, legacy }
    }
}
