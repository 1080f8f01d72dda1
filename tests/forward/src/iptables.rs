//! Services as kube-proxy's iptables mode writes them, as input of `iptables-restore`.
//!
//! ```text
//! PREROUTING, OUTPUT ─► KUBE-SERVICES ─► KUBE-SVC-… ─► KUBE-SEP-… ─► DNAT
//!                       one rule a       one rule an
//!                       Service          endpoint, by chance
//! ```
//! The shape, in order and wording, is that of pkg/proxy/iptables/proxier.go of Kubernetes 1.29 and later.

use std::net::Ipv4Addr;

use crate::cluster::{CLUSTER_CIDR, PORT, Service, TARGET_PORT};
use crate::names::digest;
use crate::rules::line;

/// Chains of the filter table and the rules that do not depend on any Service.
const FILTER: &str = "\
*filter
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A KUBE-FIREWALL -m comment --comment \"block incoming localnet connections\" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
";

/// The jumps from the kernel's own chains, written once when kube-proxy starts.
const FILTER_JUMPS: &str = "\
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
";

const NAT_JUMPS: &str = "\
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
";

const MASQUERADE: &str = "\
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
";

const NODE_PORTS: &str = "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n";

/// Everything, for `iptables-restore` into an empty namespace: what a full synchronisation writes.
pub(crate) fn full(services: &[Service]) -> String {
    let mut text = format!("{FILTER}{FILTER_JUMPS}COMMIT\n");
    nat(&mut text, services, services, &[], NAT_JUMPS);
    text
}

/// One Service changed, for `iptables-restore --noflush`: what a partial synchronisation writes. The table of
/// all Services' addresses is written whole each time, and only the chains of the changed Service with it; those
/// of endpoints that it has no longer are removed.
pub(crate) fn change(services: &[Service], changed: &Service, removed: &[Ipv4Addr]) -> String {
    let mut text = format!("{FILTER}COMMIT\n");
    let stale: Vec<String> = removed.iter().map(|endpoint| endpoint_chain(changed, *endpoint)).collect();
    nat(&mut text, services, std::slice::from_ref(changed), &stale, "");
    text
}

fn nat(text: &mut String, all: &[Service], written: &[Service], stale: &[String], jumps: &str) {
    text.push_str("*nat\n");
    for chain in ["KUBE-NODEPORTS", "KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"] {
        line(text, format_args!(":{chain} - [0:0]"));
    }
    for service in written {
        line(text, format_args!(":{} - [0:0]", service_chain(service)));
        if service.node_port.is_some() {
            line(text, format_args!(":{} - [0:0]", external_chain(service)));
        }
        for endpoint in &service.endpoints {
            line(text, format_args!(":{} - [0:0]", endpoint_chain(service, *endpoint)));
        }
    }
    for chain in stale {
        line(text, format_args!(":{chain} - [0:0]"));
    }
    text.push_str(jumps);
    text.push_str(MASQUERADE);
    for service in all {
        entrance(text, service);
    }
    for service in written {
        balance(text, service);
    }
    text.push_str(NODE_PORTS);
    for chain in stale {
        line(text, format_args!("-X {chain}"));
    }
    text.push_str("COMMIT\n");
}

/// How packets get to a Service's chain.
fn entrance(text: &mut String, service: &Service) {
    let (label, address, chain) = (label(service), service.address, service_chain(service));
    line(
        text,
        format_args!(
            "-A KUBE-SERVICES -m comment --comment \"{label} cluster IP\" -m tcp -p tcp -d {address} --dport {PORT} -j {chain}"
        ),
    );
    if let Some(port) = service.node_port {
        let external = external_chain(service);
        line(
            text,
            format_args!(
                "-A KUBE-NODEPORTS -m comment --comment {label} -m tcp -p tcp --dport {port} -j {external}"
            ),
        );
    }
}

/// A Service's own chains.
fn balance(text: &mut String, service: &Service) {
    let (label, address, chain) = (label(service), service.address, service_chain(service));
    if service.node_port.is_some() {
        let external = external_chain(service);
        line(
            text,
            format_args!(
                "-A {external} -m comment --comment \"masquerade traffic for {label} external destinations\" -j KUBE-MARK-MASQ"
            ),
        );
        line(text, format_args!("-A {external} -j {chain}"));
    }
    line(
        text,
        format_args!(
            "-A {chain} -m comment --comment \"{label} cluster IP\" -m tcp -p tcp -d {address} --dport {PORT} ! -s {CLUSTER_CIDR} -j KUBE-MARK-MASQ"
        ),
    );
    let count = service.endpoints.len();
    for (place, endpoint) in service.endpoints.iter().enumerate() {
        let endpoint_chain = endpoint_chain(service, *endpoint);
        let left = count - place;
        let chance = if left > 1 {
            format!(" -m statistic --mode random --probability {}", probability(left))
        } else {
            String::new()
        };
        line(
            text,
            format_args!(
                "-A {chain} -m comment --comment \"{label} -> {endpoint}:{TARGET_PORT}\"{chance} -j {endpoint_chain}"
            ),
        );
    }
    for endpoint in &service.endpoints {
        let chain = endpoint_chain(service, *endpoint);
        line(text, format_args!("-A {chain} -m comment --comment {label} -s {endpoint} -j KUBE-MARK-MASQ"));
        line(
            text,
            format_args!(
                "-A {chain} -m comment --comment {label} -m tcp -p tcp -j DNAT --to-destination {endpoint}:{TARGET_PORT}"
            ),
        );
    }
}

/// One in `left`, in the ten digits that kube-proxy writes.
fn probability(left: usize) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a number of endpoints is far below 2^52")]
    let left = left as f64;
    format!("{:.10}", 1.0 / left)
}

fn label(service: &Service) -> String {
    format!("{}/{}:{}", Service::NAMESPACE, service.name(), Service::PORT_NAME)
}

fn service_chain(service: &Service) -> String {
    format!("KUBE-SVC-{}", digest(&format!("{}tcp", label(service)), 16))
}

fn external_chain(service: &Service) -> String {
    format!("KUBE-EXT-{}", digest(&format!("{}tcp", label(service)), 16))
}

fn endpoint_chain(service: &Service, endpoint: Ipv4Addr) -> String {
    format!("KUBE-SEP-{}", digest(&format!("{}tcp{endpoint}:{TARGET_PORT}", label(service)), 16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::services;

    #[test]
    fn the_shape_of_two_services() {
        let endpoints = [Ipv4Addr::new(10, 244, 2, 2), Ipv4Addr::new(10, 244, 2, 3)];
        insta::assert_snapshot!(full(&services(2, &endpoints)));
    }

    #[test]
    fn the_shape_of_a_change() {
        let (stays, goes) = (Ipv4Addr::new(10, 244, 2, 2), Ipv4Addr::new(10, 244, 2, 3));
        let mut all = services(3, &[stays, goes]);
        all[1].endpoints = vec![stays];
        insta::assert_snapshot!(change(&all, &all[1], &[goes]));
    }
}
