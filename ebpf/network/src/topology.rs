//! The links and namespaces of a whole cluster on one machine, for `pith up` and `pith down`.
//!
//! ```text
//!  host                     pith-<cluster> (bridge, first address of the node subnet)
//!                             │             │             │
//!                        pith<hash>r1  pith<hash>r2  pith<hash>r3        veth pairs
//!                             │             │             │
//!  namespaces               eth0          eth0          eth0
//!                      pith-<cluster>-r1      -r2           -r3
//! ```
//!
//! Invariant: everything made here is found again by its name, derived from the cluster's, so that
//! nothing has to be written down to be removed, and a process killed at any step leaves nothing that
//! the next [`ensure`] does not repair and [`remove`] does not remove. The bridge's alias additionally
//! says which subnets the cluster uses; it is how a second cluster, or a second start, knows.
//!
//! All functions block; each takes a few milliseconds a replica.

use std::{
    collections::HashMap,
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::{
    link::{InfoKind, LinkAttribute},
    route::{RouteProtocol, RouteType},
};
use nix::errno::Errno;
use pith_netlink::{Request, Rtnl, RtnlError};

use crate::{
    addressing::{self, Addressing, AddressingError, InUse, Wanted},
    message::{self, LOOPBACK, Link, Mac, Route, VethEnd},
    names::{ClusterName, ReplicaNumber, hash},
    netns::{self, Netns, NetnsError},
    sysctl::{self, SysctlError},
};

/// The replica's interface towards the bridge, by its name inside.
pub const UPLINK: &str = "eth0";
/// Where the host has no default route to take it from.
const MTU_DEFAULT: u32 = 1500;

/// What `pith up` asks for.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster.
    pub cluster: ClusterName,
    /// How many replicas, at most [`ReplicaNumber::MAX`].
    pub replicas: u16,
    /// Subnet of the replicas; `None` takes the one the cluster has, or else chooses a free /24.
    pub nodes: Option<Ipv4Net>,
    /// Subnet of the replicas in IPv6, of at most 96 bits, where the cluster has both families: each address
    /// ends with that of IPv4.
    pub nodes6: Option<Ipv6Net>,
    /// Cluster CIDR; `None` takes the one the cluster has, or else chooses a free /16.
    pub pods: Option<Ipv4Net>,
    /// Service CIDR, from which the others keep away.
    pub services: Ipv4Net,
}

/// What is there.
#[derive(Debug)]
pub struct Topology {
    /// Name of the bridge.
    pub bridge: String,
    /// Subnets; `addressing.host()` is the host's address on the bridge.
    pub addressing: Addressing,
    /// MTU of bridge and uplinks, in bytes: that of the host's default route.
    pub mtu: u32,
    /// In order of their numbers.
    pub replicas: Vec<ReplicaNet>,
}

/// One replica's place in the topology.
#[derive(Debug)]
pub struct ReplicaNet {
    /// Its number.
    pub number: ReplicaNumber,
    /// Its namespace: start its process with [`Netns::run`].
    pub netns: Netns,
    /// Its address on [`UPLINK`].
    pub address: Ipv4Addr,
    /// The same in IPv6.
    pub address6: Option<Ipv6Addr>,
}

impl Config {
    fn six(&self, address: Ipv4Addr) -> Option<Ipv6Net> {
        let net = self.nodes6?;
        let bits = net.network().to_bits() | u128::from(address.to_bits());
        Ipv6Net::new(Ipv6Addr::from_bits(bits), net.prefix_len()).ok()
    }
}

