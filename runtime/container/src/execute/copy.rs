//! tmpcopyup: what the image has at a path appears in the tmpfs that is mounted over it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use pith_sys::mount::open_in_root;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::plan::Slot;
use crate::trace::here;

use super::{About, Executor, StepResult};

/// Directories below one another that are copied; each holds two descriptors open.
const DEPTH_MAX: u32 = 64;

impl Executor {
    pub(super) fn copy_up(&mut self, slot: Slot, path: &Path) -> StepResult {
        here();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let from = match open_in_root(self.root()?, path, flags) {
            Err(Errno::NOENT) => return Ok(()),
            found => found.about(|| path.display().to_string())?,
        };
        let to = rustix::fs::openat(self.get(slot)?, ".", flags | OFlags::CLOEXEC, Mode::empty())?;
        tree(from, to, 0).about(|| path.display().to_string())
    }
}

impl Executor {
    pub(super) fn copy_mode(&mut self, slot: Slot, path: &Path) -> StepResult {
        here();
        let covered = match open_in_root(self.root()?, path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => return Ok(()),
            found => found.about(|| path.display().to_string())?,
        };
        let mode = rustix::fs::fstat(&covered)?.st_mode & 0o7777;
        let to = rustix::fs::openat(self.get(slot)?, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rustix::fs::fchmod(&to, Mode::from_raw_mode(mode))?)
    }
}

/// Copies what is in a directory, and gives the copy its owner, mode and times. Links are copied as links, and
/// nothing is looked up through one.
fn tree(from: OwnedFd, to: OwnedFd, depth: u32) -> Result<(), Errno> {
    if depth > DEPTH_MAX {
        return Err(Errno::LOOP);
    }
    let stat = rustix::fs::fstat(&from)?;
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            one(from.as_fd(), to.as_fd(), entry.file_name(), depth)?;
        }
    }
    rustix::fs::fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    rustix::fs::futimens(&to, &times(&stat))
}

fn one(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: u32) -> Result<(), Errno> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let open = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match kind {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700))?;
            let directory = open | OFlags::RDONLY | OFlags::DIRECTORY;
            let from = rustix::fs::openat(from, name, directory, Mode::empty())?;
            let to = rustix::fs::openat(to, name, directory, Mode::empty())?;
            return tree(from, to, depth + 1);
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target.as_c_str(), to, name)?;
        }
        FileType::RegularFile => {
            let source = rustix::fs::openat(from, name, open | OFlags::RDONLY, Mode::empty())?;
            let create = open | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let copy = rustix::fs::openat(to, name, create, Mode::from_raw_mode(0o600))?;
            std::io::copy(&mut std::fs::File::from(source), &mut std::fs::File::from(copy))
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
        _ => rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?,
    }
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        // After the owner: a change of that takes the set-user-id bits away.
        rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
    }
    rustix::fs::utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
