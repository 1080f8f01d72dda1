//! The descriptor table of a process that is about to become a container.
//!
//! These functions renumber and close descriptors behind the back of whoever owns them. They are meant for
//! a forked child that never returns to the code that opened those: it ends in `execve` or `_exit`.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{Result, check};

/// Descriptors are first moved above this number, so that none is overwritten while they are put in place.
const SCRATCH: RawFd = 256;

/// Makes `fds[i]` descriptor number `i` (inheritable for 0, 1 and 2, close-on-exec above) and closes every
/// other one. Returns the descriptors from 3 on under their new numbers.
pub fn keep_only(fds: &[BorrowedFd<'_>]) -> Result<Vec<OwnedFd>> {
    let moved = fds
        .iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, SCRATCH))
        .collect::<Result<Vec<OwnedFd>>>()?;
    let mut kept = Vec::new();
    for (number, fd) in (0..).zip(&moved) {
        let flags = if number < 3 { 0 } else { libc::O_CLOEXEC };
        // SAFETY: dup3 on valid numbers; what `number` referred to before is not used again (see module).
        check(unsafe { libc::dup3(fd.as_raw_fd(), number, flags) }.into())?;
        if number >= 3 {
            // SAFETY: just made, and owned by nobody else.
            kept.push(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
    moved.into_iter().for_each(std::mem::forget);
    close_from(fds.len() as u32)?;
    Ok(kept)
}

/// Closes every descriptor from `first` on, except `keep`.
pub fn close_all_but(first: u32, keep: BorrowedFd<'_>) -> Result<()> {
    let keep = keep.as_raw_fd() as u32;
    if keep > first {
        close_range(first, keep - 1)?;
    }
    close_from(first.max(keep + 1))
}

/// Closes every descriptor.
pub fn close_all() -> Result<()> {
    close_from(0)
}

fn close_from(first: u32) -> Result<()> {
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: closes numbers that nobody in this process uses again (see module).
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) })?;
    Ok(())
}

/// Makes `fd` the standard input, output and error.
pub fn make_stdio(fd: BorrowedFd<'_>) -> Result<()> {
    for number in 0..3 {
        // SAFETY: dup3 onto the standard descriptors, which no Rust value owns.
        check(unsafe { libc::dup3(fd.as_raw_fd(), number, 0) }.into())?;
    }
    Ok(())
}

/// Takes over a descriptor that this process was started with, as agreed with whoever started it.
///
/// `EBADF` if it is not open. Call it once for a number.
pub fn inherited(number: u32) -> Result<OwnedFd> {
    let number = number as RawFd;
    // SAFETY: fcntl checks that the number is open and makes it close-on-exec.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: open, and by the contract above owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
