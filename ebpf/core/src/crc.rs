//! CRC32c of SCTP (RFC 9260, appendix A) as a difference: what it becomes when the ports change.
//!
//! A CRC is linear: the checksums of two packets that differ in their first four bytes differ by that
//! difference, carried over as many bytes as the packet has. Carrying a state over zeroes is a matrix over
//! bits, one for each length; user space computes them all once. No byte of the packet is read. Computing a
//! matrix where it is needed costs the verifier more than it allows for a whole program.

/// What a state with only one bit set becomes after some bytes of zeroes, for each of its bits.
pub type Carry = [u32; 32];

/// The polynomial, bits reversed.
#[cfg(any(test, feature = "host"))]
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// Packets have a multiple of four bytes; longer ones than any link carries are not translated.
pub const CARRIES: usize = 2304;

/// What the checksum, read in little-endian order, changes by when the first four bytes of a packet change
/// from `from` to `to`. Without branches, which the verifier would walk one by one.
#[inline(always)]
pub fn diff(from: [u8; 4], to: [u8; 4], carry: &Carry) -> u32 {
    let state = u32::from_le_bytes(from) ^ u32::from_le_bytes(to);
    let mut carried = 0;
    let mut bit = 0;
    while bit < 32 {
        carried ^= carry[bit] & 0u32.wrapping_sub(state >> bit & 1);
        bit += 1;
    }
    carried
}

/// The matrices for packets of 0, 4, 8 … bytes.
#[cfg(any(test, feature = "host"))]
pub fn carries() -> std::vec::Vec<Carry> {
    let mut carry: Carry = std::array::from_fn(|bit| 1 << bit);
    (0..CARRIES)
        .map(|_| {
            let now = carry;
            for state in &mut carry {
                for _ in 0..32 {
                    *state = (*state >> 1) ^ if *state & 1 == 1 { POLYNOMIAL } else { 0 };
                }
            }
            now
        })
        .collect()
}

/// The checksum from scratch, for tests and for packets made by them.
#[cfg(any(test, feature = "host"))]
pub fn full(bytes: &[u8]) -> u32 {
    let mut state = u32::MAX;
    for byte in bytes {
        state ^= u32::from(*byte);
        for _ in 0..8 {
            state = (state >> 1) ^ if state & 1 == 1 { POLYNOMIAL } else { 0 };
        }
    }
    !state
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_sum() {
        // RFC 3720, section B.4: 32 bytes of zeroes.
        assert_eq!(full(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
    }

    proptest! {
        #[test]
        fn delta_is_full(from: [u8; 4], to: [u8; 4], words in 0usize..400, seed: u8) {
            let rest: std::vec::Vec<u8> = (0..words * 4).map(|at| seed.wrapping_mul(at as u8)).collect();
            let sum = |ports: [u8; 4]| full(&[&ports[..], &rest].concat());
            prop_assert_eq!(sum(from) ^ diff(from, to, &carries()[words + 1]), sum(to));
        }
    }
}
