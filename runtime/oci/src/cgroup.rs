//! A container's cgroup: where it is, which devices it may use, its limits.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use oci_spec::runtime::{
    Linux, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxResources, Spec,
};
use pith_cgroup::{Cgroup, Hierarchy, Step};
use pith_container::supervisor::protocol::CgroupDirs;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::witness::{Witness, tell};

/// How long processes may take to end once they have been killed.
const END: Duration = Duration::from_secs(10);

/// A container's cgroup, below the roots of the hierarchies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) path: String,
    /// Folders on the way to it, in any hierarchy, that were there before: they are somebody else's, and stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    found: Vec<PathBuf>,
}

/// Whether somebody has stopped whatever is in a cgroup, or comes to be in it.
fn stops(dir: &Path) -> bool {
    let reads = |name: &str, values: &[&str]| {
        std::fs::read_to_string(dir.join(name)).is_ok_and(|text| values.contains(&text.trim()))
    };
    reads("freezer.state", &["FROZEN", "FREEZING"]) || reads("cgroup.freeze", &["1"])
}

impl Place {
    /// Where the spec wants it; below the root of the hierarchies in any case.
    /// Nobody may be in it: a container ends with everybody in its cgroup.
    pub(crate) fn of(spec: &Spec, id: &str, hierarchy: &Arc<Hierarchy>) -> Result<Place> {
        let wanted = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
        let path = match wanted.filter(|path| !path.as_os_str().is_empty()) {
            None => id.to_owned(),
            Some(path) => normal(path)?,
        };
        let found: Vec<PathBuf> = ways(hierarchy, &path).filter(|dir| dir.is_dir()).collect();
        let place = Place { path, found };
        let cgroup = Cgroup::open(hierarchy, &place.path)?;
        if !place.found.is_empty() && cgroup.dirs().iter().any(|dir| place.found.contains(dir)) {
            let processes = cgroup.all_pids()?.len();
            if processes > 0 {
                return Err(Error::CgroupInUse { path: place.path, processes });
            }
            // Whoever is born there never runs, and takes no signal where version 1 holds it.
            if cgroup.dirs().iter().any(|dir| stops(dir)) {
                return Err(Error::CgroupFrozen { path: place.path });
            }
        }
        Ok(place)
    }

    pub(crate) fn open(&self) -> Result<Cgroup> {
        Ok(Cgroup::open(&hierarchy()?, &self.path)?)
    }

    /// Ends whatever runs in it, and removes it.
    pub(crate) fn remove(&self) -> Result<()> {
        let cgroup = self.open()?;
        if !self.found.is_empty() && cgroup.dirs().iter().any(|dir| self.found.contains(dir)) {
            cgroup.kill()?;
            cgroup.wait_empty(END)?;
        } else if cgroup.delete(Duration::ZERO).is_err() {
            // Removing came first: in the usual case nobody is left, and then that is all.
            cgroup.kill()?;
            cgroup.delete(END)?;
        }
        // Folders that were made on the way stay as long as others use them.
        let Some((above, _)) = self.path.rsplit_once('/') else { return Ok(()) };
        for dir in ways(cgroup.hierarchy(), above).filter(|dir| !self.found.contains(dir)) {
            let _ = std::fs::remove_dir(dir);
        }
        Ok(())
    }
}

/// A cgroup's folder and those above it, in every hierarchy, each before the ones above it.
fn ways<'a>(hierarchy: &'a Hierarchy, path: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    let roots = hierarchy.v2_root().into_iter().chain(hierarchy.v1_roots());
    roots.flat_map(move |root| {
        let names = Path::new(path).ancestors().filter(|above| !above.as_os_str().is_empty());
        names.map(|above| root.join(above)).collect::<Vec<_>>()
    })
}

fn normal(path: &Path) -> Result<String> {
    let refuse = || Error::CgroupPath { path: path.display().to_string() };
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            std::path::Component::Normal(name) => names.push(name.to_str().ok_or_else(refuse)?),
            std::path::Component::RootDir | std::path::Component::CurDir => {}
            std::path::Component::ParentDir | std::path::Component::Prefix(_) => return Err(refuse()),
        }
    }
    if names.is_empty() { Err(refuse()) } else { Ok(names.join("/")) }
}

