//! Carrying out a [`Plan`]: a fork, then one step after the other in the child.
//!
//! ```text
//! supervisor                                child
//! launch ── clone3 ───────────────────────▶ steps …
//!        ◀── Notice (left out here) ──────
//!        ◀── Terminal + master ───────────
//!        ◀── Ready ─── (hold) ── go ──────▶
//!        ◀── Executing, then end of file ─  execve
//!        ◀── Failed { step, errno } ──────  _exit
//! ```
//!
//! The control socket is close-on-exec: its end after `Executing` is the proof that the program runs. An
//! end without either word means that the child died in between.

mod mounts;
mod process;
mod program;
mod user;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pith_sys::process::{Child, namespaces};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::plan::{Failure, FailureKind, Namespace, Plan, Slot, Step};
use crate::supervisor::wire;

/// A process to start.
#[derive(Debug)]
pub struct Launch<'a> {
    pub plan: &'a Plan,
    pub stdio: [BorrowedFd<'a>; 3],
    /// Wait for [`Launched::go`] before `execve`.
    pub hold: bool,
    /// The process whose namespaces a `JoinTarget` step enters, as a pidfd.
    pub target: Option<BorrowedFd<'a>>,
    /// The process whose pid namespace the new one is born in, as a pidfd; else the caller's.
    pub pid_namespace: Option<BorrowedFd<'a>>,
    pub then: Then,
}

/// What follows the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The plan's program.
    Execute,
    /// Collecting the dead for ever: the first process of a pid namespace that containers share.
    Reap,
}

/// A started process, on its way to its program.
#[derive(Debug)]
pub struct Launched {
    pub child: Child,
    pub control: OwnedFd,
}

/// What the child says on its control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Something that this machine does not allow was left out.
    Notice(String),
    /// With the terminal's master.
    Terminal,
    /// All steps are done; waits for `go`.
    Ready,
    Executing,
    Failed(Failure),
}

/// Forks the process of a plan. The caller must have one thread.
pub fn launch(launch: &Launch<'_>) -> Result<Launched, Failure> {
    let failed = |operation: &str| {
        let step = operation.to_owned();
        move |errno: Errno| Failure {
            kind: FailureKind::Setup,
            message: format!("{step}: {errno}"),
            step,
            errno: errno.raw_os_error(),
        }
    };
    let cgroup = match &launch.plan.cgroup {
        Some(dir) => Some(
            rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(failed(&format!("open cgroup {}", dir.display())))?,
        ),
        None => None,
    };
    let (control, theirs) = pith_sys::message::pair().map_err(failed("socketpair"))?;
    let flags = launch.plan.namespaces.iter().map(|namespace| flag(*namespace)).sum();
    let fork = || {
        let body = || run(launch, theirs.as_fd());
        pith_sys::process::fork(flags, cgroup.as_ref().map(AsFd::as_fd), body).map_err(failed("clone3"))
    };
    let child = match launch.pid_namespace {
        Some(target) => inside_pid_namespace(target, fork).map_err(failed("setns pid"))??,
        None => fork()?,
    };
    Ok(Launched { child, control })
}

/// Runs `fork` while children are born into the pid namespace of `target`: it is the one namespace that
/// setns(2) changes for children only, so the caller has to lend itself to it.
fn inside_pid_namespace<T>(target: BorrowedFd<'_>, fork: impl FnOnce() -> T) -> Result<T, Errno> {
    let own = rustix::fs::open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    pith_sys::process::setns(target, namespaces::PID)?;
    let forked = fork();
    pith_sys::process::setns(own.as_fd(), namespaces::PID)?;
    Ok(forked)
}

impl Launched {
    /// Lets a held process execute its program.
    pub fn go(&self) -> Result<(), Errno> {
        pith_sys::message::send(self.control.as_fd(), b"go", &[], false)
    }
}

/// The failure of a process that ended before it could say why.
#[must_use]
pub fn died() -> Failure {
    Failure {
        kind: FailureKind::Died,
        step: "set-up".to_owned(),
        errno: 0,
        message: "the container's process was killed while it was being set up".to_owned(),
    }
}

