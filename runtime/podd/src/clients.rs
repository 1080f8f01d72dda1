//! Connections of the kubelet: one request each. Answers never wait: a client that does not read loses its
//! connection, and finds the state again when it comes back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pith_container::supervisor::protocol::{Event, PROTOCOL, Phase, Refusal, Reply, Request, SandboxState};
use pith_container::supervisor::records;
use pith_container::supervisor::wire::{self, WireError};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use serde::Serialize;

use crate::server::{Key, Server};

/// Connections at one time. Beyond it the oldest that has not said anything is closed.
const CLIENTS_MAX: usize = 256;

pub(crate) struct Client {
    pub(crate) socket: OwnedFd,
    pub(crate) role: Role,
}

/// What a connection is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Has not sent its request yet.
    Fresh,
    /// Waits for a container or for the end.
    Waiting,
    Subscriber,
    /// Owns a process: when it goes, the process goes.
    Exec(Key),
}

impl Server {
    pub(crate) fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            // The run directory is root's alone; whoever opened it wider does not open this.
            let own = rustix::process::geteuid().as_raw();
            if pith_sys::message::peer_user(socket.as_fd()) == Ok(own) {
                if self.clients.len() >= CLIENTS_MAX {
                    self.drop_oldest_silent();
                }
                let key = self.new_key();
                self.clients.insert(key, Client { socket, role: Role::Fresh });
            }
        }
    }

    fn drop_oldest_silent(&mut self) {
        let silent = self.clients.iter().find(|(_, client)| client.role == Role::Fresh).map(|(key, _)| *key);
        if let Some(key) = silent {
            self.clients.remove(&key);
        }
    }

    pub(crate) fn client_ready(&mut self, key: Key, events: PollFlags) {
        let Some(client) = self.clients.get(&key) else { return };
        if client.role != Role::Fresh {
            if events.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
                self.forget(key);
            }
            return;
        }
        match wire::receive::<Request>(client.socket.as_fd(), false) {
            Ok((request, fds)) => self.request(key, request, fds),
            Err(WireError::TimedOut) => {}
            Err(WireError::Closed) => self.forget(key),
            Err(error) => self.refuse(key, Refusal::Invalid { message: error.to_string() }),
        }
    }

    fn request(&mut self, key: Key, request: Request, fds: Vec<OwnedFd>) {
        self.stir();
        if self.ending.is_some() && !matches!(request, Request::State | Request::Shutdown) {
            return self.refuse(key, Refusal::ShuttingDown);
        }
        let done = match request {
            Request::Create { spec, start } => self.create(key, *spec, start),
            Request::Start { id } => self.start(key, &id),
            Request::Exec { id, plan, stdio, tty } => self.exec(key, &id, *plan, stdio, tty, fds),
            Request::Attach { id, stdin, stdout, stderr } => {
                self.attach(key, &id, stdin, [stdout, stderr], fds)
            }
            Request::Signal { id, signal, all } => self.signal(&id, signal, all).map(|()| self.done(key)),
            Request::ReopenLog { id } => self.reopen_log(&id).map(|()| self.done(key)),
            Request::Delete { id } => self.delete(&id).map(|()| self.done(key)),
            Request::State => {
                let state = self.state();
                self.answer(key, &Reply::State(state), &[]);
                Ok(())
            }
            Request::Subscribe => {
                let state = self.state();
                self.set_role(key, Role::Subscriber);
                self.tell(key, &Reply::State(state), &[]);
                Ok(())
            }
            Request::Shutdown => {
                self.set_role(key, Role::Waiting);
                self.shut_down(Some(key));
                Ok(())
            }
        };
        if let Err(refusal) = done {
            self.refuse(key, refusal);
        }
    }

    pub(crate) fn set_role(&mut self, key: Key, role: Role) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.role = role;
        }
    }

    fn state(&self) -> SandboxState {
        SandboxState {
            protocol: PROTOCOL,
            pid: self.sandbox.pid,
            containers: self.containers.values().map(|container| container.record.clone()).collect(),
        }
    }

    fn done(&mut self, key: Key) {
        self.answer(key, &Reply::Done, &[]);
    }

    pub(crate) fn refuse(&mut self, key: Key, refusal: Refusal) {
        self.answer(key, &Reply::Refused(refusal), &[]);
    }

    /// The last word to a client.
    pub(crate) fn answer(&mut self, key: Key, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        if let Some(client) = self.clients.remove(&key) {
            // Whoever does not take its answer has gone.
            let _ = wire::send(client.socket.as_fd(), reply, fds, false);
        }
    }

    /// A word to a client that stays; one that does not take it is dropped.
    pub(crate) fn tell<M: Serialize>(&mut self, key: Key, message: &M, fds: &[BorrowedFd<'_>]) {
        let Some(client) = self.clients.get(&key) else { return };
        if wire::send(client.socket.as_fd(), message, fds, false).is_err() {
            self.forget(key);
        }
    }

    /// A client has gone, and what lives by it goes too.
    pub(crate) fn forget(&mut self, key: Key) {
        if let Some(Client { role: Role::Exec(exec), .. }) = self.clients.remove(&key)
            && let Some(exec) = self.execs.get(&exec)
        {
            exec.kill();
        }
    }

    fn delete(&mut self, id: &str) -> Result<(), Refusal> {
        let key = self.find(id)?;
        let container = &self.containers[&key];
        if container.record.phase != Phase::Exited {
            return Err(wrong_phase(id, container.record.phase, "exited"));
        }
        records::remove(&self.spec.dir, id).map_err(|error| system("remove the record", &error))?;
        self.containers.remove(&key);
        self.publish(&Event::Deleted { id: id.to_owned() });
        Ok(())
    }

    /// The container with this id.
    pub(crate) fn find(&self, id: &str) -> Result<Key, Refusal> {
        let found = self.containers.iter().find(|(_, container)| container.record.id == id);
        found.map(|(key, _)| *key).ok_or_else(|| Refusal::NoSuchContainer { id: id.to_owned() })
    }
}

pub(crate) fn wrong_phase(id: &str, phase: Phase, needed: &str) -> Refusal {
    Refusal::WrongPhase { id: id.to_owned(), phase, needed: needed.to_owned() }
}

pub(crate) fn system(operation: &str, error: &std::io::Error) -> Refusal {
    Refusal::System {
        operation: operation.to_owned(),
        errno: error.raw_os_error().unwrap_or(0),
        message: error.to_string(),
    }
}

pub(crate) fn kernel(operation: &str) -> impl Fn(Errno) -> Refusal {
    move |errno| system(operation, &errno.into())
}
