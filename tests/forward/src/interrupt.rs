//! Ctrl-C: a flag that every loop looks at, so that what was made is removed on the way out.
//!
//! Network namespaces and mounts are this process's own and end with it, however it ends. What must be removed by
//! hand is the cgroup, and a killed run's is removed by the next one ([`crate::ground`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

static STOP: AtomicBool = AtomicBool::new(false);

/// Catches the signals that ask a program to end. To be called before the first other thread, which inherits
/// what is blocked.
pub(crate) fn catch() -> Result<()> {
    let mut wanted = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        wanted.add(signal);
    }
    wanted.thread_block().context("block signals")?;
    thread::spawn(move || {
        while let Ok(signal) = wanted.wait() {
            eprintln!("\n{signal}: stopping and cleaning up");
            STOP.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// An error once the run was asked to end.
pub(crate) fn check() -> Result<()> {
    if STOP.load(Ordering::Relaxed) {
        bail!("interrupted: nothing is reported of an incomplete run");
    }
    Ok(())
}
