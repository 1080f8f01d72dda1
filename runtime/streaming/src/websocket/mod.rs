//! WebSocket after the handshake: channels of exec and port-forward, and a tunnel for SPDY.

use std::{io, time::Duration};

use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::ProtocolError as Protocol,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use crate::session::{Connection, ProtocolError, SessionError};

pub(crate) mod channels;
pub(crate) mod forward;
#[cfg(test)]
mod tests;

/// Longest message that is accepted. kubectl's have 32 KiB; some clients send whole files.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What may wait to be written before writers wait.
const WRITE_BYTES_MAX: usize = 256 * 1024;

/// How long the client may take to close after it was told that all is done.
const LINGER: Duration = Duration::from_secs(5);

type Source<C> = SplitStream<WebSocketStream<C>>;
type Sink<C> = SplitSink<WebSocketStream<C>, Message>;

async fn split<C: Connection>(connection: C) -> (Sink<C>, Source<C>) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BYTES_MAX);
    WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await.split()
}

/// The bytes of the binary messages in both directions, as one stream of bytes each.
pub(crate) async fn tunnel<C: Connection>(
    connection: C,
) -> (impl AsyncRead + Send + Unpin + 'static, impl AsyncWrite + Send + Unpin + 'static) {
    let (sink, source) = split(connection).await;
    let bytes = source.filter_map(|message| {
        std::future::ready(match message {
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(_) | Err(Error::ConnectionClosed) => None,
            Err(error) => Some(Err(to_io(error))),
        })
    });
    let messages =
        sink.sink_map_err(to_io).with(|bytes: Bytes| std::future::ready(Ok(Message::Binary(bytes))));
    let messages: std::pin::Pin<Box<dyn futures::Sink<Bytes, Error = io::Error> + Send>> = Box::pin(messages);
    (StreamReader::new(bytes), SinkWriter::new(CopyToBytes::new(messages)))
}

/// The next message; `None` when the client has closed. The Python client sends what is typed as text.
async fn receive<C: Connection>(source: &mut Source<C>) -> Result<Option<Bytes>, SessionError> {
    loop {
        match source.next().await {
            Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
            // Answered by the library, or of no meaning to a server.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Text(text))) => return Ok(Some(text.into())),
            Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed)) | None => return Ok(None),
            Some(Err(error)) => return Err(failure(error)),
        }
    }
}

/// Sends bytes on a channel.
async fn send<C: Connection>(sink: &mut Sink<C>, channel: u8, payload: &[u8]) -> Result<(), SessionError> {
    let mut message = Vec::with_capacity(1 + payload.len());
    message.push(channel);
    message.extend_from_slice(payload);
    sink.send(Message::Binary(message.into())).await.map_err(failure)
}

/// Says that all has been sent, and waits until the client, which `reading` goes on to hear, has closed too: some throw
/// away what they have received but not yet passed on when the connection just breaks.
async fn close<C: Connection>(
    mut sink: Sink<C>,
    reading: impl Future<Output = Result<(), SessionError>>,
) -> Result<(), SessionError> {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    // A client that has gone meanwhile has everything.
    let _ = sink.send(Message::Close(Some(frame))).await;
    match timeout(LINGER, reading).await {
        Ok(Err(error @ SessionError::Protocol(_))) => Err(error),
        Ok(Ok(()) | Err(_)) | Err(_) => Ok(()),
    }
}

fn failure(error: Error) -> SessionError {
    match error {
        Error::Io(error) => SessionError::Io(error),
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(Protocol::ResetWithoutClosingHandshake) => SessionError::Gone,
        error => ProtocolError::WebSocket(error.to_string()).into(),
    }
}

fn to_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::other(error),
    }
}