/// Why the topology could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// No usable subnets.
    #[error(transparent)]
    Addressing(#[from] AddressingError),
    /// The cluster is there already, with other subnets than requested.
    #[error("cluster {cluster} already has {existing}, not {requested}: remove it first")]
    OtherSubnet {
        /// The cluster.
        cluster: ClusterName,
        /// What it has.
        existing: Ipv4Net,
        /// What was asked for.
        requested: Ipv4Net,
    },
    /// A link of our name that is none of ours.
    #[error("interface {name} is not a {expected} of pith's: rename or remove it")]
    Foreign {
        /// The interface.
        name: String,
        /// What it should be.
        expected: &'static str,
    },
    /// More replicas than addresses.
    #[error("{0} replicas are more than one machine's cluster can have ({max})", max = ReplicaNumber::MAX)]
    TooMany(u16),
    /// Not root.
    #[error("making network namespaces and links needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)")]
    Rights,
    /// The kernel refused a link, address or route.
    #[error(transparent)]
    Rtnl(RtnlError),
    /// A namespace could not be made or entered.
    #[error(transparent)]
    Netns(NetnsError),
    /// Both families are wanted where there is one.
    #[error("this kernel has no IPv6, or was told to do without it (ipv6.disable=1)")]
    NoIpv6,
    /// A parameter of the bridge, which would have no IPv6, could not be set.
    #[error("give the bridge IPv6")]
    Bridge(#[source] SysctlError),
    /// A kernel parameter could not be set in a replica's namespace.
    #[error("in {netns}")]
    Sysctl {
        /// The namespace.
        netns: String,
        #[source]
        source: SysctlError,
    },
    /// The lock in /run/netns.
    #[error("lock /run/netns")]
    Lock(#[source] io::Error),
}

impl From<RtnlError> for TopologyError {
    fn from(error: RtnlError) -> Self {
        if error.errno() == Some(Errno::EPERM) { Self::Rights } else { Self::Rtnl(error) }
    }
}

impl From<NetnsError> for TopologyError {
    fn from(error: NetnsError) -> Self {
        let rights = [io::ErrorKind::PermissionDenied];
        if rights.contains(&error.source.kind()) { Self::Rights } else { Self::Netns(error) }
    }
}

/// Something of a cluster that is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// A link of the host.
    Link(String),
    /// A named network namespace.
    Netns(String),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "interface {name}"),
            Self::Netns(name) => write!(f, "network namespace {name}"),
        }
    }
}

/// Everything that could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct RemoveErrors(pub Vec<RemoveError>);

/// One thing that could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// A link.
    #[error(transparent)]
    Link(RtnlError),
    /// A namespace.
    #[error("{error}: {}", error.source)]
    Netns {
        /// Which, and the step that failed.
        error: NetnsError,
    },
    /// The lock in /run/netns.
    #[error("lock /run/netns: {0}")]
    Lock(io::Error),
}

/// Makes the cluster's bridge, namespaces and uplinks, or finds and repairs them. Replicas beyond
/// `config.replicas` are left alone.
///
/// # Errors
/// See [`TopologyError`]. What was made until then stays, for the next call or [`remove`].
pub fn ensure(config: &Config) -> Result<Topology, TopologyError> {
    if config.replicas > ReplicaNumber::MAX {
        return Err(TopologyError::TooMany(config.replicas));
    }
    if config.nodes6.is_some() && !sysctl::has_ipv6() {
        return Err(TopologyError::NoIpv6);
    }
    let _lock = netns::Lock::take().map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => TopologyError::Rights,
        _ => TopologyError::Lock(error),
    })?;
    let mut rtnl = Rtnl::open()?;
    let host = Host::observe(&mut rtnl)?;
    let addressing = subnets(config, &host)?;
    let bridge = config.cluster.bridge();
    let bridge_index = ensure_bridge(&mut rtnl, &host, &config.cluster, addressing)?;
    if let Some(own) = config.six(addressing.host()) {
        sysctl::allow6(&bridge).map_err(TopologyError::Bridge)?;
        let what = format!("give {bridge} the address {own}");
        rtnl.batch(vec![Request::replace(what, message::address(bridge_index, own))])?;
    }

    let mut replicas = Vec::with_capacity(usize::from(config.replicas));
    for number in ReplicaNumber::first(config.replicas) {
        let netns = Netns::ensure(&config.cluster.netns(number))?;
        let address = addressing.replica(number);
        let address6 = config.six(address).map(|net| net.addr());
        let replica = ReplicaNet { number, netns, address, address6 };
        let uplink = Uplink { config, addressing, mtu: host.mtu(), bridge_index, replica: &replica };
        uplink.ensure(&mut rtnl, host.link(&config.cluster.port(number)))?;
        replicas.push(replica);
    }
    Ok(Topology { bridge, addressing, mtu: host.mtu(), replicas })
}

