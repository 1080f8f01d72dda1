//! Where a replica's process lives: its session, network namespace and mount namespace. Set before any thread
//! starts, since threads and children inherit them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Folder in which `ip netns` and pith keep named network namespaces.
const NETNS_DIR: &str = "/run/netns";

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
