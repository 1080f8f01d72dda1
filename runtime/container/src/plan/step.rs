//! The steps: the vocabulary of plans.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    Attributes, Capabilities, Device, Enter, Hook, Identity, Mappings, Namespace, Propagation, Scheduling,
    Slot, Source, Stage, WindowSize,
};

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
    /// Brings `lo` of a new network namespace up: it is born with it down.
    Loopback,
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
        /// Whoever mounts it is root of a user namespace only: overlayfs keeps its notes in attributes that such a one
        /// may write.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        user_attributes: bool,
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
    /// Gives a file system made aside the mode of the directory that it is about to cover.
    CopyMode {
        slot: Slot,
        path: PathBuf,
    },
    /// Changes the attributes of what is mounted at a path in the root.
    Remount {
        target: PathBuf,
        attributes: Attributes,
        recursive: bool,
    },
    /// Makes sure that no link leads to the directory at a path, where one is there.
    NoLink {
        path: PathBuf,
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
        /// Keeps CAP_SYS_ADMIN until the filter has been loaded, see [`Step::GiveUpFilterRight`].
        #[serde(default)]
        filters: bool,
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
    /// Leaves the process with the capabilities it is to have: loading a filter without no_new_privs took one more.
    GiveUpFilterRight,
}
