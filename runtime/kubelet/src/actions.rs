//! What the planner's actions do. Each runs beside the worker and tells it what came of it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use pith_container::supervisor::Supervisor;
use tokio::sync::mpsc;

use crate::{
    context::{PodCell, blocking},
    desired::{Desired, Unit},
    env::Sources,
    events::Subject,
    hooks,
    network::chain,
    observed::{ContainerId, Happened, News, Observed},
    record, sandbox,
    teller::Teller,
    volumes::{self, Places, VolumeError, payload},
};

/// How long objects may take to be seen before their absence counts.
const OBJECTS: Duration = Duration::from_secs(10);

// --- volumes

pub(crate) async fn prepare_volumes(cell: Arc<PodCell>, inbox: mpsc::Sender<Happened>) {
    let happened = match fill(&cell).await {
        Ok(()) => Happened::VolumesReady,
        Err((volume, error)) => {
            let message = match volume {
                Some(v) => format!("MountVolume.SetUp failed for volume \"{v}\" : {}", chain(&error)),
                None => chain(&error),
            };
            cell.node.events.warning(Subject::pod(&cell.id), "FailedMount", message.clone());
            Happened::VolumesFailed { message }
        }
    };
    let _ = inbox.send(happened).await;
}

/// The same for a running pod: what cannot be brought up to date stays as it is.
pub(crate) async fn refresh_volumes(cell: Arc<PodCell>) {
    if let Err((volume, error)) = fill(&cell).await {
        let volume = volume.unwrap_or_default();
        tracing::info!(pod = %cell.id, volume, error = chain(&error), "a volume stays as it is");
    }
}

async fn fill(cell: &Arc<PodCell>) -> Result<(), (Option<String>, VolumeError)> {
    let desired = cell.desired();
    let wishes = payload::tokens(desired.spec());
    let texts = {
        let mut tokens = cell.tokens.lock().await;
        let asked = tokens.ensure(&cell.node.client, &desired, &wishes, Timestamp::now());
        // Tokens and objects come from the API; neither waits for the other.
        let (asked, _seen) = tokio::join!(asked, tokio::time::timeout(OBJECTS, cell.objects_seen()));
        asked.map_err(|e| (None, e))?;
        cell.set_renew_at(tokens.renew_at());
        tokens.texts()
    };
    let mut places = Places::new();
    for volume in desired.spec().volumes.iter().flatten() {
        let (spec, namespace) = (desired.spec(), &cell.id.namespace);
        let failed = |e| (Some(volume.name.clone()), e);
        let place = volumes::place(volume, spec, namespace, &cell.folders, &cell.node.client);
        if let Some(place) = place.await.map_err(failed)? {
            places.insert(volume.name.clone(), place);
        }
    }
    let (cell, texts) = (cell.clone(), texts);
    blocking(move || feed(&cell, &desired, &texts, places)).await
}

/// Renders and writes the volumes that the API feeds.
fn feed(
    cell: &PodCell,
    desired: &Desired,
    tokens: &std::collections::BTreeMap<payload::TokenWish, String>,
    mut places: Places,
) -> Result<(), (Option<String>, VolumeError)> {
    let facts = cell.facts();
    let object = |kind, name: &str| cell.object(kind, name);
    let from =
        Sources { pod: &desired.pod, facts: &facts, node: cell.node.size, services: &[], object: &object };
    for volume in desired.spec().volumes.iter().flatten() {
        let failed = |e| (Some(volume.name.clone()), e);
        if let Some(files) = payload::payload(volume, &from, tokens).map_err(failed)? {
            let place = volumes::feed(&volume.name, &files, desired.spec(), &cell.folders).map_err(failed)?;
            places.insert(volume.name.clone(), place);
        }
    }
    cell.set_places(places);
    Ok(())
}

/// Folders go with the pod's; until then an emptyDir may still be looked at from the node.
pub(crate) async fn remove_volumes(cell: Arc<PodCell>, inbox: mpsc::Sender<Happened>) {
    cell.set_places(Places::new());
    let _ = inbox.send(Happened::VolumesRemoved).await;
}

// --- sandbox

pub(crate) async fn create_sandbox(cell: Arc<PodCell>, inbox: mpsc::Sender<Happened>) {
    let happened = match sandbox::create(&cell).await {
        Ok(addresses) => Happened::SandboxReady { addresses },
        Err(error) => {
            let message = format!("Failed to create pod sandbox: {}", chain(&error));
            cell.node.events.warning(Subject::pod(&cell.id), "FailedCreatePodSandBox", message.clone());
            Happened::SandboxFailed { message }
        }
    };
    let _ = inbox.send(happened).await;
}

pub(crate) async fn remove_sandbox(cell: Arc<PodCell>, inbox: mpsc::Sender<Happened>) {
    sandbox::remove(&cell).await;
    let _ = inbox.send(Happened::SandboxRemoved).await;
}

// --- containers

pub(crate) struct Stopping {
    pub(crate) unit: Unit,
    pub(crate) id: ContainerId,
    pub(crate) hook: bool,
    pub(crate) why: String,
    pub(crate) grace: Duration,
}

