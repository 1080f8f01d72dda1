//! Starting, adopting and asking a supervisor. Everything here blocks; call it from a thread for that.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pith_sys::process::{Ended, namespaces};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::process::{Pid, PidfdFlags};

use super::protocol::{
    Boot, CgroupDirs, ContainerRecord, ContainerSpec, Event, ExecStdio, Exit, PROTOCOL, Refusal, Reply,
    Request, SandboxSpec, SandboxState,
};
use super::records;
use super::wire::{self, WireError};
use crate::plan::{Plan, WindowSize};

/// How long a supervisor may take to answer. It never waits for anything but the kernel; on a machine that
/// swaps or boots hundreds of pods this is still far away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to end after it was told to, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A request to a supervisor failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("no supervisor answers in {dir}")]
    Gone { dir: PathBuf },
    #[error("supervisor in {dir}: {source}")]
    Wire { dir: PathBuf, source: WireError },
    #[error("start of the supervisor in {dir}: {message}")]
    Boot { dir: PathBuf, message: String },
    #[error("the supervisor in {dir} speaks protocol {theirs}, this program {PROTOCOL}")]
    Protocol { dir: PathBuf, theirs: u32 },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the supervisor in {dir} gave an answer that does not fit")]
    Unexpected { dir: PathBuf },
}

/// A running supervisor. Dropping it leaves the supervisor alone; clones refer to the same one.
#[derive(Clone, Debug)]
pub struct Supervisor {
    dir: PathBuf,
    pid: i32,
    pidfd: Arc<OwnedFd>,
    notices: Vec<String>,
}

