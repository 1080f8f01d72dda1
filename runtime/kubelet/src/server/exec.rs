//! `/exec`: a command in a running container, its streams joined to the client's.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use pith_container::{plan::WindowSize, supervisor};
use pith_streaming::{
    Input, Outcome, Output,
    exec::{self, ExecSession, Streams, TerminalSize},
};
use tokio::{net::unix::pipe, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Body, Sessions, full, query, refuse,
    stdio::{Outputs, Pipe, feed, follow_size, typing},
    text,
};
use crate::{
    context::{PodCell, blocking},
    network::chain,
    observed::ContainerId,
    process::{self, ProcessError},
};

/// A terminal whose size the client has not said yet.
const SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };
/// How long the client may take to say it.
const SIZE_WAIT: Duration = Duration::from_millis(200);

pub(super) fn answer(
    sessions: &Sessions,
    cell: Arc<PodCell>,
    id: ContainerId,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let pairs = query::pairs(request.uri().query());
    let command: Vec<String> = pairs.into_iter().filter(|(n, _)| n == "command").map(|(_, v)| v).collect();
    if command.is_empty() {
        return text(StatusCode::BAD_REQUEST, "you must specify a command");
    }
    let streams = match Streams::from_query(request.uri().query().unwrap_or_default()) {
        Ok(streams) => streams,
        Err(refusal) => return refuse(&refusal),
    };
    match exec::accept(&mut request, streams) {
        Ok(accepted) => {
            sessions.spawn(async move {
                match accepted.session.await {
                    Ok(session) => run(cell, id, command, streams.tty, session).await,
                    Err(error) => tracing::debug!(%error, "a client left before its session began"),
                }
            });
            accepted.response.map(|()| full(""))
        }
        Err(refusal) => refuse(&refusal),
    }
}

/// The client's streams. They are gone when the process's end is told: it is sent after the last of them.
struct Client {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    resize: watch::Receiver<Option<TerminalSize>>,
    left: CancellationToken,
}

async fn run(cell: Arc<PodCell>, id: ContainerId, command: Vec<String>, tty: bool, session: ExecSession) {
    let ExecSession { stdin, stdout, stderr, resize, control } = session;
    let client = Client { stdin, stdout, stderr, resize, left: control.closed() };
    let outcome = match tty {
        true => on_terminal(cell, id, command, client).await,
        false => on_pipes(cell, id, command, client).await,
    };
    if let Err(error) = control.finish(outcome).await {
        tracing::debug!(error = chain(&error), "a session ended early");
    }
}

async fn on_pipes(cell: Arc<PodCell>, id: ContainerId, command: Vec<String>, client: Client) -> Outcome {
    let Client { stdin, stdout, stderr, left, .. } = client;
    let pipes = || {
        let (input, output) = (Pipe::input(stdin.is_some())?, Pipe::output(stdout.is_some())?);
        Ok::<_, io::Error>((input, output, Pipe::output(stderr.is_some())?))
    };
    let (input, output, errors) = match pipes() {
        Ok(pipes) => pipes,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    let theirs = [input.theirs, output.theirs, errors.theirs];
    let started = blocking(move || {
        let [stdin, stdout, stderr] = &theirs;
        let streams = supervisor::Streams {
            stdin: stdin.as_ref().map(OwnedFd::as_fd),
            stdout: stdout.as_ref().map(OwnedFd::as_fd),
            stderr: stderr.as_ref().map(OwnedFd::as_fd),
        };
        process::spawn(&cell, &id, &command, streams)
    })
    .await;
    let exec = match started {
        Ok(exec) => exec,
        Err(error) => return failed(&error),
    };
    let outputs = Outputs::of([(output.ours, stdout), (errors.ours, stderr)]);
    let mut inputs = JoinSet::new();
    if let (Some(to), Some(from)) = (input.ours, stdin) {
        inputs.spawn(feed(from, pipe::Sender::from_owned_fd(to)));
    }
    end(exec, outputs, left).await
}

/// How the process ended, once all its output is with the client. It does not outlive a client that leaves:
/// dropping it kills it.
async fn end(exec: supervisor::Exec, outputs: Outputs, left: CancellationToken) -> Outcome {
    let ended = tokio::select! {
        ended = process::ended(&exec) => ended,
        () = left.cancelled() => return Outcome::Detached,
    };
    outputs.finish().await;
    match ended {
        Ok(exit) => Outcome::Exited(exit.code),
        Err(error) => failed(&error),
    }
}

pub(super) fn failed(error: &ProcessError) -> Outcome {
    Outcome::Failed(format!("error executing command in container: {}", chain(error)))
}

async fn on_terminal(cell: Arc<PodCell>, id: ContainerId, command: Vec<String>, client: Client) -> Outcome {
    let Client { stdin, stdout, mut resize, left, .. } = client;
    let size = first_size(&mut resize).await;
    let started = blocking(move || process::spawn_on_terminal(&cell, &id, &command, size)).await;
    let mut exec = match started {
        Ok(exec) => exec,
        Err(error) => return failed(&error),
    };
    let Some(master) = exec.terminal.take() else {
        return Outcome::Failed("the supervisor opened no terminal".to_owned());
    };
    let mut inputs = JoinSet::new();
    let mut outputs = Outputs::new();
    match master.try_clone().and_then(|reader| Ok((reader, typing(&master)?))) {
        Ok((reader, writer)) => {
            if let Some(to) = stdout {
                outputs.carry(reader, to);
            }
            if let Some(from) = stdin {
                inputs.spawn(feed(from, Ok(writer)));
            }
        }
        Err(error) => return Outcome::Failed(error.to_string()),
    }
    inputs.spawn(follow_size(master, resize));
    end(exec, outputs, left).await
}

async fn first_size(resize: &mut watch::Receiver<Option<TerminalSize>>) -> WindowSize {
    let said = tokio::time::timeout(SIZE_WAIT, resize.wait_for(Option::is_some)).await;
    match said {
        Ok(Ok(size)) => size.map_or(SIZE, |s| WindowSize { rows: s.height, columns: s.width }),
        Ok(Err(_)) | Err(_) => SIZE,
    }
}
