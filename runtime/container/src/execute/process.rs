//! Steps on the process itself.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use pith_sys::mount::open_in_root;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::process::{Resource, Rlimit, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::plan::{Capabilities, FailureKind, Identity, Namespace, Scheduling, WindowSize};
use crate::trace::here;

use super::{About, Executor, Report, StepError, StepResult, flag, mounts, user};

/// DEVPTS_SUPER_MAGIC of <linux/magic.h>.
const DEVPTS_MAGIC: u64 = 0x1cd1;
/// /dev/ptmx: TTYAUX_MAJOR, minor 2.
const PTMX: (u32, u32) = (5, 2);

pub(super) fn join_cgroup(dir: &Path) -> StepResult {
    here();
    let tasks = rustix::fs::open(dir.join("tasks"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&tasks, b"0")?;
    Ok(())
}

pub(super) fn join_namespace(namespace: Namespace, path: &Path) -> StepResult {
    here();
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(pith_sys::process::setns(file.as_fd(), flag(namespace))?)
}

pub(super) fn working_directory(root: BorrowedFd<'_>, path: &Path) -> StepResult {
    here();
    let dir = match open_in_root(root, path, OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOENT) => mounts::make_path(root, path, true)?,
        found => found?,
    };
    rustix::process::fchdir(&dir)?;
    // The kernel names a directory that cannot be reached from the root "(unreachable)…" (getcwd(2)).
    let cwd = rustix::process::getcwd(Vec::new())?;
    if cwd.as_bytes().first() != Some(&b'/') {
        return Err(Errno::XDEV).about(|| "it lies outside the root".to_owned());
    }
    Ok(())
}

pub(super) fn schedule(wanted: Scheduling) -> StepResult {
    here();
    let mut scheduling = pith_sys::attributes::Scheduling::default();
    scheduling.policy = wanted.policy;
    scheduling.flags = wanted.flags;
    scheduling.nice = wanted.nice;
    scheduling.priority = wanted.priority;
    scheduling.runtime_ns = wanted.runtime_ns;
    scheduling.deadline_ns = wanted.deadline_ns;
    scheduling.period_ns = wanted.period_ns;
    Ok(pith_sys::attributes::set_scheduling(scheduling)?)
}

