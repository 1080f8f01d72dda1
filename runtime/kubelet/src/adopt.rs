//! Taking over a pod from an earlier kubelet: its record, what its supervisor did meanwhile, its exits.
//!
//! No container is touched. What the record says is running and the supervisor does not know has ended
//! unseen (ContainerStatusUnknown); with a dead supervisor everything in it has.

use jiff::Timestamp;
use pith_container::supervisor::{
    Supervisor,
    protocol::{ContainerRecord as Seen, Phase as Stage},
    records,
};

use crate::{
    actions::Adopted,
    context::{PodCell, Sandbox as Held},
    desired::{Desired, Unit},
    exits,
    observed::{Container, Exit, ExitReason, Happened, News, Observed, Phase, Running, Sandbox, Volumes},
    record::{ContainerRecord, Record},
};

pub(crate) fn adopt(cell: &PodCell, desired: &Desired) -> Option<Adopted> {
    let run = &cell.folders.run;
    if !run.is_dir() {
        return None;
    }
    let record = match Record::load(run) {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(pod = %cell.id, %error, "reading what the last kubelet left");
            Record::default()
        }
    };
    cell.set_record(record.clone());
    let supervisor = Supervisor::adopt(run).ok();
    let seen = match &supervisor {
        Some(s) => s.state().map(|s| s.containers).unwrap_or_default(),
        None => records::read(run).unwrap_or_default(),
    };
    let mut observed = Observed::new(desired.units.iter().map(|u| u.name.clone()));
    observed.start_time = desired.pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
    // Files in the volumes may be out of date: preparing them again changes only what differs.
    observed.volumes = Volumes::Absent;
    observed.sandbox = match &supervisor {
        Some(_) if record.addresses.is_empty() && !desired.host_network => Sandbox::Absent,
        Some(_) => Sandbox::Ready { addresses: record.addresses.clone() },
        None => Sandbox::Lost,
    };
    if let Some(s) = &supervisor {
        cell.set_sandbox(Some(Held { supervisor: s.clone(), addresses: record.addresses.clone() }));
    }
    for unit in &desired.units {
        if let Some(noted) = record.containers.get(&unit.name) {
            let found = seen.iter().find(|s| s.id == noted.id.0);
            let container = container(cell, unit, noted, found, supervisor.is_some());
            observed.containers.insert(unit.name.clone(), container);
        }
    }
    // A supervisor without an address is one whose pod was being set up: that is taken up again.
    let watched = matches!(observed.sandbox, Sandbox::Ready { .. });
    Some(Adopted { observed, supervisor: supervisor.filter(|_| watched) })
}

fn container(
    cell: &PodCell,
    unit: &Unit,
    noted: &ContainerRecord,
    found: Option<&Seen>,
    supervised: bool,
) -> Container {
    let phase = phase(cell, noted, found, supervised);
    let runs = matches!(phase, Phase::Running(_));
    Container {
        attempt: noted.attempt,
        restarts: noted.attempt,
        ever_created: true,
        backoff: noted.backoff,
        last: noted.last.clone(),
        // Probes tell again, soon; a pod that was ready does not lose its traffic meanwhile.
        started: runs && (!unit.has_startup_probe || was_started(cell, &unit.name)),
        once_started: runs,
        ready: runs && (!unit.has_readiness_probe || was_ready(cell, &unit.name)),
        image: noted.image.clone(),
        image_id: noted.image_id.clone(),
        phase,
        ..Container::default()
    }
}

fn phase(cell: &PodCell, noted: &ContainerRecord, found: Option<&Seen>, supervised: bool) -> Phase {
    if let Some(exit) = &noted.exit {
        return Phase::Exited(exit.clone());
    }
    match found {
        Some(seen) if seen.phase == Stage::Running && supervised => Phase::Running(Running {
            id: noted.id.clone(),
            started_at: seen.started_at.map_or_else(Timestamp::now, exits::timestamp),
            stop: None,
        }),
        Some(seen) if seen.phase == Stage::Exited && seen.failure.is_none() => {
            match exits::exited(cell, seen) {
                Some(Happened::Container { news: News::Exited { exit, .. }, .. }) => Phase::Exited(exit),
                Some(_) | None => Phase::Exited(unknown(noted)),
            }
        }
        // It never ran: the attempt starts over.
        Some(seen) if seen.phase == Stage::Exited => Phase::Waiting(None),
        Some(_) if supervised => Phase::Waiting(None),
        None if supervised => Phase::Waiting(None),
        Some(_) | None => Phase::Exited(unknown(noted)),
    }
}

fn unknown(noted: &ContainerRecord) -> Exit {
    Exit {
        id: Some(noted.id.clone()),
        code: 137,
        signal: None,
        reason: ExitReason::ContainerStatusUnknown,
        message: "The container ended while nobody watched: its supervisor is gone".to_owned(),
        started_at: None,
        finished_at: Timestamp::now(),
        announced: false,
    }
}

fn told<T>(
    cell: &PodCell,
    name: &str,
    read: impl Fn(&k8s_openapi::api::core::v1::ContainerStatus) -> T,
) -> Option<T> {
    let desired = cell.desired.borrow();
    let status = desired.pod.status.as_ref()?;
    let mut all =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    all.find(|c| c.name == name).map(read)
}

fn was_ready(cell: &PodCell, name: &str) -> bool {
    told(cell, name, |c| c.ready).unwrap_or(false)
}

fn was_started(cell: &PodCell, name: &str) -> bool {
    told(cell, name, |c| c.started == Some(true)).unwrap_or(false)
}
