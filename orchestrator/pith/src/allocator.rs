//! The allocator of every role, and how soon it gives back what is free.
//!
//! Long-lived processes with many small, short-lived JSON trees: glibc's allocator keeps several times the
//! memory that is in use, mimalloc gives it back.

#![allow(unsafe_code, reason = "mimalloc's options have no safe interface")]

use libmimalloc_sys::{mi_option_set, mi_option_t};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` in mimalloc.h, in its second and third version; the bindings have no name for it.
const PURGE_DELAY: mi_option_t = 15;

/// Free pages go back to the kernel at once, not when the thread that freed them next has to do with the
/// allocator: in an idle process that may be never, and what a start takes for a moment stays for good (10 to
/// 20 MiB of a replica). It costs system calls, so it is for roles that allocate little. To be called before
/// other threads are started.
pub(crate) fn give_back_at_once() {
    // SAFETY: the option exists, and takes any number of milliseconds. Setting options is not thread safe,
    // and there is only this thread yet.
    unsafe { mi_option_set(PURGE_DELAY, 0) }
}
