//! Rewriting a packet from one tuple to another, checksums included.

use pith_abi::{Tuple, proto};

use crate::{
    Bytes, Covered, PseudoHeader, checksum, crc,
    packet::{Header, L3},
};

/// Where the hop count lies in an IPv4 header; protocol, checksum and addresses follow.
const TTL: u32 = 8;

/// What to do with the hop count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hops {
    /// The host stack forwards the packet and counts the hop.
    Keep = 0,
    /// The packet goes past the stack: this is the hop.
    Count = 1,
}

/// Turns a packet with tuple `from` into one with tuple `to`. `None` when the packet could not be
/// written; it may then be changed in part and must not go on.
#[inline(always)]
pub fn translate<P: Bytes>(
    packet: &mut P,
    header: &Header,
    from: &Tuple,
    to: &Tuple,
    hops: Hops,
) -> Option<()> {
    let addresses =
        checksum::add(checksum::diff(from.src_be, to.src_be), checksum::diff(from.dst_be, to.dst_be));
    let network = network(header, to.src_be, to.dst_be, addresses, hops);
    // What did not change makes a difference of nothing: asking first would only give the verifier more
    // ways to walk.
    let ports = checksum::diff(ports(from), ports(to));
    if from.proto == proto::ICMP {
        packet.store(L3 + TTL, &network)?;
        // The identifier of an echo message stands in one of the ports, the other is 0.
        let covered = Covered { pseudo_header: PseudoHeader::None, zero_is_none: false };
        packet.update_l4_checksum(header.l4 + 2, ports, covered)?;
        return packet.store(header.l4 + 4, &(to.sport_be | to.dport_be).to_ne_bytes());
    }
    if from.proto == proto::SCTP {
        packet.store(L3 + TTL, &network)?;
        return sctp(packet, header, from, to);
    }
    let zero_is_none = from.proto == proto::UDP;
    let field = header.l4 + if zero_is_none { 6 } else { 16 };
    packet.update_l4_checksum(
        field,
        addresses,
        Covered { pseudo_header: PseudoHeader::Ipv4, zero_is_none },
    )?;
    packet.update_l4_checksum(field, ports, Covered { pseudo_header: PseudoHeader::None, zero_is_none })?;
    // Without options the ports follow the addresses, and one call of the kernel's less is a tenth of all that a
    // packet costs.
    if header.l4 == L3 + TTL + 12 {
        return packet.store(L3 + TTL, &joined(network, ports_bytes(to)));
    }
    packet.store(L3 + TTL, &network)?;
    packet.store(header.l4, &ports_bytes(to))
}

/// The ports of SCTP and its checksum, which covers no addresses, and lies in the first of the pieces only where there
/// is but one.
#[inline(always)]
pub(crate) fn sctp<P: Bytes>(packet: &mut P, header: &Header, from: &Tuple, to: &Tuple) -> Option<()> {
    let length = header.length.wrapping_sub((header.l4 - L3) as u16);
    let carry = packet.crc_carry(u32::from(length / 4))?;
    let change = crc::diff(ports_bytes(from), ports_bytes(to), carry);
    let sum = u32::from_le_bytes(packet.load::<4>(header.l4 + 8)?) ^ change;
    packet.store(header.l4 + 8, &sum.to_le_bytes())?;
    packet.store(header.l4, &ports_bytes(to))
}

/// Writes what [`network`] gives.
#[inline(always)]
pub(crate) fn address<P: Bytes>(
    packet: &mut P,
    header: &Header,
    src_be: u32,
    dst_be: u32,
    addresses: u32,
    hops: Hops,
) -> Option<()> {
    packet.store(L3 + TTL, &network(header, src_be, dst_be, addresses, hops))
}

/// Hop count, protocol, checksum and addresses of the IPv4 header; `addresses` is the checksum difference
/// the latter make. This checksum is always complete, unlike those of transport headers.
#[inline(always)]
fn network(header: &Header, src_be: u32, dst_be: u32, addresses: u32, hops: Hops) -> [u8; 12] {
    let ttl = header.ttl.wrapping_sub(hops as u8);
    let hop = checksum::diff(ttl_word(header.ttl, header.proto), ttl_word(ttl, header.proto));
    let sum = checksum::apply(header.checksum, checksum::add(addresses, hop)).to_ne_bytes();
    let (src, dst) = (src_be.to_ne_bytes(), dst_be.to_ne_bytes());
    [ttl, header.proto, sum[0], sum[1], src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3]]
}

#[inline(always)]
fn joined([a, b, c, d, e, f, g, h, i, j, k, l]: [u8; 12], [m, n, o, p]: [u8; 4]) -> [u8; 16] {
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// The 16-bit word of the header that the hop count lies in.
#[inline(always)]
fn ttl_word(ttl: u8, proto: u8) -> u32 {
    u32::from(u16::from_ne_bytes([ttl, proto]))
}

#[inline(always)]
fn ports_bytes(tuple: &Tuple) -> [u8; 4] {
    let (sport, dport) = (tuple.sport_be.to_ne_bytes(), tuple.dport_be.to_ne_bytes());
    [sport[0], sport[1], dport[0], dport[1]]
}

/// Both as they lie in a packet.
#[inline(always)]
pub(crate) fn ports(tuple: &Tuple) -> u32 {
    u32::from_ne_bytes(ports_bytes(tuple))
}
