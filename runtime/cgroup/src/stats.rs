//! What the kernel counted for a cgroup: memory, cpu, processes, OOM kills, pressure.

use std::path::Path;

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::file::{self, keyed};
use crate::hierarchy::{Controller, Place};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub memory: Memory,
    pub cpu: Cpu,
    pub pids: Pids,
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub usage: u64,
    /// Usage without file pages that were not touched lately: what the kubelet evicts by.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    pub file: u64,
    pub limit: Option<u64>,
    pub page_faults: u64,
    pub major_page_faults: u64,
}

/// Nanoseconds since the cgroup was made; `periods` are CFS periods in which it wanted to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    pub usage_ns: u64,
    pub user_ns: u64,
    pub system_ns: u64,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// Threads count too.
    pub current: u64,
    pub limit: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Cpu,
    Memory,
    Io,
}

/// Share of time in percent in which some (or all, `full`) tasks waited for the resource
/// (Documentation/accounting/psi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    pub some: Stall,
    pub full: Stall,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total_us: u64,
}

impl Cgroup {
    /// Figures of controllers that the host lacks are zero.
    pub fn stats(&self) -> Result<Stats> {
        Ok(Stats { memory: self.memory_stats()?, cpu: self.cpu_stats()?, pids: self.pid_stats()? })
    }

    /// Processes of this cgroup that the OOM killer ended, since the cgroup was made.
    ///
    /// It only grows: whoever blames it for an exit compares with the count taken at the exit before.
    pub fn oom_kills(&self) -> Result<u64> {
        let (place, dir) = match (self.hierarchy().place(Controller::Memory), self.dir_of(Controller::Memory))
        {
            (Some(place), Some(dir)) => (place, dir),
            _ => return Ok(0),
        };
        let path = match place {
            Place::V1(_) => dir.join("memory.oom_control"),
            Place::V2 => dir.join("memory.events"),
        };
        let content = file::read(&path)?;
        // v1 has the line since Linux 4.13.
        keyed(&content, "oom_kill").ok_or(Error::Malformed { path, content })
    }

