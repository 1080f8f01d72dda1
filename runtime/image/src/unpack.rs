//! One layer's tar stream → a directory that overlayfs takes as a lower directory.
//!
//! - Nothing is created, changed or removed outside of the directory ([`Beneath`]).
//! - Whiteouts (`.wh.name`) become what overlayfs reads: a character device 0/0 in place of the name; `.wh..wh..opq`
//!   becomes the attribute `trusted.overlay.opaque`.
//! - A later entry replaces an earlier one of the same name; a directory keeps its content.
//! - Owners, modes, times, extended attributes and hard links are kept. Directory times are set last,
//!   when nothing is written into them any more.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::beneath::{self, Beneath};
use crate::decompress::Bomb;
use crate::digest::BeyondLimit;
use crate::error::{Error, Result};
use crate::tar::{self, Entry, Kind, TarError, Time};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// What overlayfs reads in its place when it is mounted by the root of a user namespace (`userxattr`).
pub(crate) const OPAQUE_XATTR_OF_USERS: &str = "user.overlay.opaque";
const COPY_BUFFER: usize = 128 * 1024;
/// PATH_MAX: nothing inside a container could name a longer path.
const PATH_MAX: usize = 4096;
/// Device nodes that do no harm in any container: null, zero, full, random, urandom, tty, console, ptmx.
const HARMLESS_DEVICES: [(u32, u32); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

/// All paths of directories together, whose times are set at the end: the largest images have a tenth of it.
const PATHS_MAX: usize = 64 << 20;

/// Bounds of what one layer may unpack to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the uncompressed tar stream.
    pub layer_bytes: u64,
    /// How many times its size something compressed may unpack to. Programs and data reach 2 to 20, zeroes 1032 with
    /// gzip and far more with zstd.
    pub ratio: u64,
    /// What anything may unpack to, however small it is: disk images are mostly zeroes.
    pub ratio_free_bytes: u64,
    pub layer_entries: u64,
    /// Manifests, indexes and configurations are read into memory.
    pub document_bytes: u64,
    /// An archive that has to be decompressed before it can be read.
    pub archive_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            layer_bytes: 32 << 30,
            ratio: 200,
            ratio_free_bytes: 1 << 30,
            layer_entries: 4_000_000,
            document_bytes: 4 << 20,
            archive_bytes: 64 << 30,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Bytes of all files.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// Unpacks `stream` into `root`; `blob` names it in errors. On an error the directory is left half filled.
pub(crate) fn unpack<R: tar::Skip>(
    stream: R,
    root: OwnedFd,
    limits: &Limits,
    blob: &str,
) -> Result<(Unpacked, R)> {
    let mut unpacker = Unpacker {
        archive: tar::Reader::new(stream),
        beneath: Beneath::new(root),
        blob,
        unpacked: Unpacked::default(),
        directories: Vec::new(),
        paths: 0,
        buffer: vec![0; COPY_BUFFER].into_boxed_slice(),
        as_root: rustix::process::geteuid().is_root(),
    };
    while let Some(entry) = unpacker.archive.next().map_err(|e| archive_error(e, blob))? {
        unpacker.unpacked.entries += 1;
        if unpacker.unpacked.entries > limits.layer_entries {
            return Err(Error::TooLarge { what: format!("the list of {blob}"), limit: limits.layer_entries });
        }
        unpacker.take(&entry)?;
    }
    unpacker.finish_directories()?;
    Ok((unpacker.unpacked, unpacker.archive.into_inner()))
}

struct Unpacker<'b, R> {
    archive: tar::Reader<R>,
    beneath: Beneath,
    blob: &'b str,
    unpacked: Unpacked,
    /// Times to set at the end.
    directories: Vec<(Vec<u8>, Time)>,
    /// Bytes of their paths.
    paths: usize,
    buffer: Box<[u8]>,
    /// Files have the owners that the archive names. What an ordinary user unpacks is all his own, without device nodes
    /// and without rights that are given by attributes.
    as_root: bool,
}

