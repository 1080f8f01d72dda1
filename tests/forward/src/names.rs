//! The names that kube-proxy gives its chains: digests, so that they fit and are the same on every node.

use sha2::{Digest, Sha256};

const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The first `length` letters of a text's SHA-256 in base 32 (RFC 4648).
pub(crate) fn digest(text: &str, length: usize) -> String {
    let hash = Sha256::digest(text.as_bytes());
    let mut letters = String::with_capacity(length);
    for letter in 0..length {
        let value = (0..5).fold(0, |value, offset| {
            let bit = letter * 5 + offset;
            let byte = hash.get(bit / 8).copied().unwrap_or_default();
            (value << 1) | usize::from(byte >> (7 - bit % 8) & 1)
        });
        letters.push(char::from(ALPHABET[value]));
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that kube-proxy's own tests expect (pkg/proxy/iptables and pkg/proxy/nftables in kubernetes).
    #[test]
    fn names_are_those_of_kube_proxy() {
        assert_eq!(digest("ns1/svc1:p80tcp", 16), "XPGD46QRK7WJZT7O");
        assert_eq!(digest("ns1/svc1/tcp/p80", 8), "ULMVA6XW");
    }
}
