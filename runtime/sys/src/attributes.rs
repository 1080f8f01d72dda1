//! Attributes of the calling process that neither rustix nor nix knows.

use std::ffi::CStr;

use crate::{Result, check};

/// `struct sched_attr` of sched_setattr(2), in its first version and with the utilisation clamps of the second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Scheduling {
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    /// Nanoseconds, as the two that follow: for SCHED_DEADLINE.
    pub runtime_ns: u64,
    pub deadline_ns: u64,
    pub period_ns: u64,
    util_min: u32,
    util_max: u32,
}

/// Sets how this thread is scheduled.
pub fn set_scheduling(mut wanted: Scheduling) -> Result<()> {
    wanted.size = size_of::<Scheduling>() as u32;
    // SAFETY: the kernel reads `size` bytes of a structure that lives through the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) })?;
    Ok(())
}

/// Of <linux/ioprio.h>, which libc lacks.
const WHO_PROCESS: libc::c_int = 1;
const CLASS_SHIFT: u32 = 13;

/// Class and level of the io priority that this process has.
pub fn io_priority() -> Result<(u32, u32)> {
    // SAFETY: two integers.
    let priority = check(unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) })? as u32;
    Ok((priority >> CLASS_SHIFT, priority & 7))
}

/// Sets the io priority of this process: class 1 real time, 2 best effort, 3 idle; level 0 (first) to 7.
pub fn set_io_priority(class: u32, level: u32) -> Result<()> {
    // SAFETY: three integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class << CLASS_SHIFT | level) })?;
    Ok(())
}

/// Sets the execution domain (personality(2)).
pub fn set_personality(persona: u64) -> Result<()> {
    // SAFETY: an integer.
    check(unsafe { libc::personality(persona as libc::c_ulong) }.into())?;
    Ok(())
}

/// Leaves the session keyring that was inherited for a new one of this name.
pub fn new_session_keyring(name: &CStr) -> Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is a C string that lives through the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    Ok(())
}

/// Sets where this thread's memory comes from (set_mempolicy(2)): `mode` with its flags, and the nodes as bits.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> Result<()> {
    let bits = nodes.len() * u64::BITS as usize + 1;
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the kernel reads `bits - 1` bits (it counts one more than it reads) of `nodes`.
    check(unsafe {
        libc::syscall(libc::SYS_set_mempolicy, mode, mask, if nodes.is_empty() { 0 } else { bits })
    })?;
    Ok(())
}
