//! The maps in the kernel, typed, and what the table of Services asks of them.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues, lpm_trie},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use pith_abi::{
    Address6, Affinity, AffinityKey, AtPods, Backend, Flow, Frontend, FrontendTarget, HandedOn, Known6,
    Networks6, NodeClass, NodeConfig, Reason, ServerKey, Service, SourceKey, SourceKey6, StandIn, Tuple,
    map_name, proto,
};
use pith_core::crc::{self, Carry};

use crate::{bpffs::Pins, flows};

/// Of the prefix of a key of SOURCES, before its range.
const SERVICE_BITS: u32 = u32::BITS;

/// Why an access to a map failed.
#[derive(Debug, thiserror::Error)]
pub enum MapAccess {
    /// The map holds as many entries as it may.
    #[error("map {map} is full")]
    Full { map: &'static str },
    #[error("map {map}")]
    Kernel {
        map: &'static str,
        #[source]
        source: MapError,
    },
}

impl MapAccess {
    fn of(map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| match &source {
            MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
                Self::Full { map }
            }
            _ => Self::Kernel { map, source },
        }
    }
}

/// The maps that describe Services, as the table writes and adopts them.
pub trait ServiceMaps {
    fn frontends(&self) -> Result<Vec<(Frontend, FrontendTarget)>, MapAccess>;
    fn service(&self, index: u32) -> Result<Service, MapAccess>;
    fn backend(&self, slot: u32) -> Result<Backend, MapAccess>;
    /// Which sources each Service serves, by its index.
    fn sources(&self) -> Result<BTreeMap<u32, Vec<IpNet>>, MapAccess>;

    /// Whom packets of each Service may name, by its index.
    fn servers(&self) -> Result<BTreeMap<u32, BTreeMap<Ipv4Addr, SocketAddrV4>>, MapAccess>;

    /// IPv6 addresses and what stands for them.
    fn addresses(&self) -> Result<Vec<(StandIn, Known6)>, MapAccess>;
    fn known(&self, standin: StandIn) -> Result<Option<Known6>, MapAccess>;
    /// Of [`StandIn::nth`].
    fn seed(&self) -> Result<u64, MapAccess>;

    fn set_frontend(&mut self, frontend: &Frontend, target: FrontendTarget) -> Result<(), MapAccess>;
    fn remove_frontend(&mut self, frontend: &Frontend) -> Result<(), MapAccess>;
    fn set_service(&mut self, index: u32, service: Service) -> Result<(), MapAccess>;
    fn set_backend(&mut self, slot: u32, backend: Backend) -> Result<(), MapAccess>;
    /// Gives a stand-in to an address, unless it is somebody's.
    fn keep(&mut self, standin: StandIn, known: &Known6) -> Result<(), MapAccess>;
    /// Says which sources a Service serves; `old` are those said before.
    fn set_sources(&mut self, service: u32, old: &[IpNet], new: &[IpNet]) -> Result<(), MapAccess>;
    /// Says whom packets of a Service may name, and where that leads; `old` are those said before.
    fn set_servers(
        &mut self,
        service: u32,
        old: &BTreeMap<Ipv4Addr, SocketAddrV4>,
        new: &BTreeMap<Ipv4Addr, SocketAddrV4>,
    ) -> Result<(), MapAccess>;
    /// Says whether any frontend of [`pith_abi::Scope::GONE`] is there.
    fn set_any_gone(&mut self, any: bool) -> Result<(), MapAccess>;
    /// Forgets how many connections a Service had, whose index may become another's.
    fn forget_connections(&mut self, service: u32) -> Result<(), MapAccess>;
    /// Forgets clients of a Service with affinity, whose index may become another's.
    fn forget_clients(&mut self, service: u32) -> Result<(), MapAccess>;

    /// The stand-in of an address, which is given one where it has none. Programs do the same.
    fn stand_in(&mut self, address: Ipv6Addr) -> Result<StandIn, MapAccess> {
        let known = Known6 { address: Address6::from_octets(address.octets()), used_ns: flows::now_ns() };
        let seed = self.seed()?;
        let all = (0..StandIn::TRIES).map(|nth| StandIn::nth(&known.address, seed, nth));
        let all: Vec<StandIn> = all.collect();
        let is_its = |found: Option<Known6>| found.is_some_and(|found| found.address == known.address);
        for standin in &all {
            if is_its(self.known(*standin)?) {
                return Ok(*standin);
            }
        }
        for standin in all {
            if self.known(standin)?.is_none() {
                self.keep(standin, &known)?;
            }
            // A program may have been faster, for this address or for another.
            if is_its(self.known(standin)?) {
                return Ok(standin);
            }
        }
        Err(MapAccess::Full { map: map_name::ADDRESSES })
    }
}

