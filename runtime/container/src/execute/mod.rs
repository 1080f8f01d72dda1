//! Carrying out a [`Plan`]: a fork, then one step after the other in the child.
//!
//! ```text
//! supervisor                                child
//! launch ── clone3 ───────────────────────▶ steps …
//!        ◀── Notice (left out here) ──────
//!        ◀── Terminal + master ───────────
//!        ◀── Mappings, Hooks ──── go ─────▶
//!        ◀── Ready ─── (hold) ── go ──────▶
//!                                          (gate) ◀── go ── whoever connects
//!        ◀── Executing, then end of file ─  execve
//!        ◀── Failed { step, errno } ──────  _exit
//! ```
//!
//! The control socket is close-on-exec: its end after `Executing` is the proof that the program runs. An
//! end without either word means that the child died in between.

mod birth;
mod copy;
mod gate;
mod mounts;
mod process;
mod program;
mod step;
mod user;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pith_sys::process::{Child, namespaces};
use rustix::io::Errno;
use rustix::thread::CapabilitySets;
use serde::{Deserialize, Serialize};

use crate::plan::{Failure, FailureKind, Hook, Namespace, Plan, Slot, Stage, Step};
use crate::supervisor::wire::{self, WireError};
use crate::trace::{Carried, timed};

pub use birth::{launch, prepare, write_mappings};

/// A process to start.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub plan: &'a Plan,
    pub stdio: [BorrowedFd<'a>; 3],
    /// Wait for [`Launched::go`] before `execve`.
    pub hold: bool,
    /// The process whose namespaces a `JoinTarget` step enters, as a pidfd.
    pub target: Option<BorrowedFd<'a>>,
    /// The process whose pid namespace the new one is born in, as a pidfd; else the caller's.
    pub pid_namespace: Option<BorrowedFd<'a>>,
    /// What [`prepare`] made of the plan's outside steps.
    pub prepared: &'a [(Slot, OwnedFd)],
    /// The program finds these as descriptors from 3 on.
    pub preserved: &'a [BorrowedFd<'a>],
    /// Once held and let go, the process no longer dies with its supervisor.
    pub outlive: bool,
    /// Where it then waits to be started.
    pub gate: Option<Gate<'a>>,
    /// Report the time that each step took.
    pub trace: bool,
    pub then: Then,
}

/// A listening SOCK_SEQPACKET socket: who connects to it and sends the container's state starts the program, and
/// hears what became of it on that connection.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    pub socket: BorrowedFd<'a>,
    /// Run inside the container just before the program.
    pub hooks: &'a [Hook],
}

impl<'a> Launch<'a> {
    /// Carries out the plan and executes its program, without any of the extras.
    #[must_use]
    pub fn new(plan: &'a Plan, stdio: [BorrowedFd<'a>; 3]) -> Launch<'a> {
        Launch {
            plan,
            stdio,
            hold: false,
            target: None,
            pid_namespace: None,
            prepared: &[],
            preserved: &[],
            outlive: false,
            gate: None,
            trace: false,
            then: Then::Execute,
        }
    }
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
    /// Waits until the identity maps have been written.
    Mappings,
    /// Waits until the supervisor has run its hooks of this stage, or has said what the state is for those that are
    /// run inside.
    Hooks(Stage),
    /// With the descriptor that announces the calls which a seccomp filter leaves to somebody else.
    Listener,
    /// A step of the plan, by its index in `steps` and then `last`, has been carried out.
    Step {
        index: usize,
        carried: Carried,
    },
    /// All steps are done; waits for `go`.
    Ready,
    /// The supervisor may end now.
    Free,
    Executing,
    Failed(Failure),
}

impl Launched {
    /// Lets a held process execute its program.
    pub fn go(&self) -> Result<(), WireError> {
        self.answer(b"go")
    }

