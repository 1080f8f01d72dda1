//! `run`: create and start, and stay until the program has ended unless detached.

use crate::console::Foreground;
use crate::create::{Request, create};
use crate::delete;
use crate::error::{Error, Result};
use crate::start;

/// Runs a container; the exit code of its program.
pub(crate) fn run(request: &Request<'_>, detach: bool, keep: bool) -> Result<i32> {
    let foreground = if detach { None } else { Some(Foreground::new()?) };
    let created = create(request)?;
    let log = request.log;
    let started = match created.folder.knock() {
        Some(gate) => start::start_at(&gate, &created.folder, &created.state, log),
        None => Err(Error::Died),
    };
    let served = match (started, foreground) {
        (Ok(()), None) => return Ok(0),
        (Ok(()), Some(foreground)) => foreground.serve(&created.child, created.terminal),
        (Err(error), _) => Err(error),
    };
    if served.is_err() {
        // Its process is this one's child: collected here, or it would count as alive no longer but not as gone.
        delete::end(&created.folder, &created.state)?;
        let _ = pith_sys::process::try_wait(&created.child.pidfd);
    }
    if !keep || served.is_err() {
        delete::remove(&created.folder, &created.state, true)?;
        delete::run_poststop(&created.state, log);
    }
    served
}
