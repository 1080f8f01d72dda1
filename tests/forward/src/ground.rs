//! The ground of one contender: a node with a pod on each side and the world outside, in network namespaces of
//! their own.
//!
//! ```text
//!  outside 172.30.0.1 ───── eth0 172.30.0.2 ┐
//!                                           node ── pod1 10.244.2.1 ───── backends 10.244.2.2 …
//!  client 10.244.1.2 ────── pod0 10.244.1.1 ┘
//! ```
//! Invariant: nothing here outlives the process. Namespaces have no names, only descriptors, and take their
//! interfaces along; the BPF file system is mounted in a mount namespace of this process's own. The one thing with a
//! name is the cgroup: it is removed when dropped, and one that a killed run left is removed by the next.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 2);
/// Pods behind every Service; all answer in the same namespace.
pub(crate) const BACKENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 2, 2), Ipv4Addr::new(10, 244, 2, 3)];
/// Name of the node's interface to the world.
pub(crate) const UPLINK: &str = "eth0";
/// Name of the node's interface to the backends.
pub(crate) const BACKEND_LINK: &str = "pod1";

/// How the names of the node's interfaces to pods begin.
pub(crate) const POD_PREFIX: &str = "pod";

const CGROUP_PREFIX: &str = "pith-forward-";
const DEADLINE: Duration = Duration::from_secs(10);

/// Cgroups made by this process.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A network namespace without a name.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: OwnedFd,
}

impl Namespace {
    pub(crate) fn new() -> Result<Self> {
        let made = thread::scope(|scope| {
            let thread = scope.spawn(|| -> std::io::Result<File> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                File::open("/proc/thread-self/ns/net")
            });
            thread.join().expect("the thread only makes system calls")
        });
        let namespace = Self { file: made.context("make a network namespace")?.into() };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Moves the calling thread inside. It stays there until it ends.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).context("enter a network namespace")
    }

    /// Runs `work` inside, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` inside.
    pub(crate) fn ip(&self, arguments: &str) -> Result<()> {
        self.run(|| ip(arguments))
    }

    /// A path by which `ip` finds it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .context("run `ip` (Debian: apt-get install iproute2)")?;
    if !output.status.success() {
        bail!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A node and what is around it.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) client: Namespace,
    pub(crate) node: Namespace,
    pub(crate) backends: Namespace,
    pub(crate) outside: Namespace,
}

impl Ground {
    pub(crate) fn new() -> Result<Self> {
        let ground = Self {
            client: Namespace::new()?,
            node: Namespace::new()?,
            backends: Namespace::new()?,
            outside: Namespace::new()?,
        };
        let node = &ground.node;
        for (name, peer) in [("pod0", &ground.client), (BACKEND_LINK, &ground.backends)] {
            node.ip(&format!("link add {name} type veth peer name eth0 netns {}", peer.path()))?;
        }
        node.ip(&format!("link add {UPLINK} type veth peer name up0 netns {}", ground.outside.path()))?;
        node.run(|| {
            for command in [
                "address add 10.244.1.1/24 dev pod0",
                "address add 10.244.2.1/24 dev pod1",
                "address add 172.30.0.2/24 dev eth0",
                "link set pod0 up",
                "link set pod1 up",
                "link set eth0 up",
                "route add default via 172.30.0.1",
            ] {
                ip(command)?;
            }
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("let the node forward")
        })?;
        ground.client.ip("address add 10.244.1.2/24 dev eth0")?;
        ground.client.ip("link set eth0 up")?;
        ground.client.ip("route add default via 10.244.1.1")?;
        for address in BACKENDS {
            ground.backends.ip(&format!("address add {address}/24 dev eth0"))?;
        }
        ground.backends.ip("link set eth0 up")?;
        ground.backends.ip("route add default via 10.244.2.1")?;
        ground.outside.ip("address add 172.30.0.1/24 dev up0")?;
        ground.outside.ip("link set up0 up")?;
        // Pods can be reached from outside without a Service too: that is what the others are compared with.
        ground.outside.ip("route add 10.244.0.0/16 via 172.30.0.2")?;
        for namespace in [&ground.client, &ground.outside] {
            namespace.run(roomy_ports)?;
        }
        Ok(ground)
    }
}

impl Ground {
    /// Does something; how many packets went to the backends meanwhile.
    pub(crate) fn count_delivered<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
        let count = || self.node.run(|| sent_at(BACKEND_LINK));
        let before = count()?;
        let done = work()?;
        Ok((done, count()? - before))
    }
}

/// Packets that an interface of the calling thread's network namespace has sent.
fn sent_at(interface: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").context("read /proc/thread-self/net/dev")?;
    let numbers = text.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    let sent = numbers.and_then(|numbers| numbers.split_whitespace().nth(9)?.parse().ok());
    sent.with_context(|| format!("{interface} is not among the interfaces"))
}

/// So many short connections are made to one address that the usual range would run dry.
fn roomy_ports() -> Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 65000").context("widen the range of ports")
}

/// A thread that lives in a place (a namespace, maybe a cgroup) and does there what it is told.
pub(crate) struct Worker {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Worker {
    pub(crate) fn new(namespace: &Namespace, cgroup: Option<&Cgroup>) -> Result<Self> {
        let file = namespace.file.try_clone().context("copy a descriptor")?;
        let join = cgroup.map(|cgroup| cgroup.folder.clone());
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, entered) = mpsc::channel();
        let thread = thread::spawn(move || {
            let place = Namespace { file };
            let moved = place.enter().and_then(|()| join.as_deref().map_or(Ok(()), join_cgroup));
            let lives = moved.is_ok();
            if ready.send(moved).is_err() || !lives {
                return;
            }
            for job in inbox {
                job();
            }
        });
        entered.recv_timeout(DEADLINE).context("a worker does not start")??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Waits for `job`, which is bounded by itself.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.start(job)?.recv().context("a worker has ended")?
    }

