//! What the machine is and how it is doing, from /proc and /sys.

use std::{fs, io, path::Path};

/// Facts that do not change while the kubelet runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) cpus: i64,
    /// Bytes.
    pub(crate) memory: i64,
    /// Bytes of the file system that holds the state folder.
    pub(crate) disk: u64,
    pub(crate) kernel: String,
    pub(crate) boot_id: String,
    pub(crate) machine_id: String,
    pub(crate) os_image: String,
}

impl Machine {
    pub(crate) fn read(state_dir: &Path) -> io::Result<Self> {
        let line = |path: &str| fs::read_to_string(path).map(|s| s.trim().to_owned());
        let cpus = std::thread::available_parallelism()?.get();
        let boot_id = line("/proc/sys/kernel/random/boot_id")?;
        let stat = rustix::fs::statvfs(state_dir)?;
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
        Ok(Self {
            cpus: i64::try_from(cpus).unwrap_or(i64::MAX),
            memory: meminfo("MemTotal")?,
            disk: stat.f_blocks * stat.f_frsize,
            kernel: line("/proc/sys/kernel/osrelease")?,
            machine_id: line("/etc/machine-id").unwrap_or_else(|_| boot_id.clone()),
            boot_id,
            os_image: pretty.map_or("Linux", |p| p.trim_matches('"')).to_owned(),
        })
    }
}

pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pids: bool,
}

/// The kubelet's hard thresholds: less than 100 MiB of memory, 10 % of process ids.
const MEMORY_MIN: i64 = 100 << 20;
/// Of the disk the kubelet wants 10 % free and k3s 5 %, which on a large disk calls tens of GiB too little:
/// here it is short with less than 5 % and less than this.
const DISK_MIN: u64 = 4 << 30;

pub(crate) fn pressure(state_dir: &Path) -> Pressure {
    let memory = meminfo("MemAvailable").is_ok_and(|m| m < MEMORY_MIN);
    let disk = rustix::fs::statvfs(state_dir)
        .is_ok_and(|s| is_short(s.f_bavail * s.f_frsize, s.f_blocks * s.f_frsize));
    Pressure { memory, disk, pids: pids_short().unwrap_or(false) }
}

/// Both in bytes.
fn is_short(available: u64, capacity: u64) -> bool {
    available < DISK_MIN && available < capacity / 20
}

/// The fourth field of loadavg is `runnable/all` tasks.
fn pids_short() -> Option<bool> {
    let loadavg = fs::read_to_string("/proc/loadavg").ok()?;
    let tasks: u64 = loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    let max: u64 = fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()?;
    Some(max.saturating_sub(tasks) * 10 < max)
}

/// A line of /proc/meminfo, in bytes.
fn meminfo(name: &str) -> io::Result<i64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    let kib = value.and_then(|v| v.split_whitespace().next()?.parse::<i64>().ok());
    let missing = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/meminfo has no {name}"));
    kib.map(|k| k * 1024).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_disks() {
        const GIB: u64 = 1 << 30;
        let cases = [
            ("large, tens of GiB left", 24 * GIB, 1000 * GIB, false),
            ("large, little left", 3 * GIB, 252 * GIB, true),
            ("small, half left", 3 * GIB, 6 * GIB, false),
            ("small, nothing left", 0, 6 * GIB, true),
        ];
        for (name, available, capacity, expect) in cases {
            assert_eq!(is_short(available, capacity), expect, "{name}");
        }
    }
}
