//! From an OCI runtime spec to a [`Plan`]: pure, no system call.
//!
//! The order of a container's steps, and why:
//!
//! ```text
//! 1 belong    cgroups, namespaces            while the host's paths are still visible
//! 2 make      every mount, into slots        the host's sources are still visible; nothing is attached yet
//! 3 enter     root placed, pivot_root        from here on no path leads to the host
//! 4 attach    mounts, devices, masks         targets are resolved inside the root only
//! 5 become    session, limits, user, filter  rights are given up last, in the order that they are needed
//! ```
//!
//! A field of the spec that is not honoured is refused by name; none is ignored.

mod defaults;
mod mount_options;
mod mounts;
mod process;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use crate::plan::{MAX_SLOTS, Namespace, Plan, Propagation, Slot, Step};
use crate::seccomp;
use crate::supervisor::protocol::CgroupDirs;

pub use defaults::{
    capability_names, capability_sets, default_capabilities, default_masked_paths, default_mounts,
    default_readonly_paths,
};
pub use process::capability_mask;

/// A spec cannot be carried out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("{field} is missing")]
    Missing { field: &'static str },
    #[error("{field}: {value:?} {problem}")]
    Invalid { field: String, value: String, problem: &'static str },
    #[error("{field} is not supported{reason}")]
    Unsupported { field: String, reason: &'static str },
    #[error("the container has more than {MAX_SLOTS} mounts")]
    TooManyMounts,
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
}

/// The layers of a root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Read-only layers, top first.
    pub lower: Vec<PathBuf>,
    /// Where changes go, with overlayfs's work directory beside it; without, the root is read-only.
    pub upper: Option<(PathBuf, PathBuf)>,
}

/// How `/sys/fs/cgroup` looks inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupView {
    Unified,
    /// The version 1 hierarchies to show, by their controllers: `memory`, `cpu,cpuacct`, …
    Legacy(Vec<String>),
}

impl CgroupView {
    /// As the host has it: containers read their limits where the limits are.
    #[must_use]
    pub fn of(hierarchy: &pith_cgroup::Hierarchy) -> CgroupView {
        let names: Vec<String> = hierarchy
            .v1_roots()
            .into_iter()
            .filter_map(|root| root.file_name().map(|name| name.to_string_lossy().into_owned()))
            .collect();
        if names.is_empty() { CgroupView::Unified } else { CgroupView::Legacy(names) }
    }
}

/// What the spec does not say.
#[derive(Clone, Debug)]
pub struct Options {
    /// The root from layers, mounted over `root.path` (an existing directory) inside the container's mount
    /// namespace only. Without it `root.path` is the root file system itself.
    pub overlay: Option<Overlay>,
    /// The container's own cgroup, already made and limited.
    pub cgroup: CgroupDirs,
    pub cgroup_view: CgroupView,
    /// `user[:group]` as an image configuration says it, in place of `process.user`'s numbers.
    pub user: Option<String>,
    /// Load [`seccomp::default_profile`] where the spec has no `linux.seccomp`.
    pub default_seccomp: bool,
    /// Bind mounts, by destination, whose source lies in a folder that containers can write to (the
    /// volume of a `subPath`): the way from that folder to the source is gone without following links.
    pub confine: BTreeMap<PathBuf, PathBuf>,
}

