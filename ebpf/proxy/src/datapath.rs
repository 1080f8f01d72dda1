//! The datapath of one node: what is attached where, and what its programs know of the node.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aya::{
    EbpfError,
    pin::PinError as AyaPinError,
    programs::{ProgramError, TcAttachType},
};
use ipnet::Ipv6Net;
use pith_abi::{
    Address6, Networks6, NodeClass, NodeConfig, NodeFlags, Reason, StandIn, default_limit, map_name,
};
use tracing::{debug, info, warn};

use crate::{
    bpffs::{self, PinError},
    cidr::Cidr,
    filters::FilterError,
    flows::{self, Asked, Collected},
    kernel,
    limit::TableLimits,
    loaded::{Loaded, interface_index},
    maps::{MapAccess, Maps, ServiceMaps},
    metrics::Metrics,
    neighbors::Neighbors,
    pods::{self, PodLinks},
    service::ipv4,
    xdp::{NoXdp, Xdp},
};

/// Programs at socket calls.
///
/// What removes comes before what adds: a socket is never remembered whose end is not seen.
const CGROUP_PROGRAMS: [&str; 9] = [
    "sock_release",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
];
pub(crate) const UPLINK_INGRESS: &str = "uplink_ingress";
pub(crate) const UPLINK_EGRESS: &str = "uplink_egress";
/// What takes their place at a node that has IPv6, and is known by their links.
const INGRESS_DUAL: &str = "ingress_dual";
const EGRESS_DUAL: &str = "egress_dual";
/// Before the first of them.
pub(crate) const UPLINK_XDP: &str = "uplink_xdp";
/// At each pod's link.
pub(crate) const FROM_POD: &str = "from_pod";
pub(crate) const TO_POD: &str = "to_pod";
pub(crate) const FROM_POD_DUAL: &str = "from_pod_dual";
pub(crate) const TO_POD_DUAL: &str = "to_pod_dual";

/// Source ports that translated flows are given: below the range from which Linux gives its own
/// connections theirs (32768–60999) and below that of node ports (30000–32767).
pub const DEFAULT_SNAT_PORTS: RangeInclusive<u16> = 1024..=29_999;

/// How a datapath is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder for this datapath's pins, on a BPF file system; made when missing.
    pub bpffs: PathBuf,
    /// Folder of the v2 cgroup whose processes see Services.
    pub cgroup: PathBuf,
    /// Sizes of the maps. Maps that are adopted keep theirs.
    pub limits: Limits,
    /// Addresses of all pods. Pods reach anything else under the node's address; without it they are not
    /// masqueraded at all.
    pub cluster_cidr: Option<Cidr>,
    /// The same in IPv6.
    pub cluster_cidr6: Option<Ipv6Net>,
    /// Whether packets of IPv6 are looked at: the node has such an address.
    pub dual: bool,
    pub snat_ports: RangeInclusive<u16>,
    /// How the names of pods' interfaces begin, at the node's end; without it there are no programs at them.
    pub pod_interfaces: Option<String>,
    pub xdp: Xdp,
}

impl Config {
    pub fn new(bpffs: impl Into<PathBuf>, cgroup: impl Into<PathBuf>) -> Self {
        Self {
            bpffs: bpffs.into(),
            cgroup: cgroup.into(),
            limits: Limits::default(),
            cluster_cidr: None,
            cluster_cidr6: None,
            dual: false,
            snat_ports: DEFAULT_SNAT_PORTS,
            pod_interfaces: None,
            xdp: Xdp::default(),
        }
    }
}

/// Sizes of the maps, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub frontends: u32,
    pub services: u32,
    pub backends: u32,
    pub affinity: u32,
    pub sockets: u32,
    pub flows: u32,
    pub nodes: u32,
    pub sources: u32,
    pub servers: u32,
    pub addresses: u32,
    pub fragments: u32,
}

