//! Where a replica's process lives: its session, network namespace and mount namespace. Set before any thread
//! starts, since threads and children inherit them. And the one mount that it makes outside of them.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

/// Folder in which `ip netns` and pith keep named network namespaces.
const NETNS_DIR: &str = "/run/netns";

/// Of the kernel's `include/uapi/linux/magic.h`: what an initramfs is on.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Below the run folder stands what must not reach a disk: files of Secrets, tokens, environments. Where it is on one
/// (`/run` of a machine without systemd), a tmpfs is mounted there, in the namespace that this process was started in:
/// the next process finds it again with everything in it, and `pith down` takes it away.
pub(crate) fn keep_pods_in_memory(run_dir: &Path) -> Result<()> {
    let pods = run_dir.join("pods");
    let failed = |what: &str| format!("{what} {}", pods.display());
    fs::create_dir_all(&pods).with_context(|| failed("create"))?;
    let on = statfs(&pods).with_context(|| failed("look at"))?.filesystem_type();
    if on == TMPFS_MAGIC || on == RAMFS_MAGIC {
        return Ok(());
    }
    if fs::read_dir(&pods).with_context(|| failed("read"))?.next().is_some() {
        tracing::warn!(folder = %pods.display(), "pods run from a disk: it stays so until none is left at a start");
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let tmpfs = |options: &str| mount(Some("pith"), &pods, Some("tmpfs"), flags, Some(options));
    // `noswap` is of Linux 6.4; swap may be a disk as well.
    tmpfs("mode=0700,noswap").or_else(|_| tmpfs("mode=0700")).with_context(|| failed("mount a tmpfs at"))
}

/// Leaves the terminal's session, enters the named network namespace if there is one, and gets a mount namespace
/// of its own, so that no mount for a pod ever shows in the host's. Returns the network namespace it came from.
pub(crate) fn enter(netns: Option<&str>) -> Result<OwnedFd> {
    let came_from = File::open("/proc/thread-self/ns/net").context("open the network namespace")?;
    // A process group's leader cannot make a session; then whoever started it gave it a group of its own already.
    match rustix::process::setsid() {
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error).context("make a session"),
    }
    if let Some(name) = netns {
        let path = Path::new(NETNS_DIR).join(name);
        let namespace =
            File::open(&path).with_context(|| format!("--netns {name}: open {}", path.display()))?;
        setns(&namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("--netns {name}: enter it"))?;
    }
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    // What the host mounts later is seen here (volumes on hostPath), nothing goes the other way.
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).context("keep mounts from the host")?;
    Ok(came_from.into())
}