/// The CLONE_NEW* flag of a namespace.
#[must_use]
pub fn flag(namespace: Namespace) -> u64 {
    match namespace {
        Namespace::User => namespaces::USER,
        Namespace::Mount => namespaces::MOUNT,
        Namespace::Pid => namespaces::PID,
        Namespace::Network => namespaces::NETWORK,
        Namespace::Ipc => namespaces::IPC,
        Namespace::Uts => namespaces::UTS,
        Namespace::Cgroup => namespaces::CGROUP,
        Namespace::Time => namespaces::TIME,
    }
}

/// Everything the child does. Returns its exit code if it could not execute the program.
fn run(launch: &Launch<'_>, control: BorrowedFd<'_>) -> i32 {
    pith_sys::process::reset_signals();
    let keep: Vec<BorrowedFd<'_>> = launch.stdio.into_iter().chain([control]).chain(launch.target).collect();
    let Ok(kept) = pith_sys::descriptor::keep_only(&keep) else { return 1 };
    let mut kept = kept.into_iter();
    let Some(control) = kept.next() else { return 1 };
    let mut executor =
        Executor { control, target: kept.next(), root: None, slots: Vec::new(), identity: None };
    let failure = match executor.carry_out(launch) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    executor.report(&Report::Failed(failure), &[]);
    1
}

/// The child's state between steps.
struct Executor {
    control: OwnedFd,
    target: Option<OwnedFd>,
    /// `/` of the container, once it has been entered.
    root: Option<OwnedFd>,
    slots: Vec<Option<Placed>>,
    /// Who the process has become.
    identity: Option<user::Resolved>,
}

/// A descriptor in a slot.
struct Placed {
    fd: OwnedFd,
    /// It is a mount, and has been attached.
    attached: bool,
}

/// Why a step could not be carried out.
struct StepError {
    kind: FailureKind,
    /// Absent where the kernel has no part in the failure.
    errno: Option<Errno>,
    detail: String,
}

type StepResult<T = ()> = Result<T, StepError>;

impl From<Errno> for StepError {
    fn from(errno: Errno) -> StepError {
        StepError { kind: FailureKind::Setup, errno: Some(errno), detail: String::new() }
    }
}

/// Says what an error is about.
trait About<T> {
    fn about(self, what: impl FnOnce() -> String) -> StepResult<T>;
}

impl<T> About<T> for Result<T, Errno> {
    fn about(self, what: impl FnOnce() -> String) -> StepResult<T> {
        self.map_err(|errno| StepError { kind: FailureKind::Setup, errno: Some(errno), detail: what() })
    }
}

impl Executor {
    fn carry_out(&mut self, launch: &Launch<'_>) -> Result<std::convert::Infallible, Failure> {
        for step in &launch.plan.steps {
            self.step(step).map_err(|error| failure(&step.to_string(), error))?;
        }
        if launch.hold {
            self.report(&Report::Ready, &[]);
            // The end of the supervisor is the end of the wait as well: nobody is left to run for.
            if !matches!(pith_sys::message::receive(self.control.as_fd(), 16, true), Ok(Some(_))) {
                pith_sys::process::exit_now(1);
            }
        }
        match launch.then {
            Then::Execute => self.execute(&launch.plan.exec),
            Then::Reap => {
                self.report(&Report::Executing, &[]);
                let _ = pith_sys::descriptor::close_all();
                pith_sys::process::reap_for_ever()
            }
        }
    }

