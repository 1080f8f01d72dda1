//! A pod's interface: `eth0` in the pod's namespace, its other end in the replica's, one address.
//!
//! ```text
//!  pod's namespace                    replica's namespace
//!  eth0 10.244.1.7/32  ── veth ──  pith<hash of uid>      lo 10.244.1.1/32 (gateway, name server)
//!  default via 10.244.1.1             10.244.1.7 dev pith<…>
//!  10.244.1.1 at <mac>, permanent     10.244.1.7 at <mac>, permanent
//! ```
//!
//! In a cluster of both families each address of IPv4 has one of IPv6 beside it, which ends with it
//! (`fd00:244:0:1::10.244.1.7`), with the same routes and neighbours.
//!
//! There is no bridge between the pods of a replica and nobody ever asks by ARP: both ends know the
//! other's Ethernet address from the start, so that a pod's first packet leaves at once, and eBPF
//! programs find everything in the neighbour table.
//!
//! Invariant: one thread owns the netlink sockets, the address pool and its file; [`PodNet`] is a handle
//! that sends it requests. An address is on file before a packet can carry it, and leaves the file after
//! its interface is gone. Whatever state a killed process left, [`PodNet::attach`] for the same pod ends
//! in the same result, and [`PodNet::reconcile`] removes what no pod owns.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::route::{RouteProtocol, RouteType};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
};
use pith_netlink::{Request, Rtnl, RtnlError};
use tokio::sync::{mpsc, oneshot};

use crate::{
    message::{self, LOOPBACK, Link, Mac, Route, VethEnd},
    names::PodUid,
    netns,
    pool::{Exhausted, Pool, PoolFileError},
    sysctl::{self, SysctlError},
};

/// Marks the routes to this replica's own pods, so that nobody else's are ever touched: free in
/// iproute2's rt_protos; `p` in ASCII.
pub const ROUTES_TO_PODS: u8 = 112;
/// The pod's interface, by its name inside.
pub const INTERFACE: &str = "eth0";
/// How the names of the replica's ends begin.
pub const INTERFACE_PREFIX: &str = "pith";
/// Where no uplink is named or found.
const MTU_DEFAULT: u32 = 1500;
/// Requests that may wait for the thread before callers wait for room.
const REQUESTS_MAX: usize = 256;
/// All replica ends have the same address: each is alone with its pod on its link.
const REPLICA_END: Mac = [0x02, b'p', b'i', b't', b'h', 0];
/// The kernel waits some milliseconds for all processors whenever it removes links, however many at once:
/// those that are to go are gathered in this group (`pith` in ASCII) and removed by its number.
const DOOMED: u32 = 0x7069_7468;
/// The pool's file within the state folder.
const FILE: &str = "pod-addresses.json";

/// What a replica's pod network needs to know.
#[derive(Debug)]
pub struct Config {
    /// Folder for the addresses file; made if missing.
    pub state_dir: PathBuf,
    /// The IPv4 range of the node's `spec.podCIDRs`.
    pub pod_cidr: Ipv4Net,
    /// The IPv6 one, of at most 96 bits, where the cluster has both families.
    pub pod_cidr6: Option<Ipv6Net>,
    /// The interface whose MTU pods get; without it, 1500 bytes.
    pub uplink: Option<String>,
    /// The replica's namespace; `None` is the one of the calling thread.
    pub netns: Option<OwnedFd>,
}

/// A pod's place in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAddress {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Its address in IPv6, where it has one.
    pub address6: Option<Ipv6Addr>,
    /// Its gateway and name server.
    pub gateway: Ipv4Addr,
    /// Name of the replica's end.
    pub interface: String,
    /// Index of the replica's end, in the replica's namespace.
    pub ifindex: u32,
    /// In bytes.
    pub mtu: u32,
}

