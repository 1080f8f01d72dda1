//! `pith down`: stops a cluster and removes whatever it may have left, in any state, also after SIGKILLs.
//!
//! Every step is tried, and all errors are reported at the end: one thing that does not go away must not keep
//! the others. What is removed is found by the cluster's name, not by records, so nothing can be forgotten.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pith_cgroup::{Hierarchy, remove_tree as remove_cgroup_tree};
use pith_proxy::Datapath;
use rustix::mount::{UnmountFlags, unmount};

use crate::cli::DownArgs;
use crate::cluster::process::{Running, remove_if_there};
use crate::cluster::{BPF_DIR, Cluster};
use crate::machine::require_root;

/// How long a process may take to end by itself.
const STOP_GRACE: Duration = Duration::from_secs(10);

pub(crate) fn run(args: &DownArgs) -> Result<()> {
    require_root("down")?;
    let cluster = Cluster::new(&args.cluster)?;
    let lock = cluster.lock()?;
    // A folder that is not this cluster's is refused before anything is touched; a damaged one is not,
    // since `down` is the way out of that.
    if let Err(error) = cluster.settings()
        && error.to_string().contains("belongs to")
    {
        cluster.remove_lock(lock)?;
        return Err(error);
    }
    let mut failures = stop(&cluster);
    if !args.keep_state {
        failures.extend(remove_state(&cluster).err());
    }
    failures.extend(cluster.remove_lock(lock).err());
    if failures.is_empty() {
        println!("cluster \"{}\" is down", cluster.name);
        return Ok(());
    }
    let lines: Vec<String> = failures.iter().map(|failure| format!("{failure:#}")).collect();
    bail!("cluster \"{}\" is not all gone:\n  {}", cluster.name, lines.join("\n  "))
}

/// Ends the processes and removes everything in the kernel, but no state.
pub(crate) fn stop(cluster: &Cluster) -> Vec<anyhow::Error> {
    let mut failures = Vec::new();
    let mut keep = |outcome: Result<()>| failures.extend(outcome.err());
    keep(stop_processes(cluster));
    // Pods next: their supervisors outlive the replicas on purpose.
    keep(remove_cgroups(cluster));
    keep(remove_pins(cluster));
    keep(remove_network(cluster));
    keep(unmount_below(&cluster.run_dir()));
    keep(remove_tree(&cluster.run_dir()));
    failures
}

/// Replicas and primary are told at once and awaited together.
fn stop_processes(cluster: &Cluster) -> Result<()> {
    let mut running: Vec<Running> = Vec::new();
    let pid_files = match fs::read_dir(cluster.run_dir()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read {}", cluster.run_dir().display())),
    };
    for entry in pid_files {
        let path = entry.with_context(|| format!("read {}", cluster.run_dir().display()))?.path();
        let is_pid_file = path.extension().is_some_and(|extension| extension == "pid");
        if let (true, Some(name)) = (is_pid_file, path.file_stem().and_then(|stem| stem.to_str())) {
            running.extend(cluster.daemon(name).running()?);
        }
    }
    for process in &running {
        process.terminate()?;
    }
    for process in &running {
        process.wait_or_kill(STOP_GRACE)?;
    }
    Ok(())
}

/// Ends every process in them first.
fn remove_cgroups(cluster: &Cluster) -> Result<()> {
    let hierarchy = Arc::new(Hierarchy::detect()?);
    remove_cgroup_tree(&hierarchy, &cluster.cgroup(), STOP_GRACE).context("remove the cgroups")
}

fn remove_network(cluster: &Cluster) -> Result<()> {
    pith_network::topology::remove(&cluster.name).context("remove the network")
}

/// Each replica's datapath, and the gateway, are detached at once; programs and maps go with their last pin.
fn remove_pins(cluster: &Cluster) -> Result<()> {
    match fs::read_dir(cluster.bpf_dir()) {
        Ok(entries) => {
            for entry in entries {
                let folder = entry.with_context(|| format!("read {}", cluster.bpf_dir().display()))?.path();
                Datapath::remove(&folder)?;
            }
            fs::remove_dir(cluster.bpf_dir())
                .with_context(|| format!("remove {}", cluster.bpf_dir().display()))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", cluster.bpf_dir().display())),
    }
    if !cluster.bpffs_note().exists() {
        return Ok(());
    }
    match nothing_pinned() {
        Ok(true) => {
            unmount(BPF_DIR, UnmountFlags::empty()).with_context(|| format!("unmount {BPF_DIR}"))?;
            remove_if_there(&cluster.bpffs_note())
        }
        // Another cluster, or somebody else, has pins there: the last cluster to go unmounts it.
        Ok(false) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("read {BPF_DIR}")),
    }
}

/// The kernel puts iterators for debugging into every bpffs itself: they are nobody's pins.
fn nothing_pinned() -> io::Result<bool> {
    let kernels_own = ["maps.debug", "progs.debug"];
    for entry in fs::read_dir(BPF_DIR)? {
        if !kernels_own.iter().any(|name| entry.as_ref().is_ok_and(|entry| entry.file_name() == *name)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn remove_state(cluster: &Cluster) -> Result<()> {
    for part in ["cluster.json", "kubeconfig", "primary", "replicas", "logs"] {
        remove_tree(&cluster.dir.join(part))?;
    }
    // The folder itself only when nothing else is in it: it may have been the user's before.
    match fs::remove_dir(&cluster.dir) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
            Err(error).with_context(|| format!("remove {}", cluster.dir.display()))
        }
        _ => Ok(()),
    }
}

/// A replica's pods may be on a tmpfs.
fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    for point in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(point).starts_with(dir) {
            // Also where somebody's shell stands in it: it is gone from here, and with the shell for good.
            unmount(point, UnmountFlags::DETACH).with_context(|| format!("unmount {point}"))?;
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    let outcome = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
