//! Ranges of addresses for Services: one, or one a family.
//!
//! An address is handled as its distance from the beginning of its range.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use pith_api::Family;

/// Where the addresses of one family come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    base: IpAddr,
    prefix: u8,
}

/// Where the addresses of Services come from, such as `10.96.0.0/16` or `10.96.0.0/16,fd00:10:96::/112`. The
/// first is of the family that Services have unless they ask for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCidrs {
    first: ServiceCidr,
    second: Option<ServiceCidr>,
}

/// A text that is no usable range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCidr {
    #[error("{0:?} is not an IPv4 range like 10.96.0.0/16 with a prefix of 8 to 28 bits")]
    V4(String),
    #[error("{0:?} is not an IPv6 range like fd00:10:96::/112 with a prefix of 64 to 124 bits")]
    V6(String),
    #[error("{0:?} are not one range, or one of each family")]
    Several(String),
}

impl FromStr for ServiceCidr {
    type Err = NoCidr;

    fn from_str(text: &str) -> Result<Self, NoCidr> {
        let (bits, prefixes) = if text.contains(':') { (128, 64..=124) } else { (32, 8..=28) };
        let parsed = text.split_once('/').and_then(|(base, prefix)| {
            let base: IpAddr = base.parse().ok()?;
            let prefix: u8 = prefix.parse().ok().filter(|prefix| prefixes.contains(prefix))?;
            Some((base, prefix))
        });
        match parsed {
            Some((base, prefix)) => {
                let low = (1u128 << (bits - prefix)) - 1;
                Ok(Self { base: address(Family::of(base), number(base) & !low), prefix })
            }
            None if bits == 32 => Err(NoCidr::V4(text.to_owned())),
            None => Err(NoCidr::V6(text.to_owned())),
        }
    }
}

impl fmt::Display for ServiceCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        // Numbers of this family come from addresses of it, and stay within their range.
        Family::V4 => Ipv4Addr::from(number as u32).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

impl ServiceCidr {
    /// The address of the Service `kubernetes`.
    pub fn first(&self) -> IpAddr {
        self.nth(1)
    }

    pub fn family(&self) -> Family {
        Family::of(self.base)
    }

    pub(super) fn nth(&self, index: u128) -> IpAddr {
        address(self.family(), number(self.base) + index)
    }

    /// Addresses without the network's own and, in IPv4, the broadcast address.
    pub(super) fn usable(&self) -> u128 {
        match self.family() {
            Family::V4 => (1 << (32 - self.prefix)) - 2,
            Family::V6 => (1 << (128 - self.prefix)) - 1,
        }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let offset = number(address).wrapping_sub(number(self.base));
        Family::of(address) == self.family() && (1..=self.usable()).contains(&offset)
    }

    /// The part that is given out by preference; the lower part stays for those who choose an address
    /// themselves (KEP-3070): min(max(16, size / 16), 256) addresses.
    pub(super) fn dynamic_from(&self) -> u128 {
        (self.usable() / 16).clamp(16, 256).min(self.usable() / 2)
    }
}

impl FromStr for ServiceCidrs {
    type Err = NoCidr;

    fn from_str(text: &str) -> Result<Self, NoCidr> {
        let Some((first, second)) = text.split_once(',') else {
            return text.parse::<ServiceCidr>().map(Self::from);
        };
        let (first, second): (ServiceCidr, ServiceCidr) = (first.parse()?, second.parse()?);
        if first.family() == second.family() {
            return Err(NoCidr::Several(text.to_owned()));
        }
        Ok(Self { first, second: Some(second) })
    }
}

impl From<ServiceCidr> for ServiceCidrs {
    fn from(first: ServiceCidr) -> Self {
        Self { first, second: None }
    }
}

impl fmt::Display for ServiceCidrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.second {
            Some(second) => write!(f, "{},{second}", self.first),
            None => self.first.fmt(f),
        }
    }
}

impl ServiceCidrs {
    /// The range of the default family.
    pub fn primary(&self) -> ServiceCidr {
        self.first
    }

    pub fn iter(&self) -> impl Iterator<Item = ServiceCidr> {
        std::iter::once(self.first).chain(self.second)
    }

    pub(super) fn of(&self, family: Family) -> Option<ServiceCidr> {
        self.iter().find(|range| range.family() == family)
    }

    pub(super) fn contain(&self, address: IpAddr) -> bool {
        self.iter().any(|range| range.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_or_refused() {
        for (text, expect) in [
            ("10.96.3.4/16", "10.96.0.0/16 10.96.0.1"),
            ("fd00:10:96::7/112", "fd00:10:96::/112 fd00:10:96::1"),
            ("10.96.0.0/16,fd00::/108", "10.96.0.0/16,fd00::/108 10.96.0.1 fd00::1"),
            ("fd00::/64,10.96.0.0/16", "fd00::/64,10.96.0.0/16 fd00::1 10.96.0.1"),
        ] {
            let ranges: ServiceCidrs = text.parse().expect("ranges");
            let firsts: String = ranges.iter().map(|range| format!(" {}", range.first())).collect();
            assert_eq!(format!("{ranges}{firsts}"), expect);
        }
        for text in [
            "",
            "10.96.0.0",
            "10.96.0.0/33",
            "10.96.0.0/4",
            "fd00::/48",
            "fd00::/125",
            "x/16",
            "10.96.0.0/16,",
            "10.96.0.0/16,10.97.0.0/16",
            "10.96.0.0/16,fd00::/108,fd01::/108",
        ] {
            assert!(text.parse::<ServiceCidrs>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_in_a_range() {
        let contains = |range: &str, address: &str| {
            let range: ServiceCidr = range.parse().expect("a range");
            range.contains(address.parse().expect("an address"))
        };
        for (range, address, expect) in [
            ("10.96.0.0/28", "10.96.0.1", true),
            ("10.96.0.0/28", "10.96.0.0", false),
            ("10.96.0.0/28", "10.96.0.15", false),
            ("10.96.0.0/28", "::a60:1", false),
            ("fd00::/124", "fd00::1", true),
            ("fd00::/124", "fd00::", false),
            ("fd00::/124", "fd00::f", true),
            ("fd00::/124", "fd00::10", false),
        ] {
            assert_eq!(contains(range, address), expect, "{address} in {range}");
        }
    }
}
