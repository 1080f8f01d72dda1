//! A container's folder below `--root`, and what state the container is in.
//!
//! ```text
//! creating ──create──▶ created ──start──▶ running ◀──resume/pause──▶ paused
//!     └──── killed ───────┴──────────────────┴──── process ended ──▶ stopped ──delete──▶ gone
//! ```
//!
//! Only what happened is written down (`state.json`, replaced whole); the state itself is asked of the kernel: is the
//! process alive, does it wait at its gate, is its cgroup frozen.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use pith_container::plan::Hook;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::SPEC_VERSION;
use crate::cgroup::{self, Place};
use crate::error::{Error, Result};

/// The socket at which a created container waits to be started.
const GATE: &str = "gate";
const STATE: &str = "state.json";
const CONFIG: &str = "config.json";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// A process that cannot be mistaken for a later one with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identified {
    pub(crate) pid: i32,
    /// Clock ticks after boot (proc_pid_stat(5), field 22).
    pub(crate) start_time: u64,
}

impl Identified {
    pub(crate) fn of(pid: i32) -> Option<Identified> {
        let (_, start_time) = stat(pid)?;
        Some(Identified { pid, start_time })
    }

    /// Neither gone nor a zombie.
    pub(crate) fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|(state, start)| start == self.start_time && !"ZXx".contains(state))
    }

    /// A descriptor that is of this process and no other.
    pub(crate) fn open(self) -> Result<Option<OwnedFd>> {
        let failed = |source| Error::Kernel { operation: "pidfd_open", source };
        Ok(open(self.pid).map_err(failed)?.filter(|_| self.is_alive()))
    }
}

/// A descriptor of whoever has a number; `None` where that is nobody.
pub(crate) fn open(pid: i32) -> std::result::Result<Option<OwnedFd>, Errno> {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return Ok(None) };
    match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        // EINVAL: it is gone, but its number is still that of a session or group (kernel/pid.c, pidfd_open).
        Err(Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// State letter and start time.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may hold anything.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) created: String,
    /// User who created it.
    pub(crate) owner: u32,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    /// The command that creates it: once that is dead there is nothing to wait for.
    pub(crate) creator: Identified,
    /// From when it has been created.
    pub(crate) process: Option<Identified>,
    pub(crate) cgroup: Option<Place>,
    /// Without a mount namespace of its own the container's root covers `rootfs` in the caller's: the mount
    /// (statx(2), stx_mnt_id) that is to be seen there again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) covered: Option<u64>,
    pub(crate) has_program: bool,
    pub(crate) own_pids: bool,
    /// The specification's version that its configuration names.
    pub(crate) config_version: String,
    #[serde(default)]
    pub(crate) poststart: Vec<Hook>,
    #[serde(default)]
    pub(crate) poststop: Vec<Hook>,
}

/// What `state` prints, and hooks read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report<'a> {
    oci_version: &'static str,
    pub(crate) id: &'a str,
    pub(crate) pid: i32,
    pub(crate) status: Status,
    pub(crate) bundle: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
}

impl State {
    pub(crate) fn status(&self, folder: &Folder) -> Status {
        match self.process {
            None if self.creator.is_alive() => Status::Creating,
            None => Status::Stopped,
            Some(process) if !process.is_alive() => Status::Stopped,
            Some(_) if folder.knock().is_some() => Status::Created,
            Some(_) if self.cgroup.as_ref().is_some_and(cgroup::is_frozen) => Status::Paused,
            Some(_) => Status::Running,
        }
    }

    pub(crate) fn report(&self, status: Status) -> Report<'_> {
        let running = !matches!(status, Status::Stopped);
        Report {
            oci_version: SPEC_VERSION,
            id: &self.id,
            pid: self.process.filter(|_| running).map_or(0, |process| process.pid),
            status,
            bundle: &self.bundle,
            rootfs: Some(&self.rootfs),
            created: Some(&self.created),
            annotations: &self.annotations,
            owner: Some(user_name(self.owner)),
        }
    }

    /// The state as hooks and seccomp agents read it: what the specification names, and no more.
    pub(crate) fn for_hooks(&self, status: Status, pid: i32) -> Vec<u8> {
        let report = Report { pid, rootfs: None, created: None, owner: None, ..self.report(status) };
        serde_json::to_vec(&report).expect("text and numbers are valid JSON")
    }
}

fn user_name(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let uid = uid.to_string();
    let of = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        (fields.nth(1)? == uid).then_some(name)
    };
    passwd.lines().find_map(of).unwrap_or_default()
}

/// `<root>/<id>`.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    pub(crate) dir: PathBuf,
    pub(crate) id: String,
}

