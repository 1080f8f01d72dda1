//! Pieces of datagrams. Only the first has ports; where it was translated, the others follow it.
//!
//! Addresses alone change in the others: the transport checksum, which covers all pieces and the addresses,
//! stands in the first.

use pith_abi::{Fragment, FragmentKey, Tuple};

use crate::{
    Packet, Tables, checksum,
    packet::Header,
    translate::{Hops, address},
};

#[inline(always)]
fn key(header: &Header, hook: u8) -> FragmentKey {
    FragmentKey {
        src_be: header.src_be,
        dst_be: header.dst_be,
        id_be: header.id_be,
        proto: header.proto,
        hook,
    }
}

/// Has the other pieces follow a first one that becomes `to`.
#[inline(always)]
pub(crate) fn lead<T: Tables>(tables: &T, header: &Header, to: &Tuple, hook: u8) {
    if header.more_fragments {
        tables.set_fragment(&key(header, hook), &Fragment { src_be: to.src_be, dst_be: to.dst_be });
    }
}

/// What the addresses of a piece become, where its first was translated.
#[inline(always)]
pub(crate) fn led<T: Tables>(tables: &T, header: &Header, hook: u8) -> Option<Fragment> {
    tables.fragment(&key(header, hook))
}

/// Translates a piece other than the first.
#[inline(always)]
pub(crate) fn translate<P: Packet>(packet: &mut P, header: &Header, to: &Fragment, hops: Hops) -> Option<()> {
    let addresses =
        checksum::add(checksum::diff(header.src_be, to.src_be), checksum::diff(header.dst_be, to.dst_be));
    address(packet, header, to.src_be, to.dst_be, addresses, hops)
}
