//! Seccomp profiles and their compilation to the filters the kernel loads.
//!
//! The compiler is our own because `seccompiler` can express neither several errors in one filter (the
//! default profile answers `clone3` with ENOSYS so that libc falls back, all else with EPERM) nor 32-bit
//! programs on a 64-bit kernel, and it searches system calls one after the other. Here they are ranges in a
//! binary tree: about nine comparisons, however long the profile. Programs are made once and shared.

mod assembler;
mod default;
mod syscalls;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock};

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};

use assembler::{Condition, Operator, Rules};
pub use syscalls::{Architecture, number};

// <linux/seccomp.h>
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const FLAG_TSYNC: u32 = 1;
const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
const FLAG_WAIT_KILLABLE: u32 = 1 << 5;
/// The largest program the kernel takes (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

/// A profile cannot be compiled.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    #[error("linux.seccomp: action {action} is not supported")]
    Action { action: String },
    #[error("linux.seccomp: {syscall}: there is no argument {index}")]
    Argument { syscall: String, index: usize },
    #[error("linux.seccomp: the filter has {length} instructions, the kernel takes {MAX_INSTRUCTIONS}")]
    TooLong { length: usize },
    #[error("linux.seccomp: an action SCMP_ACT_NOTIFY needs a listenerPath")]
    Listener,
    #[error("linux.seccomp: SCMP_ACT_NOTIFY for sendmsg, by which the listener itself is handed over")]
    NotifySendmsg,
}

/// A program ready to be loaded; see [`pith_sys::seccomp::load`] for the words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub program: Arc<[u64]>,
    /// SECCOMP_FILTER_FLAG_*.
    pub flags: u32,
    /// It leaves calls to somebody else (SECCOMP_RET_USER_NOTIF).
    pub listener: bool,
}

/// What one profile entry says about some system calls.
#[derive(Clone, Debug)]
struct Entry<'a> {
    names: Vec<&'a str>,
    conditions: Vec<Condition>,
    action: u32,
}

/// The default profile for a container with these capabilities in its bounding set; compiled once for each.
pub fn default_filter(bounding: u64) -> Option<Filter> {
    static CACHE: OnceLock<Mutex<HashMap<u64, Filter>>> = OnceLock::new();
    let cache = CACHE.get_or_init(Mutex::default);
    let relevant = bounding & default::relevant_capabilities();
    let mut cache = cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(filter) = cache.get(&relevant) {
        return Some(filter.clone());
    }
    let (entries, fallback) = default::entries(relevant);
    let architectures = Architecture::native().with_compatible();
    let program = build(&entries, fallback, &architectures)
        .expect("the default profile names no missing argument and is far from the kernel's limit");
    let filter = Filter { program: program.into(), flags: FLAG_SPEC_ALLOW, listener: false };
    cache.insert(relevant, filter.clone());
    Some(filter)
}

/// Compiles a profile of an OCI spec; `None` where it allows everything.
pub fn compile(profile: &LinuxSeccomp) -> Result<Option<Filter>, SeccompError> {
    let fallback = action(profile.default_action(), profile.default_errno_ret())?;
    let mut entries = Vec::new();
    for syscall in profile.syscalls().iter().flatten() {
        let verdict = action(syscall.action(), syscall.errno_ret())?;
        let names: Vec<&str> = syscall.names().iter().map(String::as_str).collect();
        for conditions in condition_sets(syscall)? {
            entries.push(Entry { names: names.clone(), conditions, action: verdict });
        }
    }
    let listener = notifies(profile, &entries, fallback)?;
    if entries.is_empty() && fallback == RET_ALLOW {
        return Ok(None);
    }
    let mut architectures = vec![Architecture::native()];
    for arch in profile.architectures().iter().flatten() {
        architectures.extend(architecture(*arch));
    }
    architectures.sort_unstable();
    architectures.dedup();
    let program = build(&entries, fallback, &architectures)?;
    let mut flags = flags(profile);
    if listener {
        // One thread needs no synchronisation, and the kernel refuses it together with a listener.
        flags &= !FLAG_TSYNC;
    }
    Ok(Some(Filter { program: program.into(), flags, listener }))
}