/// Handles of all maps that user space works with.
pub(crate) struct Maps {
    frontends: HashMap<MapData, Frontend, FrontendTarget>,
    services: Array<MapData, Service>,
    backends: Array<MapData, Backend>,
    affinity: HashMap<MapData, AffinityKey, Affinity>,
    nodes: HashMap<MapData, u32, NodeClass>,
    node: Array<MapData, NodeConfig>,
    reasons: PerCpuArray<MapData, u64>,
    connections: PerCpuArray<MapData, u64>,
    sources: LpmTrie<MapData, SourceKey, u32>,
    servers: HashMap<MapData, ServerKey, Backend>,
    at_pods: Array<MapData, u64>,
    sources6: LpmTrie<MapData, SourceKey6, u32>,
    addresses: HashMap<MapData, StandIn, Known6>,
    networks: Array<MapData, Networks6>,
    /// Held for programs that are loaded later.
    carry: Array<MapData, Carry>,
    pub(crate) flows: HashMap<MapData, Tuple, Flow>,
    pub(crate) forward: HashMap<MapData, Tuple, Tuple>,
    pub(crate) handed_on: HashMap<MapData, Tuple, HandedOn>,
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, MapAccess> {
        let mut maps = Self::with(|name| {
            Ok(ebpf.take_map(name).expect("the embedded object has every map of the ABI"))
        })?;
        Self::fill_carry(&mut maps.carry)?;
        Ok(maps)
    }

    /// Opens the maps of a datapath that another process keeps.
    pub(crate) fn pinned(pins: &Pins) -> Result<Self, MapAccess> {
        Self::with(|name| MapData::from_pin(pins.map(name)).and_then(Map::from_map_data))
    }