impl Folder {
    /// Ids are one component of a path, in runc's alphabet.
    fn at(root: &Path, id: &str) -> Result<Folder> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        if id.is_empty() || id.len() > 255 || matches!(id, "." | "..") || !id.bytes().all(allowed) {
            return Err(Error::InvalidId);
        }
        Ok(Folder { dir: root.join(id), id: id.to_owned() })
    }

    /// Makes it; there must be none of this id.
    pub(crate) fn make(root: &Path, id: &str) -> Result<Folder> {
        let folder = Folder::at(root, id)?;
        let make = || rustix::fs::mkdir(&folder.dir, rustix::fs::Mode::RWXU);
        let made = match make() {
            Err(Errno::NOENT) => {
                fs::create_dir_all(root).map_err(Error::io("create", root))?;
                make()
            }
            made => made,
        };
        match made {
            Ok(()) => Ok(folder),
            Err(Errno::EXIST) => Err(Error::Exists),
            Err(errno) => Err(Error::io("create", &folder.dir)(errno.into())),
        }
    }

    pub(crate) fn open(root: &Path, id: &str) -> Result<Folder> {
        let folder = Folder::at(root, id)?;
        if folder.dir.is_dir() { Ok(folder) } else { Err(Error::NotFound) }
    }

    /// `None` where creating was interrupted before anything else was made.
    pub(crate) fn load_if_any(&self) -> Result<Option<State>> {
        let path = self.dir.join(STATE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let state = serde_json::from_slice(&text);
        state.map(Some).map_err(|source| Error::State { id: self.id.clone(), source })
    }

    pub(crate) fn load(&self) -> Result<State> {
        self.load_if_any()?.ok_or(Error::NotFound)
    }

    pub(crate) fn save(&self, state: &State) -> Result<()> {
        let text = serde_json::to_vec(state).expect("text and numbers are valid JSON");
        replace(&self.dir.join(STATE), &text)
    }

    /// The configuration as it was when the container was created.
    pub(crate) fn save_config(&self, text: &[u8]) -> Result<()> {
        let path = self.dir.join(CONFIG);
        fs::write(&path, text).map_err(Error::io("write", path))
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join(CONFIG)
    }

    pub(crate) fn make_gate(&self) -> Result<OwnedFd> {
        pith_sys::message::listen(&self.dir, GATE, 16).map_err(Error::kernel("listen at the gate"))
    }

    /// A connection to the process that waits at the gate, if one does.
    pub(crate) fn knock(&self) -> Option<OwnedFd> {
        if !self.dir.join(GATE).exists() {
            return None;
        }
        pith_sys::message::connect(&self.dir, GATE).ok()
    }

    pub(crate) fn remove_gate(&self) {
        // What stays behind is nobody's gate, which is found out by knocking.
        let _ = fs::remove_file(self.dir.join(GATE));
    }

    pub(crate) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", &self.dir)(error)),
            _ => Ok(()),
        }
    }
}

/// Writes a file so that readers see the old content or the new one, whole.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::write(&aside, content).and_then(|()| exchange(&aside, path)).map_err(|error| {
        let _ = fs::remove_file(&aside);
        Error::io("write", path)(error)
    })
}

/// Brings a file to its path. Where one is there already the two change places: a rename over it would have ext4 write
/// the new one out at once (ext4(5), auto_da_alloc), and whoever deletes the container waits for the disk then.
fn exchange(aside: &Path, path: &Path) -> std::io::Result<()> {
    match rustix::fs::renameat_with(CWD, aside, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => fs::remove_file(aside),
        // None is there, or the file system cannot do it.
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => fs::rename(aside, path),
        Err(errno) => Err(errno.into()),
    }
}

/// The ids of every container below a root.
pub(crate) fn ids(root: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", root)(error)),
    };
    let mut ids: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|id| Folder::open(root, id).is_ok())
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_table() {
        let long = "x".repeat(256);
        let cases = [
            ("a", true),
            ("A-b_c.d+1", true),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("../a", false),
            ("a b", false),
            ("ä", false),
            (long.as_str(), false),
        ];
        for (id, good) in cases {
            assert_eq!(Folder::at(Path::new("/r"), id).is_ok(), good, "{id:?}");
        }
    }

    #[test]
    fn an_id_is_given_once() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = Folder::make(root.path(), "a").expect("made");
        assert!(matches!(Folder::make(root.path(), "a"), Err(Error::Exists)));
        assert!(matches!(Folder::open(root.path(), "b"), Err(Error::NotFound)));
        assert_eq!(ids(root.path()).expect("listed"), ["a"]);
        assert!(folder.load_if_any().expect("no state").is_none());
        folder.remove().expect("removed");
        folder.remove().expect("and again");
    }

    #[test]
    fn this_process_is_alive() {
        let me = Identified::of(std::process::id().cast_signed()).expect("in /proc");
        assert!(me.is_alive());
        assert!(!Identified { start_time: me.start_time + 1, ..me }.is_alive());
    }
}
