//! Steps on mounts and on paths inside the root.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use pith_sys::mount::{Change, messages, open_beneath, open_in_root};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::plan::{Attributes, Device, DeviceKind, Enter, Propagation, Slot, Source};
use crate::trace::here;

use super::{About, Executor, StepResult};

/// PROC_SUPER_MAGIC of <linux/magic.h>.
pub(super) const PROC_MAGIC: u64 = 0x9fa0;
/// fsconfig(2) takes strings of up to 255 bytes.
const FSCONFIG_STRING_MAX: usize = 255;
/// Symbolic links followed in one path, as in the kernel (MAXSYMLINKS).
const LINKS_MAX: u32 = 40;
/// mount(2) takes one page of options.
const MOUNT_DATA_MAX: usize = 4095;

pub(super) fn isolate() -> StepResult {
    here();
    let change = Change { propagation: libc::MS_SLAVE, recursive: true, ..Change::default() };
    Ok(pith_sys::mount::set_attributes_of(c"/", change)?)
}

pub(super) fn filesystem(
    kind: &str,
    source: &str,
    options: &[(String, Option<String>)],
    attributes: u64,
) -> StepResult<OwnedFd> {
    here();
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let said = |context: &OwnedFd, key: &str| format!("{key} ({})", messages(context));
    rustix::mount::fsconfig_set_string(&context, "source", source).about(|| said(&context, "source"))?;
    for (key, value) in options {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => rustix::mount::fsconfig_set_flag(&context, key.as_str()),
        }
        .about(|| said(&context, key))?;
    }
    rustix::mount::fsconfig_create(&context).about(|| said(&context, "create"))?;
    mount(&context, attributes)
}

fn mount(context: &OwnedFd, attributes: u64) -> StepResult<OwnedFd> {
    let attributes = MountAttrFlags::from_bits_retain(u32::try_from(attributes).map_err(|_| Errno::INVAL)?);
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

pub(super) fn overlay(
    lower: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    at: &Path,
    user_attributes: bool,
) -> StepResult<OwnedFd> {
    here();
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // One layer a call: there is no limit on their number then. Since Linux 6.7.
    let by_layer = || {
        lower.iter().try_for_each(|layer| {
            if layer.as_os_str().len() > FSCONFIG_STRING_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            rustix::mount::fsconfig_set_string(&context, "lowerdir+", layer)
        })
    };
    match by_layer() {
        Ok(()) => {}
        Err(Errno::INVAL | Errno::NAMETOOLONG) => {
            return overlay_by_mount(lower, upper, at, user_attributes);
        }
        Err(errno) => return Err(errno.into()),
    }
    let text = |path: &Path| path.display().to_string();
    rustix::mount::fsconfig_set_string(&context, "source", "overlay")?;
    if let Some((upper, work)) = upper {
        rustix::mount::fsconfig_set_string(&context, "upperdir", upper).about(|| text(upper))?;
        rustix::mount::fsconfig_set_string(&context, "workdir", work).about(|| text(work))?;
    }
    if user_attributes {
        rustix::mount::fsconfig_set_flag(&context, "userxattr")?;
    }
    rustix::mount::fsconfig_create(&context).about(|| messages(&context))?;
    mount(&context, if upper.is_some() { 0 } else { libc::MOUNT_ATTR_RDONLY })
}

/// The overlay by mount(2), taken back off the path it needs for that.
fn overlay_by_mount(
    lower: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    at: &Path,
    user_attributes: bool,
) -> StepResult<OwnedFd> {
    here();
    let escape = |path: &Path| path.display().to_string().replace('\\', "\\\\").replace(':', "\\:");
    let mut data = format!("lowerdir={}", lower.iter().map(|l| escape(l)).collect::<Vec<_>>().join(":"));
    if let Some((upper, work)) = upper {
        data.push_str(&format!(",upperdir={},workdir={}", escape(upper), escape(work)));
    }
    if user_attributes {
        data.push_str(",userxattr");
    }
    if data.len() > MOUNT_DATA_MAX {
        return Err(Errno::NAMETOOLONG).about(|| "too many layers for this kernel".to_owned());
    }
    let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
    let flags =
        if upper.is_some() { rustix::mount::MountFlags::empty() } else { rustix::mount::MountFlags::RDONLY };
    rustix::mount::mount("overlay", at, "overlay", flags, Some(data.as_c_str()))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let aside = rustix::mount::open_tree(CWD, at, flags)?;
    rustix::mount::unmount(at, UnmountFlags::DETACH)?;
    Ok(aside)
}

pub(super) fn bind(source: &Source, recursive: bool) -> StepResult<OwnedFd> {
    here();
    let clone = tree_flags(recursive);
    match &source.beneath {
        Some(base) => {
            let base =
                rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                    .about(|| base.display().to_string())?;
            let found = if source.path.as_os_str().is_empty() {
                base
            } else {
                open_beneath(base.as_fd(), &source.path, OFlags::PATH)?
            };
            Ok(rustix::mount::open_tree(&found, "", clone | OpenTreeFlags::AT_EMPTY_PATH)?)
        }
        None => Ok(rustix::mount::open_tree(CWD, &source.path, clone)?),
    }
}

fn tree_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

pub(super) fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    propagation: Option<Propagation>,
    recursive: bool,
) -> StepResult {
    here();
    let propagation = propagation.map_or(0, |propagation| match propagation {
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Unbindable => libc::MS_UNBINDABLE,
    });
    let change = Change { set: attributes.set, clear: attributes.clear, propagation, recursive };
    Ok(pith_sys::mount::set_attributes(mount, change)?)
}

