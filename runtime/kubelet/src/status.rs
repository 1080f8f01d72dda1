//! What the API is told about a pod: `status(desired, observed, facts)`, a pure function, in Kubernetes' words.
//!
//! Conditions that others set (readiness gates, the scheduler's) are carried over from the object; a
//! condition's transition time changes only with its value.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    desired::{Desired, RestartPolicy, Role, Unit},
    observed::{Container, Exit, ExitReason, Observed, Phase, Sandbox},
    plan::is_initialized,
    resources,
};

/// What the status says beside the pod's own state.
#[derive(Debug, Clone)]
pub(crate) struct Facts<'a> {
    /// The node's addresses, the main one first.
    pub(crate) host_ips: Vec<IpAddr>,
    pub(crate) now: Timestamp,
    /// What was told last: source of transition times.
    pub(crate) previous: Option<&'a PodStatus>,
}

pub(crate) fn status(desired: &Desired, observed: &Observed, facts: &Facts<'_>) -> PodStatus {
    let told = desired.pod.status.as_ref();
    let phase = phase(desired, observed);
    let statuses = |roles: &[Role]| -> Option<Vec<ContainerStatus>> {
        let list: Vec<_> = desired
            .units
            .iter()
            .filter(|u| roles.contains(&u.role))
            .map(|u| container_status(desired, observed, u))
            .collect();
        (!list.is_empty()).then_some(list)
    };
    let mut out = PodStatus {
        phase: Some(phase.to_owned()),
        start_time: told.and_then(|s| s.start_time.clone()).or(observed.start_time.map(Time)),
        qos_class: Some(resources::qos(desired.spec()).text().to_owned()),
        observed_generation: desired.pod.metadata.generation,
        host_ip: facts.host_ips.first().map(IpAddr::to_string),
        host_ips: Some(facts.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        init_container_statuses: statuses(&[Role::Init, Role::Sidecar]),
        container_statuses: statuses(&[Role::Main]),
        ephemeral_container_statuses: statuses(&[Role::Ephemeral]),
        ..PodStatus::default()
    };
    if let Some(ended) = &observed.ended {
        out.reason = Some(ended.reason.to_owned());
        out.message = Some(ended.message.clone());
    } else if desired.over {
        out.reason = told.and_then(|s| s.reason.clone());
        out.message = told.and_then(|s| s.message.clone());
    }
    let ips = pod_ips(desired, observed, facts);
    out.pod_ip = ips.first().cloned();
    out.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect());
    out.conditions = Some(conditions(desired, observed, phase, &out, facts));
    out
}

/// A pod keeps telling its address after its end; a sandbox that is being replaced has none.
fn pod_ips(desired: &Desired, observed: &Observed, facts: &Facts<'_>) -> Vec<String> {
    match &observed.sandbox {
        Sandbox::Ready { .. } if desired.host_network => {
            facts.host_ips.iter().map(IpAddr::to_string).collect()
        }
        Sandbox::Ready { addresses } => addresses.iter().map(IpAddr::to_string).collect(),
        Sandbox::Creating | Sandbox::Failed { .. } | Sandbox::Lost => vec![],
        Sandbox::Absent | Sandbox::Removing => {
            let known = facts.previous.or(desired.pod.status.as_ref());
            known.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|p| p.ip.clone()).collect()
        }
    }
}

// --- phase

