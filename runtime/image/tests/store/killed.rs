//! Killed between any two changes to the disk: a child does one thing to a store, and its tracer kills it at the n-th system
//! call that changes a file system, for every n until it comes to its end.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::libc::user_regs_struct;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pith_image::{Keychain, Quiet, Reference, Store};

use crate::server::{Behaviour, Registry};
use crate::support::{Compression, Item, Parts, archive, import, is_root, store, tar_of, write_file};

const CHILD: &str = "PITH_IMAGE_TEST_KILLED";

const READY: &str = "ready to be traced";

/// Numbers of <asm/unistd_64.h>: all by which this crate changes a file system.
const CHANGES: [u64; 24] = [
    1,   // write
    18,  // pwrite64
    20,  // writev
    74,  // fsync
    75,  // fdatasync
    77,  // ftruncate
    82,  // rename
    83,  // mkdir
    84,  // rmdir
    86,  // link
    87,  // unlink
    88,  // symlink
    91,  // fchmod
    93,  // fchown
    133, // mknod
    190, // fsetxattr
    258, // mkdirat
    259, // mknodat
    260, // fchownat
    263, // unlinkat
    264, // renameat
    280, // utimensat
    306, // syncfs
    316, // renameat2
];

/// Not a test of its own: what the tests below run and kill. Waits for its tracer first.
#[test]
fn work_for_the_killer() {
    let Some(work) = std::env::var_os(CHILD) else { return };
    let words: Vec<&str> = work.to_str().expect("UTF-8").split('|').collect();
    // From here on it has all its threads, until the tracer says when.
    println!("{READY}");
    std::io::stdin().read_line(&mut String::new()).expect("piped");
    let store = Store::open(words[1]).expect("open");
    match words[0] {
        "import" => drop(store.import(Path::new(words[2]), None, &Quiet).expect("import")),
        "remove" => drop(store.remove(words[2]).expect("remove")),
        "pull" => {
            let reference = Reference::parse(words[2]).expect("a reference");
            let keychain = Keychain::anonymous();
            let pull = store.pull(&reference, &keychain, Arc::new(Quiet));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(pull).expect("pull");
        }
        other => panic!("no such work: {other}"),
    }
}

/// Runs it and kills it before its `n`-th change. Whether it came to its end.
fn killed_at(work: &str, n: usize) -> bool {
    let mut changes = 0;
    traced(work, |_, _| {
        changes += 1;
        changes <= n
    })
}

/// Runs it as long as `goes_on` says so, which is asked before each change: the thread stands, about to make this call.
/// Whether it came to its end.
pub(crate) fn traced(work: &str, goes_on: impl FnMut(Pid, &user_regs_struct) -> bool) -> bool {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "killed::work_for_the_killer", "--nocapture"])
        .env(CHILD, work)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start");
    let mut said = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    assert!(said.any(|line| line.ends_with(READY)), "it ended before its work");
    let ended = trace(&mut child, goes_on);
    if !ended {
        child.kill().expect("it runs");
        // Its threads are the tracer's to reap, and it is gone when they are.
        let pid = Pid::from_raw(child.id().cast_signed());
        while !matches!(wait(), WaitStatus::Signaled(of, ..) | WaitStatus::Exited(of, _) if of == pid) {}
    }
    ended
}

/// For a child of this thread, or a thread that it traces.
fn wait() -> WaitStatus {
    waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)).expect("there is one")
}

