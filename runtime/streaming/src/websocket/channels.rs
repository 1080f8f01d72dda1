//! Exec and attach over WebSocket: the first byte of each message is its channel.
//!
//! | channel | client sends | server sends |
//! |---|---|---|
//! | 0 | input | |
//! | 1, 2 | | output, error output |
//! | 3 | | how it ended, as a Status |
//! | 4 | terminal size | |
//! | 255 | number of the channel that it closes (v5) | |

use std::time::Duration;

use futures::{StreamExt, stream::SelectAll};
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_util::io::ReaderStream;

use super::{Sink, close, receive, send, split};
use crate::{
    exec::{Ends, ExecSession, Streams, Version, session},
    session::{Connection, ProtocolError, SessionError},
    status::Outcome,
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Longest payload of a message that is sent.
const PAYLOAD_BYTES_MAX: usize = 32 * 1024;
/// How long output may still come after the session was told how it ended.
const DRAIN: Duration = Duration::from_secs(10);

/// Starts the session.
pub(crate) fn start(connection: impl Connection, version: Version, streams: Streams) -> ExecSession {
    session(streams, move |ends| serve(connection, version, ends))
}

async fn serve<C: Connection>(connection: C, version: Version, ends: Ends) -> Result<(), SessionError> {
    let (sink, mut source) = split(connection).await;
    let Ends { mut stdin, stdout, stderr, resize, finish } = ends;
    let outputs = [(STDOUT, stdout), (STDERR, stderr)];
    let first = outputs.iter().find_map(|(channel, output)| output.is_some().then_some(*channel));
    let outputs = outputs.into_iter().filter_map(|(channel, output)| {
        let chunks = ReaderStream::with_capacity(output?, PAYLOAD_BYTES_MAX);
        Some(chunks.map(move |chunk| (channel, chunk)).boxed())
    });
    let outputs: SelectAll<_> = outputs.collect();

    let reading = async {
        while let Some(message) = receive(&mut source).await? {
            let Some((channel, payload)) = message.split_first() else { continue };
            match *channel {
                STDIN => {
                    // A process that has closed its input does not want the rest.
                    if let Some(pipe) = &mut stdin
                        && pipe.write_all(payload).await.is_err()
                    {
                        stdin = None;
                    }
                }
                RESIZE => {
                    let size = serde_json::from_slice(payload)
                        .map_err(|error| ProtocolError::TerminalSize(error.to_string()))?;
                    // Nobody needs to listen.
                    let _ = resize.send(Some(size));
                }
                CLOSE if version >= Version::V5 => {
                    if payload == [STDIN] {
                        stdin = None;
                    }
                }
                STDOUT | STDERR | ERROR => {}
                channel => return Err(ProtocolError::UnknownChannel(channel).into()),
            }
        }
        Ok(())
    };
    let writing = write(sink, first.unwrap_or(ERROR), outputs, finish);
    let mut reading = std::pin::pin!(reading);
    // Reading ends when the client has gone: then nothing can be written either. A client that goes as
    // soon as it has everything is no failure, so writing is asked first.
    let sink = tokio::select! {
        biased;
        ended = writing => ended?,
        ended = &mut reading => return ended,
    };
    close(sink, reading).await
}

type Chunks = SelectAll<futures::stream::BoxStream<'static, (u8, std::io::Result<bytes::Bytes>)>>;

/// Sends output until it has ended and the outcome is known and sent. `first` is the lowest channel that the client
/// hears.
async fn write<C: Connection>(
    mut sink: Sink<C>,
    first: u8,
    mut outputs: Chunks,
    mut finish: tokio::sync::oneshot::Receiver<Outcome>,
) -> Result<Sink<C>, SessionError> {
    // Clients take the first message as the sign that the session is there, as kubelets send it.
    send(&mut sink, first, &[]).await?;
    let outcome = loop {
        tokio::select! {
            Some((channel, chunk)) = outputs.next() => {
                if let Ok(bytes) = chunk {
                    send(&mut sink, channel, &bytes).await?;
                }
            }
            outcome = &mut finish => match outcome {
                Ok(outcome) => break outcome,
                // The handle that held it has aborted this task.
                Err(_) => return Err(SessionError::Gone),
            },
        }
    };
    let drain = async {
        while let Some((channel, chunk)) = outputs.next().await {
            if let Ok(bytes) = chunk {
                send(&mut sink, channel, &bytes).await?;
            }
        }
        send(&mut sink, ERROR, &outcome.json()).await
    };
    timeout(DRAIN, drain).await.unwrap_or(Err(SessionError::Gone))?;
    Ok(sink)
}
