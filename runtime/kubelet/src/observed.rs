//! What this node knows of one pod, and how each thing that happens changes it.
//!
//! ```text
//! container:  Waiting ──Starting──▶ Running ──▶ Exited ──▶ Starting …
//!                ▲         │           │ stop: Hook ▶ Term ▶ Kill
//!                └─trouble─┘
//! sandbox:    Absent ─▶ Creating ─▶ Ready ─▶ Removing ─▶ Absent
//!                ▲          └▶ Failed  └▶ Lost ──▲
//! ```
//! Invariant: only the pod's worker changes it, and only through [`Observed::apply`]; whatever is under
//! way has a state of its own, so that planning never starts anything twice.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{backoff::Backoff, desired::Role, plan::Action};

/// 64 hex digits; the part of `pith://…` behind the scheme.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ContainerId(pub String);

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

#[derive(Debug, Clone, Default)]
pub(crate) struct Container {
    pub(crate) phase: Phase,
    /// Number of the attempt that runs, ran last, or will be the first.
    pub(crate) attempt: u32,
    /// Number of the newest attempt that came as far as being created.
    pub(crate) restarts: u32,
    pub(crate) ever_created: bool,
    pub(crate) backoff: Backoff,
    pub(crate) image_backoff: Backoff,
    pub(crate) last: Option<Exit>,
    /// The startup probe of this attempt passed, or there is none.
    pub(crate) started: bool,
    /// Sticky within one sandbox: a sidecar that once started keeps letting others start.
    pub(crate) once_started: bool,
    pub(crate) ready: bool,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) doomed: Option<Doom>,
}

/// Why a running container is to be stopped although its pod stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Doom {
    pub(crate) message: String,
    pub(crate) grace: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    Waiting(Option<Trouble>),
    Starting,
    Running(Running),
    Exited(Exit),
}

impl Default for Phase {
    fn default() -> Self {
        Self::Waiting(None)
    }
}

/// What keeps a container from starting, in Kubernetes' words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) kind: TroubleKind,
    pub(crate) message: String,
    pub(crate) since: Timestamp,
    pub(crate) retry_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TroubleKind {
    ErrImagePull,
    ImagePullBackOff,
    InvalidImageName,
    ErrImageNeverPull,
    CreateContainerConfigError,
    CreateContainerError,
}

impl TroubleKind {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::ErrImagePull => "ErrImagePull",
            Self::ImagePullBackOff => "ImagePullBackOff",
            Self::InvalidImageName => "InvalidImageName",
            Self::ErrImageNeverPull => "ErrImageNeverPull",
            Self::CreateContainerConfigError => "CreateContainerConfigError",
            Self::CreateContainerError => "CreateContainerError",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Running {
    pub(crate) id: ContainerId,
    pub(crate) started_at: Timestamp,
    pub(crate) stop: Option<Stop>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stop {
    pub(crate) since: Timestamp,
    pub(crate) grace: Duration,
    pub(crate) stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Stage {
    Hook,
    Term { at: Timestamp, after_hook: bool },
    Kill,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) id: Option<ContainerId>,
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) reason: ExitReason,
    pub(crate) message: String,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
    /// The crash-loop has been made known; until then the plain exit is shown.
    #[serde(default)]
    pub(crate) announced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ExitReason {
    Completed,
    Error,
    OOMKilled,
    StartError,
    ContainerStatusUnknown,
}

impl ExitReason {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OOMKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::ContainerStatusUnknown => "ContainerStatusUnknown",
        }
    }
}

