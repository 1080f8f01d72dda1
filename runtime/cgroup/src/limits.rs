//! OCI resources → the exact control files to write: a pure plan, which `--explain` prints and tests read.
//!
//! libcgroups is not used here: its controllers are private to its two managers, neither of which knows a
//! host with limits in v1 and processes in v2, and its v1 manager reads mountinfo (through a fresh procfs
//! mount) once for each of twelve controllers and call. What to write is a table; this is the table.
//!
//! Numbers follow the OCI runtime specification: 0 leaves a value alone, -1 lifts a limit.

use std::fmt;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxPids, LinuxResources,
    LinuxThrottleDevice,
};

use crate::devices;
use crate::error::{Error, Result};
use crate::hierarchy::{Controller, Hierarchy, Place};

/// One value for one control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub controller: Controller,
    pub file: String,
    pub value: String,
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ← {}", self.file, self.value)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Write(Write),
    /// Two values that bound one another (v1: memory ≤ memory+swap, quota within period). Which of them can
    /// go first depends on the values now in force, so the kernel decides: EINVAL means the other one first.
    Pair(Write, Write),
    /// Written only where the file exists: an extra that older kernels lack.
    IfPresent(Write),
    /// v2 keeps quota and period in one file: a period alone keeps the quota that is in force.
    CpuPeriod(u64),
    /// v2 counts swap alone: it gets what memory and swap together have beyond the memory limit in force.
    SwapBeyondMemory(i64),
    /// v1 takes one rule a write.
    DeviceRules(devices::Rules),
    /// v2 has no device controller: an eBPF program on the cgroup decides (BPF_PROG_TYPE_CGROUP_DEVICE).
    DeviceProgram(devices::Rules),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// The steps that `resources` mean on this host, in order. Errors name the first thing that cannot be had.
pub fn plan(hierarchy: &Hierarchy, resources: &LinuxResources) -> Result<Vec<Step>> {
    let mut plan = Plan { hierarchy, steps: Vec::new() };
    if let Some(memory) = resources.memory() {
        plan.memory(memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        plan.cpu(cpu)?;
        plan.cpuset(cpu)?;
    }
    if let Some(pids) = resources.pids() {
        plan.pids(pids)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        plan.hugetlb(limit)?;
    }
    if let Some(io) = resources.block_io() {
        plan.blkio(io)?;
    }
    if let Some(network) = resources.network() {
        plan.network(network)?;
    }
    for (device, limit) in resources.rdma().iter().flatten() {
        let max = |n: Option<u32>| n.map_or("max".to_owned(), |n| n.to_string());
        let value = format!(
            "{device} hca_handle={} hca_object={}",
            max(limit.hca_handles()),
            max(limit.hca_objects())
        );
        plan.version(Controller::Rdma, "an RDMA limit")?;
        plan.write(Controller::Rdma, "rdma.max", value);
    }
    if let Some(rules) = resources.devices().as_ref().filter(|rules| !rules.is_empty()) {
        plan.devices(&devices::Rules::parse(rules)?)?;
    }
    plan.unified(resources)?;
    Ok(plan.steps)
}

struct Plan<'h> {
    hierarchy: &'h Hierarchy,
    steps: Vec<Step>,
}

