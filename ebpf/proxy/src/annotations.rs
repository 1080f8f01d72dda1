//! What a Service says of itself beyond the API: annotations of pith's own.

use std::collections::BTreeMap;

/// How a backend is chosen for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Balance {
    #[default]
    Random,
    /// By a Maglev table and a hash of the client's address and port.
    Maglev,
    /// The same with the client's address alone: a client stays with its backend as long as the table lets it.
    MaglevClient,
}

/// How packets from outside reach a backend at another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Forwarding {
    /// Under the address of the node that was asked, by which the answers come back.
    #[default]
    Snat,
    /// As they came: the backend's node answers the client itself (direct server return).
    Dsr,
}

/// What a QUIC server writes into its connection IDs, by which packets of a client that has moved find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum QuicServerId {
    /// Nothing that concerns the Service.
    #[default]
    None,
    /// The pod's address, see `pith_core::quic`.
    PodIp,
}

/// Weights of a Service's backends, by the names of their pods.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Weights(Vec<(Box<str>, u16)>);

impl Weights {
    /// Reads `web-canary-*=1,web-*=9`: the first pattern that fits a pod's name holds; `*` at the end stands
    /// for anything. `None` where a part of it cannot be read.
    pub fn parse(text: &str) -> Option<Self> {
        let rule = |part: &str| {
            let (pattern, weight) = part.split_once('=')?;
            Some((pattern.trim().into(), weight.trim().parse().ok()?))
        };
        text.split(',').map(rule).collect::<Option<_>>().map(Self)
    }

    /// The weight of a pod; 1 where nothing is said of it.
    pub fn of(&self, pod: Option<&str>) -> u16 {
        let fits = |pattern: &str, pod: &str| match pattern.strip_suffix('*') {
            Some(beginning) => pod.starts_with(beginning),
            None => pod == pattern,
        };
        let rule = |pod| self.0.iter().find(|(pattern, _)| fits(pattern, pod));
        pod.and_then(rule).map_or(1, |(_, weight)| *weight)
    }
}

/// Everything that annotations say.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Annotations {
    pub balance: Balance,
    pub weights: Weights,
    pub forwarding: Forwarding,
    pub quic_server_id: QuicServerId,
    /// Those with a value that says nothing, which are as if they were not there.
    pub misread: Vec<Misread>,
}

/// An annotation whose value cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misread {
    pub name: &'static str,
    pub value: String,
    /// What could stand there.
    pub known: &'static str,
}

impl Annotations {
    pub(crate) fn parse(all: &BTreeMap<String, String>) -> Self {
        let mut misread = Vec::new();
        let balance =
            read(
                all,
                &mut misread,
                "pith.dev/balance",
                "random, maglev, maglev-client",
                |value| match value {
                    "random" => Some(Balance::Random),
                    "maglev" => Some(Balance::Maglev),
                    "maglev-client" => Some(Balance::MaglevClient),
                    _ => None,
                },
            );
        let forwarding = read(all, &mut misread, "pith.dev/forwarding", "snat, dsr", |value| match value {
            "snat" => Some(Forwarding::Snat),
            "dsr" => Some(Forwarding::Dsr),
            _ => None,
        });
        let quic_server_id =
            read(all, &mut misread, "pith.dev/quic-server-id", "pod-ip, none", |value| match value {
                "pod-ip" => Some(QuicServerId::PodIp),
                "none" => Some(QuicServerId::None),
                _ => None,
            });
        let weights = read(all, &mut misread, "pith.dev/weights", "canary-*=1,main-*=9", Weights::parse);
        Self { balance, weights, forwarding, quic_server_id, misread }
    }
}

fn read<T: Default>(
    all: &BTreeMap<String, String>,
    misread: &mut Vec<Misread>,
    name: &'static str,
    known: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> T {
    let Some(value) = all.get(name) else { return T::default() };
    parse(value).unwrap_or_else(|| {
        misread.push(Misread { name, value: value.clone(), known });
        T::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_table() {
        let read =
            |name: &str, value: &str| Annotations::parse(&BTreeMap::from([(name.into(), value.into())]));
        let plain = Annotations::default;
        let weights = Weights(vec![("a-*".into(), 3), ("b".into(), 0)]);
        for (name, value, expect) in [
            ("pith.dev/balance", "random", plain()),
            ("pith.dev/balance", "maglev", Annotations { balance: Balance::Maglev, ..plain() }),
            ("pith.dev/balance", "maglev-client", Annotations { balance: Balance::MaglevClient, ..plain() }),
            ("pith.dev/forwarding", "snat", plain()),
            ("pith.dev/forwarding", "dsr", Annotations { forwarding: Forwarding::Dsr, ..plain() }),
            ("pith.dev/quic-server-id", "none", plain()),
            (
                "pith.dev/quic-server-id",
                "pod-ip",
                Annotations { quic_server_id: QuicServerId::PodIp, ..plain() },
            ),
            ("pith.dev/weights", "a-*=3, b = 0", Annotations { weights, ..plain() }),
            ("example.com/balance", "maglev", plain()),
        ] {
            assert_eq!(read(name, value), expect, "{name}={value}");
        }
        for (name, value) in [
            ("pith.dev/balance", "Maglev"),
            ("pith.dev/balance", ""),
            ("pith.dev/forwarding", "direct"),
            ("pith.dev/quic-server-id", "pod"),
            ("pith.dev/weights", "a=1,b"),
            ("pith.dev/weights", "a=-1"),
            ("pith.dev/weights", "a=65536"),
        ] {
            let Annotations { misread, .. } = read(name, value);
            assert_eq!(misread.iter().map(|it| (it.name, &*it.value)).collect::<Vec<_>>(), [(name, value)]);
        }
    }
}
