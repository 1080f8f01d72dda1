//! The power fails between any two changes to the disk. A child does one thing to a store; before each of its changes
//! what a file system may have kept by then is made beside it, and the store has to work there.
//!
//! A file system promises no more than what was asked for: the bytes that a file had when it was synced, and the names
//! that a folder had when that was. Of the rest it may have kept nothing, or the names alone: with files that are empty,
//! or as long as they were and all zeroes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::libc::user_regs_struct;
use nix::unistd::Pid;
use pith_image::{Auth, Store};

use crate::killed::{app, check, traced};
use crate::server::{Behaviour, Registry};
use crate::support::{archive, import, is_root, pull, write_file};

/// Numbers of <asm/unistd_64.h>.
const FSYNC: u64 = 74;
const FDATASYNC: u64 = 75;
const SYNCFS: u64 = 306;

/// An inode; its number alone is given to the next one.
type Inode = (u64, Option<SystemTime>);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Node {
    Folder(Inode),
    File(Inode),
    Link(PathBuf),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Content {
    bytes: Vec<u8>,
    mode: u32,
}

/// What was asked to be kept, and when.
#[derive(Default)]
struct Disk {
    folders: HashMap<Inode, BTreeMap<OsString, Node>>,
    files: HashMap<Inode, Content>,
}

/// What became of the rest.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Nothing,
    Names,
    NamesAndLengths,
}

fn inode(path: &Path) -> Inode {
    let found = fs::symlink_metadata(path).expect("it is there");
    (found.ino(), found.created().ok())
}

fn names(folder: &Path) -> BTreeMap<OsString, Node> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let node = |entry: &fs::DirEntry| {
        let path = entry.path();
        let kind = entry.file_type().expect("its type");
        if kind.is_dir() {
            Node::Folder(inode(&path))
        } else if kind.is_symlink() {
            Node::Link(fs::read_link(&path).expect("a link"))
        } else {
            Node::File(inode(&path))
        }
    };
    entries.map(|entry| (entry.file_name(), node(&entry))).collect()
}

fn content(path: &Path) -> Content {
    let mode = fs::metadata(path).expect("a file").permissions().mode() & 0o7777;
    Content { bytes: fs::read(path).expect("it can be read"), mode }
}

impl Disk {
    /// Everything below a folder is kept as it is.
    fn sync_all(&mut self, folder: &Path) {
        let listed = names(folder);
        for (name, node) in &listed {
            let path = folder.join(name);
            match node {
                Node::Folder(_) => self.sync_all(&path),
                Node::File(inode) => drop(self.files.insert(*inode, content(&path))),
                Node::Link(_) => {}
            }
        }
        self.folders.insert(inode(folder), listed);
    }

    /// A call that is about to be made.
    fn hear(&mut self, root: &Path, thread: Pid, call: &user_regs_struct) {
        let descriptor = || fs::read_link(format!("/proc/{thread}/fd/{}", call.rdi)).expect("it is open");
        match call.orig_rax {
            SYNCFS => self.sync_all(root),
            FSYNC | FDATASYNC => {
                let path = descriptor();
                if path.is_dir() {
                    self.folders.insert(inode(&path), names(&path));
                } else if path.is_file() {
                    self.files.insert(inode(&path), content(&path));
                }
            }
            _ => {}
        }
    }

    /// What is found after the power has failed.
    fn after(&self, folder: &Path, kept: Kept) -> BTreeMap<PathBuf, Option<Content>> {
        let mut found = BTreeMap::new();
        self.below(inode(folder), Some(folder), Path::new(""), kept, &mut found);
        found
    }

    /// `now` is where the folder still is, for what was kept beyond the promise.
    fn below(
        &self,
        folder: Inode,
        now: Option<&Path>,
        at: &Path,
        kept: Kept,
        found: &mut BTreeMap<PathBuf, Option<Content>>,
    ) {
        let listed = match (kept, now) {
            (Kept::Nothing, _) | (_, None) => self.folders.get(&folder).cloned().unwrap_or_default(),
            (Kept::Names | Kept::NamesAndLengths, Some(now)) => names(now),
        };
        for (name, node) in listed {
            let (at, now) = (at.join(&name), now.map(|now| now.join(&name)));
            match node {
                Node::Folder(inode) => {
                    found.insert(at.clone(), None);
                    self.below(inode, now.as_deref(), &at, kept, found);
                }
                Node::File(inode) => {
                    let lost = || {
                        let mut lost = now.as_deref().filter(|_| !matches!(kept, Kept::Nothing)).map(content);
                        if let Some(lost) = &mut lost {
                            let length = if matches!(kept, Kept::Names) { 0 } else { lost.bytes.len() };
                            lost.bytes = vec![0; length];
                        }
                        lost.unwrap_or(Content { bytes: vec![], mode: 0o600 })
                    };
                    found.insert(at, Some(self.files.get(&inode).cloned().unwrap_or_else(lost)));
                }
                // Held by the links of containers, which do not run any more either.
                Node::Link(_) => {}
            }
        }
    }
}

