//! What to do next for one pod: `plan(desired, observed, now)`, a pure function that decides everything.
//!
//! Order of a pod's life: volumes and sandbox side by side, init containers one by one with sidecars in
//! between, all main containers, and for its end main containers, then sidecars backwards, then the
//! sandbox, the volumes, and the API object. What is under way is never asked for twice, because
//! [`Observed::begin`] has noted it.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    desired::{Desired, Fate, RestartPolicy, Role, Unit},
    observed::{
        Container, Ended, Exit, Finalized, Observed, Phase, Running, Sandbox, Stage, Trouble, TroubleKind,
        Volumes,
    },
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    PrepareVolumes,
    CreateSandbox,
    /// A new sandbox is about to replace one that was lost: these init containers run again.
    RestartInit {
        names: Vec<String>,
    },
    /// Makes sure of the image, then creates and starts the container.
    Start {
        name: String,
        attempt: u32,
    },
    /// The wait before a retry becomes visible: CrashLoopBackOff, ImagePullBackOff.
    Announce {
        name: String,
        message: String,
    },
    /// The stopping of the whole pod begins.
    BeginStopping,
    /// Runs the preStop hook if there is one, then sends the stop signal.
    Stop {
        name: String,
        grace: Duration,
        hook: bool,
        why: String,
    },
    /// The hook outlived the grace: the stop signal now.
    Terminate {
        name: String,
    },
    Kill {
        name: String,
    },
    /// The node ends the pod for good.
    End(Ended),
    RemoveSandbox,
    RemoveVolumes,
    /// Final status, then the API forgets the pod.
    Finalize,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    /// When to plan again even if nothing happens.
    pub(crate) wake_at: Option<Timestamp>,
}

/// After a preStop hook that used up the grace, the process still gets this long to react to its signal.
const AFTER_HOOK: Duration = Duration::from_secs(2);
/// A plain error is shown this long before it turns into the name of its back-off.
const ANNOUNCE_AFTER: Duration = Duration::from_secs(1);

pub(crate) fn plan(desired: &Desired, observed: &Observed, now: Timestamp) -> Plan {
    let mut planner = Planner { desired, observed, now, out: Plan::default() };
    match planner.course() {
        Course::Run => planner.run(),
        Course::Stop { grace, forget } => planner.stop(grace, forget),
    }
    planner.out
}

/// Whether the containers of this pod have all done what they will ever do.
pub(crate) fn is_finished(desired: &Desired, observed: &Observed) -> bool {
    let exit_of = |u: &Unit| observed.container(&u.name).and_then(Container::exit);
    let failed_init =
        desired.of(Role::Init).any(|u| exit_of(u).is_some_and(|e| e.code != 0 && !restarts(u.restart, e)));
    let mains_over = desired.of(Role::Main).all(|u| exit_of(u).is_some_and(|e| !restarts(u.restart, e)));
    failed_init || mains_over
}

/// Whether the pod's containers have begun in earnest: every init container is through.
pub(crate) fn is_initialized(desired: &Desired, observed: &Observed) -> bool {
    let through = |u: &Unit| observed.container(&u.name).is_some_and(|c| c.lets_others_start(u.role));
    let runs = |u: &Unit| observed.container(&u.name).is_some_and(|c| c.running().is_some());
    desired.of(Role::Main).any(runs)
        || desired.units.iter().filter(|u| matches!(u.role, Role::Init | Role::Sidecar)).all(through)
}

fn restarts(policy: RestartPolicy, exit: &Exit) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit.code != 0,
        RestartPolicy::Never => false,
    }
}

enum Course {
    Run,
    Stop { grace: Duration, forget: bool },
}

struct Planner<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    now: Timestamp,
    out: Plan,
}

