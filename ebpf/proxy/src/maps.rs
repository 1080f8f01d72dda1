//! The maps in the kernel, typed, and what the table of Services asks of them.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues, lpm_trie},
};
use pith_abi::{
    Address6, Affinity, AffinityKey, AtPods, Backend, Flow, Frontend, FrontendTarget, HandedOn, NodeClass,
    NodeConfig, Reason, Scope, Service, SourceKey, StandIn, Tuple, map_name, proto,
};
use pith_core::crc::{self, Carry};

use crate::{bpffs::Pins, cidr::Cidr};

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
    fn sources(&self) -> Result<BTreeMap<u32, Vec<Cidr>>, MapAccess>;

    /// IPv6 addresses and what stands for them.
    fn addresses(&self) -> Result<Vec<(Address6, StandIn)>, MapAccess>;

    fn set_frontend(&mut self, frontend: &Frontend, target: FrontendTarget) -> Result<(), MapAccess>;
    fn remove_frontend(&mut self, frontend: &Frontend) -> Result<(), MapAccess>;
    fn set_service(&mut self, index: u32, service: Service) -> Result<(), MapAccess>;
    fn set_backend(&mut self, slot: u32, backend: Backend) -> Result<(), MapAccess>;
    /// Makes an address known under a stand-in that nothing leads to.
    fn set_address(&mut self, address: Address6, standin: StandIn) -> Result<(), MapAccess>;
    fn remove_address(&mut self, address: Address6) -> Result<(), MapAccess>;
    /// Says which sources a Service serves; `old` are those said before.
    fn set_sources(&mut self, service: u32, old: &[Cidr], new: &[Cidr]) -> Result<(), MapAccess>;
    /// Says whether any frontend of [`pith_abi::Scope::GONE`] is there.
    fn set_any_gone(&mut self, any: bool) -> Result<(), MapAccess>;
    /// Forgets how many connections a Service had, whose index may become another's.
    fn forget_connections(&mut self, service: u32) -> Result<(), MapAccess>;
    /// Forgets clients of a Service with affinity, whose index may become another's.
    fn forget_clients(&mut self, service: u32) -> Result<(), MapAccess>;
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
    at_pods: Array<MapData, u64>,
    standins: HashMap<MapData, Address6, StandIn>,
    addresses: Array<MapData, Address6>,
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
            at_pods: typed(map, map_name::AT_PODS)?,
            standins: typed(map, map_name::STANDINS)?,
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
        let address = standin.and_then(|standin| self.addresses.get(&standin.index(), 0).ok());
        match address {
            Some(address) => (Ipv6Addr::from(address.octets()), place.port()).into(),
            None => place.into(),
        }
    }

    /// A frontend in words.
    pub(crate) fn show(&self, frontend: &Frontend) -> String {
        let address = Ipv4Addr::from(frontend.addr_be.to_ne_bytes());
        let place = SocketAddrV4::new(address, u16::from_be(frontend.port_be));
        match frontend.scope {
            Scope::INSIDE6 => format!("{}/{}", self.real(place), protocol(frontend)),
            _ => show(frontend),
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

    pub(crate) fn set_node(&mut self, node: NodeConfig) -> Result<(), MapAccess> {
        self.node.set(0, node, 0).map_err(MapAccess::of(map_name::NODE))
    }

    pub(crate) fn node(&self) -> Result<NodeConfig, MapAccess> {
        self.node.get(&0, 0).map_err(MapAccess::of(map_name::NODE))
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

    fn sources(&self) -> Result<BTreeMap<u32, Vec<Cidr>>, MapAccess> {
        let mut all: BTreeMap<u32, Vec<Cidr>> = BTreeMap::new();
        for key in self.sources.keys() {
            let key = key.map_err(MapAccess::of(map_name::SOURCES))?;
            let (length, SourceKey { service, addr_be }) = (key.prefix_len(), key.data());
            let prefix = u8::try_from(length.saturating_sub(SERVICE_BITS)).unwrap_or(u8::MAX);
            all.entry(service).or_default().extend(Cidr::new(addr_be.to_ne_bytes().into(), prefix));
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

    fn set_sources(&mut self, service: u32, old: &[Cidr], new: &[Cidr]) -> Result<(), MapAccess> {
        let key = |range: &Cidr| {
            let addr_be = u32::from_ne_bytes(range.net().octets());
            lpm_trie::Key::new(SERVICE_BITS + u32::from(range.prefix()), SourceKey { service, addr_be })
        };
        for range in new {
            self.sources.insert(&key(range), 1, 0).map_err(MapAccess::of(map_name::SOURCES))?;
        }
        for range in old.iter().filter(|range| !new.contains(range)) {
            absent_is_removed(self.sources.remove(&key(range))).map_err(MapAccess::of(map_name::SOURCES))?;
        }
        Ok(())
    }

    fn addresses(&self) -> Result<Vec<(Address6, StandIn)>, MapAccess> {
        self.standins.iter().collect::<Result<_, _>>().map_err(MapAccess::of(map_name::STANDINS))
    }

    fn set_address(&mut self, address: Address6, standin: StandIn) -> Result<(), MapAccess> {
        self.addresses.set(standin.index(), address, 0).map_err(MapAccess::of(map_name::ADDRESSES))?;
        self.standins.insert(address, standin, 0).map_err(MapAccess::of(map_name::STANDINS))
    }

    fn remove_address(&mut self, address: Address6) -> Result<(), MapAccess> {
        absent_is_removed(self.standins.remove(&address)).map_err(MapAccess::of(map_name::STANDINS))
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
