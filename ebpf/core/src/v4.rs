//! IPv4: how its packets are read and written. What of it an error carries is in [`crate::icmp`].

use pith_abi::{StandIn, Tuple};

use crate::{
    Bytes, Packet, checksum,
    icmp::{self, IcmpError},
    packet::{Header, L3, Transport},
    quic,
    translate::{Hops, address, translate},
};

/// A protocol that nothing is known of: "no next header" of IPv6.
const NOTHING: u8 = 59;
/// Flags and fragment offset in an IPv4 header; hop count, protocol and checksum follow.
const FLAGS: u32 = L3 + 6;
/// The bit of the flags that RFC 791 reserves, and that Linux does not look at: marks what is handed on.
const MARK: u8 = 0x80;

impl<B: Bytes> Packet for B {
    #[inline(always)]
    fn header(&self) -> Option<Header> {
        let mut header = Header::parse(self)?;
        // What is a number of an IPv6 address here is no place of a flow.
        if StandIn::of(header.dst_be).is_some() {
            header.proto = NOTHING;
        }
        Some(header)
    }

    #[inline(always)]
    fn transport(&self, header: &Header) -> Option<Transport> {
        header.transport(self)
    }

    #[inline(always)]
    fn translate(&mut self, header: &Header, from: &Tuple, to: &Tuple, hops: Hops) -> Option<()> {
        translate(self, header, from, to, hops)
    }

    #[inline(always)]
    fn readdress(&mut self, header: &Header, src_be: u32, dst_be: u32, hops: Hops) -> Option<()> {
        let addresses =
            checksum::add(checksum::diff(header.src_be, src_be), checksum::diff(header.dst_be, dst_be));
        address(self, header, src_be, dst_be, addresses, hops)
    }

    #[inline(always)]
    fn inside(&self, header: &Header) -> Option<Tuple> {
        icmp::inside(self, header)
    }

    #[inline(always)]
    fn translate_error(&mut self, header: &Header, error: &IcmpError, hops: Hops) -> Option<()> {
        icmp::translate(self, header, error, hops)
    }

    #[inline(always)]
    fn server(&self, header: &Header) -> Option<u32> {
        let [_, a, b, c, d] = quic::beginning::<5, _>(self, header)?;
        Some(u32::from_ne_bytes([a, b, c, d]))
    }

    #[inline(always)]
    fn is_handed_on(&self) -> bool {
        match self.peek::<1>(FLAGS) {
            Some([flags]) => flags & MARK != 0,
            None => false,
        }
    }

    #[inline(always)]
    fn hand_on(&mut self, header: &Header, begins: bool) -> Option<()> {
        let [flags, offset] = self.peek::<2>(FLAGS)?;
        let now = flags | if begins { MARK } else { 0 };
        let ttl = header.ttl.wrapping_sub(1);
        let change = checksum::add(
            checksum::diff(word(flags, offset), word(now, offset)),
            checksum::diff(word(header.ttl, header.proto), word(ttl, header.proto)),
        );
        let sum = checksum::apply(header.checksum, change).to_ne_bytes();
        self.store(FLAGS, &[now, offset, ttl, header.proto, sum[0], sum[1]])
    }
}

/// A 16-bit word of the header.
#[inline(always)]
fn word(first: u8, second: u8) -> u32 {
    u32::from(u16::from_ne_bytes([first, second]))
}
