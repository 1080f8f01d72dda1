//! Exec and attach over SPDY: one stream each for input, output, error output, terminal sizes and the end.

use std::{collections::HashMap, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::connection::{self, Close, Opened};
use crate::{
    exec::{Control, ExecSession, Streams, TerminalSize, Version},
    pipe::{Input, Output},
    session::{Connection, ProtocolError, SessionError, Task},
    status::Outcome,
};

/// As kubelets have it (`StreamCreationTimeout`).
const OPEN: Duration = Duration::from_secs(30);
/// Longest text of a terminal size; real ones have some thirty bytes.
const SIZE_BYTES_MAX: usize = 256;

/// Starts the connection and waits for the client's streams.
pub(crate) async fn start(
    connection: impl Connection,
    version: Version,
    streams: Streams,
) -> Result<ExecSession, SessionError> {
    start_within(OPEN, connection, version, streams).await
}

/// As [`start`], for a client that has `open` to open its streams.
pub(crate) async fn start_within(
    open: Duration,
    connection: impl Connection,
    version: Version,
    streams: Streams,
) -> Result<ExecSession, SessionError> {
    let (read, write) = tokio::io::split(connection);
    let (opened_sender, opened) = mpsc::channel(1);
    let (close_sender, close) = oneshot::channel();
    let (parts_sender, parts) = oneshot::channel();
    let (finish, finished) = oneshot::channel();
    let task = Task::spawn(async move {
        let gathered = gather(open, opened, version, streams);
        let session = async { serve(gathered.await?, version, parts_sender, finished, close_sender).await };
        let mut running = std::pin::pin!(connection::run(read, write, opened_sender, close));
        // The session ends first, by asking for an orderly end, or the connection does, by failing.
        tokio::select! {
            ended = &mut running => ended,
            ended = session => {
                ended?;
                running.await
            }
        }
    });
    match parts.await {
        Ok(Parts { stdin, stdout, stderr, resize }) => {
            Ok(ExecSession { stdin, stdout, stderr, resize, control: Control::new(finish, task) })
        }
        // The task is over, and knows why.
        Err(_) => Err(task.join().await.err().unwrap_or(SessionError::Gone)),
    }
}

/// What the session hands out.
struct Parts {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    resize: watch::Receiver<Option<TerminalSize>>,
}

/// The client's streams by what they are for.
type Gathered = HashMap<String, Opened>;

async fn gather(
    open: Duration,
    mut opened: mpsc::Receiver<Opened>,
    version: Version,
    streams: Streams,
) -> Result<Gathered, SessionError> {
    let wanted = [
        ("error", true),
        ("stdin", streams.stdin),
        ("stdout", streams.stdout),
        ("stderr", streams.stderr),
        ("resize", streams.tty && version >= Version::V3),
    ];
    let expected: Vec<_> = wanted.iter().filter(|(_, wanted)| *wanted).map(|(name, _)| *name).collect();
    let mut found = Gathered::new();
    let all = async {
        while expected.iter().any(|name| !found.contains_key(*name)) {
            let Some(stream) = opened.recv().await else { return Err(SessionError::Gone) };
            if let Some(name) = stream.headers.get("streamtype") {
                found.insert(name.clone(), stream);
            }
        }
        Ok(())
    };
    if let Ok(gathered) = timeout(open, all).await {
        return gathered.map(|()| found);
    }
    let opened = expected.iter().filter(|name| found.contains_key(**name)).count();
    Err(SessionError::StreamsMissing { opened, expected: expected.len() })
}

async fn serve(
    mut found: Gathered,
    version: Version,
    parts: oneshot::Sender<Parts>,
    finished: oneshot::Receiver<Outcome>,
    close: oneshot::Sender<Close>,
) -> Result<(), SessionError> {
    let unless = ["stdin", "resize"].iter().filter_map(|name| found.get(*name)).map(|it| it.id);
    let end = Close { unless: unless.collect() };
    let mut take = |name: &str| found.remove(name).map(|it| it.stream);
    let (sizes, resize) = watch::channel(None);
    let error = take("error");
    let stdin = take("stdin").map(|it| it.into_input());
    let stdout = take("stdout").map(|it| it.into_output());
    let stderr = take("stderr").map(|it| it.into_output());
    let size_stream = take("resize").map(|it| it.into_input());
    if parts.send(Parts { stdin, stdout, stderr, resize }).is_err() {
        return Ok(());
    }

    let outcome = tokio::select! {
        outcome = finished => outcome,
        // Only a broken protocol ends it.
        broken = read_sizes(size_stream, sizes) => return Err(broken.into()),
    };
    // Dropped without an outcome: the handle's end has aborted this task already.
    let Ok(outcome) = outcome else { return Ok(()) };
    if let Some(mut error) = error {
        let status = if version >= Version::V4 { outcome.json() } else { outcome.text() };
        error.write_all(&status).await?;
    }
    let _ = close.send(end);
    Ok(())
}

/// Publishes each size that the stream says; a stream of JSON objects one after the other.
async fn read_sizes(stream: Option<Input>, sizes: watch::Sender<Option<TerminalSize>>) -> ProtocolError {
    let Some(mut stream) = stream else { return std::future::pending().await };
    let mut text = Vec::new();
    let mut piece = [0; SIZE_BYTES_MAX];
    loop {
        match stream.read(&mut piece).await {
            Ok(n) if n > 0 => text.extend_from_slice(&piece[..n]),
            Ok(_) | Err(_) => return std::future::pending().await,
        }
        let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<TerminalSize>();
        loop {
            match values.next() {
                Some(Ok(size)) => drop(sizes.send(Some(size))),
                Some(Err(error)) if !error.is_eof() => {
                    return ProtocolError::TerminalSize(error.to_string());
                }
                Some(Err(_)) | None => break,
            }
        }
        let read = values.byte_offset();
        text.drain(..read);
        if text.len() > SIZE_BYTES_MAX {
            return ProtocolError::TerminalSize("too long".to_owned());
        }
    }
}
