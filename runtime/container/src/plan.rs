//! What a container is made of: an ordered list of kernel steps.
//!
//! A [`Plan`] is data. It is computed without touching the kernel (see [`crate::compile`]), travels to the
//! supervisor as JSON, prints in words (`--explain`, error messages, snapshots in tests), and is carried
//! out from top to bottom by [`crate::execute`] inside the new process. Nothing else happens there.
//!
//! Steps hand descriptors to each other through numbered slots: a step that makes a mount, or opens a
//! directory, puts it into a [`Slot`]; a later one attaches it. So no mount exists under a path before it
//! is complete, and nothing is looked up twice.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A process of a container, from `clone3` to `execve`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Steps that the supervisor carries out with its own rights, and whose slots the process inherits: mounts of
    /// files that the root of a user namespace may not reach, and mounts with mapped owners.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outside: Vec<Step>,
    /// User and pid namespaces in which the process is born: setns(2) holds for children only (pid), or comes
    /// before everything else (user).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub born_in: Vec<(Namespace, PathBuf)>,
    /// Namespaces that `clone3` makes new for the process.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
    /// Offsets of the clocks in a new time namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clocks: Vec<Clock>,
    /// The identity maps of a new user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mappings: Option<Mappings>,
    /// The directory of the version 2 cgroup in which `clone3` bears the process (`CLONE_INTO_CGROUP`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// What the process does to itself, in this order.
    pub steps: Vec<Step>,
    /// What it becomes.
    pub exec: Exec,
}

/// The last step: the program that replaces the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments; a name without a slash is looked up in the `PATH` of `env`.
    pub args: Vec<String>,
    /// `KEY=value`, in order. Without a `HOME` the home directory is taken from the root's `/etc/passwd`.
    pub env: Vec<String>,
}

/// A clock's offset in a time namespace, against the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// `monotonic` or `boottime` (time_namespaces(7)).
    pub name: String,
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// Which numbers inside a user namespace stand for which outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mappings {
    pub uids: Vec<Mapping>,
    pub gids: Vec<Mapping>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    pub inside: u32,
    pub outside: u32,
    pub size: u32,
}

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    User,
    Mount,
    Pid,
    Network,
    Ipc,
    Uts,
    Cgroup,
    Time,
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Namespace::User => "user",
            Namespace::Mount => "mount",
            Namespace::Pid => "pid",
            Namespace::Network => "network",
            Namespace::Ipc => "ipc",
            Namespace::Uts => "uts",
            Namespace::Cgroup => "cgroup",
            Namespace::Time => "time",
        })
    }
}

/// A numbered place that holds a descriptor between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u16);

/// The highest number of slots a plan may use: a bound on descriptors held during set-up.
pub const MAX_SLOTS: u16 = 512;

/// `MOUNT_ATTR_*` bits to set and to clear (mount_setattr(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    #[serde(default)]
    pub set: u64,
    #[serde(default)]
    pub clear: u64,
}

/// How mounts below a mount point travel between mount namespaces (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    Shared,
    Slave,
    Private,
    Unbindable,
}

/// Where a bind mount comes from, in the file system as the supervisor sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub path: PathBuf,
    /// With a base, `path` is resolved beneath it without following any link: for a volume's `subPath`,
    /// whose content a container may have written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beneath: Option<PathBuf>,
}

/// A node in `/dev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub name: String,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    /// Permission bits, not subject to the umask.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    Character,
    Block,
    Fifo,
}

/// Who the process becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// By number. With `passwd`, groups that the root's `/etc/group` gives that user are added.
    Ids { uid: u32, gid: u32, groups: Vec<u32> },
    /// As image configurations say it (`user`, `user:group`, numbers or names), looked up in the root's
    /// `/etc/passwd` and `/etc/group`. A name that is not there is an error, never user 0.
    Named { user: String, groups: Vec<u32> },
}

/// The five capability sets as bit masks (bit n is capability n of capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// A size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    pub rows: u16,
    pub columns: u16,
}

