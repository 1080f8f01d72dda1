//! Loading and attaching device programs of cgroups, and asking which programs are attached where: the uses of bpf(2)
//! outside of the proxy, which has aya. Objects and maps are aya's business; a device program is a handful of
//! instructions without either.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{Result, check};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;
/// With the programs of the cgroups above.
const QUERY_EFFECTIVE: u32 = 1;
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

#[repr(C)]
struct InfoByFd {
    bpf_fd: RawFd,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited_insns: u64,
    xlated_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
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
    query(cgroup.as_raw_fd(), ATTACH_CGROUP_DEVICE, 0)?.into_iter().map(open).collect()
}

/// The ids of the programs at a target: a cgroup's descriptor, or the index of an interface in its place.
fn query(target: RawFd, attach_type: u32, query_flags: u32) -> Result<Vec<u32>> {
    let mut ids = [0_u32; PROGRAMS_MAX];
    let mut query = Query {
        target_fd: target,
        attach_type,
        query_flags,
        attach_flags: 0,
        // `ids` outlives the call, in which the kernel writes at most `prog_cnt` numbers.
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: PROGRAMS_MAX as u32,
        padding: 0,
    };
    bpf(PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.prog_cnt).unwrap_or(0).min(PROGRAMS_MAX);
    Ok(ids[..count].to_vec())
}

fn open(id: u32) -> Result<OwnedFd> {
    let mut by_id = ById { id, next_id: 0, open_flags: 0 };
    bpf(PROG_GET_FD_BY_ID, &mut by_id).and_then(descriptor)
}

/// Where programs are attached (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    pub name: &'static str,
    number: u32,
}

const fn hook(name: &'static str, number: u32) -> Hook {
    Hook { name, number }
}

/// Hooks of a cgroup.
pub const CGROUP_HOOKS: &[Hook] = &[
    hook("cgroup_inet_ingress", 0),
    hook("cgroup_inet_egress", 1),
    hook("cgroup_inet_sock_create", 2),
    hook("cgroup_sock_ops", 3),
    hook("cgroup_device", ATTACH_CGROUP_DEVICE),
    hook("cgroup_inet4_bind", 8),
    hook("cgroup_inet6_bind", 9),
    hook("cgroup_inet4_connect", 10),
    hook("cgroup_inet6_connect", 11),
    hook("cgroup_udp4_sendmsg", 14),
    hook("cgroup_udp6_sendmsg", 15),
    hook("cgroup_sysctl", 18),
    hook("cgroup_udp4_recvmsg", 19),
    hook("cgroup_udp6_recvmsg", 20),
    hook("cgroup_inet4_getpeername", 29),
    hook("cgroup_inet6_getpeername", 30),
    hook("cgroup_inet4_getsockname", 31),
    hook("cgroup_inet6_getsockname", 32),
    hook("cgroup_inet_sock_release", 34),
];

/// Hooks of a network interface.
pub const INTERFACE_HOOKS: &[Hook] = &[hook("tcx_ingress", 46), hook("tcx_egress", 47)];

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub id: u32,
    pub name: String,
}

/// The programs that run for a cgroup at a hook, its own and those of the cgroups above it. A kernel without the hook
/// has none.
pub fn cgroup_programs(cgroup: BorrowedFd<'_>, hook: Hook) -> Result<Vec<Program>> {
    programs(query(cgroup.as_raw_fd(), hook.number, QUERY_EFFECTIVE))
}

/// The programs at a hook of an interface of this network namespace.
pub fn interface_programs(index: u32, hook: Hook) -> Result<Vec<Program>> {
    let index = RawFd::try_from(index).map_err(|_| crate::Errno::NODEV)?;
    programs(query(index, hook.number, 0))
}

fn programs(ids: Result<Vec<u32>>) -> Result<Vec<Program>> {
    match ids {
        Err(crate::Errno::INVAL) => Ok(Vec::new()),
        Err(errno) => Err(errno),
        Ok(ids) => ids.into_iter().map(program).collect(),
    }
}

/// A loaded program, by its identifier.
pub fn program(id: u32) -> Result<Program> {
    let program = open(id)?;
    let mut info = Info::default();
    let mut by_fd = InfoByFd {
        bpf_fd: program.as_raw_fd(),
        info_len: size_of::<Info>() as u32,
        // `info` outlives the call, in which the kernel fills as much of it as `info_len` says.
        info: (&raw mut info) as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut by_fd)?;
    let length = info.name.iter().position(|byte| *byte == 0).unwrap_or(info.name.len());
    Ok(Program { id, name: String::from_utf8_lossy(&info.name[..length]).into_owned() })
}
