//! The end of cgroups: freezing, killing, waiting until empty, removing, and finding what was left over.
//!
//! On v2 the kernel does it: `cgroup.kill` reaches every process below at once, races with fork included,
//! and `cgroup.events` tells when the last one is gone. Without it (v1, or Linux before 5.14) processes are
//! frozen, signalled and thawed until none is left.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::cgroup::{Cgroup, errno, pids_in};
use crate::error::{Error, Result};
use crate::file;
use crate::hierarchy::{Controller, Hierarchy};

/// Between looks where the kernel has no event to wait for (v1 freezer and v1 emptiness).
const V1_LOOK_EVERY: Duration = Duration::from_millis(2);

impl Cgroup {
    /// Stops every process in it and below, and waits until they are stopped.
    pub fn freeze(&self, deadline: Duration) -> Result<()> {
        self.set_frozen(true, deadline)
    }

    pub fn thaw(&self, deadline: Duration) -> Result<()> {
        self.set_frozen(false, deadline)
    }

    /// Whether it is (or is about to be) frozen by [`Cgroup::freeze`].
    pub fn is_frozen(&self) -> Result<bool> {
        let (path, frozen) = match self.v2_dir() {
            Some(dir) => (dir.join("cgroup.freeze"), "1"),
            None => match self.dir_of(Controller::Freezer) {
                Some(dir) => (dir.join("freezer.state"), "FROZEN"),
                None => return Ok(false),
            },
        };
        match file::read(&path) {
            Ok(state) => Ok(state.trim() == frozen),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// SIGKILL to every process in it and below. They may still be ending: [`Cgroup::wait_empty`].
    pub fn kill(&self) -> Result<()> {
        if let Some(dir) = self.v2_dir() {
            match file::write(&dir.join("cgroup.kill"), "1") {
                Ok(()) => return Ok(()),
                // Before Linux 5.14; or the cgroup itself is gone, and then the walk below finds nobody.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        self.signal_all(Signal::KILL)
    }

    /// A signal to every process in it and below.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        // Frozen processes cannot fork away from the list that is read here.
        let frozen = self.freeze(Duration::from_millis(500)).is_ok();
        let result = self.all_pids().and_then(|pids| {
            for pid in pids.into_iter().filter_map(Pid::from_raw) {
                match kill_process(pid, signal) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(errno) => {
                        return Err(Error::io("signal processes of", Path::new(self.path()), errno));
                    }
                }
            }
            Ok(())
        });
        if frozen {
            self.thaw(Duration::from_millis(500))?;
        }
        result
    }

    /// Every process in it and below.
    pub fn all_pids(&self) -> Result<Vec<i32>> {
        let Some(dir) = self.all_dirs().find(|dir| dir.is_dir()) else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        for dir in tree(&dir)? {
            match pids_in(&dir) {
                Ok(found) => pids.extend(found),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pids)
    }

    /// Waits until no process is left in it or below; at once if it does not exist.
    pub fn wait_empty(&self, deadline: Duration) -> Result<()> {
        let start = Instant::now();
        match self.v2_dir() {
            Some(dir) => wait_event(&dir, "populated", 0, start, deadline)?,
            None => {
                while !self.all_pids()?.is_empty() && start.elapsed() < deadline {
                    std::thread::sleep(V1_LOOK_EVERY);
                }
            }
        }
        let pids = self.all_pids()?;
        if pids.is_empty() {
            return Ok(());
        }
        Err(Error::StillPopulated { path: PathBuf::from(self.path()), pids, waited: start.elapsed() })
    }

    /// Removes its directories and those below, in every hierarchy. Processes must be gone or going: the
    /// kernel refuses (EBUSY) until the last has been reaped, which is waited for until `deadline`.
    /// A cgroup that does not exist is removed already.
    pub fn delete(&self, deadline: Duration) -> Result<()> {
        // The usual case: a leaf whose processes are gone. One rmdir a hierarchy and nothing else.
        let busy: Vec<PathBuf> = self.all_dirs().filter(|dir| !removed(dir)).collect();
        if busy.is_empty() {
            return Ok(());
        }
        self.wait_empty(deadline)?;
        let start = Instant::now();
        let mut failures = Vec::new();
        for top in busy {
            if let Err(error) = remove_below(&top, start, deadline) {
                failures.push(error);
            }
        }
        match failures.pop() {
            None => Ok(()),
            Some(only) if failures.is_empty() => Err(only),
            Some(last) => {
                failures.push(last);
                Err(Error::Several(failures))
            }
        }
    }

    fn set_frozen(&self, frozen: bool, deadline: Duration) -> Result<()> {
        let start = Instant::now();
        if let Some(dir) = self.v2_dir() {
            match file::write(&dir.join("cgroup.freeze"), if frozen { "1" } else { "0" }) {
                Ok(()) => {
                    return wait_event(&dir, "frozen", u64::from(frozen), start, deadline);
                }
                // Before Linux 5.2.
                Err(error) if error.is_not_found() && dir.is_dir() => {}
                Err(error) => return Err(error),
            }
        }
        let Some(dir) = self.dir_of(Controller::Freezer).filter(|dir| dir.is_dir()) else {
            let wanted = "freezing".to_owned();
            return Err(Error::NoController { controller: Controller::Freezer, wanted });
        };
        let path = dir.join("freezer.state");
        let state = if frozen { "FROZEN" } else { "THAWED" };
        loop {
            // Written again each time: a process that was just created can leave the cgroup FREEZING for good.
            file::write(&path, state)?;
            if file::read(&path)?.trim() == state {
                return Ok(());
            }
            if start.elapsed() >= deadline {
                return Err(Error::io("freeze or thaw", &dir, Errno::TIMEDOUT));
            }
            std::thread::sleep(V1_LOOK_EVERY);
        }
    }
}

/// Kills and removes the whole subtree `path` (`pith down`).
pub fn remove_tree(hierarchy: &std::sync::Arc<Hierarchy>, path: &str, deadline: Duration) -> Result<()> {
    let cgroup = Cgroup::open(hierarchy, path)?;
    if cgroup.dirs().is_empty() {
        return Ok(());
    }
    cgroup.kill()?;
    cgroup.delete(deadline)
}

/// Topmost cgroups whose name starts with `prefix`, in any hierarchy: directories, v2 first.
pub fn leftovers(hierarchy: &Hierarchy, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for root in hierarchy.v2_root().into_iter().chain(hierarchy.v1_roots()) {
        let mut here = children(root)?;
        here.retain(|dir| {
            dir.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        });
        here.sort_unstable();
        found.extend(here);
    }
    Ok(found)
}

/// Waits until `key` in `cgroup.events` has `value`: the kernel wakes pollers of that file (POLLPRI) at each
/// change. Returns quietly at the deadline or when the cgroup is gone; the caller looks at what is.
fn wait_event(dir: &Path, key: &str, value: u64, start: Instant, deadline: Duration) -> Result<()> {
    let path = dir.join("cgroup.events");
    let events = match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(events) => events,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(Error::io("open", &path, errno)),
    };
    loop {
        let mut content = [0_u8; 256];
        rustix::fs::seek(&events, SeekFrom::Start(0)).map_err(|e| Error::io("rewind", &path, e))?;
        let length = match rustix::io::read(&events, &mut content) {
            Ok(length) => length,
            Err(Errno::NODEV) => return Ok(()),
            Err(errno) => return Err(Error::io("read", &path, errno)),
        };
        let content = std::str::from_utf8(&content[..length]).unwrap_or_default();
        if file::keyed(content, key) == Some(value) {
            return Ok(());
        }
        let Some(left) = deadline.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else {
            return Ok(());
        };
        let timeout = Timespec::try_from(left).map_err(|_| {
            Error::io("wait for", &path, std::io::Error::from(std::io::ErrorKind::InvalidInput))
        })?;
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("wait for", &path, errno)),
        }
    }
}

