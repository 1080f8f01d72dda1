//! The process of a container: terminal, limits, user, capabilities, filter, program.

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxCapabilities, LinuxMemoryPolicy, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler, Spec,
};

use crate::plan::{Capabilities, Exec, Identity, Plan, Scheduling, Step, WindowSize};
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

/// Adds the steps that give rights up, in the one order in which each is still allowed.
/// setresuid(2) and its kin leave whoever is given this number as he is: root.
const AS_IT_IS: u32 = u32::MAX;

pub(super) fn become_user(
    process: &Process,
    spec: &Spec,
    options: &Options,
    plan: &mut Plan,
) -> Result<(), CompileError> {
    let steps = &mut plan.steps;
    let mut limited = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let resource = limit.typ().to_string();
        if limited.contains(&limit.typ()) {
            return Err(CompileError::Invalid {
                field: "process.rlimits".to_owned(),
                value: resource,
                problem: "is listed twice",
            });
        }
        limited.push(limit.typ());
        if limit.soft() > limit.hard() {
            return Err(CompileError::Invalid {
                field: "process.rlimits".to_owned(),
                value: resource,
                problem: "has a soft limit above the hard one",
            });
        }
        steps.push(Step::ResourceLimit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    steps.extend(service(process, spec.linux().as_ref())?);
    let user = process.user();
    steps.push(Step::Umask { mask: user.umask().unwrap_or(0o022) });

    let groups = user.additional_gids().clone().unwrap_or_default();
    for (field, id) in [("uid", user.uid()), ("gid", user.gid())]
        .into_iter()
        .chain(groups.iter().map(|group| ("additionalGids", *group)))
    {
        if id == AS_IT_IS {
            return Err(CompileError::Invalid {
                field: format!("process.user.{field}"),
                value: id.to_string(),
                problem: "is nobody's number",
            });
        }
    }
    let identity = match &options.user {
        Some(name) => Identity::Named { user: name.clone(), groups },
        None => Identity::Ids { uid: user.uid(), gid: user.gid(), groups },
    };
    let capabilities = capabilities(process.capabilities().as_ref())?;
    let filter = filter(process, spec, options)?;
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    // The supervisor waits for a listener while the container is being created.
    let (now, last) = match filter {
        Some(Step::Seccomp { listener: true, .. }) => (filter, None),
        filter => (None, filter),
    };
    if no_new_privileges {
        steps.extend([Step::Become { identity, capabilities, filters: false }, Step::NoNewPrivileges]);
        steps.extend(now);
        plan.last.extend(last);
    } else {
        // Loading a filter without no_new_privs needs CAP_SYS_ADMIN, which becoming the user drops.
        steps.extend(now);
        steps.push(Step::Become { identity, capabilities, filters: last.is_some() });
        plan.last.extend(last.into_iter().flat_map(|filter| [filter, Step::GiveUpFilterRight]));
    }
    // Changing the user cleared the death signal (prctl(2), PR_SET_PDEATHSIG).
    steps.push(Step::DieWithParent);
    Ok(())
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
    Ok(filter.map(|filter| Step::Seccomp {
        program: filter.program.to_vec(),
        flags: filter.flags,
        listener: filter.listener,
    }))
}

fn capabilities(listed: Option<&LinuxCapabilities>) -> Result<Capabilities, CompileError> {
    let Some(listed) = listed else { return Ok(Capabilities::default()) };
    let mask = |set: &Option<oci_spec::runtime::Capabilities>| -> Result<u64, CompileError> {
        set.iter().flatten().try_fold(0, |mask, capability| {
            let name = format!("CAP_{capability}");
            Ok(mask | capability_mask(&name)?)
        })
    };
    Ok(Capabilities {
        bounding: mask(listed.bounding())?,
        effective: mask(listed.effective())?,
        permitted: mask(listed.permitted())?,
        inheritable: mask(listed.inheritable())?,
        ambient: mask(listed.ambient())?,
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

/// What stands for the program of a container that has none: it can be created, not started.
pub(super) fn no_program() -> Exec {
    Exec { args: vec![], env: vec![] }
}

/// <linux/personality.h>.
const PER_LINUX32: u64 = 8;

/// Steps for security labels, and for the ways the process is run that need rights it is about to give up.
pub(super) fn labels(process: &Process, linux: &Linux) -> Vec<Step> {
    let label = |file: &str, value: String| Step::Label { file: file.to_owned(), value };
    let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let mut steps = Vec::new();
    steps.extend(
        given(process.apparmor_profile()).map(|profile| label("apparmor/exec", format!("exec {profile}"))),
    );
    steps.extend(given(process.selinux_label()).map(|value| label("exec", value)));
    steps.extend(linux.personality().as_ref().map(|personality| Step::Personality {
        persona: match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
        },
    }));
    steps
}

/// Scheduling, io priority and where memory comes from.
fn service(process: &Process, linux: Option<&Linux>) -> Result<Vec<Step>, CompileError> {
    let mut steps = Vec::new();
    if let Some(scheduler) = process.scheduler() {
        steps.push(Step::Scheduler { scheduling: scheduling(scheduler)? });
    }
    if let Some(io) = process.io_priority() {
        let class = match io.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        let level = u32::try_from(io.priority()).ok().filter(|level| *level <= 7);
        let level = level.ok_or_else(|| CompileError::Invalid {
            field: "process.ioPriority.priority".to_owned(),
            value: io.priority().to_string(),
            problem: "is not from 0 to 7",
        })?;
        steps.push(Step::IoPriority { class, level });
    }
    if let Some(policy) = linux.and_then(|linux| linux.memory_policy().as_ref()) {
        steps.push(memory_policy(policy)?);
    }
    Ok(steps)
}

fn scheduling(scheduler: &Scheduler) -> Result<Scheduling, CompileError> {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(unsupported("process.scheduler.policy: SCHED_ISO", ": Linux reserves it, unused"));
        }
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    // SCHED_FLAG_* of <linux/sched.h>.
    let flags = scheduler.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 0x01,
                LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
                LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
            }
    });
    refuse_unfit(scheduler)?;
    let priority = scheduler.priority().unwrap_or(0);
    Ok(Scheduling {
        policy: policy as u32,
        flags,
        nice: scheduler.nice().unwrap_or(0),
        priority: u32::try_from(priority).map_err(|_| CompileError::Invalid {
            field: "process.scheduler.priority".to_owned(),
            value: priority.to_string(),
            problem: "is below zero",
        })?,
        runtime_ns: scheduler.runtime().unwrap_or(0),
        deadline_ns: scheduler.deadline().unwrap_or(0),
        period_ns: scheduler.period().unwrap_or(0),
    })
}

