//! What steps are about.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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

/// How the root is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Enter {
    /// pivot_root(2): nothing of the old root is left in the namespace.
    Pivot,
    /// Moved over `/` and chroot(2), where `/` is an initial ramfs that cannot be pivoted away.
    Move,
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
