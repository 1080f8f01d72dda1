//! Addresses that no interface has, told to those on the uplink's link.
//!
//! Programs answer who asks (`pith_core::announce`). Who asks for an IPv6 address asks a group of multicast, so the
//! node has to be a member of it, else switches and network cards keep the question away: this is what stays here for
//! as long as the address is announced.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
};

use pith_core::checksum;

use crate::kernel;

/// `ETH_P_ARP` and `ETH_P_IPV6`.
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86DD;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xFF02, 0, 0, 0, 0, 0, 0, 1);

#[derive(Debug, Default)]
pub(crate) struct Neighbors {
    /// Addresses that have the same last bits have the same group. The socket's end is the membership's.
    groups: BTreeMap<Ipv6Addr, (UdpSocket, BTreeSet<Ipv6Addr>)>,
}

impl Neighbors {
    /// Tells all neighbours at an interface that an address is to be found here.
    pub(crate) fn announce(&mut self, interface: &str, mac: [u8; 6], address: IpAddr) -> io::Result<()> {
        let index = nix::net::if_::if_nametoindex(interface)?;
        match address {
            IpAddr::V4(address) => kernel::send_frame(index, ARP, &arp(mac, address)),
            IpAddr::V6(address) => {
                let group = solicited_node(address);
                if let Some((_, members)) = self.groups.get_mut(&group) {
                    members.insert(address);
                } else {
                    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
                    socket.join_multicast_v6(&group, index)?;
                    self.groups.insert(group, (socket, BTreeSet::from([address])));
                }
                kernel::send_frame(index, IPV6, &advertisement(mac, address))
            }
        }
    }

    /// An address is not announced any more.
    pub(crate) fn leave(&mut self, address: IpAddr) {
        let IpAddr::V6(address) = address else { return };
        let group = solicited_node(address);
        if let Some((_, members)) = self.groups.get_mut(&group) {
            members.remove(&address);
            if members.is_empty() {
                self.groups.remove(&group);
            }
        }
    }
}

/// The group that is asked for an address (RFC 4291, section 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b] = address.segments();
    Ipv6Addr::new(0xFF02, 0, 0, 0, 0, 1, 0xFF00 | (a & 0xFF), b)
}

/// Gratuitous ARP (RFC 5227).
fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let ip = address.octets();
    let kind = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    [&[0xFF; 6][..], &mac, &kind, &mac, &ip, &[0; 6], &ip].concat()
}

/// The advertisement of a neighbour that nobody asked for (RFC 4861, section 7.2.6).
fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let (from, to) = (address.octets(), ALL_NODES.octets());
    let ethernet = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xDD]].concat();
    let ip = [&[0x60, 0, 0, 0, 0, 32, 58, 255][..], &from, &to].concat();
    let mut message = [0; 32];
    message[0] = 136;
    // To be put in the place of what is known.
    message[4] = 0x20;
    message[8..24].copy_from_slice(&from);
    message[24..26].copy_from_slice(&[2, 1]);
    message[26..].copy_from_slice(&mac);
    let pseudo = [0, 0, 0, 32, 0, 0, 0, 58];
    let parts = [checksum::sum(&from), checksum::sum(&to), checksum::sum(&pseudo), checksum::sum(&message)];
    let sum = !checksum::fold(parts.into_iter().fold(0, checksum::add));
    message[2..4].copy_from_slice(&sum.to_ne_bytes());
    [ethernet, ip, message.to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_are_asked() {
        let address: Ipv6Addr = "2001:db8::1:800:200e:8c6c".parse().expect("an address");
        // The example of RFC 4291, section 2.7.1.
        assert_eq!(solicited_node(address), "ff02::1:ff0e:8c6c".parse::<Ipv6Addr>().expect("an address"));
    }

    #[test]
    fn advertisements_have_a_checksum() {
        let frame = advertisement([2, 0, 0, 0, 0, 9], "fd00::42".parse().expect("an address"));
        let message: [u8; 32] = frame[54..].try_into().expect("as long");
        let (from, to): ([u8; 16], [u8; 16]) =
            (frame[22..38].try_into().expect("16"), frame[38..54].try_into().expect("16"));
        let pseudo = [0, 0, 0, 32, 0, 0, 0, 58];
        let parts =
            [checksum::sum(&from), checksum::sum(&to), checksum::sum(&pseudo), checksum::sum(&message)];
        assert_eq!(checksum::fold(parts.into_iter().fold(0, checksum::add)), 0xFFFF);
    }
}