/// The host's, found out once: it takes the kernel longer to list the mounts than to make a cgroup.
pub(crate) fn hierarchy() -> Result<Arc<Hierarchy>> {
    static FOUND: OnceLock<Arc<Hierarchy>> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(Arc::clone(found));
    }
    let found = Arc::new(Hierarchy::detect()?);
    Ok(Arc::clone(FOUND.get_or_init(|| found)))
}

/// Makes the cgroup and sets its limits.
pub(crate) fn make(
    hierarchy: &Arc<Hierarchy>,
    place: &Place,
    linux: &Linux,
    witness: &dyn Witness,
) -> Result<CgroupDirs> {
    let words = || (format!("mkdir {}", place.path), "a cgroup in every hierarchy that measures".to_owned());
    let cgroup = tell(witness, words, || Cgroup::create(hierarchy, &place.path))?;
    let mut resources = linux.resources().clone().unwrap_or_default();
    resources.set_devices(Some(device_rules(&resources)));
    let words = || (in_words(hierarchy, &resources), "what the container may use, and how much".to_owned());
    tell(witness, words, || cgroup.apply(&resources))?;
    let unified = cgroup.v2_dir();
    let legacy =
        cgroup.dirs().into_iter().filter(|dir| Some(dir) != unified.as_ref()).collect::<Vec<PathBuf>>();
    Ok(CgroupDirs { unified, legacy })
}

/// The control files that resources come to. Of the device rules only their number: there are always a dozen.
fn in_words(hierarchy: &Hierarchy, resources: &LinuxResources) -> String {
    let steps = pith_cgroup::plan(hierarchy, resources).unwrap_or_default();
    let mut writes = Vec::new();
    for step in steps {
        match step {
            Step::Write(write) | Step::IfPresent(write) => writes.push(write.to_string()),
            Step::Pair(first, second) => writes.extend([first.to_string(), second.to_string()]),
            Step::CpuPeriod(period) => writes.push(format!("cpu.max ← the quota in force, {period}")),
            Step::SwapBeyondMemory(total) => {
                writes.push(format!("memory.swap.max ← {total} less memory.max"));
            }
            Step::DeviceProgram(_) => writes.push("bpf BPF_PROG_ATTACH the device rules".to_owned()),
            Step::DeviceRules(rules) => {
                writes.push(format!("devices.allow, devices.deny ← {} rules", rules.iter().count()));
            }
        }
    }
    format!("write {}", writes.join(", "))
}

pub(crate) fn is_frozen(place: &Place) -> bool {
    place.open().and_then(|cgroup| Ok(cgroup.is_frozen()?)).unwrap_or(false)
}

/// The spec's rules, after which the devices that every container has are allowed. Without any, nothing else is.
fn device_rules(resources: &LinuxResources) -> Vec<LinuxDeviceCgroup> {
    let rule = |allow, typ, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).typ(typ).access(access);
        if let Some(major) = major {
            rule = rule.major(major);
        }
        if let Some(minor) = minor {
            rule = rule.minor(minor);
        }
        rule.build().expect("every field is given or optional")
    };
    let mut rules = resources.devices().clone().unwrap_or_default();
    if rules.is_empty() {
        rules.push(rule(false, LinuxDeviceType::A, None, None, "rwm"));
    }
    let character = LinuxDeviceType::C;
    // What runc and crun allow beside: making any node (without using it), and these.
    rules.push(rule(true, character, None, None, "m"));
    rules.push(rule(true, LinuxDeviceType::B, None, None, "m"));
    // null, zero, full, random, urandom, tty, console, ptmx, and the container's own terminals.
    let devices = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
    rules.extend(
        devices.into_iter().map(|(major, minor)| rule(true, character, Some(major), Some(minor), "rwm")),
    );
    rules.push(rule(true, character, Some(136), None, "rwm"));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_table() {
        let cases =
            [("/a/b", Some("a/b")), ("a//b/.", Some("a/b")), ("/", None), ("/a/../b", None), ("..", None)];
        for (path, expect) in cases {
            assert_eq!(normal(Path::new(path)).ok().as_deref(), expect, "{path}");
        }
    }
}
