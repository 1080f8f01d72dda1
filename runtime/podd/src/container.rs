//! A container's life.
//!
//! ```text
//!           Ready            go               end of control socket      pidfd readable
//! Creating ───────▶ Created ────▶ (executing) ───────────────────▶ Running ────────────▶ Exited
//!     └──────────────── Failed, or died: pidfd readable ──────────────────────────────────▲
//! ```
//!
//! Only [`Server::container_reports`] and [`Server::container_ended`] change the phase. Every change is on
//! file before anybody is told.

use std::os::fd::{AsFd, OwnedFd};

use pith_container::execute::{Launch, Launched, Report, died, launch};
use pith_container::plan::Namespace;
use pith_container::supervisor::protocol::{
    CgroupDirs, ContainerRecord, ContainerSpec, Event, Exit, Phase, Refusal, Reply,
};
use pith_container::supervisor::records;
use pith_container::supervisor::wire::{self, WireError};
use pith_sys::process::{Child, Ended};
use rustix::pipe::PipeFlags;

use crate::clients::{Role, kernel, system, wrong_phase};
use crate::log::{Log, Origin};
use crate::server::{Key, Server};
use crate::stream::{Left, Stream};
use crate::time;

/// Containers of one pod, with those that ended and were not deleted yet.
const CONTAINERS_MAX: usize = 512;
/// Longest id of a container.
const ID_MAX: usize = 128;
/// Notices kept for one container.
const NOTICES_MAX: usize = 32;

pub(crate) struct Container {
    pub(crate) record: ContainerRecord,
    cgroup: CgroupDirs,
    /// Its process is the init process of a pid namespace: all others end with it.
    own_pid_namespace: bool,
    /// Until it has been collected.
    pub(crate) child: Option<Child>,
    /// Until its program runs.
    pub(crate) control: Option<OwnedFd>,
    executing: bool,
    tty: bool,
    stdin: Option<OwnedFd>,
    stdin_once: bool,
    pub(crate) streams: Vec<Stream>,
    log: Option<Log>,
    /// Clients that wait for its next phase.
    waiters: Vec<Key>,
}

/// The two ends of what will be a container's standard streams.
struct Pipes {
    stdin: Option<OwnedFd>,
    streams: Vec<Stream>,
    theirs: [Option<OwnedFd>; 3],
}

impl Pipes {
    fn open(spec: &ContainerSpec) -> Result<Pipes, Refusal> {
        let mut pipes = Pipes { stdin: None, streams: Vec::new(), theirs: [const { None }; 3] };
        if spec.tty {
            return Ok(pipes);
        }
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(kernel("pipe"));
        if spec.stdin {
            let (read, write) = pipe()?;
            pipes.theirs[0] = Some(read);
            pipes.stdin = Some(write);
        }
        for (index, origin) in [(1, Origin::Stdout), (2, Origin::Stderr)] {
            let (read, write) = pipe()?;
            pipes.theirs[index] = Some(write);
            pipes.streams.push(Stream::new(origin, read).map_err(kernel("fcntl"))?);
        }
        Ok(pipes)
    }
}

impl Container {
    /// SIGKILL to everything in it.
    pub(crate) fn kill_all(&self) {
        let Some(child) = &self.child else { return };
        // ESRCH: it has ended, and is about to be collected.
        let _ = pith_sys::process::signal(child.pidfd.as_fd(), libc::SIGKILL);
        self.kill_cgroup();
    }

    /// Where there is no version 2 tree the file does not exist; the end of a pid namespace has to do then.
    fn kill_cgroup(&self) {
        if let Some(dir) = &self.cgroup.unified {
            let _ = std::fs::write(dir.join("cgroup.kill"), "1");
        }
    }

    pub(crate) fn pull(&mut self, index: usize) {
        let Some(stream) = self.streams.get_mut(index) else { return };
        if stream.pull(self.log.as_mut(), false) == Left::Ended {
            self.streams.remove(index);
        }
    }

    /// Reads what its processes wrote before they ended.
    fn drain(&mut self) {
        for mut stream in std::mem::take(&mut self.streams) {
            if stream.pull(self.log.as_mut(), true) == Left::More {
                stream.finish(self.log.as_mut());
            }
        }
        self.stdin = None;
        self.log = None;
    }

    fn notice(&mut self, text: String) {
        if self.record.notices.len() < NOTICES_MAX {
            self.record.notices.push(text);
        }
    }

