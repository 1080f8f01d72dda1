//! The loop: one `poll` over everything the supervisor holds, then one turn for whatever is ready.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pith_container::supervisor::protocol::{Event, Reply, SandboxSpec};
use pith_container::supervisor::records;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::clients::{Client, Role};
use crate::container::Container;
use crate::exec::Exec;
use crate::sandbox::Sandbox;

/// Connections waiting to be accepted.
const BACKLOG: i32 = 64;
/// How long nothing is asked before memory is given back: requests come in bursts.
const IDLE: Duration = Duration::from_secs(1);

/// Names a client, container or exec for as long as this supervisor lives.
pub(crate) type Key = u64;

pub(crate) struct Server {
    pub(crate) spec: SandboxSpec,
    pub(crate) sandbox: Sandbox,
    pub(crate) listener: OwnedFd,
    signals: OwnedFd,
    pub(crate) clients: BTreeMap<Key, Client>,
    pub(crate) containers: BTreeMap<Key, Container>,
    pub(crate) execs: BTreeMap<Key, Exec>,
    last_key: Key,
    /// Set once it has been told to end; the client that waits for it.
    pub(crate) ending: Option<Option<Key>>,
    /// When what the last request needed is given back; nothing is to be given back without it.
    pub(crate) trim_at: Option<Instant>,
}

/// What `poll` found ready.
#[derive(Clone, Copy, Debug)]
enum Ready {
    Listener,
    Signals,
    Client(Key, PollFlags),
    Control(Key),
    End(Key),
    Output(Key, usize),
    Sinks(Key, usize),
    ExecControl(Key),
    ExecEnd(Key),
}

impl Server {
    pub(crate) fn new(spec: SandboxSpec, sandbox: Sandbox) -> Result<Server, String> {
        let mut signals = vec![libc::SIGTERM, libc::SIGINT];
        if spec.host_pid {
            // Orphans of its containers become its children: there is no init process in between.
            signals.push(libc::SIGCHLD);
        }
        let signals =
            pith_sys::process::signal_descriptor(&signals).map_err(|errno| format!("signalfd: {errno}"))?;
        let listener = pith_sys::message::listen(&spec.dir, records::SOCKET, BACKLOG)
            .map_err(|errno| format!("listen on {}/{}: {errno}", spec.dir.display(), records::SOCKET))?;
        Ok(Server {
            spec,
            sandbox,
            listener,
            signals,
            clients: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            last_key: 0,
            ending: None,
            trim_at: Some(Instant::now() + IDLE),
        })
    }

    /// Serves until it is told to end and everything it started has ended.
    pub(crate) fn run(mut self) -> ExitCode {
        loop {
            if let Some(client) = self.ending
                && self.containers.values().all(|container| container.child.is_none())
                && self.execs.is_empty()
            {
                if let Some(client) = client {
                    self.answer(client, &Reply::Done, &[]);
                }
                return ExitCode::SUCCESS;
            }
            if self.trim_at.is_some_and(|at| at <= Instant::now()) {
                self.trim_at = None;
                pith_sys::process::trim_memory();
            }
            for ready in self.wait() {
                self.handle(ready);
            }
        }
    }

    /// Something has been done that needed memory: it is given back once nothing happens for a while.
    pub(crate) fn stir(&mut self) {
        self.trim_at = Some(Instant::now() + IDLE);
    }

    pub(crate) fn new_key(&mut self) -> Key {
        self.last_key += 1;
        self.last_key
    }

