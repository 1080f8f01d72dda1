//! Starting one container: image, environment, specification, cgroup, supervisor. Each step tells the
//! worker what came of it; the first that fails ends the attempt.

use std::{fs, io, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use pith_cgroup::Cgroup;
use pith_container::{
    compile::{self, CgroupView, Options, Overlay},
    supervisor::{
        self,
        protocol::{ContainerSpec, LogSpec, Refusal},
    },
};
use pith_image::Image;
use tokio::sync::mpsc;

use crate::{
    context::{PodCell, blocking, dirs},
    desired::{Desired, Unit},
    env::{ConfigError, Environment, Sources, environment},
    events::Subject,
    exits, hooks,
    images::{self, Found, ImageTrouble, PullPolicy},
    network::chain,
    objects::ObjectKind,
    observed::{ContainerId, Doom, Happened, News, TroubleKind},
    record::{self, Base, ContainerRecord},
    resources,
    security::{Seccomp, Security, security},
    spec::{Bind, Input, spec},
    volumes::{self, VolumeError},
};

/// What ends an attempt to start.
enum Failed {
    Trouble(TroubleKind, String),
    /// The container was made but its program did not run.
    Start(Option<ContainerId>, String),
}

impl From<ConfigError> for Failed {
    fn from(e: ConfigError) -> Self {
        Self::Trouble(TroubleKind::CreateContainerConfigError, e.to_string())
    }
}

impl From<VolumeError> for Failed {
    fn from(e: VolumeError) -> Self {
        Self::Trouble(TroubleKind::CreateContainerConfigError, chain(&e))
    }
}

fn create_error(e: impl std::error::Error + 'static) -> Failed {
    Failed::Trouble(TroubleKind::CreateContainerError, chain(&e))
}

fn io_error(operation: &str, path: &std::path::Path, e: &io::Error) -> Failed {
    Failed::Trouble(TroubleKind::CreateContainerError, format!("{operation} {}: {e}", path.display()))
}

/// Starts attempt `attempt` of a container and tells the worker how it went.
pub(crate) async fn start(cell: Arc<PodCell>, unit: Unit, attempt: u32, inbox: mpsc::Sender<Happened>) {
    let subject = Subject::container(&cell.id, &unit);
    let events = cell.node.events.clone();
    let news = match try_start(&cell, &unit, attempt, &inbox).await {
        Ok((id, at)) => {
            events.normal(subject, "Started", "Container started");
            News::Started {
                id,
                attempt,
                at,
                has_startup_probe: unit.has_startup_probe,
                has_readiness_probe: unit.has_readiness_probe,
            }
        }
        Err(Failed::Trouble(kind, message)) => {
            events.warning(subject, trouble_event(kind), format!("Error: {message}"));
            News::Trouble { kind, message }
        }
        Err(Failed::Start(id, message)) => {
            events.warning(subject, "Failed", format!("Error: {message}"));
            News::StartFailed { id, message }
        }
    };
    let id = match &news {
        News::Started { id, .. } => Some(id.clone()),
        _ => None,
    };
    // The worker is gone: nobody is left to tell.
    let _ = inbox.send(Happened::Container { name: unit.name.clone(), news }).await;
    if let Some(id) = id {
        post_start(&cell, &unit, id, &inbox).await;
    }
}

/// The postStart hook runs beside the container; one that fails ends it.
async fn post_start(cell: &Arc<PodCell>, unit: &Unit, id: ContainerId, inbox: &mpsc::Sender<Happened>) {
    let Some(handler) = unit.spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return };
    if let Err(error) = hooks::run(cell, unit, &id, handler).await {
        let subject = Subject::container(&cell.id, unit);
        let message = format!("PostStartHook failed: {error}");
        cell.node.events.warning(subject, "FailedPostStartHook", message);
        let doom = Doom { message: "FailedPostStartHook: stopping".to_owned(), grace: None };
        let news = News::Doomed { id, doom };
        let _ = inbox.send(Happened::Container { name: unit.name.clone(), news }).await;
    }
}

fn trouble_event(kind: TroubleKind) -> &'static str {
    match kind {
        TroubleKind::InvalidImageName => "InspectFailed",
        TroubleKind::ErrImageNeverPull => "ErrImageNeverPull",
        TroubleKind::ErrImagePull
        | TroubleKind::ImagePullBackOff
        | TroubleKind::CreateContainerConfigError
        | TroubleKind::CreateContainerError => "Failed",
    }
}