/// Whether some call is left to a listener; the profile must then say where that is, and the call by which the
/// listener's descriptor leaves the process must not be among them.
fn notifies(profile: &LinuxSeccomp, entries: &[Entry<'_>], fallback: u32) -> Result<bool, SeccompError> {
    if fallback == RET_USER_NOTIF {
        return Err(SeccompError::Action { action: "SCMP_ACT_NOTIFY as the default".to_owned() });
    }
    let mut notifying = entries.iter().filter(|entry| entry.action == RET_USER_NOTIF).peekable();
    let notifies = notifying.peek().is_some();
    let path = profile.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
    if notifies && !path {
        return Err(SeccompError::Listener);
    }
    if notifying.any(|entry| entry.names.contains(&"sendmsg")) {
        return Err(SeccompError::NotifySendmsg);
    }
    Ok(notifies)
}

fn flags(profile: &LinuxSeccomp) -> u32 {
    // Without a word about flags runc and crun leave speculative store bypass alone: it costs, and the
    // kernel's own default since 5.16 is the same.
    let Some(flags) = profile.flags() else { return FLAG_SPEC_ALLOW };
    flags.iter().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => FLAG_TSYNC,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => FLAG_WAIT_KILLABLE,
            }
    })
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SeccompError> {
    let errno = errno.unwrap_or(libc::EPERM as u32) & 0xffff;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => RET_TRAP,
        LinuxSeccompAction::ScmpActErrno => RET_ERRNO | errno,
        LinuxSeccompAction::ScmpActTrace => RET_TRACE | errno,
        LinuxSeccompAction::ScmpActLog => RET_LOG,
        LinuxSeccompAction::ScmpActAllow => RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => RET_USER_NOTIF,
    })
}

/// Architectures this machine's kernel can run; the others of a profile that is written for many are left
/// out, as libseccomp's users do. x32 is never let through: its numbers fall to the default action.
fn architecture(arch: Arch) -> Option<Architecture> {
    let native = Architecture::native();
    match (arch, native) {
        (Arch::ScmpArchNative, _) => Some(native),
        (Arch::ScmpArchX86_64, Architecture::X86_64) => Some(native),
        (Arch::ScmpArchX86, Architecture::X86_64) => Some(Architecture::I386),
        (Arch::ScmpArchAarch64, Architecture::Aarch64) => Some(native),
        _ => None,
    }
}

/// The conditions of an entry: all of them must hold, except that several about one argument are
/// alternatives (as runc reads them, because libseccomp takes one condition an argument).
fn condition_sets(syscall: &oci_spec::runtime::LinuxSyscall) -> Result<Vec<Vec<Condition>>, SeccompError> {
    let mut conditions = Vec::new();
    for arg in syscall.args().iter().flatten() {
        let index = arg.index();
        if index > 5 {
            let syscall = syscall.names().first().cloned().unwrap_or_default();
            return Err(SeccompError::Argument { syscall, index });
        }
        let (operator, mask, value) = match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => (Operator::NotEqual, u64::MAX, arg.value()),
            LinuxSeccompOperator::ScmpCmpLt => (Operator::Less, u64::MAX, arg.value()),
            LinuxSeccompOperator::ScmpCmpLe => (Operator::LessEqual, u64::MAX, arg.value()),
            LinuxSeccompOperator::ScmpCmpEq => (Operator::Equal, u64::MAX, arg.value()),
            LinuxSeccompOperator::ScmpCmpGe => (Operator::GreaterEqual, u64::MAX, arg.value()),
            LinuxSeccompOperator::ScmpCmpGt => (Operator::Greater, u64::MAX, arg.value()),
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                (Operator::Equal, arg.value(), arg.value_two().unwrap_or(0))
            }
        };
        conditions.push(Condition { argument: index as u32, mask, operator, value });
    }
    let repeated = conditions
        .iter()
        .enumerate()
        .any(|(i, a)| conditions[..i].iter().any(|b: &Condition| a.argument == b.argument));
    Ok(if repeated { conditions.into_iter().map(|c| vec![c]).collect() } else { vec![conditions] })
}

fn build(
    entries: &[Entry<'_>],
    fallback: u32,
    architectures: &[Architecture],
) -> Result<Vec<u64>, SeccompError> {
    let blocks: Vec<_> =
        architectures.iter().map(|arch| (*arch, rules_of(entries, fallback, *arch))).collect();
    let program = assembler::program(&blocks, fallback);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong { length: program.len() });
    }
    Ok(program)
}

/// What holds for each system call number of one architecture. Names it does not have are left out.
fn rules_of(entries: &[Entry<'_>], fallback: u32, arch: Architecture) -> BTreeMap<u32, Rules> {
    let mut rules: BTreeMap<u32, Rules> = BTreeMap::new();
    for entry in entries {
        for nr in entry.names.iter().filter_map(|name| number(arch, name)) {
            let rules = rules.entry(nr).or_insert_with(|| Rules { conditional: vec![], otherwise: fallback });
            if entry.conditions.is_empty() {
                rules.otherwise = entry.action;
            } else {
                rules.conditional.push((entry.conditions.clone(), entry.action));
            }
        }
    }
    // A call that is allowed anyway needs no condition.
    for rules in rules.values_mut() {
        let otherwise = rules.otherwise;
        if rules.conditional.iter().all(|(_, action)| *action == otherwise) {
            rules.conditional.clear();
        }
    }
    rules
}

#[cfg(test)]
mod tests;
