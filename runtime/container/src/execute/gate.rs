//! Waiting: for the supervisor's word, and for whoever starts the container; and the hooks in between.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use crate::hooks;
use crate::plan::{Failure, FailureKind, Hook, Stage};
use crate::supervisor::wire;

use super::{Executor, StepError, StepResult};

impl Executor {
    /// What the supervisor says. Its end is the end of the wait as well: nobody is left to run for.
    pub(super) fn wait_for_word(&self) -> Vec<u8> {
        match wire::receive_bytes(self.control.as_fd(), true) {
            Ok((bytes, _)) => bytes,
            Err(_) => pith_sys::process::exit_now(1),
        }
    }

    /// Waits for a connection that brings the container's state; what follows is reported on it.
    pub(super) fn wait_at_gate(&mut self) -> Result<Vec<u8>, Failure> {
        let gate = self.gate.take().ok_or_else(|| broken(Errno::BADF))?;
        loop {
            let connection = accept(&gate).map_err(broken)?;
            // Who connects only to see whether somebody waits here says nothing.
            if let Ok((state, _)) = wire::receive_bytes(connection.as_fd(), true) {
                self.control = connection;
                return Ok(state);
            }
        }
    }
}

/// The socket listens without blocking; this waits.
fn accept(gate: &OwnedFd) -> Result<OwnedFd, Errno> {
    loop {
        match rustix::net::accept_with(gate, rustix::net::SocketFlags::CLOEXEC) {
            Err(Errno::AGAIN) => {
                let mut fds = [rustix::event::PollFd::new(gate, rustix::event::PollFlags::IN)];
                match rustix::event::poll(&mut fds, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            accepted => return accepted,
        }
    }
}

fn broken(errno: Errno) -> Failure {
    Failure {
        kind: FailureKind::Setup,
        step: "wait to be started".to_owned(),
        errno: errno.raw_os_error(),
        message: format!("wait to be started: {errno}"),
    }
}

pub(super) fn run_hooks(stage: Stage, hooks: &[Hook], state: &[u8]) -> StepResult {
    hooks::run_all(stage, hooks, state).map_err(|error| StepError {
        kind: FailureKind::Hook,
        errno: None,
        detail: error.to_string(),
    })
}
