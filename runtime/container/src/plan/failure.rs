//! Why a plan could not be carried out.

use std::fmt;

use serde::{Deserialize, Serialize};

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
