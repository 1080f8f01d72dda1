//! How the process of a plan comes to be: what its supervisor does before and around clone3(2).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use pith_sys::process::{CLONE_PARENT, Child, namespaces};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::plan::{Clock, Failure, FailureKind, Mapping, Mappings, Namespace, Plan, Slot, Step};
use crate::trace::{Carried, here, timed};

use super::{About, Executor, Launch, Launched, StepResult, failure, flag, run};

fn failed(operation: &str) -> impl Fn(Errno) -> Failure + use<> {
    let step = operation.to_owned();
    move |errno: Errno| Failure {
        kind: FailureKind::Setup,
        message: format!("{step}: {errno}"),
        step: step.clone(),
        errno: errno.raw_os_error(),
    }
}

/// Carries out the plan's outside steps in this process; `trace` hears of each.
pub fn prepare(plan: &Plan, mut trace: impl FnMut(&Step, Carried)) -> Result<Vec<(Slot, OwnedFd)>, Failure> {
    if plan.outside.is_empty() {
        return Ok(Vec::new());
    }
    let (control, _theirs) = pith_sys::message::pair().map_err(failed("socketpair"))?;
    let mut executor = Executor {
        control,
        target: None,
        gate: None,
        preserved: Vec::new(),
        root: None,
        slots: Vec::new(),
        identity: None,
        keeps_groups: false,
        rights: None,
    };
    for step in &plan.outside {
        let (done, carried) = timed(|| executor.step(step));
        done.map_err(|error| failure(&step.call(), error))?;
        trace(step, carried);
    }
    let slots = (0..).map(Slot).zip(executor.slots);
    Ok(slots.filter_map(|(slot, placed)| placed.map(|placed| (slot, placed.fd))).collect())
}

