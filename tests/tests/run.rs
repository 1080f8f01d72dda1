//! `pith run`: one container on the real kernel, without a cluster. Each test has a folder and cgroups of its own.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use pith_tests::{bin_dir, images_dir, missing_right, until};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);
const IMAGE: &str = "pith.local/demo:v1";
const PROBE: &str = "/pith-probe";
/// A user, and a group, to whom nothing of this machine belongs.
const NOBODY: u32 = 65534;

/// A folder of images and containers, with the demo image in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Option<Place> {
        if let Some(reason) = missing_right() {
            eprintln!("SKIPPED: run: {reason}");
            return None;
        }
        let place = Place(tempfile::tempdir().expect("a folder"));
        let archive = images_dir().join("demo-v1.tar");
        let archive = archive.to_str().expect("UTF-8");
        let output =
            place.pith(&["image", "import", archive, "--dir", place.dir()]).output().expect("pith starts");
        assert!(output.status.success(), "{output:?}");
        Some(place)
    }

    fn dir(&self) -> &str {
        self.0.path().to_str().expect("UTF-8")
    }

    fn pith(&self, words: &[&str]) -> Command {
        let mut command = Command::new(bin_dir().join("pith"));
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Flags, and the probe's command line.
    fn command(&self, flags: &[&str], probe: &[&str]) -> Command {
        let mut command = self.pith(&["run", "--dir", self.dir()]);
        command.args(flags).args([IMAGE, "--", PROBE]).args(probe);
        command
    }

    fn run(&self, flags: &[&str], probe: &[&str]) -> Output {
        self.command(flags, probe).output().expect("pith starts")
    }

    /// What is left of containers: folders and cgroups.
    fn leftovers(&self, id: &str) -> Vec<PathBuf> {
        let mut left = cgroups(id);
        for below in ["run/roots", "run/state", "images/holds"] {
            let entries = fs::read_dir(self.0.path().join(below)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| entry.path()));
        }
        left
    }
}