    /// The terminal of a container: its output is one stream, its input the same descriptor.
    fn take_terminal(&mut self, master: OwnedFd) {
        let stream = master.try_clone().ok().and_then(|fd| Stream::new(Origin::Stdout, fd).ok());
        self.streams.extend(stream);
        self.stdin = Some(master);
    }
}

impl Server {
    pub(crate) fn create(&mut self, client: Key, spec: ContainerSpec, start: bool) -> Result<(), Refusal> {
        check_id(&spec.id)?;
        if self.find(&spec.id).is_ok() {
            return Err(Refusal::Exists { id: spec.id });
        }
        if self.containers.len() >= CONTAINERS_MAX {
            let message = format!("the pod has {CONTAINERS_MAX} containers: delete ended ones");
            return Err(Refusal::Invalid { message });
        }
        let log = match spec.log.clone() {
            Some(log) => {
                let operation = format!("open log {}", log.path.display());
                Some(Log::open(log).map_err(|error| system(&operation, &error))?)
            }
            None => None,
        };
        let pipes = Pipes::open(&spec)?;
        let own_pid_namespace = spec.plan.namespaces.contains(&Namespace::Pid);
        let shared = self.sandbox.shared_pid.as_ref().filter(|_| !own_pid_namespace);
        let null = &self.sandbox.null;
        let stdio = [0, 1, 2].map(|index: usize| pipes.theirs[index].as_ref().unwrap_or(null).as_fd());
        let launched = launch(&Launch {
            hold: !start,
            pid_namespace: shared.map(|shared| shared.child.pidfd.as_fd()),
            ..Launch::new(&spec.plan, stdio)
        })
        .map_err(Refusal::Start)?;
        drop(pipes.theirs);
        let Launched { child, control } = launched;
        let record = ContainerRecord {
            id: spec.id,
            phase: Phase::Creating,
            pid: pith_sys::process::host_pid(&child.pidfd).unwrap_or(0),
            created_at: time::now(),
            started_at: None,
            exit: None,
            failure: None,
            notices: Vec::new(),
        };
        let container = Container {
            record,
            cgroup: spec.cgroup,
            own_pid_namespace,
            child: Some(child),
            control: Some(control),
            executing: false,
            tty: spec.tty,
            stdin: pipes.stdin,
            stdin_once: spec.stdin_once,
            streams: pipes.streams,
            log,
            waiters: vec![client],
        };
        self.set_role(client, Role::Waiting);
        let key = self.new_key();
        self.containers.insert(key, container);
        Ok(())
    }

    pub(crate) fn start(&mut self, client: Key, id: &str) -> Result<(), Refusal> {
        let key = self.find(id)?;
        let container = self.container(key);
        if container.record.phase != Phase::Created {
            return Err(wrong_phase(id, container.record.phase, "created"));
        }
        if let (Some(control), Some(_)) = (&container.control, &container.child) {
            pith_sys::message::send(control.as_fd(), b"go", &[], false).map_err(kernel("start"))?;
        }
        container.waiters.push(client);
        self.set_role(client, Role::Waiting);
        Ok(())
    }

    fn container(&mut self, key: Key) -> &mut Container {
        self.containers.get_mut(&key).expect("the key was found in this turn, and only delete removes it")
    }

    /// The child of a container has said something on its way to its program.
    pub(crate) fn container_reports(&mut self, key: Key) {
        loop {
            let Some(container) = self.containers.get_mut(&key) else { return };
            let Some(control) = &container.control else { return };
            match wire::receive::<Report>(control.as_fd(), false) {
                Ok((Report::Notice(text), _)) => container.notice(text),
                Ok((Report::Terminal, mut fds)) => {
                    if let Some(master) = fds.pop() {
                        container.take_terminal(master);
                    }
                }
                Ok((Report::Ready, _)) => self.reach(key, Phase::Created),
                Ok((Report::Executing, _)) => container.executing = true,
                Ok((Report::Failed(failure), _)) => container.record.failure = Some(failure),
                // Asked for by no plan of a pod.
                Ok((
                    Report::Mappings
                    | Report::Hooks(_)
                    | Report::Listener
                    | Report::Step { .. }
                    | Report::Free,
                    _,
                )) => {}
                Err(WireError::TimedOut) => return,
                Err(_) => {
                    container.control = None;
                    if container.executing && container.record.failure.is_none() {
                        container.record.started_at = Some(time::now());
                        self.reach(key, Phase::Running);
                    }
                    return;
                }
            }
        }
    }

