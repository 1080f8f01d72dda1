//! One task owns one pod: it plans, has actions carried out, takes note of what happens, and tells the API.
//!
//! ```text
//! dispatcher ─watch: Desired─▶ ┌────────┐ ─spawn─▶ actions (start, stop, mount …) ─┐
//! supervisor ─events──────────▶ │ worker │ ─spawn─▶ probes ──────────────────────────┤ mpsc: Happened
//! ConfigMaps, Secrets ─watch──▶ └────────┘ ◀───────────────────────────────────────┘
//!                                   └──watch: PodStatus──▶ teller ──PATCH──▶ API
//! ```
//! When the kubelet stops, the worker just ends: the pod goes on without it.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    actions,
    context::PodCell,
    desired::{Desired, Role},
    objects::Subscription,
    observed::{Finalized, Happened, Observed, Sandbox},
    plan::{Action, Plan, plan},
    probes::Probes,
    status::{Facts, same_verdicts, status},
    teller::{self, Teller},
    volumes::payload,
};

/// News that wait for the worker; senders wait beyond it.
const INBOX_MAX: usize = 256;
/// A pod that comes up faster than this is told as Running at once: one request in place of two.
const QUIET: Duration = Duration::from_millis(250);

pub(crate) struct Worker {
    cell: Arc<PodCell>,
    desired: watch::Receiver<Desired>,
    observed: Observed,
    inbox: mpsc::Receiver<Happened>,
    sender: mpsc::Sender<Happened>,
    actions: JoinSet<()>,
    probes: Probes,
    teller: Teller,
    /// What this pod's volumes and environments are drawn from.
    watched: Vec<Subscription>,
    told: Option<Arc<PodStatus>>,
    born: Timestamp,
    /// The generation of the object that the volumes were last made from.
    volumes_of: Option<String>,
    stop: CancellationToken,
}

impl Worker {
    pub(crate) fn new(cell: Arc<PodCell>, stop: CancellationToken) -> Self {
        let desired = cell.desired.clone();
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let mut actions = JoinSet::new();
        let (teller, telling) = teller::teller(cell.node.client.clone(), cell.id.clone());
        actions.spawn(telling);
        let observed = Observed::new(desired.borrow().units.iter().map(|u| u.name.clone()));
        Self {
            probes: Probes::new(cell.clone(), sender.clone()),
            cell,
            desired,
            observed,
            inbox,
            sender,
            actions,
            teller,
            watched: vec![],
            told: None,
            born: Timestamp::now(),
            volumes_of: None,
            stop,
        }
    }

    /// Takes over what an earlier kubelet left, then works until the pod is gone or the kubelet stops.
    pub(crate) async fn run(mut self) {
        self.subscribe();
        let desired = self.desired.borrow().clone();
        if let Some(adopted) = actions::adopt(&self.cell, &desired).await {
            self.observed = adopted.observed;
            if let Some(supervisor) = adopted.supervisor {
                let watching = crate::sandbox::watch(self.cell.clone(), supervisor, self.sender.clone());
                self.actions.spawn(watching);
            }
        }
        loop {
            let wake = self.step();
            if self.observed.finalized == Finalized::Done {
                return;
            }
            if !self.wait(wake).await {
                return;
            }
        }
    }

    /// Plans, begins what is to be done, and tells what there is to tell; when to look again.
    fn step(&mut self) -> Option<Timestamp> {
        let now = Timestamp::now();
        let desired = self.desired.borrow().clone();
        for unit in &desired.units {
            self.observed.containers.entry(unit.name.clone()).or_default();
        }
        let Plan { actions, wake_at } = plan(&desired, &self.observed, now);
        for action in actions {
            self.observed.begin(&action, now);
            self.begin(action, &desired);
        }
        self.probes.sync(&desired, &self.observed);
        let tell_at = self.tell(&desired, now);
        [wake_at, tell_at, self.cell.renew_at()].into_iter().flatten().min()
    }

    fn begin(&mut self, action: Action, desired: &Desired) {
        let (cell, sender) = (self.cell.clone(), self.sender.clone());
        match action {
            Action::PrepareVolumes => {
                self.volumes_of = Some(volumes_key(desired));
                self.actions.spawn(actions::prepare_volumes(cell, sender));
            }
            Action::CreateSandbox => {
                self.actions.spawn(actions::create_sandbox(cell, sender));
            }
            Action::RemoveSandbox => {
                self.actions.spawn(actions::remove_sandbox(cell, sender));
            }
            Action::RemoveVolumes => {
                self.actions.spawn(actions::remove_volumes(cell, sender));
            }
            Action::Start { name, attempt } => {
                if let Some(unit) = desired.unit(&name) {
                    self.actions.spawn(crate::start::start(cell, unit.clone(), attempt, sender));
                }
            }
            Action::Stop { name, hook, why, grace } => {
                if let (Some(unit), Some(id)) = (desired.unit(&name), self.running(&name)) {
                    let stop = actions::Stopping { unit: unit.clone(), id, hook, why, grace };
                    self.actions.spawn(actions::stop(cell, stop, sender));
                }
            }
            Action::Terminate { name } => {
                if let Some(id) = self.running(&name) {
                    self.actions.spawn(async move { actions::terminate(&cell, &id).await });
                }
            }
            Action::Kill { name } => {
                if let Some(id) = self.running(&name) {
                    self.actions.spawn(async move { actions::kill(&cell, &id).await });
                }
            }
            Action::Announce { name, message } => {
                if let Some(unit) = desired.unit(&name) {
                    actions::announce(&cell, unit, &message);
                }
            }
            Action::Finalize => {
                let (teller, newest) = (self.teller.clone(), self.newest(desired, Timestamp::now()));
                self.actions.spawn(actions::finalize(cell, teller, newest, sender));
            }
            Action::BeginStopping | Action::RestartInit { .. } | Action::End(_) => {}
        }
    }

