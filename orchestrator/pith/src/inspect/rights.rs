//! What a process may do: identity, capabilities, seccomp, no_new_privs (proc_pid_status(5)).

use anyhow::{Context, Result};
use pith_container::capability;
use serde::Serialize;

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rights {
    /// Real, effective, saved, file system: as the host counts users.
    pub(super) uids: Vec<u32>,
    pub(super) gids: Vec<u32>,
    pub(super) groups: Vec<u32>,
    pub(super) capabilities: Vec<Set>,
    pub(super) no_new_privileges: bool,
    pub(super) seccomp: &'static str,
    pub(super) seccomp_filters: u32,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) capabilities: Vec<String>,
}

const SETS: [(&str, &str); 5] = [
    ("CapEff", "effective"),
    ("CapPrm", "permitted"),
    ("CapBnd", "bounding"),
    ("CapInh", "inheritable"),
    ("CapAmb", "ambient"),
];

/// From the text of `/proc/<pid>/status`.
pub(super) fn parse(status: &str) -> Result<Rights> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).with_context(|| format!("/proc/PID/status has no {name}"))
    };
    let numbers = |name: &str| -> Result<Vec<u32>> {
        let numbers = field(name)?.split_whitespace().map(str::parse);
        numbers.collect::<Result<_, _>>().with_context(|| format!("{name} in /proc/PID/status"))
    };
    let set = |(key, name): (&str, &'static str)| -> Result<Set> {
        let mask =
            u64::from_str_radix(field(key)?, 16).with_context(|| format!("{key} in /proc/PID/status"))?;
        Ok(Set { name, capabilities: capability::names(mask) })
    };
    let one = |name: &str| numbers(name).map(|numbers| numbers.first().copied().unwrap_or(0));
    Ok(Rights {
        uids: numbers("Uid")?,
        gids: numbers("Gid")?,
        groups: numbers("Groups")?,
        capabilities: SETS.into_iter().map(set).collect::<Result<_>>()?,
        no_new_privileges: one("NoNewPrivs")? == 1,
        seccomp: match one("Seccomp")? {
            0 => "none",
            1 => "strict",
            _ => "filter",
        },
        // Since Linux 5.9.
        seccomp_filters: one("Seccomp_filters").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read() {
        let text = "Name:\tweb\nUid:\t0\t0\t0\t0\nGid:\t5\t5\t5\t5\nGroups:\t1 2 \nCapInh:\t0000000000000000\n\
                    CapPrm:\t0000000000000401\nCapEff:\t0000000000000400\nCapBnd:\t0000000000000401\n\
                    CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let rights = parse(text).expect("complete");
        assert_eq!((rights.gids[0], rights.groups.as_slice()), (5, [1, 2].as_slice()));
        assert_eq!(rights.capabilities[0].capabilities, ["CAP_NET_BIND_SERVICE"]);
        assert_eq!(rights.capabilities[1].capabilities, ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
        assert!(rights.no_new_privileges);
        assert_eq!((rights.seccomp, rights.seccomp_filters), ("filter", 1));
        assert!(parse("Uid:\t0\n").is_err(), "incomplete");
    }
}
