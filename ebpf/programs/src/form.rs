//! How the context of a socket call holds an address, in both families.

use aya_ebpf::programs::SockAddrContext;
use pith_abi::{Address6, StandIn};
use pith_core::{
    six::{self, Addresses},
    socket::Place,
};

use crate::maps::Maps;

/// First words of an IPv4 address in IPv6 form, `::ffff:a.b.c.d` (RFC 4291).
const MAPPED: [u32; 3] = [0, 0, 0xFFFFu32.to_be()];

pub(crate) trait Form {
    fn place(&self, ctx: &SockAddrContext) -> Place;
    fn set(&self, ctx: &SockAddrContext, place: Place);
}

/// Of a socket of AF_INET.
pub(crate) struct V4;
/// Of a socket of AF_INET6, whose address may be an IPv4 one in IPv6 form.
pub(crate) struct V6;

impl Form for V4 {
    #[inline(always)]
    fn place(&self, ctx: &SockAddrContext) -> Place {
        // SAFETY: the context is the one the kernel gave.
        unsafe {
            Place { addr_be: own((*ctx.sock_addr).user_ip4), port_be: (*ctx.sock_addr).user_port as u16 }
        }
    }

    #[inline(always)]
    fn set(&self, ctx: &SockAddrContext, place: Place) {
        // SAFETY: the context is the one the kernel gave, and these fields may be written.
        unsafe {
            (*ctx.sock_addr).user_ip4 = place.addr_be;
            (*ctx.sock_addr).user_port = place.port_be.into();
        }
    }
}

impl Form for V6 {
    #[inline(always)]
    fn place(&self, ctx: &SockAddrContext) -> Place {
        // SAFETY: the context is the one the kernel gave.
        let (address, port) = unsafe {
            let ip6 = &raw const (*ctx.sock_addr).user_ip6;
            ([(*ip6)[0], (*ip6)[1], (*ip6)[2], (*ip6)[3]], (*ctx.sock_addr).user_port)
        };
        let addr_be = match address {
            [a, b, c, last] if [a, b, c] == MAPPED => own(last),
            words_be => {
                six::stand_in(&Maps::PACKET, &Address6 { words_be }).unwrap_or(StandIn::UNKNOWN).addr_be
            }
        };
        Place { addr_be, port_be: port as u16 }
    }

    #[inline(always)]
    fn set(&self, ctx: &SockAddrContext, place: Place) {
        let words = match StandIn::of(place.addr_be) {
            None => [MAPPED[0], MAPPED[1], MAPPED[2], place.addr_be],
            Some(standin) => match Maps::PACKET.known(standin) {
                Some(known) => known.address.words_be,
                None => return,
            },
        };
        // SAFETY: the context is the one the kernel gave, and these fields may be written.
        unsafe {
            (*ctx.sock_addr).user_ip6[0] = words[0];
            (*ctx.sock_addr).user_ip6[1] = words[1];
            (*ctx.sock_addr).user_ip6[2] = words[2];
            (*ctx.sock_addr).user_ip6[3] = words[3];
            (*ctx.sock_addr).user_port = place.port_be.into();
        }
    }
}

/// Whoever asks for a stand-in itself asks for nothing that is known.
#[inline(always)]
fn own(addr_be: u32) -> u32 {
    if StandIn::of(addr_be).is_some() { StandIn::UNKNOWN.addr_be } else { addr_be }
}
