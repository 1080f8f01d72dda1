//! The root of one container as a copy of its image's files: what is left where the kernel has no overlayfs.
//!
//! The layers are laid over each other here as overlayfs would do it, lowest first: a character device 0/0 removes what lies
//! below, an opaque folder hides it, and the attributes of the topmost folder count. Files share their blocks with the
//! layer where the file system can (reflinks). Nothing is synced: a container does not outlive the machine.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fchmod, fchown, fgetxattr, flistxattr, fsetxattr, futimens, linkat, mkdirat, mknodat, openat, openat2,
    readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsopen};

use crate::beneath;
use crate::error::{At, Error, Result};
use crate::store::Image;
use crate::unpack::{OPAQUE_XATTR, OPAQUE_XATTR_OF_USERS};

/// Whether the kernel has overlayfs; asking loads its module. A process that may not mount cannot tell: then it is tried.
pub fn has_overlayfs() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| !matches!(fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC), Err(Errno::NODEV)))
}

impl Image {
    /// Copies all its files into `target`, an existing empty folder. On an error it is left half filled.
    pub fn copy_to(&self, target: &Path) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty()).at("open", path);
        let mut copy = Copy {
            target: open(target)?,
            path: target.to_path_buf(),
            times: Vec::new(),
            as_root: rustix::process::geteuid().is_root(),
        };
        for layer in self.lowerdirs().iter().rev() {
            copy.layer(&open(layer)?)?;
        }
        copy.set_times()
    }
}

struct Copy {
    target: OwnedFd,
    /// Of the target, for errors.
    path: PathBuf,
    /// Folders whose times are set when nothing is put into them any more.
    times: Vec<(PathBuf, Timestamps)>,
    as_root: bool,
}

/// A folder of a layer and its counterpart.
struct Pair {
    path: PathBuf,
    from: OwnedFd,
    to: OwnedFd,
}

