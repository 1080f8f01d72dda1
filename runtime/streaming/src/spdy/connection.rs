//! One SPDY connection: streams that the client opens become pipes.
//!
//! ```text
//!           ┌ read ──► frames ──► pipe of the stream ──► user
//!  client ──┤                       │ replies, resets, window updates
//!           └ write ◄── frames ◄────┴── pipes of all streams ◄── user
//! ```
//!
//! Both halves run inside the one future of [`run`]. A stream whose user does not read stops the reading
//! half when its pipe is full, and with it the client, by way of TCP: Kubernetes' clients neither keep to
//! SPDY's windows nor send window updates, so waiting for theirs would hang and no other limit binds
//! them. Window updates are sent for those that do keep to them.
//!
//! Invariant: at most [`STREAMS_MAX`] streams are open; a stream is gone when both its directions are.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{AbortHandle, Abortable, BoxStream, SelectAll},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, ReadHalf, WriteHalf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};
use tokio_util::io::ReaderStream;

use super::{
    frame::{self, CONTROL_BYTES_MAX, Control, DATA_BYTES_MAX, HEADER_BYTES, Head, Reset},
    headers::{self, Headers},
};
use crate::{
    pipe::{self, Duplex},
    session::{ProtocolError, SessionError},
};

/// Streams of one connection; a forwarded connection takes two.
pub(crate) const STREAMS_MAX: usize = 512;
/// Frames that may wait for the writing half before the reading half waits.
const REPLIES_MAX: usize = 64;
/// A data frame is passed on in pieces of at most this.
const PIECE_BYTES: usize = 16 * 1024;
/// How long what was written before the end may take to be sent.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the client may take to close after it was told that all is done.
const LINGER: Duration = Duration::from_secs(5);

/// A stream that the client has opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) id: u32,
    pub(crate) headers: Headers,
    pub(crate) stream: Duplex,
}

/// An orderly end: what is written on other streams than these is sent first. These need not end.
#[derive(Debug)]
pub(crate) struct Close {
    pub(crate) unless: Vec<u32>,
}

/// From the reading half to the writing half.
enum Reply {
    Frame(Vec<u8>),
    /// A stream that may have something to send.
    Stream(u32, ReadHalf<DuplexStream>, Arc<OwnedSemaphorePermit>),
    /// A stream that the client does not want to hear from any more.
    Forget(u32),
}

/// Runs the connection until the client closes it, or until an orderly end that `close` asks for (a
/// `close` that is dropped asks for none).
pub(crate) async fn run(
    read: impl AsyncRead + Unpin,
    write: impl AsyncWrite + Unpin,
    opened: mpsc::Sender<Opened>,
    close: oneshot::Receiver<Close>,
) -> Result<(), SessionError> {
    let (replies, waiting) = mpsc::channel(REPLIES_MAX);
    let reading = Reading {
        read: BufReader::with_capacity(PIECE_BYTES, read),
        piece: vec![0; PIECE_BYTES],
        headers: headers::Reader::new(),
        reply_headers: headers::Writer::new(),
        inputs: HashMap::new(),
        last_stream: 0,
        room: Arc::new(Semaphore::new(STREAMS_MAX)),
        replies,
        opened,
    };
    let writing = Writing { write, waiting, outputs: SelectAll::new(), aborts: HashMap::new() };
    let mut reading = std::pin::pin!(reading.run());
    let mut writing = std::pin::pin!(writing.run(close));
    // Neither half's progress is lost: the other one is carried on, or the connection is over. A client
    // that goes as soon as it has everything is no failure, so writing is asked first.
    tokio::select! {
        biased;
        ended = &mut writing => {
            ended?;
            // Closing before the client has read everything could make its kernel throw away the rest.
            match timeout(LINGER, reading).await {
                Ok(Err(error @ SessionError::Protocol(_))) => Err(error),
                Ok(Ok(()) | Err(_)) | Err(_) => Ok(()),
            }
        }
        ended = &mut reading => ended,
    }
}

struct Reading<R> {
    read: BufReader<R>,
    /// Part of a data frame on its way to a pipe.
    piece: Vec<u8>,
    headers: headers::Reader,
    reply_headers: headers::Writer,
    inputs: HashMap<u32, (WriteHalf<DuplexStream>, Arc<OwnedSemaphorePermit>)>,
    last_stream: u32,
    room: Arc<Semaphore>,
    replies: mpsc::Sender<Reply>,
    opened: mpsc::Sender<Opened>,
}

impl<R: AsyncRead + Unpin> Reading<R> {
    /// Ends well when the client closes between two frames.
    async fn run(mut self) -> Result<(), SessionError> {
        let mut payload = vec![0; CONTROL_BYTES_MAX];
        loop {
            let mut head = [0; HEADER_BYTES];
            match self.read.read_exact(&mut head[..1]).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            self.read.read_exact(&mut head[1..]).await?;
            match Head::parse(head)? {
                Head::Control { kind, fin, length } => {
                    let payload = &mut payload[..length];
                    self.read.read_exact(payload).await?;
                    match Control::parse(kind, fin, payload)? {
                        Control::SynStream { stream, fin, block } => {
                            self.open(stream, fin, block).await?;
                        }
                        Control::Headers { block } => drop(self.headers.read(block)?),
                        Control::RstStream { stream } => {
                            self.inputs.remove(&stream);
                            self.reply(Reply::Forget(stream)).await?;
                        }
                        // Pings of the other side have odd numbers; even ones would answer ours.
                        Control::Ping { id } if id % 2 == 1 => {
                            self.reply(Reply::Frame(frame::ping(id))).await?;
                        }
                        Control::Ping { .. } | Control::GoAway | Control::Ignored => {}
                    }
                }
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
            }
        }
    }