fn trace(child: &mut Child, mut goes_on: impl FnMut(Pid, &user_regs_struct) -> bool) -> bool {
    let pid = Pid::from_raw(child.id().cast_signed());
    let options = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).expect("one's own child can be traced");
    // Threads that the test harness made before are followed too: they are all seized while they wait.
    for entry in fs::read_dir(format!("/proc/{pid}/task")).expect("it runs") {
        let thread = entry.expect("a thread").file_name().to_string_lossy().parse().expect("a number");
        if thread != pid.as_raw() {
            ptrace::seize(Pid::from_raw(thread), options).expect("a thread of one's own child");
        }
        ptrace::interrupt(Pid::from_raw(thread)).expect("it is traced");
    }
    let go = child.stdin.take().expect("piped").write_all(b"go\n");
    go.expect("it reads");
    let mut entered = std::collections::HashSet::new();
    loop {
        let (thread, signal) = match wait() {
            WaitStatus::Exited(thread, 0) if thread == pid => return true,
            WaitStatus::Exited(thread, code) if thread == pid => panic!("the work failed: {code}"),
            WaitStatus::Exited(..) => continue,
            WaitStatus::PtraceSyscall(thread) => {
                if !entered.remove(&thread) {
                    entered.insert(thread);
                    let call = ptrace::getregs(thread).expect("it is stopped");
                    if CHANGES.contains(&call.orig_rax) && !goes_on(thread, &call) {
                        return false;
                    }
                }
                (thread, None)
            }
            WaitStatus::Stopped(thread, signal) if signal != Signal::SIGSTOP => (thread, Some(signal)),
            WaitStatus::Signaled(..) => panic!("somebody else killed it"),
            other => (other.pid().expect("a stop of a thread"), None),
        };
        let signal = signal.filter(|signal| *signal != Signal::SIGTRAP);
        match ptrace::syscall(thread, signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// Every name leads to an image whose layers are whole, and nothing lies about.
pub(crate) fn check(dir: &Path, expect: &[u8], when: &str) {
    let store = Store::open(dir).unwrap_or_else(|e| panic!("{when}: {e}"));
    assert_eq!(fs::read_dir(dir.join("tmp")).expect("list").count(), 0, "{when}: tmp was not swept");
    for image in store.list().unwrap_or_else(|e| panic!("{when}: {e}")) {
        for layer in image.lowerdirs() {
            let file = layer.join("bin/sh");
            assert_eq!(fs::read(&file).unwrap_or_else(|e| panic!("{when}: {e}")), expect, "{when}");
            assert_eq!(fs::metadata(&file).expect("there").mode() & 0o777, 0o644, "{when}");
        }
    }
}

pub(crate) fn app() -> (Parts, Vec<u8>) {
    let content: &'static [u8] = vec![7_u8; 5000].leak();
    let parts = Parts::new("pith.local/x:v1", vec![tar_of(&[Item::File("bin/sh", content)])]);
    (Parts { compression: Compression::None, ..parts }, content.to_vec())
}

/// Kills `verb` at every change that it makes, one after the other, each time in a new store that `begin` has begun and
/// that must go on to take the image. At least so many changes there are.
fn killed_at_every_change(verb: &str, least: usize, begin: impl Fn(&Store, &Parts), subject: &Path) {
    let (parts, content) = app();
    for n in 0.. {
        let (_dir, store) = store();
        begin(&store, &parts);
        let ended = killed_at(&format!("{verb}|{}|{}", store.dir().display(), subject.display()), n);
        check(store.dir(), &content, &format!("{verb} killed at change {n}"));
        import(&store, &parts).unwrap_or_else(|e| panic!("after change {n}: {e}"));
        check(store.dir(), &content, &format!("import after change {n}"));
        if ended {
            assert!(n > least, "only {n} changes were seen");
            return;
        }
    }
}

#[test]
fn import_killed_before_every_change() {
    if !is_root("import_killed_before_every_change") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = write_file(folder.path(), "x.tar", &archive(&app().0.oci_files()));
    killed_at_every_change("import", 20, |_, _| {}, &file);
}

#[test]
fn pull_killed_before_every_change() {
    if !is_root("pull_killed_before_every_change") {
        return;
    }
    let (parts, content) = app();
    let registry = Registry::start(&[parts], Behaviour::default());
    let reference = registry.reference(":amd64").to_string();
    let (_dir, store) = store();
    let work = format!("pull|{}|{reference}", store.dir().display());
    let mut n = 0;
    // On one store: each pull goes on from what the one before left, and may be done when it is not the first.
    while !killed_at(&work, n) {
        check(store.dir(), &content, &format!("pull killed at change {n}"));
        n += 1;
    }
    check(store.dir(), &content, "the pull that was left alone");
    let image = store.resolve(&reference).expect("it is there");
    assert_eq!(fs::read_dir(store.dir().join("partial")).expect("list").count(), 0);
    assert_eq!(image.lowerdirs().len(), 1);
    assert!(n > 20, "only {n} changes were seen");
}

#[test]
fn removal_killed_before_every_change() {
    if !is_root("removal_killed_before_every_change") {
        return;
    }
    let imported = |store: &Store, parts: &Parts| drop(import(store, parts).expect("import"));
    killed_at_every_change("remove", 3, imported, Path::new("pith.local/x:v1"));
}
