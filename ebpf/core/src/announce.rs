//! Addresses that no interface has: this node answers for them by ARP (RFC 826), so that the network in front
//! of it brings their packets here.

use pith_abi::{NodeClass, Reason};

use crate::{Packet, Tables, Verdict, packet::L3};

const ETHERNET_HEADER: usize = 14;
/// Hardware Ethernet, protocol IPv4, lengths 6 and 4, operation 1.
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];

/// An ARP packet arrives at the uplink.
#[inline(always)]
pub fn arp<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
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
