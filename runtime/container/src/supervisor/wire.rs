//! Messages as JSON packets, with a memfd for those too long for one.

use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use serde::{Serialize, de::DeserializeOwned};

use super::protocol::{MAX_MESSAGE, MAX_PACKET};

/// A message could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the connection was closed")]
    Closed,
    #[error("no answer in time")]
    TimedOut,
    #[error("{operation} on the supervisor's socket: {source}")]
    Socket { operation: &'static str, source: std::io::Error },
    #[error("a message of {length} bytes is longer than {MAX_MESSAGE}")]
    TooLong { length: u64 },
    #[error("the message is not understood: {source}")]
    Json { source: serde_json::Error },
}

fn socket(operation: &'static str) -> impl Fn(rustix::io::Errno) -> WireError {
    move |errno| match errno {
        rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => WireError::Closed,
        rustix::io::Errno::AGAIN => WireError::TimedOut,
        errno => WireError::Socket { operation, source: errno.into() },
    }
}

/// Sends a message with descriptors. With `wait` false it never blocks: a full socket is `TimedOut`.
pub fn send<M: Serialize>(
    to: BorrowedFd<'_>,
    message: &M,
    fds: &[BorrowedFd<'_>],
    wait: bool,
) -> Result<(), WireError> {
    let bytes = serde_json::to_vec(message).map_err(|source| WireError::Json { source })?;
    send_bytes(to, &bytes, fds, wait)
}

/// The same for what is a text already.
pub fn send_bytes(
    to: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    wait: bool,
) -> Result<(), WireError> {
    if bytes.len() <= MAX_PACKET {
        return pith_sys::message::send(to, bytes, fds, wait).map_err(socket("send"));
    }
    let memory = rustix::fs::memfd_create("pith-message", MemfdFlags::CLOEXEC).map_err(socket("memfd"))?;
    let mut file = std::fs::File::from(memory);
    file.write_all(bytes).map_err(|source| WireError::Socket { operation: "write", source })?;
    let fds: Vec<BorrowedFd<'_>> = [file.as_fd()].into_iter().chain(fds.iter().copied()).collect();
    pith_sys::message::send(to, b"", &fds, wait).map_err(socket("send"))
}

/// Receives a message and its descriptors. With `wait` false an empty socket is `TimedOut`.
pub fn receive<M: DeserializeOwned>(
    from: BorrowedFd<'_>,
    wait: bool,
) -> Result<(M, Vec<OwnedFd>), WireError> {
    let (bytes, fds) = receive_bytes(from, wait)?;
    let message = serde_json::from_slice(&bytes).map_err(|source| WireError::Json { source })?;
    Ok((message, fds))
}

/// The same for what is not to be understood here.
pub fn receive_bytes(from: BorrowedFd<'_>, wait: bool) -> Result<(Vec<u8>, Vec<OwnedFd>), WireError> {
    let packet = pith_sys::message::receive(from, MAX_PACKET, wait)
        .map_err(socket("receive"))?
        .ok_or(WireError::Closed)?;
    let mut fds = packet.fds;
    if !packet.bytes.is_empty() {
        return Ok((packet.bytes, fds));
    }
    if fds.is_empty() {
        return Err(WireError::Closed);
    }
    let io = |source| WireError::Socket { operation: "read", source };
    let mut file = std::fs::File::from(fds.remove(0));
    let length = file.metadata().map_err(io)?.len();
    if length > MAX_MESSAGE as u64 {
        return Err(WireError::TooLong { length });
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.rewind().map_err(io)?;
    file.take(MAX_MESSAGE as u64).read_to_end(&mut bytes).map_err(io)?;
    Ok((bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_any_length() {
        let (a, b) = pith_sys::message::pair().expect("socketpair");
        for length in [0, 10, MAX_PACKET - 2, MAX_PACKET, 500_000] {
            let message = "x".repeat(length);
            send(a.as_fd(), &message, &[b.as_fd()], true).expect("send");
            let (got, fds): (String, _) = receive(b.as_fd(), true).expect("receive");
            assert_eq!((got.len(), fds.len()), (length, 1), "{length}");
        }
        assert!(matches!(receive::<String>(b.as_fd(), false), Err(WireError::TimedOut)));
        drop(a);
        assert!(matches!(receive::<String>(b.as_fd(), true), Err(WireError::Closed)));
    }

    #[test]
    fn what_is_not_a_memfd_is_refused() {
        let (a, b) = pith_sys::message::pair().expect("socketpair");
        pith_sys::message::send(a.as_fd(), b"", &[a.as_fd()], true).expect("send");
        assert!(receive::<String>(b.as_fd(), true).is_err());
        pith_sys::message::send(a.as_fd(), b"{", &[], true).expect("send");
        assert!(matches!(receive::<String>(b.as_fd(), true), Err(WireError::Json { .. })));
    }
}