impl Plan<'_> {
    fn version(&self, controller: Controller, wanted: &str) -> Result<Version> {
        match self.hierarchy.place(controller) {
            Some(Place::V1(_)) => Ok(Version::V1),
            Some(Place::V2) => Ok(Version::V2),
            None => Err(Error::NoController { controller, wanted: wanted.to_owned() }),
        }
    }

    fn write(&mut self, controller: Controller, file: impl Into<String>, value: impl ToString) {
        self.steps.push(Step::Write(write(controller, file, value)));
    }

    /// Both, either or none of two values that bound one another.
    fn pair(&mut self, first: Option<Write>, second: Option<Write>) {
        match (first, second) {
            (Some(first), Some(second)) => self.steps.push(Step::Pair(first, second)),
            (one, other) => self.steps.extend(one.or(other).map(Step::Write)),
        }
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<()> {
        let set = |value: Option<i64>| value.filter(|&value| value != 0);
        let (limit, swap) = (set(memory.limit()), set(memory.swap()));
        let reservation = set(memory.reservation());
        for (field, value) in
            [("memory.limit", limit), ("memory.swap", swap), ("memory.reservation", reservation)]
        {
            if let Some(value) = value.filter(|&value| value < -1) {
                return Err(bad(field, value, "below -1 (no limit) there is nothing"));
            }
        }
        if let (Some(limit), Some(swap)) = (limit, swap)
            && limit > 0
            && swap > 0
            && swap < limit
        {
            return Err(bad(
                "memory.swap",
                swap,
                "it counts memory and swap together: at least memory.limit",
            ));
        }
        let swappiness = memory.swappiness();
        if let Some(swappiness) = swappiness.filter(|&s| s > 100) {
            return Err(bad("memory.swappiness", swappiness, "it goes from 0 to 100"));
        }
        let disable_oom_killer = memory.disable_oom_killer().unwrap_or(false);
        let kernel_tcp = set(memory.kernel_tcp());
        if [limit, swap, reservation, kernel_tcp].iter().all(Option::is_none)
            && swappiness.is_none()
            && !disable_oom_killer
        {
            return Ok(());
        }
        match self.version(Controller::Memory, "a memory limit")? {
            Version::V1 => {
                let limit = limit.map(|n| write(Controller::Memory, "memory.limit_in_bytes", n));
                let swap = swap.map(|n| write(Controller::Memory, "memory.memsw.limit_in_bytes", n));
                self.pair(limit, swap);
                if let Some(n) = reservation {
                    self.write(Controller::Memory, "memory.soft_limit_in_bytes", n);
                }
                if let Some(n) = kernel_tcp {
                    self.write(Controller::Memory, "memory.kmem.tcp.limit_in_bytes", n);
                }
                if let Some(n) = swappiness {
                    self.write(Controller::Memory, "memory.swappiness", n);
                }
                if disable_oom_killer {
                    self.write(Controller::Memory, "memory.oom_control", 1);
                }
            }
            Version::V2 => {
                for (wanted, asked) in [
                    ("memory.swappiness", swappiness.is_some()),
                    ("memory.disableOOMKiller", disable_oom_killer),
                    ("memory.kernelTCP", kernel_tcp.is_some()),
                ] {
                    if asked {
                        return Err(Error::Unsupported { wanted, reason: "cgroup v2 has no such file" });
                    }
                }
                if let Some(n) = limit {
                    self.write(Controller::Memory, "memory.max", or_max(n));
                }
                match (limit, swap) {
                    (_, None) => {}
                    (_, Some(-1)) => self.write(Controller::Memory, "memory.swap.max", "max"),
                    (Some(limit), Some(swap)) if limit > 0 => {
                        self.write(Controller::Memory, "memory.swap.max", swap - limit);
                    }
                    (None, Some(swap)) => self.steps.push(Step::SwapBeyondMemory(swap)),
                    (Some(_), Some(swap)) => return Err(swap_alone(swap)),
                }
                if let Some(n) = reservation {
                    self.write(Controller::Memory, "memory.low", or_max(n));
                }
            }
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<()> {
        let shares = cpu.shares().filter(|&n| n != 0);
        let quota = cpu.quota().filter(|&n| n != 0);
        let period = cpu.period().filter(|&n| n != 0);
        let rt_runtime = cpu.realtime_runtime().filter(|&n| n != 0);
        let rt_period = cpu.realtime_period().filter(|&n| n != 0);
        let asked = [shares.is_some(), quota.is_some(), period.is_some(), rt_runtime.is_some()];
        if !asked.contains(&true) && rt_period.is_none() && cpu.burst().is_none() && cpu.idle().is_none() {
            return Ok(());
        }
        match self.version(Controller::Cpu, "a cpu limit")? {
            Version::V1 => {
                if let Some(n) = shares {
                    self.write(Controller::Cpu, "cpu.shares", n);
                }
                let period = period.map(|n| write(Controller::Cpu, "cpu.cfs_period_us", n));
                let quota = quota.map(|n| write(Controller::Cpu, "cpu.cfs_quota_us", n.max(-1)));
                self.pair(period, quota);
                if let Some(n) = cpu.burst() {
                    self.write(Controller::Cpu, "cpu.cfs_burst_us", n);
                }
                let rt_period = rt_period.map(|n| write(Controller::Cpu, "cpu.rt_period_us", n));
                let rt_runtime = rt_runtime.map(|n| write(Controller::Cpu, "cpu.rt_runtime_us", n));
                self.pair(rt_period, rt_runtime);
            }
            Version::V2 => {
                if rt_runtime.is_some() || rt_period.is_some() {
                    let reason = "cgroup v2 does not limit realtime tasks";
                    return Err(Error::Unsupported { wanted: "cpu.realtimeRuntime", reason });
                }
                if let Some(n) = shares {
                    self.write(Controller::Cpu, "cpu.weight", weight_of_shares(n));
                }
                match (quota, period) {
                    (Some(quota), Some(period)) => {
                        self.write(Controller::Cpu, "cpu.max", format!("{} {period}", or_max(quota)));
                    }
                    (Some(quota), None) => self.write(Controller::Cpu, "cpu.max", or_max(quota)),
                    (None, Some(period)) => self.steps.push(Step::CpuPeriod(period)),
                    (None, None) => {}
                }
                if let Some(n) = cpu.burst() {
                    self.write(Controller::Cpu, "cpu.max.burst", n);
                }
            }
        }
        if let Some(n) = cpu.idle() {
            self.write(Controller::Cpu, "cpu.idle", n);
        }
        Ok(())
    }

    fn cpuset(&mut self, cpu: &LinuxCpu) -> Result<()> {
        for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                self.version(Controller::Cpuset, file)?;
                self.write(Controller::Cpuset, file, list);
            }
        }
        Ok(())
    }

    fn pids(&mut self, pids: &LinuxPids) -> Result<()> {
        self.version(Controller::Pids, "a limit of processes")?;
        let limit = if pids.limit() > 0 { pids.limit() } else { -1 };
        self.write(Controller::Pids, "pids.max", or_max(limit));
        Ok(())
    }

    /// The reservation limit (`rsvd`) stops at mmap what the plain one would answer with SIGBUS at first touch.
    fn hugetlb(&mut self, limit: &LinuxHugepageLimit) -> Result<()> {
        let size = limit.page_size();
        let plain = size.bytes().all(|b| b.is_ascii_alphanumeric()) && !size.is_empty();
        if !plain {
            return Err(bad("hugepageLimits.pageSize", size, "it is a size such as 2MB or 1GB"));
        }
        let (suffix, value) = match self.version(Controller::Hugetlb, "a limit of huge pages")? {
            Version::V1 => ("limit_in_bytes", limit.limit().to_string()),
            Version::V2 => ("max", or_max(limit.limit())),
        };
        self.write(Controller::Hugetlb, format!("hugetlb.{size}.{suffix}"), &value);
        let reserved = write(Controller::Hugetlb, format!("hugetlb.{size}.rsvd.{suffix}"), &value);
        self.steps.push(Step::IfPresent(reserved));
        Ok(())
    }

    fn blkio(&mut self, io: &LinuxBlockIo) -> Result<()> {
        let version = self.version(Controller::Blkio, "a block IO limit")?;
        if io.leaf_weight().is_some_and(|n| n != 0) {
            let reason = "the CFQ scheduler that had it left Linux in 5.0";
            return Err(Error::Unsupported { wanted: "blockIO.leafWeight", reason });
        }
        if let Some(weight) = io.weight().filter(|&n| n != 0) {
            match version {
                Version::V1 => self.write(Controller::Blkio, "blkio.bfq.weight", weight),
                Version::V2 => {
                    self.write(Controller::Blkio, "io.weight", format!("default {}", io_weight(weight)));
                }
            }
        }
        for device in io.weight_device().iter().flatten() {
            let Some(weight) = device.weight().filter(|&n| n != 0) else { continue };
            let (file, weight) = match version {
                Version::V1 => ("blkio.bfq.weight_device", u64::from(weight)),
                Version::V2 => ("io.weight", io_weight(weight)),
            };
            self.write(Controller::Blkio, file, format!("{}:{} {weight}", device.major(), device.minor()));
        }
        let throttles = [
            ("read_bps", "rbps", io.throttle_read_bps_device()),
            ("write_bps", "wbps", io.throttle_write_bps_device()),
            ("read_iops", "riops", io.throttle_read_iops_device()),
            ("write_iops", "wiops", io.throttle_write_iops_device()),
        ];
        for (v1, v2, devices) in throttles {
            for device in devices.iter().flatten() {
                self.throttle(version, v1, v2, device);
            }
        }
        Ok(())
    }

    fn throttle(&mut self, version: Version, v1: &str, v2: &str, device: &LinuxThrottleDevice) {
        let (major, minor, rate) = (device.major(), device.minor(), device.rate());
        match version {
            Version::V1 => {
                let file = format!("blkio.throttle.{v1}_device");
                self.write(Controller::Blkio, file, format!("{major}:{minor} {rate}"));
            }
            Version::V2 => {
                let rate = if rate == 0 { "max".to_owned() } else { rate.to_string() };
                self.write(Controller::Blkio, "io.max", format!("{major}:{minor} {v2}={rate}"));
            }
        }
    }

    /// v1 only: v2 leaves marking packets to eBPF.
    fn network(&mut self, network: &LinuxNetwork) -> Result<()> {
        if let Some(class) = network.class_id().filter(|&n| n != 0) {
            self.version(Controller::NetCls, "a network class")?;
            self.write(Controller::NetCls, "net_cls.classid", class);
        }
        for priority in network.priorities().iter().flatten() {
            self.version(Controller::NetPrio, "a network priority")?;
            let value = format!("{} {}", priority.name(), priority.priority());
            self.write(Controller::NetPrio, "net_prio.ifpriomap", value);
        }
        Ok(())
    }

    fn devices(&mut self, rules: &devices::Rules) -> Result<()> {
        if self.version(Controller::Devices, "device rules").is_ok() {
            self.steps.push(Step::DeviceRules(rules.clone()));
        } else if self.hierarchy.v2_root().is_some() {
            self.steps.push(Step::DeviceProgram(rules.clone()));
        } else {
            let wanted = "device rules".to_owned();
            return Err(Error::NoController { controller: Controller::Devices, wanted });
        }
        Ok(())
    }

    /// `unified` names v2 files; each must belong to a controller that is in v2 here, or to the core.
    fn unified(&mut self, resources: &LinuxResources) -> Result<()> {
        let Some(unified) = resources.unified() else { return Ok(()) };
        let mut entries: Vec<_> = unified.iter().collect();
        entries.sort_unstable();
        for (file, value) in entries {
            if file.contains('/') || !file.contains('.') {
                return Err(bad("unified", file, "a control file is named controller.name"));
            }
            let prefix = file.split('.').next().unwrap_or_default();
            let controller = Controller::ALL.into_iter().find(|c| c.v2_name() == Some(prefix));
            match controller {
                Some(controller) if self.version(controller, file)? == Version::V2 => {
                    self.write(controller, file, value);
                }
                Some(_) => {
                    let reason = "its controller is in v1 here";
                    return Err(Error::Unsupported { wanted: "a file of `unified`", reason });
                }
                None => return Err(bad("unified", file, "no v2 controller has that name")),
            }
        }
        Ok(())
    }
}

fn write(controller: Controller, file: impl Into<String>, value: impl ToString) -> Write {
    Write { controller, file: file.into(), value: value.to_string() }
}

fn bad(field: &'static str, value: impl ToString, reason: &'static str) -> Error {
    Error::BadValue { field, value: value.to_string(), reason }
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// OCI counts memory and swap together.
pub(crate) fn swap_alone(swap: i64) -> Error {
    bad("memory.swap", swap, "without memory.limit it says nothing about swap")
}

/// cpu shares (2…262144, normally 1024) → v2 weight (1…10000, normally 100), so that all three points meet:
/// `10^((l² + 125 l) / 612 − 7/34)` with `l = log2(shares)`, as runc 1.3.2, crun 1.23 and Kubernetes 1.35 do.
pub(crate) fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    // Exact: shares is below 2^18, far inside what f64 holds.
    #[expect(clippy::cast_precision_loss, reason = "shares < 2^18")]
    let l = (shares as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 ≤ 10^exponent ≤ 10000")]
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight
}

/// blkio weight (10…1000) → v2 io.weight (1…10000), linear, as every OCI runtime does.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