/// Makes it.
fn restore(found: &BTreeMap<PathBuf, Option<Content>>, to: &Path) {
    for (path, content) in found {
        let path = to.join(path);
        match content {
            None => fs::create_dir(&path).expect("a folder"),
            Some(Content { bytes, mode }) => {
                fs::write(&path, bytes).expect("a file");
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).expect("chmod");
            }
        }
    }
}

/// What a test expects of a store, and what to call the moment by.
type Judge<'a> = &'a dyn Fn(&Path, &str);

/// Does the work once, with its store `images` below `root`. Judges each thing that a loss of power can leave while it is
/// done; once it is done, what was promised has to be there.
fn outlives(work: &str, root: &Path, judge: Judge<'_>, done: Judge<'_>) {
    let mut disk = Disk::default();
    disk.sync_all(root);
    let mut seen = HashSet::new();
    let mut changes = 0;
    let look = |disk: &Disk, seen: &mut HashSet<_>, when: &str, judge: Judge<'_>| {
        for kept in [Kept::Nothing, Kept::Names, Kept::NamesAndLengths] {
            let found = disk.after(root, kept);
            // Only what was there before the first change can be less than a store.
            if seen.insert(found.clone()) {
                let folder = tempfile::tempdir().expect("a folder");
                restore(&found, folder.path());
                judge(&folder.path().join("images"), &format!("{when}, kept {kept:?}"));
            }
        }
    };
    let ended = traced(work, |thread, call| {
        look(&disk, &mut seen, &format!("power lost at change {changes}"), judge);
        disk.hear(root, thread, call);
        changes += 1;
        true
    });
    assert!(ended);
    let states = seen.len();
    seen.clear();
    look(&disk, &mut seen, "power lost afterwards", done);
    assert!(changes > 10 && states > 10, "only {changes} changes and {states} states were seen");
}

/// Nothing is there that is not whole, and the image can be had again.
fn works(dir: &Path, expect: &[u8], again: impl Fn(&Store), when: &str) {
    check(dir, expect, when);
    let store = Store::open(dir).unwrap_or_else(|e| panic!("{when}: {e}"));
    again(&store);
    check(dir, expect, &format!("{when}, done again"));
    assert_eq!(store.list().expect("a list").len(), 1, "{when}");
}

#[test]
fn import_outlives_the_power() {
    if !is_root("import_outlives_the_power") {
        return;
    }
    let (parts, content) = app();
    let (root, outside) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let file = write_file(outside.path(), "x.tar", &archive(&parts.oci_files()));
    let work = format!("import|{}|{}", root.path().join("images").display(), file.display());
    let again = |store: &Store| drop(import(store, &parts).expect("import"));
    let judge = |dir: &Path, when: &str| works(dir, &content, again, when);
    let done = |dir: &Path, when: &str| {
        check(dir, &content, when);
        let store = Store::open(dir).unwrap_or_else(|e| panic!("{when}: {e}"));
        store.resolve(parts.name).unwrap_or_else(|e| panic!("{when}: what was imported is lost: {e}"));
    };
    outlives(&work, root.path(), &judge, &done);
}

#[test]
fn pull_outlives_the_power() {
    if !is_root("pull_outlives_the_power") {
        return;
    }
    let (parts, content) = app();
    let registry = Registry::start(std::slice::from_ref(&parts), Behaviour::default());
    let reference = registry.reference(":amd64");
    let root = tempfile::tempdir().expect("a folder");
    let work = format!("pull|{}|{reference}", root.path().join("images").display());
    let again = |store: &Store| drop(pull(store, &reference, &Auth::Anonymous).expect("pull"));
    let judge = |dir: &Path, when: &str| works(dir, &content, again, when);
    let done = |dir: &Path, when: &str| {
        check(dir, &content, when);
        let store = Store::open(dir).unwrap_or_else(|e| panic!("{when}: {e}"));
        let name = reference.to_string();
        store.resolve(&name).unwrap_or_else(|e| panic!("{when}: what was pulled is lost: {e}"));
    };
    outlives(&work, root.path(), &judge, &done);
}

#[test]
fn removal_outlives_the_power() {
    if !is_root("removal_outlives_the_power") {
        return;
    }
    let (parts, content) = app();
    let root = tempfile::tempdir().expect("a folder");
    let dir = root.path().join("images");
    import(&Store::open(&dir).expect("open"), &parts).expect("import");
    let work = format!("remove|{}|{}", dir.display(), parts.name);
    let again = |store: &Store| drop(import(store, &parts).expect("import"));
    let judge = |dir: &Path, when: &str| works(dir, &content, again, when);
    outlives(&work, root.path(), &judge, &judge);
}
