//! Port-forward over WebSocket channels: for the n-th port of the request, channel 2n is data and
//! channel 2n + 1 is the error text. The first message of each says the port, two bytes, little-endian.

use futures::{StreamExt, stream::SelectAll};
use tokio::{io::AsyncWriteExt, sync::mpsc};
use tokio_util::io::ReaderStream;

use super::{close, receive, send, split};
use crate::{
    forward::{Forward, ForwardSession, WAITING_MAX},
    pipe,
    session::{Connection, ProtocolError, SessionError, Task},
};

/// Longest payload of a message that is sent.
const PAYLOAD_BYTES_MAX: usize = 32 * 1024;

/// Starts the session: one connection to each port.
pub(crate) fn start(connection: impl Connection, ports: Vec<u16>) -> ForwardSession {
    let (forwards, receiver) = mpsc::channel(WAITING_MAX);
    ForwardSession::new(receiver, Task::spawn(serve(connection, ports, forwards)))
}

async fn serve<C: Connection>(
    connection: C,
    ports: Vec<u16>,
    forwards: mpsc::Sender<Forward>,
) -> Result<(), SessionError> {
    let (mut sink, mut source) = split(connection).await;
    let mut inputs = Vec::with_capacity(ports.len());
    let mut outputs = SelectAll::new();
    for (n, port) in (0_u8..).zip(&ports) {
        let (data_end, data) = pipe::duplex();
        let (error_end, error) = pipe::output();
        let (read, write) = tokio::io::split(data_end);
        inputs.push(Some(write));
        for (channel, output) in [
            (2 * n, ReaderStream::with_capacity(read, PAYLOAD_BYTES_MAX).boxed()),
            (2 * n + 1, ReaderStream::with_capacity(error_end, PAYLOAD_BYTES_MAX).boxed()),
        ] {
            send(&mut sink, channel, &port.to_le_bytes()).await?;
            outputs.push(output.map(move |chunk| (channel, chunk)).boxed());
        }
        if forwards.send(Forward { port: *port, data, error }).await.is_err() {
            return Ok(());
        }
    }
    let reading = async {
        while let Some(message) = receive(&mut source).await? {
            let Some((channel, payload)) = message.split_first() else { continue };
            let Some(input) = inputs.get_mut(usize::from(*channel / 2)) else {
                return Err(SessionError::from(ProtocolError::UnknownChannel(*channel)));
            };
            if channel % 2 == 0
                && let Some(pipe) = input
                && pipe.write_all(payload).await.is_err()
            {
                *input = None;
            }
        }
        Ok(())
    };
    let writing = async {
        while let Some((channel, chunk)) = outputs.next().await {
            if let Ok(bytes) = chunk {
                send(&mut sink, channel, &bytes).await?;
            }
        }
        Ok::<_, SessionError>(())
    };
    let mut reading = std::pin::pin!(reading);
    // Over when the client has gone, or when every connection has ended. Until then the session waits
    // for more connections in vain. A client that goes as soon as it has everything is no failure.
    tokio::select! {
        biased;
        ended = writing => ended?,
        ended = &mut reading => return ended,
    }
    let closed = close(sink, reading).await;
    // Held until here: who takes connections ends the session when there can be no more.
    drop(forwards);
    closed
}
