//! What only a caller that stands by while a plan is carried out makes possible, and what is refused by name.

use oci_spec::runtime::{Hooks, Linux, Process, Spec};

use crate::plan::{Clock, Enter, Hook, Namespace, Stage, Step};

use super::namespaces::Namespaces;
use super::{CompileError, unsupported};

/// A runtime that writes identity maps, runs hooks and passes a seccomp listener on.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Name of the new session keyring; without one the caller's is kept.
    pub keyring: Option<String>,
    pub enter: Enter,
    /// It has the rights of the host's root, which the root of a new user namespace has not.
    pub privileged: bool,
    /// Which security modules the kernel has.
    pub apparmor: bool,
    pub selinux: bool,
}

/// The hooks of a stage.
pub fn hooks_of(hooks: Option<&Hooks>, stage: Stage) -> Result<Vec<Hook>, CompileError> {
    let Some(hooks) = hooks else { return Ok(Vec::new()) };
    let listed = match stage {
        Stage::Prestart => hooks.prestart(),
        Stage::CreateRuntime => hooks.create_runtime(),
        Stage::CreateContainer => hooks.create_container(),
        Stage::StartContainer => hooks.start_container(),
        Stage::Poststart => hooks.poststart(),
        Stage::Poststop => hooks.poststop(),
    };
    let invalid = |index: usize, part: &str, value: String, problem| CompileError::Invalid {
        field: format!("hooks.{stage}[{index}].{part}"),
        value,
        problem,
    };
    listed
        .iter()
        .flatten()
        .enumerate()
        .map(|(index, hook)| {
            if !hook.path().is_absolute() {
                return Err(invalid(index, "path", hook.path().display().to_string(), "is not absolute"));
            }
            let timeout_s = match hook.timeout() {
                None => None,
                Some(seconds) => match u64::try_from(seconds) {
                    Ok(seconds) if seconds > 0 => Some(seconds),
                    _ => return Err(invalid(index, "timeout", seconds.to_string(), "is not above zero")),
                },
            };
            let args = hook.args().clone().unwrap_or_default();
            Ok(Hook { path: hook.path().clone(), args, env: hook.env().clone(), timeout_s })
        })
        .collect()
}

