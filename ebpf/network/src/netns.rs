//! Named network namespaces as `ip netns` keeps them (a file in /run/netns with the namespace mounted on
//! it), and running code inside one.
//!
//! Invariant: no thread of the caller ever changes its namespace. Work inside a namespace is done by a
//! thread that lives just for it, because a thread that cannot get back would poison whatever runs next.
//!
//! The name must outlive processes, or a killed replica would take its pods' uplink with it: so the
//! namespace is mounted, the only mounts that pith makes outside of containers. /run/netns itself is
//! marked when pith made it (`trusted.pith`), so that the last namespace takes it along and a folder that
//! was there before stays.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use rustix::fs::{FlockOperation, XattrFlags, flock, fsetxattr, getxattr};

/// Where `ip netns` looks.
const FOLDER: &str = "/run/netns";
/// Marks the folder as ours to remove.
const MARK: &str = "trusted.pith";

/// What went wrong with a named namespace.
#[derive(Debug, thiserror::Error)]
#[error("network namespace {name}: {what}")]
pub struct NetnsError {
    /// The namespace's name.
    pub name: String,
    /// The step that failed.
    pub what: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: OwnedFd,
}

impl Netns {
    /// The namespace called `name`, or `None` where there is none.
    ///
    /// # Errors
    /// The file cannot be opened. A file on which no namespace is mounted is no namespace.
    pub fn open(name: &str) -> Result<Option<Self>, NetnsError> {
        match File::open(path(name)) {
            Ok(file) if is_netns(&file) => Ok(Some(Self { name: name.to_owned(), file: file.into() })),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(NetnsError { name: name.to_owned(), what: "open", source }),
        }
    }

    /// The namespace called `name`, made where there is none yet.
    ///
    /// # Errors
    /// Missing rights (`CAP_SYS_ADMIN`), or /run is not writable.
    pub fn ensure(name: &str) -> Result<Self, NetnsError> {
        if let Some(existing) = Self::open(name)? {
            return Ok(existing);
        }
        let failed = |what| move |source| NetnsError { name: name.to_owned(), what, source };
        ensure_folder().map_err(failed("make /run/netns"))?;
        let path = path(name);
        // Left over from a process that was killed between the two steps: empty, and mounted on below.
        File::options().create(true).append(true).open(&path).map_err(failed("make its file"))?;
        let mounted = std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> nix::Result<()> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                let source = Some("/proc/thread-self/ns/net");
                mount(source, &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            });
            thread.join().expect("the thread only makes system calls")
        });
        mounted.map_err(|errno| failed("make and mount it")(errno.into()))?;
        Self::open(name)?.ok_or_else(|| failed("open")(io::ErrorKind::NotFound.into()))
    }

    /// Removes the name; the namespace itself goes with its last process. Nothing there is fine.
    ///
    /// # Errors
    /// The mount or the file stays.
    pub fn remove(name: &str) -> Result<(), NetnsError> {
        let failed = |what| move |source| NetnsError { name: name.to_owned(), what, source };
        let path = path(name);
        let gone = match unmount_and_unlink(&path) {
            // `ip netns add` binds the folder onto itself when it is the first to need it there: what was mounted
            // before lies below, where no path leads any more.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => unlink_apart(&path),
            other => other,
        };
        gone.map_err(failed("unmount it and remove its file"))?;
        remove_folder_if_ours();
        Ok(())
    }

    /// Names of all files in /run/netns, with or without a namespace on them.
    pub fn names() -> Vec<String> {
        let Ok(entries) = fs::read_dir(FOLDER) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it, as `nsenter --net=` takes it.
    pub fn path(&self) -> PathBuf {
        path(&self.name)
    }

    /// Runs `work` inside, on a thread of its own, and waits for it. Sockets that `work` opens and
    /// processes that it starts stay in the namespace. A process started so must not ask for
    /// `PR_SET_PDEATHSIG`: its parent is the thread, which ends at once.
    ///
    /// # Errors
    /// The namespace cannot be entered (`CAP_SYS_ADMIN` is missing).
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        run_in(self.file.as_fd(), work).map_err(|source| NetnsError {
            name: self.name.clone(),
            what: "enter",
            source,
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// As [`Netns::run`], for a namespace that has no name: a pod's.
///
/// # Errors
/// The namespace cannot be entered.
///
/// # Panics
/// When `work` does.
pub fn run_in<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The calling thread's own network namespace.
pub(crate) fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// Whoever holds this may change which clusters exist on this machine: two `pith up` at once would
/// otherwise choose the same subnet.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the lock lives as long as the open file")] File);

impl Lock {
    pub(crate) fn take() -> io::Result<Self> {
        loop {
            ensure_folder()?;
            let folder = File::open(FOLDER)?;
            flock(&folder, FlockOperation::LockExclusive)?;
            // Whoever held it before may have removed the folder with its last namespace.
            let (held, named) = (rustix::fs::fstat(&folder)?, rustix::fs::stat(FOLDER));
            if named.is_ok_and(|named| (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)) {
                return Ok(Self(folder));
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        remove_folder_if_ours();
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Nothing there is fine.
fn unmount_and_unlink(path: &Path) -> io::Result<()> {
    unmount_all(path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Every mount that `path` leads to.
fn unmount_all(path: &Path) -> io::Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Removes a file with mounts on it that something else covers: from a mount namespace in which nothing does. A file
/// that is no mount point where it is removed takes its mounts in all other namespaces along.
fn unlink_apart(path: &Path) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            unmount_all(Path::new(FOLDER))?;
            unmount_and_unlink(path)
        });
        thread.join().expect("the thread only makes system calls")
    })
}

/// NSFS_MAGIC, include/uapi/linux/magic.h.
fn is_netns(file: &File) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    rustix::fs::fstatfs(file).is_ok_and(|fs| fs.f_type == NSFS_MAGIC)
}

fn ensure_folder() -> io::Result<()> {
    match fs::create_dir(FOLDER) {
        Ok(()) => {
            // Without the mark the folder is merely not removed again.
            let _ = fsetxattr(File::open(FOLDER)?, MARK, b"1", XattrFlags::empty());
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Only an empty folder can be removed, so that this may be tried at any time.
fn remove_folder_if_ours() {
    let mut value = [0; 1];
    if getxattr(FOLDER, MARK, &mut value).is_ok() {
        let _ = fs::remove_dir(FOLDER);
    }
}
