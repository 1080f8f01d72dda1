//! Which CPU does what: clients on one, servers on another, so that the scheduler's choice is no part of a figure.
//!
//! The kernel handles a packet on a veth where it was sent, so a client's packets are forwarded on its own CPU.

use std::thread::available_parallelism;

use rustix::process::nice;
use rustix::thread::{CpuSet, sched_setaffinity};

const CLIENT_CPU: usize = 0;
const SERVER_CPU: usize = 1;
/// Ahead of whatever else runs, behind the kernel's own threads.
const NICE: i32 = -15;

pub(crate) fn to_client_cpu() {
    to(CLIENT_CPU);
}

pub(crate) fn to_server_cpu() {
    to(SERVER_CPU);
}

/// Without the right to it the figures are noisier, and their intervals say so.
pub(crate) fn prefer() {
    let _ = nice(NICE);
}

fn to(cpu: usize) {
    if available_parallelism().map_or(1, usize::from) > SERVER_CPU {
        let mut set = CpuSet::new();
        set.set(cpu);
        // A cpuset without that CPU is no reason not to measure.
        let _ = sched_setaffinity(None, &set);
    }
}
