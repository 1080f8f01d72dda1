//! From an OCI runtime spec to a [`Plan`]: pure, no system call.
//!
//! The order of a container's steps, and why:
//!
//! ```text
//! 1 belong    cgroups, namespaces            while the host's paths are still visible
//! 2 make      every mount, into slots        the host's sources are still visible; nothing is attached yet
//! 3 attach    root placed, mounts, devices   targets are resolved inside the root only
//! 4 enter     hooks, pivot_root, masks       from here on no path leads to the host
//! 5 become    session, limits, user          rights are given up last, in the order that they are needed
//! 6 last      filter                         nothing is left to do that it would have to allow
//! ```
//!
//! A field of the spec that is not honoured is refused by name; none is ignored.

mod bundle;
mod defaults;
mod mount_options;
mod mounts;
mod namespaces;
mod process;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};

use crate::plan::{Enter, MAX_SLOTS, Namespace, Plan, Propagation, Slot, Stage, Step};
use crate::seccomp;
use crate::supervisor::protocol::CgroupDirs;

use namespaces::Namespaces;

pub use bundle::{Caller, hooks_of};

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

/// The plan of a container's first process, for a supervisor that does no more than launch it.
pub fn container(spec: &Spec, options: &Options) -> Result<Plan, CompileError> {
    plan(spec, options, None)
}

/// The plan of a container's first process, for a caller that stands by while it is carried out.
pub fn bundle(spec: &Spec, options: &Options, caller: &Caller) -> Result<Plan, CompileError> {
    plan(spec, options, Some(caller))
}

fn plan(spec: &Spec, options: &Options, caller: Option<&Caller>) -> Result<Plan, CompileError> {
    bundle::refuse_unsupported(spec, caller)?;
    let root = spec.root().as_ref().ok_or(CompileError::Missing { field: "root" })?;
    let linux = spec.linux().clone().unwrap_or_default();
    let namespaces = Namespaces::read(spec, caller.is_some())?;
    if caller.is_none() && spec.process().is_none() {
        return Err(CompileError::Missing { field: "process" });
    }
    let process = spec.process().as_ref();
    let mut slots = Slots::default();
    let mut plan = Plan {
        outside: vec![],
        born_in: namespaces.born_in.clone(),
        namespaces: namespaces.new.clone(),
        clocks: bundle::clocks(&linux, &namespaces)?,
        mappings: namespaces.mappings.clone(),
        cgroup: options.cgroup.unified.clone(),
        steps: belong(process, options, caller, &namespaces),
        last: vec![],
        exec: process.map_or_else(|| Ok(process::no_program()), process::exec)?,
    };
    if namespaces.has_mount() || mounts_in_the_callers_namespace(spec) {
        root_and_mounts(spec, &linux, options, caller, &namespaces, &mut slots, &mut plan)?;
    } else {
        bundle::refuse_restrictions(spec, &linux)?;
        plan.steps.push(Step::ChangeRoot { at: root.path().clone() });
    }
    if let Some(process) = process {
        plan.steps.extend(process::labels(process, &linux));
        plan.steps.push(Step::WorkingDirectory { path: process.cwd().clone() });
    }
    if root.readonly().unwrap_or(false) {
        plan.steps.push(Step::ReadOnlyRoot);
    }
    if let Some(name) = linux.rootfs_propagation().as_ref().filter(|name| !name.is_empty()) {
        let (propagation, recursive) = root_propagation(name)?;
        plan.steps.push(Step::RootPropagation { propagation, recursive });
    }
    if let Some(process) = process {
        process::become_user(process, spec, options, &mut plan)?;
    }
    Ok(plan)
}

