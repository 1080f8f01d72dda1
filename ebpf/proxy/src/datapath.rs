//! The programs and maps in the kernel: loading, pinning, adopting, attaching, removing.
//!
//! Invariant: what is attached stays attached when this process ends, in whatever way. Maps and links are
//! pinned; the next process opens the same maps and puts its own programs into the same links, so that
//! no call and no packet finds the hook empty.

use std::{
    fs, io,
    net::Ipv4Addr,
    ops::RangeInclusive,
    os::{fd::AsFd, unix::fs::MetadataExt},
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapInfo, MapType},
    pin::PinError as AyaPinError,
    programs::{
        CgroupAttachMode, CgroupSockAddr, ProgramError, SchedClassifier, TcAttachType, TestRun,
        TestRunOptions, links::FdLink,
    },
};
use pith_abi::{
    Affinity, AffinityKey, Backend, Flow, Frontend, FrontendTarget, NodeClass, NodeConfig, NodeFlags, Peers,
    Reason, Service, Tuple, default_limit, map_name,
};
use tracing::debug;

use crate::{
    bpffs::{self, PinError, Pins},
    cidr::Cidr,
    kernel::{self, LinkTarget},
    maps::{MapAccess, Maps, ServiceMaps},
    object::OBJECT,
    table::TableLimits,
};

/// Programs at socket calls.
const CGROUP_PROGRAMS: [&str; 8] =
    ["connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"];
const UPLINK_INGRESS: &str = "uplink_ingress";
const UPLINK_EGRESS: &str = "uplink_egress";

/// Every program, by the name of its link's pin.
const PROGRAMS: [&str; 10] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    UPLINK_INGRESS,
    UPLINK_EGRESS,
];

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
    pub snat_ports: RangeInclusive<u16>,
}

