//! Options that take something of IPv4, something of IPv6, or both: `10.0.0.1,fd00::1`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// At most one of each family, and at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Families<A, B> {
    pub(crate) four: Option<A>,
    pub(crate) six: Option<B>,
}

pub(crate) type Addresses = Families<Ipv4Addr, Ipv6Addr>;
pub(crate) type Networks = Families<Ipv4Net, Ipv6Net>;

impl<A: FromStr, B: FromStr> FromStr for Families<A, B> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut both = Self { four: None, six: None };
        for part in text.split(',') {
            let (family, before) = if let Ok(four) = part.parse() {
                ("IPv4", both.four.replace(four).is_some())
            } else if let Ok(six) = part.parse() {
                ("IPv6", both.six.replace(six).is_some())
            } else {
                return Err(format!("{part:?} is of no family: one of IPv4, of IPv6, or one of each"));
            };
            if before {
                return Err(format!("two of {family}: one of each family"));
            }
        }
        Ok(both)
    }
}

impl Networks {
    pub(crate) fn all(&self) -> Vec<IpNet> {
        self.four.map(IpNet::from).into_iter().chain(self.six.map(IpNet::from)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_at_most() {
        for (text, expect) in [
            ("10.0.0.1", Ok("10.0.0.1 -")),
            ("fd00::1", Ok("- fd00::1")),
            ("10.0.0.1,fd00::1", Ok("10.0.0.1 fd00::1")),
            ("fd00::1,10.0.0.1", Ok("10.0.0.1 fd00::1")),
            ("10.0.0.1,10.0.0.2", Err("two of IPv4: one of each family")),
            ("fd00::1,fd00::2", Err("two of IPv6: one of each family")),
            ("10.0.0.1,", Err("\"\" is of no family: one of IPv4, of IPv6, or one of each")),
            ("10.0.0.0/8", Err("\"10.0.0.0/8\" is of no family: one of IPv4, of IPv6, or one of each")),
        ] {
            let text_of = |address: Option<String>| address.unwrap_or_else(|| "-".to_owned());
            let parsed = text.parse::<Addresses>().map(|Families { four, six }| {
                format!(
                    "{} {}",
                    text_of(four.map(|four| four.to_string())),
                    text_of(six.map(|six| six.to_string()))
                )
            });
            assert_eq!(parsed.as_deref().map_err(String::as_str), expect, "{text}");
        }
    }
}