/// Removes all of a cluster: links, namespaces, and what a process killed half-way left of them. Goes on
/// after a failure. Processes that still run in a namespace keep it, cut off from everything.
///
/// # Errors
/// Everything that is still there, and why.
pub fn remove(cluster: &ClusterName) -> Result<(), RemoveErrors> {
    let _lock = netns::Lock::take().map_err(|error| RemoveErrors(vec![RemoveError::Lock(error)]))?;
    let mut errors = Vec::new();
    match links_of(cluster) {
        Ok((mut rtnl, links)) => {
            for name in links {
                let request = Request::set(format!("delete {name}"), message::delete_link(&name));
                // The other end's namespace may be dying, and take this one with it at any moment.
                if let Err(error) = rtnl.batch(vec![request.tolerating(&[Errno::ENODEV])]) {
                    errors.push(RemoveError::Link(error));
                }
            }
        }
        Err(error) => errors.push(RemoveError::Link(error)),
    }
    for name in Netns::names().into_iter().filter(|name| cluster.owns_netns(name)) {
        if let Err(error) = Netns::remove(&name) {
            errors.push(RemoveError::Netns { error });
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(RemoveErrors(errors)) }
}

/// What is there of a cluster: nothing, once it is down.
///
/// # Errors
/// The host's links cannot be listed.
pub fn audit(cluster: &ClusterName) -> Result<Vec<Leftover>, RtnlError> {
    let (_, links) = links_of(cluster)?;
    let namespaces = Netns::names().into_iter().filter(|name| cluster.owns_netns(name));
    Ok(links.into_iter().map(Leftover::Link).chain(namespaces.map(Leftover::Netns)).collect())
}

/// The cluster's links: uplinks first, since the bridge cannot tell whose ports it had once it is gone.
fn links_of(cluster: &ClusterName) -> Result<(Rtnl, Vec<String>), RtnlError> {
    let mut rtnl = Rtnl::open()?;
    let links = Link::all(&rtnl.dump("list links", message::get_links())?);
    let of_kind = |kind: InfoKind| links.iter().filter(move |link| link.kind.as_ref() == Some(&kind));
    let ports = of_kind(InfoKind::Veth).filter(|link| cluster.owns_port(&link.name));
    let bridges = of_kind(InfoKind::Bridge).filter(|link| link.name == cluster.bridge());
    let names = ports.chain(bridges).map(|link| link.name.clone()).collect();
    Ok((rtnl, names))
}

/// What the host's namespace holds before anything is changed.
struct Host {
    links: Vec<Link>,
    /// Interface index and address.
    addresses: Vec<(u32, Ipv4Net)>,
    routes: Vec<Route>,
}

impl Host {
    fn observe(rtnl: &mut Rtnl) -> Result<Self, RtnlError> {
        Ok(Self {
            links: Link::all(&rtnl.dump("list links", message::get_links())?),
            addresses: message::addresses(&rtnl.dump("list addresses", message::get_addresses())?),
            routes: Route::all(&rtnl.dump("list routes", Route::dump_message())?),
        })
    }

    fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    fn name(&self, index: u32) -> &str {
        self.links.iter().find(|link| link.index == index).map_or("?", |link| &link.name)
    }

    /// MTU of the default route's interface: what leaves the machine has to fit there, and a smaller
    /// packet costs nothing between replicas, whose segments are not cut on a bridge at all (GSO).
    fn mtu(&self) -> u32 {
        let default = self.routes.iter().filter(|route| route.destination == IpNet::from(Ipv4Net::default()));
        let best = default.min_by_key(|route| route.metric.unwrap_or(0));
        let device = best.and_then(|route| route.device);
        let link = device.and_then(|index| self.links.iter().find(|link| link.index == index));
        link.map_or(MTU_DEFAULT, |link| link.mtu)
    }

    /// Addresses that others than the interface `except` use: by interfaces, routes other than the
    /// default, and other clusters' pods, to which the host may have no route.
    fn in_use(&self, except: Option<u32>) -> Vec<InUse> {
        let name = |index: u32| self.name(index);
        let addresses = self
            .addresses
            .iter()
            .filter(|(index, _)| Some(*index) != except)
            .map(|(index, net)| InUse { net: net.trunc(), by: format!("address {net} of {}", name(*index)) });
        let routes = self.routes.iter().filter_map(|route| match route.destination {
            IpNet::V4(net) => Some((route, net)),
            IpNet::V6(_) => None,
        });
        let routes = routes
            .filter(|(_, net)| net.prefix_len() > 0)
            .filter(|(route, _)| except.is_none() || route.device != except)
            .map(|(route, net)| {
                let device = route.device.map_or(String::new(), |index| format!(" dev {}", name(index)));
                InUse { net, by: format!("route {net}{device}") }
            });
        let clusters = self.links.iter().filter(|link| Some(link.index) != except);
        let clusters = clusters.filter_map(|link| {
            let subnets = Alias::parse(&link.alias)?;
            Some(InUse { net: subnets.pods, by: format!("pods of the cluster on {}", link.name) })
        });
        addresses.chain(routes).chain(clusters).collect()
    }
}

/// The subnets a cluster uses, as the alias of its bridge says.
struct Alias;

impl Alias {
    fn of(subnets: Addressing) -> String {
        format!("pith nodes {} pods {}", subnets.nodes, subnets.pods)
    }

    fn parse(alias: &str) -> Option<Addressing> {
        let (nodes, pods) = alias.strip_prefix("pith nodes ")?.split_once(" pods ")?;
        Some(Addressing { nodes: nodes.parse().ok()?, pods: pods.parse().ok()? })
    }
}

/// The subnets of a cluster that is there, or new ones.
fn subnets(config: &Config, host: &Host) -> Result<Addressing, TopologyError> {
    let bridge = host.link(&config.cluster.bridge());
    if let Some(existing) = bridge.and_then(|bridge| Alias::parse(&bridge.alias)) {
        for (requested, existing) in [(config.nodes, existing.nodes), (config.pods, existing.pods)] {
            if let Some(requested) = requested.filter(|requested| requested.trunc() != existing) {
                let cluster = config.cluster.clone();
                return Err(TopologyError::OtherSubnet { cluster, existing, requested });
            }
        }
        return Ok(existing);
    }
    let wanted = Wanted {
        nodes: config.nodes,
        pods: config.pods,
        services: config.services,
        replicas: config.replicas,
    };
    Ok(addressing::choose(&wanted, &host.in_use(bridge.map(|bridge| bridge.index)))?)
}

/// The bridge, up and with the host's address; its index.
fn ensure_bridge(
    rtnl: &mut Rtnl,
    host: &Host,
    cluster: &ClusterName,
    subnets: Addressing,
) -> Result<u32, TopologyError> {
    let name = cluster.bridge();
    let mtu = host.mtu();
    let mut requests = Vec::new();
    match host.link(&name) {
        Some(link) if link.kind != Some(InfoKind::Bridge) => {
            return Err(TopologyError::Foreign { name, expected: "bridge" });
        }
        Some(link) => {
            let up = message::link_up(link.index, vec![LinkAttribute::Mtu(mtu)]);
            requests.push(Request::set(format!("set {name} up"), up));
        }
        // A fixed address: a bridge without one takes the lowest of its ports', and changes it with them.
        None => {
            let create = message::bridge(&name, mac_of(&name), mtu);
            requests.push(Request::create(format!("create bridge {name}"), create));
        }
    }
    // Before the address: whoever is killed in between leaves a bridge that says what it is for.
    let alias = message::link_alias(&name, &Alias::of(subnets));
    requests.push(Request::set(format!("name {name}'s subnets"), alias));
    requests.push(Request::set(format!("find {name}"), message::get_link(&name)));
    let answers = rtnl.batch(requests)?;
    let missing = || TopologyError::Foreign { name: name.clone(), expected: "bridge" };
    let index = Link::all(&answers).pop().ok_or_else(missing)?.index;

    let address = Ipv4Net::new(subnets.host(), subnets.nodes.prefix_len()).expect("a valid prefix");
    let what = format!("give {name} the address {address}");
    rtnl.batch(vec![Request::replace(what, message::address(index, address))])?;
    Ok(index)
}

/// A replica's uplink on its way to being right.
struct Uplink<'a> {
    config: &'a Config,
    addressing: Addressing,
    mtu: u32,
    bridge_index: u32,
    replica: &'a ReplicaNet,
}