impl Supervisor {
    /// Starts a supervisor for a pod and waits until it listens.
    ///
    /// It is born in its namespaces and its cgroup, executed from a read-only view of `program`, so that
    /// no container can write to the file behind its own `/proc/self/exe`.
    pub fn spawn(program: &Path, spec: &SandboxSpec) -> Result<Supervisor, Error> {
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |errno: Errno| Error::Io { operation, path, source: errno.into() }
        };
        let executable = read_only_view(program).map_err(io("open", program))?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(io("open", Path::new("/dev/null")))?;
        let errors_path = spec.dir.join(records::ERRORS);
        let errors = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&errors_path)
            .map_err(|source| Error::Io { operation: "create", path: errors_path.clone(), source })?;
        let cgroup = open_cgroup(&spec.cgroup)?;
        let (ours, theirs) = pith_sys::message::pair().map_err(io("socketpair", &spec.dir))?;
        let descriptors = [null.as_fd(), errors.as_fd(), errors.as_fd(), theirs.as_fd()];
        let child = pith_sys::process::spawn(&pith_sys::process::Spawn {
            namespaces: new_namespaces(spec),
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            program: executable.as_fd(),
            args: &[c"pith-podd".to_owned(), title(&spec.dir)],
            env: &[],
            descriptors: &descriptors,
        })
        .map_err(io("execute", program))?;
        drop(theirs);
        let mut supervisor = Supervisor {
            dir: spec.dir.clone(),
            pid: child.pid,
            pidfd: Arc::new(child.pidfd),
            notices: vec![],
        };
        match supervisor.boot(ours.as_fd(), spec) {
            Ok(notices) => {
                supervisor.notices = notices;
                Ok(supervisor)
            }
            Err(error) => {
                supervisor.kill();
                Err(error)
            }
        }
    }

    fn boot(&self, socket: BorrowedFd<'_>, spec: &SandboxSpec) -> Result<Vec<String>, Error> {
        let wire = |source| Error::Wire { dir: self.dir.clone(), source };
        set_timeout(socket, Some(ANSWER_TIMEOUT)).map_err(wire)?;
        let exchange = wire::send(socket, spec, &[], true).and_then(|()| wire::receive(socket, true));
        match exchange {
            Ok((Boot::Ready { notices }, _)) => Ok(notices),
            Ok((Boot::Failed { message }, _)) => Err(Error::Boot { dir: self.dir.clone(), message }),
            Err(WireError::Closed) => Err(Error::Boot {
                dir: self.dir.clone(),
                message: std::fs::read_to_string(self.dir.join(records::ERRORS))
                    .ok()
                    .filter(|text| !text.is_empty())
                    .unwrap_or_else(|| "it ended without a word".to_owned()),
            }),
            Err(error) => Err(wire(error)),
        }
    }

    /// Finds the supervisor that an earlier process started for a pod; [`Error::Gone`] if it has ended.
    pub fn adopt(dir: &Path) -> Result<Supervisor, Error> {
        let state = Connection::ask(dir, &Request::State, &[])?.state()?;
        if state.protocol != PROTOCOL {
            return Err(Error::Protocol { dir: dir.to_owned(), theirs: state.protocol });
        }
        let gone = || Error::Gone { dir: dir.to_owned() };
        let pid = Pid::from_raw(state.pid).ok_or_else(gone)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
        // It answered before the pidfd was opened; that it answers again proves that the pid was still its.
        let again = Connection::ask(dir, &Request::State, &[])?.state()?;
        if again.pid != state.pid {
            return Err(gone());
        }
        Ok(Supervisor { dir: dir.to_owned(), pid: state.pid, pidfd: Arc::new(pidfd), notices: vec![] })
    }

    /// The supervisor's pid, also the way to its namespaces (`/proc/<pid>/ns/…`).
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Becomes readable when the supervisor ends.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What this machine did not allow when the supervisor started.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The pod's network namespace.
    pub fn netns(&self) -> Result<OwnedFd, Error> {
        let path = PathBuf::from(format!("/proc/{}/ns/net", self.pid));
        let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::Io { operation: "open", path, source: errno.into() })?;
        if self.has_ended() { Err(self.gone()) } else { Ok(fd) }
    }

    /// A path of the pod's own mount namespace (its memory-backed volumes) as this process can open it.
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        let relative = path.strip_prefix("/").unwrap_or(path);
        Path::new(&format!("/proc/{}/root", self.pid)).join(relative)
    }

    /// Whether it has ended (and with it every container).
    #[must_use]
    pub fn has_ended(&self) -> bool {
        readable(self.pidfd.as_fd(), Some(Duration::ZERO))
    }

    /// Sets a container up and waits until it could execute its program.
    pub fn create(&self, spec: ContainerSpec) -> Result<ContainerRecord, Error> {
        self.ask(&Request::Create { spec: Box::new(spec), start: false })?.container()
    }

    /// Executes the program of a created container.
    pub fn start(&self, id: &str) -> Result<ContainerRecord, Error> {
        self.ask(&Request::Start { id: id.to_owned() })?.container()
    }

    /// [`create`](Self::create) and [`start`](Self::start) in one.
    pub fn run(&self, spec: ContainerSpec) -> Result<ContainerRecord, Error> {
        self.ask(&Request::Create { spec: Box::new(spec), start: true })?.container()
    }

    /// Sends a signal to the container's first process.
    pub fn signal(&self, id: &str, signal: i32) -> Result<(), Error> {
        self.ask(&Request::Signal { id: id.to_owned(), signal, all: false })?.done()
    }

    /// SIGKILLs everything in the container.
    pub fn kill_container(&self, id: &str) -> Result<(), Error> {
        self.ask(&Request::Signal { id: id.to_owned(), signal: libc::SIGKILL, all: true })?.done()
    }

    /// Runs a process in a running container, connected to the given streams (none is /dev/null).
    pub fn exec(&self, id: &str, plan: Plan, streams: Streams<'_>) -> Result<Exec, Error> {
        let stdio = ExecStdio {
            stdin: streams.stdin.is_some(),
            stdout: streams.stdout.is_some(),
            stderr: streams.stderr.is_some(),
        };
        let request = Request::Exec { id: id.to_owned(), plan: Box::new(plan), stdio, tty: None };
        self.start_exec(&request, &streams.given())
    }

    /// Runs a process in a running container on a new terminal, whose master is in the result. The plan
    /// needs a `Terminal` step.
    pub fn exec_terminal(&self, id: &str, plan: Plan, size: WindowSize) -> Result<Exec, Error> {
        let stdio = ExecStdio::default();
        let request = Request::Exec { id: id.to_owned(), plan: Box::new(plan), stdio, tty: Some(size) };
        self.start_exec(&request, &[])
    }

    fn start_exec(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Exec, Error> {
        let mut connection = Connection::ask(&self.dir, request, fds)?;
        match connection.reply.take() {
            Some(Reply::Started { pid }) => Ok(Exec { pid, terminal: connection.fds.pop(), connection }),
            reply => Err(connection.misfit(reply)),
        }
    }

    /// Connects to the streams of a running container: what it writes from now on is copied to the given
    /// ones; the result holds its input if `stdin` is true.
    pub fn attach(
        &self,
        id: &str,
        stdin: bool,
        stdout: Option<BorrowedFd<'_>>,
        stderr: Option<BorrowedFd<'_>>,
    ) -> Result<Attachment, Error> {
        let request =
            Request::Attach { id: id.to_owned(), stdin, stdout: stdout.is_some(), stderr: stderr.is_some() };
        let fds: Vec<_> = stdout.into_iter().chain(stderr).collect();
        let mut connection = Connection::ask(&self.dir, &request, &fds)?;
        match connection.reply.take() {
            Some(Reply::Done) => Ok(Attachment { stdin: connection.fds.pop() }),
            reply => Err(connection.misfit(reply)),
        }
    }

    /// Begins a new log file at the container's log path.
    pub fn reopen_log(&self, id: &str) -> Result<(), Error> {
        self.ask(&Request::ReopenLog { id: id.to_owned() })?.done()
    }

    /// Forgets a container that is not running, with its record.
    pub fn delete(&self, id: &str) -> Result<(), Error> {
        self.ask(&Request::Delete { id: id.to_owned() })?.done()
    }

    /// The supervisor and its containers as they are now.
    pub fn state(&self) -> Result<SandboxState, Error> {
        self.ask(&Request::State)?.state()
    }

    /// Everything that happens from now on, and the state it starts from: nothing falls in between.
    pub fn subscribe(&self) -> Result<(SandboxState, Events), Error> {
        let mut connection = Connection::ask(&self.dir, &Request::Subscribe, &[])?;
        match connection.reply.take() {
            Some(Reply::State(state)) => Ok((state, Events { connection })),
            reply => Err(connection.misfit(reply)),
        }
    }

    /// Kills every container and ends the supervisor, by force if it does not answer. When this returns
    /// none of their processes is left.
    pub fn stop(&self) -> Result<(), Error> {
        let asked = self.ask(&Request::Shutdown).and_then(Connection::done);
        if asked.is_ok() && readable(self.pidfd.as_fd(), Some(STOP_TIMEOUT)) {
            self.reap();
            return Ok(());
        }
        self.kill();
        Ok(())
    }

    /// SIGKILLs the supervisor. The kernel ends its containers with it: it is the init process of the pid
    /// namespace above theirs, or (with the host's pid namespace) their parent with a death signal.
    pub fn kill(&self) {
        // ESRCH: it has ended already, which is what is wanted.
        let _ = pith_sys::process::signal(self.pidfd.as_fd(), libc::SIGKILL);
        readable(self.pidfd.as_fd(), None);
        self.reap();
    }

    /// Collects the ended supervisor if it is this process's child; an adopted one is somebody else's.
    pub fn reap(&self) -> Option<Ended> {
        pith_sys::process::try_wait(&self.pidfd).ok().flatten()
    }

    fn gone(&self) -> Error {
        Error::Gone { dir: self.dir.clone() }
    }

    fn ask(&self, request: &Request) -> Result<Connection, Error> {
        Connection::ask(&self.dir, request, &[])
    }
}

