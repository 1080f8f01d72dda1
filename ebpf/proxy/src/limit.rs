//! How much the maps of Services hold, and what is said when one holds no more.

use std::fmt;

/// Sizes of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLimits {
    pub frontends: u32,
    pub services: u32,
    pub backends: u32,
    pub sources: u32,
    pub servers: u32,
    pub addresses: u32,
}

/// What there can be no more of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    Frontends,
    Services,
    Backends,
    Sources,
    /// Backends that packets name by connection IDs of QUIC.
    Servers,
    /// IPv6 addresses of Services and backends.
    Addresses,
    /// That of the layout, which nobody can raise.
    BackendsOfOne,
}

impl Limit {
    /// The option of the command line that raises it.
    pub fn option(self) -> Option<&'static str> {
        match self {
            Self::Frontends => Some("--limit-frontends"),
            Self::Services => Some("--limit-services"),
            Self::Backends => Some("--limit-backends"),
            Self::Sources => Some("--limit-sources"),
            Self::Servers => Some("--limit-servers"),
            Self::Addresses => Some("--limit-addresses"),
            Self::BackendsOfOne => None,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frontends => "frontends",
            Self::Services => "services",
            Self::Backends => "backends",
            Self::Sources => "sources",
            Self::Servers => "QUIC servers",
            Self::Addresses => "IPv6 addresses",
            Self::BackendsOfOne => "backends of one Service",
        })
    }
}
