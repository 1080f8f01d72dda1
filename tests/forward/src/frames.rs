//! Packets as they come off a wire: one of each connection that stands, sent again and again by a packet socket.
//!
//! No socket of the client's is in between, so that what is measured is the way of a packet: over the node, through
//! rules or programs, to the backend's TCP, for which it is one more acknowledgement of what it knows already.

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, bind, recv, sendmmsg,
    socket,
};
use pith_core::checksum;
use pith_core::packet::tcp;
use rustix::net::sockopt::{Timeout, set_socket_timeout, set_tcp_quickack};

use crate::load;
use crate::server::{ECHO, THREADS};

/// Frames that one system call sends.
const BATCH: usize = 64;
/// How long the acknowledgement of a byte may take: longer than the 40 ms by which TCP may delay it.
const DEADLINE: Duration = Duration::from_secs(2);
/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// What one round of sending came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) packets: u64,
    elapsed: Duration,
}

impl Sent {
    #[expect(clippy::cast_precision_loss, reason = "packets of a round are far below 2^52")]
    pub(crate) fn rate(self) -> f64 {
        self.packets as f64 / self.elapsed.as_secs_f64()
    }
}

/// Connects to each target and sends packets of these connections in turn for as long as `time`.
///
/// The calling thread's network namespace must have one interface besides `lo`.
pub(crate) fn repeat(targets: &[SocketAddrV4], time: Duration) -> Result<Sent> {
    let interface = interface()?;
    let tap = packet_socket(&interface, Some(SockProtocol::EthAll))?;
    // A server's thread has one connection at a time.
    let targets = targets.iter().take(THREADS);
    let connections: Vec<(TcpStream, Vec<u8>)> =
        targets.map(|target| established(&tap, *target)).collect::<Result<_>>()?;
    drop(tap);
    let frames = connections.iter().map(|(_, frame)| [IoSlice::new(frame)]);
    let frames: Vec<[IoSlice<'_>; 1]> = frames.cycle().take(BATCH).collect();

    let sender = packet_socket(&interface, None)?;
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let nowhere = [None; BATCH];
    let mut packets = 0;
    let begin = Instant::now();
    while begin.elapsed() < time {
        let sent = sendmmsg(sender.as_raw_fd(), &mut headers, &frames, nowhere, [], MsgFlags::empty());
        packets += sent.context("send frames")?.count() as u64;
    }
    Ok(Sent { packets, elapsed: begin.elapsed() })
}

/// The link-layer address of the namespace's only way out.
fn interface() -> Result<LinkAddr> {
    let mut all = getifaddrs().context("list interfaces")?;
    all.find_map(
        |entry| if entry.interface_name == "lo" { None } else { entry.address?.as_link_addr().copied() },
    )
    .context("no interface but lo")
}

/// Without a protocol it receives nothing.
fn packet_socket(interface: &LinkAddr, protocol: Option<SockProtocol>) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
        .context("make a packet socket")?;
    set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE)).context("a deadline")?;
    bind(socket.as_raw_fd(), interface).context("bind a packet socket")?;
    Ok(socket)
}

/// A connection over which a byte went there and back, and the acknowledgement of that.
fn established(tap: &OwnedFd, target: SocketAddrV4) -> Result<(TcpStream, Vec<u8>)> {
    let mut stream = load::connect(target)?;
    set_tcp_quickack(&stream, true).context("TCP_QUICKACK")?;
    stream.write_all(&[ECHO]).context("send a byte")?;
    stream.read_exact(&mut [0]).context("receive a byte")?;
    let port = stream.local_addr().context("an address")?.port();
    let mut buffer = [0; 2048];
    let mut has_asked = false;
    loop {
        let length = recv(tap.as_raw_fd(), &mut buffer, MsgFlags::empty())
            .with_context(|| format!("see an acknowledgement to {target} within {DEADLINE:?}"))?;
        let Some(segment) = Segment::parse(&buffer[..length]).filter(|segment| segment.source == port) else {
            continue;
        };
        // The acknowledgement in the handshake is an old one by now.
        has_asked |= segment.payload;
        if has_asked && !segment.payload && segment.flags == tcp::ACK {
            return Ok((stream, whole(buffer[..length].to_vec())));
        }
    }
}

/// What has to be known of a TCP segment.
struct Segment {
    source: u16,
    flags: u8,
    payload: bool,
}

impl Segment {
    /// Of a frame with IPv4 and no options of it.
    fn parse(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(ETHERNET..).filter(|_| frame[12..14] == [8, 0])?;
        let segment = ip.get(20..).filter(|_| ip[0] == 0x45 && ip[9] == pith_abi::proto::TCP)?;
        let header = usize::from(segment.get(12)? >> 4) * 4;
        let length = usize::from(u16::from_be_bytes([ip[2], ip[3]])) - 20;
        Some(Self {
            source: u16::from_be_bytes([segment[0], segment[1]]),
            flags: *segment.get(13)?,
            payload: length > header,
        })
    }
}

/// The frame with TCP's checksum, which a stack leaves to the interface.
fn whole(mut frame: Vec<u8>) -> Vec<u8> {
    let (head, segment) = frame.split_at_mut(ETHERNET + 20);
    let addresses = &head[ETHERNET + 12..];
    let length = u16::try_from(segment.len()).unwrap_or(u16::MAX).to_be_bytes();
    segment[16..18].fill(0);
    // The pseudo header of RFC 9293, section 3.1: addresses, protocol, length.
    let pseudo = [addresses, &[0, pith_abi::proto::TCP], &length].concat();
    let sum = pseudo.chunks(2).chain(segment.chunks(2)).fold(0, |sum, word| {
        checksum::add(sum, u16::from_ne_bytes([word[0], *word.get(1).unwrap_or(&0)]).into())
    });
    let field = !checksum::fold(sum);
    segment[16..18].copy_from_slice(&field.to_ne_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use pith_abi::{Tuple, proto};
    use pith_core::host::wire;

    use super::*;

    #[test]
    fn a_checksum_that_was_left_open_is_filled_in() {
        let tuple = Tuple::new(1, 2_u16.to_be(), 3, 4_u16.to_be(), proto::TCP);
        for payload in [&b""[..], b"odd", b"even"] {
            let frame = wire::packet(&tuple, tcp::ACK, payload).0;
            let mut open = frame.clone();
            open[ETHERNET + 20 + 16..][..2].copy_from_slice(&[0x12, 0x34]);
            assert_eq!(whole(open), frame);
            let segment = Segment::parse(&frame).expect("TCP in IPv4");
            assert_eq!((segment.source, segment.flags, segment.payload), (2, tcp::ACK, !payload.is_empty()));
        }
    }
}