    fn with(mut map: impl FnMut(&'static str) -> Result<Map, MapError>) -> Result<Self, MapAccess> {
        let map = &mut map;
        Ok(Self {
            frontends: typed(map, map_name::FRONTENDS)?,
            services: typed(map, map_name::SERVICES)?,
            backends: typed(map, map_name::BACKENDS)?,
            affinity: typed(map, map_name::AFFINITY)?,
            nodes: typed(map, map_name::NODES)?,
            node: typed(map, map_name::NODE)?,
            reasons: typed(map, map_name::REASONS)?,
            connections: typed(map, map_name::CONNECTIONS)?,
            sources: typed(map, map_name::SOURCES)?,
            servers: typed(map, map_name::SERVERS)?,
            at_pods: typed(map, map_name::AT_PODS)?,
            sources6: typed(map, map_name::SOURCES6)?,
            networks: typed(map, map_name::NODE6)?,
            addresses: typed(map, map_name::ADDRESSES)?,
            carry: typed(map, map_name::CARRY)?,
            flows: typed(map, map_name::FLOWS)?,
            forward: typed(map, map_name::FORWARD)?,
            handed_on: typed(map, map_name::HANDED_ON)?,
        })
    }

    /// Computes how SCTP's checksums change, unless a former process has.
    fn fill_carry(carry: &mut Array<MapData, Carry>) -> Result<(), MapAccess> {
        let last = crc::CARRIES as u32 - 1;
        let known = carry.get(&last, 0).map_err(MapAccess::of(map_name::CARRY))?;
        if known != [0; 32] {
            return Ok(());
        }
        for (words, matrix) in (0..).zip(crc::carries()) {
            carry.set(words, matrix, 0).map_err(MapAccess::of(map_name::CARRY))?;
        }
        Ok(())
    }

    /// The place that one with a stand-in's address is; others are themselves.
    pub(crate) fn real(&self, place: SocketAddrV4) -> SocketAddr {
        let standin = StandIn::of(u32::from_ne_bytes(place.ip().octets()));
        let known = standin.and_then(|standin| self.addresses.get(&standin, 0).ok());
        match known {
            Some(known) => (Ipv6Addr::from(known.address.octets()), place.port()).into(),
            None => place.into(),
        }
    }

    /// A frontend in words.
    pub(crate) fn show(&self, frontend: &Frontend) -> String {
        let address = Ipv4Addr::from(frontend.addr_be.to_ne_bytes());
        let place = SocketAddrV4::new(address, u16::from_be(frontend.port_be));
        match StandIn::of(frontend.addr_be) {
            Some(_) => format!("{}/{}", self.real(place), protocol(frontend)),
            None => show(frontend),
        }
    }

    /// Bits of [`NodeClass`]; 0 for an address that is not known.
    pub(crate) fn node_class(&self, addr_be: u32) -> u32 {
        self.nodes.get(&addr_be, 0).map_or(0, |class| class.0)
    }

    pub(crate) fn frontend(&self, frontend: &Frontend) -> Option<FrontendTarget> {
        self.frontends.get(frontend, 0).ok()
    }

    /// Whether a Service that serves some sources only serves this one.
    pub(crate) fn serves_source(&self, source: &SourceKey) -> bool {
        self.sources.get(&lpm_trie::Key::new(SERVICE_BITS + u32::BITS, *source), 0).is_ok()
    }

    /// The same in IPv6.
    pub(crate) fn serves_source6(&self, service: u32, address: &Address6) -> bool {
        let key = SourceKey6 { service, address: *address };
        self.sources6.get(&lpm_trie::Key::new(SERVICE_BITS + 128, key), 0).is_ok()
    }

    /// The backend that a packet names.
    pub(crate) fn server(&self, server: &ServerKey) -> Option<Backend> {
        self.servers.get(server, 0).ok()
    }

    /// The backend that a client of a Service with affinity had last.
    pub(crate) fn client(&self, client: &AffinityKey) -> Option<Affinity> {
        self.affinity.get(client, 0).ok()
    }

    /// A word of [`AtPods`].
    pub(crate) fn at_pods(&self, word: u32) -> u64 {
        self.at_pods.get(&word, 0).unwrap_or(0)
    }

    /// The mark of the flow that began last at a pod's link.
    pub(crate) fn last_pod_flow(&self) -> Result<u64, MapAccess> {
        self.at_pods.get(&AtPods::BEGUN, 0).map_err(MapAccess::of(map_name::AT_PODS))
    }

    /// Says that nothing is left of the flows that had begun when this mark stood.
    pub(crate) fn settle_pod_flows(&mut self, mark: u64) -> Result<(), MapAccess> {
        self.at_pods.set(AtPods::SETTLED, mark, 0).map_err(MapAccess::of(map_name::AT_PODS))
    }

    /// What programs know of the node in a family: [`NodeConfig::IPV4`] or [`NodeConfig::IPV6`].
    pub(crate) fn set_node(&mut self, family: u32, node: NodeConfig) -> Result<(), MapAccess> {
        self.node.set(family, node, 0).map_err(MapAccess::of(map_name::NODE))
    }

    pub(crate) fn node(&self, family: u32) -> Result<NodeConfig, MapAccess> {
        self.node.get(&family, 0).map_err(MapAccess::of(map_name::NODE))
    }

    pub(crate) fn set_networks(&mut self, networks: Networks6) -> Result<(), MapAccess> {
        self.networks.set(0, networks, 0).map_err(MapAccess::of(map_name::NODE6))
    }

    pub(crate) fn networks(&self) -> Result<Networks6, MapAccess> {
        self.networks.get(&0, 0).map_err(MapAccess::of(map_name::NODE6))
    }

    /// Forgets an address that has no use.
    pub(crate) fn forget_address(&mut self, standin: StandIn) -> Result<(), MapAccess> {
        absent_is_removed(self.addresses.remove(&standin)).map_err(MapAccess::of(map_name::ADDRESSES))
    }

    pub(crate) fn node_classes(&self) -> Result<Vec<(u32, NodeClass)>, MapAccess> {
        self.nodes.iter().collect::<Result<_, _>>().map_err(MapAccess::of(map_name::NODES))
    }

    pub(crate) fn set_node_class(&mut self, addr_be: u32, class: NodeClass) -> Result<(), MapAccess> {
        self.nodes.insert(addr_be, class, 0).map_err(MapAccess::of(map_name::NODES))
    }

    pub(crate) fn remove_node_class(&mut self, addr_be: u32) -> Result<(), MapAccess> {
        absent_is_removed(self.nodes.remove(&addr_be)).map_err(MapAccess::of(map_name::NODES))
    }

    /// Counts since the maps were made, all CPUs together.
    pub(crate) fn reason(&self, reason: Reason) -> Result<u64, MapAccess> {
        let counts = self.reasons.get(&(reason as u32), 0).map_err(MapAccess::of(map_name::REASONS))?;
        Ok(counts.iter().sum())
    }
}

impl Maps {
    /// Connections that sockets made to a Service, all CPUs together.
    pub(crate) fn connections(&self, service: u32) -> Result<u64, MapAccess> {
        let counts = self.connections.get(&service, 0).map_err(MapAccess::of(map_name::CONNECTIONS))?;
        Ok(counts.iter().sum())
    }
}

impl ServiceMaps for Maps {
    fn frontends(&self) -> Result<Vec<(Frontend, FrontendTarget)>, MapAccess> {
        self.frontends.iter().collect::<Result<_, _>>().map_err(MapAccess::of(map_name::FRONTENDS))
    }

