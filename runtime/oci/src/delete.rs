//! `delete`: undoes what `create` made.

use std::os::fd::AsFd;
use std::path::Path;

use pith_container::plan::Stage;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::create::run_hooks;
use crate::error::{Error, Result};
use crate::state::{Folder, State, Status};
use crate::witness::Witness;

/// How long it takes where nothing is in the way.
const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
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
    if let Some(covered) = state.covered {
        uncover(&state.rootfs, covered)?;
    }
    folder.remove()
}

/// The id of the mount that is seen at a path.
pub(crate) fn mount_at(path: &Path) -> Result<u64> {
    let (flags, wanted) = (rustix::fs::AtFlags::empty(), rustix::fs::StatxFlags::MNT_ID);
    let found = rustix::fs::statx(rustix::fs::CWD, path, flags, wanted);
    found.map(|found| found.stx_mnt_id).map_err(|errno| Error::io("look at", path)(errno.into()))
}

/// Takes away what covers a container's root folder, with all that is mounted on it.
fn uncover(rootfs: &Path, covered: u64) -> Result<()> {
    while rootfs.exists() && mount_at(rootfs)? != covered {
        match rustix::mount::unmount(rootfs, rustix::mount::UnmountFlags::DETACH) {
            Ok(()) => {}
            // Nothing is mounted there: the one that was covered has gone as well.
            Err(rustix::io::Errno::INVAL) => return Ok(()),
            Err(errno) => return Err(Error::io("unmount", rootfs)(errno.into())),
        }
    }
    Ok(())
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
    let ended = |within: &Timespec| {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(within))).map(|ready| ready > 0)
    };
    if ended(&SOON).map_err(Error::kernel("poll"))? {
        return Ok(());
    }
    thaw(process.pid)?;
    match ended(&END).map_err(Error::kernel("poll"))? {
        true => Ok(()),
        false => Err(Error::Kernel {
            operation: "wait for the end of the container",
            source: rustix::io::Errno::TIMEDOUT,
        }),
    }
}

/// A process that somebody has frozen by version 1 takes no signal, not even SIGKILL.
fn thaw(pid: i32) -> Result<()> {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let (mounts, cgroups) = (read("/proc/self/mountinfo".to_owned()), read(format!("/proc/{pid}/cgroup")));
    // proc_pid_mountinfo(5): the fifth field is the mount point, the last one names the controllers.
    let root = mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - cgroup ")?;
        file_system.split([' ', ',']).any(|option| option == "freezer").then(|| mount.split(' ').nth(4))?
    });
    let path = cgroups.lines().find_map(|line| line.split_once(":freezer:").map(|(_, path)| path));
    if let (Some(root), Some(path)) = (root, path.filter(|path| *path != "/")) {
        let state = format!("{root}{path}/freezer.state");
        std::fs::write(&state, "THAWED").map_err(Error::io("write", state))?;
    }
    Ok(())
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
