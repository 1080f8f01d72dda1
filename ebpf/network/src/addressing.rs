//! Which subnets a cluster uses: chosen where they collide with nothing the host knows, or taken as
//! requested and refused where they collide. Pure.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::names::{ClusterName, ReplicaNumber, hash};

/// The subnets of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addressing {
    /// Addresses of the replicas; the host has the first.
    pub nodes: Ipv4Net,
    /// The cluster CIDR: each replica's pods get a /24 of it.
    pub pods: Ipv4Net,
}

impl Addressing {
    /// The host's address on the bridge: the first of the subnet.
    pub fn host(&self) -> Ipv4Addr {
        nth(self.nodes, 1)
    }

    /// The pool of load balancers' addresses: the third quarter of the nodes' subnet, since `pith up` numbers
    /// replicas from its beginning and starts 64 of them at most. None in a subnet that is too small for both.
    pub fn balancers(&self) -> Option<Ipv4Net> {
        let prefix = self.nodes.prefix_len();
        if prefix > 24 {
            return None;
        }
        let first = u32::from(self.nodes.network()) + (1 << (31 - prefix));
        Ipv4Net::new(first.into(), prefix + 2).ok()
    }

    /// The address of a replica.
    pub fn replica(&self, replica: ReplicaNumber) -> Ipv4Addr {
        nth(self.nodes, 1 + u32::from(replica.get()))
    }
}

/// The IPv6 networks of a cluster of both families: below a prefix of the cluster's own (RFC 4193), which follows from
/// its name, so that there is nothing to choose and nothing to remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Networks6 {
    /// Addresses of the replicas, a /64.
    pub nodes: Ipv6Net,
    /// Each replica's pods get a /64 of it.
    pub pods: Ipv6Net,
    /// The pool of load balancers' addresses, a /112 of the nodes' network: replicas have addresses of 32 bits there.
    pub balancers: Ipv6Net,
    /// Addresses of Services, a /112.
    pub services: Ipv6Net,
}

impl Networks6 {
    /// Those of this cluster.
    pub fn of(cluster: &ClusterName) -> Self {
        let global = u64::from_str_radix(&hash(&cluster.to_string(), 10), 16).expect("hexadecimal digits");
        let site = (0xFD << 120) | (u128::from(global) << 80);
        let below = |subnet: u128, prefix| {
            Ipv6Net::new(Ipv6Addr::from_bits(site | (subnet << 64)), prefix)
                .expect("the prefix is at most 128")
        };
        let balancers = Ipv6Addr::from_bits(site | (1 << 32));
        Self {
            nodes: below(0, 64),
            balancers: Ipv6Net::new(balancers, 112).expect("the prefix is at most 128"),
            pods: below(0x100, 56),
            services: below(0xFFFF, 112),
        }
    }
}

/// What the caller asks for; `None` is "choose".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Subnet of the replicas.
    pub nodes: Option<Ipv4Net>,
    /// Cluster CIDR.
    pub pods: Option<Ipv4Net>,
    /// Addresses of Services: not assigned to any interface, but nothing else may use them.
    pub services: Ipv4Net,
    /// Number of replicas that need an address.
    pub replicas: u16,
}

/// Addresses that are spoken for, and by whom, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// The addresses.
    pub net: Ipv4Net,
    /// E.g. `address 192.0.2.2/24 of eth0`.
    pub by: String,
}

/// Which of the subnets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The replicas' own addresses.
    Nodes,
    /// The pods' addresses.
    Pods,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nodes => "node subnet",
            Self::Pods => "cluster CIDR",
        })
    }
}

/// Why there are no subnets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressingError {
    /// A requested subnet collides.
    #[error("{role} {net} is in use: {by}")]
    InUse {
        /// Which subnet.
        role: Role,
        /// As requested.
        net: Ipv4Net,
        /// The interface or route in conflict.
        by: String,
    },
    /// A requested subnet has the wrong size.
    #[error("{role} {net} is too small: {needs}")]
    TooSmall {
        /// Which subnet.
        role: Role,
        /// As requested.
        net: Ipv4Net,
        /// What it has to hold.
        needs: String,
    },
    /// All candidates collide.
    #[error("no free {role}: all of {tried} candidates are in use; name one that is free")]
    NoneFree {
        /// Which subnet.
        role: Role,
        /// How many were tried.
        tried: usize,
    },
}