/// Streams for [`Supervisor::exec`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Streams<'a> {
    pub stdin: Option<BorrowedFd<'a>>,
    pub stdout: Option<BorrowedFd<'a>>,
    pub stderr: Option<BorrowedFd<'a>>,
}

impl<'a> Streams<'a> {
    fn given(&self) -> Vec<BorrowedFd<'a>> {
        [self.stdin, self.stdout, self.stderr].into_iter().flatten().collect()
    }
}

/// A process running in a container. Dropping it kills the process.
#[derive(Debug)]
pub struct Exec {
    /// In the host's pid namespace.
    pub pid: i32,
    /// The master of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
    connection: Connection,
}

impl Exec {
    /// Waits until the process ends; `None` when `timeout` passed first.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Option<Exit>, Error> {
        if !readable(self.connection.socket.as_fd(), timeout) {
            return Ok(None);
        }
        match self.connection.next_message::<Reply>()? {
            Reply::Exited(exit) => Ok(Some(exit)),
            reply => Err(self.connection.misfit(Some(reply))),
        }
    }
}

impl AsFd for Exec {
    /// Readable when [`Exec::wait`] has something to say.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.socket.as_fd()
    }
}

/// An attachment to a container's streams; see [`Supervisor::attach`].
#[derive(Debug)]
pub struct Attachment {
    /// Where to write its input; with a terminal, the terminal's master.
    pub stdin: Option<OwnedFd>,
}

/// The events of a supervisor, in order.
#[derive(Debug)]
pub struct Events {
    connection: Connection,
}

impl Events {
    /// Waits for the next event; `None` when `timeout` passed first, [`Error::Gone`] when the supervisor has
    /// ended or this reader was too slow and lost its connection (subscribe again).
    pub fn next(&self, timeout: Option<Duration>) -> Result<Option<Event>, Error> {
        if !readable(self.connection.socket.as_fd(), timeout) {
            return Ok(None);
        }
        self.connection.next_message().map(Some)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.socket.as_fd()
    }
}

