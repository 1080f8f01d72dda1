//! The table of Maglev (Eisenbud et al., NSDI 2016, section 3.4): which backend each slot holds, so that all
//! are held as often as their weights say, and few slots change when a backend comes or goes.

use std::net::SocketAddrV4;

/// Sizes to choose from: primes, about twice the one before, up to what a Service may have.
const SIZES: [usize; 9] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521];

/// Slots a unit of weight: the shares of two backends differ by at most one slot of so many.
const SLOTS_A_UNIT: usize = 64;

/// Fills a table. Depends on the set of backends and weights only, so that every node has the same.
pub(crate) fn table(backends: &[(SocketAddrV4, u16)]) -> Vec<SocketAddrV4> {
    let backends: Vec<_> = backends.iter().filter(|(_, weight)| *weight > 0).copied().collect();
    let units: usize = backends.iter().map(|(_, weight)| usize::from(*weight)).sum();
    if backends.is_empty() {
        return Vec::new();
    }
    let size = SIZES.into_iter().find(|size| *size >= units * SLOTS_A_UNIT).unwrap_or(65_521);
    let mut slots: Vec<Option<SocketAddrV4>> = vec![None; size];
    // Each backend walks the slots in an order of its own: offset, then steps of skip.
    let mut walks: Vec<(usize, usize)> = backends
        .iter()
        .map(|(backend, _)| {
            let hash = hash(*backend);
            ((hash >> 32) as usize % size, hash as u32 as usize % (size - 1) + 1)
        })
        .collect();
    let mut left = size;
    loop {
        for ((backend, weight), (at, skip)) in backends.iter().zip(&mut walks) {
            // Heavier backends take more slots a round.
            for _ in 0..*weight {
                while slots[*at].is_some() {
                    *at = (*at + *skip) % size;
                }
                slots[*at] = Some(*backend);
                left -= 1;
                if left == 0 {
                    return slots.into_iter().flatten().collect();
                }
            }
        }
    }
}

/// FNV-1a and the finalizer of MurmurHash3: part of what nodes have to agree on, so none of the standard
/// library's, which may change.
fn hash(backend: SocketAddrV4) -> u64 {
    let bytes = backend.ip().octets().into_iter().chain(backend.port().to_be_bytes());
    let fnv = bytes.fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::Ipv4Addr};

    use super::*;

    fn backends(count: u8) -> Vec<(SocketAddrV4, u16)> {
        (1..=count).map(|host| (SocketAddrV4::new(Ipv4Addr::new(10, 244, 0, host), 80), 1)).collect()
    }

    fn shares(table: &[SocketAddrV4]) -> HashMap<SocketAddrV4, usize> {
        table.iter().fold(HashMap::new(), |mut shares, backend| {
            *shares.entry(*backend).or_default() += 1;
            shares
        })
    }

    #[test]
    fn shares_are_as_weights_say() {
        for count in [1, 2, 7, 100] {
            let table = table(&backends(count));
            let shares = shares(&table);
            let (least, most) = (shares.values().min(), shares.values().max());
            assert_eq!(shares.len(), usize::from(count));
            assert!(most.expect("some") - least.expect("some") <= 1, "{count}: {least:?} to {most:?}");
        }
        let mut weighted = backends(2);
        weighted[1].1 = 9;
        let shares = shares(&table(&weighted));
        let share = |at: usize| shares[&weighted[at].0] as f64;
        assert!((8.0..10.0).contains(&(share(1) / share(0))), "{shares:?}");
    }

    #[test]
    fn few_slots_change_with_one_backend() {
        let before = table(&backends(50));
        let mut fewer = backends(50);
        let gone = fewer.remove(20).0;
        let after = table(&fewer);
        assert_eq!(before.len(), after.len());
        let moved = before.iter().zip(&after).filter(|(old, new)| **old != gone && old != new).count();
        assert!(moved * 10 < before.len(), "{moved} of {} slots moved for no reason", before.len());
        let nothing: [(SocketAddrV4, u16); 0] = [];
        assert!(table(&nothing).is_empty());
    }
}
