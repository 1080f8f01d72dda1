//! Loading and attaching device programs of cgroups: the one use of bpf(2) outside of the proxy, which has aya.
//! Objects and maps are aya's business; a device program is a handful of instructions without either.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{Result, check};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;
/// The kernel attaches at most 64 programs of a type to a cgroup (BPF_CGROUP_MAX_PROGS).
const PROGRAMS_MAX: usize = 64;

/// Parts of `union bpf_attr` (include/uapi/linux/bpf.h). The kernel takes any prefix of the union and reads
/// zeroes for the rest.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

#[repr(C)]
struct Attach {
    target_fd: RawFd,
    attach_bpf_fd: RawFd,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: RawFd,
}

#[repr(C)]
struct Query {
    target_fd: RawFd,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

fn bpf<A>(command: libc::c_int, attributes: &mut A) -> Result<libc::c_long> {
    // SAFETY: `attributes` is a live, initialised prefix of bpf_attr of exactly the size that is stated; the
    // kernel reads it and (PROG_QUERY) writes back within it. Addresses inside of it are the callers' concern.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>()) })
}

fn descriptor(number: libc::c_long) -> Result<OwnedFd> {
    let number = RawFd::try_from(number).map_err(|_| crate::Errno::BADF)?;
    // SAFETY: bpf(2) just returned it as a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Verifies and loads a program of type BPF_PROG_TYPE_CGROUP_DEVICE, given as encoded `struct bpf_insn`s.
pub fn load_device_program(instructions: &[u64]) -> Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| crate::Errno::TOOBIG)?,
        // `instructions` and `license` outlive the call, in which the kernel copies both.
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
    };
    bpf(PROG_LOAD, &mut load).and_then(descriptor)
}

/// Makes `program` the only device program of a cgroup. It stays attached until the cgroup is removed.
/// A single program is exchanged at once; at no moment is the cgroup without one.
pub fn set_device_program(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> Result<()> {
    let old = attached_device_programs(cgroup)?;
    let (flags, replaced) = match old.as_slice() {
        [only] => (ALLOW_MULTI | REPLACE, only.as_raw_fd()),
        _ => (ALLOW_MULTI, 0),
    };
    let mut attach = Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: flags,
        replace_bpf_fd: replaced,
    };
    bpf(PROG_ATTACH, &mut attach)?;
    if old.len() > 1 {
        for program in &old {
            let mut detach = Attach {
                target_fd: cgroup.as_raw_fd(),
                attach_bpf_fd: program.as_raw_fd(),
                attach_type: ATTACH_CGROUP_DEVICE,
                attach_flags: 0,
                replace_bpf_fd: 0,
            };
            bpf(PROG_DETACH, &mut detach)?;
        }
    }
    Ok(())
}

fn attached_device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; PROGRAMS_MAX];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd(),
        attach_type: ATTACH_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        // `ids` outlives the call, in which the kernel writes at most `prog_cnt` numbers.
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: PROGRAMS_MAX as u32,
        padding: 0,
    };
    bpf(PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.prog_cnt).unwrap_or(0).min(PROGRAMS_MAX);
    ids[..count]
        .iter()
        .map(|id| {
            let mut by_id = ById { id: *id, next_id: 0, open_flags: 0 };
            bpf(PROG_GET_FD_BY_ID, &mut by_id).and_then(descriptor)
        })
        .collect()
}