    /// Lets a process that waits go on, with a text that it needs for that.
    pub fn answer(&self, text: &[u8]) -> Result<(), WireError> {
        wire::send_bytes(self.control.as_fd(), text, &[], false)
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
    let gate = launch.gate.map(|gate| gate.socket);
    let keep: Vec<BorrowedFd<'_>> = (launch.stdio.into_iter())
        .chain(launch.preserved.iter().copied())
        .chain([control])
        .chain(launch.target)
        .chain(gate)
        .chain(launch.prepared.iter().map(|(_, fd)| fd.as_fd()))
        .collect();
    let Ok(kept) = pith_sys::descriptor::keep_only(&keep) else { return 1 };
    let mut kept = kept.into_iter();
    let preserved = kept.by_ref().take(launch.preserved.len()).collect();
    let Some(control) = kept.next() else { return 1 };
    let mut executor = Executor {
        control,
        target: launch.target.and_then(|_| kept.next()),
        gate: gate.and_then(|_| kept.next()),
        preserved,
        root: None,
        slots: Vec::new(),
        identity: None,
        keeps_groups: false,
        rights: None,
    };
    let prepared = launch.prepared.iter().map(|(slot, _)| *slot).zip(kept);
    let failure = match executor.carry_out(launch, prepared) {
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
    gate: Option<OwnedFd>,
    /// For the program, from 3 on.
    preserved: Vec<OwnedFd>,
    /// The container's root, once it has been placed.
    root: Option<OwnedFd>,
    slots: Vec<Option<Placed>>,
    /// Who the process has become.
    identity: Option<user::Resolved>,
    /// In its user namespace setgroups(2) is denied.
    keeps_groups: bool,
    /// What it is left with once its filter has been loaded.
    rights: Option<CapabilitySets>,
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
    fn carry_out(
        &mut self,
        launch: &Launch<'_>,
        prepared: impl Iterator<Item = (Slot, OwnedFd)>,
    ) -> Result<std::convert::Infallible, Failure> {
        for (slot, fd) in prepared {
            self.put(slot, fd).map_err(|error| failure("inherit mounts", error))?;
        }
        self.steps(&launch.plan.steps, 0, launch.trace)?;
        // What was to be attached has been; nobody who waits here holds a mount or a folder open.
        self.slots.clear();
        if launch.hold {
            if matches!(launch.then, Then::Execute) && launch.gate.is_some() {
                // Whoever creates a container hears then, not at its start, that there is no such program.
                self.look_up(&launch.plan.exec)?;
            }
            self.report(&Report::Ready, &[]);
            self.wait_for_word();
        }
        if launch.outlive {
            let _ = rustix::process::set_parent_process_death_signal(None);
            self.report(&Report::Free, &[]);
        }
        let mut last = launch.plan.last.as_slice();
        let first = launch.plan.steps.len();
        if let Some(gate) = launch.gate {
            let state = self.wait_at_gate()?;
            if !gate.hooks.is_empty() {
                // They may be programs of the image: what holds for the container's holds for them.
                self.steps(std::mem::take(&mut last), first, launch.trace)?;
                gate::run_hooks(Stage::StartContainer, gate.hooks, &state)
                    .map_err(|error| failure(&Stage::StartContainer.to_string(), error))?;
            }
        }
        match launch.then {
            Then::Execute => {
                let program = self.program(&launch.plan.exec)?;
                self.report(&Report::Executing, &[]);
                self.pass_descriptors(&program)?;
                self.steps(last, first, launch.trace)?;
                Err(program.execute())
            }
            Then::Reap => {
                self.report(&Report::Executing, &[]);
                let _ = pith_sys::descriptor::close_all();
                pith_sys::process::reap_for_ever()
            }
        }
    }

    /// Carries out steps of the plan, the first of which is its number `first`.
    fn steps(&mut self, steps: &[Step], first: usize, trace: bool) -> Result<(), Failure> {
        for (index, step) in (first..).zip(steps) {
            let (done, carried) = timed(|| self.step(step));
            done.map_err(|error| failure(&step.call(), error))?;
            if trace {
                self.report(&Report::Step { index, carried }, &[]);
            }
        }
        Ok(())
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