/// A mount of the host's /dev/null, which must be just that: a masked file must not show anything else.
pub(super) fn null() -> StepResult<OwnedFd> {
    here();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&null)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if !is_null {
        return Err(Errno::NODEV).about(|| "/dev/null is not the null device".to_owned());
    }
    Ok(rustix::mount::open_tree(&null, "", tree_flags(false) | OpenTreeFlags::AT_EMPTY_PATH)?)
}

pub(super) fn make_directory(dir: BorrowedFd<'_>, name: &str, mode: u32) -> StepResult {
    here();
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))?;
    Ok(())
}

pub(super) fn make_device(dir: BorrowedFd<'_>, device: &Device) -> StepResult {
    here();
    let kind = file_type(device.kind);
    let (parent, name) = parent_of(dir, Path::new(&device.name))?;
    let parent = parent.as_ref().map_or(dir, AsFd::as_fd);
    let number = rustix::fs::makedev(device.major, device.minor);
    match rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(device.mode), number) {
        // An image may bring its own /dev; what is there is used only if it is that very device.
        Err(Errno::EXIST) => {}
        result => result?,
    }
    let node = open_beneath(parent, Path::new(name), OFlags::PATH | OFlags::NOFOLLOW)?;
    check_device(&node, device)?;
    // The umask may have taken bits away.
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(device.mode), AtFlags::empty())?;
    if (device.uid, device.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Makes the directories above `path`; `None` where it lies in `dir` itself.
fn parent_of<'p>(dir: BorrowedFd<'_>, path: &'p Path) -> StepResult<(Option<OwnedFd>, &'p std::ffi::OsStr)> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => Ok((Some(make_path(dir, parent, true)?), name)),
        None => Ok((None, name)),
    }
}

pub(super) fn make_link(dir: BorrowedFd<'_>, name: &str, target: &str) -> StepResult {
    here();
    match rustix::fs::symlinkat(target, dir, name) {
        // What an image brings along stays as it is.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes the placed root `/` of this process and of its mount namespace.
pub(super) fn enter_root(placed: BorrowedFd<'_>, how: Enter) -> StepResult<OwnedFd> {
    here();
    rustix::process::fchdir(placed)?;
    match how {
        Enter::Pivot => {
            // The old root comes to lie on top of the new one, where it is unmounted (pivot_root(2), NOTES).
            rustix::process::pivot_root(".", ".").about(|| "pivot_root".to_owned())?;
            rustix::mount::unmount(".", UnmountFlags::DETACH).about(|| "umount2".to_owned())?;
        }
        Enter::Move => {
            uncover_nothing(placed)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(placed, "", CWD, "/", flags).about(|| "move_mount".to_owned())?;
            rustix::process::chroot(".").about(|| "chroot".to_owned())?;
        }
    }
    open_root()
}

/// Takes the host's procfs and sysfs away from a mount namespace in which they stay behind the new root. As long as
/// there is one with nothing masked, the kernel lets a user namespace in the container mount another such (mount_too_revealing
/// in fs/namespace.c).
fn uncover_nothing(placed: BorrowedFd<'_>) -> StepResult {
    let own = std::fs::read_link(format!("/proc/self/fd/{}", placed.as_raw_fd()));
    let table = std::fs::read_to_string("/proc/self/mountinfo");
    let (Ok(own), Ok(table)) = (own, table) else {
        return Err(Errno::NOENT).about(|| "/proc of the host".to_owned());
    };
    // proc_pid_mountinfo(5): the fifth field is the mount point, the type follows a single hyphen.
    let revealing = table.lines().rev().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let kind = file_system.split(' ').next()?;
        let point = Path::new(mount.split(' ').nth(4)?);
        (["proc", "sysfs"].contains(&kind) && !point.starts_with(&own)).then_some(point)
    });
    for point in revealing {
        match rustix::mount::unmount(point, UnmountFlags::DETACH) {
            // Gone with one above it.
            Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
            Err(errno) => return Err(errno).about(|| format!("umount2 {}", point.display())),
        }
    }
    Ok(())
}

