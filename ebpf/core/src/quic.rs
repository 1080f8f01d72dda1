//! QUIC's connection IDs: by them a server knows its connections whatever address a client has moved to, and by them a
//! packet of no flow finds that server.
//!
//! ```text
//!  octet   0                 1 ..= N         behind
//!        ┌─┬─┬─┬─┬─┬─┬─┬─┐┌───────────────┐┌─────────┐
//!        │ CR  │  any    ││   server ID   ││  nonce  │   plaintext, of draft-ietf-quic-load-balancers, section 5.2
//!        └─┴─┴─┴─┴─┴─┴─┴─┘└───────────────┘└─────────┘
//! ```
//! A server ID is a pod's own address: all 4 octets in IPv4. In IPv6 it is the last 15, which is all that an ID of 20
//! octets has room for; the first is that of the node's pods. A configuration (CR) of 7 says that the ID leads nowhere.
//!
//! What a packet says is only an allegation: it leads to backends of the Service that it asks for and to nobody else.

use crate::{Bytes, packet::Header};

/// Length of UDP's header.
const UDP: u32 = 8;
/// In a packet's first octet: it has a long header (RFC 9000, section 17.2).
const LONG: u8 = 0x80;
/// Where a long header has the ID's length, which its octets follow; a short one has them behind the first octet.
const LENGTH: u32 = 5;
/// The configuration of IDs that lead nowhere.
const UNROUTABLE: u8 = 7;

/// The first N octets of the connection ID in a UDP packet's payload, if this may be QUIC: the configuration's, and a
/// server ID.
#[inline(always)]
pub(crate) fn beginning<const N: usize, B: Bytes>(bytes: &B, header: &Header) -> Option<[u8; N]> {
    let start = header.l4 + UDP;
    let [first] = bytes.load::<1>(start)?;
    let id = if first & LONG == 0 {
        start + 1
    } else {
        let [length] = bytes.load::<1>(start + LENGTH)?;
        if usize::from(length) < N {
            return None;
        }
        start + LENGTH + 1
    };
    let octets = bytes.load::<N>(id)?;
    if octets[0] >> 5 == UNROUTABLE { None } else { Some(octets) }
}