/// rmdir succeeded or there is nothing to remove.
fn removed(dir: &Path) -> bool {
    matches!(rmdir(dir), Ok(()) | Err(Errno::NOENT))
}

fn rmdir(dir: &Path) -> std::result::Result<(), Errno> {
    rustix::fs::unlinkat(rustix::fs::CWD, dir, AtFlags::REMOVEDIR)
}

/// Deepest first. A process that was killed leaves its cgroup a moment after it was seen to be gone
/// (cgroup_is_populated against css references), so EBUSY is tried again.
fn remove_below(top: &Path, start: Instant, deadline: Duration) -> Result<()> {
    let mut pause = Duration::from_micros(200);
    loop {
        let mut last = None;
        for dir in tree(top)?.into_iter().rev() {
            match rmdir(&dir) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => last = Some((dir, errno)),
            }
        }
        match last {
            None => return Ok(()),
            Some((dir, Errno::BUSY)) if start.elapsed() >= deadline => {
                let pids = pids_in(&dir).unwrap_or_default();
                return Err(Error::StillPopulated { path: dir, pids, waited: start.elapsed() });
            }
            Some((_, Errno::BUSY)) => {
                // The kernel has no event for this.
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Some((dir, errno)) => return Err(Error::io("remove", &dir, errno)),
        }
    }
}

/// `top` and every directory below it, parents before children. Empty when it does not exist.
fn tree(top: &Path) -> Result<Vec<PathBuf>> {
    if !top.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = vec![top.to_path_buf()];
    let mut next = 0;
    while next < found.len() {
        let below = children(&found[next])?;
        found.extend(below);
        next += 1;
    }
    Ok(found)
}

fn children(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", dir, error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => break,
            Err(error) => return Err(Error::io("list", dir, error)),
        };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn is_gone(error: &Error) -> bool {
    error.is_not_found() || errno(error) == Some(Errno::NODEV)
}
