//! Kernel parameters of a network namespace that forwards for pods.
//!
//! A file below /proc/sys/net belongs to the namespace of the thread that opens it
//! (`net_ctl_header_lookup`, net/sysctl_net.c).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Parameter, value, and why.
const FORWARDING: &[(&str, &str)] = &[
    // Pods reach the uplink and each other by the replica's routes.
    ("net/ipv4/ip_forward", "1"),
    // An answer may come back by another interface than the question left by, once eBPF redirects
    // packets past the host's stack; `default` also holds for the interfaces of pods yet to come.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // Two pods of a replica see each other by way of it: that is the plan, not a detour to report.
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

/// The same for IPv6. Where a host itself forwards, it takes no advertisements of routers any more
/// (Documentation/networking/ip-sysctl.rst): its own addresses and routes must be configured.
const FORWARDING6: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
];

/// For interfaces that are yet to come: their addresses are given and nobody else's, so nobody is asked whether
/// he has them, and no router.
const STILL: &[(&str, &str)] =
    &[("net/ipv6/conf/default/accept_ra", "0"), ("net/ipv6/conf/default/accept_dad", "0")];

/// A parameter that could not be set.
#[derive(Debug, thiserror::Error)]
#[error("set {} to {value}", path.display())]
pub struct SysctlError {
    /// The file below /proc/sys.
    pub path: PathBuf,
    /// What was to be written.
    pub value: &'static str,
    /// Why it was not.
    #[source]
    pub source: io::Error,
}

/// Makes the calling thread's network namespace forward. What is right already is not written, so that
/// a read-only /proc/sys does no harm where the values were set beforehand.
pub(crate) fn enable_forwarding() -> Result<(), SysctlError> {
    set(FORWARDING)
}

/// The same for IPv6.
pub(crate) fn enable_forwarding6() -> Result<(), SysctlError> {
    set(FORWARDING6)
}

/// Makes interfaces that are made in the calling thread's network namespace from now on ask nobody.
pub(crate) fn still() -> Result<(), SysctlError> {
    set(STILL)
}

/// Whether the kernel has IPv6 and was not told to do without (`ipv6.disable=1`).
pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").exists()
}

/// Gives the interface IPv6 where the host's interfaces begin without it.
pub(crate) fn allow6(interface: &str) -> Result<(), SysctlError> {
    set(&[(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "0")])
}

fn set(parameters: &[(&str, &'static str)]) -> Result<(), SysctlError> {
    for &(name, value) in parameters {
        let path = PathBuf::from("/proc/sys").join(name);
        let write = || match fs::read_to_string(&path) {
            Ok(now) if now.trim() == value => Ok(()),
            _ => fs::write(&path, value),
        };
        if let Err(source) = write() {
            return Err(SysctlError { path, value, source });
        }
    }
    Ok(())
}