/// What the kernel would put right or pass over without a word: values that the policy has no use for.
fn refuse_unfit(scheduler: &Scheduler) -> Result<(), CompileError> {
    use LinuxSchedulerPolicy::{SchedBatch, SchedDeadline, SchedFifo, SchedOther, SchedRr};
    let policy = scheduler.policy();
    let (nice, priority) = (scheduler.nice().unwrap_or(0), scheduler.priority().unwrap_or(0));
    let times = [scheduler.runtime(), scheduler.deadline(), scheduler.period()];
    let time = times.into_iter().flatten().find(|time| **time != 0);
    let (part, value, problem) = if matches!(policy, SchedOther | SchedBatch) && !(-20..=19).contains(&nice) {
        ("nice", nice.to_string(), "is not from -20 to 19")
    } else if !matches!(policy, SchedFifo | SchedRr) && priority != 0 {
        ("priority", priority.to_string(), "is for SCHED_FIFO and SCHED_RR only")
    } else if let Some(time) = time.filter(|_| *policy != SchedDeadline) {
        ("runtime", time.to_string(), "is for SCHED_DEADLINE only, as deadline and period are")
    } else {
        return Ok(());
    };
    Err(CompileError::Invalid { field: format!("process.scheduler.{part}"), value, problem })
}

fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<Step, CompileError> {
    // MPOL_* of <linux/mempolicy.h>.
    let mode: u32 = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
            }
    });
    let listed = policy.nodes().as_deref().unwrap_or_default();
    let nodes = if listed.is_empty() { vec![] } else { numbers(listed, "linux.memoryPolicy.nodes")? };
    let words = nodes.iter().max().map_or(0, |last| *last as usize / 64 + 1);
    let mut bits = vec![0u64; words];
    for node in nodes {
        bits[node as usize / 64] |= 1 << (node % 64);
    }
    Ok(Step::MemoryPolicy { mode: mode | flags, nodes: bits })
}

/// A list of processors: `0-3,7`.
pub(super) fn cpus(list: &str) -> Result<Vec<u32>, CompileError> {
    numbers(list, "process.execCPUAffinity")
}

/// The highest number in a list of processors or nodes (CPU_SETSIZE, MAX_NUMNODES).
const LIST_MAX: u32 = 1023;

fn numbers(list: &str, field: &str) -> Result<Vec<u32>, CompileError> {
    let invalid = || CompileError::Invalid {
        field: field.to_owned(),
        value: list.to_owned(),
        problem: "is not a list such as 0-3,7",
    };
    let number =
        |text: &str| text.trim().parse().ok().filter(|number: &u32| *number <= LIST_MAX).ok_or_else(invalid);
    let mut numbers = Vec::new();
    for part in list.split(',') {
        match part.split_once('-') {
            Some((first, last)) => numbers.extend(number(first)?..=number(last)?),
            None => numbers.push(number(part)?),
        }
    }
    Ok(numbers)
}