/// Something that happened to the pod: the end of an action, or news from its supervisor or probes.
#[derive(Debug, Clone)]
pub(crate) enum Happened {
    VolumesReady,
    VolumesFailed {
        message: String,
    },
    VolumesChanged,
    VolumesRemoved,
    SandboxReady {
        addresses: Vec<IpAddr>,
    },
    SandboxFailed {
        message: String,
    },
    SandboxLost,
    SandboxRemoved,
    /// The image is there; what the status will call it.
    ImageReady {
        name: String,
        image: String,
        image_id: String,
    },
    ContainerTrouble {
        name: String,
        kind: TroubleKind,
        message: String,
    },
    ContainerStarted {
        name: String,
        id: ContainerId,
        attempt: u32,
        at: Timestamp,
        has_startup_probe: bool,
        has_readiness_probe: bool,
    },
    StartFailed {
        name: String,
        id: Option<ContainerId>,
        message: String,
    },
    ContainerExited {
        name: String,
        id: ContainerId,
        exit: Exit,
    },
    /// The preStop hook ended, or there was none.
    HookDone {
        name: String,
        id: ContainerId,
    },
    ProbeStartup {
        name: String,
        id: ContainerId,
    },
    ProbeReady {
        name: String,
        id: ContainerId,
        ready: bool,
    },
    Doomed {
        name: String,
        id: ContainerId,
        doom: Doom,
    },
    Finalized,
    FinalizeFailed,
}

/// Back-off of what has none in Kubernetes' API: volumes, sandboxes and configuration.
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
            Happened::ImageReady { ref name, .. }
            | Happened::ContainerTrouble { ref name, .. }
            | Happened::ContainerStarted { ref name, .. }
            | Happened::StartFailed { ref name, .. }
            | Happened::ContainerExited { ref name, .. }
            | Happened::HookDone { ref name, .. }
            | Happened::ProbeStartup { ref name, .. }
            | Happened::ProbeReady { ref name, .. }
            | Happened::Doomed { ref name, .. } => {
                if let Some(c) = self.containers.get_mut(name) {
                    c.apply(happened, now);
                }
            }
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
            Action::Start { name, .. }
            | Action::Announce { name, .. }
            | Action::Stop { name, .. }
            | Action::Terminate { name }
            | Action::Kill { name } => {
                if let Some(c) = self.containers.get_mut(name) {
                    c.begin(action, now);
                }
            }
        }
    }
}

impl Container {
    pub(crate) fn running(&self) -> Option<&Running> {
        match &self.phase {
            Phase::Running(r) => Some(r),
            Phase::Waiting(_) | Phase::Starting | Phase::Exited(_) => None,
        }
    }

    pub(crate) fn exit(&self) -> Option<&Exit> {
        match &self.phase {
            Phase::Exited(e) => Some(e),
            Phase::Waiting(_) | Phase::Starting | Phase::Running(_) => None,
        }
    }

    fn is_current(&self, id: &ContainerId) -> bool {
        self.running().is_some_and(|r| r.id == *id)
    }

    /// Whether the way to later containers is open: an init container succeeded, a sidecar started.
    pub(crate) fn lets_others_start(&self, role: Role) -> bool {
        match role {
            Role::Init => self.exit().is_some_and(|e| e.code == 0),
            Role::Sidecar => self.once_started,
            Role::Main | Role::Ephemeral => true,
        }
    }

    fn created(&mut self) {
        self.ever_created = true;
        self.restarts = self.attempt;
    }

    fn exited(&mut self, exit: Exit) {
        self.phase = Phase::Exited(exit);
        self.started = false;
        self.ready = false;
        self.doomed = None;
    }

    fn begin(&mut self, action: &Action, now: Timestamp) {
        match action {
            Action::Start { attempt, .. } => {
                if let Phase::Exited(exit) = &self.phase {
                    self.backoff.retried(exit.finished_at, now);
                    self.last = Some(exit.clone());
                }
                self.attempt = *attempt;
                self.phase = Phase::Starting;
            }
            Action::Announce { .. } => match &mut self.phase {
                Phase::Waiting(Some(t)) => t.kind = TroubleKind::ImagePullBackOff,
                Phase::Exited(e) => e.announced = true,
                Phase::Waiting(None) | Phase::Starting | Phase::Running(_) => {}
            },
            Action::Stop { grace, hook, .. } => {
                let stage = match hook {
                    true => Stage::Hook,
                    false => Stage::Term { at: now, after_hook: false },
                };
                self.set_stage(|_| Stop { since: now, grace: *grace, stage });
            }
            Action::Terminate { .. } => self.set_stage(|s| Stop {
                stage: Stage::Term { at: now, after_hook: true },
                ..s.expect("only what is being stopped is terminated")
            }),
            Action::Kill { .. } => self.set_stage(|s| Stop {
                stage: Stage::Kill,
                ..s.expect("only what is being stopped is killed")
            }),
            Action::PrepareVolumes
            | Action::CreateSandbox
            | Action::RemoveSandbox
            | Action::RemoveVolumes
            | Action::Finalize
            | Action::End(_)
            | Action::BeginStopping
            | Action::RestartInit { .. } => {}
        }
    }

