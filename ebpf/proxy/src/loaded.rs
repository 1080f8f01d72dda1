//! The object in the kernel: its programs loaded, its maps pinned or adopted, its links put in place.
//!
//! Invariant: what is attached stays attached when this process ends, in whatever way. Maps and links are
//! pinned; the next process opens the same maps and puts its own programs into the same links, so that
//! no call and no packet finds the hook empty. Programs at pods' links are `filters`, which need no pins.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    panic::resume_unwind,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapInfo, MapType, PerCpuArray},
    programs::{
        CgroupAttachMode, Program, ProgramError, SchedClassifier, TcAttachType, TestRun, TestRunOptions,
        links::FdLink,
    },
};
use pith_abi::{
    Affinity, AffinityKey, Backend, Connected, Flow, Fragment, FragmentKey, Frontend, FrontendTarget,
    HandedOn, Known6, Networks6, NodeClass, NodeConfig, Parked, ParkedKey, Peers, ServerKey, Service,
    SourceKey, SourceKey6, StandIn, Tuple, map_name,
};
use pith_core::crc::Carry;
use tracing::{debug, warn};

use crate::{
    bpffs::{PinError, Pins},
    datapath::{DatapathError, Limits, Replayed},
    kernel::{self, LinkTarget},
    maps::{MapAccess, Maps},
    object::OBJECT,
    xdp::{self, NoXdp, Xdp},
};

const EMBEDDED: &str = "the embedded object has every program named here";

/// The programs of one folder of pins.
pub(crate) struct Loaded {
    programs: Programs,
    pins: Pins,
}

/// The programs of an object, loaded when they are first needed: the verifier takes up to 0.2 s for one.
#[derive(Clone)]
pub(crate) struct Programs(Arc<Mutex<Ebpf>>);

impl Programs {
    fn lock(&self) -> MutexGuard<'_, Ebpf> {
        // Nothing is left half done where somebody panicked with it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads a classifier.
    pub(crate) fn classifier(&self, name: &'static str) -> Result<OwnedFd, DatapathError> {
        let failed = |source| DatapathError::Program { program: name, source };
        let mut ebpf = self.lock();
        let program: &mut SchedClassifier =
            ebpf.program_mut(name).expect(EMBEDDED).try_into().map_err(failed)?;
        if program.fd().is_err() {
            program.load().map_err(failed)?;
        }
        let handle = program.fd().map_err(failed)?;
        handle.as_fd().try_clone_to_owned().map_err(|error| failed(ProgramError::IOError(error)))
    }
}

impl Loaded {
    /// Loads the object and makes or adopts the maps in `folder`.
    pub(crate) fn open(folder: &Path, limits: &Limits) -> Result<(Self, Maps), DatapathError> {
        let pins = Pins::open(folder)?;
        check_maps(&pins)?;
        let mut ebpf = load(limits, &pins)?;
        let maps = Maps::take(&mut ebpf)?;
        Ok((Self { programs: Programs(Arc::new(Mutex::new(ebpf))), pins }, maps))
    }

    /// Entries that a map can hold.
    pub(crate) fn size(&self, name: &'static str) -> Result<u32, DatapathError> {
        let info = MapInfo::from_pin(self.pins.map(name))
            .map_err(|source| MapAccess::Kernel { map: name, source })?;
        Ok(info.max_entries())
    }

    /// REASONS, once more.
    pub(crate) fn reasons(&self) -> Result<PerCpuArray<MapData, u64>, MapAccess> {
        let map = MapData::from_pin(self.pins.map(map_name::REASONS)).and_then(Map::from_map_data);
        map.and_then(PerCpuArray::try_from)
            .map_err(|source| MapAccess::Kernel { map: map_name::REASONS, source })
    }

