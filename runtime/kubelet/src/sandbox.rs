//! A pod's sandbox: folders, cgroup, supervisor, network; its events; and its end.

use std::{fs, io, net::IpAddr, os::fd::AsFd, path::Path, sync::Arc, time::Duration};

use pith_cgroup::Cgroup;
use pith_container::supervisor::{
    self, Events, Supervisor,
    protocol::{ContainerRecord, Event, Phase, SandboxSpec, SandboxState},
};
use tokio::{io::Interest, net::UnixStream, sync::mpsc};

use crate::{
    context::{PodCell, Sandbox, blocking},
    etc, exits,
    network::{NetworkError, chain},
    observed::Happened,
    record, resources,
    volumes::{self, VolumeError},
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("{operation} {path}")]
    Folder { operation: &'static str, path: String, source: io::Error },
    #[error("cgroup of the pod")]
    Cgroup(#[from] pith_cgroup::Error),
    #[error("supervisor of the pod")]
    Supervisor(#[from] supervisor::Error),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("network of the pod: {}", .0.chain())]
    Network(NetworkError),
}

/// Processes that were killed are gone once the kernel has reaped them, which takes this long at worst.
const CGROUP_DEADLINE: Duration = Duration::from_secs(5);
/// A node that has just started learns its pod range within moments.
const NETWORK_DEADLINE: Duration = Duration::from_secs(10);
/// The supervisor's own cgroup: a leaf, for v2 allows no processes beside children.
const SUPERVISOR_CGROUP: &str = "podd";

fn folder(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SandboxError {
    let path = path.display().to_string();
    move |source| SandboxError::Folder { operation, path, source }
}

/// Makes the sandbox, or finishes one that was begun. What has been made stays on failure: the next attempt
/// or the removal finds it.
pub(crate) async fn create(cell: &Arc<PodCell>) -> Result<Vec<IpAddr>, SandboxError> {
    let _permit = cell.node.starts.acquire().await.expect("the semaphore is never closed");
    let supervisor = match cell.sandbox() {
        Some(s) if !s.supervisor.has_ended() => s.supervisor,
        Some(_) | None => {
            let cell = cell.clone();
            blocking(move || spawn(&cell)).await?
        }
    };
    cell.set_sandbox(Some(Sandbox { supervisor: supervisor.clone(), addresses: vec![] }));
    let addresses = attach(cell, &supervisor).await?;
    cell.set_sandbox(Some(Sandbox { supervisor, addresses: addresses.clone() }));
    let (told, addresses_told) = (cell.clone(), addresses.clone());
    blocking(move || {
        write_etc(&told)?;
        let run = told.folders.run.clone();
        told.update_record(|r| r.addresses = addresses_told).map_err(folder("write the record in", &run))
    })
    .await?;
    Ok(addresses)
}

async fn attach(cell: &Arc<PodCell>, supervisor: &Supervisor) -> Result<Vec<IpAddr>, SandboxError> {
    if cell.desired.borrow().host_network {
        return Ok(vec![]);
    }
    let ready = cell.node.network_ready(NETWORK_DEADLINE).await;
    ready.map_err(|why| SandboxError::Network(NetworkError::new(why)))?;
    let netns = supervisor.netns()?;
    cell.node.network.attach(&cell.id, netns).await.map_err(SandboxError::Network)
}

fn spawn(cell: &PodCell) -> Result<Supervisor, SandboxError> {
    let desired = cell.desired();
    let spec = desired.spec();
    let run = &cell.folders.run;
    for dir in [run, &cell.folders.state, &cell.logs] {
        fs::create_dir_all(dir).map_err(folder("create", dir))?;
    }
    record::save_pod(run, &desired.pod).map_err(folder("write the pod in", run))?;
    let path = cell.node.cgroup(&cell.id, None)?;
    let cgroup = Cgroup::create(&cell.node.hierarchy, path.path())?;
    cgroup.apply(&resources::of_pod(spec, cell.node.config.pids_limit))?;
    let own = cell.node.cgroup(&cell.id, Some(SUPERVISOR_CGROUP))?;
    if let Some(dir) = own.v2_dir() {
        fs::create_dir_all(&dir).map_err(folder("create", &dir))?;
    }
    let sysctls = spec.security_context.as_ref().and_then(|s| s.sysctls.as_ref());
    let sandbox = SandboxSpec {
        dir: run.clone(),
        hostname: etc::hostname(spec, &desired.id.name),
        host_network: desired.host_network,
        host_ipc: spec.host_ipc.unwrap_or(false),
        host_pid: spec.host_pid.unwrap_or(false),
        share_pid: spec.share_process_namespace.unwrap_or(false),
        sysctls: sysctls.into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
        cgroup: supervisor::protocol::CgroupDirs { unified: own.v2_dir(), legacy: vec![] },
        tmpfs: volumes::memory(spec, &cell.folders)?,
    };
    let supervisor = Supervisor::spawn(&cell.node.podd, &sandbox)?;
    for notice in supervisor.notices() {
        if cell.node.is_news(notice) {
            tracing::info!(notice, "the supervisors of pods do without");
        }
    }
    Ok(supervisor)
}

/// /etc/hosts, /etc/hostname and /etc/resolv.conf of the pod, in its run folder.
fn write_etc(cell: &PodCell) -> Result<(), SandboxError> {
    let desired = cell.desired();
    let (spec, id) = (desired.spec(), &cell.id);
    let dir = cell.folders.run.join("etc");
    fs::create_dir_all(&dir).map_err(folder("create", &dir))?;
    let node = &cell.node;
    let host = match desired.host_network {
        true => node.config.node_name.clone(),
        false => etc::hostname(spec, &id.name),
    };
    let domain = &node.config.cluster_domain;
    let files = [
        ("hosts", etc::hosts(spec, &host, &id.namespace, domain, &cell.facts().pod_ips)),
        ("hostname", format!("{host}\n")),
        ("resolv.conf", etc::resolv_conf(spec, &id.namespace, &node.dns())),
    ];
    for (name, text) in files {
        let path = dir.join(name);
        fs::write(&path, text).map_err(folder("write", &path))?;
    }
    Ok(())
}

/// Ends the sandbox and everything in it: containers, supervisor, network, cgroup. Each part is tried even
/// if another failed.
pub(crate) async fn remove(cell: &Arc<PodCell>) {
    let supervisor = cell.sandbox().map(|s| s.supervisor);
    let (part, had_network) = (cell.clone(), !cell.desired.borrow().host_network);
    blocking(move || {
        if let Some(s) = &supervisor
            && let Err(error) = s.stop()
        {
            tracing::warn!(pod = %part.id, error = chain(&error), "stopping the supervisor");
        }
        if let Err(error) = remove_cgroup(&part) {
            tracing::warn!(pod = %part.id, error = chain(&error), "removing the pod's cgroup");
        }
    })
    .await;
    if had_network && let Err(error) = cell.node.network.detach(&cell.id).await {
        tracing::warn!(pod = %cell.id, error = error.chain(), "detaching the pod's network");
    }
    cell.set_sandbox(None);
    // Only a sandbox that exists has addresses; the file may be gone with its folder, which is as good.
    let _ = cell.update_record(|r| r.addresses.clear());
}

fn remove_cgroup(cell: &PodCell) -> Result<(), pith_cgroup::Error> {
    let path = cell.node.cgroup(&cell.id, None)?;
    pith_cgroup::remove_tree(&cell.node.hierarchy, path.path(), CGROUP_DEADLINE)
}

/// Tells the worker what happens in the sandbox until the supervisor has ended.
pub(crate) async fn watch(cell: Arc<PodCell>, supervisor: Supervisor, inbox: mpsc::Sender<Happened>) {
    while let Ok((state, events)) = {
        let supervisor = supervisor.clone();
        blocking(move || supervisor.subscribe()).await
    } {
        catch_up(&cell, &state, &inbox).await;
        if let Err(error) = follow(&cell, &events, &inbox).await {
            tracing::error!(%error, pod = %cell.id, "watching the supervisor");
        }
        if supervisor.has_ended() {
            break;
        }
    }
    supervisor.reap();
    // The worker has ended too if nobody listens.
    let _ = inbox.send(Happened::SandboxLost).await;
}

/// What happened before the subscription began.
async fn catch_up(cell: &Arc<PodCell>, state: &SandboxState, inbox: &mpsc::Sender<Happened>) {
    for container in &state.containers {
        report(cell, container, inbox).await;
    }
}

/// Returns when the connection ends.
async fn follow(cell: &Arc<PodCell>, events: &Events, inbox: &mpsc::Sender<Happened>) -> io::Result<()> {
    // Only waited on; packets are read by the supervisor's client, which looks before it reads.
    let socket = std::os::unix::net::UnixStream::from(events.as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let socket = UnixStream::from_std(socket)?;
    loop {
        socket.readable().await?;
        let next = socket.try_io(Interest::READABLE, || match events.next(Some(Duration::ZERO)) {
            Ok(Some(event)) => Ok(Some(event)),
            Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
            Err(_) => Ok(None),
        });
        match next {
            Ok(Some(Event::Container(container))) => report(cell, &container, inbox).await,
            Ok(Some(Event::Deleted { .. })) => {}
            Ok(None) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

async fn report(cell: &Arc<PodCell>, container: &ContainerRecord, inbox: &mpsc::Sender<Happened>) {
    match container.phase {
        Phase::Exited if container.failure.is_none() => {
            let (cell, container) = (cell.clone(), container.clone());
            if let Some(happened) = blocking(move || exits::exited(&cell, &container)).await {
                let _ = inbox.send(happened).await;
            }
        }
        // Starting tells its own story to whoever asked for it.
        Phase::Creating | Phase::Created | Phase::Running | Phase::Exited => {}
    }
}