impl<R: tar::Skip> Unpacker<'_, R> {
    fn take(&mut self, entry: &Entry) -> Result<()> {
        let components = self.components(entry)?;
        let Some((name, parents)) = components.split_last() else {
            return self.root_entry(entry);
        };
        let parent = self.beneath.dir(parents).map_err(|errno| self.parent_error(entry, errno))?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.whiteout(entry, &parent, name, hidden);
        }
        let name = OsStr::from_bytes(name);
        let before = self.make_room(entry, &parent, name)?;
        match entry.kind {
            Kind::File => self.file(entry, &parent, name)?,
            Kind::Directory => {
                self.directory(entry, &parent, name, before)?;
                self.paths += entry.path.len();
                if self.paths > PATHS_MAX {
                    let what = format!("the list of folders of {}", self.blob);
                    return Err(Error::TooLarge { what, limit: PATHS_MAX as u64 });
                }
                self.directories.push((components.join(&b'/'), entry.mtime));
            }
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(self.hostile(entry, "a link to nothing"));
                }
                symlinkat(OsStr::from_bytes(&entry.link), &parent, name)
                    .map_err(|e| self.entry_error(entry, e))?;
                self.own(entry, &parent, name)?;
            }
            Kind::HardLink => self.hard_link(entry, &parent, name)?,
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => self.node(entry, &parent, name)?,
        }
        Ok(())
    }

    /// Its path, taken apart. Leading slashes and `.` mean nothing; `..` is never innocent.
    fn components<'e>(&self, entry: &'e Entry) -> Result<Vec<&'e [u8]>> {
        split_path(&entry.path).map_err(|reason| self.hostile(entry, reason))
    }

    /// `./`, the root directory itself.
    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(self.hostile(entry, "it would replace the root directory"));
        }
        let root = self.beneath.existing_dir(b"").map_err(|e| self.entry_error(entry, e))?;
        self.attributes(entry, &root)?;
        self.directories.push((Vec::new(), entry.mtime));
        Ok(())
    }

    /// Clears what an earlier entry of this layer left under that name. Tells whether it was a whiteout.
    fn make_room(&mut self, entry: &Entry, parent: &OwnedFd, name: &OsStr) -> Result<Before> {
        let stat = beneath::stat(parent, name).map_err(|e| self.entry_error(entry, e))?;
        let Some(stat) = stat else { return Ok(Before::Nothing) };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory && entry.kind == Kind::Directory {
            return Ok(Before::Directory);
        }
        if kind == FileType::Directory {
            self.beneath.forget();
        }
        beneath::remove_all(parent.as_fd(), name).map_err(|e| self.entry_io(entry, e))?;
        let was_whiteout = kind == FileType::CharacterDevice && stat.st_rdev == 0;
        Ok(if was_whiteout { Before::Whiteout } else { Before::Nothing })
    }

    fn file(&mut self, entry: &Entry, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(|e| self.entry_error(entry, e))?;
        let mut file = std::fs::File::from(file);
        loop {
            let n = match self.archive.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    let at = entry.data_at;
                    return Err(archive_error(TarError::Io { at, source }, self.blob));
                }
            };
            file.write_all(&self.buffer[..n]).map_err(|e| self.entry_io(entry, e))?;
            self.unpacked.bytes += n as u64;
        }
        self.attributes(entry, &file)?;
        futimens(&file, &times(entry.mtime)).map_err(|e| self.entry_error(entry, e))
    }

    fn directory(&mut self, entry: &Entry, parent: &OwnedFd, name: &OsStr, before: Before) -> Result<()> {
        if before != Before::Directory {
            mkdirat(parent, name, Mode::RWXU).map_err(|e| self.entry_error(entry, e))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(parent, name, flags, Mode::empty()).map_err(|e| self.entry_error(entry, e))?;
        self.attributes(entry, &dir)?;
        if before == Before::Whiteout {
            // Removed below and made anew here: what lower layers have in it stays hidden.
            self.set_opaque(entry, &dir)?;
        }
        Ok(())
    }

    /// Links within the layer only: images are made of layers that stand alone (Docker and Podman unpack them so too).
    fn hard_link(&mut self, entry: &Entry, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        let target = split_path(&entry.link).map_err(|reason| self.hostile(entry, reason))?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(self.hostile(entry, "a hard link to the root directory"));
        };
        let target_dir = match self.beneath.existing_dir(&target_parents.join(&b'/')) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                return Err(self.hostile(entry, "a hard link to what is not in this layer"));
            }
            Err(errno) => return Err(self.entry_error(entry, errno)),
        };
        match linkat(&target_dir, OsStr::from_bytes(target_name), parent, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Err(self.hostile(entry, "a hard link to what is not in this layer")),
            Err(Errno::PERM) => Err(self.hostile(entry, "a hard link to a directory")),
            Err(errno) => Err(self.entry_error(entry, errno)),
        }
    }

    fn node(&mut self, entry: &Entry, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        let (kind, device) = match entry.kind {
            Kind::Fifo => (FileType::Fifo, 0),
            Kind::CharDevice if HARMLESS_DEVICES.contains(&entry.device) => {
                (FileType::CharacterDevice, makedev(entry.device.0, entry.device.1))
            }
            _ => return Err(self.hostile(entry, "a device node")),
        };
        if kind == FileType::CharacterDevice && !self.as_root {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(entry.mode);
        mknodat(parent, name, kind, mode, device).map_err(|e| self.entry_error(entry, e))?;
        self.own(entry, parent, name)?;
        // Not a link: it was made above, in a directory that only this process writes.
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(|e| self.entry_error(entry, e))
    }

    fn whiteout(&mut self, entry: &Entry, parent: &OwnedFd, name: &[u8], hidden: &[u8]) -> Result<()> {
        if name == OPAQUE {
            return self.set_opaque(entry, parent);
        }
        if hidden.starts_with(WHITEOUT_PREFIX) {
            // `.wh..wh.plnk`, `.wh..wh.aufs`: aufs kept its own bookkeeping under these names.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(self.hostile(entry, "a whiteout of nothing, of itself or of its parent"));
        }
        let hidden = OsStr::from_bytes(hidden);
        let stat = beneath::stat(parent, hidden).map_err(|e| self.entry_error(entry, e))?;
        match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            None => mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(|e| self.entry_error(entry, e)),
            // It speaks of lower layers; what this layer itself brought stays, and hides them.
            Some(FileType::Directory) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let dir =
                    openat(parent, hidden, flags, Mode::empty()).map_err(|e| self.entry_error(entry, e))?;
                self.set_opaque(entry, &dir)
            }
            Some(_) => Ok(()),
        }
    }

    fn set_opaque(&self, entry: &Entry, dir: impl AsFd) -> Result<()> {
        let name = if self.as_root { OPAQUE_XATTR } else { OPAQUE_XATTR_OF_USERS };
        fsetxattr(dir, name, b"y", XattrFlags::empty()).map_err(|e| self.entry_error(entry, e))
    }

    /// Owner, mode and attributes of what is open. The owner first: chown clears set-user-ID and capabilities.
    fn attributes(&self, entry: &Entry, fd: impl AsFd) -> Result<()> {
        let fail = |e: Errno| self.entry_error(entry, e);
        let (uid, gid) = self.owner(entry);
        fchown(&fd, uid, gid).map_err(fail)?;
        fchmod(&fd, Mode::from_raw_mode(entry.mode)).map_err(fail)?;
        for (name, value) in &entry.xattrs {
            // overlayfs steers by these: a layer could redirect a lookup to any directory of the lower ones.
            if name.starts_with("trusted.") || name.starts_with("user.overlay.") {
                return Err(self.hostile(entry, "an attribute that overlayfs would obey"));
            }
            match fsetxattr(&fd, name.as_str(), value, XattrFlags::empty()) {
                Ok(()) => {}
                // Labels belong to the security module of the machine that made the archive.
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM)
                    if name.starts_with("security.selinux") => {}
                Err(Errno::PERM) if name.starts_with("security.") && !self.as_root => {}
                Err(Errno::OPNOTSUPP) if name.starts_with("user.") || name.starts_with("system.") => {}
                Err(errno) => return Err(fail(errno)),
            }
        }
        Ok(())
    }

    fn owner(&self, entry: &Entry) -> (Option<Uid>, Option<Gid>) {
        self.as_root.then(|| (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid))).unzip()
    }

    /// Owner and time of what cannot be opened: links, pipes, device nodes.
    fn own(&self, entry: &Entry, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        let fail = |e: Errno| self.entry_error(entry, e);
        let (uid, gid) = self.owner(entry);
        chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
    }

    fn finish_directories(&mut self) -> Result<()> {
        for (path, time) in &self.directories {
            let dir = match self.beneath.plain_dir(path) {
                Ok(dir) => dir,
                // A later entry replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => {
                    let path = std::path::Path::new(OsStr::from_bytes(path));
                    return Err(Error::io("open directory", path, errno));
                }
            };
            let path = std::path::Path::new(OsStr::from_bytes(path));
            futimens(&dir, &times(*time)).map_err(|e| Error::io("set the time of", path, e))?;
        }
        Ok(())
    }

    fn hostile(&self, entry: &Entry, reason: &'static str) -> Error {
        Error::Hostile { blob: self.blob.to_owned(), entry: printable(&entry.path), reason }
    }

    fn parent_error(&self, entry: &Entry, errno: Errno) -> Error {
        match errno {
            Errno::NOTDIR => self.hostile(entry, "its parent is not a directory"),
            Errno::EXIST | Errno::LOOP => self.hostile(entry, "its parent is a link that leads nowhere"),
            Errno::NAMETOOLONG => self.hostile(entry, "its path is too long"),
            errno => self.entry_error(entry, errno),
        }
    }

    fn entry_error(&self, entry: &Entry, errno: Errno) -> Error {
        match errno {
            Errno::NAMETOOLONG => self.hostile(entry, "its name is too long"),
            errno => self.entry_io(entry, errno.into()),
        }
    }

    fn entry_io(&self, entry: &Entry, source: io::Error) -> Error {
        Error::io("unpack", std::path::Path::new(&printable(&entry.path)), source)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Whiteout,
    Directory,
}