    pub(crate) fn attach_cgroup(&mut self, name: &'static str, cgroup: &Path) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Program { program: name, source };
        let folder = fs::File::open(cgroup).map_err(|source| PinError::Io {
            action: "open",
            path: cgroup.to_owned(),
            source,
        })?;
        let id = folder.metadata().map_or(0, |meta| meta.ino());
        let path = self.pins.link(name);
        let mut ebpf = self.programs.lock();
        let program = ebpf.program_mut(name).expect(EMBEDDED);
        match program {
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        }
        .map_err(failed)?;
        let target = LinkTarget::Cgroup { id };
        let handle = program.fd().map_err(failed)?;
        if replaced(&path, handle.as_fd(), target, &LinkTarget::Cgroup { id: 0 })? {
            return Ok(());
        }
        let link = match program {
            Program::CgroupSock(program) => program
                .attach(folder, CgroupAttachMode::Single)
                .and_then(|link| program.take_link(link))
                .map(FdLink::try_from),
            Program::CgroupSockAddr(program) => program
                .attach(folder, CgroupAttachMode::Single)
                .and_then(|link| program.take_link(link))
                .map(FdLink::try_from),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        let link = link.map_err(failed)?.map_err(|_| failed(ProgramError::NotAttached))?;
        link.pin(&path).map_err(|source| DatapathError::PinLink { program: name, source })?;
        Ok(())
    }

    /// For who loads and attaches some itself.
    pub(crate) fn programs(&self) -> Programs {
        self.programs.clone()
    }

    /// Attaches a classifier to an interface of this network namespace, where its link is known by another name than
    /// its own: programs that take one another's place have one link.
    pub(crate) fn attach_classifier(
        &mut self,
        link: &'static str,
        name: &'static str,
        kind: TcAttachType,
        interface: &str,
    ) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Program { program: name, source };
        let index = interface_index(interface)?;
        let path = self.pins.link(link);
        let target = LinkTarget::Interface { index };
        let handle = self.programs.classifier(name)?;
        if replaced(&path, handle.as_fd(), target, &LinkTarget::Interface { index: 0 })? {
            return Ok(());
        }
        let mut ebpf = self.programs.lock();
        let program: &mut SchedClassifier =
            ebpf.program_mut(name).expect(EMBEDDED).try_into().map_err(failed)?;
        let link = program.attach(interface, kind).map_err(failed)?;
        let link = program.take_link(link).map_err(failed)?;
        // Kernels before 6.6 attach through a queueing discipline, which cannot be pinned.
        let link = FdLink::try_from(link).map_err(|_| failed(ProgramError::NotAttached))?;
        link.pin(&path).map_err(|source| DatapathError::PinLink { program: name, source })?;
        Ok(())
    }

    /// Attaches a program in the driver of an interface of this network namespace, or puts it into the link of a former
    /// process. Where that fails nothing of ours is attached there.
    pub(crate) fn attach_xdp(
        &mut self,
        name: &'static str,
        wanted: Xdp,
        interface: &str,
    ) -> Result<(), NoXdp> {
        let tried = self.try_attach_xdp(name, wanted, interface);
        if tried.is_err()
            && let Err(error) = self.detach(name)
        {
            warn!(%error, interface, "XDP stays attached");
        }
        tried
    }

    fn try_attach_xdp(&mut self, name: &'static str, wanted: Xdp, interface: &str) -> Result<(), NoXdp> {
        let failed = |error| NoXdp::Load(Box::new(error));
        let index = interface_index(interface).map_err(failed)?;
        let path = self.pins.link(name);
        let former = kernel::open_pin(&path).and_then(|link| kernel::link_target(link.as_fd()));
        let ours = former.is_ok_and(|target| target == LinkTarget::Interface { index });
        xdp::plan(wanted, &xdp::device(index).map_err(NoXdp::Refused)?, ours)?;
        let load = |source| failed(DatapathError::Program { program: name, source });
        let mut ebpf = self.programs.lock();
        let program: &mut aya::programs::Xdp =
            ebpf.program_mut(name).expect(EMBEDDED).try_into().map_err(load)?;
        if program.fd().is_err() {
            program.load().map_err(load)?;
        }
        let handle = program.fd().map_err(load)?;
        let (target, gone) = (LinkTarget::Interface { index }, LinkTarget::Interface { index: 0 });
        if replaced(&path, handle.as_fd(), target, &gone).map_err(failed)? {
            return Ok(());
        }
        kernel::attach_xdp(handle.as_fd(), index, &path).map_err(NoXdp::Refused)
    }