/// Chooses both subnets.
///
/// # Errors
/// See [`AddressingError`].
pub fn choose(wanted: &Wanted, in_use: &[InUse]) -> Result<Addressing, AddressingError> {
    let services = InUse { net: wanted.services, by: format!("Service addresses {}", wanted.services) };
    let mut taken: Vec<&InUse> = in_use.iter().chain([&services]).collect();
    // A requested cluster CIDR keeps the chosen node subnet away, and the other way round.
    let requested_pods = wanted.pods.map(|net| InUse { net, by: format!("cluster CIDR {net}") });

    let nodes = match wanted.nodes {
        Some(net) => {
            let net = net.trunc();
            // Network, host and broadcast addresses besides the replicas'.
            let needed = u64::from(wanted.replicas) + 3;
            if addresses(net) < needed {
                let needs = format!("{} replicas and the host", wanted.replicas);
                return Err(AddressingError::TooSmall { role: Role::Nodes, net, needs });
            }
            free(Role::Nodes, net, &taken)?
        }
        None => {
            let taken: Vec<_> = taken.iter().copied().chain(&requested_pods).collect();
            first_free(Role::Nodes, node_candidates(), &taken)?
        }
    };
    let nodes_in_use = InUse { net: nodes, by: format!("node subnet {nodes}") };
    taken.push(&nodes_in_use);

    let pods = match wanted.pods {
        Some(net) => {
            let net = net.trunc();
            if addresses(net) < 256 * u64::from(wanted.replicas.max(1)) {
                let needs = format!("a /24 for each of {} replicas", wanted.replicas);
                return Err(AddressingError::TooSmall { role: Role::Pods, net, needs });
            }
            free(Role::Pods, net, &taken)?
        }
        None => first_free(Role::Pods, pod_candidates(), &taken)?,
    };
    Ok(Addressing { nodes, pods })
}

/// Whether two subnets have an address in common.
pub(crate) fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The `n`th address of a subnet, counted from its network address.
pub(crate) fn nth(net: Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(net.network().to_bits().wrapping_add(n))
}

fn addresses(net: Ipv4Net) -> u64 {
    1 << (32 - u32::from(net.prefix_len()))
}

fn free(role: Role, net: Ipv4Net, taken: &[&InUse]) -> Result<Ipv4Net, AddressingError> {
    match taken.iter().find(|used| overlap(used.net, net)) {
        Some(used) => Err(AddressingError::InUse { role, net, by: used.by.clone() }),
        None => Ok(net),
    }
}

fn first_free(
    role: Role,
    candidates: impl Iterator<Item = Ipv4Net>,
    taken: &[&InUse],
) -> Result<Ipv4Net, AddressingError> {
    let mut tried = 0;
    for net in candidates {
        tried += 1;
        if !taken.iter().any(|used| overlap(used.net, net)) {
            return Ok(net);
        }
    }
    Err(AddressingError::NoneFree { role, tried })
}

/// /24s of three private blocks, so that a route to all of one block (a VPN's 10.0.0.0/8, say) leaves
/// the others.
fn node_candidates() -> impl Iterator<Item = Ipv4Net> {
    let blocks = [[10, 200], [172, 29], [192, 168]];
    blocks.into_iter().flat_map(|[a, b]| (0..=255).map(move |c| subnet([a, b, c, 0], 24)))
}

/// /16s: Kubernetes' customary 10.244.0.0/16 and its neighbours, other private blocks, then the shared
/// address space of RFC 6598.
fn pod_candidates() -> impl Iterator<Item = Ipv4Net> {
    let ten = (244..=255).chain(100..=199).map(|b| subnet([10, b, 0, 0], 16));
    let private = (16..=28).map(|b| subnet([172, b, 0, 0], 16));
    let shared = (64..=127).map(|b| subnet([100, b, 0, 0], 16));
    ten.chain(private).chain(shared)
}

