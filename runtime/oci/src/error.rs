//! What can go wrong, in the words that engines know from runc.

use std::path::PathBuf;

use pith_container::compile::CompileError;
use pith_container::hooks::HookError;
use pith_container::plan::Failure;

use crate::state::Status;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("No help topic for '{0}'")]
    UnknownCommand(String),
    #[error("invalid container ID format")]
    InvalidId,
    #[error("container with given ID already exists")]
    Exists,
    #[error("container does not exist")]
    NotFound,
    #[error("cannot start an already running container")]
    AlreadyRunning,
    #[error("cannot start a container that has stopped")]
    AlreadyStopped,
    #[error("cannot start a container that is being created")]
    StillCreating,
    #[error("container not running")]
    NotRunning,
    #[error("container not running or created: {0}")]
    CannotPause(Status),
    #[error("container not paused")]
    NotPaused,
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped { id: String, status: Status },
    #[error("cannot exec in a {0} container")]
    CannotExec(Status),
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    ExecPaused,
    #[error("exec failed: {0}")]
    Exec(Box<Error>),
    #[error("{0} is not a sub cgroup path")]
    NotBelow(String),
    #[error("unknown controller {0} in the path of a cgroup")]
    UnknownController(String),
    #[error("failed to connect with seccomp agent specified in the seccomp profile: {}: {source}", path.display())]
    Agent { path: PathBuf, source: std::io::Error },
    #[error("unknown signal {0:?}")]
    UnknownSignal(String),
    #[error("JSON specification file {} not found", .0.display())]
    NoConfig(PathBuf),
    #[error("{path}: {source}")]
    Config { path: PathBuf, source: serde_json::Error },
    #[error("config.json: {0}")]
    Invalid(String),
    #[error("config.json: {0}")]
    Compile(#[from] CompileError),
    #[error("unable to start container process: {0}")]
    Start(Failure),
    #[error(
        "unable to start container process: the container's process was killed while it was being set up"
    )]
    Died,
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("cgroup: {}", chain(.0))]
    Cgroup(#[from] pith_cgroup::Error),
    #[error("container's cgroup is not empty: {processes} process(es) found in {path}")]
    CgroupInUse { path: String, processes: usize },
    #[error("container's cgroup unexpectedly frozen: {path}")]
    CgroupFrozen { path: String },
    #[error("cgroup path {path:?} leaves the cgroup tree")]
    CgroupPath { path: String },
    #[error("systemd not running on this host, cannot use systemd cgroups manager")]
    NoSystemd,
    #[error("{0} is not supported: this runtime makes no checkpoints")]
    NoCheckpoint(&'static str),
    #[error("{operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{operation}: {source}")]
    Kernel { operation: &'static str, source: rustix::io::Errno },
    #[error("{0}")]
    Console(&'static str),
    #[error("state of {id}: {source}")]
    State { id: String, source: serde_json::Error },
}

fn chain(error: &pith_cgroup::Error) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl Error {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { operation, path, source }
    }

    pub(crate) fn kernel(operation: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
        move |source| Error::Kernel { operation, source }
    }

    /// What the command exits with.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::UnknownCommand(_) => 3,
            // Not to be taken for the command's own.
            Error::Exec(_) => 255,
            _ => 1,
        }
    }
}