    fn running(&self, name: &str) -> Option<crate::observed::ContainerId> {
        Some(self.observed.container(name)?.running()?.id.clone())
    }

    fn newest(&self, desired: &Desired, now: Timestamp) -> PodStatus {
        let previous = self.told.as_deref();
        let facts = Facts { host_ips: self.cell.node.config.node_ips(), now, previous };
        status(desired, &self.observed, &facts)
    }

    /// Hands a changed status on. While a young pod is on its way without trouble, not yet.
    fn tell(&mut self, desired: &Desired, now: Timestamp) -> Option<Timestamp> {
        let newest = self.newest(desired, now);
        let before = self.told.as_deref().or(desired.pod.status.as_ref());
        if before == Some(&newest) && !self.is_overwritten(desired) {
            return None;
        }
        let quiet_until = self.born + QUIET;
        if self.told.is_none() && now < quiet_until && is_plain_beginning(desired, &newest) {
            return Some(quiet_until);
        }
        // A pod that was over before this kubelet saw it keeps what it was told then.
        if desired.over && self.told.is_none() && self.observed.sandbox == Sandbox::Absent {
            return None;
        }
        let newest = Arc::new(newest);
        self.cell.status.send_replace(Some(newest.clone()));
        self.teller.tell(newest.clone());
        self.told = Some(newest);
        None
    }

    /// Whether somebody else has changed a condition that is this kubelet's to tell, as the node controller
    /// does for a node that fell silent.
    fn is_overwritten(&self, desired: &Desired) -> bool {
        let (Some(told), Some(now)) = (&self.told, &desired.pod.status) else { return false };
        !same_verdicts(told, now) && self.teller.is_behind(&desired.pod, told)
    }

    /// Waits until there is something to plan for; false when the kubelet stops.
    async fn wait(&mut self, wake: Option<Timestamp>) -> bool {
        let pause = wake.map(|at| until(at, Timestamp::now()));
        // Every arm only waits for news; what it would have been told is still there the next time.
        tokio::select! {
            () = self.stop.cancelled() => return false,
            changed = self.desired.changed() => {
                // The dispatcher ends only when the kubelet stops.
                if changed.is_err() {
                    return false;
                }
                self.on_desired();
            }
            Some(happened) = self.inbox.recv() => self.note(happened),
            () = sleep(pause) => {}
            () = any_changed(&mut self.watched) => self.on_objects(),
        }
        while let Ok(happened) = self.inbox.try_recv() {
            self.note(happened);
        }
        while self.actions.try_join_next().is_some() {}
        if self.cell.renew_at().is_some_and(|at| at <= Timestamp::now()) {
            self.refresh_volumes();
        }
        true
    }

    fn note(&mut self, happened: Happened) {
        if let Happened::SandboxReady { .. } = happened
            && let Some(sandbox) = self.cell.sandbox()
        {
            let watching = crate::sandbox::watch(self.cell.clone(), sandbox.supervisor, self.sender.clone());
            self.actions.spawn(watching);
        }
        self.observed.apply(happened, Timestamp::now());
    }

    fn on_desired(&mut self) {
        self.subscribe();
        let key = volumes_key(&self.desired.borrow());
        if self.volumes_of.as_ref().is_some_and(|k| *k != key) {
            self.volumes_of = Some(key);
            self.refresh_volumes();
        }
    }

    fn on_objects(&mut self) {
        self.observed.apply(Happened::VolumesChanged, Timestamp::now());
        self.refresh_volumes();
    }

    /// Brings the files of a running pod up to date.
    fn refresh_volumes(&mut self) {
        if self.observed.volumes == crate::observed::Volumes::Ready {
            self.actions.spawn(actions::refresh_volumes(self.cell.clone()));
        }
    }

    fn subscribe(&mut self) {
        let desired = self.desired.borrow();
        let wanted = payload::references(desired.spec(), &desired.id.namespace);
        drop(desired);
        if self.cell.subscribe(&wanted) {
            self.watched = self.cell.subscriptions();
        }
    }
}

/// What the volumes of a pod are made from, beside objects of their own.
fn volumes_key(desired: &Desired) -> String {
    let meta = &desired.pod.metadata;
    format!("{:?}{:?}", meta.labels, meta.annotations)
}

/// Nothing to see yet: every container is on its way.
fn is_plain_beginning(desired: &Desired, status: &PodStatus) -> bool {
    let creating = |c: &k8s_openapi::api::core::v1::ContainerStatus| {
        let state = c.state.as_ref();
        let reason = state.and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.as_deref());
        matches!(reason, Some("ContainerCreating" | "PodInitializing"))
            || state.is_some_and(|s| s.running.is_some())
    };
    let all =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    desired.of(Role::Main).next().is_some()
        && status.phase.as_deref() == Some("Pending")
        && all.into_iter().all(creating)
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// Returns when one of the objects has changed since it was last noticed here.
async fn any_changed(subscriptions: &mut [Subscription]) {
    let mut waits: FuturesUnordered<_> = subscriptions
        .iter_mut()
        .map(|s| async {
            // An error means that the watch has ended, which it does only after its last holder.
            if s.seen.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
        .collect();
    if waits.next().await.is_none() {
        std::future::pending::<()>().await;
    }
}