/// One thing the new process asks of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Step {
    // --- where the process belongs
    /// Moves the process into a version 1 cgroup through `tasks`: a thread that moves itself there does
    /// not wait for the grace period that `cgroup.procs` waits for (kernel/cgroup/cgroup.c,
    /// cgroup_procs_write_start: `pid || threadgroup`).
    JoinCgroup {
        dir: PathBuf,
    },
    /// Enters an existing namespace, by path.
    JoinNamespace {
        namespace: Namespace,
        path: PathBuf,
    },
    /// Enters namespaces of the container that the supervisor names with a pidfd, all at once.
    JoinTarget {
        namespaces: Vec<Namespace>,
    },
    /// Makes the cgroups joined so far the root of what the process sees.
    NewCgroupNamespace,
    /// Waits until the supervisor has written the uid and gid maps of the new user namespace.
    AwaitMappings,
    /// Becomes user and group 0 of the user namespace: what is made from here on belongs to them.
    NamespaceRoot,
    /// Leaves the inherited session keyring for a new one.
    SessionKeyring {
        name: String,
    },
    /// Waits until the supervisor has run its hooks of a stage.
    AwaitHooks {
        stage: Stage,
    },
    /// Runs hooks in the container's namespaces, with the state that the supervisor hands over.
    RunHooks {
        stage: Stage,
        hooks: Vec<Hook>,
    },
    /// Hides `/proc/<pid>` of the process from the container until `execve`.
    Undumpable,
    /// Dies by SIGKILL when the supervisor dies.
    DieWithParent,
    /// Lets the OOM killer prefer (or spare) the process.
    OomScore {
        value: i32,
    },

    // --- mounts, made aside
    /// Keeps what is mounted from here on out of every other mount namespace.
    IsolateMounts,
    /// A new file system, complete before anyone can see it.
    Filesystem {
        slot: Slot,
        kind: String,
        source: String,
        /// `fsconfig` keys in order; a key without a value is a flag.
        options: Vec<(String, Option<String>)>,
        attributes: u64,
    },
    /// An overlay root. Kernels before 6.7 take its layers only by mount(2): then it is mounted at `at`.
    Overlay {
        slot: Slot,
        lower: Vec<PathBuf>,
        upper: Option<PathBuf>,
        work: Option<PathBuf>,
        at: PathBuf,
    },
    /// A copy of a mount (with those below it if `recursive`).
    Bind {
        slot: Slot,
        source: Source,
        recursive: bool,
    },
    /// A device node of the host, verified: for user namespaces, where none can be made.
    BindDevice {
        slot: Slot,
        device: Device,
    },
    /// Shows the owners of a mount made aside as the mappings say.
    MapIds {
        slot: Slot,
        mappings: Mappings,
        recursive: bool,
    },
    /// Changes the attributes of a mount made aside.
    SetAttributes {
        slot: Slot,
        attributes: Attributes,
        propagation: Option<Propagation>,
        recursive: bool,
    },
    /// The host's /dev/null, verified, with which files are masked.
    OpenNull {
        slot: Slot,
    },
    /// A directory, in the root once it has been entered.
    OpenDirectory {
        slot: Slot,
        path: PathBuf,
    },
    MakeDirectory {
        slot: Slot,
        name: String,
        mode: u32,
    },
    MakeDevice {
        slot: Slot,
        device: Device,
    },
    MakeLink {
        slot: Slot,
        name: String,
        target: String,
    },

    // --- the root
    /// Attaches the root file system.
    PlaceRoot {
        slot: Slot,
        at: PathBuf,
    },
    /// Makes it `/` and lets go of everything that was there before.
    EnterRoot {
        how: Enter,
    },
    /// Makes a directory the root without a mount namespace: chroot(2) alone.
    ChangeRoot {
        at: PathBuf,
    },
    /// Copies what the root has at a path into a file system made aside, which is about to cover it.
    CopyUp {
        slot: Slot,
        path: PathBuf,
    },
    /// Changes the attributes of what is mounted at a path in the root.
    Remount {
        target: PathBuf,
        attributes: Attributes,
        recursive: bool,
    },
    /// Attaches a mount below the root; the target is made if it is missing and never leaves the root.
    Attach {
        slot: Slot,
        target: PathBuf,
    },
    /// Covers paths: files with /dev/null, directories with one empty read-only tmpfs. Missing ones are
    /// skipped.
    Mask {
        paths: Vec<PathBuf>,
        null: Slot,
        empty: Slot,
    },
    /// Makes paths read-only, with everything below. Missing ones are skipped.
    ReadOnly {
        paths: Vec<PathBuf>,
    },
    /// Writes a kernel parameter through the root's own procfs.
    Sysctl {
        key: String,
        value: String,
    },
    ReadOnlyRoot,
    RootPropagation {
        propagation: Propagation,
        #[serde(default)]
        recursive: bool,
    },
    Hostname {
        name: String,
    },
    Domainname {
        name: String,
    },

    // --- the process
    /// Detaches from the supervisor's session.
    NewSession,
    /// Opens a terminal in the root's devpts, hands its master to the supervisor and makes it the
    /// controlling terminal; with `console` it is also bound to /dev/console.
    Terminal {
        size: Option<WindowSize>,
        console: bool,
    },
    ResourceLimit {
        resource: String,
        soft: u64,
        hard: u64,
    },
    /// Sets the execution domain (personality(2)).
    Personality {
        persona: u64,
    },
    /// Sets how the process is scheduled (sched_setattr(2)).
    Scheduler {
        scheduling: Scheduling,
    },
    /// Class 1 real time, 2 best effort, 3 idle; level 0 to 7 (ioprio_set(2)).
    IoPriority {
        class: u32,
        level: u32,
    },
    /// The processors it may run on.
    CpuAffinity {
        cpus: Vec<u32>,
    },
    /// Mode with flags, and nodes as bits (set_mempolicy(2)).
    MemoryPolicy {
        mode: u32,
        nodes: Vec<u64>,
    },
    /// Asks a security module to change the label at `execve`: writes to `/proc/self/attr/<file>`.
    Label {
        file: String,
        value: String,
    },
    /// Makes the working directory if it is missing and enters it, inside the root.
    WorkingDirectory {
        path: PathBuf,
    },
    Umask {
        mask: u32,
    },
    /// Drops the bounding set, becomes the user, and sets the other four capability sets.
    Become {
        identity: Identity,
        capabilities: Capabilities,
    },
    NoNewPrivileges,
    /// Loads a seccomp filter: `sock_filter` records as 64-bit words (little endian).
    Seccomp {
        program: Vec<u64>,
        flags: u32,
        /// Hands the descriptor for calls that the filter leaves to somebody else to the supervisor.
        #[serde(default)]
        listener: bool,
    },
}

