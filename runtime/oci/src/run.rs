//! `run`: create and start, and stay until the program has ended unless detached.

use crate::console::Foreground;
use crate::create::{Created, Request, create};
use crate::delete;
use crate::error::{Error, Result};
use crate::start;
use crate::witness::tell;

/// Runs a container; the exit code of its program.
pub fn run(mut request: Request<'_>, detach: bool, keep: bool) -> Result<i32> {
    let foreground = if detach { None } else { Some(Foreground::new()?) };
    let created = create(&mut request)?;
    let witness = request.witness;
    let words = || (created.plan.exec_call(), "this process is the container's program now".to_owned());
    let Created { folder, state, plan, .. } = &created;
    let started = match folder.knock() {
        Some(gate) => tell(witness, words, || start::start_at(&gate, folder, state, Some(plan), witness)),
        None => Err(Error::Died),
    };
    let served = match (started, foreground) {
        (Ok(()), None) => return Ok(0),
        (Ok(()), Some(foreground)) => {
            let words = || ("poll the pidfd; waitid".to_owned(), "the program has run and ended".to_owned());
            tell(witness, words, || foreground.serve(&created.child, created.terminal))
        }
        (Err(error), _) => Err(error),
    };
    if served.is_err() {
        // Its process is this one's child: collected here, or it would count as alive no longer but not as gone.
        delete::end(&created.folder, &created.state)?;
        let _ = pith_sys::process::try_wait(&created.child.pidfd);
    }
    if !keep || served.is_err() {
        let words =
            || ("rmdir its cgroups; unlink its folder".to_owned(), "nothing of it is left".to_owned());
        tell(witness, words, || delete::remove(&created.folder, &created.state, true))?;
        delete::run_poststop(&created.state, witness);
    }
    served
}
