//! `events`: figures of a container's cgroup, at intervals and when it runs out of memory; and `ps` and `list`.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use pith_cgroup::{Cgroup, Stats};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::state::{Folder, Status, ids};

pub(crate) fn events(folder: &Folder, once: bool, interval: Duration) -> Result<()> {
    let state = folder.load()?;
    if matches!(state.status(folder), Status::Stopped | Status::Creating) {
        return Err(Error::NotRunning);
    }
    let process = state.process.ok_or(Error::NotRunning)?;
    let place =
        state.cgroup.ok_or_else(|| Error::Usage("the container has no cgroup of its own".to_owned()))?;
    let cgroup = place.open()?;
    if once {
        return say(&json!({ "type": "stats", "id": folder.id, "data": figures(&cgroup)? }));
    }
    let pidfd = process.open()?.ok_or(Error::NotRunning)?;
    let timeout = Timespec::try_from(interval).map_err(|_| Error::Usage("invalid interval".to_owned()))?;
    let mut killed = cgroup.oom_kills()?;
    loop {
        let ended = rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
        let now = cgroup.oom_kills().unwrap_or(killed);
        if now > killed {
            killed = now;
            say(&json!({ "type": "oom", "id": folder.id }))?;
        }
        if ended.map_err(Error::kernel("poll"))? > 0 {
            return Ok(());
        }
        say(&json!({ "type": "stats", "id": folder.id, "data": figures(&cgroup)? }))?;
    }
}

fn say(line: &Value) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").map_err(Error::io("write to", "standard output"))
}

/// The part of runc's statistics that the kernel's figures here fill.
fn figures(cgroup: &Cgroup) -> Result<Value> {
    let Stats { memory, cpu, pids } = cgroup.stats()?;
    let limit = |limit: Option<u64>| limit.unwrap_or(0);
    Ok(json!({
        "cpu": {
            "usage": { "total": cpu.usage_ns, "kernel": cpu.system_ns, "user": cpu.user_ns },
            "throttling": {
                "periods": cpu.periods,
                "throttledPeriods": cpu.throttled_periods,
                "throttledTime": cpu.throttled_ns,
            },
        },
        "memory": {
            "cache": memory.file,
            "usage": { "limit": memory.limit.unwrap_or(u64::MAX), "usage": memory.usage, "failcnt": 0 },
            "raw": {
                "rss": memory.rss,
                "working_set": memory.working_set,
                "pgfault": memory.page_faults,
                "pgmajfault": memory.major_page_faults,
            },
        },
        "pids": { "current": pids.current, "limit": limit(pids.limit) },
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
    }))
}

/// `5s`, `500ms`, `1m30s`, as Go's time.ParseDuration has it.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit..];
    }
    (!total.is_zero()).then_some(total)
}

/// `ps`: the numbers of a container's processes, or what ps(1) says about them.
pub(crate) fn processes(folder: &Folder, format: &str, words: &[String]) -> Result<()> {
    let state = folder.load()?;
    let mut pids = match &state.cgroup {
        Some(place) => place.open()?.all_pids()?,
        None => state
            .process
            .filter(|process| process.is_alive())
            .map(|process| process.pid)
            .into_iter()
            .collect(),
    };
    pids.sort_unstable();
    match format {
        "json" => return say(&json!(pids)),
        "table" => {}
        other => return Err(Error::Usage(format!("invalid format option: {other}"))),
    }
    let words: Vec<&str> =
        if words.is_empty() { vec!["-ef"] } else { words.iter().map(String::as_str).collect() };
    let output = std::process::Command::new("ps").args(words).output().map_err(Error::io("start", "ps"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::Usage(format!("ps: {}: {said}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let title = lines.next().unwrap_or_default();
    let column = title.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or_else(|| Error::Usage("Couldn't find PID field in ps output".to_owned()))?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse::<i32>().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    let lines: Vec<&str> = [title].into_iter().chain(lines.filter(ours)).collect();
    writeln!(std::io::stdout(), "{}", lines.join("\n")).map_err(Error::io("write to", "standard output"))
}

/// `list`: every container below a root.
pub(crate) fn list(root: &Path, format: &str, quiet: bool) -> Result<()> {
    let mut reports = Vec::new();
    for id in ids(root)? {
        // A folder that is being deleted just now is none any more.
        let Ok(folder) = Folder::open(root, &id) else { continue };
        let Ok(Some(state)) = folder.load_if_any() else { continue };
        let status = state.status(&folder);
        let report = serde_json::to_value(state.report(status)).expect("text and numbers are valid JSON");
        reports.push(report);
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let lines = match (quiet, format) {
        (true, _) => reports.iter().map(|report| text(&report["id"])).collect(),
        (false, "json") => {
            vec![if reports.is_empty() { "null".to_owned() } else { json!(reports).to_string() }]
        }
        (false, "table") => {
            let titles = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned).to_vec();
            let row = |report: &Value| {
                ["id", "pid", "status", "bundle", "created", "owner"]
                    .iter()
                    .map(|key| text(&report[*key]))
                    .collect()
            };
            table(&[titles].into_iter().chain(reports.iter().map(row)).collect::<Vec<Vec<String>>>())
        }
        (false, other) => return Err(Error::Usage(format!("invalid format option: {other}"))),
    };
    let mut out = std::io::stdout();
    lines
        .iter()
        .try_for_each(|line| writeln!(out, "{line}"))
        .map_err(Error::io("write to", "standard output"))
}

/// Columns as wide as their widest entry and three more, at least 12: as runc's.
fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(9) + 3;
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<String>().trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_table() {
        let cases = [
            ("5s", Some(Duration::from_secs(5))),
            ("1m30s", Some(Duration::from_secs(90))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("250ms", Some(Duration::from_millis(250))),
            ("5", None),
            ("0s", None),
            ("", None),
            ("x", None),
        ];
        for (text, expect) in cases {
            assert_eq!(duration(text), expect, "{text:?}");
        }
    }
}
