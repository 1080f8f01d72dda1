//! Addresses that no interface has: this node answers for them by ARP (RFC 826) and as a neighbour of IPv6 (RFC 4861),
//! so that the network in front of it brings their packets here.

use pith_abi::{Address6, NodeClass, Reason};

use crate::{
    Bytes, Tables, Verdict, checksum,
    packet::L3,
    six::{Addresses, icmp6, stand_in},
};

const ETHERNET_HEADER: usize = 14;
/// Hardware Ethernet, protocol IPv4, lengths 6 and 4, operation 1.
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];

/// An ARP packet arrives at the uplink.
#[inline(always)]
pub fn arp<P: Bytes, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let pass = Verdict::Pass(Reason::UplinkNotIpv4);
    let Some(node) = tables.node() else { return pass };
    let Some(ask) = packet.load::<28>(L3) else { return pass };
    let mut head = [0; 8];
    head.copy_from_slice(&ask[..8]);
    let wanted_be = u32::from_ne_bytes([ask[24], ask[25], ask[26], ask[27]]);
    if head != REQUEST || tables.node_class(wanted_be) & NodeClass::ANNOUNCED == 0 {
        return pass;
    }
    let mut ethernet = [0; ETHERNET_HEADER];
    ethernet[..6].copy_from_slice(&ask[8..14]);
    ethernet[6..12].copy_from_slice(&node.mac);
    ethernet[12..].copy_from_slice(&[8, 6]);
    let mut reply = ask;
    reply[7] = 2;
    reply[8..14].copy_from_slice(&node.mac);
    reply[14..18].copy_from_slice(&ask[24..28]);
    reply[18..28].copy_from_slice(&ask[8..18]);
    match packet.store(0, &ethernet).and_then(|()| packet.store(L3, &reply)) {
        Some(()) => Verdict::Return(Reason::Announced),
        None => Verdict::Drop(Reason::RewriteFailed),
    }
}

/// Whoever is asked for in the solicitation of a neighbour; nothing but the address of the link that asks follows.
const SOLICITATION: u32 = 32;
const ICMP6: u32 = L3 + 40;
const ICMP6_PROTO: u8 = 58;
/// Of an advertisement: asked for, and to be put in the place of what is known.
const SOLICITED_OVERRIDE: u8 = 0x60;
const TARGET_LINK: [u8; 2] = [2, 1];

/// A packet of IPv6 arrives at the uplink: `None` where it asks for no address that is announced here.
#[inline(always)]
pub fn neighbor<P: Bytes, A: Addresses>(packet: &mut P, maps: &A) -> Option<Verdict> {
    let [_, _, _, _, high, low, proto, hops] = packet.peek::<8>(L3)?;
    let [kind, code] = packet.peek::<2>(ICMP6)?;
    let length = u32::from(u16::from_be_bytes([high, low]));
    // From the link itself: who asks from elsewhere has lost a hop.
    if (proto, hops, kind, code) != (ICMP6_PROTO, 255, icmp6::NEIGHBOR_SOLICITATION, 0)
        || length != SOLICITATION
    {
        return None;
    }
    let target = packet.load::<16>(ICMP6 + 8)?;
    let standin = stand_in(maps, &Address6::from_octets(target))?;
    if maps.node_class(standin.addr_be) & NodeClass::ANNOUNCED == 0 {
        return None;
    }
    let node = maps.node()?;
    let (asker, link) = (packet.load::<16>(L3 + 8)?, packet.load::<6>(6)?);
    let mut reply = [0; SOLICITATION as usize];
    reply[0] = icmp6::NEIGHBOR_ADVERTISEMENT;
    reply[4] = SOLICITED_OVERRIDE;
    reply[8..24].copy_from_slice(&target);
    reply[24..26].copy_from_slice(&TARGET_LINK);
    reply[26..].copy_from_slice(&node.mac);
    let pseudo = [0, 0, 0, SOLICITATION as u8, 0, 0, 0, ICMP6_PROTO];
    let sum = checksum::add(
        checksum::add(checksum::sum(&target), checksum::sum(&asker)),
        checksum::add(checksum::sum(&pseudo), checksum::sum(&reply)),
    );
    reply[2..4].copy_from_slice(&(!checksum::fold(sum)).to_ne_bytes());
    let written = packet
        .store(0, &link)
        .and_then(|()| packet.store(6, &node.mac))
        .and_then(|()| packet.store(L3 + 8, &target))
        .and_then(|()| packet.store(L3 + 24, &asker))
        .and_then(|()| packet.store(ICMP6, &reply));
    Some(match written {
        Some(()) => Verdict::Return(Reason::Announced),
        None => Verdict::Drop(Reason::RewriteFailed),
    })
}