/// One request and the answers to it.
#[derive(Debug)]
struct Connection {
    dir: PathBuf,
    socket: OwnedFd,
    reply: Option<Reply>,
    fds: Vec<OwnedFd>,
}

impl Connection {
    fn ask(dir: &Path, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Connection, Error> {
        let gone = || Error::Gone { dir: dir.to_owned() };
        let wire = |source| match source {
            WireError::Closed => gone(),
            source => Error::Wire { dir: dir.to_owned(), source },
        };
        let socket = pith_sys::message::connect(dir, records::SOCKET).map_err(|errno| match errno {
            Errno::NOENT | Errno::CONNREFUSED => gone(),
            errno => {
                Error::Io { operation: "connect to", path: dir.join(records::SOCKET), source: errno.into() }
            }
        })?;
        set_timeout(socket.as_fd(), Some(ANSWER_TIMEOUT)).map_err(wire)?;
        wire::send(socket.as_fd(), request, fds, true).map_err(wire)?;
        let (reply, fds) = wire::receive(socket.as_fd(), true).map_err(wire)?;
        match reply {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(Connection { dir: dir.to_owned(), socket, reply: Some(reply), fds }),
        }
    }

    fn next_message<M: serde::de::DeserializeOwned>(&self) -> Result<M, Error> {
        wire::receive(self.socket.as_fd(), true).map(|(message, _)| message).map_err(|source| match source {
            WireError::Closed => Error::Gone { dir: self.dir.clone() },
            source => Error::Wire { dir: self.dir.clone(), source },
        })
    }

    fn done(mut self) -> Result<(), Error> {
        match self.reply.take() {
            Some(Reply::Done) => Ok(()),
            reply => Err(self.misfit(reply)),
        }
    }

    fn container(mut self) -> Result<ContainerRecord, Error> {
        match self.reply.take() {
            Some(Reply::Container(record)) => Ok(record),
            reply => Err(self.misfit(reply)),
        }
    }

    fn state(mut self) -> Result<SandboxState, Error> {
        match self.reply.take() {
            Some(Reply::State(state)) => Ok(state),
            reply => Err(self.misfit(reply)),
        }
    }

    fn misfit(&self, reply: Option<Reply>) -> Error {
        match reply {
            Some(Reply::Refused(refusal)) => refusal.into(),
            _ => Error::Unexpected { dir: self.dir.clone() },
        }
    }
}

/// The namespaces a supervisor is born in. A pid namespace of its own makes it the init process above its
/// containers': whatever they do, the kernel kills them when it ends.
fn new_namespaces(spec: &SandboxSpec) -> u64 {
    [
        (true, namespaces::MOUNT),
        (!spec.host_pid, namespaces::PID),
        (!spec.host_network, namespaces::NETWORK),
        (!spec.host_ipc, namespaces::IPC),
        // A pod on the host's network shares its host name, as in every Kubernetes.
        (!spec.host_network, namespaces::UTS),
    ]
    .into_iter()
    .filter_map(|(wanted, flag)| wanted.then_some(flag))
    .sum()
}

/// The executable through a mount of its own that nobody can write to, in no mount namespace. Where the
/// kernel or a missing right does not allow it, the file itself.
fn read_only_view(program: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = rustix::mount::open_tree(rustix::fs::CWD, program, flags).and_then(|view| {
        let change = pith_sys::mount::Change { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        pith_sys::mount::set_attributes(view.as_fd(), change)?;
        Ok(view)
    });
    match view {
        Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => {
            rustix::fs::open(program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        }
        view => view,
    }
}

fn open_cgroup(cgroup: &CgroupDirs) -> Result<Option<OwnedFd>, Error> {
    let Some(path) = &cgroup.unified else { return Ok(None) };
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map(Some)
        .map_err(|errno| Error::Io { operation: "open", path: path.clone(), source: errno.into() })
}

/// What `ps` shows beside the program's name: the pod.
fn title(dir: &Path) -> CString {
    CString::new(dir.as_os_str().as_encoded_bytes()).unwrap_or_default()
}

fn set_timeout(socket: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<(), WireError> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    [Timeout::Recv, Timeout::Send].into_iter().try_for_each(|which| {
        set_socket_timeout(socket, which, timeout)
            .map_err(|errno| WireError::Socket { operation: "setsockopt", source: errno.into() })
    })
}

/// Whether a descriptor becomes readable (or hung up) in time; without a timeout it waits for ever.
fn readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], left.as_ref()) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