/// Steps by which the process comes to where it belongs.
fn belong(
    process: Option<&Process>,
    options: &Options,
    caller: Option<&Caller>,
    namespaces: &Namespaces,
) -> Vec<Step> {
    let mut steps: Vec<Step> =
        options.cgroup.legacy.iter().map(|dir| Step::JoinCgroup { dir: dir.clone() }).collect();
    let mappings = namespaces.mappings.as_ref().map(|_| Step::AwaitMappings);
    // The files of an undumpable process in /proc are root's (proc(5)): an ordinary user writes its maps before.
    let (early, late) =
        if caller.is_some_and(|caller| !caller.privileged) { (mappings, None) } else { (None, mappings) };
    steps.extend(early);
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
    steps.extend(process.and_then(Process::oom_score_adj).map(|value| Step::OomScore { value }));
    steps.extend(caller.and_then(|caller| caller.keyring.clone()).map(|name| Step::SessionKeyring { name }));
    steps.extend(late);
    if namespaces.new.contains(&Namespace::Network) {
        steps.push(Step::Loopback);
    }
    steps
}

/// Steps that make the root what the spec says, and enter it.
fn root_and_mounts(
    spec: &Spec,
    linux: &Linux,
    options: &Options,
    caller: Option<&Caller>,
    namespaces: &Namespaces,
    slots: &mut Slots,
    plan: &mut Plan,
) -> Result<(), CompileError> {
    let root = spec.root().as_ref().ok_or(CompileError::Missing { field: "root" })?;
    let at = root.path().clone();
    let users = namespaces.users();
    let outside = users && caller.is_some_and(|caller| caller.privileged);
    let root_slot = slots.next()?;
    let make_root = root_step(root_slot, &at, options.overlay.as_ref(), users && !outside);
    let mut mounts = mounts::Mounts::new(options, namespaces, outside);
    mounts.make(spec, linux, slots)?;
    plan.outside.append(&mut mounts.outside);

    let steps = &mut plan.steps;
    let place = Step::PlaceRoot { slot: root_slot, at: at.clone() };
    if !namespaces.has_mount() {
        // The root covers `root.path` where its caller sees it too, and everything else is mounted on it: nothing of
        // the caller's changes, and who takes it off there takes off all.
        bundle::refuse_restrictions(spec, linux)?;
        let (attributes, propagation) = (Default::default(), Some(Propagation::Private));
        steps.extend([
            make_root,
            Step::SetAttributes { slot: root_slot, attributes, propagation, recursive: true },
        ]);
        steps.append(&mut mounts.make);
        steps.push(place);
    } else if outside {
        steps.push(Step::IsolateMounts);
        let slave = Some(Propagation::Slave);
        let attributes = Default::default();
        plan.outside.extend([
            make_root,
            Step::SetAttributes { slot: root_slot, attributes, propagation: slave, recursive: true },
        ]);
        // As long as the process still owns the folders that lead there.
        steps.extend([place, Step::NamespaceRoot]);
        steps.append(&mut mounts.make);
    } else {
        steps.extend([Step::IsolateMounts, make_root]);
        steps.extend(users.then_some(Step::NamespaceRoot));
        steps.append(&mut mounts.make);
        // Last, so that a copy of the host's tree does not have the root in it.
        steps.push(place);
    }
    steps.append(&mut mounts.attach);
    let hooks = spec.hooks().as_ref();
    for stage in [Stage::Prestart, Stage::CreateRuntime] {
        if !hooks_of(hooks, stage)?.is_empty() {
            steps.push(Step::AwaitHooks { stage });
        }
    }
    let hooks = hooks_of(hooks, Stage::CreateContainer)?;
    if !hooks.is_empty() {
        steps.push(Step::RunHooks { stage: Stage::CreateContainer, hooks });
    }
    steps.push(if namespaces.has_mount() {
        Step::EnterRoot { how: caller.map_or(Enter::Pivot, |caller| caller.enter) }
    } else {
        Step::ChangeRoot { at }
    });
    steps.extend(bundle::sysctls(linux, namespaces, caller.is_some())?);
    steps.extend(bundle::names(spec, namespaces, caller.is_some())?);
    steps.extend(match spec.process() {
        Some(process) => process::terminal(process, true)?,
        None => vec![Step::NewSession],
    });
    steps.append(&mut mounts.cover);
    Ok(())
}

/// Whether a container's mounts are made where its caller's are: it has some, and no mount namespace to have them in.
#[must_use]
pub fn mounts_in_the_callers_namespace(spec: &Spec) -> bool {
    let listed = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let own = listed.into_iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::Mount);
    !own && spec.mounts().as_ref().is_some_and(|mounts| !mounts.is_empty())
}

