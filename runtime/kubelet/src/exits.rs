//! How a container ended: exit code, OOM, termination message.

use std::{fs, io::Read, path::Path, time::Duration};

use jiff::Timestamp;
use pith_container::supervisor::protocol::{ContainerRecord, UnixNanos};

use crate::{
    context::PodCell,
    logs,
    observed::{ContainerId, Exit, ExitReason, Happened, News},
};

/// Upstream's limits of a termination message, in bytes and (from the log) in lines.
const MESSAGE_MAX: usize = 4096;
const FALLBACK_BYTES: usize = 2048;
const FALLBACK_LINES: usize = 80;
/// Processes of a container that has ended are gone once the kernel has reaped them.
const CGROUP_DEADLINE: Duration = Duration::from_secs(5);

pub(crate) fn timestamp(at: UnixNanos) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Takes note of an exit that the supervisor reported: on file, and for the worker. `None` if it is known
/// already or of a container that has been replaced.
pub(crate) fn exited(cell: &PodCell, container: &ContainerRecord) -> Option<Happened> {
    let id = ContainerId(container.id.clone());
    let name = cell.name_of(&id)?;
    let known = cell.record().containers.get(&name).is_some_and(|c| c.exit.is_some());
    if known {
        return None;
    }
    let exit = describe(cell, &name, &id, container)?;
    let noted = cell.update_record(|r| {
        if let Some(c) = r.containers.get_mut(&name) {
            c.exit = Some(exit.clone());
        }
    });
    if let Err(error) = noted {
        tracing::warn!(pod = %cell.id, %error, "noting an exit");
    }
    Some(Happened::Container { name, news: News::Exited { id, exit } })
}

fn describe(cell: &PodCell, name: &str, id: &ContainerId, container: &ContainerRecord) -> Option<Exit> {
    let end = container.exit?;
    let oom = take_cgroup(cell, id) > 0;
    let reason = match end.code {
        0 => ExitReason::Completed,
        // The counter tells of children too; a container that ended otherwise was not what was killed.
        137 if oom => ExitReason::OOMKilled,
        _ => ExitReason::Error,
    };
    Some(Exit {
        id: Some(id.clone()),
        code: end.code,
        signal: end.signal,
        reason,
        message: message(cell, name, id, end.code),
        started_at: container.started_at.map(timestamp),
        finished_at: timestamp(end.at),
        announced: false,
    })
}

/// The OOM kills that the container's cgroup counted; the cgroup is removed, so that nobody counts twice.
fn take_cgroup(cell: &PodCell, id: &ContainerId) -> u64 {
    let Ok(cgroup) = cell.node.cgroup(&cell.id, Some(&id.0)) else { return 0 };
    let kills = cgroup.oom_kills().unwrap_or(0);
    if let Err(error) = cgroup.delete(CGROUP_DEADLINE) {
        tracing::debug!(pod = %cell.id, %error, "removing a container's cgroup");
    }
    kills
}

/// Where the container's termination message is on the node.
pub(crate) fn message_path(cell: &PodCell, id: &ContainerId) -> std::path::PathBuf {
    cell.folders.run.join("messages").join(&id.0)
}

fn message(cell: &PodCell, name: &str, id: &ContainerId, code: i32) -> String {
    let text = head(&message_path(cell, id), MESSAGE_MAX);
    let desired = cell.desired();
    let policy = desired.unit(name).and_then(|u| u.spec.termination_message_policy.clone());
    if !text.is_empty() || code == 0 || policy.as_deref() != Some("FallbackToLogsOnError") {
        return text;
    }
    let attempt = cell.record().containers.get(name).map_or(0, |c| c.attempt);
    logs::tail(&cell.log_path(name, attempt), FALLBACK_LINES, FALLBACK_BYTES)
}

/// The first bytes of a file that a container wrote: not more than asked for, whatever it made of it.
fn head(path: &Path, max: usize) -> String {
    let regular = fs::symlink_metadata(path).is_ok_and(|m| m.is_file());
    let Ok(file) = fs::File::open(path) else { return String::new() };
    let mut bytes = vec![];
    if !regular || file.take(max as u64).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Makes the file that is mounted at the container's termination message path.
pub(crate) fn prepare_message(cell: &PodCell, id: &ContainerId) -> std::io::Result<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = message_path(cell, id);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let file = fs::File::create(&path)?;
    // The container's user writes it, whoever that is.
    file.set_permissions(fs::Permissions::from_mode(0o666))?;
    Ok(path)
}
