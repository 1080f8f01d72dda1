//! One container of a pod, and how each thing that happens changes it.
//!
//! ```text
//! Waiting ──Starting──▶ Running ──▶ Exited ──▶ Starting …
//!    ▲         │           │ stop: Hook ▶ Term ▶ Kill
//!    └─trouble─┘
//! ```

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{backoff::Backoff, desired::Role};

/// Back-off of trouble that has none in Kubernetes' API: configuration and names.
const TROUBLE_RETRY: Duration = Duration::from_secs(10);

/// 64 hex digits; the part of `pith://…` behind the scheme.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ContainerId(pub String);

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

/// Something that happened to a container.
#[derive(Debug, Clone)]
pub(crate) enum News {
    /// The image is there; what the status will call it.
    ImageReady {
        image: String,
        image_id: String,
    },
    Trouble {
        kind: TroubleKind,
        message: String,
    },
    Started {
        id: ContainerId,
        attempt: u32,
        at: Timestamp,
        has_startup_probe: bool,
        has_readiness_probe: bool,
    },
    StartFailed {
        id: Option<ContainerId>,
        message: String,
    },
    Exited {
        id: ContainerId,
        exit: Exit,
    },
    /// The preStop hook ended, or there was none.
    HookDone {
        id: ContainerId,
    },
    ProbeStartup {
        id: ContainerId,
    },
    ProbeReady {
        id: ContainerId,
        ready: bool,
    },
    Doomed {
        id: ContainerId,
        doom: Doom,
    },
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

    pub(super) fn exited(&mut self, exit: Exit) {
        self.phase = Phase::Exited(exit);
        self.started = false;
        self.ready = false;
        self.doomed = None;
    }

    /// A new attempt is under way.
    pub(super) fn begin_attempt(&mut self, attempt: u32, now: Timestamp) {
        if let Phase::Exited(exit) = &self.phase {
            self.backoff.retried(exit.finished_at, now);
            self.last = Some(exit.clone());
        }
        self.attempt = attempt;
        self.phase = Phase::Starting;
    }

    /// What keeps it from running again has been made known as a back-off.
    pub(super) fn announced(&mut self) {
        match &mut self.phase {
            Phase::Waiting(Some(t)) => t.kind = TroubleKind::ImagePullBackOff,
            Phase::Exited(e) => e.announced = true,
            Phase::Waiting(None) | Phase::Starting | Phase::Running(_) => {}
        }
    }

    pub(super) fn begin_stop(&mut self, grace: Duration, hook: bool, now: Timestamp) {
        let stage = match hook {
            true => Stage::Hook,
            false => Stage::Term { at: now, after_hook: false },
        };
        if let Phase::Running(r) = &mut self.phase {
            r.stop = Some(Stop { since: now, grace, stage });
        }
    }

    /// The hook has used up the grace.
    pub(super) fn begin_term(&mut self, now: Timestamp) {
        self.set_stage(Stage::Term { at: now, after_hook: true });
    }

    pub(super) fn begin_kill(&mut self) {
        self.set_stage(Stage::Kill);
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Phase::Running(r) = &mut self.phase {
            let stop = r.stop.as_mut().expect("only what is being stopped is terminated or killed");
            stop.stage = stage;
        }
    }

    pub(super) fn retry_configuration(&mut self, now: Timestamp) {
        if let Phase::Waiting(Some(t)) = &mut self.phase
            && t.kind == TroubleKind::CreateContainerConfigError
        {
            t.retry_at = now;
        }
    }

    pub(super) fn apply(&mut self, news: News, now: Timestamp) {
        match news {
            News::ImageReady { image, image_id } => {
                self.image = image;
                self.image_id = image_id;
                self.image_backoff = Backoff::default();
            }
            News::Trouble { kind, message } => self.trouble(kind, message, now),
            News::Started { id, attempt, at, has_startup_probe, has_readiness_probe } => {
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
            News::StartFailed { id, message } => {
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
            News::Exited { id, exit } => {
                if self.is_current(&id) || matches!(self.phase, Phase::Starting) {
                    self.created();
                    self.once_started |= self.started;
                    self.exited(exit);
                }
            }
            News::HookDone { id } => self.hook_done(&id, now),
            News::ProbeStartup { id } => {
                if self.is_current(&id) {
                    self.started = true;
                    self.once_started = true;
                }
            }
            News::ProbeReady { id, ready } => {
                if self.is_current(&id) {
                    self.ready = ready && self.started;
                }
            }
            News::Doomed { id, doom } => {
                if self.is_current(&id) {
                    self.doomed = Some(doom);
                    self.ready = false;
                }
            }
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
            | TroubleKind::CreateContainerError => now + TROUBLE_RETRY,
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
