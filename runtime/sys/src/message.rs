//! Packets with descriptors over unix sockets.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::{Result, check};

/// Descriptors in one packet, at most.
pub const MAX_FDS: usize = 8;

/// One packet.
#[derive(Debug, Default)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// Two connected SOCK_SEQPACKET sockets.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one packet. With `wait` false a full socket is `EAGAIN`. Never raises SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], wait: bool) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    let flags = SendFlags::NOSIGNAL | if wait { SendFlags::empty() } else { SendFlags::DONTWAIT };
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags))?;
    Ok(())
}

/// Receives one packet of at most `limit` bytes; `None` when the other side has closed. With `wait` false
/// an empty socket is `EAGAIN`. A longer packet is `EMSGSIZE`.
pub fn receive(socket: BorrowedFd<'_>, limit: usize, wait: bool) -> Result<Option<Packet>> {
    let flags = RecvFlags::CMSG_CLOEXEC | if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
    // The length first: a buffer for the largest packet would be the largest thing in a supervisor.
    let peek = rustix::io::retry_on_intr(|| {
        rustix::net::recv(socket, &mut [0u8; 1][..], flags | RecvFlags::PEEK | RecvFlags::TRUNC)
    });
    let length = match peek {
        Ok((_, length)) => length,
        Err(Errno::CONNRESET) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; length.min(limit)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
    })?;
    let mut fds = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
            fds.extend(rights);
        }
    }
    if message.bytes == 0 && fds.is_empty() {
        return Ok(None);
    }
    if length > limit {
        return Err(Errno::MSGSIZE);
    }
    bytes.truncate(message.bytes);
    Ok(Some(Packet { bytes, fds }))
}

/// A listening SOCK_SEQPACKET socket at `dir/name`, replacing what is there. The path may be longer than
/// the 107 bytes of `sockaddr_un`: it is named through the open directory.
pub fn listen(dir: &Path, name: &str, backlog: i32) -> Result<OwnedFd> {
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::fs::unlinkat(&dir, name, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::bind(&socket, &address(&dir, name)?)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Connects to the socket at `dir/name`.
pub fn connect(dir: &Path, name: &str) -> Result<OwnedFd> {
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let address = address(&dir, name)?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(socket)
}

/// The user on the other end of a connection. (Its pid may be 0, if it is in a pid namespace above this one's,
/// which rustix's `socket_peercred` cannot express.)
pub fn peer_user(socket: BorrowedFd<'_>) -> Result<u32> {
    // SAFETY: ucred is three integers, for which zero is valid.
    let mut credentials: libc::ucred = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `credentials`.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    check(ret.into())?;
    Ok(credentials.uid)
}

fn address(dir: &OwnedFd, name: &str) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn packets_keep_their_bounds_and_descriptors() {
        let (a, b) = pair().expect("socketpair");
        let (read, write) = rustix::pipe::pipe().expect("pipe");
        send(a.as_fd(), b"one", &[write.as_fd()], true).expect("send");
        send(a.as_fd(), b"second", &[], true).expect("send");
        drop(write);

        let first = receive(b.as_fd(), 16, true).expect("receive").expect("a packet");
        assert_eq!((first.bytes.as_slice(), first.fds.len()), (&b"one"[..], 1));
        rustix::io::write(&first.fds[0], b"x").expect("write through the passed descriptor");
        let mut byte = [0u8; 1];
        assert_eq!(rustix::io::read(&read, &mut byte), Ok(1));

        assert_eq!(receive(b.as_fd(), 3, true).map(|_| ()), Err(Errno::MSGSIZE), "longer than allowed");
        assert_eq!(receive(b.as_fd(), 16, false).map(|_| ()), Err(Errno::AGAIN));
        drop(a);
        assert!(receive(b.as_fd(), 16, true).expect("receive").is_none(), "closed");
    }

    #[test]
    fn sockets_at_long_paths() {
        let base = std::env::temp_dir().join(format!("pith-sys-{}", std::process::id()));
        let dir = base.join("x".repeat(120));
        std::fs::create_dir_all(&dir).expect("mkdir");
        let listener = listen(&dir, "s", 4).expect("listen");
        let client = connect(&dir, "s").expect("connect");
        let server = rustix::net::accept(&listener).expect("accept");
        send(client.as_fd(), b"hi", &[], true).expect("send");
        assert_eq!(receive(server.as_fd(), 8, true).expect("receive").expect("packet").bytes, b"hi");
        std::fs::remove_dir_all(&base).expect("rm");
    }
}
