//! The Internet checksum as differences (RFC 1624): what to add when some covered words change.
//!
//! Words are taken as they lie in memory. The sum of 16-bit words in ones' complement does not depend on
//! the byte order in which they are read, as long as it is the same everywhere (RFC 1071, section 2).

/// Sum in ones' complement.
#[inline(always)]
pub const fn add(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

/// The difference that replacing `from` by `to` makes; differences of several words are [`add`]ed.
#[inline(always)]
pub const fn diff(from: u32, to: u32) -> u32 {
    add(to, !from)
}

/// A 32-bit sum folded to 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xFFFF) + (sum >> 16);
    ((sum & 0xFFFF) + (sum >> 16)) as u16
}

/// The checksum field after a change of `diff` in what it covers (`csum_replace_by_diff` in the kernel).
#[inline(always)]
pub const fn apply(field: u16, diff: u32) -> u16 {
    !fold(add(diff, !field as u32))
}

/// Sum of a run of bytes; `N` must be a multiple of 4.
#[inline(always)]
pub fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    diff_bytes(&[0xFF; N], bytes)
}

/// Difference between two runs of bytes; `N` must be a multiple of 4.
#[inline(always)]
pub fn diff_bytes<const N: usize>(from: &[u8; N], to: &[u8; N]) -> u32 {
    const { assert!(N.is_multiple_of(4)) };
    let mut sum = 0;
    let mut at = 0;
    while at < N {
        sum = add(sum, diff(word(from, at), word(to, at)));
        at += 4;
    }
    sum
}

#[inline(always)]
fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The checksum from scratch.
    pub(crate) fn full(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        !(sum as u16)
    }

    /// 0 and 0xFFFF are the same number in ones' complement.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 && b == 0xFFFF) || (a == 0xFFFF && b == 0)
    }

    #[test]
    fn known_sum() {
        // The example of RFC 1071, section 3: 0001 f203 f4f5 f6f7 sums to ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(full(&bytes), !u16::from_be_bytes([0xdd, 0xf2]).to_be());
    }

    proptest! {
        #[test]
        fn delta_is_full(from in any::<[u8; 28]>(), to in any::<[u8; 28]>(), rest in any::<[u8; 12]>()) {
            let sum = |part: &[u8]| full(&[part, &rest[..]].concat());
            prop_assert!(same(apply(sum(&from), diff_bytes(&from, &to)), sum(&to)));
        }

        #[test]
        fn order_of_changes_does_not_matter(a in any::<(u32, u32)>(), b in any::<(u32, u32)>(), field: u16) {
            let (first, second) = (diff(a.0, a.1), diff(b.0, b.1));
            let apart = apply(apply(field, first), second);
            prop_assert!(same(apart, apply(field, add(first, second))));
            prop_assert!(same(apart, apply(apply(field, second), first)));
        }
    }
}
