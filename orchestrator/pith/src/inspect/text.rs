//! A picture as people read it.

use std::fmt::{self, Write};

use super::Picture;
use super::cgroups::{Cgroup, Value};
use super::mounts::Mount;
use super::namespaces::{Namespace, Process};
use super::network::{Interface, Program};
use super::rights::Rights;

/// More processes than that are only counted.
const OTHERS_MAX: usize = 6;

pub(super) fn page(picture: &Picture) -> String {
    let mut page = String::new();
    write(&mut page, picture).expect("a String takes any text");
    page
}

fn write(page: &mut String, picture: &Picture) -> fmt::Result {
    writeln!(page, "{}: process {} ({})", picture.container, picture.pid, picture.program)?;
    writeln!(page, "\nNamespaces")?;
    picture.namespaces.iter().try_for_each(|one| namespace(page, one))?;
    writeln!(page, "\nRights")?;
    rights(page, &picture.rights)?;
    writeln!(page, "\nInterfaces")?;
    picture.interfaces.iter().try_for_each(|one| interface(page, one, ""))?;
    picture.other_end.iter().try_for_each(|one| interface(page, one, " (the replica's end)"))?;
    writeln!(page, "\nPrograms of its cgroup and those above")?;
    picture.cgroup_programs.iter().try_for_each(|one| program(page, one))?;
    picture.cgroups.iter().try_for_each(|one| cgroup(page, one))?;
    writeln!(page, "\nMounts")?;
    picture.mounts.iter().try_for_each(|one| mount(page, one))
}

fn namespace(page: &mut String, namespace: &Namespace) -> fmt::Result {
    let Namespace { kind, inode, host, others } = namespace;
    write!(page, "  {kind:<7} {inode}  ")?;
    let named = |others: &[Process]| {
        others
            .iter()
            .map(|process| format!("{} {}", process.pid, process.name))
            .collect::<Vec<_>>()
            .join(", ")
    };
    match (host, others.as_slice()) {
        (true, _) => writeln!(page, "the host's"),
        (false, []) => writeln!(page, "its own"),
        (false, others) if others.len() <= OTHERS_MAX => writeln!(page, "together with {}", named(others)),
        (false, others) => {
            let more = others.len() - OTHERS_MAX;
            writeln!(page, "together with {} and {more} more", named(&others[..OTHERS_MAX]))
        }
    }
}

fn rights(page: &mut String, rights: &Rights) -> fmt::Result {
    let Rights { uids, gids, groups, capabilities, no_new_privileges, seccomp, seccomp_filters } = rights;
    writeln!(page, "  uids {uids:?}, gids {gids:?}, groups {groups:?}")?;
    for set in capabilities {
        let names = if set.capabilities.is_empty() { "none".to_owned() } else { set.capabilities.join(" ") };
        writeln!(page, "  {:<12} {names}", set.name)?;
    }
    writeln!(page, "  seccomp {seccomp}, {seccomp_filters} filters")?;
    writeln!(page, "  no_new_privs {}", if *no_new_privileges { "set" } else { "not set" })
}

fn interface(page: &mut String, interface: &Interface, note: &str) -> fmt::Result {
    let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
    writeln!(page, "  {} {}{note}  {}", interface.index, interface.name, addresses.join(" "))?;
    interface.programs.iter().try_for_each(|one| program(page, one))
}

fn program(page: &mut String, Program { hook, id, name }: &Program) -> fmt::Result {
    writeln!(page, "    {hook:<24} {name} (id {id})")
}

fn cgroup(page: &mut String, Cgroup { controllers, dir, files }: &Cgroup) -> fmt::Result {
    let title = if controllers.is_empty() { "version 2" } else { controllers };
    writeln!(page, "\nCgroup, {title}: {}", dir.display())?;
    if files.is_empty() {
        writeln!(page, "  the root: nothing here is limited or counted for this process alone")?;
    }
    for Value { name, value } in files {
        match value.split_once('\n') {
            None => writeln!(page, "  {name:<36} {value}")?,
            Some((first, rest)) => {
                writeln!(page, "  {name:<36} {first} … and {} lines", rest.lines().count())?;
            }
        }
    }
    Ok(())
}

fn mount(page: &mut String, mount: &Mount) -> fmt::Result {
    let Mount { depth, target, kind, source, part, options, propagation } = mount;
    let part = part.as_ref().map(|part| format!("[{part}]")).unwrap_or_default();
    let travel = if propagation.is_empty() { "private".to_owned() } else { propagation.join(" ") };
    let indent = 2 * depth;
    writeln!(page, "  {:indent$}{target}  {kind} {source}{part}  {}  {travel}", "", options.join(","))
}

#[cfg(test)]
mod tests {
    use super::super::{mounts, rights};
    use super::*;

    #[test]
    fn a_page() {
        let process = |pid| Process { pid, name: "podd".to_owned() };
        let own = |kind, inode, others| Namespace { kind, inode, host: false, others };
        let status = "Uid:\t0 0 0 0\nGid:\t0 0 0 0\nGroups:\t\nCapInh:\t0\nCapPrm:\t400\nCapEff:\t400\nCapBnd:\t400\n\
                      CapAmb:\t0\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let value = |name: &str, value: &str| Value { name: name.to_owned(), value: value.to_owned() };
        let picture = Picture {
            container: "web/app".to_owned(),
            pid: 7,
            program: "web".to_owned(),
            namespaces: vec![
                Namespace { kind: "user", inode: 1, host: true, others: vec![] },
                own("mnt", 2, vec![]),
                own("net", 3, vec![process(5)]),
                own("ipc", 4, (1..9).map(process).collect()),
            ],
            rights: rights::parse(status).expect("complete"),
            cgroups: vec![Cgroup {
                controllers: "memory".to_owned(),
                dir: "/sys/fs/cgroup/memory/c".into(),
                files: vec![value("memory.limit_in_bytes", "64"), value("memory.stat", "a 1\nb 2\nc 3")],
            }],
            cgroup_programs: vec![Program {
                hook: "cgroup_inet4_connect",
                id: 9,
                name: "connect4".to_owned(),
            }],
            interfaces: vec![Interface {
                name: "eth0".to_owned(),
                index: 2,
                addresses: vec!["10.0.0.2".parse().expect("an address")],
                programs: vec![],
            }],
            other_end: None,
            mounts: mounts::parse("1 0 0:1 / / rw - overlay overlay rw\n2 1 0:2 / /proc ro - proc proc rw\n"),
        };
        let page = page(&picture);
        for line in [
            "web/app: process 7 (web)",
            "  user    1  the host's",
            "  mnt     2  its own",
            "  net     3  together with 5 podd",
            "6 podd and 2 more",
            "  effective    CAP_NET_BIND_SERVICE",
            "  seccomp filter, 1 filters",
            "  no_new_privs set",
            "  2 eth0  10.0.0.2",
            "    cgroup_inet4_connect     connect4 (id 9)",
            "Cgroup, memory: /sys/fs/cgroup/memory/c",
            "memory.stat                          a 1 … and 2 lines",
            "    /proc  proc proc  ro  private",
        ] {
            assert!(page.contains(line), "{line:?} in\n{page}");
        }
    }
}