async fn try_start(
    cell: &Arc<PodCell>,
    unit: &Unit,
    attempt: u32,
    inbox: &mpsc::Sender<Happened>,
) -> Result<(ContainerId, Timestamp), Failed> {
    let desired = cell.desired();
    let image = ensure_image(cell, &desired, unit).await.map_err(|t| Failed::Trouble(t.kind, t.message))?;
    let image_id = images::status_id(&image);
    let shown = unit.spec.image.clone().unwrap_or_default();
    let news = News::ImageReady { image: shown, image_id: image_id.clone() };
    let _ = inbox.send(Happened::Container { name: unit.name.clone(), news }).await;
    let services = cell.node.services.all().await;
    let _permit = cell.node.starts.acquire().await.expect("the semaphore is never closed");
    let (cell, unit) = (cell.clone(), unit.clone());
    blocking(move || {
        let prepared = Prepared::new(&cell, &desired, &unit, &image, &services)?;
        run(&cell, &unit, attempt, &image, &image_id, prepared)
    })
    .await
}

async fn ensure_image(cell: &Arc<PodCell>, desired: &Desired, unit: &Unit) -> Result<Image, ImageTrouble> {
    let (store, looked_up) = (cell.node.images.clone(), unit.clone());
    let found = blocking(move || images::find(&store, &looked_up)).await?;
    let events = &cell.node.events;
    let subject = || Subject::container(&cell.id, unit);
    let text = unit.spec.image.as_deref().unwrap_or_default();
    let (reference, local) = match found {
        Found::Present(image) => {
            let how = match PullPolicy::of(unit) {
                PullPolicy::Never => "and can be accessed by the pod",
                PullPolicy::Always | PullPolicy::IfNotPresent => "on machine",
            };
            let message = format!("Container image \"{text}\" already present {how}");
            events.normal(subject(), "Pulled", message);
            return Ok(image);
        }
        Found::Pull { reference, local } => (reference, local),
    };
    events.normal(subject(), "Pulling", format!("Pulling image \"{text}\""));
    let began = Timestamp::now();
    let secrets: Vec<_> = desired
        .spec()
        .image_pull_secrets
        .iter()
        .flatten()
        .filter_map(|s| cell.object(ObjectKind::Secret, &s.name))
        .collect();
    match images::pull(&cell.node.images, &reference, local, &secrets, &cell.node.config.state_dir).await {
        Ok(image) => {
            let took = Timestamp::now().duration_since(began).as_millis();
            let message = format!(
                "Successfully pulled image \"{text}\" in {took}ms. Image size: {} bytes.",
                image.bytes
            );
            events.normal(subject(), "Pulled", message);
            Ok(image)
        }
        Err(trouble) => {
            let message = format!("Failed to pull image \"{text}\": {}", trouble.message);
            events.warning(subject(), "Failed", message);
            Err(trouble)
        }
    }
}

/// Everything about a container that can be known before anything of it exists.
struct Prepared {
    env: Environment,
    security: Security,
    binds: Vec<Bind>,
}

impl Prepared {
    fn new(
        cell: &PodCell,
        desired: &Desired,
        unit: &Unit,
        image: &Image,
        services: &[crate::services::ServiceFacts],
    ) -> Result<Self, Failed> {
        let facts = cell.facts();
        let object = |kind, name: &str| cell.object(kind, name);
        let sources =
            Sources { pod: &desired.pod, facts: &facts, node: cell.node.size, services, object: &object };
        let env = environment(&unit.spec, &sources)?;
        let user = image.config.config().as_ref().and_then(|c| c.user().clone()).unwrap_or_default();
        let pod = format!("{}_{}({})", cell.id.name, cell.id.namespace, cell.id.uid);
        let security = security(desired.spec(), &unit.spec, &user, &pod)?;
        let binds = volumes::binds(&unit.spec, &cell.places(), &env)?;
        Ok(Self { env, security, binds })
    }
}

