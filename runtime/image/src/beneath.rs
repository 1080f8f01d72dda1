//! A directory out of which no name leads: every path is resolved by openat2(2) with RESOLVE_IN_ROOT, so that
//! absolute links and `..` mean what they would mean inside the container.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat2, statat, unlinkat};
use rustix::io::Errno;

/// openat2 gives EAGAIN when a rename elsewhere raced with it; that is harmless and rare.
const AGAIN_MAX: usize = 16;
const DIR_MODE: Mode = Mode::from_raw_mode(0o755);

pub(crate) struct Beneath {
    root: OwnedFd,
    /// The directory of the entry before: archives list a directory's files in a row.
    last: Option<(Vec<u8>, Arc<OwnedFd>)>,
}

impl Beneath {
    pub(crate) fn new(root: OwnedFd) -> Beneath {
        Beneath { root, last: None }
    }

    /// Must follow whenever a directory was removed or replaced.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..AGAIN_MAX {
            match openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// An existing directory; links inside the root are followed.
    pub(crate) fn existing_dir(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// An existing directory that is not itself a link.
    pub(crate) fn plain_dir(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)
    }

    /// The directory `components`, made where it is missing (mode 755), links inside the root followed.
    pub(crate) fn dir(&mut self, components: &[&[u8]]) -> Result<Arc<OwnedFd>, Errno> {
        let path = components.join(&b'/');
        if let Some((last, fd)) = &self.last
            && *last == path
        {
            return Ok(Arc::clone(fd));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = match self.open(&path, flags) {
            Err(Errno::NOENT) => self.make_dirs(components)?,
            result => result?,
        };
        let fd = Arc::new(fd);
        self.last = Some((path, Arc::clone(&fd)));
        Ok(fd)
    }

    fn make_dirs(&self, components: &[&[u8]]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut dir = self.open(b"", flags)?;
        for depth in 1..=components.len() {
            let path = components[..depth].join(&b'/');
            dir = match self.open(&path, flags) {
                Err(Errno::NOENT) => {
                    let name = OsStr::from_bytes(components[depth - 1]);
                    // EEXIST: a link to nowhere has that name, and no directory can be made through it.
                    mkdirat(&dir, name, DIR_MODE)?;
                    self.open(&path, flags)?
                }
                result => result?,
            };
        }
        Ok(dir)
    }
}

/// What `name` is in `dir`, if it is there; links are not followed.
pub(crate) fn stat(dir: impl AsFd, name: &OsStr) -> Result<Option<rustix::fs::Stat>, Errno> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Removes `name` and everything below it; links are removed, not followed.
///
/// A layer can nest folders deeper than there are file descriptors (through links, deeper than PATH_MAX), so
/// this does not walk down: whatever is two levels deep is moved up to the first, until nothing is left.
pub(crate) fn remove_all(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let top = open_child(dir, name)?;
    let mut counter = 0_u64;
    loop {
        let folders = remove_files(&top)?;
        if folders.is_empty() {
            break;
        }
        for folder in folders {
            let child = open_child(top.as_fd(), &folder)?;
            for deeper in remove_files(&child)? {
                move_up(&child, &deeper, &top, &mut counter)?;
            }
            unlinkat(&top, &folder, AtFlags::REMOVEDIR)?;
        }
    }
    unlinkat(dir, name, AtFlags::REMOVEDIR)?;
    Ok(())
}

/// The same for a path that this process made itself.
pub(crate) fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, Mode::empty())?;
    remove_all(parent.as_fd(), name)
}

fn open_child(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// Removes what is not a directory; the names of those that are.
fn remove_files(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut folders = Vec::new();
    let mut entries = rustix::fs::Dir::read_from(dir)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => folders.push(name.to_owned()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(folders)
}

fn move_up(from: &OwnedFd, name: &OsStr, to: &OwnedFd, counter: &mut u64) -> io::Result<()> {
    loop {
        *counter += 1;
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(from, name, to, format!(".{counter}"), flags) {
            Err(Errno::EXIST) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_deeper_than_descriptors_reach() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        let mut at = root.expect("open");
        for depth in 0..3000 {
            let name = if depth == 0 { "top" } else { ".1" };
            mkdirat(&at, name, Mode::RWXU).expect("make");
            at = open_child(at.as_fd(), OsStr::new(name)).expect("open");
            mkdirat(&at, "beside", Mode::RWXU).expect("make");
            rustix::fs::symlinkat("/", &at, "link").expect("link");
        }
        remove_path(&dir.path().join("top")).expect("remove");
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
        remove_path(&dir.path().join("top")).expect("nothing is removed already");
        assert!(Path::new("/").exists());
    }
}
