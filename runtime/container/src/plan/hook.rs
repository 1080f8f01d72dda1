//! Hooks: programs of an engine, run at stages of a container's life.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
