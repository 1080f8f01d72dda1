//! Parsing: what of a packet's headers decisions depend on.

use core::hint::black_box;

use pith_abi::{Tuple, proto};

use crate::Bytes;

/// Offset of the IPv4 header: the programs are attached to devices with Ethernet headers.
pub const L3: u32 = 14;

/// Bits of the TCP flags byte (RFC 9293).
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;

    /// Whether a segment asks for a new connection.
    #[inline(always)]
    pub const fn opens(flags: u8) -> bool {
        flags & (SYN | ACK | RST) == SYN
    }
}

/// What an IP header says; that of IPv6 with those that follow it ([`crate::six`]), addresses as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub src_be: u32,
    pub dst_be: u32,
    pub proto: u8,
    pub ttl: u8,
    /// The header's own checksum as it lies there; IPv6 has none.
    pub checksum: u16,
    /// A fragment other than the first: it has no transport header.
    pub later_fragment: bool,
    /// A fragment that others follow.
    pub more_fragments: bool,
    /// IPv4 fills the first two bytes.
    pub id_be: u32,
    /// 4 or 6.
    pub family: u8,
    /// Bytes of header and payload, as the header says.
    pub length: u16,
    /// Offset of the transport header.
    pub l4: u32,
}

/// What follows the IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A packet with a place in a flow; the flags are 0 for anything but TCP.
    Flow { tuple: Tuple, tcp_flags: u8 },
    /// An ICMP error; a packet lies inside it.
    IcmpError,
    /// Nothing that could be translated.
    Other,
}

impl Header {
    /// `None` when this is no complete IPv4 header.
    #[inline(always)]
    pub fn parse<P: Bytes>(packet: &P) -> Option<Self> {
        Self::from_bytes(&packet.peek::<20>(L3)?, L3)
    }

    /// From the first 20 bytes of a header that lies at `offset`.
    #[inline(always)]
    pub fn from_bytes(bytes: &[u8; 20], offset: u32) -> Option<Self> {
        let length = u32::from(bytes[0] & 0x0F) * 4;
        if bytes[0] >> 4 != 4 || length < 20 {
            return None;
        }
        Some(Self {
            src_be: u32::from_ne_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]),
            dst_be: u32::from_ne_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]),
            proto: bytes[9],
            ttl: bytes[8],
            checksum: u16::from_ne_bytes([bytes[10], bytes[11]]),
            later_fragment: (bytes[6] & 0x1F) | bytes[7] != 0,
            more_fragments: bytes[6] & 0x20 != 0,
            id_be: u32::from_ne_bytes([bytes[4], bytes[5], 0, 0]),
            family: 4,
            length: u16::from_be_bytes([bytes[2], bytes[3]]),
            l4: offset + length,
        })
    }

    /// `None` when the transport header is not complete.
    #[inline(always)]
    pub fn transport<P: Bytes>(&self, packet: &P) -> Option<Transport> {
        match self.proto {
            proto::TCP => {
                let bytes = packet.peek::<20>(self.l4)?;
                Some(self.flow([bytes[0], bytes[1]], [bytes[2], bytes[3]], bytes[13]))
            }
            proto::UDP => {
                let bytes = packet.load::<8>(self.l4)?;
                Some(self.flow([bytes[0], bytes[1]], [bytes[2], bytes[3]], 0))
            }
            proto::SCTP => {
                let bytes = packet.load::<12>(self.l4)?;
                Some(self.flow([bytes[0], bytes[1]], [bytes[2], bytes[3]], 0))
            }
            proto::ICMP => {
                let bytes = packet.load::<8>(self.l4)?;
                Some(match icmp_ports(&bytes) {
                    Some((source, destination)) => self.flow(source, destination, 0),
                    None if icmp::is_error(bytes[0]) => Transport::IcmpError,
                    None => Transport::Other,
                })
            }
            _ => Some(Transport::Other),
        }
    }

    #[inline(always)]
    pub(crate) fn flow(&self, source: [u8; 2], destination: [u8; 2], tcp_flags: u8) -> Transport {
        let (sport, dport) = (u16::from_ne_bytes(source), u16::from_ne_bytes(destination));
        // Else the verifier walks all that follows once for each protocol.
        let [_, proto, tcp_flags, _] = black_box([0, self.proto, tcp_flags, 0]);
        Transport::Flow { tuple: Tuple::new(self.src_be, sport, self.dst_be, dport, proto), tcp_flags }
    }
}

/// ICMP types (RFC 792).
pub mod icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const ECHO_REQUEST: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;

    #[inline(always)]
    pub const fn is_error(kind: u8) -> bool {
        matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
    }
}

/// Where the identifier of an echo message stands in a [`Tuple`]; `None` for other messages, and for an answer with
/// none, which would be taken for a request: no flow has it, as translated requests have identifiers.
#[inline(always)]
pub(crate) fn icmp_ports(bytes: &[u8; 8]) -> Option<([u8; 2], [u8; 2])> {
    let id = [bytes[4], bytes[5]];
    match bytes[0] {
        icmp::ECHO_REQUEST => Some((id, [0, 0])),
        icmp::ECHO_REPLY if id != [0, 0] => Some(([0, 0], id)),
        _ => None,
    }
}