    /// Has `job` done; its result comes through the channel.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<mpsc::Receiver<Result<T>>> {
        let (done, result) = mpsc::channel();
        let job = move || {
            // Nobody listens only where the run is being given up.
            let _ = done.send(job());
        };
        let jobs = self.jobs.as_ref().expect("it is taken away by drop alone");
        jobs.send(Box::new(job)).map_err(|_| anyhow!("a worker has ended"))?;
        Ok(result)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// A cgroup whose threads' sockets see pith's Services.
#[derive(Debug)]
pub(crate) struct Cgroup {
    parent: PathBuf,
    pub(crate) folder: PathBuf,
}

impl Cgroup {
    pub(crate) fn new() -> Result<Self> {
        let parent = own_cgroup()?;
        remove_leftovers(&parent);
        // Several may be alive in one process.
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("{CGROUP_PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        let cgroup = Self { parent, folder };
        // Threaded, so that one thread alone can be in it and not the whole program (cgroups(7)).
        fs::write(cgroup.folder.join("cgroup.type"), "threaded").context("make the cgroup threaded")?;
        Ok(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let begin = Instant::now();
        loop {
            for thread in fs::read_to_string(self.folder.join("cgroup.threads")).unwrap_or_default().lines() {
                // A thread that has just ended cannot be moved, and leaves by itself.
                let _ = fs::write(self.parent.join("cgroup.threads"), thread);
            }
            match fs::remove_dir(&self.folder) {
                Ok(()) => return,
                Err(error) if error.kind() == ErrorKind::ResourceBusy && begin.elapsed() < DEADLINE => {
                    thread::yield_now();
                }
                Err(error) => {
                    eprintln!("{} stays: {error}", self.folder.display());
                    return;
                }
            }
        }
    }
}

fn join_cgroup(folder: &Path) -> Result<()> {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    fs::write(folder.join("cgroup.threads"), thread).with_context(|| format!("join {}", folder.display()))
}

/// Cgroups of runs that were killed.
fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix(CGROUP_PREFIX));
        let pid = name.and_then(|name| name.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // It cannot be removed while anything is in it, and then it is not left over.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The v2 cgroup of this process.
fn own_cgroup() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let path =
        text.lines().find_map(|line| line.strip_prefix("0::/")).context("this machine has no cgroup v2")?;
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .iter()
        .map(|mount| Path::new(mount).join(path))
        .find(|folder| folder.join("cgroup.threads").exists())
        .context("the cgroup v2 hierarchy is not mounted")
}

/// A BPF file system that nobody else sees.
#[derive(Debug)]
pub(crate) struct BpfFolder {
    folder: tempfile::TempDir,
}

impl BpfFolder {
    /// The calling thread must have mounts of its own ([`own_mounts`]).
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("pith-forward-").tempdir().context("make a folder")?;
        mount("bpf", folder.path(), "bpf", MountFlags::empty(), None).context("mount a BPF file system")?;
        Ok(Self { folder })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("node")
    }
}

impl Drop for BpfFolder {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.folder.path(), UnmountFlags::DETACH) {
            eprintln!("unmount {}: {error}", self.folder.path().display());
        }
    }
}

/// Gives the process mounts of its own, which end with it. To be called before the first other thread.
pub(crate) fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("mounts of its own (this needs root)")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("keep mounts private")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a run could leave on the machine.
    fn seen() -> (Vec<PathBuf>, String) {
        let names = |folder: PathBuf| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let mut all = names("/sys/class/net".into());
        all.extend(names("/run/netns".into()));
        let ours = own_cgroup().map(names).unwrap_or_default();
        let marked = |path: &PathBuf| {
            path.to_string_lossy().contains(&format!("{CGROUP_PREFIX}{}", std::process::id()))
        };
        all.extend(ours.into_iter().filter(marked));
        all.sort();
        (all, fs::read_to_string("/proc/thread-self/mounts").expect("proc is mounted"))
    }

    #[test]
    fn a_ground_leaves_nothing() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a_ground_leaves_nothing: not root");
            return;
        }
        let tested = thread::spawn(|| -> Result<()> {
            own_mounts()?;
            let before = seen();
            // As a panic would: whatever order things are dropped in.
            let unwound = std::panic::catch_unwind(|| -> Result<()> {
                let (ground, cgroup, folder) = (Ground::new()?, Cgroup::new()?, BpfFolder::new()?);
                let worker = Worker::new(&ground.client, Some(&cgroup))?;
                let joined = worker.run(|| Ok(fs::read_to_string("/proc/thread-self/cgroup")?))?;
                assert!(joined.contains(CGROUP_PREFIX), "{joined}");
                assert!(cgroup.folder.exists() && folder.folder.path().exists());
                std::panic::panic_any("in the middle of a run");
            });
            match unwound {
                Ok(failed) => return failed,
                Err(panic) => assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the middle of a run")),
            }
            assert_eq!(seen(), before);
            Ok(())
        });
        match tested.join().expect("no assertion failed") {
            Ok(()) => {}
            Err(error) => eprintln!("SKIPPED: a_ground_leaves_nothing: {error:#}"),
        }
    }
}