/// The preStop hook, if there is one, then the stop signal.
pub(crate) async fn stop(cell: Arc<PodCell>, stopping: Stopping, inbox: mpsc::Sender<Happened>) {
    let Stopping { unit, id, hook, why, grace } = stopping;
    let message = format!("{why} {}", unit.name);
    cell.node.events.normal(Subject::container(&cell.id, &unit), "Killing", message);
    let handler = unit.spec.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()).filter(|_| hook);
    if let Some(handler) = handler {
        let ran = hooks::run(&cell, &unit, &id, handler);
        let failure = match tokio::time::timeout(grace, ran).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("it did not end within {} seconds", grace.as_secs())),
        };
        if let Some(failure) = failure {
            let message = format!("PreStopHook failed: {failure}");
            cell.node.events.warning(Subject::container(&cell.id, &unit), "FailedPreStopHook", message);
        }
    }
    terminate(&cell, &id).await;
    let _ = inbox.send(Happened::Container { name: unit.name, news: News::HookDone { id } }).await;
}

/// Sends the signal that the image wants to be stopped by.
pub(crate) async fn terminate(cell: &Arc<PodCell>, id: &ContainerId) {
    let base = record::load_base(&cell.folders.run, id).ok().flatten();
    let signal = base.and_then(|b| b.stop_signal).and_then(|s| signal_number(&s)).unwrap_or(15);
    signal_to(cell, id, move |s, id| s.signal(id, signal)).await;
}

pub(crate) async fn kill(cell: &Arc<PodCell>, id: &ContainerId) {
    signal_to(cell, id, |s, id| s.kill_container(id)).await;
}

async fn signal_to(
    cell: &Arc<PodCell>,
    id: &ContainerId,
    send: impl FnOnce(&Supervisor, &str) -> Result<(), pith_container::supervisor::Error> + Send + 'static,
) {
    let Some(sandbox) = cell.sandbox() else { return };
    let id = id.0.clone();
    // It may have ended by itself, which is what the signal was for.
    if let Err(error) = blocking(move || send(&sandbox.supervisor, &id)).await {
        tracing::debug!(pod = %cell.id, %error, "signalling a container");
    }
}

/// `SIGTERM`, `TERM`, `SIGRTMIN+3` or a number.
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(n) = name.strip_prefix("RTMIN+") {
        return n.parse::<i32>().ok().map(|n| 34 + n).filter(|n| *n <= 64);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

pub(crate) fn announce(cell: &PodCell, unit: &Unit, message: &str) {
    let message = match message.strip_prefix("back-off ") {
        Some(rest) => {
            let (_, rest) = rest.split_once(" restarting").unwrap_or(("", rest));
            format!("Back-off restarting{rest}")
                .replace("container=", "container ")
                .replacen(" pod=", " in pod ", 1)
        }
        None => message.to_owned(),
    };
    cell.node.events.warning(Subject::container(&cell.id, unit), "BackOff", message);
}

// --- the end

/// Removes what is left of the pod on this node, tells the final status, and lets the API forget the pod.
pub(crate) async fn finalize(
    cell: Arc<PodCell>,
    teller: Teller,
    newest: PodStatus,
    inbox: mpsc::Sender<Happened>,
) {
    teller.flush(Arc::new(newest)).await;
    remove_folders(&cell).await;
    let api: Api<Pod> = Api::namespaced(cell.node.client.clone(), &cell.id.namespace);
    let how = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(cell.id.uid.to_string()), ..Preconditions::default() }),
        ..DeleteParams::default()
    };
    let happened = match api.delete(&cell.id.name, &how).await {
        Ok(_) => Happened::Finalized,
        // Gone already, or another pod has its name.
        Err(kube::Error::Api(e)) if matches!(e.code, 404 | 409) => Happened::Finalized,
        Err(error) => {
            tracing::warn!(pod = %cell.id, %error, "letting the API forget the pod");
            Happened::FinalizeFailed
        }
    };
    let _ = inbox.send(happened).await;
}

async fn remove_folders(cell: &Arc<PodCell>) {
    let (cell, ids) = (cell.clone(), cell.record().containers);
    blocking(move || {
        for container in ids.values() {
            let _ = cell.node.images.release(&container.id.0);
        }
        for dir in [&cell.folders.run, &cell.folders.state, &cell.logs] {
            match std::fs::remove_dir_all(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(pod = %cell.id, %error, dir = %dir.display(), "removing a folder");
                }
                Ok(()) | Err(_) => {}
            }
        }
    })
    .await;
}

// --- taking over

pub(crate) struct Adopted {
    pub(crate) observed: Observed,
    pub(crate) supervisor: Option<Supervisor>,
}

/// What an earlier kubelet left of this pod; `None` if nothing.
pub(crate) async fn adopt(cell: &Arc<PodCell>, desired: &Desired) -> Option<Adopted> {
    let (cell, desired) = (cell.clone(), desired.clone());
    blocking(move || crate::adopt::adopt(&cell, &desired)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        let cases = [
            ("SIGQUIT", Some(3)),
            ("TERM", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("0", None),
            ("NO", None),
        ];
        for (text, expect) in cases {
            assert_eq!(signal_number(text), expect, "{text}");
        }
    }
}