pub(super) fn clocks(linux: &Linux, namespaces: &Namespaces) -> Result<Vec<Clock>, CompileError> {
    let offsets = linux.time_offsets().iter().flatten();
    let mut clocks = offsets
        .map(|(name, offset)| {
            if !["monotonic", "boottime"].contains(&name.as_str()) {
                return Err(CompileError::Invalid {
                    field: "linux.timeOffsets".to_owned(),
                    value: name.clone(),
                    problem: "is neither monotonic nor boottime",
                });
            }
            Ok(Clock {
                name: name.clone(),
                seconds: offset.secs().unwrap_or(0),
                nanoseconds: offset.nanosecs().unwrap_or(0),
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    clocks.sort_by(|a, b| a.name.cmp(&b.name));
    if !clocks.is_empty() && !namespaces.new.contains(&Namespace::Time) {
        return Err(unsupported("linux.timeOffsets", " without a new time namespace"));
    }
    Ok(clocks)
}

/// Kernel parameters that belong to the ipc namespace (ipc/ipc_sysctl.c), beside `fs.mqueue.*`.
const IPC_SYSCTLS: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Without a caller the namespaces are a pod's, and the spec does not name them.
pub(super) fn sysctls(
    linux: &Linux,
    namespaces: &Namespaces,
    caller: bool,
) -> Result<Vec<Step>, CompileError> {
    let Some(sysctls) = linux.sysctl() else { return Ok(Vec::new()) };
    let mut sysctls: Vec<_> = sysctls.iter().collect();
    sysctls.sort();
    sysctls
        .into_iter()
        .map(|(key, value)| {
            let dotted = if key.contains('/') { key.replace('/', ".") } else { key.clone() };
            if dotted == "kernel.hostname" && caller {
                return Err(CompileError::Invalid {
                    field: "linux.sysctl".to_owned(),
                    value: key.clone(),
                    problem: "is what the field hostname is for",
                });
            }
            let owner = if dotted.starts_with("net.") {
                Some(Namespace::Network)
            } else if IPC_SYSCTLS.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
                Some(Namespace::Ipc)
            } else if dotted == "kernel.domainname" {
                Some(Namespace::Uts)
            } else if dotted.starts_with("user.") {
                Some(Namespace::User)
            } else {
                None
            };
            if caller && owner.is_none_or(|owner| !namespaces.has(owner)) {
                return Err(CompileError::Invalid {
                    field: "linux.sysctl".to_owned(),
                    value: key.clone(),
                    problem: "is not in a separate kernel namespace",
                });
            }
            Ok(Step::Sysctl { key: key.clone(), value: value.clone() })
        })
        .collect()
}

/// The host's and the domain's name, which are the namespace's. A pod's are its supervisor's business.
pub(super) fn names(spec: &Spec, namespaces: &Namespaces, caller: bool) -> Result<Vec<Step>, CompileError> {
    let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let (hostname, domainname) = (given(spec.hostname()), given(spec.domainname()));
    if !namespaces.has(Namespace::Uts) {
        let field = match (hostname, domainname) {
            (Some(_), _) => "hostname",
            (None, Some(_)) => "domainname",
            (None, None) => return Ok(vec![]),
        };
        let reason = " without a UTS namespace of the container's own";
        return if caller { Err(unsupported(field, reason)) } else { Ok(vec![]) };
    }
    let hostname = hostname.map(|name| Step::Hostname { name });
    let domainname = domainname.map(|name| Step::Domainname { name });
    Ok(hostname.into_iter().chain(domainname).collect())
}

/// What covers parts of a root, or changes how it is mounted, takes a mount namespace, as with runc.
pub(super) fn refuse_restrictions(spec: &Spec, linux: &Linux) -> Result<(), CompileError> {
    let some = |paths: &Option<Vec<String>>| paths.as_ref().is_some_and(|paths| !paths.is_empty());
    let root = spec.root().as_ref();
    let wanted = some(linux.masked_paths())
        || some(linux.readonly_paths())
        || root.is_some_and(|root| root.readonly().unwrap_or(false))
        || linux.rootfs_propagation().as_ref().is_some_and(|name| !name.is_empty());
    if wanted { Err(CompileError::Missing { field: "linux.namespaces[mount]" }) } else { Ok(()) }
}

/// Limits that Linux no longer has (Documentation/admin-guide/cgroup-v1/memory.rst).
pub(super) fn passed_over(spec: &Spec) -> Vec<String> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let Some(memory) = resources.and_then(|resources| resources.memory().as_ref()) else { return vec![] };
    let words = |field: &str, why: &str| format!("linux.resources.memory.{field} has no effect: {why}");
    let kernel = memory.kernel().is_some_and(|limit| limit != 0);
    let flat = memory.use_hierarchy() == Some(false);
    let kernel = kernel.then(|| words("kernel", "the kernel's memory is limited with the rest"));
    let flat = flat.then(|| words("useHierarchy", "every hierarchy of memory is one"));
    kernel.into_iter().chain(flat).collect()
}

fn named(value: &Option<String>) -> bool {
    value.as_ref().is_some_and(|value| !value.is_empty())
}

pub(super) fn refuse_unsupported(spec: &Spec, caller: Option<&Caller>) -> Result<(), CompileError> {
    let hooks = spec.hooks().as_ref().is_some_and(|hooks| *hooks != Hooks::default());
    let linux = spec.linux().as_ref();
    let of_linux = |set: fn(&Linux) -> bool| linux.is_some_and(set);
    let label = of_linux(|l| named(l.mount_label()));
    let fields = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
        ("linux.intelRdt", of_linux(|l| l.intel_rdt().is_some())),
        (
            "linux.personality.flags",
            of_linux(|l| {
                let flags = l.personality().as_ref().and_then(|personality| personality.flags().as_ref());
                flags.is_some_and(|flags| !flags.is_empty())
            }),
        ),
        ("linux.netDevices", of_linux(|l| l.net_devices().as_ref().is_some_and(|v| !v.is_empty()))),
        ("hooks", hooks && caller.is_none()),
        ("linux.mountLabel", label && caller.is_none()),
    ];
    if let Some((field, _)) = fields.into_iter().find(|(_, present)| *present) {
        return Err(unsupported(field, ""));
    }
    if label && caller.is_some_and(|caller| !caller.selinux) {
        return Err(unsupported("linux.mountLabel", NO_SELINUX));
    }
    spec.process().as_ref().map_or(Ok(()), |process| refuse_process(process, caller))
}

const NO_SELINUX: &str = ": SELinux is disabled or not supported by this kernel";
const NO_APPARMOR: &str = ": apparmor is disabled or not supported by this kernel";

pub(super) fn refuse_process(process: &Process, caller: Option<&Caller>) -> Result<(), CompileError> {
    let apparmor = named(process.apparmor_profile());
    let selinux = named(process.selinux_label());
    let fields = [
        ("process.commandLine", process.command_line().is_some(), ""),
        ("process.user.username", named(process.user().username()), ""),
        ("process.apparmorProfile", apparmor && caller.is_none(), ""),
        ("process.selinuxLabel", selinux && caller.is_none(), ""),
        ("process.apparmorProfile", apparmor && caller.is_some_and(|c| !c.apparmor), NO_APPARMOR),
        ("process.selinuxLabel", selinux && caller.is_some_and(|c| !c.selinux), NO_SELINUX),
    ];
    match fields.into_iter().find(|(_, present, _)| *present) {
        Some((field, _, reason)) => Err(unsupported(field, reason)),
        None => Ok(()),
    }
}
