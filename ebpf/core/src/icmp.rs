//! ICMP errors about translated flows: the packet inside is shown to its sender as it was sent, else the
//! sender could not tell which of its connections is meant and path MTU discovery would fail.
//!
//! Let I be the tuple of the packet inside, R its reverse. Where R is the key of a flow's record, I is a
//! forward packet after translation, and its sender knows it as the record's `forward`. Where R is in
//! the forward index, I is a translated reply, and its sender knows it as the record's key.

use pith_abi::{NodeConfig, StandIn, Tuple, proto};

use crate::{
    Bytes, Covered, Packet, PseudoHeader, Record, Tables, checksum,
    packet::{Header, icmp_ports},
    translate::{Hops, address},
};

/// Length of an ICMP error's own header (RFC 792).
const ICMP_HEADER: u32 = 8;
/// What of the packet inside is looked at: a header without options and the 64 bits after it that RFC 792
/// promises.
const INSIDE: usize = 28;

/// An ICMP error about a translated flow, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Addresses of the error itself after translation.
    pub src_be: u32,
    pub dst_be: u32,
    /// Tuple of the packet inside, now and after translation.
    pub inside: Tuple,
    pub known: Tuple,
}

/// Reads an ICMP error; `None` when it is about no flow of ours.
#[inline(always)]
pub fn parse<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    header: &Header,
    node: &NodeConfig,
) -> Option<IcmpError> {
    let inside = packet.inside(header)?;
    let known = as_sent(tables, &inside)?;
    // The far end of the flow is shown under the address the sender knows it by; so is a hop on the way
    // that is one of our pods' gateways. Other hops speak for themselves.
    let src_be = if header.src_be == inside.dst_be {
        known.dst_be
    } else if tables.is_local_pod(node, header.src_be) {
        node.addr_be
    } else {
        header.src_be
    };
    Some(IcmpError { src_be, dst_be: known.src_be, inside, known })
}

/// The tuple of the packet inside an error of IPv4.
#[inline(always)]
pub(crate) fn inside<B: Bytes>(packet: &B, header: &Header) -> Option<Tuple> {
    let tuple = tuple_inside(&packet.load::<INSIDE>(header.l4 + ICMP_HEADER)?)?;
    // What has such an address is a flow of IPv6.
    if StandIn::of(tuple.src_be).is_some() || StandIn::of(tuple.dst_be).is_some() {
        return None;
    }
    Some(tuple)
}

/// Translates an error of IPv4 together with the packet inside it. `None` when the packet could not be written.
#[inline(always)]
pub(crate) fn translate<B: Bytes>(
    packet: &mut B,
    header: &Header,
    error: &IcmpError,
    hops: Hops,
) -> Option<()> {
    let old = packet.load::<INSIDE>(header.l4 + ICMP_HEADER)?;
    let new = rewritten(&old, &error.inside, &error.known);
    let covered = Covered { pseudo_header: PseudoHeader::None, zero_is_none: false };
    packet.update_l4_checksum(header.l4 + 2, checksum::diff_bytes(&old, &new), covered)?;
    packet.store(header.l4 + ICMP_HEADER, &new)?;
    let addresses = checksum::add(
        checksum::diff(header.src_be, error.src_be),
        checksum::diff(header.dst_be, error.dst_be),
    );
    address(packet, header, error.src_be, error.dst_be, addresses, hops)
}

/// The tuple under which its sender knows the packet inside.
#[inline(always)]
fn as_sent<T: Tables>(tables: &T, inside: &Tuple) -> Option<Tuple> {
    let reversed = inside.reversed();
    if let Some(record) = tables.flow(&reversed) {
        return Some(record.get().forward);
    }
    let key = tables.forward(&reversed)?;
    let live = tables.flow(&key)?.get().forward == reversed;
    if live { Some(key) } else { None }
}

#[inline(always)]
fn tuple_inside(bytes: &[u8; INSIDE]) -> Option<Tuple> {
    let mut head = [0; 20];
    head.copy_from_slice(&bytes[..20]);
    let header = Header::from_bytes(&head, 0)?;
    if header.l4 != 20 || header.later_fragment {
        return None;
    }
    let (source, destination) = match header.proto {
        proto::TCP | proto::UDP | proto::SCTP => ([bytes[20], bytes[21]], [bytes[22], bytes[23]]),
        proto::ICMP => {
            let mut message = [0; 8];
            message.copy_from_slice(&bytes[20..]);
            icmp_ports(&message)?
        }
        _ => return None,
    };
    let (sport, dport) = (u16::from_ne_bytes(source), u16::from_ne_bytes(destination));
    Some(Tuple::new(header.src_be, sport, header.dst_be, dport, header.proto))
}

/// The packet inside with tuple `to` and its own checksums brought up to date where they are there. TCP's
/// lies beyond the bytes that are.
#[inline(always)]
fn rewritten(old: &[u8; INSIDE], from: &Tuple, to: &Tuple) -> [u8; INSIDE] {
    let mut new = *old;
    new[12..16].copy_from_slice(&to.src_be.to_ne_bytes());
    new[16..20].copy_from_slice(&to.dst_be.to_ne_bytes());
    let addresses =
        checksum::add(checksum::diff(from.src_be, to.src_be), checksum::diff(from.dst_be, to.dst_be));
    update(&mut new, 10, addresses);

    let (from_port, to_port) = (from.sport_be.to_ne_bytes(), to.sport_be.to_ne_bytes());
    let (from_dport, to_dport) = (from.dport_be.to_ne_bytes(), to.dport_be.to_ne_bytes());
    let ports = checksum::diff(
        u32::from_ne_bytes([from_port[0], from_port[1], from_dport[0], from_dport[1]]),
        u32::from_ne_bytes([to_port[0], to_port[1], to_dport[0], to_dport[1]]),
    );
    if from.proto == proto::ICMP {
        let id = (to.sport_be | to.dport_be).to_ne_bytes();
        new[24] = id[0];
        new[25] = id[1];
        update(&mut new, 22, ports);
    } else {
        new[20] = to_port[0];
        new[21] = to_port[1];
        new[22] = to_dport[0];
        new[23] = to_dport[1];
        if from.proto == proto::UDP && (new[26] | new[27]) != 0 {
            update(&mut new, 26, checksum::add(addresses, ports));
        }
    }
    new
}

#[inline(always)]
fn update(bytes: &mut [u8; INSIDE], at: usize, diff: u32) {
    let field = checksum::apply(u16::from_ne_bytes([bytes[at], bytes[at + 1]]), diff).to_ne_bytes();
    bytes[at] = field[0];
    bytes[at + 1] = field[1];
}
