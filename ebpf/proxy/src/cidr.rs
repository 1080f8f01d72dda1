//! An IPv4 network.

use std::{net::Ipv4Addr, str::FromStr};

/// An IPv4 network such as `10.244.1.0/24`; host bits are cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    net: Ipv4Addr,
    prefix: u8,
}

/// A text that is no IPv4 network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 network such as 10.244.0.0/16")]
pub struct CidrError(String);

impl Cidr {
    /// `None` for a prefix beyond 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 32).then(|| Self { net: Ipv4Addr::from(u32::from(address) & bits(prefix)), prefix })
    }

    pub fn net(&self) -> Ipv4Addr {
        self.net
    }

    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(bits(self.prefix))
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it takes in all of another network.
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.net)
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & bits(self.prefix) == u32::from(self.net)
    }
}

fn bits(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parsed = text
            .split_once('/')
            .and_then(|(address, prefix)| Self::new(address.parse().ok()?, prefix.parse().ok()?));
        parsed.ok_or_else(|| CidrError(text.to_owned()))
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.net, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_table() {
        let cases = [
            ("10.244.1.0/24", Some("10.244.1.0/24")),
            ("10.244.1.7/24", Some("10.244.1.0/24")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("10.0.0.1/32", Some("10.0.0.1/32")),
            ("10.0.0.1/33", None),
            ("10.0.0.1", None),
            ("fd00::/8", None),
            ("", None),
        ];
        for (text, expect) in cases {
            let parsed = text.parse::<Cidr>().ok().map(|cidr| cidr.to_string());
            assert_eq!(parsed.as_deref(), expect, "{text}");
        }
    }

    #[test]
    fn contains_table() {
        let cidr: Cidr = "10.244.1.0/24".parse().expect("a network");
        for (address, expect) in [([10, 244, 1, 255], true), ([10, 244, 2, 0], false)] {
            assert_eq!(cidr.contains(address.into()), expect, "{address:?}");
        }
    }
}