impl Planner<'_> {
    fn act(&mut self, action: Action) {
        self.out.actions.push(action);
    }

    fn wake(&mut self, at: Timestamp) {
        self.out.wake_at = Some(self.out.wake_at.map_or(at, |w| w.min(at)));
    }

    /// True when `at` has come; otherwise makes sure of a look at that time.
    fn due(&mut self, at: Timestamp) -> bool {
        if self.now >= at {
            return true;
        }
        self.wake(at);
        false
    }

    fn course(&mut self) -> Course {
        let grace = self.desired.grace;
        if let Fate::Remove { grace } = self.desired.fate {
            return Course::Stop { grace, forget: true };
        }
        if self.desired.over || self.observed.ended.is_some() {
            return Course::Stop { grace, forget: false };
        }
        if let (Some(limit), Some(start)) = (self.desired.active_deadline, self.observed.start_time)
            && !is_finished(self.desired, self.observed)
            && self.due(start + limit)
        {
            self.act(Action::End(Ended {
                reason: "DeadlineExceeded",
                message: "Pod was active on the node longer than the specified deadline".to_owned(),
            }));
            return Course::Stop { grace, forget: false };
        }
        if is_finished(self.desired, self.observed) {
            return Course::Stop { grace, forget: false };
        }
        Course::Run
    }

    fn run(&mut self) {
        match &self.observed.volumes {
            Volumes::Absent => self.act(Action::PrepareVolumes),
            Volumes::Failed { retry_at, .. } => {
                if self.due(*retry_at) {
                    self.act(Action::PrepareVolumes);
                }
            }
            Volumes::Preparing | Volumes::Ready | Volumes::Removing => {}
        }
        match &self.observed.sandbox {
            Sandbox::Absent => self.create_sandbox(),
            Sandbox::Failed { retry_at, .. } => {
                if self.due(*retry_at) {
                    self.create_sandbox();
                }
            }
            Sandbox::Lost => self.act(Action::RemoveSandbox),
            Sandbox::Creating | Sandbox::Removing => {}
            Sandbox::Ready { .. } => {
                if self.observed.volumes == Volumes::Ready {
                    self.containers();
                }
            }
        }
    }

    fn create_sandbox(&mut self) {
        let names: Vec<_> = self
            .desired
            .of(Role::Init)
            .filter(|u| self.observed.container(&u.name).is_some_and(|c| c.exit().is_some()))
            .map(|u| u.name.clone())
            .collect();
        if !names.is_empty() {
            self.act(Action::RestartInit { names });
        }
        self.act(Action::CreateSandbox);
    }

    fn containers(&mut self) {
        let desired = self.desired;
        let initialized = is_initialized(desired, self.observed);
        for unit in desired.units.iter().filter(|u| matches!(u.role, Role::Init | Role::Sidecar)) {
            let Some(container) = self.observed.container(&unit.name) else { continue };
            let through = container.lets_others_start(unit.role);
            if unit.role == Role::Sidecar || (!initialized && !through) {
                self.drive(unit, container);
            }
            if !initialized && !through {
                return;
            }
        }
        for unit in desired.units.iter().filter(|u| matches!(u.role, Role::Main | Role::Ephemeral)) {
            if let Some(container) = self.observed.container(&unit.name) {
                self.drive(unit, container);
            }
        }
    }

    /// One container towards running.
    fn drive(&mut self, unit: &Unit, c: &Container) {
        match &c.phase {
            Phase::Starting => {}
            Phase::Waiting(None) => self.start(unit, c.attempt),
            Phase::Waiting(Some(trouble)) => self.retry(unit, c, trouble),
            Phase::Running(r) => {
                if let Some(doom) = &c.doomed {
                    let grace = doom.grace.unwrap_or(self.desired.grace);
                    self.stop_one(unit, r, grace, None, &doom.message);
                }
            }
            Phase::Exited(exit) => {
                if !restarts(unit.restart, exit) {
                    return;
                }
                let due = c.backoff.due(exit.finished_at);
                if self.due(due) {
                    self.start(unit, c.attempt + 1);
                } else if !exit.announced && self.due(exit.finished_at + ANNOUNCE_AFTER) {
                    let message = format!(
                        "back-off {} restarting failed container={} pod={}_{}({})",
                        words(c.backoff.delay()),
                        unit.name,
                        self.desired.id.name,
                        self.desired.id.namespace,
                        self.desired.id.uid,
                    );
                    self.act(Action::Announce { name: unit.name.clone(), message });
                }
            }
        }
    }

    fn start(&mut self, unit: &Unit, attempt: u32) {
        self.act(Action::Start { name: unit.name.clone(), attempt });
    }

    fn retry(&mut self, unit: &Unit, c: &Container, trouble: &Trouble) {
        if self.due(trouble.retry_at) {
            self.start(unit, c.attempt);
        } else if trouble.kind == TroubleKind::ErrImagePull && self.due(trouble.since + ANNOUNCE_AFTER) {
            let image = unit.spec.image.as_deref().unwrap_or_default();
            let message = format!("Back-off pulling image \"{image}\": {}", trouble.message);
            self.act(Action::Announce { name: unit.name.clone(), message });
        }
    }

    /// The whole pod towards its end.
    fn stop(&mut self, grace: Duration, forget: bool) {
        if self.stop_containers(grace) || !self.take_down() || !forget {
            return;
        }
        match self.observed.finalized {
            Finalized::No => self.act(Action::Finalize),
            Finalized::RetryAt(at) => {
                if self.due(at) {
                    self.act(Action::Finalize);
                }
            }
            Finalized::Doing | Finalized::Done => {}
        }
    }

    /// True while a container is left that runs or is being started.
    fn stop_containers(&mut self, grace: Duration) -> bool {
        let desired = self.desired;
        let active = |u: &&Unit| {
            self.observed
                .container(&u.name)
                .is_some_and(|c| matches!(c.phase, Phase::Running(_) | Phase::Starting))
        };
        let plain: Vec<_> = desired.units.iter().filter(|u| u.role != Role::Sidecar).filter(active).collect();
        let sidecar = desired.of(Role::Sidecar).rfind(active);
        if plain.is_empty() && sidecar.is_none() {
            return false;
        }
        let since = self.observed.stopping_since.unwrap_or(self.now);
        if self.observed.stopping_since.is_none() {
            self.act(Action::BeginStopping);
        }
        let deadline = since + grace;
        for unit in &plain {
            if let Some(r) = self.observed.container(&unit.name).and_then(Container::running) {
                self.stop_one(unit, r, grace, Some(deadline), "Stopping container");
            }
        }
        if let (true, Some(unit)) = (plain.is_empty(), sidecar)
            && let Some(r) = self.observed.container(&unit.name).and_then(Container::running)
        {
            // Sidecars outlive what they serve; what is left of the pod's grace is theirs.
            let least = AFTER_HOOK.min(grace);
            let left = deadline.duration_since(self.now);
            let left = if left.is_negative() { least } else { left.unsigned_abs().max(least) };
            let deadline = r.stop.as_ref().map(|s| deadline.max(s.since + least));
            self.stop_one(unit, r, left, deadline, "Stopping container");
        }
        true
    }

    /// Stops one container within `grace` of the first step, and by `deadline` whatever that step
    /// allowed: the grace of a pod may be shortened while it is being stopped.
    fn stop_one(
        &mut self,
        unit: &Unit,
        r: &Running,
        grace: Duration,
        deadline: Option<Timestamp>,
        why: &str,
    ) {
        let name = unit.name.clone();
        let Some(stop) = &r.stop else {
            let why = why.to_owned();
            self.act(Action::Stop { name, grace, hook: unit.has_pre_stop, why });
            return self.wake(self.now + grace);
        };
        let end = stop.since + stop.grace;
        let end = deadline.map_or(end, |d| d.min(end));
        match stop.stage {
            Stage::Hook => {
                if self.due(end) {
                    self.act(Action::Terminate { name });
                }
            }
            Stage::Term { at, after_hook } => {
                let kill_at = if after_hook { end.max(at + AFTER_HOOK) } else { end };
                if self.due(kill_at) {
                    self.act(Action::Kill { name });
                }
            }
            Stage::Kill => {}
        }
    }

    /// Sandbox, then volumes; true once neither is left.
    fn take_down(&mut self) -> bool {
        match self.observed.sandbox {
            Sandbox::Absent => {}
            Sandbox::Creating | Sandbox::Removing => return false,
            Sandbox::Ready { .. } | Sandbox::Failed { .. } | Sandbox::Lost => {
                self.act(Action::RemoveSandbox);
                return false;
            }
        }
        match self.observed.volumes {
            Volumes::Absent => true,
            Volumes::Preparing | Volumes::Removing => false,
            Volumes::Ready | Volumes::Failed { .. } => {
                self.act(Action::RemoveVolumes);
                false
            }
        }
    }
}

/// A duration as Go prints it, which is how users know it from Kubernetes: 10s, 1m20s, 5m0s.
pub(crate) fn words(d: Duration) -> String {
    match d.as_secs() {
        s if s < 60 => format!("{s}s"),
        s => format!("{}m{}s", s / 60, s % 60),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
