//! One cgroup: the pair of a v2 directory (tracking, kill, freeze, events, eBPF) and v1 directories (limits).
//!
//! Directories of v1 controllers that few containers need (cpuset, devices, blkio, …) are made when a limit
//! first asks for them; memory, cpu and pids always. Invariant: a process of this cgroup is in every
//! directory that exists: [`Cgroup::apply`] moves the processes along when it adds one later.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::devices;
use crate::error::{Error, Result};
use crate::file;
use crate::hierarchy::{Controller, Hierarchy, Place};
use crate::limits::{self, Step, Write};

/// Every container is measured and limited by these.
const ALWAYS: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

/// What the v2 tree does without a controller: stopping a container (and killing whoever forks), counting its time.
const ALWAYS_ON_V1: [Controller; 2] = [Controller::Freezer, Controller::Cpuacct];

const DIR_MODE: Mode = Mode::from_raw_mode(0o755);

/// Moving processes along is repeated until a pass finds nobody new: a fork can race with each pass.
const MOVE_PASSES_MAX: usize = 32;

/// A cgroup by its path below the hierarchies' roots, for example `pith-x/replica-1/pod<uid>/<container>`.
/// Dropping it leaves the kernel's cgroup alone: pods outlive the process that made them.
#[derive(Clone, Debug)]
pub struct Cgroup {
    hierarchy: Arc<Hierarchy>,
    path: String,
}

/// What a process needs in order to start inside a cgroup.
#[derive(Debug)]
pub struct Join {
    /// For `clone3(CLONE_INTO_CGROUP)`: the process is born there, without a migration.
    pub v2_dir: Option<OwnedFd>,
    /// Write `0` to each, from the process itself, before it executes anything.
    pub v1_procs: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes the directories, and those above them. Existing ones are taken as they are (adoption).
    ///
    /// On this crate's reference host (hybrid, parents exist) that is 4 system calls: one mkdir for each of
    /// v2, memory, cpu and pids. On pure v2: one mkdir, and open + read + close of `cgroup.controllers`.
    /// Measured there (`cost_of_a_pod` in `tests/real.rs`): create 0.48 ms, set memory, cpu and pids limits
    /// 0.07 ms, read all figures 0.14 ms, delete 0.23 ms; moving a running process in takes 3.8 ms, most of
    /// it waiting for an RCU grace period, which is why [`Cgroup::join`] exists.
    pub fn create(hierarchy: &Arc<Hierarchy>, path: &str) -> Result<Cgroup> {
        let cgroup = Cgroup::open(hierarchy, path)?;
        if let Some(root) = hierarchy.v2_root() {
            make_dir(root, path)?;
            if ALWAYS.iter().any(|c| hierarchy.place(*c) == Some(&Place::V2)) {
                cgroup.enable_v2_controllers()?;
            }
        }
        for root in cgroup.v1_roots_of(&ALWAYS) {
            make_dir(root, path)?;
        }
        if hierarchy.v2_root().is_none() {
            for root in cgroup.v1_roots_of(&ALWAYS_ON_V1) {
                make_dir(root, path)?;
            }
        }
        Ok(cgroup)
    }

    /// A handle to a cgroup that may or may not exist; no system call.
    pub fn open(hierarchy: &Arc<Hierarchy>, path: &str) -> Result<Cgroup> {
        check_path(path)?;
        Ok(Cgroup { hierarchy: Arc::clone(hierarchy), path: path.to_owned() })
    }