/// `./a//b/` → `a`, `b`. A reason when it is refused.
pub(crate) fn split_path(path: &[u8]) -> std::result::Result<Vec<&[u8]>, &'static str> {
    if path.len() > PATH_MAX {
        return Err("its path is longer than 4096 bytes");
    }
    if path.contains(&0) {
        return Err("a zero byte in its path");
    }
    let components: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if components.contains(&b"..".as_slice()) {
        return Err("a path with .. in it");
    }
    Ok(components)
}

fn times(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn printable(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.chars().take(256).collect()
}

/// A fault of the archive, of its compression, or of the disk it is read from.
pub(crate) fn archive_error(error: TarError, blob: &str) -> Error {
    match error {
        TarError::Malformed { at, reason } => Error::corrupt(blob, format!("byte {at}"), reason),
        TarError::Unsupported { at, what } => Error::Unsupported {
            what: what.to_owned(),
            reason: format!("found in {blob} at byte {at}; write the archive without --sparse"),
        },
        TarError::Io { at, source } => stream_error(source, blob, at),
    }
}

pub(crate) fn stream_error(source: io::Error, blob: &str, at: u64) -> Error {
    if let Some(BeyondLimit(limit)) = source.get_ref().and_then(|e| e.downcast_ref::<BeyondLimit>()) {
        return Error::TooLarge { what: blob.to_owned(), limit: *limit };
    }
    if let Some(bomb) = source.get_ref().and_then(|e| e.downcast_ref::<Bomb>()) {
        let what = format!("{blob}, which unpacks to more than {} times its size,", bomb.ratio);
        return Error::TooLarge { what, limit: bomb.limit };
    }
    match source.raw_os_error() {
        Some(_) => Error::io("read", std::path::Path::new(blob), source),
        None => Error::corrupt(blob, format!("byte {at}"), source),
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
