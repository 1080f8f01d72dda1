//! The namespaces of a process, and which other processes are in them.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

/// Kinds as files of `/proc/<pid>/ns` name them.
const KINDS: [&str; 8] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"];

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Namespace {
    pub(super) kind: &'static str,
    pub(super) inode: u64,
    /// The one that this command runs in: the container does not have it to itself.
    pub(super) host: bool,
    /// Processes that are in it too.
    pub(super) others: Vec<Process>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) name: String,
}

/// Of a process that is there; one that is not has none.
pub(super) fn of(pid: i32) -> Vec<Namespace> {
    let everybody = everybody();
    let inode = |whose: &str, kind: &str| -> Option<u64> {
        read_inode(&fs::read_link(format!("/proc/{whose}/ns/{kind}")).ok()?.to_string_lossy())
    };
    let namespace = |kind: &'static str| {
        let own = inode(&pid.to_string(), kind)?;
        let host = inode("self", kind) == Some(own);
        // Nearly all processes of the machine: they tell nothing.
        let others = if host { Vec::new() } else { together(&everybody, kind, own, pid) };
        Some(Namespace { kind, inode: own, host, others })
    };
    KINDS.into_iter().filter_map(namespace).collect()
}

/// `net:[4026531840]`.
fn read_inode(link: &str) -> Option<u64> {
    link.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

type Inodes = BTreeMap<&'static str, u64>;

/// Every process with its namespaces. Those that end meanwhile are left out.
fn everybody() -> Vec<(Process, Inodes)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned();
        let inode = |kind: &'static str| {
            let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
            Some((kind, read_inode(&link.to_string_lossy())?))
        };
        Some((Process { pid, name }, KINDS.into_iter().filter_map(inode).collect()))
    })
    .collect()
}

fn together(everybody: &[(Process, Inodes)], kind: &str, inode: u64, except: i32) -> Vec<Process> {
    let there = everybody
        .iter()
        .filter(|(process, inodes)| inodes.get(kind) == Some(&inode) && process.pid != except);
    there.map(|(process, _)| process.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_table() {
        for (link, expect) in
            [("net:[4026531840]", Some(4_026_531_840)), ("net:[]", None), ("net:[x]", None), ("", None)]
        {
            assert_eq!(read_inode(link), expect, "{link:?}");
        }
    }

    #[test]
    fn who_is_where() {
        let process = |pid, name: &str, net, ipc| {
            (Process { pid, name: name.to_owned() }, Inodes::from([("net", net), ("ipc", ipc)]))
        };
        let everybody = [process(1, "podd", 7, 8), process(2, "web", 7, 9), process(3, "other", 1, 8)];
        let names = |kind, inode, except| -> Vec<String> {
            together(&everybody, kind, inode, except).into_iter().map(|process| process.name).collect()
        };
        assert_eq!(names("net", 7, 2), ["podd"]);
        assert_eq!(names("ipc", 8, 1), ["other"]);
        assert_eq!(names("ipc", 9, 2), Vec::<String>::new());
    }

    #[test]
    fn this_process_is_in_the_hosts() {
        let own = of(std::process::id().cast_signed());
        assert!(own.len() >= 7 && own.iter().all(|namespace| namespace.host), "{own:?}");
    }
}
