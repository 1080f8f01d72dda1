//! `start`: lets the process that waits at a container's gate become its program.

use std::os::fd::{AsFd, OwnedFd};

use pith_container::execute::Report;
use pith_container::plan::{Plan, Stage};
use pith_container::supervisor::wire::{self, WireError};

use crate::bundle::parse_version;
use crate::create::run_hooks;
use crate::delete;
use crate::error::{Error, Result};
use crate::state::{Folder, State, Status};
use crate::witness::{By, Witness, tell_step};

pub(crate) fn start(folder: &Folder, witness: &dyn Witness) -> Result<()> {
    let state = folder.load()?;
    let Some(gate) = folder.knock() else {
        return Err(match state.status(folder) {
            Status::Creating => Error::StillCreating,
            Status::Stopped => Error::AlreadyStopped,
            Status::Created | Status::Running | Status::Paused => Error::AlreadyRunning,
        });
    };
    start_at(&gate, folder, &state, None, witness)
}

/// The same for who has knocked already. With the plan at hand its last steps are told of.
pub(crate) fn start_at(
    gate: &OwnedFd,
    folder: &Folder,
    state: &State,
    plan: Option<&Plan>,
    witness: &dyn Witness,
) -> Result<()> {
    if !state.has_program {
        delete::end(folder, state)?;
        return Err(Error::Invalid("process is missing: there is nothing to start".to_owned()));
    }
    let pid = state.process.map_or(0, |process| process.pid);
    // Hooks in the container see its pid namespace, in which its first process is 1.
    let inside = if state.own_pids { 1 } else { pid };
    let go = state.for_hooks(Status::Created, inside);
    wire::send_bytes(gate.as_fd(), &go, &[], true).map_err(|_| Error::AlreadyRunning)?;
    let mut executing = false;
    loop {
        match wire::receive::<Report>(gate.as_fd(), true) {
            Ok((Report::Failed(failure), _)) => {
                folder.remove_gate();
                return Err(Error::Start(failure));
            }
            Ok((Report::Executing, _)) => executing = true,
            Ok((Report::Step { index, carried }, _)) => {
                if let Some(step) = plan.and_then(|plan| plan.step(index)) {
                    tell_step(witness, By::Container, step, carried);
                }
            }
            Ok(_) => {}
            // The socket is closed by execve: the program runs.
            Err(WireError::Closed) if executing => break,
            // Somebody else was let in before.
            Err(_) if state.process.is_some_and(|process| process.is_alive()) => {
                return Err(Error::AlreadyRunning);
            }
            Err(_) => return Err(Error::Died),
        }
    }
    folder.remove_gate();
    poststart(folder, state, pid, witness)
}

/// Since version 1.2 of the specification a failing poststart hook stops the container; before, it was a warning.
fn poststart(folder: &Folder, state: &State, pid: i32, witness: &dyn Witness) -> Result<()> {
    let strict = parse_version(&state.config_version).is_some_and(|version| version >= (1, 2));
    if strict {
        return run_hooks(Stage::Poststart, &state.poststart, state, Status::Running, pid).inspect_err(
            |_| {
                if let Err(left) = delete::end(folder, state) {
                    witness.warn(&format!("stopping the container: {left}"));
                }
            },
        );
    }
    for hook in &state.poststart {
        let hook = std::slice::from_ref(hook);
        if let Err(error) = run_hooks(Stage::Poststart, hook, state, Status::Running, pid) {
            witness.warn(&error.to_string());
        }
    }
    Ok(())
}