    fn service(&self, index: u32) -> Result<Service, MapAccess> {
        self.services.get(&index, 0).map_err(MapAccess::of(map_name::SERVICES))
    }

    fn backend(&self, slot: u32) -> Result<Backend, MapAccess> {
        self.backends.get(&slot, 0).map_err(MapAccess::of(map_name::BACKENDS))
    }

    fn sources(&self) -> Result<BTreeMap<u32, Vec<IpNet>>, MapAccess> {
        let mut all: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
        for key in self.sources.keys() {
            let key = key.map_err(MapAccess::of(map_name::SOURCES))?;
            let (length, SourceKey { service, addr_be }) = (key.prefix_len(), key.data());
            let prefix = u8::try_from(length.saturating_sub(SERVICE_BITS)).unwrap_or(u8::MAX);
            let net = IpNet::new(Ipv4Addr::from(addr_be.to_ne_bytes()).into(), prefix);
            all.entry(service).or_default().extend(net.ok());
        }
        for key in self.sources6.keys() {
            let key = key.map_err(MapAccess::of(map_name::SOURCES6))?;
            let (length, SourceKey6 { service, address }) = (key.prefix_len(), key.data());
            let prefix = u8::try_from(length.saturating_sub(SERVICE_BITS)).unwrap_or(u8::MAX);
            let net = IpNet::new(Ipv6Addr::from(address.octets()).into(), prefix);
            all.entry(service).or_default().extend(net.ok());
        }
        Ok(all)
    }

    fn set_frontend(&mut self, frontend: &Frontend, target: FrontendTarget) -> Result<(), MapAccess> {
        self.frontends.insert(frontend, target, 0).map_err(MapAccess::of(map_name::FRONTENDS))
    }

    fn remove_frontend(&mut self, frontend: &Frontend) -> Result<(), MapAccess> {
        absent_is_removed(self.frontends.remove(frontend)).map_err(MapAccess::of(map_name::FRONTENDS))
    }

    fn set_service(&mut self, index: u32, service: Service) -> Result<(), MapAccess> {
        self.services.set(index, service, 0).map_err(MapAccess::of(map_name::SERVICES))
    }

    fn set_backend(&mut self, slot: u32, backend: Backend) -> Result<(), MapAccess> {
        self.backends.set(slot, backend, 0).map_err(MapAccess::of(map_name::BACKENDS))
    }

    fn set_sources(&mut self, service: u32, old: &[IpNet], new: &[IpNet]) -> Result<(), MapAccess> {
        let length = |range: &IpNet| SERVICE_BITS + u32::from(range.prefix_len());
        let key = |range: &Ipv4Net| {
            lpm_trie::Key::new(
                length(&(*range).into()),
                SourceKey { service, addr_be: u32::from_ne_bytes(range.network().octets()) },
            )
        };
        let key6 = |range: &Ipv6Net| {
            let address = Address6::from_octets(range.network().octets());
            lpm_trie::Key::new(length(&(*range).into()), SourceKey6 { service, address })
        };
        for range in new {
            match range {
                IpNet::V4(range) => {
                    self.sources.insert(&key(range), 1, 0).map_err(MapAccess::of(map_name::SOURCES))?;
                }
                IpNet::V6(range) => {
                    self.sources6.insert(&key6(range), 1, 0).map_err(MapAccess::of(map_name::SOURCES6))?;
                }
            }
        }
        for range in old.iter().filter(|range| !new.contains(range)) {
            match range {
                IpNet::V4(range) => absent_is_removed(self.sources.remove(&key(range)))
                    .map_err(MapAccess::of(map_name::SOURCES))?,
                IpNet::V6(range) => absent_is_removed(self.sources6.remove(&key6(range)))
                    .map_err(MapAccess::of(map_name::SOURCES6))?,
            }
        }
        Ok(())
    }

