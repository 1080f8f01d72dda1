//! Services as kube-proxy's nftables mode writes them, as input of `nft -f`.
//!
//! ```text
//! prerouting, output ─► services ─► service-… ─► endpoint-… ─► dnat
//!                       verdict     numgen and
//!                       map         a verdict map
//! ```
//! The shape, in order and wording, is that of pkg/proxy/nftables/proxier.go of Kubernetes 1.33 and later.

use std::fmt::Write;
use std::net::Ipv4Addr;

use crate::cluster::{CLUSTER_CIDR, PORT, SERVICE_CIDR, Service, TARGET_PORT};
use crate::ground::NODE;
use crate::names::digest;
use crate::rules::line;

/// Tables, maps and chains that do not depend on any Service.
fn base() -> String {
    format!(
        "\
add table ip kube-proxy {{ comment \"rules for kube-proxy\" ; }}
add set ip kube-proxy cluster-ips {{ type ipv4_addr ; comment \"Active ClusterIPs\" ; }}
add set ip kube-proxy nodeport-ips {{ type ipv4_addr ; comment \"IPs that accept NodePort traffic\" ; }}
add map ip kube-proxy firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict ; comment \"destinations that are subject to LoadBalancerSourceRanges\" ; }}
add map ip kube-proxy no-endpoint-nodeports {{ type inet_proto . inet_service : verdict ; comment \"vmap to drop or reject packets to service nodeports with no endpoints\" ; }}
add map ip kube-proxy no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict ; comment \"vmap to drop or reject packets to services with no endpoints\" ; }}
add map ip kube-proxy service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict ; comment \"ClusterIP, ExternalIP and LoadBalancer IP traffic\" ; }}
add map ip kube-proxy service-nodeports {{ type inet_proto . inet_service : verdict ; comment \"NodePort traffic\" ; }}
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy filter-prerouting-pre-dnat {{ type filter hook prerouting priority -110 ; }}
add chain ip kube-proxy filter-output-pre-dnat {{ type filter hook output priority -110 ; }}
add chain ip kube-proxy filter-forward {{ type filter hook forward priority 0 ; }}
add chain ip kube-proxy filter-input {{ type filter hook input priority 0 ; }}
add chain ip kube-proxy filter-output {{ type filter hook output priority 0 ; }}
add chain ip kube-proxy firewall-check
add chain ip kube-proxy mark-for-masquerade
add chain ip kube-proxy masquerading
add chain ip kube-proxy nat-output {{ type nat hook output priority -100 ; }}
add chain ip kube-proxy nat-postrouting {{ type nat hook postrouting priority 100 ; }}
add chain ip kube-proxy nat-prerouting {{ type nat hook prerouting priority -100 ; }}
add chain ip kube-proxy nodeport-endpoints-check
add chain ip kube-proxy reject-chain {{ comment \"helper for @no-endpoint-services / @no-endpoint-nodeports\" ; }}
add chain ip kube-proxy services
add chain ip kube-proxy service-endpoints-check
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\"
add rule ip kube-proxy cluster-ips-check ip daddr {{ {SERVICE_CIDR} }} drop comment \"Drop traffic to unallocated ClusterIPs\"
add rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy reject-chain reject
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add element ip kube-proxy nodeport-ips {{ {NODE} }}
"
    )
}

/// Everything, for `nft -f` into an empty namespace: what a full synchronisation writes.
pub(crate) fn full(services: &[Service]) -> String {
    base() + &more(services)
}

/// Services beside those that are there: what a partial synchronisation writes for new ones.
pub(crate) fn more(services: &[Service]) -> String {
    let mut text = String::new();
    for service in services {
        chains(&mut text, service);
    }
    for service in services {
        rules(&mut text, service);
        elements(&mut text, service);
    }
    text
}

/// One Service changed: what a partial synchronisation writes. Chains of endpoints that it has no longer go.
pub(crate) fn change(changed: &Service, removed: &[Ipv4Addr]) -> String {
    let mut text = String::new();
    chains(&mut text, changed);
    let endpoints = changed.endpoints.iter().map(|endpoint| endpoint_chain(changed, *endpoint));
    let external = changed.node_port.map(|_| chain("external", changed));
    for chain in endpoints.chain(external).chain([chain("service", changed)]) {
        line(&mut text, format_args!("flush chain ip kube-proxy {chain}"));
    }
    rules(&mut text, changed);
    for endpoint in removed {
        let chain = endpoint_chain(changed, *endpoint);
        line(&mut text, format_args!("flush chain ip kube-proxy {chain}"));
        line(&mut text, format_args!("delete chain ip kube-proxy {chain}"));
    }
    text
}

fn chains(text: &mut String, service: &Service) {
    line(text, format_args!("add chain ip kube-proxy {}", chain("service", service)));
    if service.node_port.is_some() {
        line(text, format_args!("add chain ip kube-proxy {}", chain("external", service)));
    }
    for endpoint in &service.endpoints {
        line(text, format_args!("add chain ip kube-proxy {}", endpoint_chain(service, *endpoint)));
    }
}

fn rules(text: &mut String, service: &Service) {
    let (own, address) = (chain("service", service), service.address);
    line(
        text,
        format_args!(
            "add rule ip kube-proxy {own} ip daddr {address} ip saddr != {CLUSTER_CIDR} jump mark-for-masquerade"
        ),
    );
    let mut choices = String::new();
    for (place, endpoint) in service.endpoints.iter().enumerate() {
        let comma = if place == 0 { "" } else { " , " };
        write!(choices, "{comma}{place} : goto {}", endpoint_chain(service, *endpoint))
            .expect("writing to a string cannot fail");
    }
    let count = service.endpoints.len();
    if count > 0 {
        line(
            text,
            format_args!("add rule ip kube-proxy {own} numgen random mod {count} vmap {{ {choices} }}"),
        );
    }
    if service.node_port.is_some() {
        let external = chain("external", service);
        line(text, format_args!("add rule ip kube-proxy {external} jump mark-for-masquerade"));
        line(text, format_args!("add rule ip kube-proxy {external} goto {own}"));
    }
    for endpoint in &service.endpoints {
        let chain = endpoint_chain(service, *endpoint);
        line(
            text,
            format_args!("add rule ip kube-proxy {chain} ip saddr {endpoint} jump mark-for-masquerade"),
        );
        line(
            text,
            format_args!("add rule ip kube-proxy {chain} meta l4proto tcp dnat to {endpoint}:{TARGET_PORT}"),
        );
    }
}

fn elements(text: &mut String, service: &Service) {
    let (own, address) = (chain("service", service), service.address);
    line(text, format_args!("add element ip kube-proxy cluster-ips {{ {address} }}"));
    line(
        text,
        format_args!("add element ip kube-proxy service-ips {{ {address} . tcp . {PORT} : goto {own} }}"),
    );
    if let Some(port) = service.node_port {
        let external = chain("external", service);
        line(
            text,
            format_args!("add element ip kube-proxy service-nodeports {{ tcp . {port} : goto {external} }}"),
        );
    }
}

/// `service-ULMVA6XW-ns1/svc1/tcp/p80`
fn chain(kind: &str, service: &Service) -> String {
    let name = label(service);
    format!("{kind}-{}-{name}", digest(&name, 8))
}

fn endpoint_chain(service: &Service, endpoint: Ipv4Addr) -> String {
    let name = format!("{}__{endpoint}/{TARGET_PORT}", label(service));
    format!("endpoint-{}-{name}", digest(&name, 8))
}

fn label(service: &Service) -> String {
    format!("{}/{}/tcp/{}", Service::NAMESPACE, service.name(), Service::PORT_NAME)
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
        let mut changed = services(3, &[stays]).remove(1);
        changed.endpoints = vec![stays];
        insta::assert_snapshot!(change(&changed, &[goes]));
    }
}
