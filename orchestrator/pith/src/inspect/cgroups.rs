//! The cgroups of a process in every hierarchy, with the values of their files.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

/// Longest value that is read, in bytes; a list of processes can be longer.
const VALUE_MAX: u64 = 64 * 1024;

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Cgroup {
    /// `memory`, `cpu,cpuacct`, …; empty is version 2.
    pub(super) controllers: String,
    pub(super) dir: PathBuf,
    /// None at a hierarchy's root: nothing there is the process's alone.
    pub(super) files: Vec<Value>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Value {
    pub(super) name: String,
    pub(super) value: String,
}

/// Of a process that is there.
pub(super) fn of(pid: i32) -> Result<Vec<Cgroup>> {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let dirs = directories(&text, &mounts);
    let cgroup = |(controllers, dir): (String, PathBuf)| {
        let files = if is_root(&dir) { Vec::new() } else { files(&dir) };
        Cgroup { controllers, dir, files }
    };
    Ok(dirs.into_iter().map(cgroup).collect())
}

/// The version 2 cgroup alone: where eBPF programs are attached.
pub(super) fn unified(cgroups: &[Cgroup]) -> Option<&Path> {
    cgroups.iter().find(|cgroup| cgroup.controllers.is_empty()).map(|cgroup| cgroup.dir.as_path())
}

/// Controllers and directory for each line of `/proc/<pid>/cgroup` (cgroups(7)) whose hierarchy is mounted here.
fn directories(text: &str, mountinfo: &str) -> Vec<(String, PathBuf)> {
    let found = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let root = mountinfo.lines().find_map(|line| root(line, controllers))?;
        Some((controllers.to_owned(), root.join(path.trim_start_matches('/'))))
    });
    found.collect()
}

/// The mount point of a line if it is the hierarchy of these controllers.
fn root(line: &str, controllers: &str) -> Option<PathBuf> {
    let (mount, system) = line.split_once(" - ")?;
    let (kind, rest) = system.split_once(' ')?;
    let options = rest.split_once(' ')?.1;
    let named = controllers.split(',').next().unwrap_or_default();
    let is_it = match kind {
        "cgroup2" => controllers.is_empty(),
        "cgroup" => !controllers.is_empty() && options.split(',').any(|option| option == named),
        _ => false,
    };
    is_it.then(|| mount.split(' ').nth(4).map(PathBuf::from)).flatten()
}

/// Whether a hierarchy begins at a directory, as another file system than what is above.
fn is_root(dir: &Path) -> bool {
    let device = |path: &Path| path.metadata().map(|about| about.dev()).ok();
    dir.parent().and_then(device) != device(dir)
}

/// The files that can be read, by name. One that cannot be (write-only, or of a device that is not there) has no value.
fn files(dir: &Path) -> Vec<Value> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<Value> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .filter_map(|entry| {
            let mut text = String::new();
            fs::File::open(entry.path()).ok()?.take(VALUE_MAX).read_to_string(&mut text).ok()?;
            Some(Value { name: entry.file_name().into_string().ok()?, value: text.trim_end().to_owned() })
        })
        .collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_a_hybrid_host() {
        let mounts = "31 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup rw\n\
                      33 31 0:28 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n\
                      34 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        let text = "5:name=other:/x\n3:cpu,cpuacct:/pod/c\n2:memory:/pod/c\n0::/pod/c\n";
        let expect = [
            ("cpu,cpuacct", "/sys/fs/cgroup/cpu/pod/c"),
            ("memory", "/sys/fs/cgroup/memory/pod/c"),
            ("", "/sys/fs/cgroup/unified/pod/c"),
        ];
        let expect = expect.map(|(controllers, dir)| (controllers.to_owned(), PathBuf::from(dir)));
        assert_eq!(directories(text, mounts), expect);
    }

    #[test]
    fn files_are_read_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, value) in [("pids.max", "max\n"), ("memory.max", "1\n")] {
            fs::write(dir.path().join(name), value).expect("written");
        }
        fs::create_dir(dir.path().join("below")).expect("made");
        let value = |name: &str, value: &str| Value { name: name.to_owned(), value: value.to_owned() };
        assert!(!is_root(dir.path()) && is_root(Path::new("/proc")));
        assert_eq!(files(dir.path()), [value("memory.max", "1"), value("pids.max", "max")]);
    }
}