    /// Its path below the roots.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn hierarchy(&self) -> &Arc<Hierarchy> {
        &self.hierarchy
    }

    /// The directory in the v2 tree: what eBPF programs attach to.
    pub fn v2_dir(&self) -> Option<PathBuf> {
        self.hierarchy.v2_root().map(|root| root.join(&self.path))
    }

    /// The directory that holds the files of `controller`.
    pub fn dir_of(&self, controller: Controller) -> Option<PathBuf> {
        match self.hierarchy.place(controller)? {
            Place::V1(root) => Some(root.join(&self.path)),
            Place::V2 => self.v2_dir(),
        }
    }

    /// Every directory of this cgroup that exists now, v2 first.
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.all_dirs().filter(|dir| dir.is_dir()).collect()
    }

    pub(crate) fn all_dirs(&self) -> impl Iterator<Item = PathBuf> {
        let v1 = self.hierarchy.v1_roots();
        self.hierarchy.v2_root().into_iter().chain(v1).map(|root| root.join(&self.path))
    }

    /// Call it after [`Cgroup::apply`], which may add v1 directories.
    pub fn join(&self) -> Result<Join> {
        let v2_dir = match self.v2_dir() {
            Some(dir) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let fd =
                    rustix::fs::open(&dir, flags, Mode::empty()).map_err(|e| Error::io("open", &dir, e))?;
                Some(fd)
            }
            None => None,
        };
        let v1_procs = self
            .hierarchy
            .v1_roots()
            .into_iter()
            .map(|root| root.join(&self.path).join("cgroup.procs"))
            .filter(|procs| procs.exists())
            .collect();
        Ok(Join { v2_dir, v1_procs })
    }

    /// Moves a running process in. Starting a process with [`Cgroup::join`] is cheaper.
    pub fn add(&self, pid: i32) -> Result<()> {
        for dir in self.dirs() {
            file::write(&dir.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// The processes directly in this cgroup.
    pub fn pids(&self) -> Result<Vec<i32>> {
        match self.all_dirs().find(|dir| dir.is_dir()) {
            Some(dir) => pids_in(&dir),
            None => Ok(Vec::new()),
        }
    }

    /// Sets the limits. Values that `resources` leaves out stay as they are.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        if resources.memory().as_ref().is_some_and(|m| m.check_before_update() == Some(true)) {
            self.refuse_limit_below_usage(resources)?;
        }
        for step in limits::plan(&self.hierarchy, resources)? {
            match step {
                Step::Write(write) => self.write(&write)?,
                Step::IfPresent(write) => match self.write(&write) {
                    Err(error) if error.is_not_found() => {}
                    result => result?,
                },
                Step::Pair(first, second) => match self.write(&first) {
                    Err(error) if is_invalid(&error) => {
                        self.write(&second)?;
                        self.write(&first)?;
                    }
                    result => {
                        result?;
                        self.write(&second)?;
                    }
                },
                Step::CpuPeriod(period) => self.set_cpu_period(period)?,
                Step::SwapBeyondMemory(total) => self.set_swap_beyond_memory(total)?,
                Step::DeviceRules(rules) => self.write_device_rules(&rules)?,
                Step::DeviceProgram(rules) => self.attach_device_program(&rules)?,
            }
        }
        Ok(())
    }

    /// `cpu.max` is "QUOTA PERIOD" (Documentation/admin-guide/cgroup-v2.rst).
    fn set_cpu_period(&self, period: u64) -> Result<()> {
        let in_force = self.read_v2(Controller::Cpu, "cpu.max")?;
        let quota = in_force.split_whitespace().next().unwrap_or("max");
        let (file, value) = ("cpu.max".to_owned(), format!("{quota} {period}"));
        self.write(&Write { controller: Controller::Cpu, file, value })
    }

    fn set_swap_beyond_memory(&self, total: i64) -> Result<()> {
        let in_force = self.read_v2(Controller::Memory, "memory.max")?;
        let limit: i64 = in_force.trim().parse().map_err(|_| limits::swap_alone(total))?;
        if total < limit {
            let reason = "it counts memory and swap together: at least the memory limit in force";
            return Err(Error::BadValue { field: "memory.swap", value: total.to_string(), reason });
        }
        let (file, value) = ("memory.swap.max".to_owned(), (total - limit).to_string());
        self.write(&Write { controller: Controller::Memory, file, value })
    }

    fn read_v2(&self, controller: Controller, name: &str) -> Result<String> {
        let dir =
            self.dir_of(controller).ok_or_else(|| Error::NoController { controller, wanted: name.into() })?;
        file::read(&dir.join(name))
    }

    /// v1: a dozen rules are usual, so both files stay open meanwhile.
    fn write_device_rules(&self, rules: &devices::Rules) -> Result<()> {
        let wanted =
            || Error::NoController { controller: Controller::Devices, wanted: "device rules".into() };
        let dir = self.dir_of(Controller::Devices).ok_or_else(wanted)?;
        let (allow, deny) = (dir.join("devices.allow"), dir.join("devices.deny"));
        let allow = match file::ToWrite::open(&allow, "device rules") {
            Err(error) if error.is_not_found() && self.add_controller(Controller::Devices)? => {
                file::ToWrite::open(&allow, "device rules")?
            }
            opened => opened?,
        };
        let deny = file::ToWrite::open(&deny, "device rules")?;
        for rule in rules.iter() {
            let file = if rule.allow { &allow } else { &deny };
            file.write(&rule.to_string())?;
        }
        Ok(())
    }

    /// v2: the program stays with the cgroup; a second call exchanges it.
    pub(crate) fn attach_device_program(&self, rules: &devices::Rules) -> Result<()> {
        let wanted =
            || Error::NoController { controller: Controller::Devices, wanted: "device rules".into() };
        let dir = self.v2_dir().ok_or_else(wanted)?;
        let failed = |source: Errno| Error::Devices { path: dir.clone(), source: source.into() };
        let program = pith_sys::bpf::load_device_program(&devices::program(rules)).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let cgroup = rustix::fs::open(&dir, flags, Mode::empty()).map_err(failed)?;
        pith_sys::bpf::set_device_program(cgroup.as_fd(), &program).map_err(failed)
    }

    fn write(&self, write: &Write) -> Result<()> {
        let missing = || Error::NoController { controller: write.controller, wanted: write.file.clone() };
        let dir = self.dir_of(write.controller).ok_or_else(missing)?;
        let path = dir.join(&write.file);
        match file::write(&path, &write.value) {
            Err(error) if error.is_not_found() && self.add_controller(write.controller)? => {
                file::write(&path, &write.value)
            }
            result => result,
        }
    }

    /// Makes the directory (v1) or enables the controller (v2) that a limit turned out to need.
    /// False when it was there already, so that the file itself is what the kernel lacks.
    fn add_controller(&self, controller: Controller) -> Result<bool> {
        match self.hierarchy.place(controller) {
            Some(Place::V1(root)) => {
                let dir = root.join(&self.path);
                if dir.is_dir() {
                    return Ok(false);
                }
                if controller == Controller::Cpuset {
                    inherit_cpuset(root, &self.path)?;
                }
                make_dir(root, &self.path)?;
                self.move_into(&dir)?;
                Ok(true)
            }
            Some(Place::V2) => {
                let Some(name) = controller.v2_name() else { return Ok(false) };
                self.enable_v2(&[name])
            }
            None => Ok(false),
        }
    }

    /// Brings the processes that are already in this cgroup into a v1 directory made after them.
    fn move_into(&self, dir: &Path) -> Result<()> {
        let procs = dir.join("cgroup.procs");
        for _ in 0..MOVE_PASSES_MAX {
            let there = pids_in(dir)?;
            let missing: Vec<i32> = self.pids()?.into_iter().filter(|pid| !there.contains(pid)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            for pid in missing {
                match file::write(&procs, &pid.to_string()) {
                    // ESRCH: it ended meanwhile.
                    Err(error) if errno(&error) == Some(Errno::SRCH) => {}
                    result => result?,
                }
            }
        }
        Err(Error::io("move every process into", dir, Errno::AGAIN))
    }

    fn enable_v2_controllers(&self) -> Result<()> {
        let wanted: Vec<&str> = self.hierarchy.v2_controllers().collect();
        self.enable_v2(&wanted).map(drop)
    }

    /// Hands `controllers` down from the v2 root to this cgroup. Usually the parents were made by us and
    /// hand them down already, which one read of the leaf's `cgroup.controllers` shows.
    fn enable_v2(&self, controllers: &[&str]) -> Result<bool> {
        let Some(root) = self.hierarchy.v2_root() else { return Ok(false) };
        let offered = file::read(&root.join(&self.path).join("cgroup.controllers"))?;
        let lacking: Vec<String> = controllers
            .iter()
            .filter(|name| !offered.split_whitespace().any(|offered| offered == **name))
            .map(|name| format!("+{name}"))
            .collect();
        if lacking.is_empty() {
            return Ok(false);
        }
        let lacking = lacking.join(" ");
        let mut dir = root.to_path_buf();
        for component in self.path.split('/') {
            match file::write(&dir.join("cgroup.subtree_control"), &lacking) {
                Err(error) if errno(&error) == Some(Errno::BUSY) => {
                    return Err(Error::InternalProcesses { path: dir });
                }
                result => result?,
            }
            dir.push(component);
        }
        Ok(true)
    }

    fn refuse_limit_below_usage(&self, resources: &LinuxResources) -> Result<()> {
        let Some(limit) = resources.memory().as_ref().and_then(|m| m.limit()).filter(|&n| n > 0) else {
            return Ok(());
        };
        let usage = self.memory_usage()?;
        if u64::try_from(limit).is_ok_and(|limit| limit < usage) {
            let reason = "checkBeforeUpdate is set and more than that is in use";
            return Err(Error::BadValue { field: "memory.limit", value: limit.to_string(), reason });
        }
        Ok(())
    }

    fn v1_roots_of(&self, controllers: &[Controller]) -> Vec<&Path> {
        let mut roots: Vec<&Path> = controllers
            .iter()
            .filter_map(|controller| match self.hierarchy.place(*controller) {
                Some(Place::V1(root)) => Some(root.as_path()),
                Some(Place::V2) | None => None,
            })
            .collect();
        roots.sort_unstable();
        roots.dedup();
        roots
    }
}

/// A path below a cgroup root that can be joined and walked without surprises.
pub(crate) fn check_path(path: &str) -> Result<()> {
    let refuse = |reason| Err(Error::BadPath { path: path.to_owned(), reason });
    if path.is_empty() {
        return refuse("it is empty, which would be the root of every cgroup");
    }
    for component in path.split('/') {
        match component {
            "" => return refuse("it starts or ends with a slash, or has two in a row"),
            "." | ".." => return refuse("it has a . or .. in it"),
            // A control file's name would be taken for one: cgroup.procs, memory.max. The kernel refuses
            // some of them (cgroup_mkdir), with an error that nobody understands.
            name if name.contains(['\n', '\0']) => return refuse("it has a line break or a zero byte in it"),
            name if name.len() > 255 => return refuse("a component is longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

/// mkdir -p below `root`, cheapest for the usual case that only the last one is missing.
fn make_dir(root: &Path, path: &str) -> Result<()> {
    let dir = root.join(path);
    match rustix::fs::mkdir(&dir, DIR_MODE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT) => match path.rsplit_once('/') {
            Some((parent, _)) => {
                make_dir(root, parent)?;
                match rustix::fs::mkdir(&dir, DIR_MODE) {
                    Ok(()) | Err(Errno::EXIST) => Ok(()),
                    Err(errno) => Err(Error::io("create", &dir, errno)),
                }
            }
            None => Err(Error::io("create", &dir, Errno::NOENT)),
        },
        Err(errno) => Err(Error::io("create", &dir, errno)),
    }
}

/// A new v1 cpuset is empty and takes no process (ENOSPC) unless it copies its parent's. Our topmost cgroup
/// gets the root's values by hand and `cgroup.clone_children`, by which the kernel copies them to every
/// cgroup made below (Documentation/admin-guide/cgroup-v1/cpusets.rst).
fn inherit_cpuset(root: &Path, path: &str) -> Result<()> {
    let top_name = path.split('/').next().unwrap_or(path);
    let top = root.join(top_name);
    make_dir(root, top_name)?;
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if file::read(&top.join(name))?.trim().is_empty() {
            file::write(&top.join(name), file::read(&root.join(name))?.trim())?;
        }
    }
    file::write(&top.join("cgroup.clone_children"), "1")
}

pub(crate) fn pids_in(dir: &Path) -> Result<Vec<i32>> {
    let path = dir.join("cgroup.procs");
    let content = file::read_all(&path)?;
    content
        .lines()
        .map(|line| {
            line.parse().map_err(|_| Error::Malformed { path: path.clone(), content: line.to_owned() })
        })
        .collect()
}

pub(crate) fn errno(error: &Error) -> Option<Errno> {
    error.io_error().and_then(Errno::from_io_error)
}

fn is_invalid(error: &Error) -> bool {
    // v1 answers EINVAL for a memory limit above memory+swap and for a quota beyond its parent's; EBUSY when
    // memory+swap is lowered below what is used, which no order of writing can cure.
    errno(error) == Some(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_table() {
        let long = "x".repeat(256);
        let cases = [
            ("pith-a/replica-1/pod1/c1", true),
            ("pith-a", true),
            ("", false),
            ("/pith-a", false),
            ("pith-a/", false),
            ("pith-a//b", false),
            ("pith-a/../memory", false),
            ("./pith-a", false),
            ("pith\n-a", false),
            (long.as_str(), false),
        ];
        for (path, good) in cases {
            assert_eq!(check_path(path).is_ok(), good, "{path:?}");
        }
    }
}
