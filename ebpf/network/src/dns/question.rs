//! What a question is about, told from its name alone. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;
use ipnet::IpNet;

use super::catalog::ServiceKey;

/// The names this server knows everything about.
#[derive(Debug)]
pub(crate) struct Zone {
    /// The cluster's domain.
    pub(crate) domain: Name,
    /// This server's address.
    pub(crate) address: IpAddr,
    /// Addresses that only the cluster can name.
    own_addresses: Vec<IpNet>,
}

/// A question's subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The cluster's domain itself.
    Apex,
    /// Something with no records of its own but with names below.
    Inner,
    /// All Services of a namespace: [`Subject::Inner`] if there are any.
    Namespace(String),
    /// `web.default.svc`.
    Service(ServiceKey),
    /// `host.web.default.svc`.
    Endpoint(ServiceKey, String),
    /// `_tcp.web.default.svc`: [`Subject::Inner`] if there are such ports.
    Protocol(ServiceKey, String),
    /// `_http._tcp.web.default.svc`, without the underscores: port, protocol.
    Port(ServiceKey, String, String),
    /// `10-244-1-2.default.pod`.
    Pod(IpAddr),
    /// Which version of the specification of names this is.
    SpecVersion,
    /// This server.
    NameServer,
    /// The name of an address.
    Address(IpAddr),
    /// Of the cluster, but nothing that can exist.
    Nothing,
    /// Not of the cluster.
    Elsewhere,
}

impl Zone {
    /// `None` where `domain` is no domain name.
    pub(crate) fn new(domain: &str, address: IpAddr, own_addresses: Vec<IpNet>) -> Option<Self> {
        let mut domain = Name::from_ascii(domain).ok().filter(|it| it.num_labels() > 0)?.to_lowercase();
        domain.set_fqdn(true);
        Some(Self { domain, address, own_addresses })
    }

    /// Whether nobody else can name the address.
    pub(crate) fn owns(&self, address: IpAddr) -> bool {
        self.own_addresses.iter().any(|net| net.contains(&address))
    }

    /// What `name` is about.
    pub(crate) fn subject(&self, name: &Name) -> Subject {
        if self.domain.zone_of(name) {
            let below = usize::from(name.num_labels() - self.domain.num_labels());
            let labels: Option<Vec<String>> = name
                .iter()
                .take(below)
                .map(|label| Some(std::str::from_utf8(label).ok()?.to_ascii_lowercase()))
                .collect();
            return labels.map_or(Subject::Nothing, |labels| below_domain(&labels));
        }
        match reverse(name) {
            Some(address) => Subject::Address(address),
            None => Subject::Elsewhere,
        }
    }
}

fn below_domain(labels: &[String]) -> Subject {
    let key = |name: &str, namespace: &str| ServiceKey::new(namespace, name);
    match labels.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => Subject::Apex,
        ["svc" | "pod" | "dns"] | [_, "pod"] => Subject::Inner,
        ["dns-version"] => Subject::SpecVersion,
        ["ns", "dns"] => Subject::NameServer,
        [address, _, "pod"] => dashed(address).map_or(Subject::Nothing, Subject::Pod),
        [namespace, "svc"] => Subject::Namespace((*namespace).to_owned()),
        [name, namespace, "svc"] => Subject::Service(key(name, namespace)),
        [first, name, namespace, "svc"] => match first.strip_prefix('_') {
            Some(protocol) => Subject::Protocol(key(name, namespace), protocol.to_owned()),
            None => Subject::Endpoint(key(name, namespace), (*first).to_owned()),
        },
        [port, protocol, name, namespace, "svc"] => {
            match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                (Some(port), Some(protocol)) => {
                    Subject::Port(key(name, namespace), port.to_owned(), protocol.to_owned())
                }
                _ => Subject::Nothing,
            }
        }
        _ => Subject::Nothing,
    }
}

/// `10-244-1-2` or `fd00--1`.
fn dashed(label: &str) -> Option<IpAddr> {
    let v4 = || label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    let v6 = || label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    v4().or_else(v6)
}

/// The label under which an address without a hostname is found.
pub(crate) fn dash(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address of `2.1.244.10.in-addr.arpa`.
fn reverse(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_what_they_are_about() {
        let zone = Zone::new("cluster.local", [10, 244, 1, 1].into(), Vec::new()).expect("a domain");
        let web = || ServiceKey::new("default", "web");
        let v4 = |octets: [u8; 4]| IpAddr::from(octets);
        for (name, expect) in [
            ("cluster.local.", Subject::Apex),
            ("svc.cluster.local.", Subject::Inner),
            ("default.svc.cluster.local.", Subject::Namespace("default".to_owned())),
            ("web.default.svc.cluster.local.", Subject::Service(web())),
            ("WEB.Default.SVC.Cluster.Local.", Subject::Service(web())),
            ("db-0.web.default.svc.cluster.local.", Subject::Endpoint(web(), "db-0".to_owned())),
            ("_tcp.web.default.svc.cluster.local.", Subject::Protocol(web(), "tcp".to_owned())),
            (
                "_http._tcp.web.default.svc.cluster.local.",
                Subject::Port(web(), "http".to_owned(), "tcp".to_owned()),
            ),
            ("10-244-1-2.default.pod.cluster.local.", Subject::Pod(v4([10, 244, 1, 2]))),
            ("fd00--1.default.pod.cluster.local.", Subject::Pod("fd00::1".parse().expect("valid"))),
            ("10-244-1-299.default.pod.cluster.local.", Subject::Nothing),
            ("dns-version.cluster.local.", Subject::SpecVersion),
            ("ns.dns.cluster.local.", Subject::NameServer),
            ("www.example.com.default.svc.cluster.local.", Subject::Nothing),
            ("a.b.c.d.e.svc.cluster.local.", Subject::Nothing),
            ("example.com.", Subject::Elsewhere),
            ("notcluster.local.", Subject::Elsewhere),
            ("2.1.244.10.in-addr.arpa.", Subject::Address(v4([10, 244, 1, 2]))),
            ("244.10.in-addr.arpa.", Subject::Elsewhere),
            (
                "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
                Subject::Address("fd00::1".parse().expect("valid")),
            ),
            (".", Subject::Elsewhere),
        ] {
            assert_eq!(zone.subject(&Name::from_ascii(name).expect("a name")), expect, "{name}");
        }
        assert!(Zone::new("", v4([1, 1, 1, 1]), Vec::new()).is_none());
    }
}
