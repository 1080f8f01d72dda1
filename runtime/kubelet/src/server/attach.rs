//! `/attach`: a client joined to the standard streams that a container already has.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use http::{Request, Response};
use hyper::body::Incoming;
use pith_container::supervisor::Attachment;
use pith_streaming::{
    Outcome,
    exec::{self, ExecSession, Streams},
};
use tokio::{net::unix::pipe, task::JoinSet};

use super::{
    Body, Sessions,
    exec::failed,
    full, refuse,
    stdio::{Outputs, Pipe, feed, follow_size, typing},
};
use crate::{
    context::{PodCell, blocking},
    network::chain,
    observed::ContainerId,
    process::ProcessError,
};

pub(super) fn answer(
    sessions: &Sessions,
    cell: Arc<PodCell>,
    container: &str,
    id: ContainerId,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let mut streams = match Streams::from_query(request.uri().query().unwrap_or_default()) {
        Ok(streams) => streams,
        Err(refusal) => return refuse(&refusal),
    };
    let unit = cell.desired.borrow().unit(container).cloned();
    streams.tty = unit.as_ref().is_some_and(|u| u.spec.tty.unwrap_or(false));
    streams.stderr &= !streams.tty;
    streams.stdin &= unit.is_some_and(|u| u.spec.stdin.unwrap_or(false));
    match exec::accept(&mut request, streams) {
        Ok(accepted) => {
            sessions.spawn(async move {
                match accepted.session.await {
                    Ok(session) => run(cell, id, streams.tty, session).await,
                    Err(error) => tracing::debug!(%error, "a client left before its session began"),
                }
            });
            accepted.response.map(|()| full(""))
        }
        Err(refusal) => refuse(&refusal),
    }
}

async fn run(cell: Arc<PodCell>, id: ContainerId, tty: bool, session: ExecSession) {
    let ExecSession { stdin, stdout, stderr, resize, control } = session;
    let left = control.closed();
    // The streams are gone when the end is told: it is sent after the last of them.
    let attached = async move {
        let (output, errors) = match (Pipe::output(stdout.is_some()), Pipe::output(stderr.is_some())) {
            (Ok(output), Ok(errors)) => (output, errors),
            (Err(error), _) | (_, Err(error)) => return Outcome::Failed(error.to_string()),
        };
        let theirs = [output.theirs, errors.theirs];
        let input = match join(cell, id, stdin.is_some(), theirs).await {
            Ok(attachment) => attachment.stdin,
            Err(error) => return failed(&error),
        };
        let mut outputs = Outputs::of([(output.ours, stdout), (errors.ours, stderr)]);
        let mut inputs = JoinSet::new();
        if let (Some(to), Some(from)) = (input, stdin) {
            if tty {
                inputs.spawn(feed(from, typing(&to)));
                inputs.spawn(follow_size(to, resize));
            } else {
                inputs.spawn(feed(from, pipe::Sender::from_owned_fd(to)));
            }
        }
        tokio::select! {
            // The container's output ends with the container.
            () = outputs.closed() => {}
            () = left.cancelled() => {}
        }
        Outcome::Detached
    };
    if let Err(error) = control.finish(attached.await).await {
        tracing::debug!(error = chain(&error), "an attachment ended early");
    }
}

async fn join(
    cell: Arc<PodCell>,
    id: ContainerId,
    stdin: bool,
    outputs: [Option<OwnedFd>; 2],
) -> Result<Attachment, ProcessError> {
    blocking(move || {
        let sandbox = cell.sandbox().ok_or_else(|| ProcessError::NotRunning(id.0.clone()))?;
        let [stdout, stderr] = &outputs;
        let (stdout, stderr) = (stdout.as_ref().map(OwnedFd::as_fd), stderr.as_ref().map(OwnedFd::as_fd));
        sandbox.supervisor.attach(&id.0, stdin, stdout, stderr).map_err(ProcessError::Supervisor)
    })
    .await
}
