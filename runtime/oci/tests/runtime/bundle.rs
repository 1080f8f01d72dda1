//! A bundle of a test, and the runtime called on it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take before a test calls it hanging.
const DEADLINE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(2);

pub(crate) struct Bundle {
    pub(crate) dir: PathBuf,
    pub(crate) name: String,
    pub(crate) config: Value,
}

/// The runtime: where `PITH_BIN_DIR` says, as in a virtual machine, else where cargo has put it.
pub(crate) fn program() -> String {
    std::env::var("PITH_BIN_DIR")
        .map_or_else(|_| env!("CARGO_BIN_EXE_pith-oci").to_owned(), |dir| format!("{dir}/pith-oci"))
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// It failed with 1 and one line that holds `text`.
    #[track_caller]
    pub(crate) fn refused(self, text: &str) {
        self.refused_with(1, text);
    }

    /// The same of `exec`, whose own failures are not to be taken for the command's.
    #[track_caller]
    pub(crate) fn exec_refused(self, text: &str) {
        self.refused_with(255, text);
    }

    #[track_caller]
    fn refused_with(self, code: i32, text: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stderr.contains(text), "{text:?} in {self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
    }
}

pub(crate) fn missing_right() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it takes root".to_owned());
    }
    pith_sys::process::fork(pith_sys::process::namespaces::MOUNT, None, || 0)
        .err()
        .map(|errno| format!("no mount namespace can be made: {errno}"))
}

impl Bundle {
    /// A root with the guest in it, and the configuration that `spec` writes, without a terminal.
    pub(crate) fn new(name: &str) -> Bundle {
        let dir = PathBuf::from(format!("/tmp/pith-oci-test-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let root = dir.join("rootfs");
        for below in ["bin", "proc", "dev", "sys", "tmp", "etc", "srv", "mnt"] {
            fs::create_dir_all(root.join(below)).expect("mkdir");
        }
        let own = std::env::current_exe().expect("this executable");
        fs::copy(own, root.join("bin/guest")).expect("copy");
        symlink("guest", root.join("bin/true")).expect("symlink");
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("write");
        let mut bundle = Bundle { dir, name: name.to_owned(), config: json!({}) };
        let path = bundle.dir.display().to_string();
        bundle.oci(&["spec", "--bundle", &path]).ok();
        let text = fs::read(bundle.dir.join("config.json")).expect("written");
        bundle.config = serde_json::from_slice(&text).expect("JSON");
        bundle.config["process"]["terminal"] = false.into();
        bundle.config["root"]["readonly"] = false.into();
        bundle.config["linux"]["cgroupsPath"] = format!("/pith-oci-test/{name}").into();
        bundle
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.join(below)
    }

    pub(crate) fn text(&self, below: &str) -> String {
        self.path(below).display().to_string()
    }

    /// The program, by the guest's command line.
    pub(crate) fn args(&mut self, words: &[&str]) {
        self.config["process"]["args"] = ["guest"].iter().chain(words).copied().collect();
    }

    pub(crate) fn write(&self) {
        fs::write(self.path("config.json"), self.config.to_string()).expect("write");
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--root").arg(self.path("state")).args(words).current_dir(&self.dir);
        command.stdin(Stdio::null());
        command
    }

    /// Calls the runtime and waits for it. Its output goes to files: a container that stays holds pipes open.
    pub(crate) fn oci(&self, words: &[&str]) -> Outcome {
        self.finish(self.command(words))
    }

    pub(crate) fn finish(&self, mut command: Command) -> Outcome {
        let (out, err) = (self.path("stdout"), self.path("stderr"));
        let file = |path: &Path| {
            // A new file: the container of an earlier call goes on to write into that call's.
            let _ = fs::remove_file(path);
            fs::File::create_new(path).expect("create")
        };
        let mut child = command.stdout(file(&out)).stderr(file(&err)).spawn().expect("start");
        let start = Instant::now();
        let status = loop {
            match child.try_wait().expect("wait") {
                Some(status) => break status,
                None if start.elapsed() > DEADLINE => {
                    let _ = child.kill();
                    panic!("{command:?} hangs");
                }
                None => std::thread::sleep(LOOK_EVERY),
            }
        };
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Outcome { code: status.code().unwrap_or(-1), stdout: text(out), stderr: text(err) }
    }

    /// Runs the container in the foreground.
    pub(crate) fn run(&self) -> Outcome {
        self.write();
        self.oci(&["run", &self.name])
    }

    /// Runs the guest's `facts`.
    #[track_caller]
    pub(crate) fn facts(&mut self) -> Value {
        self.args(&["facts"]);
        let text = self.run().ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub(crate) fn create(&self) -> Outcome {
        self.write();
        self.oci(&["create", &self.name])
    }

    pub(crate) fn state(&self) -> Value {
        let text = self.oci(&["state", &self.name]).ok();
        serde_json::from_str(&text).expect("JSON")
    }

    pub(crate) fn status(&self) -> String {
        self.state()["status"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.state()["pid"].as_i64().unwrap_or(0)).expect("a pid")
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < DEADLINE, "{}: never: {what}", self.name);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub(crate) fn wait_status(&self, wanted: &str) {
        self.wait_for(wanted, || self.status() == wanted);
    }

    /// Directories of this test's cgroups, in any hierarchy.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mut roots: Vec<PathBuf> = fs::read_dir("/sys/fs/cgroup")
            .expect("cgroups")
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect();
        roots.push("/sys/fs/cgroup".into());
        roots
            .iter()
            .map(|root| root.join("pith-oci-test").join(&self.name))
            .filter(|dir| dir.exists())
            .collect()
    }

    /// What is left of the test's containers on this machine.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = self.cgroups().iter().map(|dir| dir.display().to_string()).collect();
        let state = fs::read_dir(self.path("state")).into_iter().flatten().flatten();
        left.extend(state.map(|entry| entry.path().display().to_string()));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let ours = self.dir.display().to_string();
        left.extend(mounts.lines().filter(|line| line.contains(&ours)).map(str::to_owned));
        left
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let ids: Vec<String> = fs::read_dir(self.path("state"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        for id in ids {
            let outcome = self.oci(&["delete", "--force", &id]);
            if outcome.code != 0 {
                eprintln!("{}: {outcome:?}", self.name);
            }
        }
        let left = self.leftovers();
        let _ = fs::remove_dir_all(&self.dir);
        // Shared by the tests; the last one takes it along.
        for root in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(root.path().join("pith-oci-test"));
        }
        if !left.is_empty() && !std::thread::panicking() {
            panic!("{} left {left:?}", self.name);
        }
    }
}
