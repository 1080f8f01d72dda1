//! Loading a seccomp filter.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{Result, check};

/// Loads a filter as [`load`] does, and returns the descriptor on which the calls that it leaves to somebody else
/// (SECCOMP_RET_USER_NOTIF) are announced.
pub fn load_with_listener(program: &[u64], flags: u32) -> Result<OwnedFd> {
    let flags = flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;
    let number = RawFd::try_from(set_filter(program, flags)?).map_err(|_| crate::Errno::BADF)?;
    // SAFETY: seccomp(2) just returned it as a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Waits for the next call on a listener and answers it with an error (seccomp_unotify(2)).
pub fn refuse_next(listener: BorrowedFd<'_>, errno: i32) -> Result<()> {
    // SAFETY: both structures are integers, for which zero is valid; the kernel wants the first one zeroed.
    let (mut call, mut answer) = unsafe {
        (std::mem::zeroed::<libc::seccomp_notif>(), std::mem::zeroed::<libc::seccomp_notif_resp>())
    };
    let number = listener.as_raw_fd();
    // SAFETY: the request fills a seccomp_notif, which lives through the call.
    check(unsafe { libc::ioctl(number, libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut call) }.into())?;
    answer.id = call.id;
    answer.error = -errno;
    // SAFETY: the request reads a seccomp_notif_resp, which lives through the call.
    check(unsafe { libc::ioctl(number, libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw mut answer) }.into())?;
    Ok(())
}

/// Loads a classic BPF program into this thread. Each word is one `struct sock_filter` as it lies in memory
/// on a little-endian machine: code in bits 0–15, jt 16–23, jf 24–31, k 32–63.
///
/// `flags` are SECCOMP_FILTER_FLAG_*. Needs no_new_privs or CAP_SYS_ADMIN.
pub fn load(program: &[u64], flags: u32) -> Result<()> {
    set_filter(program, flags).map(drop)
}

fn set_filter(program: &[u64], flags: u32) -> Result<libc::c_long> {
    let filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|word| libc::sock_filter {
            code: *word as u16,
            jt: (*word >> 16) as u8,
            jf: (*word >> 24) as u8,
            k: (*word >> 32) as u32,
        })
        .collect();
    let length = libc::c_ushort::try_from(filter.len()).map_err(|_| rustix::io::Errno::INVAL)?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` points to `length` records that outlive the call; the kernel copies and verifies them.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })
}