/// The phase by the same rules as upstream's `getPhase` (pkg/kubelet/kubelet_pods.go).
pub(crate) fn phase(desired: &Desired, observed: &Observed) -> &'static str {
    if desired.over {
        let told = desired.pod.status.as_ref().and_then(|s| s.phase.as_deref());
        return if told == Some("Succeeded") { "Succeeded" } else { "Failed" };
    }
    if observed.ended.is_some() {
        return "Failed";
    }
    let get = |u: &Unit| observed.container(&u.name);
    let mut init_pending = false;
    for unit in desired.of(Role::Init) {
        match get(unit).and_then(|c| c.exit().or(c.last.as_ref()).filter(|_| c.running().is_none())) {
            Some(e) if e.code == 0 => {}
            Some(_) if unit.restart == RestartPolicy::Never => return "Failed",
            Some(_) | None => init_pending = true,
        }
    }
    if !is_initialized(desired, observed)
        && (init_pending || desired.of(Role::Sidecar).next().is_some())
        && observed.stopping_since.is_none()
    {
        return "Pending";
    }
    let mains: Vec<_> = desired.of(Role::Main).collect();
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0usize, 0usize, 0usize, 0usize);
    for unit in &mains {
        match get(unit).map(|c| (&c.phase, &c.last)) {
            Some((Phase::Running(_), _)) => running += 1,
            Some((Phase::Exited(e), _)) => {
                stopped += 1;
                succeeded += usize::from(e.code == 0);
            }
            Some((Phase::Waiting(_) | Phase::Starting, Some(_))) => stopped += 1,
            Some((Phase::Waiting(_) | Phase::Starting, None)) | None => waiting += 1,
        }
    }
    let removed = observed.stopping_since.is_some() || !matches!(desired.fate, crate::desired::Fate::Run);
    // What is being started yet will run, and an end is told only once: nothing takes it back.
    let starting = mains.iter().filter_map(|u| get(u)).any(|c| matches!(c.phase, Phase::Starting));
    if removed && running == 0 && !starting {
        return match (stopped, succeeded) {
            (0, _) if observed.stopping_since.is_none() => "Pending",
            (s, ok) if s == ok && waiting == 0 => "Succeeded",
            _ => "Failed",
        };
    }
    match (waiting, running, stopped) {
        (1.., _, _) => "Pending",
        (0, 1.., _) => "Running",
        (0, 0, s) if s == succeeded && desired.restart != RestartPolicy::Always => "Succeeded",
        (0, 0, _) => match desired.restart {
            RestartPolicy::Never => "Failed",
            RestartPolicy::Always | RestartPolicy::OnFailure => "Running",
        },
    }
}

// --- containers

fn container_status(desired: &Desired, observed: &Observed, unit: &Unit) -> ContainerStatus {
    let fresh = Container::default();
    let c = observed.container(&unit.name).unwrap_or(&fresh);
    let told = told_status(desired, &unit.name);
    let (state, last) = states(desired, observed, unit, c, told);
    let id = c
        .running()
        .map(|r| &r.id)
        .or(c.exit().and_then(|e| e.id.as_ref()))
        .or(c.last.as_ref().and_then(|e| e.id.as_ref()));
    let image = if c.image.is_empty() {
        told.map(|t| t.image.clone())
            .filter(|i| !i.is_empty())
            .or(unit.spec.image.clone())
            .unwrap_or_default()
    } else {
        c.image.clone()
    };
    ContainerStatus {
        name: unit.name.clone(),
        container_id: id.map(|i| format!("pith://{}", i.0)).or(told.and_then(|t| t.container_id.clone())),
        image,
        image_id: if c.image_id.is_empty() {
            told.map(|t| t.image_id.clone()).unwrap_or_default()
        } else {
            c.image_id.clone()
        },
        ready: is_ready(unit, c),
        started: Some(is_started(unit, c)),
        restart_count: restart_count(c, told),
        state: Some(state),
        last_state: Some(last),
        resources: unit.spec.resources.clone(),
        allocated_resources: unit.spec.resources.as_ref().and_then(|r| r.requests.clone()),
        ..ContainerStatus::default()
    }
}

/// What the API remembers of a container: all there is for a pod that ended before this kubelet's time.
fn told_status<'a>(desired: &'a Desired, name: &str) -> Option<&'a ContainerStatus> {
    let status = desired.pod.status.as_ref()?;
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .find(|c| c.name == name)
}

fn restart_count(c: &Container, told: Option<&ContainerStatus>) -> i32 {
    let own = i32::try_from(c.restarts).unwrap_or(i32::MAX);
    own.max(told.map_or(0, |t| t.restart_count))
}

fn is_started(unit: &Unit, c: &Container) -> bool {
    match (unit.role, c.running()) {
        (Role::Init, Some(_)) | (_, None) => c.running().is_some() && unit.role != Role::Init,
        (Role::Sidecar | Role::Main | Role::Ephemeral, Some(_)) => c.started,
    }
}

