//! A container's output: read here, written to its log and copied to whoever is attached.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::log::{Log, Origin};

/// Read in one call; also the most that waits for a slow reader.
const CHUNK: usize = 16 * 1024;
/// Chunks read before others get their turn.
const CHUNKS_A_TURN: usize = 16;
/// Chunks read of a container that has ended: more than the largest pipe holds (1 MiB).
const CHUNKS_AT_THE_END: usize = 128;
/// How long a reader may take nothing before it is dropped. Until then the container waits for it, as it
/// would for a terminal.
const SINK_TIMEOUT: Duration = Duration::from_secs(10);
/// Readers of one stream.
const SINKS_MAX: usize = 16;

pub(crate) struct Stream {
    pub(crate) origin: Origin,
    pub(crate) fd: OwnedFd,
    /// The beginning of a line that has not ended yet.
    pending: Vec<u8>,
    pub(crate) sinks: Vec<Sink>,
}

/// An attached reader.
pub(crate) struct Sink {
    pub(crate) fd: OwnedFd,
    pending: Vec<u8>,
    stuck_since: Option<Instant>,
}

/// What is left of a stream after a turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Left {
    More,
    Ended,
}

impl Stream {
    pub(crate) fn new(origin: Origin, fd: OwnedFd) -> Result<Stream, Errno> {
        set_nonblocking(&fd)?;
        Ok(Stream { origin, fd, pending: Vec::new(), sinks: Vec::new() })
    }

    /// Whether reading on would make a slow reader's backlog grow.
    pub(crate) fn is_held(&self) -> bool {
        self.sinks.iter().any(|sink| !sink.pending.is_empty())
    }

    /// When the first slow reader is dropped.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.sinks.iter().filter_map(|sink| sink.stuck_since).min().map(|since| since + SINK_TIMEOUT)
    }

    pub(crate) fn attach(&mut self, fd: OwnedFd) -> Result<(), Errno> {
        if self.sinks.len() >= SINKS_MAX {
            return Err(Errno::MFILE);
        }
        set_nonblocking(&fd)?;
        self.sinks.push(Sink { fd, pending: Vec::new(), stuck_since: None });
        Ok(())
    }

    /// Moves on what backlogs allow, and drops readers that are gone or too slow.
    pub(crate) fn push_sinks(&mut self) {
        let now = Instant::now();
        self.sinks.retain_mut(|sink| sink.push(now));
    }

    /// Reads what there is, within bounds, and passes it on.
    pub(crate) fn pull(&mut self, log: Option<&mut Log>, to_the_end: bool) -> Left {
        let mut buffer = [0u8; CHUNK];
        let mut log = log;
        let mut turns = if to_the_end { CHUNKS_AT_THE_END } else { CHUNKS_A_TURN };
        loop {
            match rustix::io::read(&self.fd, &mut buffer) {
                // A terminal whose last user has gone reports EIO.
                Ok(0) | Err(Errno::IO) => {
                    if let Some(log) = log.as_deref_mut() {
                        log.finish(self.origin, &mut self.pending);
                    }
                    return Left::Ended;
                }
                Ok(length) => self.pass_on(&buffer[..length], log.as_deref_mut()),
                Err(Errno::INTR) => {}
                Err(_) => return Left::More,
            }
            turns = turns.saturating_sub(1);
            if turns == 0 || (self.is_held() && !to_the_end) {
                return Left::More;
            }
        }
    }

    /// Ends the stream though somebody may still hold its other end.
    pub(crate) fn finish(&mut self, log: Option<&mut Log>) {
        if let Some(log) = log {
            log.finish(self.origin, &mut self.pending);
        }
    }

    fn pass_on(&mut self, bytes: &[u8], log: Option<&mut Log>) {
        if let Some(log) = log {
            log.append(self.origin, &mut self.pending, bytes);
        }
        let now = Instant::now();
        self.sinks.retain_mut(|sink| {
            sink.pending.extend_from_slice(bytes);
            sink.push(now)
        });
    }
}

impl Sink {
    pub(crate) fn is_behind(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes what it takes; false if the reader is to be dropped.
    fn push(&mut self, now: Instant) -> bool {
        while !self.pending.is_empty() {
            match rustix::io::write(&self.fd, &self.pending) {
                Ok(written) => {
                    self.pending.drain(..written);
                    self.stuck_since = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let since = *self.stuck_since.get_or_insert(now);
                    return now.duration_since(since) < SINK_TIMEOUT;
                }
                Err(_) => return false,
            }
        }
        true
    }
}

/// Both ends of whatever it is share the flag only where they share the open file; a client passes an end
/// that it does not use itself.
pub(crate) fn set_nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(fd.as_fd())?;
    rustix::fs::fcntl_setfl(fd.as_fd(), flags | OFlags::NONBLOCK)
}
