//! Capabilities by name (capabilities(7)).

/// The names of the bits in a mask, in the kernel's order; a bit that has no name here by its number.
#[must_use]
pub fn names(mask: u64) -> Vec<String> {
    (0..u64::BITS)
        .filter(|bit| mask & (1 << bit) != 0)
        .map(|bit| {
            let known = caps::all().into_iter().find(|capability| u32::from(capability.index()) == bit);
            known.map_or_else(|| format!("CAP_{bit}"), |capability| capability.to_string())
        })
        .collect()
}

/// Every capability that this program knows.
#[must_use]
pub fn all() -> u64 {
    caps::all().iter().fold(0, |mask, capability| mask | capability.bitmask())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_table() {
        let cases: [(u64, &[&str]); 4] = [
            (0, &[]),
            (1, &["CAP_CHOWN"]),
            (0x2400, &["CAP_NET_BIND_SERVICE", "CAP_NET_RAW"]),
            (1 << 63, &["CAP_63"]),
        ];
        for (mask, expect) in cases {
            assert_eq!(names(mask), expect, "{mask:#x}");
        }
        assert_eq!(names(all()).len(), caps::all().len());
    }
}