impl Uplink<'_> {
    fn ensure(&self, rtnl: &mut Rtnl, port: Option<&Link>) -> Result<(), TopologyError> {
        let netns = &self.replica.netns;
        let inside = netns.run(|| -> Result<_, TopologyError> {
            let sysctl = |source| TopologyError::Sysctl { netns: netns.name().to_owned(), source };
            sysctl::enable_forwarding().map_err(sysctl)?;
            if self.config.nodes6.is_some() {
                sysctl::enable_forwarding6().map_err(sysctl)?;
            }
            let mut inside = Rtnl::open()?;
            let links = Link::all(&inside.dump("list links", message::get_links())?);
            let uplink = links.into_iter().find(|link| link.name == UPLINK);
            Ok((inside, uplink))
        })?;
        let (mut inside, uplink) = inside?;
        let index = match (port, uplink) {
            (Some(port), _) if port.kind != Some(InfoKind::Veth) => {
                return Err(TopologyError::Foreign { name: port.name.clone(), expected: "veth" });
            }
            // Both ends are there: make sure they are up, joined, and of the right size.
            (Some(port), Some(uplink)) => {
                let joined = vec![LinkAttribute::Controller(self.bridge_index), LinkAttribute::Mtu(self.mtu)];
                let what = format!("join {} to the bridge", port.name);
                rtnl.batch(vec![Request::set(what, message::link_up(port.index, joined))])?;
                uplink.index
            }
            // One end alone belongs to another namespace of an earlier start.
            (Some(_), None) | (None, Some(_)) | (None, None) => self.create(rtnl, port, &mut inside)?,
        };
        self.configure(&mut inside, index)
    }

    /// Makes the pair anew; the index inside.
    fn create(&self, rtnl: &mut Rtnl, port: Option<&Link>, inside: &mut Rtnl) -> Result<u32, TopologyError> {
        if let Some(port) = port {
            let delete = message::delete_link(&port.name);
            rtnl.batch(vec![Request::set(format!("delete {}", port.name), delete)])?;
        }
        let name = self.config.cluster.port(self.replica.number);
        let near =
            VethEnd { name: &name, mac: None, up: true, netns: None, controller: Some(self.bridge_index) };
        let far = VethEnd {
            name: UPLINK,
            mac: Some(mac_of(self.replica.netns.name())),
            up: false,
            netns: Some(std::os::fd::AsFd::as_fd(&self.replica.netns)),
            controller: None,
        };
        let what = format!("create {name} with {UPLINK} in {}", self.replica.netns.name());
        rtnl.batch(vec![Request::create(what, message::veth(&near, &far, self.mtu))])?;
        let find = Request::set(format!("find {UPLINK}"), message::get_link(UPLINK));
        let missing = TopologyError::Foreign { name: UPLINK.to_owned(), expected: "veth" };
        Ok(Link::all(&inside.batch(vec![find])?).pop().ok_or(missing)?.index)
    }

    /// Addresses and routes inside.
    fn configure(&self, inside: &mut Rtnl, index: u32) -> Result<(), TopologyError> {
        let netns = self.replica.netns.name();
        let prefix = self.addressing.nodes.prefix_len();
        let own = Ipv4Net::new(self.replica.address, prefix).expect("a valid prefix");
        let dump = inside.dump("list addresses", message::get_addresses())?;
        let stale = message::addresses(&dump).into_iter().filter(|(at, net)| *at == index && *net != own);
        let mut requests: Vec<Request> = stale
            .map(|(_, net)| {
                Request::set(format!("remove {net} in {netns}"), message::delete_address(index, net))
            })
            .collect();
        let default = Route {
            destination: Ipv4Net::default().into(),
            via: Some(self.addressing.host().into()),
            device: Some(index),
            kind: RouteType::Unicast,
            protocol: RouteProtocol::Static,
            metric: None,
            source: None,
            on_link: false,
        };
        let up = message::link_up(index, vec![LinkAttribute::Mtu(self.mtu)]);
        requests.extend([
            Request::set(format!("set lo up in {netns}"), message::link_up(LOOPBACK, Vec::new())),
            Request::set(format!("set {UPLINK} up in {netns}"), up),
            Request::replace(format!("add {own} in {netns}"), message::address(index, own)),
            Request::replace(format!("add the default route in {netns}"), default.new_message()),
        ]);
        if let Some(own) = self.config.six(self.replica.address) {
            requests.push(Request::replace(format!("add {own} in {netns}"), message::address(index, own)));
        }
        inside.batch(requests)?;
        Ok(())
    }
}

/// A locally administered Ethernet address that is the same at every start.
fn mac_of(name: &str) -> Mac {
    let digits = hash(name, 8);
    let number = u32::from_str_radix(&digits, 16).expect("hexadecimal digits");
    let [a, b, c, d] = number.to_be_bytes();
    [0x02, b'p', a, b, c, d]
}

/// Clusters that have a bridge on this machine, by the bridge's name, with their subnets.
///
/// # Errors
/// The host's links cannot be listed.
pub fn bridges() -> Result<HashMap<String, Addressing>, RtnlError> {
    let links = Link::all(&Rtnl::open()?.dump("list links", message::get_links())?);
    Ok(links.into_iter().filter_map(|link| Some((link.name, Alias::parse(&link.alias)?))).collect())
}