/// Parts of a spec that have no effect, in words: as mount(2) has it, and as people are used to.
#[must_use]
pub fn passed_over(spec: &Spec) -> Vec<String> {
    let mut words = mounts::passed_over(spec.mounts().as_deref().unwrap_or_default());
    words.extend(bundle::passed_over(spec));
    words
}

/// The plan of a process that joins a running container. `spec` is the container's own.
pub fn exec(spec: &Spec, process: &Process, options: &Options) -> Result<Plan, CompileError> {
    bundle::refuse_process(process, None)?;
    // The pid namespace is the supervisor's part: it holds for children only (setns(2)).
    let namespaces =
        vec![Namespace::Mount, Namespace::Network, Namespace::Ipc, Namespace::Uts, Namespace::Cgroup];
    join(spec, process, options, namespaces)
}

/// The plan of a process that joins these namespaces of a running container, for a caller that stands by.
pub fn exec_bundle(
    spec: &Spec,
    process: &Process,
    options: &Options,
    caller: &Caller,
    namespaces: Vec<Namespace>,
) -> Result<Plan, CompileError> {
    bundle::refuse_process(process, Some(caller))?;
    join(spec, process, options, namespaces)
}

fn join(
    spec: &Spec,
    process: &Process,
    options: &Options,
    namespaces: Vec<Namespace>,
) -> Result<Plan, CompileError> {
    let affinity = process.exec_cpu_affinity().as_ref();
    let cpus = |list: Option<&String>| -> Result<Option<Step>, CompileError> {
        list.map(|list| Ok(Step::CpuAffinity { cpus: process::cpus(list)? })).transpose()
    };
    let mut steps: Vec<Step> = Vec::new();
    steps.extend(cpus(affinity.and_then(|affinity| affinity.initial().as_ref()))?);
    steps.extend(options.cgroup.legacy.iter().map(|dir| Step::JoinCgroup { dir: dir.clone() }));
    steps.extend(cpus(affinity.and_then(|affinity| affinity.cpu_affinity_final().as_ref()))?);
    steps.extend([Step::Undumpable, Step::DieWithParent]);
    steps.extend(process.oom_score_adj().map(|value| Step::OomScore { value }));
    let changes_root = !namespaces.contains(&Namespace::Mount);
    if !namespaces.is_empty() {
        steps.push(Step::JoinTarget { namespaces });
    }
    if changes_root {
        let root = spec.root().as_ref().ok_or(CompileError::Missing { field: "root" })?;
        steps.push(Step::ChangeRoot { at: root.path().clone() });
    }
    steps.extend(process::terminal(process, false)?);
    steps.extend(process::labels(process, &Linux::default()));
    steps.push(Step::WorkingDirectory { path: process.cwd().clone() });
    let mut plan = Plan {
        outside: vec![],
        born_in: vec![],
        namespaces: vec![],
        clocks: vec![],
        mappings: None,
        cgroup: options.cgroup.unified.clone(),
        steps,
        last: vec![],
        exec: process::exec(process)?,
    };
    process::become_user(process, spec, options, &mut plan)?;
    Ok(plan)
}

fn root_step(slot: Slot, path: &Path, overlay: Option<&Overlay>, user_attributes: bool) -> Step {
    match overlay {
        Some(overlay) => {
            let (upper, work) = overlay.upper.clone().unzip();
            let (lower, at) = (overlay.lower.clone(), path.to_owned());
            Step::Overlay { slot, lower, upper, work, at, user_attributes }
        }
        None => Step::Bind {
            slot,
            source: crate::plan::Source { path: path.to_owned(), beneath: None },
            recursive: true,
        },
    }
}

fn root_propagation(name: &str) -> Result<(Propagation, bool), CompileError> {
    mount_options::propagation(name).ok_or_else(|| CompileError::Invalid {
        field: "linux.rootfsPropagation".to_owned(),
        value: name.to_owned(),
        problem: "is not a propagation",
    })
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

fn unsupported(field: impl Into<String>, reason: &'static str) -> CompileError {
    CompileError::Unsupported { field: field.into(), reason }
}

#[cfg(test)]
mod tests;
