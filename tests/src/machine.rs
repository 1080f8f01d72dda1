//! What a cluster could leave on a machine: taken before and after, what differs is [`Snapshot::changes`].

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Names of everything in the kernel and on disk that pith makes.
#[derive(Debug)]
pub struct Snapshot {
    interfaces: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    pins: BTreeSet<String>,
    programs: BTreeSet<u32>,
    processes: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Snapshot {
    /// What is there that was not `before`, and what is not that was. Programs and processes that have gone since
    /// are no loss: they were others', or on their way out.
    pub fn changes(&self, before: &Self) -> Vec<String> {
        let kept = [
            (&self.interfaces, &before.interfaces),
            (&self.namespaces, &before.namespaces),
            (&self.mounts, &before.mounts),
            (&self.cgroups, &before.cgroups),
            (&self.pins, &before.pins),
            (&self.files, &before.files),
        ];
        let new = |now: &BTreeSet<String>, before: &BTreeSet<String>| -> Vec<String> {
            now.difference(before).map(|name| format!("left: {name}")).collect()
        };
        let gone = |now: &BTreeSet<String>, before: &BTreeSet<String>| -> Vec<String> {
            before.difference(now).map(|name| format!("gone: {name}")).collect()
        };
        let mut changes: Vec<String> = kept
            .into_iter()
            .flat_map(|(now, before)| [new(now, before), gone(now, before)])
            .flatten()
            .collect();
        changes.extend(new(&self.processes, &before.processes));
        changes.extend(self.programs.difference(&before.programs).map(|id| format!("left: program {id}")));
        changes
    }

    pub fn take() -> Self {
        Self {
            interfaces: names(Path::new("/sys/class/net")),
            namespaces: names(Path::new("/run/netns")),
            mounts: mounts(),
            cgroups: cgroups(),
            pins: below(Path::new("/sys/fs/bpf"), 4),
            programs: aya::programs::loaded_programs()
                .filter_map(|info| info.ok().map(|info| info.id()))
                .collect(),
            processes: processes(),
            files: ["/run/pith", "/var/lib"].iter().flat_map(|path| below(Path::new(path), 1)).collect(),
        }
    }
}

fn names(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}

/// Paths below a folder, `depth` levels deep.
fn below(folder: &Path, depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries.filter_map(Result::ok) {
        found.insert(entry.path().display().to_string());
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path(), depth - 1));
        }
    }
    found
}

fn mounts() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mounts").expect("proc is mounted");
    table.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect()
}

/// cgroups of pith's, in every hierarchy. Others' come and go as they like.
fn cgroups() -> BTreeSet<String> {
    let root = Path::new("/sys/fs/cgroup");
    below(root, 2).into_iter().filter(|path| path.contains("/pith-")).collect()
}

/// Command names of pith's processes with their pids. A zombie has given back everything but its number, and when
/// that goes is up to the machine's pid 1, so it does not count.
fn processes() -> BTreeSet<String> {
    let pids = names(Path::new("/proc")).into_iter().filter(|name| name.parse::<u32>().is_ok());
    pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // "PID (NAME) STATE …", proc_pid_stat(5)
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let zombie = rest.trim_start().starts_with('Z');
        (name.starts_with("pith") && !zombie).then(|| format!("{pid} {name}"))
    })
    // The tests themselves are pith's too, but no cluster's.
    .filter(|process| !process.starts_with(&format!("{} ", std::process::id())))
    .collect()
}
