//! A place for one privileged test: a thread with network and mount namespaces of its own, a cgroup whose
//! sockets see Services, and a folder on a BPF file system that nobody else sees.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod api;
pub(crate) mod network;
pub(crate) mod raw;

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use pith_abi::Reason;
use pith_proxy::{
    Config, Datapath, NodeIdentity, ServicePlan, plan_service,
    service::{Endpoint, Protocol, Service, ServiceName, ServicePort, Slice},
    table::Table,
};

/// How long anything on this machine may take before a test calls it lost.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) struct Sandbox {
    cgroup: PathBuf,
    folder: tempfile::TempDir,
    parent: PathBuf,
}

impl Sandbox {
    /// Runs a test in a new sandbox, or says loudly why it cannot.
    pub(crate) fn run(test: &str, body: impl FnOnce(&Sandbox) + Send) {
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    let sandbox = match Self::enter(test) {
                        Ok(sandbox) => sandbox,
                        Err(reason) => {
                            eprintln!("SKIPPED: {test}: {reason}");
                            return Ok(());
                        }
                    };
                    let result = catch_unwind(AssertUnwindSafe(|| body(&sandbox)));
                    sandbox.leave();
                    result
                })
                .join()
        });
        if let Err(panic) | Ok(Err(panic)) = result {
            resume_unwind(panic);
        }
    }

    fn enter(test: &str) -> Result<Self, String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        Command::new("ip").arg("-V").output().map_err(|error| failed("iproute2", &error))?;
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .map_err(|error| failed("own network and mount namespaces", &error))?;
        private_mounts().map_err(|error| failed("private mounts", &error))?;
        let folder = tempfile::tempdir().map_err(|error| failed("a folder", &error))?;
        rustix::mount::mount("bpf", folder.path(), "bpf", rustix::mount::MountFlags::empty(), None)
            .map_err(|error| failed("a BPF file system", &error))?;
        let parent = own_cgroup()?;
        let cgroup = parent.join(format!("pith-test-{}-{test}", std::process::id()));
        fs::create_dir(&cgroup).map_err(|error| failed("a cgroup", &error))?;
        let sandbox = Self { cgroup, folder, parent };
        // Threaded, so that this thread alone moves and not the whole test program.
        let moved =
            fs::write(sandbox.cgroup.join("cgroup.type"), "threaded").and_then(|()| join(&sandbox.cgroup));
        if let Err(error) = moved {
            sandbox.leave();
            return Err(failed("a thread in its own cgroup", &error));
        }
        ip("link set lo up");
        Ok(sandbox)
    }

    fn leave(self) {
        let removed = empty(&self.cgroup, &self.parent);
        let unmounted = rustix::mount::unmount(self.folder.path(), rustix::mount::UnmountFlags::DETACH);
        if !thread::panicking() {
            removed.expect("the cgroup is ours and empty");
            unmounted.expect("the mount is this thread's");
        }
    }

    pub(crate) fn config(&self) -> Config {
        Config::new(self.folder.path().join("node"), &self.cgroup)
    }

    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Moves the calling thread, one that the test made, into the sandbox's cgroup.
    pub(crate) fn join(&self) {
        join(&self.cgroup).expect("a thread may join the test's cgroup");
    }
}

fn join(cgroup: &Path) -> std::io::Result<()> {
    fs::write(cgroup.join("cgroup.threads"), rustix::thread::gettid().as_raw_nonzero().to_string())
}

/// Moves every thread of a test's cgroup back and removes the cgroup. Servers may still be blocked in calls,
/// and threads that are just ending can neither be moved nor be waited for.
fn empty(cgroup: &Path, parent: &Path) -> std::io::Result<()> {
    let started = Instant::now();
    loop {
        for thread in fs::read_to_string(cgroup.join("cgroup.threads"))?.lines() {
            match fs::write(parent.join("cgroup.threads"), thread) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && started.elapsed() < DEADLINE => {
                thread::yield_now();
            }
            other => return other,
        }
    }
}

fn private_mounts() -> rustix::io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}

/// The v2 cgroup of this process.
fn own_cgroup() -> Result<PathBuf, String> {
    let text = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("no cgroup v2")?;
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .iter()
        .map(|mount| Path::new(mount).join(path))
        .find(|folder| folder.join("cgroup.threads").exists())
        .ok_or_else(|| "the v2 hierarchy is not mounted".to_owned())
}

/// Runs `ip` in the network namespace of the calling thread.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.expect("`ip` was there when the sandbox was entered");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A network namespace beside the sandbox's: a thread in it does what it is told. Sockets and threads
/// made there stay there.
pub(crate) struct Namespace {
    jobs: mpsc::Sender<Job>,
    pub(crate) path: String,
}

type Job = Box<dyn FnOnce() + Send>;

impl Namespace {
    /// Outside of the sandbox's cgroup: its sockets see no Services.
    pub(crate) fn new(sandbox: &Sandbox) -> Self {
        Self::in_cgroup(sandbox.parent.clone())
    }