fn run(
    cell: &PodCell,
    unit: &Unit,
    attempt: u32,
    image: &Image,
    image_id: &str,
    prepared: Prepared,
) -> Result<(ContainerId, Timestamp), Failed> {
    let supervisor =
        cell.sandbox().ok_or_else(|| Failed::Start(None, "the pod's sandbox is gone".to_owned()))?.supervisor;
    forget_previous(cell, unit, &supervisor);
    let id = ContainerId(fresh_id());
    let limits = resources::of_container(&unit.spec, cell.node.config.pids_limit);
    let cgroup = cell.node.cgroup(&cell.id, Some(&id.0)).map_err(create_error)?;
    let cgroup = Cgroup::create(&cell.node.hierarchy, cgroup.path()).map_err(create_error)?;
    cgroup.apply(&limits).map_err(create_error)?;
    let made = make(cell, unit, &id, image, &prepared, &cgroup, limits)?;
    let log = log_file(cell, unit, attempt)?;
    note(cell, unit, attempt, &id, image_id)?;
    cell.node.images.hold(&id.0, &image.id).map_err(create_error)?;
    let message = "Container created";
    cell.node.events.normal(Subject::container(&cell.id, unit), "Created", message);
    let spec = ContainerSpec {
        id: id.0.clone(),
        plan: made.plan,
        cgroup: made.base.cgroup.clone(),
        log: Some(LogSpec {
            path: log,
            max_size: cell.node.config.log_max_size,
            max_files: cell.node.config.log_max_files,
        }),
        stdin: unit.spec.stdin.unwrap_or(false),
        stdin_once: unit.spec.stdin_once.unwrap_or(false),
        tty: unit.spec.tty.unwrap_or(false),
    };
    match supervisor.run(spec) {
        Ok(record) => {
            for notice in &record.notices {
                tracing::debug!(pod = %cell.id, container = unit.name, notice, "does without");
            }
            let base = Base { pid: record.pid, ..made.base };
            record::save_base(&cell.folders.run, &id, &base)
                .map_err(|e| io_error("write", &cell.folders.run, &e))?;
            let at = record.started_at.map_or_else(Timestamp::now, exits::timestamp);
            Ok((id, at))
        }
        Err(e) => {
            let _ = cgroup.delete(std::time::Duration::from_secs(1));
            Err(Failed::Start(Some(id), start_message(&e)))
        }
    }
}

fn start_message(e: &supervisor::Error) -> String {
    match e {
        supervisor::Error::Refused(Refusal::Start(failure)) => failure.message.clone(),
        other => chain(other),
    }
}

struct Made {
    plan: pith_container::plan::Plan,
    base: Base,
}

fn make(
    cell: &PodCell,
    unit: &Unit,
    id: &ContainerId,
    image: &Image,
    prepared: &Prepared,
    cgroup: &Cgroup,
    limits: oci_spec::runtime::LinuxResources,
) -> Result<Made, Failed> {
    let desired = cell.desired();
    let pod = desired.spec();
    let run = &cell.folders.run;
    let config = image.config.config().as_ref();
    let host = if desired.host_network {
        cell.node.config.node_name.clone()
    } else {
        crate::etc::hostname(pod, &cell.id.name)
    };
    let shm = match pod.host_ipc.unwrap_or(false) {
        true => PathBuf::from("/dev/shm"),
        false => run.join("shm"),
    };
    let binds = with_own_files(cell, unit, id, &prepared.binds)?;
    let memory = u64::try_from(cell.node.size.memory).unwrap_or(0);
    let copied = cell.node.config.copy_roots;
    let spec = spec(&Input {
        container: &unit.spec,
        image: config,
        env: &prepared.env,
        security: &prepared.security,
        binds: &binds,
        hostname: &host,
        shm: &shm,
        resources: limits,
        oom_score_adj: resources::oom_score_adj(pod, &unit.spec, memory),
        own_pid_namespace: !pod.host_pid.unwrap_or(false) && !pod.share_process_namespace.unwrap_or(false),
        root: if copied { copied_root(cell, id, image)? } else { root(cell)? },
        seccomp: profile(cell, &prepared.security)?,
    })?;
    let base = Base {
        spec,
        user: prepared.security.user.clone(),
        default_seccomp: prepared.security.seccomp == Seccomp::RuntimeDefault,
        cgroup: dirs(cgroup),
        stop_signal: config.and_then(|c| c.stop_signal().clone()),
        pid: 0,
    };
    let mut options = options(cell, &base);
    options.overlay = if copied { None } else { Some(overlay(cell, id, image)?) };
    options.confine = binds.iter().filter_map(|b| Some((b.target.clone(), b.beneath.clone()?))).collect();
    let plan = compile::container(&base.spec, &options).map_err(create_error)?;
    Ok(Made { plan, base })
}

/// What compiling needs beside a container's specification, also for a process that joins it.
pub(crate) fn options(cell: &PodCell, base: &Base) -> Options {
    Options {
        overlay: None,
        cgroup: base.cgroup.clone(),
        cgroup_view: CgroupView::of(&cell.node.hierarchy),
        user: Some(base.user.clone()),
        default_seccomp: base.default_seccomp,
        confine: std::collections::BTreeMap::new(),
    }
}

/// The files of /etc and the termination message, where the pod does not mount something of its own.
fn with_own_files(
    cell: &PodCell,
    unit: &Unit,
    id: &ContainerId,
    volumes: &[Bind],
) -> Result<Vec<Bind>, Failed> {
    let etc = cell.folders.run.join("etc");
    let message = exits::prepare_message(cell, id)
        .map_err(|e| io_error("create", &exits::message_path(cell, id), &e))?;
    let target = unit.spec.termination_message_path.as_deref().filter(|p| !p.is_empty());
    let files = [
        (etc.join("hosts"), "/etc/hosts"),
        (etc.join("hostname"), "/etc/hostname"),
        (etc.join("resolv.conf"), "/etc/resolv.conf"),
        (message, target.unwrap_or("/dev/termination-log")),
    ];
    let own = files.into_iter().map(|(source, target)| Bind {
        source,
        beneath: None,
        target: PathBuf::from(target),
        read_only: false,
        propagation: "rprivate",
    });
    let own: Vec<_> = own.filter(|o| volumes.iter().all(|v| v.target != o.target)).collect();
    Ok([volumes, &own].concat())
}

