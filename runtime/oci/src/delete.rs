//! `delete`: undoes what `create` made.

use std::os::fd::AsFd;
use std::path::Path;

use pith_container::plan::Stage;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::create::run_hooks;
use crate::error::{Error, Result};
use crate::state::{Folder, State, Status};
use crate::witness::Witness;

/// How long a killed process may take to end.
const END: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

pub(crate) fn delete(folder: &Folder, force: bool, witness: &dyn Witness) -> Result<()> {
    let state = match folder.load_if_any() {
        Ok(Some(state)) => state,
        // Creating was interrupted before it made anything.
        Ok(None) => return if force { folder.remove() } else { Err(Error::NotFound) },
        // Files are replaced whole: only a power cut tears one, and leaves no process and no cgroup to look for.
        Err(Error::State { id, source }) if force => {
            witness.warn(&format!("removing what is left of {id}: {source}"));
            return folder.remove();
        }
        Err(error) => return Err(error),
    };
    let status = state.status(folder);
    if status != Status::Stopped && !force {
        return Err(Error::NotStopped { id: folder.id.clone(), status });
    }
    remove(folder, &state, force)?;
    run_poststop(&state, witness);
    Ok(())
}

/// `delete --force`. As with rm -f, a container that is not there has been removed.
pub fn remove_container(root: &Path, id: &str, witness: &dyn Witness) -> Result<()> {
    match Folder::open(root, id) {
        Ok(folder) => delete(&folder, true, witness),
        Err(Error::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a container with all that was made for it.
pub(crate) fn remove(folder: &Folder, state: &State, force: bool) -> Result<()> {
    if force {
        if state.process.is_none() && state.creator.pid != std::process::id().cast_signed() {
            // Whoever is creating it goes on otherwise, in a folder that is no longer there.
            kill_and_wait(state.creator)?;
        }
        end(folder, state)?;
    }
    if let Some(place) = &state.cgroup {
        place.remove()?;
    }
    folder.remove()
}

/// Ends a container's processes and waits until the first is gone.
pub(crate) fn end(_folder: &Folder, state: &State) -> Result<()> {
    if let Some(process) = state.process {
        kill_and_wait(process)?;
    }
    Ok(())
}

fn kill_and_wait(process: crate::state::Identified) -> Result<()> {
    let Some(pidfd) = process.open()? else { return Ok(()) };
    match pith_sys::process::signal(pidfd.as_fd(), libc::SIGKILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(errno) => return Err(Error::kernel("kill")(errno)),
    }
    // A pidfd is readable once its process has ended, whoever's child it is.
    match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&END)) {
        Ok(0) => Err(Error::Kernel {
            operation: "wait for the end of the container",
            source: rustix::io::Errno::TIMEDOUT,
        }),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(Error::kernel("poll")(errno)),
    }
}

/// A poststop hook that fails is a warning; the others still run.
pub(crate) fn run_poststop(state: &State, witness: &dyn Witness) {
    for hook in &state.poststop {
        let hook = std::slice::from_ref(hook);
        if let Err(error) = run_hooks(Stage::Poststop, hook, state, Status::Stopped, 0) {
            witness.warn(&error.to_string());
        }
    }
}
