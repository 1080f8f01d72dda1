//! Probes: when they run, what their results mean, and what the worker is told.
//!
//! The startup probe runs alone; liveness and readiness follow once it has passed. Each probe is a task that
//! ends with its container. Until a container is Ready for the first time its readiness is asked more often than
//! each period, as the API's `readinessProbe.periodSeconds` allows.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Probe;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use crate::{
    checks::{self, CheckError},
    context::PodCell,
    desired::{Desired, Role, Unit},
    events::Subject,
    observed::{ContainerId, Doom, Happened, News, Observed, Running},
    process,
};

/// How soon readiness is asked again after the first failure; doubles with each, up to the period.
const FIRST_RETRY: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    fn of(self, unit: &Unit) -> Option<&Probe> {
        match self {
            Self::Startup => unit.spec.startup_probe.as_ref(),
            Self::Liveness => unit.spec.liveness_probe.as_ref(),
            Self::Readiness => unit.spec.readiness_probe.as_ref(),
        }
    }
}

/// Counts results and speaks up when a threshold is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counter {
    successes_needed: u32,
    failures_needed: u32,
    run: u32,
    last: Option<bool>,
    verdict: Option<bool>,
}

impl Counter {
    fn new(probe: &Probe) -> Self {
        let needed =
            |n: Option<i32>, default| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(default).max(1);
        Self {
            successes_needed: needed(probe.success_threshold, 1),
            failures_needed: needed(probe.failure_threshold, 3),
            run: 0,
            last: None,
            verdict: None,
        }
    }

    /// The verdict, when it is new.
    fn observe(&mut self, ok: bool) -> Option<bool> {
        self.run = if self.last == Some(ok) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(ok);
        let needed = if ok { self.successes_needed } else { self.failures_needed };
        if self.run < needed || self.verdict == Some(ok) {
            return None;
        }
        self.verdict = Some(ok);
        Some(ok)
    }
}

/// How long to wait between two checks.
struct Pace {
    period: Duration,
    /// After the next failure. `None` where checks keep to the period.
    retry: Option<Duration>,
}

impl Pace {
    fn new(kind: Kind, period: Duration) -> Self {
        // What fails counts towards a restart for the other kinds, and their users count in periods.
        Self { period, retry: (kind == Kind::Readiness).then_some(FIRST_RETRY) }
    }

    fn pause(&mut self, ok: bool) -> Duration {
        let Some(retry) = self.retry else { return self.period };
        // A success that is not enough yet is followed by others a period apart.
        self.retry = (!ok && retry < self.period).then_some(retry * 2);
        if ok { self.period } else { retry.min(self.period) }
    }
}

/// The probes of one pod's containers.
pub(crate) struct Probes {
    cell: Arc<PodCell>,
    inbox: mpsc::Sender<Happened>,
    running: HashMap<(ContainerId, Kind), AbortHandle>,
    tasks: JoinSet<()>,
}

