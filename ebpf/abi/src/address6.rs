//! IPv6 addresses as the maps know them: each by a number in place of an IPv4 address.
//!
//! ```text
//!  address ──hash, up to 3 tries──► stand-in            where ADDRESSES has this address
//!  ADDRESSES  stand-in ──► Address6, used_ns            hash
//! ```
//! Frontends, backends and flows are made of IPv4 addresses, and slots of one word, which makes a generation's swap
//! safe. So they stay as they are, and an IPv6 address takes part under a stand-in: an address of 255.0.0.0/8, which
//! no interface can have. User space gives them to what Services, backends and nodes have, programs to whom a flow
//! begins with; both by the same hash, so that nobody has to ask the other. What is in no Service and in no flow has
//! none, and is none of the proxy's business.
//!
//! Invariant: an address has one stand-in, for as long as anything is known under it and minutes longer.

/// As it lies in a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

impl Address6 {
    /// Whether it lies in a network, given by an address and a mask; an empty mask means none.
    #[inline(always)]
    pub const fn is_in(&self, net: &Self, mask: &Self) -> bool {
        let (a, n, m) = (&self.words_be, &net.words_be, &mask.words_be);
        let other =
            ((a[0] & m[0]) ^ n[0]) | ((a[1] & m[1]) ^ n[1]) | ((a[2] & m[2]) ^ n[2]) | ((a[3] & m[3]) ^ n[3]);
        m[0] != 0 && other == 0
    }

    /// 64 bits that are spread evenly over addresses, others for another `seed`.
    #[inline(always)]
    pub const fn mixed(&self, seed: u64) -> u64 {
        let [a, b, c, d] = self.words_be;
        mix(mix((((a as u64) << 32) | b as u64) ^ seed) ^ (((c as u64) << 32) | d as u64))
    }
}

/// The finalizer of MurmurHash3.
#[inline(always)]
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let word = (word ^ (word >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    word ^ (word >> 33)
}

/// An address of 255.0.0.0/8 that stands for an IPv6 address. In network order, as the addresses it is mixed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct StandIn {
    pub addr_be: u32,
}

impl StandIn {
    /// For every IPv6 address that has none: the broadcast address, which is no frontend's.
    pub const UNKNOWN: Self = Self { addr_be: u32::MAX };
    /// How many there may be: the lowest and the highest are none.
    pub const MAX: u32 = (1 << 24) - 2;
    /// How many an address may have, of which it takes the first that is free. With 262,144 of them in use the chance
    /// that all are another's is 2^-18.
    pub const TRIES: u32 = 3;

    /// The `nth` that an address may have. The seed keeps others from choosing addresses that take one another's.
    #[inline(always)]
    pub const fn nth(address: &Address6, seed: u64, nth: u32) -> Self {
        let mixed = address.mixed(seed.wrapping_add((nth as u64) << 32));
        let index = 1 + (((mixed >> 32) * Self::MAX as u64) >> 32) as u32;
        Self { addr_be: (0xFF00_0000 | index).to_be() }
    }

    /// `None` for an address that is an IPv4 one.
    #[inline(always)]
    pub const fn of(addr_be: u32) -> Option<Self> {
        if addr_be.to_ne_bytes()[0] == 0xFF { Some(Self { addr_be }) } else { None }
    }
}

/// What is known of a stand-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Known6 {
    pub address: Address6,
    /// `bpf_ktime_get_coarse_ns` when a flow with it began last, a second behind at most.
    pub used_ns: u64,
}

const _: () = {
    assert!(size_of::<Address6>() == 16);
    assert!(size_of::<StandIn>() == 4);
    assert!(size_of::<Known6>() == 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_are_no_addresses() {
        for last in 0..=255 {
            let mut octets = [0xFD; 16];
            octets[15] = last;
            let address = Address6::from_octets(octets);
            for nth in 0..StandIn::TRIES {
                let standin = StandIn::nth(&address, 7, nth);
                assert_eq!(StandIn::of(standin.addr_be), Some(standin));
                assert!((1..=StandIn::MAX).contains(&(u32::from_be(standin.addr_be) & 0xFF_FFFF)));
                assert_ne!(standin, StandIn::nth(&address, 8, nth), "the seed counts");
                assert_ne!(standin, StandIn::nth(&address, 7, nth + 1), "each try is another");
            }
        }
        assert_eq!(StandIn::of(u32::from_ne_bytes([10, 96, 0, 255])), None);
    }

    #[test]
    fn networks() {
        let at = |octets: [u8; 16]| Address6::from_octets(octets);
        let mut pod = [0; 16];
        pod[..8].copy_from_slice(&[0xFD, 0, 0, 0x10, 0, 0, 0, 1]);
        let (mut net, mut mask) = (pod, [0; 16]);
        mask[..8].fill(0xFF);
        net[8..].fill(0);
        pod[15] = 9;
        assert!(at(pod).is_in(&at(net), &at(mask)));
        assert!(!at(pod).is_in(&at([0; 16]), &at([0; 16])), "an empty mask is no network");
        pod[7] = 2;
        assert!(!at(pod).is_in(&at(net), &at(mask)));
    }

    #[test]
    fn octets_keep_their_order() {
        let octets = core::array::from_fn(|at| at as u8);
        let address = Address6::from_octets(octets);
        assert_eq!(address.octets(), octets);
        assert_eq!(address.words_be[1].to_ne_bytes(), [4, 5, 6, 7]);
    }
}
