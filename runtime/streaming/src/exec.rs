//! Exec and attach: standard streams, the terminal's size, and how it ended.

use std::future::Future;

use http::Request;
use tokio::{
    io::DuplexStream,
    sync::{oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    negotiate::{Accepted, Agreed, Refusal, Spoken, negotiate},
    pipe::{Input, Output, input, output},
    session::{SessionError, Task, switched},
    spdy,
    status::Outcome,
    websocket,
};

/// Which streams a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streams {
    /// The client sends input.
    pub stdin: bool,
    /// The client wants the output.
    pub stdout: bool,
    /// The client wants the error output; never with a terminal, which has only one output.
    pub stderr: bool,
    /// The process gets a terminal, and the client says its size.
    pub tty: bool,
}

impl Streams {
    /// Reads a request's query in the API's form (`stdin=true&stdout=1`) and in the kubelet's (`input=1`,
    /// `output=1`, `error=1`). Other parameters are left alone.
    ///
    /// # Errors
    /// No stream is asked for.
    pub fn from_query(query: &str) -> Result<Self, Refusal> {
        let mut streams = Self::default();
        for (name, value) in query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))) {
            let on = matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True");
            match name {
                "stdin" | "input" => streams.stdin = on,
                "stdout" | "output" => streams.stdout = on,
                "stderr" | "error" => streams.stderr = on,
                "tty" => streams.tty = on,
                _ => {}
            }
        }
        streams.stderr &= !streams.tty;
        if streams.stdin || streams.stdout || streams.stderr {
            Ok(streams)
        } else {
            let text = "you must specify at least 1 of stdin, stdout, stderr";
            Err(Refusal::BadRequest(text.to_owned()))
        }
    }
}

/// Size of the client's terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A client's session. Its parts are used independently of each other.
#[derive(Debug)]
pub struct ExecSession {
    /// Where the request asks for it. Ends when the client closes its input or goes away.
    pub stdin: Option<Input>,
    /// Where the request asks for it. Drop it when the process's output has ended.
    pub stdout: Option<Output>,
    /// Where the request asks for it.
    pub stderr: Option<Output>,
    /// The terminal's size: `None` until the client has said it, then the latest.
    pub resize: watch::Receiver<Option<TerminalSize>>,
    /// Ends the session.
    pub control: Control,
}

/// The session's end. Dropping it closes the connection at once.
#[derive(Debug)]
pub struct Control {
    finish: oneshot::Sender<Outcome>,
    task: Task,
}

impl Control {
    pub(crate) fn new(finish: oneshot::Sender<Outcome>, task: Task) -> Self {
        Self { finish, task }
    }

    /// Cancelled when the client has gone (or the session is over).
    pub fn closed(&self) -> CancellationToken {
        self.task.ended()
    }

    /// Sends what is left of the output, how it ended, and closes the connection. Drop `stdout` and
    /// `stderr` first: they are waited for, but not for long.
    ///
    /// # Errors
    /// The client did not get all of it.
    pub async fn finish(self, outcome: Outcome) -> Result<(), SessionError> {
        // Where the task is over already, joining it says why.
        let _ = self.finish.send(outcome);
        self.task.join().await
    }
}

/// The connection's ends of a session.
pub(crate) struct Ends {
    pub(crate) stdin: Option<DuplexStream>,
    pub(crate) stdout: Option<DuplexStream>,
    pub(crate) stderr: Option<DuplexStream>,
    pub(crate) resize: watch::Sender<Option<TerminalSize>>,
    pub(crate) finish: oneshot::Receiver<Outcome>,
}

/// A session whose streams are all multiplexed by the connection's task, which `serve` runs.
pub(crate) fn session<F>(streams: Streams, serve: impl FnOnce(Ends) -> F) -> ExecSession
where
    F: Future<Output = Result<(), SessionError>> + Send + 'static,
{
    let (stdin_end, stdin) = streams.stdin.then(input).unzip();
    let (stdout_end, stdout) = streams.stdout.then(output).unzip();
    let (stderr_end, stderr) = streams.stderr.then(output).unzip();
    let (resize_end, resize) = watch::channel(None);
    let (finish, finish_end) = oneshot::channel();
    let ends = Ends {
        stdin: stdin_end,
        stdout: stdout_end,
        stderr: stderr_end,
        resize: resize_end,
        finish: finish_end,
    };
    let control = Control::new(finish, Task::spawn(serve(ends)));
    ExecSession { stdin, stdout, stderr, resize, control }
}

/// Protocol version of exec and attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V1,
    V2,
    /// Terminal sizes.
    V3,
    /// How it ended as a Status with the exit code.
    V4,
    /// The client can close its input (WebSocket only).
    V5,
}

const SPOKEN: Spoken<'static, Version> = Spoken {
    websocket: &[("v5.channel.k8s.io", Version::V5), ("v4.channel.k8s.io", Version::V4)],
    spdy: &[
        ("v4.channel.k8s.io", Version::V4),
        ("v3.channel.k8s.io", Version::V3),
        ("v2.channel.k8s.io", Version::V2),
        ("channel.k8s.io", Version::V1),
    ],
    spdy_unnamed: Some(Version::V1),
};

/// Accepts an upgrade request for exec or attach. `request` must come from hyper's HTTP/1 server with
/// upgrades enabled (axum's `serve` and hyper-util's `serve_connection_with_upgrades` are).
///
/// # Errors
/// The request cannot be upgraded: answer with [`Refusal::response`].
pub fn accept<B>(
    request: &mut Request<B>,
    streams: Streams,
) -> Result<Accepted<impl Future<Output = Result<ExecSession, SessionError>> + Send + use<B>>, Refusal> {
    let (agreed, response) = negotiate(request, &SPOKEN)?;
    let upgrade = hyper::upgrade::on(request);
    let session = async move {
        let connection = switched(upgrade).await?;
        match agreed {
            Agreed::WebSocket(version) => Ok(websocket::channels::start(connection, version, streams)),
            Agreed::Spdy(version) => spdy::exec::start(connection, version, streams).await,
        }
    };
    Ok(Accepted { response, session })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_of_both_forms() {
        let all = Streams { stdin: true, stdout: true, stderr: true, tty: false };
        for (query, expect) in [
            ("stdin=true&stdout=true&stderr=true", Some(all)),
            ("command=ls&input=1&output=1&error=1", Some(all)),
            ("stdout=1&stderr=1&tty=1", Some(Streams { stdout: true, tty: true, ..Streams::default() })),
            ("stdout=true&stderr=false", Some(Streams { stdout: true, ..Streams::default() })),
            ("tty=1&stderr=1", None),
            ("command=stdin=1", None),
            ("", None),
        ] {
            assert_eq!(Streams::from_query(query).ok(), expect, "{query}");
        }
    }
}