    async fn open(&mut self, id: u32, fin: bool, block: &[u8]) -> Result<(), SessionError> {
        let headers = self.headers.read(block)?;
        if id.is_multiple_of(2) || id <= self.last_stream {
            return Err(ProtocolError::SpdyStreamId(id).into());
        }
        self.last_stream = id;
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            return self.reply(Reply::Frame(frame::rst_stream(id, Reset::Refused))).await;
        };
        let permit = Arc::new(permit);
        let (ours, stream) = pipe::duplex();
        let (output, mut input) = tokio::io::split(ours);
        // The client drops what comes before the reply.
        let reply = frame::syn_reply(id, &self.reply_headers.write(&[]));
        self.reply(Reply::Frame(reply)).await?;
        self.reply(Reply::Stream(id, output, Arc::clone(&permit))).await?;
        if fin {
            let _ = input.shutdown().await;
        } else {
            self.inputs.insert(id, (input, permit));
        }
        // Nobody takes streams any more: the session is about to end.
        let _ = self.opened.send(Opened { id, headers, stream }).await;
        Ok(())
    }

    /// Passes a data frame on, piece by piece. What comes for a stream that is gone is dropped: the client
    /// may not know yet.
    async fn data(&mut self, id: u32, fin: bool, length: usize) -> Result<(), SessionError> {
        let mut left = length;
        while left > 0 {
            let room = self.piece.len().min(left);
            let n = self.read.read(&mut self.piece[..room]).await?;
            if n == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            left -= n;
            if let Some((input, _)) = self.inputs.get_mut(&id)
                && input.write_all(&self.piece[..n]).await.is_err()
            {
                self.inputs.remove(&id);
            }
        }
        if fin {
            if let Some((mut input, _)) = self.inputs.remove(&id) {
                let _ = input.shutdown().await;
            }
        } else if length > 0 {
            let bytes = u32::try_from(length).expect("24 bits");
            self.reply(Reply::Frame(frame::window_update(id, bytes))).await?;
        }
        Ok(())
    }

    async fn reply(&mut self, reply: Reply) -> Result<(), SessionError> {
        // After an orderly end nothing is sent any more, but the rest is read.
        let _ = self.replies.send(reply).await;
        Ok(())
    }
}

type Chunk = (u32, Option<io::Result<Bytes>>);

struct Writing<W> {
    write: W,
    waiting: mpsc::Receiver<Reply>,
    outputs: SelectAll<Abortable<BoxStream<'static, Chunk>>>,
    aborts: HashMap<u32, AbortHandle>,
}

impl<W: AsyncWrite + Unpin> Writing<W> {
    async fn run(mut self, mut close: oneshot::Receiver<Close>) -> Result<(), SessionError> {
        let mut listening = true;
        loop {
            tokio::select! {
                biased;
                // A reply must not be overtaken by data of the stream that it is for.
                Some(reply) = self.waiting.recv() => self.take(reply).await?,
                asked = &mut close, if listening => match asked {
                    Ok(close) => return self.close(close).await,
                    Err(_) => listening = false,
                },
                Some(chunk) = self.outputs.next() => self.send(chunk).await?,
                else => return std::future::pending().await,
            }
        }
    }

    async fn take(&mut self, reply: Reply) -> Result<(), SessionError> {
        match reply {
            Reply::Frame(bytes) => {
                self.write.write_all(&bytes).await?;
                self.write.flush().await?;
            }
            Reply::Stream(id, output, permit) => {
                let chunks = ReaderStream::with_capacity(output, DATA_BYTES_MAX);
                let chunks = chunks.map(move |chunk| (id, Some(chunk)));
                let end = futures::stream::once(async move {
                    drop(permit);
                    (id, None)
                });
                let (abort, registration) = AbortHandle::new_pair();
                self.outputs.push(Abortable::new(chunks.chain(end).boxed(), registration));
                self.aborts.insert(id, abort);
            }
            Reply::Forget(id) => self.forget(id),
        }
        Ok(())
    }

    fn forget(&mut self, id: u32) {
        if let Some(abort) = self.aborts.remove(&id) {
            abort.abort();
        }
    }

    async fn send(&mut self, (id, chunk): Chunk) -> Result<(), SessionError> {
        let bytes = match chunk {
            Some(Ok(bytes)) => frame::data(id, false, &bytes),
            Some(Err(_)) => return Ok(()),
            None => {
                self.aborts.remove(&id);
                frame::data(id, true, &[])
            }
        };
        self.write.write_all(&bytes).await?;
        self.write.flush().await?;
        Ok(())
    }

    async fn close(mut self, close: Close) -> Result<(), SessionError> {
        for id in close.unless {
            self.forget(id);
        }
        let drain = async {
            while let Some(chunk) = self.outputs.next().await {
                self.send(chunk).await?;
            }
            self.write.write_all(&frame::goaway(0)).await?;
            self.write.flush().await?;
            Ok(())
        };
        timeout(DRAIN, drain).await.unwrap_or(Err(SessionError::Gone))
    }
}