/// Forks the process of a plan. The caller must have one thread.
pub fn launch(launch: &Launch<'_>) -> Result<Launched, Failure> {
    let cgroup = match &launch.plan.cgroup {
        Some(dir) => Some(
            rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(failed(&format!("open cgroup {}", dir.display())))?,
        ),
        None => None,
    };
    let cgroup = cgroup.as_ref().map(AsFd::as_fd);
    let (control, theirs) = pith_sys::message::pair().map_err(failed("socketpair"))?;
    let body = || run(launch, theirs.as_fd());
    let born_in = |kind: Namespace| -> Result<Option<OwnedFd>, Failure> {
        let Some((_, path)) = launch.plan.born_in.iter().find(|(born, _)| *born == kind) else {
            return Ok(None);
        };
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map(Some)
            .map_err(failed(&format!("open {kind} namespace {}", path.display())))
    };
    let (users, pids) = (born_in(Namespace::User)?, born_in(Namespace::Pid)?);
    let pids = launch.pid_namespace.or(pids.as_ref().map(AsFd::as_fd));
    let own_clocks = Clocks::new(launch.plan)?;
    // A time namespace is made by unshare (above): clone3 would freeze its offsets before they are set.
    let new = launch.plan.namespaces.iter().filter(|namespace| **namespace != Namespace::Time);
    let flags = new.map(|namespace| flag(*namespace)).sum();
    here();
    let fork = || pith_sys::process::fork(flags, cgroup, body);
    let child = match (users, pids) {
        (Some(users), pids) => through_user_namespace(users.as_fd(), pids, flags, cgroup, body)
            .map_err(failed("be born in the user namespace")),
        (None, Some(pids)) => inside_pid_namespace(pids, fork)
            .map_err(failed("setns pid"))
            .and_then(|forked| forked.map_err(failed("clone3"))),
        (None, None) => fork().map_err(failed("clone3")),
    };
    own_clocks.restore()?;
    Ok(Launched { child: child?, control })
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

/// A process in an existing user namespace, whose new namespaces belong to that one. No way leads back out of a
/// user namespace, so a process in between enters it and bears a sibling.
fn through_user_namespace(
    users: BorrowedFd<'_>,
    pids: Option<BorrowedFd<'_>>,
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce() -> i32,
) -> Result<Child, Errno> {
    let (ours, theirs) = pith_sys::message::pair()?;
    let between = pith_sys::process::fork(0, None, || {
        let born = pith_sys::process::setns(users, namespaces::USER)
            .and_then(|()| pids.map_or(Ok(()), |pids| pith_sys::process::setns(pids, namespaces::PID)))
            .and_then(|()| pith_sys::process::fork_alone(flags | CLONE_PARENT, cgroup, body));
        let told = match &born {
            Ok(child) => pith_sys::message::send(
                theirs.as_fd(),
                &child.pid.to_ne_bytes(),
                &[child.pidfd.as_fd()],
                true,
            ),
            Err(errno) => {
                pith_sys::message::send(theirs.as_fd(), &errno.raw_os_error().to_ne_bytes(), &[], true)
            }
        };
        i32::from(born.is_err() || told.is_err())
    })?;
    drop(theirs);
    let packet = pith_sys::message::receive(ours.as_fd(), 4, true)?;
    pith_sys::process::wait(&between.pidfd)?;
    let packet = packet.ok_or(Errno::CHILD)?;
    let number = i32::from_ne_bytes(packet.bytes.try_into().map_err(|_| Errno::BADMSG)?);
    match packet.fds.into_iter().next() {
        Some(pidfd) => Ok(Child { pidfd, pid: number }),
        None => Err(Errno::from_raw_os_error(number)),
    }
}

/// The caller's own time namespace, while its children are born into another.
struct Clocks(Option<OwnedFd>);

impl Clocks {
    fn new(plan: &Plan) -> Result<Clocks, Failure> {
        if !plan.namespaces.contains(&Namespace::Time) {
            return Ok(Clocks(None));
        }
        let own = rustix::fs::open("/proc/self/ns/time", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed("open /proc/self/ns/time"))?;
        pith_sys::process::unshare(namespaces::TIME).map_err(failed("unshare CLONE_NEWTIME"))?;
        let clocks = Clocks(Some(own));
        let text: String = plan
            .clocks
            .iter()
            .map(|Clock { name, seconds, nanoseconds }| format!("{name} {seconds} {nanoseconds}\n"))
            .collect();
        if !text.is_empty()
            && let Err(error) = std::fs::write("/proc/self/timens_offsets", text)
        {
            clocks.restore()?;
            return Err(failed("write /proc/self/timens_offsets")(errno(&error)));
        }
        Ok(clocks)
    }

    fn restore(self) -> Result<(), Failure> {
        match self.0 {
            Some(own) => {
                pith_sys::process::setns(own.as_fd(), namespaces::TIME).map_err(failed("setns time"))
            }
            None => Ok(()),
        }
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Writes the maps of a process's user namespace. A process without rights may map its own group only once
/// setgroups(2) has been given up (user_namespaces(7)).
pub fn write_mappings(pid: i32, mappings: &Mappings, give_up_groups: bool) -> std::io::Result<()> {
    here();
    let dir = Path::new("/proc").join(pid.to_string());
    let text = |mappings: &[Mapping]| -> String {
        mappings.iter().map(|m| format!("{} {} {}\n", m.inside, m.outside, m.size)).collect()
    };
    if give_up_groups {
        std::fs::write(dir.join("setgroups"), "deny")?;
    }
    std::fs::write(dir.join("uid_map"), text(&mappings.uids))?;
    std::fs::write(dir.join("gid_map"), text(&mappings.gids))
}

/// Shows a mount's owners through a user namespace that exists only for its maps.
pub(super) fn map_ids(mount: BorrowedFd<'_>, mappings: &Mappings, recursive: bool) -> StepResult {
    here();
    let (ours, theirs) = pith_sys::message::pair()?;
    let holder = pith_sys::process::fork(namespaces::USER, None, || {
        // Lives until the other end is closed.
        let _ = pith_sys::message::receive(theirs.as_fd(), 1, true);
        0
    })?;
    drop(theirs);
    let namespace =
        write_mappings(holder.pid, mappings, false).map_err(|error| errno(&error)).and_then(|()| {
            let path = format!("/proc/{}/ns/user", holder.pid);
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        });
    // The socket is also open in the holder itself: closing this end alone would not end it.
    pith_sys::process::signal(holder.pidfd.as_fd(), libc::SIGKILL)?;
    pith_sys::process::wait(&holder.pidfd)?;
    drop(ours);
    let namespace = namespace.about(|| "user namespace for the mappings".to_owned())?;
    pith_sys::mount::map_ids(mount, namespace.as_fd(), recursive)
        .about(|| "the file system may not support it".to_owned())
}
