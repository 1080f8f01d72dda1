//! Kernel parameters of a network namespace that forwards for pods.
//!
//! A file below /proc/sys/net belongs to the namespace of the thread that opens it
//! (`net_ctl_header_lookup`, net/sysctl_net.c).

use std::{fs, io, path::PathBuf};

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
    for &(name, value) in FORWARDING {
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