    fn set_stage(&mut self, f: impl FnOnce(Option<Stop>) -> Stop) {
        if let Phase::Running(r) = &mut self.phase {
            r.stop = Some(f(r.stop.take()));
        }
    }

    fn retry_configuration(&mut self, now: Timestamp) {
        if let Phase::Waiting(Some(t)) = &mut self.phase
            && t.kind == TroubleKind::CreateContainerConfigError
        {
            t.retry_at = now;
        }
    }

    fn apply(&mut self, happened: Happened, now: Timestamp) {
        match happened {
            Happened::ImageReady { image, image_id, .. } => {
                self.image = image;
                self.image_id = image_id;
                self.image_backoff = Backoff::default();
            }
            Happened::ContainerTrouble { kind, message, .. } => self.trouble(kind, message, now),
            Happened::ContainerStarted {
                id, attempt, at, has_startup_probe, has_readiness_probe, ..
            } => {
                // Its exit may have been noticed, and answered by a new attempt, before the answer to its
                // start arrived.
                let over = self.exit().is_some_and(|e| e.id.as_ref() == Some(&id));
                if over || attempt != self.attempt {
                    return;
                }
                self.phase = Phase::Running(Running { id, started_at: at, stop: None });
                self.created();
                self.started = !has_startup_probe;
                self.once_started |= self.started;
                self.ready = self.started && !has_readiness_probe;
                self.doomed = None;
            }
            Happened::StartFailed { id, message, .. } => {
                self.created();
                self.exited(Exit {
                    id,
                    code: 128,
                    signal: None,
                    reason: ExitReason::StartError,
                    message,
                    started_at: None,
                    finished_at: now,
                    announced: false,
                });
            }
            Happened::ContainerExited { id, exit, .. } => {
                if self.is_current(&id) || matches!(self.phase, Phase::Starting) {
                    self.created();
                    self.once_started |= self.started;
                    self.exited(exit);
                }
            }
            Happened::HookDone { id, .. } => self.hook_done(&id, now),
            Happened::ProbeStartup { id, .. } => {
                if self.is_current(&id) {
                    self.started = true;
                    self.once_started = true;
                }
            }
            Happened::ProbeReady { id, ready, .. } => {
                if self.is_current(&id) {
                    self.ready = ready && self.started;
                }
            }
            Happened::Doomed { id, doom, .. } => {
                if self.is_current(&id) {
                    self.doomed = Some(doom);
                    self.ready = false;
                }
            }
            Happened::VolumesReady
            | Happened::VolumesFailed { .. }
            | Happened::VolumesChanged
            | Happened::VolumesRemoved
            | Happened::SandboxReady { .. }
            | Happened::SandboxFailed { .. }
            | Happened::SandboxLost
            | Happened::SandboxRemoved
            | Happened::Finalized
            | Happened::FinalizeFailed => {}
        }
    }

    fn trouble(&mut self, kind: TroubleKind, message: String, now: Timestamp) {
        let retry_at = match kind {
            TroubleKind::ErrImagePull | TroubleKind::ImagePullBackOff => {
                self.image_backoff.retried(now, now);
                self.image_backoff.due(now)
            }
            TroubleKind::InvalidImageName
            | TroubleKind::ErrImageNeverPull
            | TroubleKind::CreateContainerConfigError
            | TroubleKind::CreateContainerError => now + RETRY * 5,
        };
        self.phase = Phase::Waiting(Some(Trouble { kind, message, since: now, retry_at }));
    }

    fn hook_done(&mut self, id: &ContainerId, now: Timestamp) {
        if let Phase::Running(r) = &mut self.phase
            && r.id == *id
            && let Some(stop) = &mut r.stop
            && stop.stage == Stage::Hook
        {
            stop.stage = Stage::Term { at: now, after_hook: true };
        }
    }
}