    /// In the sandbox's cgroup, as a pod of the node is.
    pub(crate) fn of_pod(sandbox: &Sandbox) -> Self {
        Self::in_cgroup(sandbox.cgroup.clone())
    }

    fn in_cgroup(parent: PathBuf) -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, path) = mpsc::channel();
        thread::spawn(move || {
            join(&parent).expect("the thread may go there");
            unshare(CloneFlags::CLONE_NEWNET).expect("the sandbox could do so as well");
            ip("link set lo up");
            ready.send(own_namespace()).expect("the test waits");
            for job in inbox {
                job();
            }
        });
        Self { jobs, path: path.recv_timeout(DEADLINE).expect("the thread says where it is") }
    }

    pub(crate) fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        let (done, result) = mpsc::channel();
        let job = move || {
            // The test has given up where nobody listens.
            let _ = done.send(job());
        };
        self.jobs.send(Box::new(job)).expect("the thread lives as long as the test");
        result.recv_timeout(DEADLINE).expect("the job does not panic and ends in time")
    }
}

/// Path of the network namespace of the calling thread.
pub(crate) fn own_namespace() -> String {
    format!("/proc/{}/task/{}/ns/net", std::process::id(), rustix::thread::gettid().as_raw_nonzero())
}

/// Tries until something holds that nothing announces.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + 2 * DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A Service with ports of one name each, for plans in tests.
pub(crate) struct Demo {
    pub(crate) service: Service,
    pub(crate) slice: Slice,
}

impl Demo {
    pub(crate) fn new(address: [u8; 4], protocol: Protocol, port: u16, target: u16) -> Self {
        let name = ServiceName::new("default", "demo");
        let port_name: Arc<str> = "main".into();
        let service = Service {
            cluster_ips: vec![address.into()],
            ports: vec![ServicePort { name: port_name.clone(), protocol, port, node_port: None }],
            ..Service::named(name.clone())
        };
        let slice = Slice { service: name, ports: vec![(port_name, protocol, target)], endpoints: vec![] };
        Self { service, slice }
    }

    pub(crate) fn endpoints(&mut self, addresses: &[[u8; 4]]) -> &mut Self {
        let endpoint = |address: &[u8; 4]| Endpoint::ready((*address).into());
        self.slice.endpoints = addresses.iter().map(endpoint).collect();
        self
    }

    pub(crate) fn plan(&self) -> ServicePlan {
        plan_service(&self.service, [&self.slice].into_iter(), &NodeIdentity::new("node"))
    }
}

/// A datapath at the sandbox's sockets, and its table of Services.
pub(crate) fn open(sandbox: &Sandbox) -> (Datapath, Table) {
    let mut datapath = Datapath::open(&sandbox.config()).expect("the datapath opens");
    let table = table_of(&mut datapath);
    (datapath, table)
}

/// The Services that a datapath's maps hold.
pub(crate) fn table_of(datapath: &mut Datapath) -> Table {
    let (maps, limits) = datapath.service_maps();
    Table::adopt(maps, limits).expect("the maps can be read")
}

/// Puts a Service in force.
pub(crate) fn apply(datapath: &mut Datapath, table: &mut Table, demo: &Demo) {
    let errors = table.apply(datapath.service_maps().0, &demo.plan());
    assert!(errors.is_empty(), "{errors:?}");
}

/// How often a verdict was given.
pub(crate) fn count(datapath: &Datapath, reason: Reason) -> u64 {
    let reasons = datapath.reasons().expect("counters can be read");
    reasons.iter().find(|(found, _)| *found == reason).map_or(0, |(_, count)| *count)
}

pub(crate) fn at(address: [u8; 4], port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address.into(), port)
}

/// Servers that tell each client under which address they see it.
pub(crate) fn serve_tcp(address: SocketAddrV4) {
    let listener = TcpListener::bind(address).expect("a server's address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Ok(IpAddr::V4(client)) = stream.peer_addr().map(|peer| peer.ip()) else { return };
            // A client that went away is its own business.
            let _ = stream.write_all(&client.octets());
        }
    });
}

pub(crate) fn serve_udp(address: SocketAddrV4) {
    let socket = UdpSocket::bind(address).expect("a server's address");
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let IpAddr::V4(seen) = client.ip() else { return };
            if socket.send_to(&seen.octets(), client).is_err() {
                return;
            }
        }
    });
}

pub(crate) fn ask_tcp(server: SocketAddrV4) -> Result<[u8; 4], ErrorKind> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&server.into(), DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    ask().map_err(|error| error.kind())
}

pub(crate) fn ask_udp(server: SocketAddrV4) -> Result<[u8; 4], ErrorKind> {
    let ask = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.connect(server)?;
        socket.send(b"?")?;
        let mut answer = [0; 4];
        socket.recv(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    ask().map_err(|error| error.kind())
}