impl Probes {
    pub(crate) fn new(cell: Arc<PodCell>, inbox: mpsc::Sender<Happened>) -> Self {
        Self { cell, inbox, running: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Starts the probes that should run now and ends those that should not.
    pub(crate) fn sync(&mut self, desired: &Desired, observed: &Observed) {
        let wanted = wanted(desired, observed);
        self.running.retain(|key, task| {
            let keep = wanted.iter().any(|(id, kind, ..)| (id, kind) == (&key.0, &key.1));
            if !keep {
                task.abort();
            }
            keep
        });
        while self.tasks.try_join_next().is_some() {}
        for (id, kind, unit, started_at) in wanted {
            if !self.running.contains_key(&(id.clone(), kind)) {
                let prober = Prober {
                    cell: self.cell.clone(),
                    inbox: self.inbox.clone(),
                    unit: unit.clone(),
                    id: id.clone(),
                    kind,
                };
                let task = self.tasks.spawn(prober.run(started_at));
                self.running.insert((id, kind), task);
            }
        }
    }
}

fn wanted<'a>(desired: &'a Desired, observed: &Observed) -> Vec<(ContainerId, Kind, &'a Unit, Timestamp)> {
    let mut out = vec![];
    for unit in desired.units.iter().filter(|u| matches!(u.role, Role::Main | Role::Sidecar)) {
        let Some(c) = observed.container(&unit.name) else { continue };
        let Some(Running { id, started_at, stop }) = c.running() else { continue };
        let kinds: &[Kind] = match (c.started, stop.is_some()) {
            (false, false) => &[Kind::Startup],
            (true, false) => &[Kind::Liveness, Kind::Readiness],
            // Whoever still sends traffic to a pod that is on its way out has to learn that it is.
            (true, true) => &[Kind::Readiness],
            (false, true) => &[],
        };
        for kind in kinds {
            if kind.of(unit).is_some() {
                out.push((id.clone(), *kind, unit, *started_at));
            }
        }
    }
    out
}

struct Prober {
    cell: Arc<PodCell>,
    inbox: mpsc::Sender<Happened>,
    unit: Unit,
    id: ContainerId,
    kind: Kind,
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
}

impl Prober {
    async fn run(self, started_at: Timestamp) {
        let Some(probe) = self.kind.of(&self.unit).cloned() else { return };
        let first = started_at + seconds(probe.initial_delay_seconds, 0);
        let wait = Duration::try_from(first.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
        tokio::time::sleep(wait).await;
        let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
        let mut pace = Pace::new(self.kind, period);
        let mut counter = Counter::new(&probe);
        let mut told: Option<Instant> = None;
        let mut next = Instant::now();
        loop {
            tokio::time::sleep_until(next).await;
            let begun = Instant::now();
            let result = self.check(&probe).await;
            next = begun + pace.pause(result.is_ok());
            if let Err(error) = &result
                && told.is_none_or(|told| begun - told >= period)
            {
                told = Some(begun);
                let message = format!("{} probe failed: {error}", self.kind.title());
                let subject = Subject::container(&self.cell.id, &self.unit);
                self.cell.node.events.warning(subject, "Unhealthy", message);
            }
            let Some(verdict) = counter.observe(result.is_ok()) else { continue };
            let Some(news) = self.verdict(verdict, &probe) else { continue };
            let happened = Happened::Container { name: self.unit.name.clone(), news };
            if self.inbox.send(happened).await.is_err() {
                return;
            }
        }
    }

    fn verdict(&self, ok: bool, probe: &Probe) -> Option<News> {
        let (name, id) = (&self.unit.name, self.id.clone());
        match (self.kind, ok) {
            (Kind::Readiness, ready) => Some(News::ProbeReady { id, ready }),
            (Kind::Startup, true) => Some(News::ProbeStartup { id }),
            (Kind::Liveness, true) => None,
            (Kind::Startup | Kind::Liveness, false) => {
                let what = self.kind.title().to_ascii_lowercase();
                let message = format!("Container {name} failed {what} probe, will be restarted; stopping");
                let grace = probe.termination_grace_period_seconds;
                let grace = grace.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
                Some(News::Doomed { id, doom: Doom { message, grace } })
            }
        }
    }

    async fn check(&self, probe: &Probe) -> Result<(), CheckError> {
        let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
        if let Some(exec) = &probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            return Ok(process::run(&self.cell, &self.id, &command, timeout).await?);
        }
        let address = self.cell.facts().pod_ips.first().copied().ok_or(CheckError::NoAddress)?;
        let spec = &self.unit.spec;
        if let Some(get) = &probe.http_get {
            checks::within(timeout, checks::http(spec, get, address)).await
        } else if let Some(tcp) = &probe.tcp_socket {
            checks::within(timeout, checks::tcp(spec, tcp, address)).await
        } else if let Some(grpc) = &probe.grpc {
            checks::within(timeout, checks::grpc(grpc, address)).await
        } else {
            Err(CheckError::NoAction)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn thresholds() {
        let cases = [
            // successes, failures, results, verdicts
            (1, 3, "x x x", "  -"),
            (1, 3, "x x o x x x", "  +  -"),
            (2, 1, "o o x o o", " +- +"),
            (1, 1, "o o o", "+"),
        ];
        for (successes, failures, results, expect) in cases {
            let probe =
                serde_json::from_value(json!({"successThreshold": successes, "failureThreshold": failures}));
            let mut counter = Counter::new(&probe.expect("probe"));
            let verdicts: String = results
                .split(' ')
                .map(|r| match counter.observe(r == "o") {
                    Some(true) => '+',
                    Some(false) => '-',
                    None => ' ',
                })
                .collect();
            let shown = verdicts.trim_end();
            assert_eq!(shown, expect, "{results}");
        }
    }

    #[test]
    fn readiness_is_asked_often_until_it_is_there() {
        let period = Duration::from_secs(1);
        let pauses = |kind, results: &[bool]| {
            let mut pace = Pace::new(kind, period);
            results.iter().map(|ok| pace.pause(*ok).as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(Kind::Readiness, &[false; 7]), [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(pauses(Kind::Readiness, &[false, true, false]), [50, 1000, 1000]);
        assert_eq!(pauses(Kind::Liveness, &[false; 2]), [1000, 1000]);
        assert_eq!(pauses(Kind::Startup, &[false; 2]), [1000, 1000]);
    }

    #[test]
    fn which_probes_run() {
        let d = crate::desired::fixture::desired(json!({"containers": [{"name": "a",
            "startupProbe": {}, "livenessProbe": {}, "readinessProbe": {}}]}));
        let mut o = Observed::new(["a".to_owned()]);
        let kinds = |o: &Observed| wanted(&d, o).iter().map(|w| w.1).collect::<Vec<_>>();
        assert!(kinds(&o).is_empty());
        let c = o.containers.get_mut("a").expect("there");
        let running = Running { id: ContainerId("x".into()), started_at: Timestamp::UNIX_EPOCH, stop: None };
        c.phase = crate::observed::Phase::Running(running);
        assert_eq!(kinds(&o), [Kind::Startup]);
        o.containers.get_mut("a").expect("there").started = true;
        assert_eq!(kinds(&o), [Kind::Liveness, Kind::Readiness]);
    }
}