/// The plan of a container's first process.
pub fn container(spec: &Spec, options: &Options) -> Result<Plan, CompileError> {
    refuse_unsupported(spec)?;
    let root = spec.root().as_ref().ok_or(CompileError::Missing { field: "root" })?;
    let process = spec.process().as_ref().ok_or(CompileError::Missing { field: "process" })?;
    let linux = spec.linux().clone().unwrap_or_default();
    let namespaces = Namespaces::read(spec)?;
    let mut slots = Slots::default();
    let mut steps = Vec::with_capacity(64);

    steps.extend(options.cgroup.legacy.iter().map(|dir| Step::JoinCgroup { dir: dir.clone() }));
    steps.extend([Step::Undumpable, Step::DieWithParent]);
    steps.extend(
        namespaces
            .joined
            .iter()
            .map(|(namespace, path)| Step::JoinNamespace { namespace: *namespace, path: path.clone() }),
    );
    if namespaces.new_cgroup {
        steps.push(Step::NewCgroupNamespace);
    }
    steps.extend(process.oom_score_adj().map(|value| Step::OomScore { value }));

    steps.push(Step::IsolateMounts);
    let root_slot = slots.next()?;
    steps.push(root_step(root_slot, root.path(), options.overlay.as_ref()));
    let mut mounts = mounts::Mounts::new(options, namespaces.new_cgroup);
    mounts.make(spec, &linux, &mut slots)?;
    steps.append(&mut mounts.make);

    let at = root.path().clone();
    steps.extend([Step::PlaceRoot { slot: root_slot, at: at.clone() }, Step::EnterRoot { at }]);
    steps.append(&mut mounts.attach);

    if let Some(sysctls) = linux.sysctl() {
        let mut sysctls: Vec<_> = sysctls.iter().collect();
        sysctls.sort();
        steps.extend(
            sysctls.into_iter().map(|(key, value)| Step::Sysctl { key: key.clone(), value: value.clone() }),
        );
    }
    if namespaces.new.contains(&Namespace::Uts) {
        steps.extend(spec.hostname().clone().map(|name| Step::Hostname { name }));
        steps.extend(spec.domainname().clone().map(|name| Step::Domainname { name }));
    }
    steps.extend(process::terminal(process, true)?);
    steps.append(&mut mounts.cover);
    steps.push(Step::WorkingDirectory { path: process.cwd().clone() });
    if root.readonly().unwrap_or(false) {
        steps.push(Step::ReadOnlyRoot);
    }
    if let Some(name) = linux.rootfs_propagation() {
        steps.push(Step::RootPropagation { propagation: root_propagation(name)? });
    }
    steps.extend(process::become_user(process, spec, options)?);
    // Changing the user cleared the death signal (prctl(2), PR_SET_PDEATHSIG).
    steps.push(Step::DieWithParent);

    let exec = process::exec(process)?;
    Ok(Plan { namespaces: namespaces.new, cgroup: options.cgroup.unified.clone(), steps, exec })
}

/// The plan of a process that joins a running container. `spec` is the container's own.
pub fn exec(spec: &Spec, process: &Process, options: &Options) -> Result<Plan, CompileError> {
    process::refuse_unsupported(process)?;
    let mut steps: Vec<Step> =
        options.cgroup.legacy.iter().map(|dir| Step::JoinCgroup { dir: dir.clone() }).collect();
    steps.extend([Step::Undumpable, Step::DieWithParent]);
    steps.extend(process.oom_score_adj().map(|value| Step::OomScore { value }));
    // The pid namespace is the supervisor's part: it holds for children only (setns(2)).
    let namespaces =
        vec![Namespace::Mount, Namespace::Network, Namespace::Ipc, Namespace::Uts, Namespace::Cgroup];
    steps.push(Step::JoinTarget { namespaces });
    steps.extend(process::terminal(process, false)?);
    steps.push(Step::WorkingDirectory { path: process.cwd().clone() });
    steps.extend(process::become_user(process, spec, options)?);
    steps.push(Step::DieWithParent);
    let exec = process::exec(process)?;
    Ok(Plan { namespaces: Vec::new(), cgroup: options.cgroup.unified.clone(), steps, exec })
}

fn root_step(slot: Slot, path: &Path, overlay: Option<&Overlay>) -> Step {
    match overlay {
        Some(overlay) => {
            let (upper, work) = overlay.upper.clone().unzip();
            Step::Overlay { slot, lower: overlay.lower.clone(), upper, work, at: path.to_owned() }
        }
        None => Step::Bind {
            slot,
            source: crate::plan::Source { path: path.to_owned(), beneath: None },
            recursive: true,
        },
    }
}

fn root_propagation(name: &str) -> Result<Propagation, CompileError> {
    match name {
        "shared" | "rshared" => Ok(Propagation::Shared),
        "slave" | "rslave" => Ok(Propagation::Slave),
        "private" | "rprivate" => Ok(Propagation::Private),
        "unbindable" | "runbindable" => Ok(Propagation::Unbindable),
        _ => Err(CompileError::Invalid {
            field: "linux.rootfsPropagation".to_owned(),
            value: name.to_owned(),
            problem: "is not a propagation",
        }),
    }
}

/// Hands out slots.
#[derive(Default)]
struct Slots(u16);