fn subnet(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new(octets.into(), prefix).expect("the prefix is at most 32")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().expect("a subnet")
    }

    fn wanted(nodes: Option<&str>, pods: Option<&str>) -> Wanted {
        Wanted { nodes: nodes.map(net), pods: pods.map(net), services: net("10.96.0.0/16"), replicas: 3 }
    }

    fn in_use(nets: &[&str]) -> Vec<InUse> {
        nets.iter().map(|text| InUse { net: net(text), by: format!("route {text} dev tun0") }).collect()
    }

    #[test]
    fn balancers_have_a_quarter_of_the_nodes_subnet() {
        for (nodes, pool) in [
            ("10.200.3.0/24", Some("10.200.3.128/26")),
            ("10.200.0.0/16", Some("10.200.128.0/18")),
            ("10.200.3.0/25", None),
        ] {
            let addressing = Addressing { nodes: net(nodes), pods: net("10.244.0.0/16") };
            assert_eq!(addressing.balancers(), pool.map(net), "{nodes}");
        }
    }

    #[test]
    fn chosen_subnets_collide_with_nothing() {
        for (name, host, asked, nodes, pods) in [
            ("empty host", &[][..], wanted(None, None), "10.200.0.0/24", "10.244.0.0/16"),
            (
                "another cluster",
                &["10.200.0.0/24", "10.244.0.0/16"],
                wanted(None, None),
                "10.200.1.0/24",
                "10.245.0.0/16",
            ),
            ("a route to all of 10/8", &["10.0.0.0/8"], wanted(None, None), "172.29.0.0/24", "172.16.0.0/16"),
            (
                "a host route inside",
                &["10.200.0.7/32", "10.244.3.0/24"],
                wanted(None, None),
                "10.200.1.0/24",
                "10.245.0.0/16",
            ),
            (
                "requested pods where nodes would be",
                &[],
                wanted(None, Some("10.200.0.0/16")),
                "172.29.0.0/24",
                "10.200.0.0/16",
            ),
            (
                "requested nodes where pods would be",
                &[],
                wanted(Some("10.244.9.0/24"), None),
                "10.244.9.0/24",
                "10.245.0.0/16",
            ),
            (
                "host bits are cleared",
                &[],
                wanted(Some("10.1.2.3/24"), Some("10.2.3.4/16")),
                "10.1.2.0/24",
                "10.2.0.0/16",
            ),
        ] {
            let expect = Addressing { nodes: net(nodes), pods: net(pods) };
            assert_eq!(choose(&asked, &in_use(host)), Ok(expect), "{name}");
        }
    }

    #[test]
    fn a_requested_subnet_in_use_names_who_uses_it() {
        for (name, host, asked, message) in [
            (
                "nodes",
                &["192.0.2.0/24"][..],
                wanted(Some("192.0.2.128/25"), None),
                "node subnet 192.0.2.128/25 is in use: route 192.0.2.0/24 dev tun0",
            ),
            (
                "pods",
                &["10.9.8.0/24"],
                wanted(None, Some("10.9.0.0/16")),
                "cluster CIDR 10.9.0.0/16 is in use: route 10.9.8.0/24 dev tun0",
            ),
            (
                "Services",
                &[],
                wanted(None, Some("10.96.0.0/12")),
                "cluster CIDR 10.96.0.0/12 is in use: Service addresses 10.96.0.0/16",
            ),
            (
                "each other",
                &[],
                wanted(Some("10.5.1.0/24"), Some("10.5.0.0/16")),
                "cluster CIDR 10.5.0.0/16 is in use: node subnet 10.5.1.0/24",
            ),
            (
                "too few nodes",
                &[],
                wanted(Some("10.5.1.0/30"), None),
                "node subnet 10.5.1.0/30 is too small: 3 replicas and the host",
            ),
            (
                "too few pods",
                &[],
                wanted(None, Some("10.5.0.0/23")),
                "cluster CIDR 10.5.0.0/23 is too small: a /24 for each of 3 replicas",
            ),
        ] {
            let error = choose(&asked, &in_use(host)).expect_err(name);
            assert_eq!(error.to_string(), message, "{name}");
        }
    }

    #[test]
    fn a_full_host_is_said_so() {
        let all = in_use(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]);
        let error = choose(&wanted(None, None), &all).expect_err("nothing is free");
        assert_eq!(error, AddressingError::NoneFree { role: Role::Nodes, tried: 768 });
    }

    #[test]
    fn addresses_follow_the_replicas_number() {
        let addressing = Addressing { nodes: net("10.200.7.0/24"), pods: net("10.244.0.0/16") };
        let replica = |n| addressing.replica(ReplicaNumber::new(n).expect("valid"));
        assert_eq!(addressing.host(), Ipv4Addr::new(10, 200, 7, 1));
        assert_eq!(replica(1), Ipv4Addr::new(10, 200, 7, 2));
        assert_eq!(replica(253), Ipv4Addr::new(10, 200, 7, 254));
    }
}
