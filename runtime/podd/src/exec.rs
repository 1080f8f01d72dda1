//! Processes that join a running container: `kubectl exec`, probes, lifecycle hooks.
//!
//! Each belongs to the connection that asked for it and is killed when that closes, so none is ever left
//! behind. Its streams are the caller's own descriptors: nothing passes through here.

use std::os::fd::{AsFd, OwnedFd};

use pith_container::execute::{Launch, Launched, Report, died, launch};
use pith_container::plan::{Failure, Plan, Step, WindowSize};
use pith_container::supervisor::protocol::{ExecStdio, Exit, Phase, Refusal, Reply};
use pith_container::supervisor::wire::{self, WireError};
use pith_sys::process::{Child, Ended};

use crate::clients::{Role, wrong_phase};
use crate::server::{Key, Server};
use crate::time;

/// Processes that may be inside the pod's containers at one time by exec.
const EXECS_MAX: usize = 128;

pub(crate) struct Exec {
    pub(crate) child: Child,
    pub(crate) control: Option<OwnedFd>,
    client: Key,
    executing: bool,
    started: bool,
    failure: Option<Failure>,
    terminal: Option<OwnedFd>,
}

impl Exec {
    pub(crate) fn kill(&self) {
        // ESRCH: it has ended, and is about to be collected.
        let _ = pith_sys::process::signal(self.child.pidfd.as_fd(), libc::SIGKILL);
    }
}

impl Server {
    pub(crate) fn exec(
        &mut self,
        client: Key,
        id: &str,
        mut plan: Plan,
        stdio: ExecStdio,
        tty: Option<WindowSize>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let container = &self.containers[&self.find(id)?];
        let target = match (&container.child, container.record.phase) {
            (Some(child), Phase::Running) => &child.pidfd,
            (_, phase) => return Err(wrong_phase(id, phase, "running")),
        };
        if self.execs.len() >= EXECS_MAX {
            let message = format!("{EXECS_MAX} processes are in the pod's containers by exec already");
            return Err(Refusal::Invalid { message });
        }
        set_terminal(&mut plan, tty)?;
        let mut fds = fds.into_iter();
        let mut given: [Option<OwnedFd>; 3] = [None, None, None];
        for (slot, wanted) in given.iter_mut().zip([stdio.stdin, stdio.stdout, stdio.stderr]) {
            if wanted {
                let message = "a descriptor is missing".to_owned();
                *slot = Some(fds.next().ok_or(Refusal::Invalid { message })?);
            }
        }
        let null = &self.sandbox.null;
        let stdio = [0, 1, 2].map(|index: usize| given[index].as_ref().unwrap_or(null).as_fd());
        let Launched { child, control } = launch(&Launch {
            target: Some(target.as_fd()),
            pid_namespace: Some(target.as_fd()),
            ..Launch::new(&plan, stdio)
        })
        .map_err(Refusal::Start)?;
        let exec = Exec {
            child,
            control: Some(control),
            client,
            executing: false,
            started: false,
            failure: None,
            terminal: None,
        };
        let key = self.new_key();
        self.set_role(client, Role::Exec(key));
        self.execs.insert(key, exec);
        Ok(())
    }

    pub(crate) fn exec_reports(&mut self, key: Key) {
        loop {
            let Some(exec) = self.execs.get_mut(&key) else { return };
            let Some(control) = &exec.control else { return };
            match wire::receive::<Report>(control.as_fd(), false) {
                Ok((Report::Terminal, mut fds)) => exec.terminal = fds.pop(),
                Ok((Report::Executing, _)) => exec.executing = true,
                Ok((Report::Failed(failure), _)) => exec.failure = Some(failure),
                // The others are asked for by no plan of a pod.
                Ok((
                    Report::Notice(_)
                    | Report::Ready
                    | Report::Mappings
                    | Report::Hooks(_)
                    | Report::Listener
                    | Report::Step { .. }
                    | Report::Free,
                    _,
                )) => {}
                Err(WireError::TimedOut) => return,
                Err(_) => {
                    exec.control = None;
                    if exec.executing && exec.failure.is_none() {
                        exec.started = true;
                        let pid = pith_sys::process::host_pid(&exec.child.pidfd).unwrap_or(0);
                        let (client, terminal) = (exec.client, exec.terminal.take());
                        let fds: Vec<_> = terminal.iter().map(AsFd::as_fd).collect();
                        self.tell(client, &Reply::Started { pid }, &fds);
                    }
                    return;
                }
            }
        }
    }

    pub(crate) fn exec_ended(&mut self, key: Key) {
        self.exec_reports(key);
        let Some(exec) = self.execs.get(&key) else { return };
        let ended = match pith_sys::process::try_wait(&exec.child.pidfd) {
            Ok(Some(ended)) => ended,
            Ok(None) => return,
            Err(_) => Ended::Signal(libc::SIGKILL),
        };
        let Some(exec) = self.execs.remove(&key) else { return };
        let (code, signal) = match ended {
            Ended::Code(code) => (code, None),
            Ended::Signal(signal) => (128 + signal, Some(signal)),
        };
        let reply = if exec.started {
            Reply::Exited(Exit { code, signal, at: time::now() })
        } else {
            Reply::Refused(Refusal::Start(exec.failure.unwrap_or_else(died)))
        };
        self.answer(exec.client, &reply, &[]);
        self.stir();
    }
}

/// Gives the plan's terminal the size asked for; a plan and a request must agree on whether there is one.
fn set_terminal(plan: &mut Plan, tty: Option<WindowSize>) -> Result<(), Refusal> {
    let step = plan.steps.iter_mut().find_map(|step| match step {
        Step::Terminal { size, .. } => Some(size),
        _ => None,
    });
    match (step, tty) {
        (Some(size), Some(wanted)) => {
            *size = Some(wanted);
            Ok(())
        }
        (None, None) => Ok(()),
        (step, _) => {
            let has = if step.is_some() { "has" } else { "lacks" };
            Err(Refusal::Invalid {
                message: format!("the plan {has} a terminal, the request does not agree"),
            })
        }
    }
}