impl Limits {
    /// By the names of the maps that have them.
    pub(crate) fn of_maps(&self) -> [(&'static str, u32); 15] {
        [
            (map_name::FRONTENDS, self.frontends),
            (map_name::SERVICES, self.services),
            (map_name::CONNECTIONS, self.services),
            (map_name::BACKENDS, self.backends),
            (map_name::AFFINITY, self.affinity),
            (map_name::CONNECTED, self.sockets),
            (map_name::FLOWS, self.flows),
            (map_name::FORWARD, self.flows),
            (map_name::HANDED_ON, self.flows),
            (map_name::NODES, self.nodes),
            (map_name::SOURCES, self.sources),
            (map_name::SOURCES6, self.sources),
            (map_name::SERVERS, self.servers),
            // Each flow may have one that no Service has.
            (map_name::ADDRESSES, self.addresses.saturating_add(self.flows)),
            (map_name::FRAGMENTS, self.fragments),
        ]
    }

    /// What the object file declares.
    pub const DEFAULT: Self = Self {
        frontends: default_limit::FRONTENDS,
        services: default_limit::SERVICES,
        backends: default_limit::BACKENDS,
        affinity: default_limit::AFFINITY,
        sockets: default_limit::SOCKETS,
        flows: default_limit::FLOWS,
        nodes: default_limit::NODES,
        sources: default_limit::SOURCES,
        servers: default_limit::SERVERS,
        addresses: default_limit::ADDRESSES,
        fragments: default_limit::FRAGMENTS,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Why a datapath could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error("load the eBPF object")]
    Load(#[source] EbpfError),
    #[error("eBPF program {program}")]
    Program {
        program: &'static str,
        #[source]
        source: ProgramError,
    },
    #[error("pin the link of {program}")]
    PinLink {
        program: &'static str,
        #[source]
        source: AyaPinError,
    },
    #[error("link {path}")]
    Link {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is attached to something else than {wanted}: another datapath uses this folder")]
    LinkElsewhere { path: PathBuf, wanted: String },
    #[error("{path} is not the map this proxy knows ({found}): another program uses this folder")]
    ForeignMap { path: PathBuf, found: String },
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Map(#[from] MapAccess),
    #[error("interface {name}")]
    Interface {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("let packets be forwarded: {path}")]
    Forwarding {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cookie of this network namespace")]
    NetnsCookie(#[source] io::Error),
    #[error("a random number")]
    Random(#[source] io::Error),
}

/// A hook at the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    Ingress,
    Egress,
    /// Not at the uplink but at a pod's link.
    FromPod,
    ToPod,
}

impl Uplink {
    fn program(self, dual: bool) -> &'static str {
        match (self, dual) {
            (Self::Ingress, false) => UPLINK_INGRESS,
            (Self::Ingress, true) => INGRESS_DUAL,
            (Self::Egress, false) => UPLINK_EGRESS,
            (Self::Egress, true) => EGRESS_DUAL,
            (Self::FromPod, false) => FROM_POD,
            (Self::FromPod, true) => FROM_POD_DUAL,
            (Self::ToPod, false) => TO_POD,
            (Self::ToPod, true) => TO_POD_DUAL,
        }
    }
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// A `TCX_*` action of include/uapi/linux/bpf.h.
    pub verdict: i32,
    pub packet: Vec<u8>,
    /// What the program took.
    pub duration: Duration,
}

/// The loaded datapath of one node.
pub struct Datapath {
    loaded: Loaded,
    pub(crate) maps: Maps,
    node: NodeConfig,
    node6: NodeConfig,
    networks: Networks6,
    dual: bool,
    /// Addresses of this node, for NODES.
    pub(crate) own: Vec<IpAddr>,
    neighbors: Neighbors,
    /// Networks on the uplink's own link.
    pub(crate) near: Vec<Cidr>,
    /// Until they are followed by a task of their own.
    pub(crate) pods: Option<PodLinks>,
    uplink: Option<String>,
    wanted_xdp: Xdp,
    /// Why there is none where it was to be, to be told to users.
    pub(crate) no_xdp: Option<(String, String)>,
    pub(crate) table_limits: TableLimits,
    pub(crate) max_flows: u32,
    pub(crate) metrics: Arc<Metrics>,
}

impl Datapath {
    /// Loads programs, makes or adopts maps, and attaches the programs at socket calls to the cgroup. Call
    /// it in the node's network namespace.
    pub fn open(config: &Config) -> Result<Self, DatapathError> {
        bpffs::check_cgroup(&config.cgroup)?;
        let (mut loaded, mut maps) = Loaded::open(&config.bpffs, &config.limits)?;
        let table_limits = TableLimits {
            frontends: loaded.size(map_name::FRONTENDS)?,
            services: loaded.size(map_name::SERVICES)?,
            backends: loaded.size(map_name::BACKENDS)?,
            sources: loaded.size(map_name::SOURCES)?,
            servers: loaded.size(map_name::SERVERS)?,
            addresses: loaded.size(map_name::ADDRESSES)?.saturating_sub(loaded.size(map_name::FLOWS)?),
        };
        for (map, wanted) in config.limits.of_maps() {
            let size = loaded.size(map)?;
            if size != wanted {
                warn!(
                    map,
                    size, wanted, "the map is there already and keeps its size until its pins are removed"
                );
            }
        }
        let metrics = Arc::new(Metrics::new(loaded.reasons()?));
        // What a former process knew of the uplink stays in force until it is said again.
        let mut node = maps.node(NodeConfig::IPV4)?;
        if node.seed == 0 {
            node.seed = random().map_err(DatapathError::Random)?;
        }
        node.netns_cookie = kernel::netns_cookie().map_err(DatapathError::NetnsCookie)?;
        node.snat_first = *config.snat_ports.start();
        node.snat_last = *config.snat_ports.end();
        // Flows that are handed on go on being so.
        node.flags &= NodeFlags::DIRECT;
        if let Some(cidr) = config.cluster_cidr {
            node.cluster_net_be = be(cidr.net());
            node.cluster_mask_be = be(cidr.mask());
            node.flags |= NodeFlags::MASQUERADE;
        }
        maps.set_node(NodeConfig::IPV4, node)?;
        let mut node6 = maps.node(NodeConfig::IPV6)?;
        (node6.snat_first, node6.snat_last) = (node.snat_first, node.snat_last);
        node6.flags = 0;
        let mut networks = maps.networks()?;
        if let Some(cidr) = config.cluster_cidr6 {
            (networks.cluster_net, networks.cluster_mask) = network(cidr);
            node6.flags |= NodeFlags::MASQUERADE;
        }
        maps.set_networks(networks)?;
        maps.set_node(NodeConfig::IPV6, node6)?;
        for program in CGROUP_PROGRAMS {
            loaded.attach_cgroup(program, &config.cgroup)?;
        }
        let pods = config
            .pod_interfaces
            .as_deref()
            .map(|prefix| PodLinks::open(prefix, loaded.programs(), config.dual));
        let pods = pods.transpose()?;
        let max_flows = loaded.size(map_name::FLOWS)?;
        Ok(Self {
            loaded,
            maps,
            node,
            node6,
            networks,
            dual: config.dual,
            own: Vec::new(),
            neighbors: Neighbors::default(),
            near: Vec::new(),
            pods,
            uplink: None,
            wanted_xdp: config.xdp,
            no_xdp: None,
            table_limits,
            max_flows,
            metrics,
        })
    }

    /// Attaches the programs of the uplink to an interface of this network namespace. Packets are
    /// translated under the first of `addresses` of their family; node ports answer at all of them.
    pub fn attach_uplink(&mut self, interface: &str, addresses: &[IpAddr]) -> Result<(), DatapathError> {
        let index = interface_index(interface)?;
        self.own = addresses.to_vec();
        for address in addresses {
            let number = self.number(*address)?;
            self.maps.set_node_class(number, NodeClass(NodeClass::OWN))?;
        }
        self.uplink = Some(interface.to_owned());
        let failed = |source| DatapathError::Interface { name: interface.to_owned(), source };
        self.node.mac = kernel::ethernet_address(interface).map_err(failed)?;
        self.near = kernel::networks(interface).map_err(failed)?;
        self.node.uplink = index;
        self.node.addr_be = addresses.iter().find_map(ipv4).map_or(0, be);
        self.maps.set_node(NodeConfig::IPV4, self.node)?;
        (self.node6.uplink, self.node6.mac) = (index, self.node.mac);
        self.node6.addr_be = match addresses.iter().find(|address| address.is_ipv6() && self.dual) {
            Some(address) => self.number(*address)?,
            None => 0,
        };
        self.maps.set_node(NodeConfig::IPV6, self.node6)?;
        let (ingress, egress) = match self.dual {
            true => (INGRESS_DUAL, EGRESS_DUAL),
            false => (UPLINK_INGRESS, UPLINK_EGRESS),
        };
        self.loaded.attach_classifier(UPLINK_INGRESS, ingress, TcAttachType::Ingress, interface)?;
        self.loaded.attach_classifier(UPLINK_EGRESS, egress, TcAttachType::Egress, interface)?;
        self.attach_xdp(interface);
        Ok(())
    }

    /// What stands for an address in the maps: itself, or its stand-in.
    fn number(&mut self, address: IpAddr) -> Result<u32, DatapathError> {
        match address {
            IpAddr::V4(address) => Ok(be(address)),
            IpAddr::V6(address) => Ok(self.maps.stand_in(address)?.addr_be),
        }
    }

    /// Everything works without it, so that whatever is in its way is said and no error.
    fn attach_xdp(&mut self, interface: &str) {
        let attached = self.loaded.attach_xdp(UPLINK_XDP, self.wanted_xdp, interface);
        self.metrics.has_xdp(interface, attached.is_ok());
        self.no_xdp = None;
        match attached {
            Ok(()) => {
                info!(interface, "packets of known flows to other nodes are sent on in XDP, in the driver")
            }
            Err(NoXdp::Off | NoXdp::Virtual { .. }) if self.wanted_xdp != Xdp::Native => {
                let why = attached.map_or_else(|why| why.to_string(), |()| String::new());
                info!(interface, %why, "packets are sent on at tcx and not in XDP");
            }
            Err(why) => {
                warn!(interface, %why, "packets are sent on at tcx and not in XDP");
                self.no_xdp = Some((interface.to_owned(), why.to_string()));
            }
        }
    }

    /// Gives pods' interfaces that are there their programs. [`run`](crate::run()) does so itself, and follows
    /// those that come.
    pub fn attach_pods(&mut self) -> Result<(), DatapathError> {
        let Some(pods) = &mut self.pods else { return Ok(()) };
        match pods.attach_all()?.into_iter().next() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// Ends flows that are over, those to backends that `serves` (a Service's index, what was asked, the backend) denies,
    /// and those handed on to nodes that `hands_on` denies.
    pub fn collect(
        &mut self,
        serves: impl Fn(u32, Asked, SocketAddrV4) -> bool,
        hands_on: impl Fn(Asked, Ipv4Addr) -> bool,
    ) -> Result<Collected, DatapathError> {
        let failed = |source| MapAccess::Kernel { map: map_name::FLOWS, source };
        // Before the flows are looked through: of what begins meanwhile nothing is said.
        let mark = self.maps.last_pod_flow()?;
        let collected = flows::collect(&mut self.maps, flows::now_ns(), serves, hands_on).map_err(failed)?;
        if collected.at_pods == 0 {
            self.maps.settle_pod_flows(mark)?;
        }
        Ok(collected)
    }

    /// Says what an address that is no node's is for: Services are reached there from outside, and this node
    /// announces it or not; `None` for none.
    pub fn set_service_address(
        &mut self,
        address: IpAddr,
        announced: Option<bool>,
    ) -> Result<(), DatapathError> {
        if self.own.contains(&address) {
            return Ok(());
        }
        let number = self.number(address)?;
        let Some(announced) = announced else {
            self.neighbors.leave(address);
            return Ok(self.maps.remove_node_class(number)?);
        };
        let bit = if announced { NodeClass::ANNOUNCED } else { 0 };
        self.maps.set_node_class(number, NodeClass(NodeClass::SERVICE | bit))?;
        if !announced {
            self.neighbors.leave(address);
        } else if let Some(uplink) = &self.uplink {
            // Who knew another node by this address learns at once; who does not hear asks.
            if let Err(error) = self.neighbors.announce(uplink, self.node.mac, address) {
                debug!(%error, %address, "neighbours were not told");
            }
        }
        Ok(())
    }

    /// Says that an address is another node's.
    pub fn set_other_node(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        if self.own.contains(&address) {
            return Ok(());
        }
        let number = self.number(address)?;
        Ok(self.maps.set_node_class(number, NodeClass(NodeClass::OTHER))?)
    }

    /// Says that an address is no other node's any more.
    pub(crate) fn forget_node(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        if self.own.contains(&address) {
            return Ok(());
        }
        let number = self.number(address)?;
        Ok(self.maps.remove_node_class(number)?)
    }

    /// Says whether packets may be handed on to other nodes, or by them to this one. Until nothing is, and no Service
    /// wants it, it has to be said.
    pub fn set_direct(&mut self, direct: bool) -> Result<(), DatapathError> {
        let flags = self.node.flags & !NodeFlags::DIRECT | if direct { NodeFlags::DIRECT } else { 0 };
        if flags != self.node.flags {
            self.node.flags = flags;
            self.maps.set_node(NodeConfig::IPV4, self.node)?;
        }
        Ok(())
    }

    /// Says which addresses this node's pods have.
    pub fn set_pod_cidr(&mut self, cidr: Cidr) -> Result<(), DatapathError> {
        self.node.pod_net_be = be(cidr.net());
        self.node.pod_mask_be = be(cidr.mask());
        Ok(self.maps.set_node(NodeConfig::IPV4, self.node)?)
    }

    /// The same in IPv6.
    pub fn set_pod_cidr6(&mut self, cidr: Ipv6Net) -> Result<(), DatapathError> {
        (self.networks.pod_net, self.networks.pod_mask) = network(cidr);
        Ok(self.maps.set_networks(self.networks)?)
    }

    /// Takes IPv6 addresses out of the maps that are neither `known` nor any flow's.
    pub(crate) fn collect_addresses(&mut self, known: &HashSet<StandIn>) -> Result<usize, DatapathError> {
        Ok(flows::collect_addresses(&mut self.maps, flows::now_ns(), known)?)
    }

    /// The maps that a [`Table`](crate::table::Table) of Services is kept in, and their sizes.
    pub fn service_maps(&mut self) -> (&mut impl ServiceMaps, TableLimits) {
        (&mut self.maps, self.table_limits)
    }

    /// What is counted here, also while [`run`](crate::run()) has the datapath.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// How often each verdict was given, since the maps were made.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, DatapathError> {
        let count = |reason: &Reason| Ok((*reason, self.maps.reason(*reason)?));
        Reason::ALL.iter().map(count).collect()
    }

    /// Runs a packet, from its Ethernet header on, through a program and the live maps; flows it begins
    /// stay. The program has to be loaded: those of the uplink are when that is attached.
    pub fn replay(&self, hook: Uplink, packet: &[u8]) -> Result<Replayed, DatapathError> {
        self.loaded.replay(hook.program(self.dual), packet, 1)
    }

    /// What the attached program takes for a packet, on average of `times` that follow one another. Each finds the
    /// packet as the one before left it.
    pub fn time(&self, hook: Uplink, packet: &[u8], times: u32) -> Result<Duration, DatapathError> {
        Ok(self.loaded.replay(hook.program(self.dual), packet, times)?.duration)
    }

    /// Detaches a datapath and removes its pins, whether or not a process uses it. Pins that are not ours
    /// stay and are named in the error. Programs at pods' links are taken away in this network namespace;
    /// in one that is gone they went with the links.
    pub fn remove(bpffs: &Path) -> Result<(), DatapathError> {
        // While the maps, by which they are known, have their names.
        pods::remove(bpffs)?;
        // Every program whose link is pinned, by the name of the pin.
        let programs = [&CGROUP_PROGRAMS[..], &[UPLINK_XDP, UPLINK_INGRESS, UPLINK_EGRESS]].concat();
        Ok(bpffs::remove(bpffs, &programs)?)
    }
}

/// Never 0, which says that there is none yet.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes) | 1)
}

/// A network of IPv6 and its mask, as the programs have them.
fn network(cidr: Ipv6Net) -> (Address6, Address6) {
    (Address6::from_octets(cidr.network().octets()), Address6::from_octets(cidr.netmask().octets()))
}

/// An address as it lies in packets.
pub(crate) fn be(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}