    /// Its process has ended.
    pub(crate) fn container_ended(&mut self, key: Key) {
        // What it said last comes first.
        self.container_reports(key);
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Some(child) = &container.child else { return };
        let ended = match pith_sys::process::try_wait(&child.pidfd) {
            Ok(Some(ended)) => ended,
            Ok(None) => return,
            // Somebody else has collected it: that it ended is all there is to know.
            Err(_) => Ended::Signal(libc::SIGKILL),
        };
        container.child = None;
        container.control = None;
        if !container.own_pid_namespace {
            container.kill_cgroup();
        }
        container.drain();
        if container.record.started_at.is_none() && container.record.failure.is_none() {
            container.record.failure = Some(died());
        }
        let (code, signal) = match (&container.record.failure, ended) {
            (Some(failure), _) => (failure.exit_code(), None),
            (None, Ended::Code(code)) => (code, None),
            (None, Ended::Signal(signal)) => (128 + signal, Some(signal)),
        };
        container.record.exit = Some(Exit { code, signal, at: time::now() });
        self.reach(key, Phase::Exited);
    }

    /// A container is in a new phase: on file, to subscribers, to who waited for it.
    fn reach(&mut self, key: Key, phase: Phase) {
        self.stir();
        let Some(container) = self.containers.get_mut(&key) else { return };
        container.record.phase = phase;
        let record = container.record.clone();
        let waiters = std::mem::take(&mut container.waiters);
        if let Err(error) = records::write(&self.spec.dir, &record) {
            // The run directory is memory; a full one must not stop the pod. Subscribers are told anyway.
            eprintln!("pith-podd: record of {}: {error}", record.id);
        }
        let reply = match &record.failure {
            Some(failure) => Reply::Refused(Refusal::Start(failure.clone())),
            None => Reply::Container(record.clone()),
        };
        for waiter in waiters {
            self.answer(waiter, &reply, &[]);
        }
        self.publish(&Event::Container(record));
    }

    pub(crate) fn signal(&mut self, id: &str, signal: i32, all: bool) -> Result<(), Refusal> {
        let key = self.find(id)?;
        let container = self.container(key);
        let Some(child) = &container.child else {
            return Err(wrong_phase(id, container.record.phase, "running"));
        };
        if all {
            container.kill_all();
            return Ok(());
        }
        pith_sys::process::signal(child.pidfd.as_fd(), signal).map_err(kernel("pidfd_send_signal"))
    }

    pub(crate) fn attach(
        &mut self,
        client: Key,
        id: &str,
        stdin: bool,
        outputs: [bool; 2],
        fds: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let key = self.find(id)?;
        let container = self.container(key);
        if container.child.is_none() {
            return Err(wrong_phase(id, container.record.phase, "running"));
        }
        let mut fds = fds.into_iter();
        for (wanted, origin) in outputs.into_iter().zip([Origin::Stdout, Origin::Stderr]) {
            if !wanted {
                continue;
            }
            let message = "a descriptor is missing".to_owned();
            let fd = fds.next().ok_or(Refusal::Invalid { message })?;
            // A stream that has ended already has nothing more to copy; its reader sees the end at once.
            if let Some(stream) = container.streams.iter_mut().find(|stream| stream.origin == origin) {
                stream.attach(fd).map_err(kernel("attach"))?;
            }
        }
        let input = match (stdin, &container.stdin) {
            (true, Some(input)) => Some(input.try_clone().map_err(|error| system("dup", &error))?),
            _ => None,
        };
        if stdin && container.stdin_once && !container.tty {
            container.stdin = None;
        }
        let fds: Vec<_> = input.iter().map(AsFd::as_fd).collect();
        self.answer(client, &Reply::Done, &fds);
        Ok(())
    }

    pub(crate) fn reopen_log(&mut self, id: &str) -> Result<(), Refusal> {
        let key = self.find(id)?;
        match &mut self.container(key).log {
            Some(log) => log.reopen().map_err(|error| system("reopen the log", &error)),
            None => Ok(()),
        }
    }
}

/// Ids become file names.
fn check_id(id: &str) -> Result<(), Refusal> {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || id.len() > ID_MAX || id.starts_with('.') || !id.chars().all(letter) {
        let message = format!("container id {id:?}: letters, digits, - _ . and at most {ID_MAX} of them");
        return Err(Refusal::Invalid { message });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_in_their_folder() {
        for id in ["a", "web-1.2_x", "0123"] {
            assert_eq!(check_id(id), Ok(()), "{id}");
        }
        for id in ["", ".", "..", "../a", "a/b", ".hidden", "ä", "a\0", &"x".repeat(129)] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
    }
}