    /// Kept by the v2 tree for every cgroup, even where the controller is in v1. `None` without a v2 tree or
    /// on a kernel without PSI.
    pub fn pressure(&self, resource: Resource) -> Result<Option<Pressure>> {
        let Some(dir) = self.v2_dir() else { return Ok(None) };
        let path = dir.join(match resource {
            Resource::Cpu => "cpu.pressure",
            Resource::Memory => "memory.pressure",
            Resource::Io => "io.pressure",
        });
        match file::read(&path) {
            Ok(content) => match parse_pressure(&content) {
                Some(pressure) => Ok(Some(pressure)),
                None => Err(Error::Malformed { path, content }),
            },
            // EOPNOTSUPP: built in, switched off at boot (psi=0).
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) if crate::cgroup::errno(&error) == Some(rustix::io::Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn memory_usage(&self) -> Result<u64> {
        match (self.hierarchy().place(Controller::Memory), self.dir_of(Controller::Memory)) {
            (Some(Place::V1(_)), Some(dir)) => file::read_number(&dir.join("memory.usage_in_bytes")),
            (Some(Place::V2), Some(dir)) => file::read_number(&dir.join("memory.current")),
            _ => Ok(0),
        }
    }

    fn memory_stats(&self) -> Result<Memory> {
        let Some(dir) = self.dir_of(Controller::Memory) else { return Ok(Memory::default()) };
        let usage = self.memory_usage()?;
        let stat = file::read(&dir.join("memory.stat"))?;
        let get = |key| keyed(&stat, key).unwrap_or(0);
        // v1 counts children in the total_ lines only; v2 always.
        let (limit, inactive, rss, file, faults, major) =
            if matches!(self.hierarchy().place(Controller::Memory), Some(Place::V1(_))) {
                let keys =
                    ["total_inactive_file", "total_rss", "total_cache", "total_pgfault", "total_pgmajfault"];
                let [inactive, rss, file, faults, major] = keys.map(get);
                (file::read_limit(&dir.join("memory.limit_in_bytes"))?, inactive, rss, file, faults, major)
            } else {
                let [inactive, rss, file, faults, major] =
                    ["inactive_file", "anon", "file", "pgfault", "pgmajfault"].map(get);
                (file::read_limit(&dir.join("memory.max"))?, inactive, rss, file, faults, major)
            };
        Ok(Memory {
            usage,
            working_set: usage.saturating_sub(inactive),
            rss,
            file,
            limit,
            page_faults: faults,
            major_page_faults: major,
        })
    }

    fn cpu_stats(&self) -> Result<Cpu> {
        let mut cpu = Cpu::default();
        // The v2 core accounts cpu time without any controller, so hybrid hosts need no cpuacct directory.
        if let Some(dir) = self.v2_dir() {
            let stat = file::read(&dir.join("cpu.stat"))?;
            let ns = |key| keyed(&stat, key).unwrap_or(0).saturating_mul(1000);
            (cpu.usage_ns, cpu.user_ns, cpu.system_ns) =
                (ns("usage_usec"), ns("user_usec"), ns("system_usec"));
            cpu.throttled_ns = ns("throttled_usec");
            cpu.periods = keyed(&stat, "nr_periods").unwrap_or(0);
            cpu.throttled_periods = keyed(&stat, "nr_throttled").unwrap_or(0);
        } else if let Some(dir) = self.dir_of(Controller::Cpuacct).filter(|dir| dir.is_dir()) {
            cpu.usage_ns = file::read_number(&dir.join("cpuacct.usage"))?;
            cpu.user_ns = file::read_number(&dir.join("cpuacct.usage_user"))?;
            cpu.system_ns = file::read_number(&dir.join("cpuacct.usage_sys"))?;
        }
        if let (Some(Place::V1(_)), Some(dir)) =
            (self.hierarchy().place(Controller::Cpu), self.dir_of(Controller::Cpu))
        {
            let stat = file::read(&dir.join("cpu.stat"))?;
            cpu.periods = keyed(&stat, "nr_periods").unwrap_or(0);
            cpu.throttled_periods = keyed(&stat, "nr_throttled").unwrap_or(0);
            cpu.throttled_ns = keyed(&stat, "throttled_time").unwrap_or(0);
        }
        Ok(cpu)
    }

    fn pid_stats(&self) -> Result<Pids> {
        let Some(dir) = self.dir_of(Controller::Pids) else { return Ok(Pids::default()) };
        Ok(Pids {
            current: file::read_number(&dir.join("pids.current"))?,
            limit: file::read_limit(&dir.join("pids.max"))?,
        })
    }
}

/// Pressure of the whole machine, from `/proc/pressure`.
pub fn host_pressure(resource: Resource) -> Result<Option<Pressure>> {
    let path = Path::new(match resource {
        Resource::Cpu => "/proc/pressure/cpu",
        Resource::Memory => "/proc/pressure/memory",
        Resource::Io => "/proc/pressure/io",
    });
    match file::read(path) {
        Ok(content) => match parse_pressure(&content) {
            Some(pressure) => Ok(Some(pressure)),
            None => Err(Error::Malformed { path: path.to_path_buf(), content }),
        },
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_pressure(content: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    for line in content.lines() {
        let (kind, fields) = line.split_once(' ')?;
        let mut stall = Stall::default();
        for field in fields.split(' ') {
            let (key, value) = field.split_once('=')?;
            match key {
                "avg10" => stall.avg10 = value.parse().ok()?,
                "avg60" => stall.avg60 = value.parse().ok()?,
                "avg300" => stall.avg300 = value.parse().ok()?,
                "total" => stall.total_us = value.parse().ok()?,
                _ => {}
            }
        }
        match kind {
            "some" => pressure.some = stall,
            "full" => pressure.full = stall,
            _ => return None,
        }
    }
    Some(pressure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_table() {
        let both = "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=7\n";
        let parsed = parse_pressure(both).expect("as the kernel writes it");
        assert_eq!((parsed.some.avg10, parsed.some.total_us, parsed.full.total_us), (1.5, 42, 7));
        let only_some = "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";
        assert_eq!(parse_pressure(only_some).map(|p| (p.some.total_us, p.full.total_us)), Some((9, 0)));
        for nonsense in ["some", "some avg10", "most avg10=1", "some avg10=x"] {
            assert_eq!(parse_pressure(nonsense), None, "{nonsense:?}");
        }
    }
}