    fn servers(&self) -> Result<BTreeMap<u32, BTreeMap<Ipv4Addr, SocketAddrV4>>, MapAccess> {
        let mut all: BTreeMap<u32, BTreeMap<Ipv4Addr, SocketAddrV4>> = BTreeMap::new();
        for server in self.servers.iter() {
            let (ServerKey { service, addr_be }, backend) =
                server.map_err(MapAccess::of(map_name::SERVERS))?;
            let address = |addr_be: u32| Ipv4Addr::from(addr_be.to_ne_bytes());
            let place = SocketAddrV4::new(address(backend.addr_be()), u16::from_be(backend.port_be()));
            all.entry(service).or_default().insert(address(addr_be), place);
        }
        Ok(all)
    }

    fn set_servers(
        &mut self,
        service: u32,
        old: &BTreeMap<Ipv4Addr, SocketAddrV4>,
        new: &BTreeMap<Ipv4Addr, SocketAddrV4>,
    ) -> Result<(), MapAccess> {
        let addr_be = |address: &Ipv4Addr| u32::from_ne_bytes(address.octets());
        let key = |address| ServerKey { service, addr_be: addr_be(address) };
        for (address, place) in new {
            let backend = Backend::new(addr_be(place.ip()), place.port().to_be(), 0);
            self.servers.insert(key(address), backend, 0).map_err(MapAccess::of(map_name::SERVERS))?;
        }
        for address in old.keys().filter(|address| !new.contains_key(address)) {
            absent_is_removed(self.servers.remove(&key(address)))
                .map_err(MapAccess::of(map_name::SERVERS))?;
        }
        Ok(())
    }

    fn addresses(&self) -> Result<Vec<(StandIn, Known6)>, MapAccess> {
        self.addresses.iter().collect::<Result<_, _>>().map_err(MapAccess::of(map_name::ADDRESSES))
    }

    fn known(&self, standin: StandIn) -> Result<Option<Known6>, MapAccess> {
        match self.addresses.get(&standin, 0) {
            Ok(known) => Ok(Some(known)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(MapAccess::Kernel { map: map_name::ADDRESSES, source }),
        }
    }

    fn seed(&self) -> Result<u64, MapAccess> {
        Ok(self.node(NodeConfig::IPV4)?.seed)
    }

    fn keep(&mut self, standin: StandIn, known: &Known6) -> Result<(), MapAccess> {
        const NOEXIST: u64 = 1;
        match self.addresses.insert(standin, known, NOEXIST) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(())
            }
            other => other.map_err(MapAccess::of(map_name::ADDRESSES)),
        }
    }

    fn set_any_gone(&mut self, any: bool) -> Result<(), MapAccess> {
        self.at_pods.set(AtPods::GONE, u64::from(any), 0).map_err(MapAccess::of(map_name::AT_PODS))
    }

    fn forget_connections(&mut self, service: u32) -> Result<(), MapAccess> {
        let failed = || MapAccess::of(map_name::CONNECTIONS);
        let cpus = self.connections.get(&service, 0).map_err(failed())?.len();
        let none = PerCpuValues::try_from(vec![0; cpus]);
        let none = none.map_err(|error| failed()(MapError::IoError(error)))?;
        self.connections.set(service, none, 0).map_err(failed())
    }

    fn forget_clients(&mut self, service: u32) -> Result<(), MapAccess> {
        let keys: Vec<AffinityKey> =
            self.affinity.keys().filter_map(Result::ok).filter(|key| key.service == service).collect();
        for key in keys {
            absent_is_removed(self.affinity.remove(&key)).map_err(MapAccess::of(map_name::AFFINITY))?;
        }
        Ok(())
    }
}

fn typed<T: TryFrom<Map, Error = MapError>>(
    map: &mut impl FnMut(&'static str) -> Result<Map, MapError>,
    name: &'static str,
) -> Result<T, MapAccess> {
    map(name).and_then(T::try_from).map_err(MapAccess::of(name))
}

/// Removing what is gone already is no failure.
fn absent_is_removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Its protocol's name.
fn protocol(frontend: &Frontend) -> &'static str {
    match frontend.proto {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        proto::SCTP => "SCTP",
        _ => "any",
    }
}

/// A frontend in words; one of IPv6 by its stand-in.
pub(crate) fn show(frontend: &Frontend) -> String {
    let port = u16::from_be(frontend.port_be);
    let protocol = protocol(frontend);
    match frontend.addr_be {
        0 => format!("node port {port}/{protocol}"),
        addr_be => format!("{}:{port}/{protocol}", Ipv4Addr::from(addr_be.to_ne_bytes())),
    }
}
