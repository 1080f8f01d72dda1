//! The process of a container: terminal, limits, user, capabilities, filter, program.

use oci_spec::runtime::{LinuxCapabilities, Process, Spec};

use crate::plan::{Capabilities, Exec, Identity, Step, WindowSize};
use crate::seccomp;

use super::{CompileError, Options, unsupported};

/// Steps for the process's session; before it, where it has a terminal, for the terminal.
pub(super) fn terminal(process: &Process, console: bool) -> Result<Vec<Step>, CompileError> {
    if !process.terminal().unwrap_or(false) {
        return Ok(vec![Step::NewSession]);
    }
    let size = process.console_size().map(|size| {
        let clamp = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        WindowSize { rows: clamp(size.height()), columns: clamp(size.width()) }
    });
    Ok(vec![Step::NewSession, Step::Terminal { size, console }])
}

/// Steps that give rights up, in the one order in which each is still allowed.
pub(super) fn become_user(
    process: &Process,
    spec: &Spec,
    options: &Options,
) -> Result<Vec<Step>, CompileError> {
    let mut steps = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let resource = limit.typ().to_string();
        if limit.soft() > limit.hard() {
            return Err(CompileError::Invalid {
                field: "process.rlimits".to_owned(),
                value: resource,
                problem: "has a soft limit above the hard one",
            });
        }
        steps.push(Step::ResourceLimit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    let user = process.user();
    steps.push(Step::Umask { mask: user.umask().unwrap_or(0o022) });

    let groups = user.additional_gids().clone().unwrap_or_default();
    let identity = match &options.user {
        Some(name) => Identity::Named { user: name.clone(), groups },
        None => Identity::Ids { uid: user.uid(), gid: user.gid(), groups },
    };
    let become_step = Step::Become { identity, capabilities: capabilities(process.capabilities().as_ref())? };
    let filter = filter(process, spec, options)?;
    if process.no_new_privileges().unwrap_or(false) {
        steps.extend([become_step, Step::NoNewPrivileges]);
        steps.extend(filter);
    } else {
        // Loading a filter without no_new_privs needs CAP_SYS_ADMIN, which the next step drops.
        steps.extend(filter);
        steps.push(become_step);
    }
    Ok(steps)
}

fn filter(process: &Process, spec: &Spec, options: &Options) -> Result<Option<Step>, CompileError> {
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = match profile {
        Some(profile) => seccomp::compile(profile)?,
        None if options.default_seccomp => {
            let bounding = capabilities(process.capabilities().as_ref())?.bounding;
            seccomp::default_filter(bounding)
        }
        None => return Ok(None),
    };
    Ok(filter.map(|filter| Step::Seccomp { program: filter.program.to_vec(), flags: filter.flags }))
}

fn capabilities(listed: Option<&LinuxCapabilities>) -> Result<Capabilities, CompileError> {
    let Some(listed) = listed else { return Ok(Capabilities::default()) };
    let mask = |set: &Option<oci_spec::runtime::Capabilities>| -> Result<u64, CompileError> {
        set.iter().flatten().try_fold(0, |mask, capability| {
            let name = format!("CAP_{capability}");
            Ok(mask | capability_mask(&name)?)
        })
    };
    let sets = Capabilities {
        bounding: mask(listed.bounding())?,
        effective: mask(listed.effective())?,
        permitted: mask(listed.permitted())?,
        inheritable: mask(listed.inheritable())?,
        ambient: mask(listed.ambient())?,
    };
    let problem = if sets.effective & !sets.permitted != 0 {
        "has an effective capability that is not permitted"
    } else if sets.ambient & !(sets.permitted & sets.inheritable) != 0 {
        "has an ambient capability that is not permitted and inheritable"
    } else {
        return Ok(sets);
    };
    Err(CompileError::Invalid {
        field: "process.capabilities".to_owned(),
        value: format!("{listed:?}"),
        problem,
    })
}

/// The bit of a capability by name (`CAP_NET_RAW` or `NET_RAW`).
pub fn capability_mask(name: &str) -> Result<u64, CompileError> {
    let canonical = caps::to_canonical(name);
    canonical.parse::<caps::Capability>().map(|capability| capability.bitmask()).map_err(|_| {
        CompileError::Invalid {
            field: "process.capabilities".to_owned(),
            value: name.to_owned(),
            problem: "is not a capability",
        }
    })
}

pub(super) fn exec(process: &Process) -> Result<Exec, CompileError> {
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(CompileError::Missing { field: "process.args" });
    }
    let env = process.env().clone().unwrap_or_default();
    for (field, text) in
        args.iter().map(|arg| ("process.args", arg)).chain(env.iter().map(|env| ("process.env", env)))
    {
        if text.contains('\0') {
            return Err(CompileError::Invalid {
                field: field.to_owned(),
                value: text.clone(),
                problem: "contains a null byte",
            });
        }
    }
    if !process.cwd().is_absolute() {
        return Err(CompileError::Invalid {
            field: "process.cwd".to_owned(),
            value: process.cwd().display().to_string(),
            problem: "is not absolute",
        });
    }
    Ok(Exec { args, env })
}

pub(super) fn refuse_unsupported(process: &Process) -> Result<(), CompileError> {
    let named = |value: &Option<String>| value.as_ref().is_some_and(|value| !value.is_empty());
    let fields = [
        ("process.apparmorProfile", named(process.apparmor_profile())),
        ("process.selinuxLabel", named(process.selinux_label())),
        ("process.commandLine", process.command_line().is_some()),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
    ];
    match fields.into_iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(unsupported(field, "")),
        None => Ok(()),
    }
}
