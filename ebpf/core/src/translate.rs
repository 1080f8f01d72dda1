//! Rewriting a packet from one tuple to another, checksums included.

use pith_abi::{Tuple, proto};

use crate::{
    Covered, Packet, checksum,
    packet::{Header, L3},
};

const TTL: u32 = 8;
const L3_CHECKSUM: u32 = 10;
const ADDRESSES: u32 = 12;

/// What to do with the hop count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hops {
    /// The host stack forwards the packet and counts the hop.
    Keep,
    /// The packet goes past the stack: this is the hop.
    Count,
}

/// Turns a packet with tuple `from` into one with tuple `to`. `None` when the packet could not be
/// written; it may then be changed in part and must not go on.
#[inline(always)]
pub fn translate<P: Packet>(
    packet: &mut P,
    header: &Header,
    from: &Tuple,
    to: &Tuple,
    hops: Hops,
) -> Option<()> {
    let addresses =
        checksum::add(checksum::diff(from.src_be, to.src_be), checksum::diff(from.dst_be, to.dst_be));
    let moved = from.src_be != to.src_be || from.dst_be != to.dst_be;
    address(packet, header, to.src_be, to.dst_be, addresses, hops)?;

    let ports = checksum::diff(ports(from), ports(to));
    let ports_moved = from.sport_be != to.sport_be || from.dport_be != to.dport_be;
    match header.proto {
        proto::TCP | proto::UDP => {
            let udp = header.proto == proto::UDP;
            let field = header.l4 + if udp { 6 } else { 16 };
            if moved {
                let covered = Covered { pseudo_header: true, zero_is_none: udp };
                packet.update_l4_checksum(field, addresses, covered)?;
            }
            if ports_moved {
                let covered = Covered { pseudo_header: false, zero_is_none: udp };
                packet.update_l4_checksum(field, ports, covered)?;
                packet.store(header.l4, &ports_bytes(to))?;
            }
        }
        // The identifier of an echo message stands in one of the ports, the other is 0.
        proto::ICMP if ports_moved => {
            let covered = Covered { pseudo_header: false, zero_is_none: false };
            packet.update_l4_checksum(header.l4 + 2, ports, covered)?;
            packet.store(header.l4 + 4, &(to.sport_be | to.dport_be).to_ne_bytes())?;
        }
        _ => {}
    }
    Some(())
}

/// Writes addresses and hop count of the IPv4 header; `addresses` is the checksum difference they make.
#[inline(always)]
pub(crate) fn address<P: Packet>(
    packet: &mut P,
    header: &Header,
    src_be: u32,
    dst_be: u32,
    addresses: u32,
    hops: Hops,
) -> Option<()> {
    let mut sum = addresses;
    if hops == Hops::Count {
        let from = u16::from_ne_bytes([header.ttl, header.proto]);
        let to = u16::from_ne_bytes([header.ttl.wrapping_sub(1), header.proto]);
        sum = checksum::add(sum, checksum::diff(u32::from(from), u32::from(to)));
        packet.store(L3 + TTL, &[header.ttl.wrapping_sub(1)])?;
    }
    packet.update_l3_checksum(L3 + L3_CHECKSUM, sum)?;
    let (src, dst) = (src_be.to_ne_bytes(), dst_be.to_ne_bytes());
    packet.store(L3 + ADDRESSES, &[src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3]])
}

#[inline(always)]
fn ports_bytes(tuple: &Tuple) -> [u8; 4] {
    let (sport, dport) = (tuple.sport_be.to_ne_bytes(), tuple.dport_be.to_ne_bytes());
    [sport[0], sport[1], dport[0], dport[1]]
}

#[inline(always)]
fn ports(tuple: &Tuple) -> u32 {
    u32::from_ne_bytes(ports_bytes(tuple))
}
