//! Questions to the machine that several commands ask.

use anyhow::{Result, bail};

/// Commands that change namespaces, cgroups or programs start with this.
pub(crate) fn require_root(command: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!("`pith {command}` sets up namespaces, cgroups and eBPF programs and needs root: run it with sudo")
}

/// The host's name, by which a node is known unless another is given.
pub(crate) fn hostname() -> Result<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    if name.is_empty() {
        bail!("this host has no name: give one with --node-name");
    }
    Ok(name)
}