impl Slots {
    fn next(&mut self) -> Result<Slot, CompileError> {
        if self.0 >= MAX_SLOTS {
            return Err(CompileError::TooManyMounts);
        }
        self.0 += 1;
        Ok(Slot(self.0 - 1))
    }
}

/// The namespaces of a spec, by how they are had.
struct Namespaces {
    /// By clone3.
    new: Vec<Namespace>,
    joined: Vec<(Namespace, PathBuf)>,
    /// By unshare, once the cgroups have been joined.
    new_cgroup: bool,
}

impl Namespaces {
    fn read(spec: &Spec) -> Result<Namespaces, CompileError> {
        let mut namespaces = Namespaces { new: vec![], joined: vec![], new_cgroup: false };
        let listed = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        for namespace in listed.into_iter().flatten() {
            let kind = kind_of(namespace.typ());
            match (kind, namespace.path()) {
                (Namespace::User | Namespace::Time, _) => {
                    return Err(unsupported(format!("linux.namespaces[{kind}]"), ""));
                }
                (Namespace::Pid | Namespace::Mount, Some(_)) => {
                    let reason = ": it is entered by the supervisor";
                    return Err(unsupported(format!("linux.namespaces[{kind}].path"), reason));
                }
                (Namespace::Cgroup, None) => namespaces.new_cgroup = true,
                (kind, None) => namespaces.new.push(kind),
                (kind, Some(path)) => namespaces.joined.push((kind, path.clone())),
            }
        }
        if !namespaces.new.contains(&Namespace::Mount) {
            // Without it the container's mounts would be the host's.
            return Err(CompileError::Missing { field: "linux.namespaces[mount]" });
        }
        namespaces.new.sort_unstable();
        if namespaces.new.windows(2).any(|pair| pair[0] == pair[1]) {
            let names: Vec<String> = namespaces.new.iter().map(ToString::to_string).collect();
            return Err(CompileError::Invalid {
                field: "linux.namespaces".to_owned(),
                value: names.join(", "),
                problem: "names a namespace twice",
            });
        }
        Ok(namespaces)
    }
}

fn kind_of(typ: LinuxNamespaceType) -> Namespace {
    match typ {
        LinuxNamespaceType::Mount => Namespace::Mount,
        LinuxNamespaceType::Cgroup => Namespace::Cgroup,
        LinuxNamespaceType::Uts => Namespace::Uts,
        LinuxNamespaceType::Ipc => Namespace::Ipc,
        LinuxNamespaceType::User => Namespace::User,
        LinuxNamespaceType::Pid => Namespace::Pid,
        LinuxNamespaceType::Network => Namespace::Network,
        LinuxNamespaceType::Time => Namespace::Time,
    }
}

fn unsupported(field: impl Into<String>, reason: &'static str) -> CompileError {
    CompileError::Unsupported { field: field.into(), reason }
}

/// Fields that mean something to other runtimes and nothing to this one.
fn refuse_unsupported(spec: &Spec) -> Result<(), CompileError> {
    let hooks = spec.hooks().as_ref().is_some_and(|hooks| *hooks != oci_spec::runtime::Hooks::default());
    let linux = spec.linux().as_ref();
    let of_linux = |set: fn(&oci_spec::runtime::Linux) -> bool| linux.is_some_and(set);
    let fields = [
        ("hooks", hooks),
        ("linux.uidMappings", of_linux(|l| l.uid_mappings().is_some())),
        ("linux.gidMappings", of_linux(|l| l.gid_mappings().is_some())),
        ("linux.mountLabel", of_linux(|l| l.mount_label().as_ref().is_some_and(|v| !v.is_empty()))),
        ("linux.intelRdt", of_linux(|l| l.intel_rdt().is_some())),
        ("linux.personality", of_linux(|l| l.personality().is_some())),
        ("linux.memoryPolicy", of_linux(|l| l.memory_policy().is_some())),
        ("linux.netDevices", of_linux(|l| l.net_devices().as_ref().is_some_and(|v| !v.is_empty()))),
        ("linux.timeOffsets", of_linux(|l| l.time_offsets().as_ref().is_some_and(|v| !v.is_empty()))),
    ];
    if let Some((field, _)) = fields.into_iter().find(|(_, present)| *present) {
        return Err(unsupported(field, ""));
    }
    spec.process().as_ref().map_or(Ok(()), process::refuse_unsupported)
}

#[cfg(test)]
mod tests;
