//! The file system that pins live in, and the folder of one datapath in it.
//!
//! ```text
//! <folder>/layout-1/maps/FRONTENDS …
//! <folder>/layout-1/links/connect4 …
//! ```
//! Invariant: only names that this layout knows are ever removed. Anything else is named in the error,
//! with what it is and whose.

use std::{
    fs, io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use pith_abi::{LAYOUT, map_name};

use crate::kernel::{self, ObjectKind};

/// File system type of bpffs (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// File system type of cgroup v2.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// What is wrong with the folder of a datapath.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("{path} is not on a BPF file system: mount one, for example `mount -t bpf bpf /sys/fs/bpf`")]
    NotBpffs { path: PathBuf },
    #[error("{path} is not a folder of the cgroup v2 hierarchy")]
    NotCgroup2 { path: PathBuf },
    #[error(
        "{path} holds pins of layout {found}, this proxy knows layout {LAYOUT}: stop the other one and remove them"
    )]
    OtherLayout { path: PathBuf, found: String },
    #[error("{path} holds pins that are not ours, left untouched: {}", .pins.join(", "))]
    Foreign { path: PathBuf, pins: Vec<String> },
    #[error("no datapath is pinned in {path}")]
    Absent { path: PathBuf },
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl PinError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// The folder of one datapath.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    folder: PathBuf,
    layout: u32,
}

impl Pins {
    /// Makes the folder where it is missing; refuses one that belongs to another layout.
    pub(crate) fn open(folder: &Path) -> Result<Self, PinError> {
        fs::create_dir_all(folder).map_err(PinError::io("create", folder))?;
        if file_system(folder)? != BPF_FS_MAGIC {
            return Err(PinError::NotBpffs { path: folder.to_owned() });
        }
        for name in names(folder)? {
            if let Some(found) = name.strip_prefix("layout-")
                && found != LAYOUT.to_string()
            {
                return Err(PinError::OtherLayout { path: folder.to_owned(), found: found.to_owned() });
            }
        }
        let pins = Self { folder: folder.to_owned(), layout: LAYOUT };
        for folder in [pins.maps(), pins.links()] {
            fs::create_dir_all(&folder).map_err(PinError::io("create", &folder))?;
        }
        Ok(pins)
    }

    /// The folder of a datapath that is there.
    pub(crate) fn existing(folder: &Path) -> Result<Self, PinError> {
        let pins = Self { folder: folder.to_owned(), layout: LAYOUT };
        let absent = || PinError::Absent { path: folder.to_owned() };
        if pins.maps().try_exists().map_err(PinError::io("look at", folder))? {
            return Ok(pins);
        }
        let others = if folder.is_dir() { names(folder)? } else { Vec::new() };
        let other = others.iter().find_map(|name| name.strip_prefix("layout-"));
        Err(other.map_or_else(absent, |found| PinError::OtherLayout {
            path: folder.to_owned(),
            found: found.to_owned(),
        }))
    }

    fn layout(&self) -> PathBuf {
        self.folder.join(format!("layout-{}", self.layout))
    }

    fn maps(&self) -> PathBuf {
        self.layout().join("maps")
    }

