//! Bounded pipes between a connection's task and whoever uses the session.
//!
//! Invariant: a pipe holds at most [`PIPE_BYTES`] in each direction; dropping either end ends the other.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// What one direction of one stream may hold: a few of kubectl's 32 KiB writes.
pub(crate) const PIPE_BYTES: usize = 64 * 1024;

/// Bytes from the client. Its end is the client's half close, or the end of the connection.
#[derive(Debug)]
pub struct Input(DuplexStream);

/// Bytes to the client. Shutting it down or dropping it half closes the stream.
#[derive(Debug)]
pub struct Output(DuplexStream);

/// Bytes in both directions.
#[derive(Debug)]
pub struct Duplex(DuplexStream);

/// The connection's end and the user's end of an input.
pub(crate) fn input() -> (DuplexStream, Input) {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    (ours, Input(theirs))
}

/// The connection's end and the user's end of an output.
pub(crate) fn output() -> (DuplexStream, Output) {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    (ours, Output(theirs))
}

/// The connection's end and the user's end of a stream of both directions.
pub(crate) fn duplex() -> (DuplexStream, Duplex) {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    (ours, Duplex(theirs))
}

impl Duplex {
    /// Only what the client sends.
    pub(crate) fn into_input(self) -> Input {
        Input(self.0)
    }

    /// Only what is sent to the client.
    pub(crate) fn into_output(self) -> Output {
        Output(self.0)
    }
}

macro_rules! reads {
    ($pipe:ty) => {
        impl AsyncRead for $pipe {
            fn poll_read(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_read(context, buffer)
            }
        }
    };
}

macro_rules! writes {
    ($pipe:ty) => {
        impl AsyncWrite for $pipe {
            fn poll_write(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.0).poll_write(context, bytes)
            }

            fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_flush(context)
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_shutdown(context)
            }
        }
    };
}

reads!(Input);
writes!(Output);
reads!(Duplex);
writes!(Duplex);
