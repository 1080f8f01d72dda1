//! Packets that no ordinary socket sends.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
    time::Instant,
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt,
        socket, sockopt::ReceiveTimeout,
    },
    time::{TimeVal, TimeValLike},
};
use pith_abi::{Tuple, proto};
use pith_core::host::wire;

use super::DEADLINE;

/// A socket for everything above IPv4 of one protocol.
pub(crate) struct Raw(std::os::fd::OwnedFd);

impl Raw {
    pub(crate) fn new(protocol: u8) -> Self {
        // The numbers of libc and of IP are the same for these.
        let kind = match protocol {
            1 => Some(SockProtocol::Icmp),
            _ => None,
        };
        let fd = match kind {
            Some(kind) => socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, kind),
            None => sctp(),
        };
        let fd = fd.expect("root may have raw sockets");
        setsockopt(&fd, ReceiveTimeout, &TimeVal::milliseconds(100)).expect("a timeout");
        Self(fd)
    }

    /// For packets that bring their own IPv4 header.
    pub(crate) fn headers() -> Self {
        let fd = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        Self(fd.expect("root may have raw sockets"))
    }

    pub(crate) fn send(&self, to: [u8; 4], bytes: &[u8]) {
        let [a, b, c, d] = to;
        let to = SockaddrIn::new(a, b, c, d, 0);
        sendto(self.0.as_raw_fd(), bytes, &to, MsgFlags::empty()).expect("sent");
    }

    /// The first packet that fits, from its IPv4 header on.
    pub(crate) fn receive<T>(&self, mut fits: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let started = Instant::now();
        let mut buffer = [0; 2048];
        while started.elapsed() < DEADLINE {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some(found) = fits(&buffer[..length]) {
                        return Some(found);
                    }
                }
                Err(nix::errno::Errno::EAGAIN) => {}
                Err(error) => panic!("receive: {}", io::Error::from(error)),
            }
        }
        None
    }
}

#[allow(unsafe_code, reason = "nix has no name for SCTP over raw sockets")]
fn sctp() -> nix::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the call takes numbers; the descriptor is new and nobody else's.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP);
        nix::errno::Errno::result(fd).map(|fd| std::os::fd::OwnedFd::from_raw_fd(fd))
    }
}

/// A UDP datagram in pieces of so many bytes of payload (a multiple of 8), each with its IPv4 header.
pub(crate) fn pieces(
    from: SocketAddrV4,
    to: SocketAddrV4,
    id: u16,
    data: &[u8],
    size: usize,
) -> Vec<Vec<u8>> {
    let be = |address: &Ipv4Addr| u32::from_ne_bytes(address.octets());
    let tuple = Tuple::new(be(from.ip()), from.port().to_be(), be(to.ip()), to.port().to_be(), proto::UDP);
    let whole = wire::packet(&tuple, 0, data).0.split_off(14);
    let (header, payload) = whole.split_at(20);
    let last = payload.len().div_ceil(size) - 1;
    let piece = |(nth, bytes): (usize, &[u8])| {
        let mut header = header.to_vec();
        header[2..4].copy_from_slice(&((20 + bytes.len()) as u16).to_be_bytes());
        header[4..6].copy_from_slice(&id.to_be_bytes());
        let more = u16::from(nth < last) << 13;
        header[6..8].copy_from_slice(&(more | (nth * size / 8) as u16).to_be_bytes());
        [&header, bytes].concat()
    };
    payload.chunks(size).enumerate().map(piece).collect()
}

/// Whether an address answers a ping; who answered.
pub(crate) fn ping(address: [u8; 4]) -> Option<[u8; 4]> {
    let socket = Raw::new(1);
    let mut request = [8, 0, 0, 0, 0x12, 0x34, 0, 1];
    let sum =
        !request.chunks(2).fold(0u32, |sum, word| sum + u32::from(u16::from_be_bytes([word[0], word[1]])));
    request[2..4].copy_from_slice(&(sum as u16).to_be_bytes());
    socket.send(address, &request);
    socket.receive(|packet| {
        let answer = packet[20] == 0 && packet[24..26] == [0x12, 0x34];
        answer.then(|| [packet[12], packet[13], packet[14], packet[15]])
    })
}