pub(super) fn change_root(at: &Path) -> StepResult<OwnedFd> {
    here();
    rustix::process::chdir(at)?;
    rustix::process::chroot(".")?;
    open_root()
}

fn open_root() -> StepResult<OwnedFd> {
    rustix::process::chdir("/")?;
    Ok(rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

pub(super) fn remount(
    root: BorrowedFd<'_>,
    target: &Path,
    attributes: Attributes,
    recursive: bool,
) -> StepResult {
    here();
    let mount = open_in_root(root, target, OFlags::PATH)?;
    set_attributes(mount.as_fd(), attributes, None, recursive)
}

/// A mount of one of the host's device nodes, which must be the one that is wanted.
pub(super) fn host_device(device: &Device) -> StepResult<OwnedFd> {
    here();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = Path::new("/dev").join(&device.name);
    let node = rustix::fs::open(&path, flags, Mode::empty())?;
    check_device(&node, device)?;
    Ok(rustix::mount::open_tree(&node, "", tree_flags(false) | OpenTreeFlags::AT_EMPTY_PATH)?)
}

fn check_device(node: &OwnedFd, device: &Device) -> StepResult {
    let kind = file_type(device.kind);
    let stat = rustix::fs::fstat(node)?;
    let same = FileType::from_raw_mode(stat.st_mode) == kind
        && (kind == FileType::Fifo || stat.st_rdev == rustix::fs::makedev(device.major, device.minor));
    if same {
        return Ok(());
    }
    Err(Errno::EXIST).about(|| format!("{} exists and is something else", device.name))
}

fn file_type(kind: DeviceKind) -> FileType {
    match kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    }
}

/// Opens `path` inside `root`; what is missing of it is made: directories, and last a file unless `is_dir`.
pub(super) fn make_path(root: BorrowedFd<'_>, path: &Path, is_dir: bool) -> StepResult<OwnedFd> {
    match open_in_root(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        found => return Ok(found?),
    }
    // Links of the image are followed one by one, because one may point to what is missing (a Debian
    // image's /etc/resolv.conf does). Each lookup refuses links, so one that is put there meanwhile is an
    // error and nothing else.
    let mut ahead: Vec<OsString> = names(path).rev().collect();
    let mut behind = PathBuf::new();
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == ".." {
            behind.pop();
            continue;
        }
        let here = behind.join(&name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let found = match open_beneath(root, &here, flags) {
            Err(Errno::NOENT) => {
                make_one(root, &behind, &name, is_dir || !ahead.is_empty())?;
                open_beneath(root, &here, flags)
            }
            found => found,
        }
        .about(|| here.display().to_string())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Symlink {
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP.into());
            }
            let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
            let target = Path::new(OsStr::from_bytes(target.as_bytes())).to_owned();
            if target.is_absolute() {
                behind.clear();
            }
            ahead.extend(names(&target).rev());
        } else {
            behind = here;
        }
    }
    let last = if behind.as_os_str().is_empty() { Path::new(".") } else { &behind };
    Ok(open_beneath(root, last, OFlags::PATH)?)
}

/// The names in a path; `..` is kept, a beginning or repeated slash is not.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// What masks and protects parts of /proc and /sys does so by these names: an image may not have them elsewhere.
pub(super) fn no_link(root: BorrowedFd<'_>, path: &Path) -> StepResult {
    here();
    let found = open_beneath(root, path.strip_prefix("/").unwrap_or(path), OFlags::PATH | OFlags::NOFOLLOW);
    let is_directory = match found {
        Ok(found) => is_directory(&found)?,
        Err(Errno::NOENT) => true,
        Err(Errno::LOOP | Errno::NOTDIR) => false,
        Err(errno) => return Err(errno.into()),
    };
    if is_directory {
        return Ok(());
    }
    Err(Errno::NOTDIR).about(|| format!("{} must be mounted on ordinary directory", path.display()))
}