    fn step(&mut self, step: &Step) -> StepResult {
        match step {
            Step::JoinCgroup { dir } => process::join_cgroup(dir),
            Step::JoinNamespace { namespace, path } => process::join_namespace(*namespace, path),
            Step::JoinTarget { namespaces } => self.join_target(namespaces),
            Step::NewCgroupNamespace => Ok(pith_sys::process::unshare(namespaces::CGROUP)?),
            Step::Undumpable => {
                Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
            }
            Step::DieWithParent => self.die_with_parent(),
            Step::OomScore { value } => self.oom_score(*value),
            Step::IsolateMounts => mounts::isolate(),
            Step::Filesystem { slot, kind, source, options, attributes } => {
                self.put(*slot, mounts::filesystem(kind, source, options, *attributes)?)
            }
            Step::Overlay { slot, lower, upper, work, at } => {
                let upper = upper.as_deref().zip(work.as_deref());
                self.put(*slot, mounts::overlay(lower, upper, at)?)
            }
            Step::Bind { slot, source, recursive } => self.put(*slot, mounts::bind(source, *recursive)?),
            Step::SetAttributes { slot, attributes, propagation, recursive } => {
                mounts::set_attributes(self.get(*slot)?.as_fd(), *attributes, *propagation, *recursive)
            }
            Step::OpenNull { slot } => self.put(*slot, mounts::null()?),
            Step::OpenDirectory { slot, path } => {
                let directory = mounts::make_path(self.root()?, path, true)?;
                self.put(*slot, directory)
            }
            Step::MakeDirectory { slot, name, mode } => {
                mounts::make_directory(self.get(*slot)?.as_fd(), name, *mode)
            }
            Step::MakeDevice { slot, device } => mounts::make_device(self.get(*slot)?.as_fd(), device),
            Step::MakeLink { slot, name, target } => {
                mounts::make_link(self.get(*slot)?.as_fd(), name, target)
            }
            Step::PlaceRoot { slot, at } => mounts::place_root(self.get(*slot)?.as_fd(), at),
            Step::EnterRoot { at } => {
                self.root = Some(mounts::enter_root(at)?);
                Ok(())
            }
            Step::Attach { slot, target } => self.attach(*slot, target),
            Step::Mask { paths, null, empty } => self.mask(paths, *null, *empty),
            Step::ReadOnly { paths } => mounts::read_only(self.root()?, paths),
            Step::Sysctl { key, value } => mounts::sysctl(self.root()?, key, value),
            Step::ReadOnlyRoot => mounts::read_only_root(self.root()?),
            Step::RootPropagation { propagation } => {
                mounts::set_attributes(self.root()?, Default::default(), Some(*propagation), false)
            }
            Step::Hostname { name } => Ok(rustix::system::sethostname(name.as_bytes())?),
            Step::Domainname { name } => Ok(rustix::system::setdomainname(name.as_bytes())?),
            Step::NewSession => Ok(rustix::process::setsid().map(|_| ())?),
            Step::Terminal { size, console } => self.terminal(*size, *console),
            Step::ResourceLimit { resource, soft, hard } => self.resource_limit(resource, *soft, *hard),
            Step::WorkingDirectory { path } => process::working_directory(self.root()?, path),
            Step::Umask { mask } => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
                Ok(())
            }
            Step::Become { identity, capabilities } => self.become_user(identity, *capabilities),
            Step::NoNewPrivileges => Ok(rustix::thread::set_no_new_privs(true)?),
            Step::Seccomp { program, flags } => Ok(pith_sys::seccomp::load(program, *flags)?),
        }
    }

    fn put(&mut self, slot: Slot, fd: OwnedFd) -> StepResult {
        let index = usize::from(slot.0);
        if index >= usize::from(crate::plan::MAX_SLOTS) {
            return Err(Errno::MFILE.into());
        }
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(Placed { fd, attached: false });
        Ok(())
    }

    fn get(&self, slot: Slot) -> StepResult<&OwnedFd> {
        let placed = self.slots.get(usize::from(slot.0)).and_then(Option::as_ref);
        placed.map(|placed| &placed.fd).ok_or_else(|| Errno::BADF.into())
    }

    /// The container's `/`; for a process that joined one, the root of the namespace it is in.
    fn root(&mut self) -> StepResult<BorrowedFd<'_>> {
        if self.root.is_none() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            self.root = Some(rustix::fs::open("/", flags, Mode::empty())?);
        }
        Ok(self.root.as_ref().expect("set above").as_fd())
    }

    fn report(&self, report: &Report, fds: &[BorrowedFd<'_>]) {
        // A supervisor that is gone needs no report; its end is noticed where it matters.
        let _ = wire::send(self.control.as_fd(), report, fds, true);
    }

    fn notice(&self, text: String) {
        self.report(&Report::Notice(text), &[]);
    }
}

fn failure(step: &str, error: StepError) -> Failure {
    let message = match error.errno {
        Some(errno) if error.detail.is_empty() => format!("{step}: {errno}"),
        Some(errno) => format!("{step}: {}: {errno}", error.detail),
        None => error.detail,
    };
    let errno = error.errno.map_or(0, Errno::raw_os_error);
    Failure { kind: error.kind, step: step.to_owned(), errno, message }
}
