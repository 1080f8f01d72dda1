//! Pieces of datagrams. Only the first has ports; what becomes of it is noted, and the others follow.
//!
//! ```text
//!  first ──► noted; do others wait? ──no──► translated, or passed
//!                        └─yes─► released: round again, the others behind it
//!  later ──► noted? ──yes──► as the first
//!              └─no──► parked, and looked up once more
//! ```
//! Addresses alone change in the others: the transport checksum, which covers all pieces and the addresses,
//! stands in the first.
//!
//! Invariant: no piece is lost between two CPUs. Who brings the first notes it before it looks for those that
//! wait; who parks one looks for the first afterwards. Whole packets pay nothing for this.
//!
//! Pieces wait at the uplink's ingress only, behind which lies a network that may mix them up. At the other
//! hooks they come from a kernel of this node, and Linux sends the first one first; one that does come
//! early there is dropped where it could do harm and counted ([`Reason::UplinkFragment`]).
//!
//! [`Reason::UplinkFragment`]: pith_abi::Reason::UplinkFragment

use pith_abi::{Fragment, FragmentKey, Parked, Tuple};

use crate::{
    Tables,
    packet::{Header, L3},
};

/// How long a first piece and those that wait for one are known: as long as Linux keeps the pieces of a
/// datagram (`ipfrag_time`).
pub const WAIT_NS: u64 = 30_000_000_000;

/// Under which its datagram is known at a hook.
#[inline(always)]
pub fn key(header: &Header, hook: u8) -> FragmentKey {
    FragmentKey {
        src_be: header.src_be,
        dst_be: header.dst_be,
        id_be: header.id_be,
        proto: header.proto,
        hook,
        family: header.family,
        zero: 0,
    }
}

/// Has the other pieces follow a first one that becomes `to`.
#[inline(always)]
pub(crate) fn lead<T: Tables>(tables: &T, header: &Header, to: &Tuple, hook: u8) {
    if header.more_fragments {
        let first_ns = tables.now_ns();
        tables.set_fragment(&key(header, hook), &Fragment { src_be: to.src_be, dst_be: to.dst_be, first_ns });
    }
}

/// The same where pieces may wait already. If so this first one has to be released, as it came.
#[inline(always)]
#[must_use]
pub(crate) fn lead_waiting<T: Tables>(
    tables: &T,
    header: &Header,
    src_be: u32,
    dst_be: u32,
    hook: u8,
) -> bool {
    if !header.more_fragments || header.later_fragment {
        return false;
    }
    let key = key(header, hook);
    tables.set_fragment(&key, &Fragment { src_be, dst_be, first_ns: tables.now_ns() });
    tables.any_parked(&key)
}

/// What the addresses of a piece become, where its first is known.
#[inline(always)]
pub fn led<T: Tables>(tables: &T, key: &FragmentKey) -> Option<Fragment> {
    let first = tables.fragment(key)?;
    if tables.now_ns().wrapping_sub(first.first_ns) > WAIT_NS { None } else { Some(first) }
}

/// Bytes of the frame that a piece is, where it may wait.
#[inline(always)]
pub fn parked_length(header: &Header) -> Option<u32> {
    let length = u32::from(header.length) + L3;
    if length as usize <= Parked::BYTES { Some(length) } else { None }
}
