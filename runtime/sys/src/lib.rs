//! runtime/sys: the system calls that need `unsafe`, as safe functions.
//!
//! Everything that rustix offers safely is used from rustix directly by the crates above; here is only
//! what it lacks. Descriptors are `OwnedFd`/`BorrowedFd` in every signature; errors are the kernel's errno.
//!
//! | module | owns |
//! |---|---|
//! | [`process`] | `clone3` as fork (CLONE_INTO_CGROUP, pidfd), and as vfork + exec from many threads |
//! | [`descriptor`] | the descriptor table of a process about to become something else |
//! | [`entry`] | what a program does before libc: executing itself through a read-only view |
//! | [`message`] | packets with descriptors over a unix socket, sockets at paths of any length |
//! | [`mount`] | `mount_setattr`, messages of `fsopen`, lookups beneath a root |
//! | [`seccomp`] | loading a filter |
//! | [`attributes`] | scheduling, io priority, personality, session keyring, memory policy of this process |
//! | [`bpf`] | device programs of cgroups |
//! | [`network`] | the loopback interface of a new network namespace |
#![allow(unsafe_code, reason = "this crate is where the unsafe system calls live")]

pub mod attributes;
pub mod bpf;
pub mod descriptor;
pub mod entry;
pub mod message;
pub mod mount;
pub mod network;
pub mod process;
pub mod seccomp;

pub use rustix::io::Errno;

/// What every function here returns on failure: the kernel's error number.
pub type Result<T> = std::result::Result<T, Errno>;

/// The error number libc left behind.
fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Turns the -1 convention of libc into a `Result`.
fn check(ret: libc::c_long) -> Result<libc::c_long> {
    if ret == -1 { Err(last_errno()) } else { Ok(ret) }
}
