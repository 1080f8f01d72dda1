//! What exec and port-forward sessions share: the task that owns the connection, and its errors.

use std::{future::Future, io};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Why a session ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The HTTP connection did not switch.
    #[error("switch protocols")]
    Upgrade(#[source] hyper::Error),
    /// The client did not open its streams in time.
    #[error("the client opened {opened} of {expected} streams in time")]
    StreamsMissing {
        /// How many it opened.
        opened: usize,
        /// How many its request needs.
        expected: usize,
    },
    /// The client went away, or did not take what was sent in time.
    #[error("the client has gone")]
    Gone,
    /// The client broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The connection failed.
    #[error("connection to the client")]
    Io(#[from] io::Error),
}

/// What a peer sent that it may not send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Not a WebSocket message of the agreed protocol.
    #[error("WebSocket: {0}")]
    WebSocket(String),
    /// A channel that the protocol does not have.
    #[error("unknown channel {0}")]
    UnknownChannel(u8),
    /// A terminal size that is not one.
    #[error("terminal size cannot be read: {0}")]
    TerminalSize(String),
    /// Not SPDY version 3.
    #[error("SPDY version {0} instead of 3")]
    SpdyVersion(u16),
    /// A control frame whose length does not fit its type, or exceeds what is accepted.
    #[error("SPDY frame of type {kind} with {length} bytes")]
    SpdyLength {
        /// Its type.
        kind: u16,
        /// Its length in bytes.
        length: usize,
    },
    /// Headers that cannot be decompressed or read.
    #[error("SPDY header block: {0}")]
    SpdyHeaders(&'static str),
    /// A stream id that a client may not use, or not any more.
    #[error("SPDY stream id {0} is even, zero, or not above the ones before")]
    SpdyStreamId(u32),
}

/// A connection that has switched protocols.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

/// The switched connection of a request.
pub(crate) async fn switched(upgrade: hyper::upgrade::OnUpgrade) -> Result<impl Connection, SessionError> {
    Ok(TokioIo::new(upgrade.await.map_err(SessionError::Upgrade)?))
}

/// The task that owns a connection. It ends with this handle.
#[derive(Debug)]
pub(crate) struct Task {
    handle: JoinHandle<Result<(), SessionError>>,
    ended: CancellationToken,
}

impl Task {
    /// Runs `work`; `ended` is cancelled when it is over, however it ends.
    pub(crate) fn spawn(work: impl Future<Output = Result<(), SessionError>> + Send + 'static) -> Self {
        let ended = CancellationToken::new();
        let guard: DropGuard = ended.clone().drop_guard();
        let handle = tokio::spawn(async move {
            let _ended = guard;
            work.await
        });
        Self { handle, ended }
    }

    /// Cancelled when the connection is over.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// How the connection ended.
    pub(crate) async fn join(mut self) -> Result<(), SessionError> {
        (&mut self.handle).await.unwrap_or(Err(SessionError::Gone))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
