//! What this node knows of one pod, and how each thing that happens changes it.
//!
//! ```text
//! sandbox:    Absent ─▶ Creating ─▶ Ready ─▶ Removing ─▶ Absent
//!                ▲          └▶ Failed  └▶ Lost ──▲
//! ```
//! Invariant: only the pod's worker changes it, and only through [`Observed::apply`]; whatever is under
//! way has a state of its own, so that planning never starts anything twice.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use jiff::Timestamp;

use crate::plan::Action;

mod container;

pub(crate) use container::{
    Container, ContainerId, Doom, Exit, ExitReason, News, Phase, Running, Stage, Trouble, TroubleKind,
};

#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    pub(crate) start_time: Option<Timestamp>,
    pub(crate) volumes: Volumes,
    pub(crate) sandbox: Sandbox,
    pub(crate) containers: BTreeMap<String, Container>,
    /// The node ended the pod for a reason of its own (a deadline, an eviction).
    pub(crate) ended: Option<Ended>,
    /// When stopping the whole pod began.
    pub(crate) stopping_since: Option<Timestamp>,
    /// Everything is torn down and the API has been told to forget the pod.
    pub(crate) finalized: Finalized,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Finalized {
    #[default]
    No,
    Doing,
    RetryAt(Timestamp),
    Done,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Volumes {
    #[default]
    Absent,
    Preparing,
    Ready,
    Failed {
        message: String,
        retry_at: Timestamp,
    },
    Removing,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Sandbox {
    #[default]
    Absent,
    Creating,
    Ready {
        addresses: Vec<IpAddr>,
    },
    Failed {
        message: String,
        retry_at: Timestamp,
    },
    /// The supervisor died; its leftovers are still there.
    Lost,
    Removing,
}

/// Something that happened to the pod: the end of an action, or news from its supervisor or probes.
#[derive(Debug, Clone)]
pub(crate) enum Happened {
    VolumesReady,
    VolumesFailed { message: String },
    VolumesChanged,
    VolumesRemoved,
    SandboxReady { addresses: Vec<IpAddr> },
    SandboxFailed { message: String },
    SandboxLost,
    SandboxRemoved,
    Container { name: String, news: News },
    Finalized,
    FinalizeFailed,
}

/// Back-off of what has none in Kubernetes' API: volumes and sandboxes.
const RETRY: Duration = Duration::from_secs(2);
const FINALIZE_RETRY: Duration = Duration::from_secs(1);

impl Observed {
    pub(crate) fn new(units: impl IntoIterator<Item = String>) -> Self {
        Self { containers: units.into_iter().map(|n| (n, Container::default())).collect(), ..Self::default() }
    }

    pub(crate) fn container(&self, name: &str) -> Option<&Container> {
        self.containers.get(name)
    }

    /// Takes note of what happened at `now`. News of a container that is no longer the current one
    /// (its id differs) changes nothing.
    pub(crate) fn apply(&mut self, happened: Happened, now: Timestamp) {
        match happened {
            Happened::VolumesReady => {
                if self.volumes == Volumes::Preparing {
                    self.volumes = Volumes::Ready;
                }
            }
            Happened::VolumesFailed { message } => {
                self.volumes = Volumes::Failed { message, retry_at: now + RETRY };
            }
            Happened::VolumesChanged => {
                if let Volumes::Failed { retry_at, .. } = &mut self.volumes {
                    *retry_at = now;
                }
                for c in self.containers.values_mut() {
                    c.retry_configuration(now);
                }
            }
            Happened::VolumesRemoved => self.volumes = Volumes::Absent,
            Happened::SandboxReady { addresses } => self.sandbox = Sandbox::Ready { addresses },
            Happened::SandboxFailed { message } => {
                self.sandbox = Sandbox::Failed { message, retry_at: now + RETRY };
            }
            Happened::SandboxLost => self.lose_sandbox(now),
            Happened::SandboxRemoved => self.sandbox = Sandbox::Absent,
            Happened::Finalized => self.finalized = Finalized::Done,
            Happened::FinalizeFailed => self.finalized = Finalized::RetryAt(now + FINALIZE_RETRY),
            Happened::Container { name, news } => self.with(&name, |c| c.apply(news, now)),
        }
    }

    fn with(&mut self, name: &str, change: impl FnOnce(&mut Container)) {
        if let Some(container) = self.containers.get_mut(name) {
            change(container);
        }
    }

    /// With the supervisor die its containers. A new sandbox starts over with the init containers.
    fn lose_sandbox(&mut self, now: Timestamp) {
        if !matches!(self.sandbox, Sandbox::Removing) {
            self.sandbox = Sandbox::Lost;
        }
        for c in self.containers.values_mut() {
            if let Phase::Running(r) = &c.phase {
                let exit = Exit {
                    id: Some(r.id.clone()),
                    code: 137,
                    signal: Some(9),
                    reason: ExitReason::Error,
                    message: "the pod's supervisor ended, and the container with it".to_owned(),
                    started_at: Some(r.started_at),
                    finished_at: now,
                    announced: false,
                };
                c.exited(exit);
            }
            c.once_started = false;
        }
    }

    /// A fresh sandbox replaces one that was lost: init containers run again.
    pub(crate) fn restart_init(&mut self, is_init: impl Fn(&str) -> bool) {
        for (name, c) in &mut self.containers {
            if is_init(name)
                && let Phase::Exited(exit) = &c.phase
            {
                c.last = Some(exit.clone());
                c.phase = Phase::Waiting(None);
                c.attempt += 1;
            }
        }
    }

    /// Notes that an action is under way, before anything of it is done.
    pub(crate) fn begin(&mut self, action: &Action, now: Timestamp) {
        match action {
            Action::PrepareVolumes => {
                self.start_time.get_or_insert(now);
                self.volumes = Volumes::Preparing;
            }
            Action::CreateSandbox => {
                self.start_time.get_or_insert(now);
                self.sandbox = Sandbox::Creating;
            }
            Action::RemoveSandbox => self.sandbox = Sandbox::Removing,
            Action::RemoveVolumes => self.volumes = Volumes::Removing,
            Action::Finalize => self.finalized = Finalized::Doing,
            Action::End(ended) => self.ended = Some(ended.clone()),
            Action::BeginStopping => self.stopping_since = Some(now),
            Action::RestartInit { names } => self.restart_init(|n| names.iter().any(|x| x == n)),
            Action::Start { name, attempt } => self.with(name, |c| c.begin_attempt(*attempt, now)),
            Action::Announce { name, .. } => self.with(name, Container::announced),
            Action::Stop { name, grace, hook, .. } => self.with(name, |c| c.begin_stop(*grace, *hook, now)),
            Action::Terminate { name } => self.with(name, |c| c.begin_term(now)),
            Action::Kill { name } => self.with(name, Container::begin_kill),
        }
    }
}