    fn links(&self) -> PathBuf {
        self.layout().join("links")
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub(crate) fn link(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }
}

/// Removes the pins of a datapath, and so detaches it where no process holds it any more. Does what can be
/// done and names what is not ours. A folder that is not there is removed already.
pub(crate) fn remove(folder: &Path, programs: &[&str]) -> Result<(), PinError> {
    if !folder.try_exists().map_err(PinError::io("look at", folder))? {
        return Ok(());
    }
    let mut foreign = Vec::new();
    // Also what an earlier version left.
    for layout in 1..=LAYOUT {
        foreign.extend(remove_layout(&Pins { folder: folder.to_owned(), layout }, programs)?);
    }
    let removed = fs::remove_dir(folder);
    match removed {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
        other => absent_is_removed(other).map_err(PinError::io("remove", folder))?,
    }
    // Folders that are not ours are named where nothing else says why ours are still there.
    if folder.exists() && foreign.is_empty() {
        foreign = names(folder)?.iter().map(|name| folder.join(name).display().to_string()).collect();
    }
    if foreign.is_empty() {
        return Ok(());
    }
    Err(PinError::Foreign { path: folder.to_owned(), pins: foreign })
}

/// Removes the pins of one layout; what is left of others' in words.
fn remove_layout(pins: &Pins, programs: &[&str]) -> Result<Vec<String>, PinError> {
    // Links first: a program without its maps' names still works, but nobody could see why.
    let links: Vec<PathBuf> = programs.iter().map(|program| pins.link(program)).collect();
    for pin in &links {
        match kernel::open_pin(pin) {
            Ok(link) => kernel::detach_link(link.as_fd()).map_err(PinError::io("detach", pin))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(PinError::io("open", pin)(error)),
        }
    }
    for pin in links.into_iter().chain(map_name::ALL.iter().map(|map| pins.map(map))) {
        absent_is_removed(fs::remove_file(&pin)).map_err(PinError::io("remove", &pin))?;
    }
    let mut foreign = Vec::new();
    for folder in [pins.links(), pins.maps(), pins.layout()] {
        match fs::remove_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                for name in names(&folder)? {
                    let path = folder.join(name);
                    if !path.is_dir() {
                        foreign.push(describe(&path));
                    }
                }
            }
            other => absent_is_removed(other).map_err(PinError::io("remove", &folder))?,
        }
    }
    Ok(foreign)
}

/// Refuses a path that is not a folder of the cgroup v2 hierarchy.
pub(crate) fn check_cgroup(path: &Path) -> Result<(), PinError> {
    if file_system(path)? == CGROUP2_MAGIC {
        return Ok(());
    }
    Err(PinError::NotCgroup2 { path: path.to_owned() })
}

/// Whether a path lies on a BPF file system.
pub fn is_bpffs(path: &Path) -> Result<bool, PinError> {
    Ok(file_system(path)? == BPF_FS_MAGIC)
}

/// Mounts a BPF file system on a folder unless one is there; `true` when it did. The mount is the caller's
/// to undo, with [`unmount`].
pub fn mount(path: &Path) -> Result<bool, PinError> {
    if is_bpffs(path)? {
        return Ok(false);
    }
    let flags = rustix::mount::MountFlags::NOSUID
        | rustix::mount::MountFlags::NODEV
        | rustix::mount::MountFlags::NOEXEC;
    rustix::mount::mount("bpf", path, "bpf", flags, c"mode=700")
        .map_err(|error| PinError::io("mount a BPF file system on", path)(error.into()))?;
    Ok(true)
}

/// Undoes [`mount`]; pins of anyone in it are lost.
pub fn unmount(path: &Path) -> Result<(), PinError> {
    rustix::mount::unmount(path, rustix::mount::UnmountFlags::empty())
        .map_err(|error| PinError::io("unmount", path)(error.into()))
}

fn file_system(path: &Path) -> Result<i64, PinError> {
    let stat = rustix::fs::statfs(path).map_err(|error| PinError::io("look at", path)(error.into()))?;
    Ok(stat.f_type)
}

fn names(folder: &Path) -> Result<Vec<String>, PinError> {
    let entries = fs::read_dir(folder).map_err(PinError::io("read", folder))?;
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<io::Result<_>>().map_err(PinError::io("read", folder))
}

/// A pin in words: path, what it is, whose it is.
fn describe(path: &Path) -> String {
    let kind = match kernel::open_pin(path).map(|fd| kernel::object_kind(fd.as_fd())) {
        Ok(ObjectKind::Map) => "a map",
        Ok(ObjectKind::Program) => "a program",
        Ok(ObjectKind::Link) => "a link",
        Ok(ObjectKind::Unknown) | Err(_) => "a file",
    };
    let owner = fs::symlink_metadata(path).map_or_else(|_| "?".to_owned(), |meta| meta.uid().to_string());
    format!("{} ({kind} of user {owner})", path.display())
}

fn absent_is_removed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