/// The folder over which every container of the pod mounts its root, each in its own mount namespace.
fn root(cell: &PodCell) -> Result<PathBuf, Failed> {
    let path = cell.folders.run.join("root");
    fs::create_dir_all(&path).map_err(|e| io_error("create", &path, &e))?;
    Ok(path)
}

fn layer_dir(cell: &PodCell, id: &ContainerId) -> PathBuf {
    cell.folders.state.join("containers").join(&id.0)
}

fn overlay(cell: &PodCell, id: &ContainerId, image: &Image) -> Result<Overlay, Failed> {
    let dir = layer_dir(cell, id);
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    for path in [&upper, &work] {
        fs::create_dir_all(path).map_err(|e| io_error("create", path, &e))?;
    }
    Ok(Overlay { lower: image.lowerdirs(), upper: Some((upper, work)) })
}

/// Where the kernel has no overlayfs: the image's files once more, for this container alone.
fn copied_root(cell: &PodCell, id: &ContainerId, image: &Image) -> Result<PathBuf, Failed> {
    let root = layer_dir(cell, id).join("root");
    fs::create_dir_all(&root).map_err(|e| io_error("create", &root, &e))?;
    if let Err(error) = image.copy_to(&root) {
        let _ = fs::remove_dir_all(layer_dir(cell, id));
        return Err(create_error(error));
    }
    Ok(root)
}

fn profile(cell: &PodCell, security: &Security) -> Result<Option<oci_spec::runtime::LinuxSeccomp>, Failed> {
    let Seccomp::Localhost(file) = &security.seccomp else { return Ok(None) };
    let path = std::path::Path::new(file);
    if !volumes::atomic::is_safe(path) {
        return Err(VolumeError::Path(path.to_owned()).into());
    }
    let path = cell.node.config.state_dir.join("seccomp").join(path);
    let bytes = fs::read(&path).map_err(|e| io_error("read", &path, &e))?;
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|e| io_error("parse", &path, &e.into()))
}

fn log_file(cell: &PodCell, unit: &Unit, attempt: u32) -> Result<PathBuf, Failed> {
    let path = cell.log_path(&unit.name, attempt);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(|e| io_error("create", dir, &e))?;
    }
    // The newest and the one before it are kept, for `logs --previous`.
    if let Some(old) = attempt.checked_sub(2) {
        let _ = fs::remove_file(cell.log_path(&unit.name, old));
    }
    Ok(path)
}

/// On file before the container exists, so that a kubelet that takes over knows whose it is.
fn note(cell: &PodCell, unit: &Unit, attempt: u32, id: &ContainerId, image_id: &str) -> Result<(), Failed> {
    let image = unit.spec.image.clone().unwrap_or_default();
    let noted = cell.update_record(|r| {
        let before = r.containers.get(&unit.name);
        let last = before.and_then(|c| c.exit.clone().or(c.last.clone()));
        let mut backoff = before.map(|c| c.backoff).unwrap_or_default();
        if let Some(exit) = before.and_then(|c| c.exit.as_ref()) {
            backoff.retried(exit.finished_at, Timestamp::now());
        }
        let fresh = ContainerRecord {
            id: id.clone(),
            attempt,
            image,
            image_id: image_id.to_owned(),
            backoff,
            last,
            exit: None,
        };
        r.containers.insert(unit.name.clone(), fresh);
    });
    noted.map_err(|e| io_error("write", &cell.folders.run, &e))
}

/// The container of the attempt before has ended; its remains make room. Best effort: whatever stays goes
/// with the pod.
fn forget_previous(cell: &PodCell, unit: &Unit, supervisor: &supervisor::Supervisor) {
    let Some(id) = cell.container_id(&unit.name) else { return };
    if let Err(error) = supervisor.delete(&id.0) {
        tracing::debug!(pod = %cell.id, %error, "forgetting a container");
    }
    let _ = cell.node.images.release(&id.0);
    record::remove_base(&cell.folders.run, &id);
    let _ = fs::remove_file(exits::message_path(cell, &id));
    let _ = fs::remove_dir_all(layer_dir(cell, &id));
}

/// 64 hex digits, as other runtimes have them.
fn fresh_id() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
