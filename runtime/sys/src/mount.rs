//! What rustix lacks of the mount API, and lookups that cannot leave a root.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::{Result, check};

/// Times a lookup is repeated when something was renamed meanwhile (openat2(2): EAGAIN).
const LOOKUP_TRIES: u32 = 128;

/// Changes for [`set_attributes`]; zero changes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// `MOUNT_ATTR_*` bits.
    pub set: u64,
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`.
    pub propagation: u64,
    pub recursive: bool,
}

/// mount_setattr(2) on the mount that `mount` refers to.
pub fn set_attributes(mount: BorrowedFd<'_>, change: Change) -> Result<()> {
    set_attributes_at(mount, c"", libc::AT_EMPTY_PATH, change)
}

/// mount_setattr(2) on the mount at `path`.
pub fn set_attributes_of(path: &CStr, change: Change) -> Result<()> {
    set_attributes_at(rustix::fs::CWD, path, 0, change)
}

/// Makes `mount`, which must not be attached yet, show its files' owners as the user namespace behind `users` maps
/// them (mount_setattr(2), MOUNT_ATTR_IDMAP).
pub fn map_ids(mount: BorrowedFd<'_>, users: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.as_raw_fd() as u64,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    mount_setattr(mount, c"", flags, &attr)
}

fn set_attributes_at(dir: BorrowedFd<'_>, path: &CStr, flags: libc::c_int, change: Change) -> Result<()> {
    let attr = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    let flags = flags | if change.recursive { libc::AT_RECURSIVE } else { 0 };
    mount_setattr(dir, path, flags, &attr)
}

fn mount_setattr(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: libc::c_int,
    attr: &libc::mount_attr,
) -> Result<()> {
    // SAFETY: the path is a C string and `attr` a structure of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// What the kernel had to say about a file system being configured, one message a line. Reading empties it.
pub fn messages(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut buffer = [0u8; 512];
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        if length == 0 {
            break;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(String::from_utf8_lossy(&buffer[..length]).trim());
    }
    text
}

/// Opens `path` as if `root` were `/`: links and `..` stay inside, and the magic links of procfs are refused.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    lookup(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens `path` beneath `dir` and refuses every symbolic link on the way.
pub fn open_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    lookup(dir, path, flags, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn lookup(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd> {
    for _ in 0..LOOKUP_TRIES {
        match rustix::fs::openat2(dir.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}