/// An init container is ready once it succeeded; the others while they run and their probe says so.
fn is_ready(unit: &Unit, c: &Container) -> bool {
    match unit.role {
        Role::Init => c.exit().is_some_and(|e| e.code == 0),
        Role::Sidecar | Role::Main => {
            c.running().is_some() && c.ready && (!unit.has_startup_probe || c.started)
        }
        Role::Ephemeral => false,
    }
}

fn states(
    desired: &Desired,
    observed: &Observed,
    unit: &Unit,
    c: &Container,
    told: Option<&ContainerStatus>,
) -> (ContainerState, ContainerState) {
    let last = c.last.as_ref().map(terminated).unwrap_or_default();
    match &c.phase {
        Phase::Running(r) => (
            ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(r.started_at)) }),
                ..ContainerState::default()
            },
            last,
        ),
        Phase::Exited(e) => match crash_reason(desired, observed, unit, e) {
            Some((reason, message)) => (waiting(reason, Some(message)), terminated(e)),
            None => (terminated(e), last),
        },
        Phase::Waiting(Some(t)) => (waiting(t.kind.reason(), Some(t.message.clone())), last),
        Phase::Waiting(None) | Phase::Starting => {
            // Nothing of this container was ever seen here, but the API knows how it ended.
            if let Some(t) = told
                && (desired.over || observed.stopping_since.is_some())
                && t.state.as_ref().is_some_and(|s| s.terminated.is_some())
            {
                return (t.state.clone().unwrap_or_default(), t.last_state.clone().unwrap_or_default());
            }
            let through = unit.role != Role::Main || is_initialized(desired, observed);
            let first = desired.units.first().is_some_and(|u| u.name == unit.name);
            let has_init = desired.units.iter().any(|u| matches!(u.role, Role::Init | Role::Sidecar));
            let starting = matches!(c.phase, Phase::Starting);
            let reason = match (has_init, through && (first || starting || unit.role == Role::Main)) {
                (false, _) | (true, true) => "ContainerCreating",
                (true, false) => "PodInitializing",
            };
            (waiting(reason, None), last)
        }
    }
}

/// An exit that will be followed by a restart is shown as the wait it is.
fn crash_reason(
    desired: &Desired,
    observed: &Observed,
    unit: &Unit,
    exit: &Exit,
) -> Option<(&'static str, String)> {
    let again = match unit.restart {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit.code != 0,
        RestartPolicy::Never => false,
    };
    if !again || observed.stopping_since.is_some() || desired.over || observed.ended.is_some() {
        return None;
    }
    if exit.announced {
        let delay = observed.container(&unit.name).map_or(0, |c| c.backoff.delay().as_secs());
        let pod = &desired.id;
        return Some((
            "CrashLoopBackOff",
            format!(
                "back-off {} restarting failed container={} pod={}_{}({})",
                crate::plan::words(std::time::Duration::from_secs(delay)),
                unit.name,
                pod.name,
                pod.namespace,
                pod.uid
            ),
        ));
    }
    match exit.reason {
        ExitReason::StartError => Some(("RunContainerError", exit.message.clone())),
        ExitReason::Completed
        | ExitReason::Error
        | ExitReason::OOMKilled
        | ExitReason::ContainerStatusUnknown => None,
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    }
}

fn terminated(e: &Exit) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: e.id.as_ref().map(|i| format!("pith://{}", i.0)),
            exit_code: e.code,
            signal: None,
            reason: Some(e.reason.text().to_owned()),
            message: (!e.message.is_empty()).then(|| e.message.clone()),
            started_at: Some(Time(e.started_at.unwrap_or(e.finished_at))),
            finished_at: Some(Time(e.finished_at)),
        }),
        ..ContainerState::default()
    }
}

// --- conditions

const OWN: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// Whether both say the same in the conditions that a kubelet owns.
pub(crate) fn same_verdicts(a: &PodStatus, b: &PodStatus) -> bool {
    let value = |s: &PodStatus, kind: &str| {
        let found = s.conditions.iter().flatten().find(|c| c.type_ == kind);
        found.map(|c| c.status.clone())
    };
    OWN.iter().all(|kind| value(a, kind) == value(b, kind))
}

struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn conditions(
    desired: &Desired,
    observed: &Observed,
    phase: &str,
    status: &PodStatus,
    facts: &Facts<'_>,
) -> Vec<PodCondition> {
    let told = desired.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let foreign = told.into_iter().flatten().filter(|c| !OWN.contains(&c.type_.as_str())).cloned();
    let containers = containers_ready(desired, phase, status);
    let ready = pod_ready(desired, &containers, told);
    let before = facts.previous.and_then(|s| s.conditions.as_ref()).or(told);
    let own = [
        Verdict {
            kind: OWN[0],
            holds: matches!(observed.sandbox, Sandbox::Ready { .. }),
            reason: None,
            message: None,
        },
        initialized(desired, observed, phase, status),
        ready,
        containers,
        Verdict { kind: OWN[4], holds: true, reason: None, message: None },
    ];
    own.into_iter().map(|v| condition(v, desired, before, facts.now)).chain(foreign).collect()
}

fn condition(
    v: Verdict,
    desired: &Desired,
    before: Option<&Vec<PodCondition>>,
    now: Timestamp,
) -> PodCondition {
    let value = if v.holds { "True" } else { "False" };
    let since = before
        .into_iter()
        .flatten()
        .find(|c| c.type_ == v.kind && c.status == value)
        .and_then(|c| c.last_transition_time.clone());
    PodCondition {
        type_: v.kind.to_owned(),
        status: value.to_owned(),
        reason: v.reason.map(str::to_owned),
        message: v.message,
        last_transition_time: Some(since.unwrap_or(Time(now))),
        last_probe_time: None,
        observed_generation: desired.pod.metadata.generation,
    }
}

fn initialized(desired: &Desired, observed: &Observed, phase: &str, status: &PodStatus) -> Verdict {
    let holds = phase == "Succeeded" || is_initialized(desired, observed);
    let reason = match (holds, phase) {
        (true, "Succeeded") => Some("PodCompleted"),
        (true, _) => None,
        (false, _) => Some("ContainersNotInitialized"),
    };
    let message = (!holds).then(|| {
        let open = |s: &&ContainerStatus| !s.ready && s.started != Some(true);
        let names = names(status.init_container_statuses.iter().flatten().filter(open));
        format!("containers with incomplete status: [{names}]")
    });
    Verdict { kind: OWN[1], holds, reason, message }
}

fn containers_ready(desired: &Desired, phase: &str, status: &PodStatus) -> Verdict {
    let (reason, message) = match phase {
        "Succeeded" => (Some("PodCompleted"), None),
        "Failed" => (Some("PodFailed"), None),
        _ => {
            let sidecars = status
                .init_container_statuses
                .iter()
                .flatten()
                .filter(|s| desired.unit(&s.name).is_some_and(|u| u.role == Role::Sidecar));
            let all = sidecars.chain(status.container_statuses.iter().flatten());
            let unready = names(all.filter(|s| !s.ready));
            match unready.is_empty() {
                true => (None, None),
                false => {
                    (Some("ContainersNotReady"), Some(format!("containers with unready status: [{unready}]")))
                }
            }
        }
    };
    Verdict { kind: OWN[3], holds: reason.is_none(), reason, message }
}

fn pod_ready(desired: &Desired, containers: &Verdict, told: Option<&Vec<PodCondition>>) -> Verdict {
    if !containers.holds {
        return Verdict { kind: OWN[2], message: containers.message.clone(), ..*containers };
    }
    let met = |kind: &str| told.into_iter().flatten().any(|c| c.type_ == kind && c.status == "True");
    let missing: Vec<_> = desired
        .spec()
        .readiness_gates
        .iter()
        .flatten()
        .filter(|g| !met(&g.condition_type))
        .map(|g| {
            format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist or is not True.",
                g.condition_type
            )
        })
        .collect();
    let holds = missing.is_empty();
    Verdict {
        kind: OWN[2],
        holds,
        reason: (!holds).then_some("ReadinessGatesNotReady"),
        message: (!holds).then(|| missing.join(", ")),
    }
}

fn names<'a>(statuses: impl Iterator<Item = &'a ContainerStatus>) -> String {
    statuses.map(|s| s.name.as_str()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