fn make_one(root: BorrowedFd<'_>, parent: &Path, name: &OsStr, is_dir: bool) -> StepResult {
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let parent = open_beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
    let made = if is_dir {
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(|_| ())
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        made => made.about(|| name.display().to_string()),
    }
}

fn attach_at(mount: BorrowedFd<'_>, target: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", target, "", flags)
}

/// Opens a path that may be missing.
fn existing(root: BorrowedFd<'_>, path: &Path) -> StepResult<Option<OwnedFd>> {
    match open_in_root(root, path, OFlags::PATH) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno).about(|| path.display().to_string()),
    }
}

fn is_directory(fd: &OwnedFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}

impl Executor {
    /// Attaches the root; from here on paths are resolved inside of it.
    pub(super) fn place_root(&mut self, slot: Slot, at: &Path) -> StepResult {
        here();
        let mount = self.get(slot)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(mount, "", CWD, at, flags)?;
        self.root = Some(rustix::io::fcntl_dupfd_cloexec(mount, 0)?);
        Ok(())
    }

    pub(super) fn attach(&mut self, slot: Slot, target: &Path) -> StepResult {
        here();
        let is_dir = is_directory(self.get(slot)?)?;
        let target = make_path(self.root()?, target, is_dir).map_err(|mut error| {
            error.detail = format!("make {}", target.display());
            error
        })?;
        self.move_to(slot, &target)
    }

    fn move_to(&mut self, slot: Slot, target: &OwnedFd) -> StepResult {
        let placed = self.slots.get_mut(usize::from(slot.0)).and_then(Option::as_mut).ok_or(Errno::BADF)?;
        if placed.attached {
            // Only a mount that is in this namespace can be copied (before Linux 6.15); this one is by now.
            let flags = tree_flags(false) | OpenTreeFlags::AT_EMPTY_PATH;
            let copy = rustix::mount::open_tree(&placed.fd, "", flags)?;
            return Ok(attach_at(copy.as_fd(), target)?);
        }
        attach_at(placed.fd.as_fd(), target)?;
        placed.attached = true;
        Ok(())
    }

    pub(super) fn mask(&mut self, paths: &[PathBuf], null: Slot, empty: Slot) -> StepResult {
        here();
        for path in paths {
            let Some(target) = existing(self.root()?, path)? else { continue };
            let cover = if is_directory(&target)? { empty } else { null };
            self.move_to(cover, &target)?;
        }
        Ok(())
    }
}

pub(super) fn read_only(root: BorrowedFd<'_>, paths: &[PathBuf]) -> StepResult {
    here();
    for path in paths {
        let Some(target) = existing(root, path)? else { continue };
        let copy = rustix::mount::open_tree(&target, "", tree_flags(true) | OpenTreeFlags::AT_EMPTY_PATH)?;
        let change = Change { set: libc::MOUNT_ATTR_RDONLY, recursive: true, ..Change::default() };
        pith_sys::mount::set_attributes(copy.as_fd(), change)?;
        attach_at(copy.as_fd(), &target).about(|| path.display().to_string())?;
    }
    Ok(())
}

pub(super) fn read_only_root(root: BorrowedFd<'_>) -> StepResult {
    here();
    let change = Change { set: libc::MOUNT_ATTR_RDONLY, ..Change::default() };
    Ok(pith_sys::mount::set_attributes(root, change)?)
}

/// Writes below /proc/sys, and makes sure that it is a procfs that is written to.
pub(super) fn sysctl(root: BorrowedFd<'_>, key: &str, value: &str) -> StepResult {
    here();
    // With a slash in it the key is a path already: a component may then hold dots (net/ipv4/conf/eth0.1).
    let relative = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    let proc = open_in_root(root, Path::new("proc/sys"), OFlags::PATH | OFlags::DIRECTORY)?;
    let file = open_beneath(proc.as_fd(), Path::new(&relative), OFlags::WRONLY)?;
    if rustix::fs::fstatfs(&file)?.f_type as u64 != PROC_MAGIC {
        return Err(Errno::XDEV).about(|| "/proc/sys is not a procfs".to_owned());
    }
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}