impl Config {
    pub fn new(bpffs: impl Into<PathBuf>, cgroup: impl Into<PathBuf>) -> Self {
        Self {
            bpffs: bpffs.into(),
            cgroup: cgroup.into(),
            limits: Limits::default(),
            cluster_cidr: None,
            snat_ports: DEFAULT_SNAT_PORTS,
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
    pub flows: u32,
    pub nodes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frontends: default_limit::FRONTENDS,
            services: default_limit::SERVICES,
            backends: default_limit::BACKENDS,
            affinity: default_limit::AFFINITY,
            flows: default_limit::FLOWS,
            nodes: default_limit::NODES,
        }
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
    Map(#[from] MapAccess),
    #[error("interface {name}")]
    Interface {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("cookie of this network namespace")]
    NetnsCookie(#[source] io::Error),
}

/// A hook at the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    Ingress,
    Egress,
}

impl Uplink {
    fn program(self) -> &'static str {
        match self {
            Self::Ingress => UPLINK_INGRESS,
            Self::Egress => UPLINK_EGRESS,
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
    ebpf: Ebpf,
    pins: Pins,
    pub(crate) maps: Maps,
    node: NodeConfig,
    /// Addresses of this node, for NODES.
    pub(crate) own: Vec<Ipv4Addr>,
    pub(crate) table_limits: TableLimits,
}

impl Datapath {
    /// Loads programs, makes or adopts maps, and attaches the programs at socket calls to the cgroup. Call
    /// it in the node's network namespace.
    pub fn open(config: &Config) -> Result<Self, DatapathError> {
        bpffs::check_cgroup(&config.cgroup)?;
        let pins = Pins::open(&config.bpffs)?;
        check_maps(&pins)?;
        let mut ebpf = load(config, &pins)?;
        let table_limits = TableLimits {
            frontends: size(&pins, map_name::FRONTENDS)?,
            services: size(&pins, map_name::SERVICES)?,
            backends: size(&pins, map_name::BACKENDS)?,
        };
        let mut maps = Maps::take(&mut ebpf)?;
        // What a former process knew of the uplink stays in force until it is said again.
        let mut node = maps.node()?;
        node.netns_cookie = kernel::netns_cookie().map_err(DatapathError::NetnsCookie)?;
        node.snat_first = *config.snat_ports.start();
        node.snat_last = *config.snat_ports.end();
        node.flags = 0;
        if let Some(cidr) = config.cluster_cidr {
            node.cluster_net_be = be(cidr.net());
            node.cluster_mask_be = be(cidr.mask());
            node.flags |= NodeFlags::MASQUERADE;
        }
        maps.set_node(node)?;
        let mut datapath = Self { ebpf, pins, maps, node, own: Vec::new(), table_limits };
        for program in CGROUP_PROGRAMS {
            datapath.attach_cgroup(program, &config.cgroup)?;
        }
        Ok(datapath)
    }

    /// Attaches the programs of the uplink to an interface of this network namespace. Packets are
    /// translated under the first of `addresses`; node ports answer at all of them.
    pub fn attach_uplink(&mut self, interface: &str, addresses: &[Ipv4Addr]) -> Result<(), DatapathError> {
        let index = nix::net::if_::if_nametoindex(interface)
            .map_err(|error| DatapathError::Interface { name: interface.to_owned(), source: error.into() })?;
        self.own = addresses.to_vec();
        for address in addresses {
            self.maps.set_node_class(be(*address), NodeClass(NodeClass::OWN))?;
        }
        self.node.uplink = index;
        self.node.addr_be = addresses.first().map_or(0, |address| be(*address));
        self.maps.set_node(self.node)?;
        self.attach_classifier(UPLINK_INGRESS, TcAttachType::Ingress, interface, index)?;
        self.attach_classifier(UPLINK_EGRESS, TcAttachType::Egress, interface, index)
    }

    /// Says which addresses this node's pods have.
    pub fn set_pod_cidr(&mut self, cidr: Cidr) -> Result<(), DatapathError> {
        self.node.pod_net_be = be(cidr.net());
        self.node.pod_mask_be = be(cidr.mask());
        Ok(self.maps.set_node(self.node)?)
    }

    /// The maps that a [`Table`](crate::table::Table) of Services is kept in, and their sizes.
    pub fn service_maps(&mut self) -> (&mut impl ServiceMaps, TableLimits) {
        (&mut self.maps, self.table_limits)
    }

    /// How often each verdict was given, since the maps were made.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, DatapathError> {
        let count = |reason: &Reason| Ok((*reason, self.maps.reason(*reason)?));
        Reason::ALL.iter().map(count).collect()
    }

    /// Runs a packet, from its Ethernet header on, through a program of the uplink and the live maps; flows
    /// it begins stay. The uplink has to be attached.
    pub fn replay(&self, hook: Uplink, packet: &[u8]) -> Result<Replayed, DatapathError> {
        let name = hook.program();
        let failed = |source| DatapathError::Program { program: name, source };
        let program: &SchedClassifier =
            self.ebpf.program(name).expect(EMBEDDED).try_into().map_err(failed)?;
        let mut out = vec![0; packet.len()];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        let result = program.test_run(options).map_err(failed)?;
        Ok(Replayed { verdict: result.return_value.cast_signed(), packet: out, duration: result.duration })
    }

    /// Detaches a datapath and removes its pins, whether or not a process uses it. Pins that are not ours
    /// stay and are named in the error.
    pub fn remove(bpffs: &Path) -> Result<(), DatapathError> {
        Ok(bpffs::remove(bpffs, &PROGRAMS)?)
    }

    fn attach_cgroup(&mut self, name: &'static str, cgroup: &Path) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Program { program: name, source };
        let folder = fs::File::open(cgroup).map_err(|source| PinError::Io {
            action: "open",
            path: cgroup.to_owned(),
            source,
        })?;
        let id = folder.metadata().map_or(0, |meta| meta.ino());
        let path = self.pins.link(name);
        let program: &mut CgroupSockAddr =
            self.ebpf.program_mut(name).expect(EMBEDDED).try_into().map_err(failed)?;
        program.load().map_err(failed)?;
        let target = LinkTarget::Cgroup { id };
        let handle = program.fd().map_err(failed)?;
        if replaced(&path, handle.as_fd(), target, &LinkTarget::Cgroup { id: 0 })? {
            return Ok(());
        }
        let link = program.attach(folder, CgroupAttachMode::Single).map_err(failed)?;
        let link = program.take_link(link).map_err(failed)?;
        let link = FdLink::try_from(link).map_err(|_| failed(ProgramError::NotAttached))?;
        link.pin(&path).map_err(|source| DatapathError::PinLink { program: name, source })?;
        Ok(())
    }

    fn attach_classifier(
        &mut self,
        name: &'static str,
        kind: TcAttachType,
        interface: &str,
        index: u32,
    ) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Program { program: name, source };
        let path = self.pins.link(name);
        let program: &mut SchedClassifier =
            self.ebpf.program_mut(name).expect(EMBEDDED).try_into().map_err(failed)?;
        if program.fd().is_err() {
            program.load().map_err(failed)?;
        }
        let target = LinkTarget::Interface { index };
        let handle = program.fd().map_err(failed)?;
        if replaced(&path, handle.as_fd(), target, &LinkTarget::Interface { index: 0 })? {
            return Ok(());
        }
        let link = program.attach(interface, kind).map_err(failed)?;
        let link = program.take_link(link).map_err(failed)?;
        // Kernels before 6.6 attach through a queueing discipline, which cannot be pinned.
        let link = FdLink::try_from(link).map_err(|_| failed(ProgramError::NotAttached))?;
        link.pin(&path).map_err(|source| DatapathError::PinLink { program: name, source })?;
        Ok(())
    }
}

const EMBEDDED: &str = "the embedded object has every program named here";

/// Loads the object with its maps pinned, or opened where they are pinned already.
fn load(config: &Config, pins: &Pins) -> Result<Ebpf, DatapathError> {
    // A thread of its own, because what it hides stays hidden for it.
    let loaded = thread::scope(|scope| {
        scope
            .spawn(|| {
                if let Err(error) = hide_kernel_types() {
                    debug!(%error, "loading takes more memory than it needs");
                }
                load_here(config, pins)
            })
            .join()
    });
    loaded.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Hides the kernel's own type information from the calling thread. aya parses it in `EbpfLoader::new`
/// whether or not a program needs it: 18 ms, and 20 MB that the allocator may keep.
fn hide_kernel_types() -> io::Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(mount("tmpfs", "/sys/kernel/btf", "tmpfs", MountFlags::RDONLY, None)?)
}

fn load_here(config: &Config, pins: &Pins) -> Result<Ebpf, DatapathError> {
    let limits = &config.limits;
    let mut loader = EbpfLoader::new();
    // Nothing in the programs depends on the kernel's own types.
    loader.btf(None);
    loader
        .map_max_entries(map_name::FRONTENDS, limits.frontends)
        .map_max_entries(map_name::SERVICES, limits.services)
        .map_max_entries(map_name::BACKENDS, limits.backends)
        .map_max_entries(map_name::AFFINITY, limits.affinity)
        .map_max_entries(map_name::FLOWS, limits.flows)
        .map_max_entries(map_name::FORWARD, limits.flows)
        .map_max_entries(map_name::NODES, limits.nodes);
    for name in map_name::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.load(OBJECT).map_err(DatapathError::Load)
}

/// What each map is: the kernel's type, and the sizes of its keys and values.
const MAPS: [(&str, MapType, usize, usize); 10] = [
    (map_name::FRONTENDS, MapType::Hash, size_of::<Frontend>(), size_of::<FrontendTarget>()),
    (map_name::SERVICES, MapType::Array, size_of::<u32>(), size_of::<Service>()),
    (map_name::BACKENDS, MapType::Array, size_of::<u32>(), size_of::<Backend>()),
    (map_name::AFFINITY, MapType::LruHash, size_of::<AffinityKey>(), size_of::<Affinity>()),
    (map_name::PEERS, MapType::SkStorage, size_of::<u32>(), size_of::<Peers>()),
    (map_name::FLOWS, MapType::Hash, size_of::<Tuple>(), size_of::<Flow>()),
    (map_name::FORWARD, MapType::Hash, size_of::<Tuple>(), size_of::<Tuple>()),
    (map_name::NODES, MapType::Hash, size_of::<u32>(), size_of::<NodeClass>()),
    (map_name::NODE, MapType::Array, size_of::<u32>(), size_of::<NodeConfig>()),
    (map_name::REASONS, MapType::PerCpuArray, size_of::<u32>(), size_of::<u64>()),
];

/// Refuses pinned maps that are not what the programs expect.
fn check_maps(pins: &Pins) -> Result<(), DatapathError> {
    for (name, kind, key, value) in MAPS {
        let path = pins.map(name);
        if !path.exists() {
            continue;
        }
        let failed = |source| MapAccess::Kernel { map: name, source };
        let info = MapInfo::from_pin(&path).map_err(failed)?;
        let found = (info.map_type().map_err(failed)?, info.key_size() as usize, info.value_size() as usize);
        if found != (kind, key, value) {
            let found = format!("{:?} with keys of {} and values of {} bytes", found.0, found.1, found.2);
            return Err(DatapathError::ForeignMap { path, found });
        }
    }
    Ok(())
}

/// Entries that a pinned map can hold.
fn size(pins: &Pins, name: &'static str) -> Result<u32, DatapathError> {
    let info = MapInfo::from_pin(pins.map(name)).map_err(|source| MapAccess::Kernel { map: name, source })?;
    Ok(info.max_entries())
}

/// Puts a program into the link pinned at `path`; `false` when a link has to be made, because there is
/// none or because what it was attached to is gone.
fn replaced(
    path: &Path,
    program: std::os::fd::BorrowedFd<'_>,
    wanted: LinkTarget,
    gone: &LinkTarget,
) -> Result<bool, DatapathError> {
    let failed = |source| DatapathError::Link { path: path.to_owned(), source };
    let link = match kernel::open_pin(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    let target = kernel::link_target(link.as_fd()).map_err(failed)?;
    if target == *gone {
        fs::remove_file(path).map_err(failed)?;
        return Ok(false);
    }
    if target != wanted {
        return Err(DatapathError::LinkElsewhere { path: path.to_owned(), wanted: format!("{wanted:?}") });
    }
    kernel::update_link(link.as_fd(), program).map_err(failed)?;
    Ok(true)
}

/// An address as it lies in packets.
pub(crate) fn be(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}