    fn wait(&self) -> Vec<Ready> {
        let mut what = vec![Ready::Listener, Ready::Signals];
        let mut fds =
            vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        for (key, client) in &self.clients {
            let events = if client.role == Role::Fresh { PollFlags::IN } else { PollFlags::empty() };
            what.push(Ready::Client(*key, events));
            fds.push(PollFd::new(&client.socket, events));
        }
        let mut deadline = self.trim_at;
        for (key, container) in &self.containers {
            if let Some(control) = &container.control {
                what.push(Ready::Control(*key));
                fds.push(PollFd::new(control, PollFlags::IN));
            }
            if let Some(child) = &container.child {
                what.push(Ready::End(*key));
                fds.push(PollFd::new(&child.pidfd, PollFlags::IN));
            }
            for (index, stream) in container.streams.iter().enumerate() {
                if !stream.is_held() {
                    what.push(Ready::Output(*key, index));
                    fds.push(PollFd::new(&stream.fd, PollFlags::IN));
                }
                for sink in &stream.sinks {
                    // Without an event asked for, poll still tells when the reader has gone.
                    let events = if sink.is_behind() { PollFlags::OUT } else { PollFlags::empty() };
                    what.push(Ready::Sinks(*key, index));
                    fds.push(PollFd::new(&sink.fd, events));
                }
                deadline = match (deadline, stream.deadline()) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
        }
        for (key, exec) in &self.execs {
            if let Some(control) = &exec.control {
                what.push(Ready::ExecControl(*key));
                fds.push(PollFd::new(control, PollFlags::IN));
            }
            what.push(Ready::ExecEnd(*key));
            fds.push(PollFd::new(&exec.child.pidfd, PollFlags::IN));
        }
        poll(&mut fds, deadline);
        let timed_out = deadline.is_some_and(|deadline| deadline <= Instant::now());
        what.into_iter()
            .zip(&fds)
            .filter_map(|(what, fd)| match what {
                Ready::Sinks(..) if timed_out => Some(what),
                _ if fd.revents().is_empty() => None,
                Ready::Client(key, _) => Some(Ready::Client(key, fd.revents())),
                what => Some(what),
            })
            .collect()
    }

    /// One turn. What was ready may be gone by now: an earlier turn of the same round can have ended it.
    fn handle(&mut self, ready: Ready) {
        match ready {
            Ready::Listener => self.accept(),
            Ready::Signals => self.take_signals(),
            Ready::Client(key, events) => self.client_ready(key, events),
            Ready::Control(key) => self.container_reports(key),
            Ready::End(key) => self.container_ended(key),
            Ready::Output(key, index) => {
                if let Some(container) = self.containers.get_mut(&key) {
                    container.pull(index);
                }
            }
            Ready::Sinks(key, index) => {
                let stream = self.containers.get_mut(&key).and_then(|c| c.streams.get_mut(index));
                if let Some(stream) = stream {
                    stream.push_sinks();
                }
            }
            Ready::ExecControl(key) => self.exec_reports(key),
            Ready::ExecEnd(key) => self.exec_ended(key),
        }
    }

    fn take_signals(&mut self) {
        // struct signalfd_siginfo: 128 bytes, the signal's number first (signalfd(2)).
        let mut info = [0u8; 128];
        while let Ok(length) = rustix::io::read(self.signals.as_fd(), &mut info) {
            if length < info.len() {
                return;
            }
            let signal = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            if signal == libc::SIGCHLD as u32 {
                self.reap_orphans();
            } else {
                self.shut_down(None);
            }
        }
    }

    fn reap_orphans(&self) {
        let known = |pid: i32| {
            let containers = self.containers.values().filter_map(|container| container.child.as_ref());
            containers
                .map(|child| child.pid)
                .chain(self.execs.values().map(|exec| exec.child.pid))
                .any(|k| k == pid)
        };
        while let Ok(Some(_)) = pith_sys::process::reap_other(known) {}
    }

    /// Kills everything; the loop ends when all of it has been collected.
    pub(crate) fn shut_down(&mut self, client: Option<Key>) {
        if let Some(Some(earlier)) = self.ending.replace(client) {
            self.answer(earlier, &Reply::Done, &[]);
        }
        for container in self.containers.values() {
            container.kill_all();
        }
        for exec in self.execs.values() {
            exec.kill();
        }
    }

    /// Tells every subscriber.
    pub(crate) fn publish(&mut self, event: &Event) {
        let subscribers: Vec<Key> = self
            .clients
            .iter()
            .filter(|(_, client)| client.role == Role::Subscriber)
            .map(|(key, _)| *key)
            .collect();
        for key in subscribers {
            self.tell(key, event, &[]);
        }
    }
}

fn poll(fds: &mut [PollFd<'_>], deadline: Option<Instant>) {
    loop {
        let left = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        // Interrupted, or no memory for the kernel's table: both pass.
        if rustix::event::poll(fds, left.as_ref()).is_ok() {
            return;
        }
    }
}