    /// Takes a link away, where there is one.
    fn detach(&self, name: &str) -> Result<(), DatapathError> {
        let path = self.pins.link(name);
        let failed = |source| DatapathError::Link { path: path.clone(), source };
        match kernel::open_pin(&path) {
            Ok(link) => {
                kernel::detach_link(link.as_fd()).and_then(|()| fs::remove_file(&path)).map_err(failed)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Runs a packet, from its Ethernet header on, through a classifier that was loaded, `times` in a row.
    pub(crate) fn replay(
        &self,
        name: &'static str,
        packet: &[u8],
        times: u32,
    ) -> Result<Replayed, DatapathError> {
        let failed = |source| DatapathError::Program { program: name, source };
        let ebpf = self.programs.lock();
        let program: &SchedClassifier = ebpf.program(name).expect(EMBEDDED).try_into().map_err(failed)?;
        let mut out = vec![0; packet.len()];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        options.repeat = times;
        let result = program.test_run(options).map_err(failed)?;
        Ok(Replayed { verdict: result.return_value.cast_signed(), packet: out, duration: result.duration })
    }
}

/// Index of an interface of this network namespace.
pub(crate) fn interface_index(name: &str) -> Result<u32, DatapathError> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|error| DatapathError::Interface { name: name.to_owned(), source: error.into() })
}

/// Loads the object with its maps pinned, or opened where they are pinned already.
fn load(limits: &Limits, pins: &Pins) -> Result<Ebpf, DatapathError> {
    // A thread of its own, because what it hides stays hidden for it.
    let loaded = thread::scope(|scope| {
        scope
            .spawn(|| {
                if let Err(error) = hide_kernel_types() {
                    debug!(%error, "loading takes more memory than it needs");
                }
                load_here(limits, pins)
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

fn load_here(limits: &Limits, pins: &Pins) -> Result<Ebpf, DatapathError> {
    let mut loader = EbpfLoader::new();
    // Nothing in the programs depends on the kernel's own types.
    loader.btf(None);
    for (name, limit) in limits.of_maps() {
        loader.map_max_entries(name, limit);
    }
    for name in map_name::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.load(OBJECT).map_err(DatapathError::Load)
}

/// What each map is: the kernel's type, and the sizes of its keys and values.
const MAPS: [(&str, MapType, usize, usize); map_name::ALL.len()] = [
    (map_name::FRONTENDS, MapType::Hash, size_of::<Frontend>(), size_of::<FrontendTarget>()),
    (map_name::SERVICES, MapType::Array, size_of::<u32>(), size_of::<Service>()),
    (map_name::BACKENDS, MapType::Array, size_of::<u32>(), size_of::<Backend>()),
    (map_name::AFFINITY, MapType::LruHash, size_of::<AffinityKey>(), size_of::<Affinity>()),
    (map_name::CONNECTED, MapType::Array, size_of::<u32>(), size_of::<Connected>()),
    (map_name::PEERS, MapType::SkStorage, size_of::<u32>(), size_of::<Peers>()),
    (map_name::FLOWS, MapType::Hash, size_of::<Tuple>(), size_of::<Flow>()),
    (map_name::FORWARD, MapType::Hash, size_of::<Tuple>(), size_of::<Tuple>()),
    (map_name::NODES, MapType::Hash, size_of::<u32>(), size_of::<NodeClass>()),
    (map_name::NODE, MapType::Array, size_of::<u32>(), size_of::<NodeConfig>()),
    (map_name::REASONS, MapType::PerCpuArray, size_of::<u32>(), size_of::<u64>()),
    (map_name::CONNECTIONS, MapType::PerCpuArray, size_of::<u32>(), size_of::<u64>()),
    (map_name::SOURCES, MapType::LpmTrie, size_of::<(u32, SourceKey)>(), size_of::<u32>()),
    (map_name::AT_PODS, MapType::Array, size_of::<u32>(), size_of::<u64>()),
    (map_name::CARRY, MapType::Array, size_of::<u32>(), size_of::<Carry>()),
    (map_name::FRAGMENTS, MapType::LruHash, size_of::<FragmentKey>(), size_of::<Fragment>()),
    (map_name::PARKED, MapType::LruHash, size_of::<ParkedKey>(), size_of::<Parked>()),
    (map_name::ADDRESSES, MapType::Hash, size_of::<StandIn>(), size_of::<Known6>()),
    (map_name::SOURCES6, MapType::LpmTrie, size_of::<(u32, SourceKey6)>(), size_of::<u32>()),
    (map_name::NODE6, MapType::Array, size_of::<u32>(), size_of::<Networks6>()),
    (map_name::HANDED_ON, MapType::Hash, size_of::<Tuple>(), size_of::<HandedOn>()),
    (map_name::SERVERS, MapType::Hash, size_of::<ServerKey>(), size_of::<Backend>()),
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

/// Puts a program into the link pinned at `path`; `false` when a link has to be made, because there is
/// none or because what it was attached to is gone.
fn replaced(
    path: &Path,
    program: BorrowedFd<'_>,
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
