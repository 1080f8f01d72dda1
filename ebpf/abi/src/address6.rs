//! IPv6 addresses as the maps of Services know them: each by a number in place of an IPv4 address.
//!
//! ```text
//! STANDINS   Address6 ──► stand-in              hash: what a socket asked for, and whom it talks to
//! ADDRESSES  low 24 bits of the stand-in ──► Address6    array: where it is sent
//! ```
//! Frontends, backends and everything between them are made of IPv4 addresses, and slots of one word, which makes
//! a generation's swap safe. So they stay as they are, and an IPv6 address that a Service or a backend has
//! takes part under a stand-in: an address of 255.0.0.0/8, which no interface can have. What is not known to any
//! Service has none, and is none of the proxy's business.
//!
//! Invariant: an element of ADDRESSES is written before anything leads to its stand-in, and written again only
//! minutes after nothing does.

/// As it lies in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Address6 {
    pub words_be: [u32; 4],
}

impl Address6 {
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let mut words_be = [0; 4];
        let mut at = 0;
        while at < 4 {
            let from = 4 * at;
            words_be[at] =
                u32::from_ne_bytes([octets[from], octets[from + 1], octets[from + 2], octets[from + 3]]);
            at += 1;
        }
        Self { words_be }
    }

    pub const fn octets(self) -> [u8; 16] {
        let mut octets = [0; 16];
        let mut at = 0;
        while at < 16 {
            octets[at] = self.words_be[at / 4].to_ne_bytes()[at % 4];
            at += 1;
        }
        octets
    }
}

/// An address of 255.0.0.0/8 that stands for an IPv6 address. In network order, as the addresses it is mixed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct StandIn {
    pub addr_be: u32,
}

impl StandIn {
    /// For every IPv6 address that no Service knows: the broadcast address, which is no frontend's.
    pub const UNKNOWN: Self = Self { addr_be: u32::MAX };
    /// How many there may be: the lowest and the highest are none.
    pub const MAX: u32 = (1 << 24) - 2;

    /// Of the element at an index of ADDRESSES, from 1 to [`StandIn::MAX`].
    #[inline(always)]
    pub const fn new(index: u32) -> Self {
        Self { addr_be: (0xFF00_0000 | index).to_be() }
    }

    /// `None` for an address that is an IPv4 one.
    #[inline(always)]
    pub const fn of(addr_be: u32) -> Option<Self> {
        if addr_be.to_ne_bytes()[0] == 0xFF { Some(Self { addr_be }) } else { None }
    }

    /// Into ADDRESSES.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        u32::from_be(self.addr_be) & 0xFF_FFFF
    }
}

const _: () = {
    assert!(size_of::<Address6>() == 16);
    assert!(size_of::<StandIn>() == 4);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_are_no_addresses() {
        for index in [1, 2, 0x1234, StandIn::MAX] {
            let standin = StandIn::new(index);
            assert_eq!(standin.addr_be.to_ne_bytes()[0], 255);
            assert_eq!(StandIn::of(standin.addr_be), Some(standin));
            assert_eq!(standin.index(), index);
            assert_ne!(standin, StandIn::UNKNOWN);
        }
        assert_eq!(StandIn::of(u32::from_ne_bytes([10, 96, 0, 255])), None);
    }

    #[test]
    fn octets_keep_their_order() {
        let octets = core::array::from_fn(|at| at as u8);
        let address = Address6::from_octets(octets);
        assert_eq!(address.octets(), octets);
        assert_eq!(address.words_be[1].to_ne_bytes(), [4, 5, 6, 7]);
    }
}