/// How the root is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Enter {
    /// pivot_root(2): nothing of the old root is left in the namespace.
    Pivot,
    /// Moved over `/` and chroot(2), where `/` is an initial ramfs that cannot be pivoted away.
    Move,
}

/// When in a container's life hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Prestart => "prestart",
            Stage::CreateRuntime => "createRuntime",
            Stage::CreateContainer => "createContainer",
            Stage::StartContainer => "startContainer",
            Stage::Poststart => "poststart",
            Stage::Poststop => "poststop",
        })
    }
}

/// A program that is run at a stage, with the container's state on its standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    pub path: PathBuf,
    /// The whole argument vector; empty is the path alone.
    #[serde(default)]
    pub args: Vec<String>,
    /// Absent: the caller's.
    #[serde(default)]
    pub env: Option<Vec<String>>,
    #[serde(default)]
    pub timeout_s: Option<u64>,
}

/// Numbers of sched_setattr(2); times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Scheduling {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime_ns: u64,
    pub deadline_ns: u64,
    pub period_ns: u64,
}

/// Why a container process could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    /// The step that failed, in words.
    pub step: String,
    /// The kernel's error number, 0 where it was not the kernel who refused.
    pub errno: i32,
    /// What a user should read, as other runtimes word it.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// The program does not exist.
    NotFound,
    /// The program exists but cannot be executed.
    NotExecutable,
    /// The user or group is unknown.
    UnknownUser,
    /// The kernel refused a step of the set-up.
    Setup,
    /// A hook failed.
    Hook,
    /// The process died during set-up without a word (OOM, kill).
    Died,
}

impl Failure {
    /// The exit code that stands for this failure, as shells and container engines agree on.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self.kind {
            FailureKind::NotFound => 127,
            FailureKind::NotExecutable => 126,
            FailureKind::UnknownUser | FailureKind::Setup | FailureKind::Hook | FailureKind::Died => 128,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
