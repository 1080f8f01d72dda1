//! What a container is made of: an ordered list of kernel steps.
//!
//! A [`Plan`] is data. It is computed without touching the kernel (see [`crate::compile`]), travels to the
//! supervisor as JSON, prints in words (`--explain`, error messages, snapshots in tests), and is carried
//! out from top to bottom by [`crate::execute`] inside the new process. Nothing else happens there.
//!
//! Steps hand descriptors to each other through numbered slots: a step that makes a mount, or opens a
//! directory, puts it into a [`Slot`]; a later one attaches it. So no mount exists under a path before it
//! is complete, and nothing is looked up twice.

mod failure;
mod hook;
mod step;
mod value;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use failure::{Failure, FailureKind};
pub use hook::{Hook, Stage};
pub use step::Step;
pub use value::{
    Attributes, Capabilities, Device, DeviceKind, Enter, Identity, MAX_SLOTS, Propagation, Scheduling, Slot,
    Source, WindowSize,
};

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
    /// What is left for when nothing else is to be done before `execve`: a seccomp filter need not allow what the
    /// runtime itself does between the steps and the program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last: Vec<Step>,
    /// What it becomes.
    pub exec: Exec,
}

impl Plan {
    /// A step by its number, those of `last` after the others.
    #[must_use]
    pub fn step(&self, index: usize) -> Option<&Step> {
        self.steps.iter().chain(&self.last).nth(index)
    }
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
