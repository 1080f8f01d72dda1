//! The interface that leads to the other nodes.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;

/// The interface of the IPv4 default route (proc_net_route(5): destination and mask 0), the one of least metric.
pub(crate) fn of_default_route() -> Result<String> {
    let table = fs::read_to_string("/proc/net/route").context("read /proc/net/route")?;
    default_of(&table).context("no default route: name the interface with --uplink")
}

fn default_of(table: &str) -> Option<String> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_default = *fields.get(1)? == "00000000" && *fields.get(7)? == "00000000";
        is_default.then(|| Some((fields.get(6)?.parse::<u32>().ok()?, (*fields.first()?).to_owned())))?
    });
    routes.min().map(|(_, interface)| interface)
}

/// Whether packets of an interface begin with an Ethernet header (`ARPHRD_ETHER`, netdevice(7)), which the
/// eBPF programs expect.
pub(crate) fn is_ethernet(interface: &str) -> bool {
    let kind = fs::read_to_string(format!("/sys/class/net/{interface}/type"));
    kind.is_ok_and(|kind| kind.trim() == "1")
}

/// The first IPv4 address of an interface.
pub(crate) fn first_address(interface: &str) -> Result<Ipv4Addr> {
    let mut addresses = getifaddrs().context("list addresses")?;
    let found = addresses.find_map(|entry| {
        let address = entry.address?.as_sockaddr_in().map(|address| address.ip());
        if entry.interface_name == interface { address } else { None }
    });
    found
        .with_context(|| format!("interface {interface} has no IPv4 address: name the node's with --node-ip"))
}

/// The first IPv6 address of an interface that others may know, where it has one: not one of the link's own.
pub(crate) fn first_address6(interface: &str) -> Result<Option<Ipv6Addr>> {
    let addresses = getifaddrs().context("list addresses")?;
    let own = addresses.filter(|entry| entry.interface_name == interface);
    let six = own.filter_map(|entry| Some(entry.address?.as_sockaddr_in6()?.ip()));
    Ok(six.into_iter().find(|address| !address.is_unicast_link_local()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";

    #[test]
    fn default_routes_table() {
        let cases = [
            ("none", "eth0\t000AA8C0\t0\t1\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", None),
            ("one", "eth0\t00000000\t010AA8C0\t3\t0\t0\t100\t00000000\t0\t0\t0\n", Some("eth0")),
            (
                "the least metric",
                "wlan0\t00000000\t1\t3\t0\t0\t600\t00000000\t0\t0\t0\neth1\t00000000\t1\t3\t0\t0\t100\t00000000\t0\t0\t0\n",
                Some("eth1"),
            ),
        ];
        for (name, routes, expect) in cases {
            assert_eq!(default_of(&format!("{HEAD}{routes}")).as_deref(), expect, "{name}");
        }
    }
}