impl Copy {
    /// Folder by folder by their paths, so that their depth costs no descriptors.
    fn layer(&mut self, layer: &OwnedFd) -> Result<()> {
        // By inode: further names of a file that was copied already.
        let mut linked = HashMap::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let from = open_beneath(layer, &path).map_err(|e| self.error(&path, e))?;
            let to = open_beneath(&self.target, &path).map_err(|e| self.error(&path, e))?;
            if is_opaque(&from) && !path.as_os_str().is_empty() {
                self.empty(&path, &to)?;
            }
            let stat = rustix::fs::fstat(&from).map_err(|e| self.error(&path, e))?;
            self.attributes(&stat, &from, &to).map_err(|e| self.error(&path, e))?;
            self.times.push((path.clone(), times(&stat)));
            let pair = Pair { path, from, to };
            for name in names(&pair.from).map_err(|e| self.error(&pair.path, e))? {
                let path = pair.path.join(&name);
                if self.entry(&pair, &name, &mut linked).map_err(|e| self.error(&path, e))? {
                    waiting.push(path);
                }
            }
        }
        Ok(())
    }

    /// Whether it is a folder, which is to be looked into.
    fn entry(&self, pair: &Pair, name: &OsStr, linked: &mut HashMap<u64, PathBuf>) -> io::Result<bool> {
        let stat = statat(&pair.from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let before = beneath::stat(&pair.to, name)?.map(|stat| FileType::from_raw_mode(stat.st_mode));
        if kind == FileType::Directory && before == Some(FileType::Directory) {
            return Ok(true);
        }
        if before.is_some() {
            beneath::remove_all(pair.to.as_fd(), name)?;
        }
        match kind {
            FileType::Directory => {
                mkdirat(&pair.to, name, Mode::RWXU)?;
                return Ok(true);
            }
            // A whiteout.
            FileType::CharacterDevice if stat.st_rdev == 0 => {}
            FileType::RegularFile => self.file(pair, name, &stat, linked)?,
            FileType::Symlink => {
                symlinkat(readlinkat(&pair.from, name, Vec::new())?, &pair.to, name)?;
                self.own(pair, name, &stat)?;
            }
            _ => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                mknodat(&pair.to, name, kind, mode, stat.st_rdev)?;
                self.own(pair, name, &stat)?;
                rustix::fs::chmodat(&pair.to, name, mode, AtFlags::empty())?;
            }
        }
        Ok(false)
    }

    fn file(
        &self,
        pair: &Pair,
        name: &OsStr,
        stat: &Stat,
        linked: &mut HashMap<u64, PathBuf>,
    ) -> io::Result<()> {
        if let Some(first) = linked.get(&stat.st_ino) {
            let parent = open_beneath(&self.target, first.parent().unwrap_or(Path::new("")))?;
            linkat(&parent, first.file_name().unwrap_or_default(), &pair.to, name, AtFlags::empty())?;
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut from = File::from(openat(&pair.from, name, flags, Mode::empty())?);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut to = File::from(openat(&pair.to, name, flags, Mode::RUSR | Mode::WUSR)?);
        if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
            io::copy(&mut from, &mut to)?;
        }
        self.attributes(stat, &from, &to)?;
        futimens(&to, &times(stat))?;
        if stat.st_nlink > 1 {
            linked.insert(stat.st_ino, pair.path.join(name));
        }
        Ok(())
    }

    /// Owner first: chown clears set-user-ID and capabilities.
    fn attributes(&self, stat: &Stat, from: impl AsFd, to: impl AsFd) -> io::Result<()> {
        if self.as_root {
            fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        }
        fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        for name in attribute_names(&from)? {
            if [OPAQUE_XATTR, OPAQUE_XATTR_OF_USERS].map(str::as_bytes).contains(&name.as_bytes()) {
                continue;
            }
            let mut value = vec![0; 64 << 10];
            let length = fgetxattr(&from, name.as_os_str(), &mut value[..])?;
            match fsetxattr(&to, name.as_os_str(), &value[..length], XattrFlags::empty()) {
                // Of another file system's kind, or of a security module: the layer took it, its copy need not.
                Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                set => set?,
            }
        }
        Ok(())
    }

    fn own(&self, pair: &Pair, name: &OsStr, stat: &Stat) -> io::Result<()> {
        if self.as_root {
            let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
            chownat(&pair.to, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(utimensat(&pair.to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn empty(&self, path: &Path, dir: &OwnedFd) -> Result<()> {
        for name in names(dir).map_err(|e| self.error(path, e))? {
            beneath::remove_all(dir.as_fd(), &name).map_err(|e| self.error(&path.join(&name), e))?;
        }
        Ok(())
    }

    fn set_times(&self) -> Result<()> {
        for (path, times) in &self.times {
            match open_beneath(&self.target, path) {
                Ok(dir) => futimens(&dir, times).map_err(|e| self.error(path, e))?,
                // A layer above replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(self.error(path, e)),
            }
        }
        Ok(())
    }

    fn error(&self, path: &Path, source: impl Into<io::Error>) -> Error {
        Error::io("copy", &self.path.join(path), source)
    }
}

/// A folder below another, through no link.
fn open_beneath(root: &OwnedFd, path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0; 8];
    [OPAQUE_XATTR, OPAQUE_XATTR_OF_USERS]
        .iter()
        .any(|name| matches!(fgetxattr(dir, *name, &mut value[..]), Ok(1) if value[0] == b'y'))
}

fn names(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut found = Vec::new();
    let mut entries = rustix::fs::Dir::read_from(dir)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

fn attribute_names(of: impl AsFd) -> io::Result<Vec<OsString>> {
    // XATTR_LIST_MAX
    let mut list = vec![0; 64 << 10];
    let length = match flistxattr(of, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| OsString::from_vec(name.to_vec())).collect())
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec.cast_signed()),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
    }
}