fn cgroups(id: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).expect("cgroups").flatten().map(|entry| entry.path());
    let dirs = hierarchies.chain([root.to_owned()]).map(|dir| dir.join(format!("pith-run-{id}")));
    dirs.filter(|dir| dir.is_dir()).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn output_and_exit_codes() {
    let Some(place) = Place::new() else { return };
    let output = place.run(&["--env", "A=b"], &["env"]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).lines().any(|line| line == "A=b"), "{output:?}");
    assert_eq!(text(&output.stderr), "", "nothing to warn of");
    let output = place.run(&["--id", "seven"], &["exit", "7"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(place.leftovers("seven"), Vec::<PathBuf>::new());
}

#[test]
fn input_reaches_the_program() {
    let Some(place) = Place::new() else { return };
    let mut child = place
        .command(&[], &["cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("pith starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"through").expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(text(&output.stdout), "through");
}

#[test]
fn bad_input_is_one_line() {
    let Some(place) = Place::new() else { return };
    let run = |words: &[&str]| {
        place.pith(&["run", "--dir", place.dir()]).args(words).output().expect("pith starts")
    };
    let cases: [(&[&str], i32, &str); 9] = [
        (&["/no/such/archive.tar"], 1, "/no/such/archive.tar"),
        (&["No Image"], 1, "No Image"),
        (&[IMAGE, "--", "/no/such/program"], 1, "/no/such/program"),
        (&["--user", "nobody-here", IMAGE, "--", PROBE, "id"], 1, "nobody-here"),
        (&["--memory", "much", IMAGE], 2, "'much'"),
        (&["--cpus", "0", IMAGE], 2, "'0'"),
        (&["--output", "json", IMAGE], 2, "--explain"),
        (&["--id", "../x", IMAGE], 2, "'../x'"),
        (&[], 2, "<IMAGE>"),
    ];
    for (words, code, expect) in cases {
        let output = run(words);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(said.contains(expect), "{words:?} lacks {expect:?}: {said}");
        assert!(code == 2 || said.lines().count() == 1, "{words:?}: {said}");
    }
    assert_eq!(place.leftovers("none"), Vec::<PathBuf>::new());
}

/// The object of each line that is one.
fn explained(output: &Output) -> Vec<Value> {
    text(&output.stderr).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn each_step_is_explained() {
    let Some(place) = Place::new() else { return };
    let limits = ["--memory", "64Mi", "--cpus", "0.5", "--pids", "20"];
    let flags = [&["--explain", "--output", "json"], &limits[..]].concat();
    let output = place.run(&flags, &["true"]);
    assert!(output.status.success(), "{output:?}");
    let steps = explained(&output);
    let order =
        ["mkdir", "write", "clone3", "fsopen overlay", "pivot_root", "seccomp", "execve", "poll", "rmdir"];
    let mut rest = steps.iter();
    for call in order {
        let found = rest.find(|step| step["call"].as_str().is_some_and(|text| text.starts_with(call)));
        let step = found.unwrap_or_else(|| panic!("{call} comes next: {steps:#?}"));
        assert!(step["nanoseconds"].as_u64().is_some_and(|time| time > 0), "{step}");
        assert_ne!(step["change"], "", "{step}");
    }
    // What is said of the code is true: the line exists.
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for step in &steps {
        let (file, line) = step["place"].as_str().and_then(|place| place.split_once(':')).expect("file:line");
        let source =
            fs::read_to_string(repository.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let line: usize = line.parse().expect("a number");
        assert!(source.lines().count() >= line, "{step}");
    }
    let limits =
        steps.iter().find(|step| step["call"].as_str().is_some_and(|text| text.contains("67108864")));
    assert!(limits.is_some(), "the memory limit is shown: {steps:#?}");
}

#[test]
fn its_network_is_its_own() {
    let Some(place) = Place::new() else { return };
    let interfaces = |flags: &[&str]| text(&place.run(flags, &["cat", "/proc/net/dev"]).stdout);
    let own = interfaces(&[]);
    assert_eq!(own.lines().filter(|line| line.contains(':')).count(), 1, "{own}");
    let host = fs::read_to_string("/proc/net/dev").expect("proc");
    let names = |table: &str| -> Vec<String> {
        table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
    };
    assert_eq!(names(&interfaces(&["--network", "host"])), names(&host));
}

#[test]
fn memory_beyond_the_limit_ends_it() {
    let Some(place) = Place::new() else { return };
    let output = place.run(&["--memory", "16Mi"], &["mem", "64"]);
    assert_eq!(output.status.code(), Some(128 + 9), "{output:?}");
}

#[test]
fn an_ordinary_user_is_root_inside() {
    if let Some(reason) = missing_right() {
        eprintln!("SKIPPED: an_ordinary_user_is_root_inside: {reason}");
        return;
    }
    let ordinary = |program: &Path| {
        let mut command = Command::new(program);
        command.uid(NOBODY).gid(NOBODY).stdin(Stdio::null()).current_dir("/");
        command
    };
    let tried = ordinary(Path::new("unshare")).args(["--user", "true"]).output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED: an_ordinary_user_is_root_inside: no user namespace for ordinary users: {tried:?}"
        );
        return;
    }
    // Copies: the repository may be out of the user's reach.
    let reach = tempfile::tempdir().expect("a folder");
    fs::set_permissions(reach.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    let (pith, archive, dir) =
        (reach.path().join("pith"), reach.path().join("demo.tar"), reach.path().join("own"));
    fs::copy(bin_dir().join("pith"), &pith).expect("copied");
    fs::copy(images_dir().join("demo-v1.tar"), &archive).expect("copied");
    fs::create_dir(&dir).expect("made");
    std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).expect("given");
    let run = |flags: &[&str]| {
        let mut command = ordinary(&pith);
        command.args(["run", "--dir"]).arg(&dir).args(flags).arg(&archive);
        command.args(["--", PROBE, "cat", "/proc/self/uid_map"]).output().expect("pith starts")
    };
    let output = run(&[]);
    let map: Vec<u32> =
        text(&output.stdout).split_whitespace().filter_map(|number| number.parse().ok()).collect();
    assert_eq!(map, [0, NOBODY, 1], "{output:?}");
    let output = run(&["--memory", "64Mi"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("an ordinary user cannot"), "{output:?}");
}

/// Starts a program that stays, and waits until it runs.
fn staying(place: &Place, id: &str) -> (Child, i32) {
    let child = place.command(&["--id", id], &["sleep", "1000"]).spawn().expect("pith starts");
    let state = place.0.path().join("run/state").join(id).join("state.json");
    let pid = until("the container runs", DEADLINE, || {
        let state = fs::read(&state).map_err(|error| error.to_string())?;
        let state: Value = serde_json::from_slice(&state).map_err(|error| error.to_string())?;
        let pid = state["process"]["pid"].as_i64().ok_or("it is being made")?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).map_err(|error| error.to_string())?;
        if name.trim() == "pith-probe" { Ok(pid) } else { Err(format!("it is {name}")) }
    });
    (child, i32::try_from(pid).expect("a pid"))
}

fn send(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("it is our child");
}

#[test]
fn signals_are_passed_on() {
    let Some(place) = Place::new() else { return };
    // The first process of a pid namespace is spared by signals that it has no handler for: SIGKILL comes through.
    let (mut child, pid) = staying(&place, "signalled");
    send(&child, rustix::process::Signal::TERM);
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    send(&child, rustix::process::Signal::KILL);
    assert_eq!(child.wait().expect("it ends").signal(), Some(9));
    // Its cgroups are swept by the next run with this folder, and this test's folder ends here.
    assert!(place.run(&[], &["true"]).status.success());
    assert_eq!(place.leftovers("signalled"), Vec::<PathBuf>::new());
}

#[test]
fn what_a_killed_run_leaves_is_swept_by_the_next() {
    let Some(place) = Place::new() else { return };
    let (mut child, pid) = staying(&place, "orphan");
    let again = place.run(&["--id", "orphan"], &["true"]);
    assert_eq!(again.status.code(), Some(1), "the name is taken: {again:?}");
    send(&child, rustix::process::Signal::KILL);
    child.wait().expect("it ends");
    until("the kernel kills the container", DEADLINE, || {
        let status = fs::read_to_string(format!("/proc/{pid}/stat"));
        if status.is_err() { Ok(()) } else { Err("it is there".to_owned()) }
    });
    assert!(!place.leftovers("orphan").is_empty(), "nobody has cleaned up yet");
    let next = place.run(&["--id", "orphan"], &["exit", "3"]);
    assert_eq!(next.status.code(), Some(3), "{next:?}");
    assert_eq!(place.leftovers("orphan"), Vec::<PathBuf>::new());
}

#[test]
fn a_terminal_is_a_terminal() {
    let Some(place) = Place::new() else { return };
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let mut command = place.command(&[], &["cat", "/proc/self/stat"]);
    let end = |fd: &std::os::fd::OwnedFd| Stdio::from(fd.try_clone().expect("a descriptor"));
    command.stdin(end(&pty.slave)).stdout(end(&pty.slave)).stderr(Stdio::piped());
    let mut child = command.spawn().expect("pith starts");
    drop((command, pty.slave));
    let mut output = Vec::new();
    // At the end of a terminal reading fails with EIO: what was read before is there.
    let _ = fs::File::from(pty.master).read_to_end(&mut output);
    assert!(child.wait().expect("it ends").success());
    // Field 7 of proc_pid_stat(5): the controlling terminal. 34816 is the first of the container's own devpts.
    assert_eq!(text(&output).split(' ').nth(6), Some("34816"), "{}", text(&output));
}