/// Why a pod's network could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum PodNetError {
    /// No address is left.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The file of addresses.
    #[error(transparent)]
    File(#[from] PoolFileError),
    /// The kernel refused something.
    #[error("pod {pod}")]
    Pod {
        /// The pod.
        pod: PodUid,
        #[source]
        source: RtnlError,
    },
    /// The kernel refused something that is for all pods.
    #[error("pod network of the replica")]
    Replica(#[source] RtnlError),
    /// Forwarding could not be enabled.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A pod's or the replica's namespace could not be entered.
    #[error("enter the network namespace of {of}")]
    Enter {
        /// Whose.
        of: String,
        #[source]
        source: io::Error,
    },
    /// The state folder could not be made.
    #[error("make {}", path.display())]
    StateDir {
        /// The folder.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The pod shares the replica's namespace: it has the node's address and no interface of its own.
    #[error("pod {0} is in the replica's own network namespace")]
    HostNetwork(PodUid),
    /// The thread has ended.
    #[error("the pod network has stopped")]
    Stopped,
}

/// A handle on the replica's pod network; clones share it. The thread ends with the last handle and
/// leaves the pods' interfaces as they are.
#[derive(Debug, Clone)]
pub struct PodNet {
    requests: mpsc::Sender<Call>,
    gateway: Ipv4Addr,
    gateway6: Option<Ipv6Addr>,
    mtu: u32,
}

type Reply<T> = oneshot::Sender<Result<T, PodNetError>>;

#[derive(Debug)]
enum Call {
    Attach { pod: PodUid, netns: OwnedFd, reply: Reply<PodAddress> },
    Detach { pod: PodUid, reply: Reply<()> },
    Reconcile { live: Vec<PodUid>, reply: Reply<Vec<PodUid>> },
}

impl PodNet {
    /// Makes the replica's side (forwarding, gateway address) and adopts the pods of an earlier process.
    ///
    /// # Errors
    /// Missing rights, a state folder that cannot be written, or what the kernel refuses.
    pub async fn open(config: Config) -> Result<Self, PodNetError> {
        // The thread that calls may be any of the runtime's: its namespace is the one that is meant.
        let home = match config.netns {
            Some(netns) => netns,
            None => netns::current().map_err(|source| enter("the replica", source))?,
        };
        let (started, start) = oneshot::channel();
        let (requests, calls) = mpsc::channel(REQUESTS_MAX);
        let (state_dir, uplink) = (config.state_dir, config.uplink);
        let ranges = Ranges { four: config.pod_cidr.trunc(), six: config.pod_cidr6.map(|net| net.trunc()) };
        let body = move || match Worker::start(home, &state_dir, ranges, uplink.as_deref()) {
            Ok(worker) => {
                if started.send(Ok(worker.mtu)).is_ok() {
                    worker.serve(calls);
                }
            }
            Err(error) => drop(started.send(Err(error))),
        };
        thread::Builder::new()
            .name("pith-podnet".to_owned())
            .spawn(body)
            .map_err(|source| enter("the replica", source))?;
        let mtu = start.await.map_err(|_| PodNetError::Stopped)??;
        Ok(Self { requests, gateway: ranges.gateway(), gateway6: ranges.six(ranges.gateway()), mtu })
    }

    /// Address of the pods' gateway, on which the replica's name server listens.
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// The same in IPv6.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.gateway6
    }

    /// MTU of the pods' interfaces, in bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Gives the pod its interface and address in `netns`. For a pod that has them, checks and repairs.
    ///
    /// # Errors
    /// No address is free, or the kernel refuses; then nothing of the attempt is left.
    pub async fn attach(&self, pod: &PodUid, netns: BorrowedFd<'_>) -> Result<PodAddress, PodNetError> {
        let netns = netns.try_clone_to_owned().map_err(|source| enter(&format!("pod {pod}"), source))?;
        self.call(|reply| Call::Attach { pod: pod.clone(), netns, reply }).await
    }

    /// Removes the pod's interface and frees its address. A pod that has none is fine.
    ///
    /// # Errors
    /// The kernel refuses; the address then stays the pod's.
    pub async fn detach(&self, pod: &PodUid) -> Result<(), PodNetError> {
        self.call(|reply| Call::Detach { pod: pod.clone(), reply }).await
    }

    /// Detaches every pod that is not among `live`, and removes pod interfaces that belong to no pod on
    /// file. Returns the pods that were detached. `live` must hold every pod whose attaching was asked for
    /// before this call.
    ///
    /// # Errors
    /// What could not be removed; those pods then keep their addresses.
    pub async fn reconcile(&self, live: Vec<PodUid>) -> Result<Vec<PodUid>, PodNetError> {
        self.call(|reply| Call::Reconcile { live, reply }).await
    }

    async fn call<T>(&self, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, PodNetError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(call(reply)).await.map_err(|_| PodNetError::Stopped)?;
        answer.await.map_err(|_| PodNetError::Stopped)?
    }
}

fn enter(of: &str, source: io::Error) -> PodNetError {
    PodNetError::Enter { of: of.to_owned(), source }
}

/// The replica's addresses for pods.
#[derive(Debug, Clone, Copy)]
struct Ranges {
    four: Ipv4Net,
    six: Option<Ipv6Net>,
}

impl Ranges {
    fn gateway(self) -> Ipv4Addr {
        Pool::gateway(self.four)
    }

    /// Who has an address of IPv4 has that of IPv6 which ends with it: there is one pool, and one file.
    fn six(self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let network = self.six?.network().to_bits();
        Some(Ipv6Addr::from_bits(network | u128::from(address.to_bits())))
    }
}

/// The thread's state.
struct Worker {
    home: OwnedFd,
    rtnl: Rtnl,
    pool: Pool,
    file: PathBuf,
    ranges: Ranges,
    mtu: u32,
}

impl Worker {
    fn start(
        home: OwnedFd,
        state_dir: &Path,
        ranges: Ranges,
        uplink: Option<&str>,
    ) -> Result<Self, PodNetError> {
        enter_netns(home.as_fd()).map_err(|source| enter("the replica", source))?;
        sysctl::enable_forwarding()?;
        if ranges.six.is_some() {
            sysctl::enable_forwarding6()?;
        }
        std::fs::create_dir_all(state_dir)
            .map_err(|source| PodNetError::StateDir { path: state_dir.to_owned(), source })?;
        let file = state_dir.join(FILE);
        let pool = Pool::load(&file, ranges.four)?;
        let mut rtnl = Rtnl::open().map_err(PodNetError::Replica)?;
        let mtu = uplink_mtu(&mut rtnl, uplink)?;
        replica_side(&mut rtnl, ranges).map_err(PodNetError::Replica)?;
        Ok(Self { home, rtnl, pool, file, ranges, mtu })
    }

    /// Takes all that waits at once: attaching comes first, since a pod waits for it, and all that is to
    /// be detached goes together, unless a later call depends on it.
    fn serve(mut self, mut calls: mpsc::Receiver<Call>) {
        let mut waiting = Vec::with_capacity(REQUESTS_MAX);
        while calls.blocking_recv_many(&mut waiting, REQUESTS_MAX) > 0 {
            let mut detaching: Vec<(PodUid, Reply<()>)> = Vec::new();
            for call in waiting.drain(..) {
                match call {
                    // A caller that no longer waits has lost interest in the answer, not in the effect.
                    Call::Attach { pod, netns, reply } => {
                        if detaching.iter().any(|(leaving, _)| *leaving == pod) {
                            self.detach_all(std::mem::take(&mut detaching));
                        }
                        drop(reply.send(self.attach(&pod, &netns)));
                    }
                    Call::Detach { pod, reply } => detaching.push((pod, reply)),
                    Call::Reconcile { live, reply } => drop(reply.send(self.reconcile(&live))),
                }
            }
            self.detach_all(detaching);
        }
    }

    fn attach(&mut self, pod: &PodUid, netns: &OwnedFd) -> Result<PodAddress, PodNetError> {
        if same_namespace(netns.as_fd(), self.home.as_fd()) {
            return Err(PodNetError::HostNetwork(pod.clone()));
        }
        let known = self.pool.get(pod).is_some();
        let address = self.pool.allocate(pod)?;
        if !known {
            self.pool.save(&self.file)?;
        }
        let attached = self.link(pod, netns, address);
        if attached.is_err() && !known {
            // The kubelet tries again; nothing of this attempt is left in its way.
            if let Err(error) = self.detach(pod) {
                tracing::warn!(%pod, %error, "a failed attempt could not be undone");
            }
        }
        attached
    }

    /// Interface, addresses, routes and neighbours, each made or made right: four sends in all.
    fn link(&mut self, pod: &PodUid, netns: &OwnedFd, address: Ipv4Addr) -> Result<PodAddress, PodNetError> {
        let refused = |source| PodNetError::Pod { pod: pod.clone(), source };
        let mut inside = self.rtnl_in(pod, netns)?;
        let near = self.pair(pod, netns, address, &mut inside)?;
        self.pod_side(&mut inside, address).map_err(refused)?;

        let mut requests = Vec::new();
        for (own, gateway) in self.pairs(address) {
            let route = Route {
                destination: own.into(),
                via: None,
                device: Some(near.index),
                kind: RouteType::Unicast,
                protocol: RouteProtocol::Other(ROUTES_TO_PODS),
                metric: None,
                // What the replica itself sends to a pod (probes, DNS answers) comes from the gateway.
                source: Some(gateway),
                on_link: false,
            };
            let neighbour = message::permanent_neighbour(near.index, own, mac_of(address));
            requests.push(Request::replace("add the neighbour for the pod", neighbour));
            requests.push(Request::replace("add the route to the pod", route.new_message()));
        }
        self.rtnl.batch(requests).map_err(refused)?;
        Ok(PodAddress {
            address,
            address6: self.ranges.six(address),
            gateway: self.ranges.gateway(),
            interface: near.name,
            ifindex: near.index,
            mtu: self.mtu,
        })
    }

    /// A pod's addresses, each with its gateway.
    fn pairs(&self, address: Ipv4Addr) -> impl Iterator<Item = (IpAddr, IpAddr)> + use<> {
        let gateway = self.ranges.gateway();
        let six = self.ranges.six(address).zip(self.ranges.six(gateway));
        let six = six.map(|(own, gateway)| (own.into(), gateway.into()));
        std::iter::once((address.into(), gateway.into())).chain(six)
    }

    /// The veth pair; the replica's end. One of an earlier attempt is used again if its other end is in
    /// this very namespace, and replaced if the pod has a new one.
    fn pair(
        &mut self,
        pod: &PodUid,
        netns: &OwnedFd,
        address: Ipv4Addr,
        inside: &mut Rtnl,
    ) -> Result<Link, PodNetError> {
        let refused = |source| PodNetError::Pod { pod: pod.clone(), source };
        let name = pod.interface();
        let near = VethEnd { name: &name, mac: Some(REPLICA_END), up: true, netns: None, controller: None };
        let far = VethEnd {
            name: INTERFACE,
            mac: Some(mac_of(address)),
            up: false,
            netns: Some(netns.as_fd()),
            controller: None,
        };
        let create = || {
            vec![
                Request::create(format!("create {name}"), message::veth(&near, &far, self.mtu)),
                Request::set(format!("find {name}"), message::get_link(&name)),
            ]
        };
        let answers = match self.rtnl.batch(create()) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                let find = Request::set(format!("find {INTERFACE}"), message::get_link(INTERFACE));
                let far_links = inside.batch(vec![find]).map(|answers| Link::all(&answers));
                let find = Request::set(format!("find {name}"), message::get_link(&name));
                let near_links = self.rtnl.batch(vec![find]).map(|answers| Link::all(&answers));
                if let (Ok([far]), Ok([near])) = (far_links.as_deref(), near_links.as_deref())
                    && far.mac == Some(mac_of(address))
                {
                    return Ok(near.clone());
                }
                let delete = Request::set(format!("delete {name}"), message::delete_link(&name));
                let mut requests = vec![delete.tolerating(&[Errno::ENODEV])];
                requests.extend(create());
                self.rtnl.batch(requests).map_err(refused)?
            }
            answers => answers.map_err(refused)?,
        };
        let gone = RtnlError::Malformed(format!("no answer about {name}"));
        Link::all(&answers).pop().ok_or_else(|| refused(gone))
    }

    fn pod_side(&self, inside: &mut Rtnl, address: Ipv4Addr) -> Result<(), RtnlError> {
        let answers = inside.batch(vec![
            Request::set("set lo up in the pod", message::link_up(LOOPBACK, Vec::new())),
            Request::set("set eth0 up in the pod", message::named_link_up(INTERFACE)),
            Request::set("find eth0 in the pod", message::get_link(INTERFACE)),
        ])?;
        let gone = || RtnlError::Malformed(format!("no answer about {INTERFACE}"));
        let index = Link::all(&answers).pop().ok_or_else(gone)?.index;
        let mut requests = Vec::new();
        for (own, gateway) in self.pairs(address) {
            let default = Route {
                destination: everything(gateway),
                via: Some(gateway),
                device: Some(index),
                kind: RouteType::Unicast,
                protocol: RouteProtocol::Static,
                metric: None,
                source: None,
                on_link: true,
            };
            let neighbour = message::permanent_neighbour(index, gateway, REPLICA_END);
            requests.extend([
                Request::replace(format!("add {own} in the pod"), message::address(index, IpNet::from(own))),
                Request::replace("add the neighbour for the gateway in the pod", neighbour),
                Request::replace("add the default route in the pod", default.new_message()),
            ]);
        }
        inside.batch(requests).map(drop)
    }

    fn detach(&mut self, pod: &PodUid) -> Result<(), PodNetError> {
        self.delete(vec![pod.interface()]).map_err(|source| PodNetError::Pod { pod: pod.clone(), source })?;
        self.free([pod])
    }

    fn detach_all(&mut self, detaching: Vec<(PodUid, Reply<()>)>) {
        let together = match detaching.as_slice() {
            [] | [_] => false,
            many => {
                let pods = many.iter().map(|(pod, _)| pod);
                self.delete(pods.clone().map(PodUid::interface).collect()).is_ok() && self.free(pods).is_ok()
            }
        };
        for (pod, reply) in detaching {
            // One by one where that failed, so that each caller learns of its own pod.
            drop(reply.send(if together { Ok(()) } else { self.detach(&pod) }));
        }
    }

    fn reconcile(&mut self, live: &[PodUid]) -> Result<Vec<PodUid>, PodNetError> {
        let dead: Vec<PodUid> =
            self.pool.pods().map(|(pod, _)| pod).filter(|pod| !live.contains(pod)).cloned().collect();
        let dump = self.rtnl.dump("list links", message::get_links()).map_err(PodNetError::Replica)?;
        let owned: Vec<String> = live.iter().map(PodUid::interface).collect();
        let interfaces = Link::all(&dump).into_iter().filter(is_pod_interface).map(|link| link.name);
        let stray = interfaces.filter(|name| !owned.contains(name));
        self.delete(stray.collect()).map_err(PodNetError::Replica)?;
        self.free(&dead)?;
        Ok(dead)
    }

    /// Forgets the pods' addresses, whose interfaces are gone.
    fn free<'a>(&mut self, pods: impl IntoIterator<Item = &'a PodUid>) -> Result<(), PodNetError> {
        let freed = pods.into_iter().filter(|pod| self.pool.free(pod).is_some()).count();
        if freed > 0 {
            self.pool.save(&self.file)?;
        }
        Ok(())
    }

    /// Removes links that may be gone already, or go at any moment with their pod's namespace.
    fn delete(&mut self, names: Vec<String>) -> Result<(), RtnlError> {
        let mut requests: Vec<Request> = match names.as_slice() {
            [] => return Ok(()),
            [name] => vec![Request::set(format!("delete {name}"), message::delete_link(name))],
            many => many
                .iter()
                .map(|name| {
                    Request::set(format!("mark {name} for removal"), message::link_group(name, DOOMED))
                })
                .collect(),
        };
        if names.len() > 1 {
            let what = format!("delete {} pod interfaces", names.len());
            requests.push(Request::set(what, message::delete_group(DOOMED)));
        }
        let requests = requests.into_iter().map(|it| it.tolerating(&[Errno::ENODEV])).collect();
        self.rtnl.batch(requests).map(drop)
    }

    /// A socket in the pod's namespace. This thread goes there and comes back; should it ever fail to
    /// come back, it must not go on.
    fn rtnl_in(&self, pod: &PodUid, netns: &OwnedFd) -> Result<Rtnl, PodNetError> {
        enter_netns(netns.as_fd()).map_err(|source| enter(&format!("pod {pod}"), source))?;
        let rtnl = Rtnl::open();
        // Before its interface is made, which begins with these.
        let quiet = self.ranges.six.map_or(Ok(()), |_| sysctl::still());
        enter_netns(self.home.as_fd()).expect("a namespace that was entered once can be entered again");
        quiet?;
        rtnl.map_err(|source| PodNetError::Pod { pod: pod.clone(), source })
    }
}

