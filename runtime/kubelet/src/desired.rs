//! What the API asks of this node for one pod: a `Pod` object parsed once, at the edge, into the
//! few facts that planning needs. The object itself stays reachable for whoever renders the details.

use std::{fmt, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};
use serde::{Deserialize, Serialize};

/// The uid the API server gave the pod. It names the pod's folders, cgroup and supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodUid(String);

/// The text is not usable as a uid: it would escape the folders that are named after it.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a pod uid: letters, digits and dashes, at most 64 of them")]
pub struct BadUid(String);

impl PodUid {
    pub fn parse(text: &str) -> Result<Self, BadUid> {
        let fits = !text.is_empty()
            && text.len() <= 64
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if fits { Ok(Self(text.to_owned())) } else { Err(BadUid(text.to_owned())) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which pod: enough to name it to a person, to the API and to the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodId {
    pub uid: PodUid,
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Runs to completion before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: started in order, runs beside the others.
    Sidecar,
    Main,
    /// Added to a running pod by `kubectl debug`; never restarted.
    Ephemeral,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// One container as planning sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) restart: RestartPolicy,
    pub(crate) has_pre_stop: bool,
    pub(crate) has_startup_probe: bool,
    pub(crate) has_readiness_probe: bool,
    /// The full description; an ephemeral container is shown as the container it amounts to.
    pub(crate) spec: Arc<Container>,
}

/// What is to become of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Run,
    /// Deleted: stop within the grace, tear everything down, and let the API forget it.
    Remove {
        grace: Duration,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Desired {
    pub(crate) id: PodId,
    pub(crate) fate: Fate,
    pub(crate) restart: RestartPolicy,
    /// Init containers and sidecars in their order, then the main ones, then ephemeral ones.
    pub(crate) units: Vec<Unit>,
    /// Granted to a container that is stopped while its pod stays.
    pub(crate) grace: Duration,
    pub(crate) active_deadline: Option<Duration>,
    /// The API already says Succeeded or Failed, which is final: nothing may start again.
    pub(crate) over: bool,
    pub(crate) host_network: bool,
    pub(crate) pod: Arc<Pod>,
}

/// The pod object is not usable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadPod {
    #[error(transparent)]
    Uid(#[from] BadUid),
    #[error("pod {0} has no {1}")]
    Missing(String, &'static str),
}

/// Stopping takes at least a second: what is left of a pod that was deleted with `--force`
/// still deserves its SIGTERM. Upstream's minimum is the same.
const MIN_GRACE: Duration = Duration::from_secs(1);
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

impl Desired {
    pub(crate) fn parse(pod: Arc<Pod>) -> Result<Self, BadPod> {
        let meta = &pod.metadata;
        let name = meta.name.clone().unwrap_or_default();
        let missing = |what| BadPod::Missing(name.clone(), what);
        let uid = PodUid::parse(meta.uid.as_deref().ok_or_else(|| missing("uid"))?)?;
        let namespace = meta.namespace.clone().ok_or_else(|| missing("namespace"))?;
        let spec = pod.spec.as_ref().ok_or_else(|| missing("spec"))?;
        let grace = spec.termination_grace_period_seconds.map_or(DEFAULT_GRACE, seconds);
        let fate = match &meta.deletion_timestamp {
            Some(_) => Fate::Remove {
                grace: meta.deletion_grace_period_seconds.map_or(grace, seconds).max(MIN_GRACE),
            },
            None => Fate::Run,
        };
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        Ok(Self {
            id: PodId { uid, namespace, name: name.clone() },
            fate,
            restart: restart_policy(spec.restart_policy.as_deref()),
            units: units(spec),
            grace,
            active_deadline: spec.active_deadline_seconds.map(seconds),
            over: matches!(phase, Some("Succeeded" | "Failed")),
            host_network: spec.host_network.unwrap_or(false),
            pod: pod.clone(),
        })
    }

    /// The same pod once its object has vanished from the API: stopped with what grace it was
    /// deleted with, or its own.
    pub(crate) fn removed(mut self) -> Self {
        if let Fate::Run = self.fate {
            self.fate = Fate::Remove { grace: self.grace.max(MIN_GRACE) };
        }
        self
    }

    pub(crate) fn spec(&self) -> &PodSpec {
        self.pod.spec.as_ref().expect("parse() refuses a pod without a spec")
    }

    pub(crate) fn unit(&self, name: &str) -> Option<&Unit> {
        self.units.iter().find(|u| u.name == name)
    }

    pub(crate) fn of(&self, role: Role) -> impl DoubleEndedIterator<Item = &Unit> {
        self.units.iter().filter(move |u| u.role == role)
    }
}

fn seconds(s: i64) -> Duration {
    Duration::from_secs(u64::try_from(s).unwrap_or(0))
}

fn restart_policy(text: Option<&str>) -> RestartPolicy {
    match text {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

fn units(spec: &PodSpec) -> Vec<Unit> {
    let pod = restart_policy(spec.restart_policy.as_deref());
    let init = spec.init_containers.iter().flatten().map(|c| {
        if c.restart_policy.as_deref() == Some("Always") {
            unit(c.clone(), Role::Sidecar, RestartPolicy::Always)
        } else {
            // An init container that succeeded is done whatever the pod's policy says.
            let restart = match pod {
                RestartPolicy::Never => RestartPolicy::Never,
                RestartPolicy::Always | RestartPolicy::OnFailure => RestartPolicy::OnFailure,
            };
            unit(c.clone(), Role::Init, restart)
        }
    });
    let main = spec.containers.iter().map(|c| {
        let own = c.restart_policy.as_deref().map(|p| restart_policy(Some(p)));
        unit(c.clone(), Role::Main, own.unwrap_or(pod))
    });
    let ephemeral = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|e| unit(as_container(e), Role::Ephemeral, RestartPolicy::Never));
    init.chain(main).chain(ephemeral).collect()
}

fn unit(spec: Container, role: Role, restart: RestartPolicy) -> Unit {
    Unit {
        name: spec.name.clone(),
        role,
        restart,
        has_pre_stop: spec.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some()),
        has_startup_probe: spec.startup_probe.is_some(),
        has_readiness_probe: spec.readiness_probe.is_some(),
        spec: Arc::new(spec),
    }
}

fn as_container(e: &EphemeralContainer) -> Container {
    Container {
        args: e.args.clone(),
        command: e.command.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        name: e.name.clone(),
        resources: e.resources.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        tty: e.tty,
        volume_mounts: e.volume_mounts.clone(),
        working_dir: e.working_dir.clone(),
        ..Container::default()
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// A pod from the JSON of its spec, with the metadata every pod has.
    pub(crate) fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "11111111-2222-3333-4444-555555555555"},
            "spec": spec,
        }))
        .expect("fixture is a pod")
    }

    pub(crate) fn desired(spec: serde_json::Value) -> Desired {
        Desired::parse(Arc::new(pod(spec))).expect("fixture parses")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn roles_and_policies() {
        let d = fixture::desired(json!({
            "restartPolicy": "Never",
            "initContainers": [{"name": "setup"}, {"name": "mesh", "restartPolicy": "Always"}],
            "containers": [{"name": "app"}],
            "ephemeralContainers": [{"name": "debug"}],
        }));
        let seen: Vec<_> = d.units.iter().map(|u| (u.name.as_str(), u.role, u.restart)).collect();
        assert_eq!(
            seen,
            [
                ("setup", Role::Init, RestartPolicy::Never),
                ("mesh", Role::Sidecar, RestartPolicy::Always),
                ("app", Role::Main, RestartPolicy::Never),
                ("debug", Role::Ephemeral, RestartPolicy::Never),
            ]
        );
    }

    #[test]
    fn deletion_grace_is_never_zero() {
        let mut pod = fixture::pod(json!({"containers": [{"name": "a"}]}));
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            "2026-01-01T00:00:00Z".parse().expect("time"),
        ));
        pod.metadata.deletion_grace_period_seconds = Some(0);
        let d = Desired::parse(Arc::new(pod)).expect("parses");
        assert_eq!(d.fate, Fate::Remove { grace: Duration::from_secs(1) });
    }

    #[test]
    fn uids_that_could_escape_are_refused() {
        for bad in ["", "..", "a/b", "a\0b", &"x".repeat(65)] {
            assert!(PodUid::parse(bad).is_err(), "{bad:?}");
        }
        assert!(PodUid::parse("0f8c-ABC").is_ok());
    }
}
