//! The eBPF programs: what the kernel calls, glued to the logic in `pith-core`.
//!
//! Invariant: nothing is decided here. An entry point takes its arguments from the kernel's context, asks
//! the core, carries out the verdict and counts its reason.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "an atomic comparing exchange")]

mod family;
mod form;
mod maps;
mod packet;
mod parking;
mod pods;
mod socket;
mod uplink;
mod xdp;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this could be reached by a loop without an end, and the
    // build drops it when no code panics.
    loop {}
}

/// The kernel offers some helpers to GPL-compatible programs only (kernel/bpf/syscall.c).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