pub(super) fn cpu_affinity(cpus: &[u32]) -> StepResult {
    here();
    let mut set = rustix::thread::CpuSet::new();
    for cpu in cpus {
        let cpu = usize::try_from(*cpu).ok().filter(|cpu| *cpu < rustix::thread::CpuSet::MAX_CPU);
        set.set(cpu.ok_or(Errno::INVAL)?);
    }
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Asks a security module for a label, through a file that is verified to be procfs's (CVE-2019-16884,
/// CVE-2025-52881: a false /proc takes the word and does nothing).
pub(super) fn label(root: BorrowedFd<'_>, file: &str, value: &str) -> StepResult {
    here();
    let proc = open_in_root(root, Path::new("proc"), OFlags::PATH | OFlags::DIRECTORY)?;
    let path = format!("thread-self/attr/{file}");
    // thread-self is one of procfs's links, which lead nowhere else once the directory is verified.
    if rustix::fs::fstatfs(&proc)?.f_type as u64 != mounts::PROC_MAGIC {
        return Err(Errno::XDEV).about(|| "/proc is not a procfs".to_owned());
    }
    let file = open_in_root(proc.as_fd(), Path::new(&path), OFlags::WRONLY)?;
    if rustix::fs::fstatfs(&file)?.f_type as u64 != mounts::PROC_MAGIC {
        return Err(Errno::XDEV).about(|| "/proc/thread-self is covered".to_owned());
    }
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}

impl Executor {
    /// Kernels without keyrings, and namespaces that may not make one, have nothing to leak either.
    pub(super) fn session_keyring(&self, name: &str) -> StepResult {
        here();
        let name = std::ffi::CString::new(name).map_err(|_| Errno::INVAL)?;
        match pith_sys::attributes::new_session_keyring(&name) {
            Ok(()) | Err(Errno::NOSYS) => Ok(()),
            Err(errno @ (Errno::PERM | Errno::DQUOT | Errno::ACCESS)) => {
                self.notice(format!("no session keyring of its own: {errno}"));
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Becomes root of a user namespace whose maps have been written.
    pub(super) fn namespace_root(&mut self) -> StepResult {
        here();
        match rustix::thread::set_thread_groups(&[]) {
            Ok(()) => {}
            // A map of one's own group alone comes with setgroups(2) denied.
            Err(Errno::PERM) => self.keeps_groups = true,
            Err(errno) => return Err(errno).about(|| "setgroups".to_owned()),
        }
        let (uid, gid) = (Uid::ROOT, Gid::ROOT);
        rustix::thread::set_thread_res_gid(gid, gid, gid).about(|| "setresgid".to_owned())?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).about(|| "setresuid".to_owned())
    }

    pub(super) fn join_target(&self, namespaces: &[Namespace]) -> StepResult {
        here();
        let target = self.target.as_ref().ok_or(Errno::SRCH)?;
        let flags = namespaces.iter().map(|namespace| flag(*namespace)).sum();
        Ok(pith_sys::process::setns(target.as_fd(), flags)?)
    }

    pub(super) fn die_with_parent(&self) -> StepResult {
        here();
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have died just before: then its end of the control socket is closed.
        let mut control = [PollFd::new(&self.control, PollFlags::empty())];
        rustix::event::poll(&mut control, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if control[0].revents().contains(PollFlags::HUP) {
            pith_sys::process::exit_now(1);
        }
        Ok(())
    }

    pub(super) fn oom_score(&self, value: i32) -> StepResult {
        here();
        let write = |value: i32| {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::open("/proc/self/oom_score_adj", flags, Mode::empty())?;
            rustix::io::write(&file, value.to_string().as_bytes())
        };
        match write(value) {
            Ok(_) => Ok(()),
            // Below what it is needs CAP_SYS_RESOURCE.
            Err(Errno::ACCESS | Errno::PERM) => {
                self.notice(format!("oom_score_adj {value} needs CAP_SYS_RESOURCE: left as it is"));
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn resource_limit(&self, name: &str, soft: u64, hard: u64) -> StepResult {
        here();
        let resource = resource(name).ok_or(Errno::INVAL)?;
        let limit = |value: u64| (value != u64::MAX).then_some(value);
        let wanted = Rlimit { current: limit(soft), maximum: limit(hard) };
        match rustix::process::setrlimit(resource, wanted) {
            Err(Errno::PERM) => {
                // Above the inherited hard limit needs CAP_SYS_RESOURCE: as far up as is allowed.
                let inherited = rustix::process::getrlimit(resource).maximum;
                let least = |value: Option<u64>| match (value, inherited) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                let lowered = Rlimit { current: least(wanted.current), maximum: least(wanted.maximum) };
                rustix::process::setrlimit(resource, lowered)?;
                self.notice(format!("{name} {hard} needs CAP_SYS_RESOURCE: limited to {inherited:?}"));
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// Opens a terminal in the container's own devpts, by descriptors that are verified to belong to it:
    /// what lies at those paths may have been put there by an image or by a running container.
    pub(super) fn terminal(&mut self, size: Option<WindowSize>, console: bool) -> StepResult {
        here();
        let root = self.root()?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let master =
            open_in_root(root, Path::new("dev/pts/ptmx"), flags).about(|| "/dev/pts/ptmx".to_owned())?;
        let stat = rustix::fs::fstat(&master)?;
        let genuine = rustix::fs::fstatfs(&master)?.f_type as u64 == DEVPTS_MAGIC
            && FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(PTMX.0, PTMX.1);
        if !genuine {
            return Err(Errno::NODEV).about(|| "/dev/pts/ptmx is not a terminal multiplexer".to_owned());
        }
        rustix::pty::unlockpt(&master)?;
        let peer_flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = rustix::pty::ioctl_tiocgptpeer(&master, peer_flags)?;
        if console {
            let target = mounts::make_path(root, Path::new("/dev/console"), false)?;
            let named = open_in_root(root, Path::new("/dev/console"), OFlags::PATH | OFlags::NOFOLLOW)?;
            if FileType::from_raw_mode(rustix::fs::fstat(&named)?.st_mode) == FileType::Symlink {
                return Err(Errno::LOOP).about(|| "/dev/console is a link".to_owned());
            }
            let clone = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            let mount = rustix::mount::open_tree(&terminal, "", clone)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            rustix::mount::move_mount(&mount, "", &target, "", flags)?;
        }
        if let Some(size) = size {
            let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
            rustix::termios::tcsetwinsize(&master, size)?;
        }
        rustix::process::ioctl_tiocsctty(&terminal)?;
        pith_sys::descriptor::make_stdio(terminal.as_fd())?;
        self.report(&Report::Terminal, &[master.as_fd()]);
        Ok(())
    }

    /// With `filters` CAP_SYS_ADMIN is kept, until [`Self::give_up_filter_right`].
    pub(super) fn become_user(
        &mut self,
        identity: &Identity,
        capabilities: Capabilities,
        filters: bool,
    ) -> StepResult {
        here();
        let resolved = user::resolve(self.root()?, identity).map_err(|detail| StepError {
            kind: FailureKind::UnknownUser,
            errno: None,
            detail,
        })?;
        let capabilities = self.available(capabilities)?;
        for capability in caps::all() {
            let wanted = capabilities.bounding & capability.bitmask() != 0;
            if wanted {
                continue;
            }
            let dropped = caps::drop(None, CapSet::Bounding, capability);
            // Who has none to drop is refused as well, and so is what this kernel does not know.
            if dropped.is_err() && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
                set("bounding", dropped)?;
            }
        }
        give_stdio(resolved.uid)?;
        let (uid, gid) = (Uid::from_raw(resolved.uid), Gid::from_raw(resolved.gid));
        let groups: Vec<Gid> = resolved.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        // Where the kernel denies setgroups(2) the caller's groups are all there is, and more cannot be asked for.
        if !(self.keeps_groups && groups.is_empty()) {
            rustix::thread::set_thread_groups(&groups).about(|| "setgroups".to_owned())?;
        }
        rustix::thread::set_thread_res_gid(gid, gid, gid)
            .about(|| format!("setresgid {} (is it mapped in this user namespace?)", gid.as_raw()))?;
        rustix::thread::set_keep_capabilities(true)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).about(|| "setresuid".to_owned())?;
        rustix::thread::set_keep_capabilities(false)?;
        self.identity = Some(resolved);
        let filter_right = if filters { Capability::CAP_SYS_ADMIN.bitmask() } else { 0 };
        self.rights = Some(CapabilitySets {
            effective: CapabilitySet::from_bits_retain(capabilities.effective),
            permitted: CapabilitySet::from_bits_retain(capabilities.permitted),
            inheritable: CapabilitySet::from_bits_retain(capabilities.inheritable),
        });
        let (effective, permitted) =
            (capabilities.effective | filter_right, capabilities.permitted | filter_right);
        set_capabilities(Capabilities { effective, permitted, ..capabilities })
    }

    /// One system call, which the filter has to allow besides execve.
    pub(super) fn give_up_filter_right(&mut self) -> StepResult {
        here();
        let rights = self.rights.take().ok_or(Errno::PERM)?;
        Ok(rustix::thread::set_capabilities(None, rights)?)
    }

    /// The part of the capabilities that this process can hand out.
    fn available(&self, wanted: Capabilities) -> StepResult<Capabilities> {
        let held = caps::read(None, CapSet::Permitted).map_err(|_| Errno::PERM)?;
        let held = held.iter().fold(0, |mask, capability| mask | capability.bitmask());
        let missing: Vec<String> =
            names_of(wanted.permitted & !held).map(|capability| capability.to_string()).collect();
        if !missing.is_empty() {
            self.notice(format!("this machine does not give {}", missing.join(", ")));
        }
        let permitted = wanted.permitted & held;
        let inheritable = wanted.inheritable & held;
        // Nearly every configuration in use asks for ambient capabilities that are not inheritable, since engines
        // stopped making any inheritable (CVE-2022-24769): they mean none, and are told nothing.
        let ambient = wanted.ambient & permitted & inheritable;
        let effective = wanted.effective & permitted;
        let lost: Vec<String> =
            names_of(wanted.effective & held & !effective).map(|capability| capability.to_string()).collect();
        if !lost.is_empty() {
            self.notice(format!("cannot be effective without being permitted: {}", lost.join(", ")));
        }
        Ok(Capabilities { bounding: wanted.bounding & held, effective, permitted, inheritable, ambient })
    }
}

fn names_of(mask: u64) -> impl Iterator<Item = Capability> {
    let mut all: Vec<Capability> = caps::all().into_iter().collect();
    all.sort_unstable_by_key(Capability::index);
    all.into_iter().filter(move |capability| mask & capability.bitmask() != 0)
}

/// In the order in which each is still allowed: everything effective, so that the inheritable set can be
/// written (CAP_SETPCAP), then down to what is wanted. Ambient capabilities come last: they need the others.
fn set_capabilities(wanted: Capabilities) -> StepResult {
    let of = |mask: u64| -> CapsHashSet { names_of(mask).collect() };
    let held = caps::read(None, CapSet::Permitted).map_err(|_| Errno::PERM)?;
    set("effective", caps::set(None, CapSet::Effective, &held))?;
    set("ambient", caps::clear(None, CapSet::Ambient))?;
    set("inheritable", caps::set(None, CapSet::Inheritable, &of(wanted.inheritable)))?;
    set("effective", caps::set(None, CapSet::Effective, &of(wanted.effective)))?;
    set("permitted", caps::set(None, CapSet::Permitted, &of(wanted.permitted)))?;
    names_of(wanted.ambient)
        .try_for_each(|capability| set("ambient", caps::raise(None, CapSet::Ambient, capability)))
}

fn set(which: &str, result: Result<(), caps::errors::CapsError>) -> StepResult {
    result.map_err(|error| StepError {
        kind: FailureKind::Setup,
        errno: None,
        detail: format!("{which} capabilities: {error}"),
    })
}

/// Makes the user the owner of its standard streams: programs open /dev/stdout again, and a pipe's
/// permissions are checked then.
fn give_stdio(uid: u32) -> StepResult {
    let give = |fd: BorrowedFd<'_>| -> Result<(), Errno> {
        let stat = rustix::fs::fstat(fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_terminal = kind == FileType::CharacterDevice
            && rustix::fs::fstatfs(fd).is_ok_and(|fs| fs.f_type as u64 == DEVPTS_MAGIC);
        let is_pipe = kind == FileType::Fifo;
        if stat.st_uid == uid || !(is_terminal || is_pipe) {
            return Ok(());
        }
        match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None) {
            Err(Errno::PERM | Errno::ROFS | Errno::INVAL) => Ok(()),
            result => result,
        }
    };
    Ok([rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()]
        .into_iter()
        .try_for_each(give)?)
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return None,
    })
}