fn enter_netns(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(setns(netns, CloneFlags::CLONE_NEWNET)?)
}

fn same_namespace(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    match (rustix::fs::fstat(a), rustix::fs::fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

/// MTU of the uplink, in bytes.
fn uplink_mtu(rtnl: &mut Rtnl, uplink: Option<&str>) -> Result<u32, PodNetError> {
    let Some(name) = uplink else { return Ok(MTU_DEFAULT) };
    let find = Request::set(format!("find the uplink {name}"), message::get_link(name));
    let answers = rtnl.batch(vec![find]).map_err(PodNetError::Replica)?;
    Ok(Link::all(&answers).pop().map_or(MTU_DEFAULT, |link| link.mtu))
}

/// The gateway's address, on `lo` because it is on no link; and an answer for addresses that no pod has,
/// which would otherwise leave by the default route and come back for ever.
fn replica_side(rtnl: &mut Rtnl, ranges: Ranges) -> Result<(), RtnlError> {
    let gateway = ranges.gateway();
    let six = ranges.six.zip(ranges.six(gateway)).map(|(net, gateway)| (net.into(), gateway.into()));
    let mut requests = vec![Request::set("set lo up", message::link_up(LOOPBACK, Vec::new()))];
    for (net, gateway) in std::iter::once((IpNet::from(ranges.four), IpAddr::from(gateway))).chain(six) {
        let unreachable = Route {
            destination: net,
            via: None,
            device: None,
            kind: RouteType::Unreachable,
            protocol: RouteProtocol::Other(ROUTES_TO_PODS),
            metric: None,
            source: None,
            on_link: false,
        };
        let address = message::address(LOOPBACK, IpNet::from(gateway));
        requests.extend([
            Request::replace(format!("give lo the gateway's address {gateway}"), address),
            Request::replace(format!("make {net} unreachable by default"), unreachable.new_message()),
        ]);
    }
    rtnl.batch(requests).map(drop)
}

/// Of the address's family.
fn everything(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => Ipv4Net::default().into(),
        IpAddr::V6(_) => Ipv6Net::default().into(),
    }
}

/// By name and kind: `pith` and eleven hexadecimal digits.
fn is_pod_interface(link: &Link) -> bool {
    let digits = link.name.strip_prefix(INTERFACE_PREFIX).unwrap_or_default();
    link.kind == Some(netlink_packet_route::link::InfoKind::Veth)
        && digits.len() == 11
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The customary way to make an Ethernet address from a pod's: locally administered, unique as it is.
fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}
