//! The maps in the kernel, typed, and what the table of Services asks of them.

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
};
use pith_abi::{
    Affinity, AffinityKey, Backend, Flow, Frontend, FrontendTarget, NodeClass, NodeConfig, Reason, Service,
    Tuple, map_name,
};

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

    fn set_frontend(&mut self, frontend: &Frontend, target: FrontendTarget) -> Result<(), MapAccess>;
    fn remove_frontend(&mut self, frontend: &Frontend) -> Result<(), MapAccess>;
    fn set_service(&mut self, index: u32, service: Service) -> Result<(), MapAccess>;
    fn set_backend(&mut self, slot: u32, backend: Backend) -> Result<(), MapAccess>;
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
    pub(crate) flows: HashMap<MapData, Tuple, Flow>,
    pub(crate) forward: HashMap<MapData, Tuple, Tuple>,
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, MapAccess> {
        Ok(Self {
            frontends: typed(ebpf, map_name::FRONTENDS)?,
            services: typed(ebpf, map_name::SERVICES)?,
            backends: typed(ebpf, map_name::BACKENDS)?,
            affinity: typed(ebpf, map_name::AFFINITY)?,
            nodes: typed(ebpf, map_name::NODES)?,
            node: typed(ebpf, map_name::NODE)?,
            reasons: typed(ebpf, map_name::REASONS)?,
            flows: typed(ebpf, map_name::FLOWS)?,
            forward: typed(ebpf, map_name::FORWARD)?,
        })
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

    fn forget_clients(&mut self, service: u32) -> Result<(), MapAccess> {
        let keys: Vec<AffinityKey> =
            self.affinity.keys().filter_map(Result::ok).filter(|key| key.service == service).collect();
        for key in keys {
            absent_is_removed(self.affinity.remove(&key)).map_err(MapAccess::of(map_name::AFFINITY))?;
        }
        Ok(())
    }
}

fn typed<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, MapAccess> {
    let map = ebpf.take_map(name).expect("the embedded object has every map of the ABI");
    T::try_from(map).map_err(MapAccess::of(name))
}

/// Removing what is gone already is no failure.
fn absent_is_removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}
