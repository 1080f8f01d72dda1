//! Engines over the runtime: Debian's podman runs an image through it, Debian's buildah builds one.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::Test;
use crate::bundle::Bundle;

pub(crate) const TESTS: &[Test] = &[("podman", podman), ("buildah", buildah)];

const PODMAN: &str = "/usr/bin/podman";
const BUILDAH: &str = "/usr/bin/buildah";

struct Engine<'a>(&'a Bundle);

impl Engine<'_> {
    fn call(&self, words: &[&str]) -> (i32, String) {
        let mut command = Command::new(PODMAN);
        for (flag, folder) in [("--root", "store"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(self.0.path("podman").join(folder));
        }
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        command.arg("--runtime").arg(self.0.path("runtime")).args(words);
        let outcome = self.0.finish(command);
        (outcome.code, outcome.stdout + &outcome.stderr)
    }

    #[track_caller]
    fn expect(&self, words: &[&str], code: i32, text: &str) {
        let (got, said) = self.call(words);
        assert!(got == code && said.contains(text), "{words:?}: {got}: {said}");
    }
}

/// The runtime as a program with the test's own root, so that whatever is left is deleted with the bundle: podman's
/// background clean-up does not pass --runtime-flag on. It notes what it is called with.
fn write_runtime(bundle: &Bundle) {
    let (oci, state, calls) = (crate::bundle::program(), bundle.text("state"), bundle.text("calls"));
    let script = format!("#!/bin/sh\necho \"$@\" >> {calls}\nexec {oci} --root {state} \"$@\"\n");
    std::fs::write(bundle.path("runtime"), script).expect("write");
    std::fs::set_permissions(bundle.path("runtime"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
}

fn podman() {
    if !Path::new(PODMAN).exists() {
        eprintln!("SKIPPED: podman: there is no {PODMAN} (apt-get install podman)");
        return;
    }
    let bundle = Bundle::new("podman");
    let engine = Engine(&bundle);
    write_runtime(&bundle);
    let tar = bundle.text("image.tar");
    let packed = Command::new("tar")
        .args(["-C", &bundle.text("rootfs"), "-cf", &tar, "."])
        .stdout(Stdio::null())
        .status();
    assert!(packed.expect("tar").success());
    engine.expect(&["import", &tar, "pith-guest"], 0, "sha256");
    let common = [
        "run",
        "--rm",
        "--network",
        "none",
        "--cgroup-parent",
        "/pith-oci-test/podman",
        "--cgroups",
        "no-conmon",
    ];
    let run = |more: &[&str], guest: &[&str], code: i32, text: &str| {
        let words: Vec<&str> =
            common.iter().chain(more).chain(&["pith-guest", "/bin/guest"]).chain(guest).copied().collect();
        engine.expect(&words, code, text);
    };
    run(&[], &["print", "hello"], 0, "hello");
    run(&[], &["exit", "7"], 7, "");
    run(&["--user", "5:6"], &["facts"], 0, "\"ids\":[5,6]");
    run(&["--hostname", "box"], &["facts"], 0, "\"hostname\":\"box\"");
    run(&["--read-only"], &["try", "write /x"], 0, "refused 30");
    run(&["--tmpfs", "/srv"], &["try", "write /srv/x"], 0, "done");
    run(&["--uidmap", "0:100000:5000", "--gidmap", "0:100000:5000"], &["facts"], 0, "\"ids\":[0,0]");
    run(&["--privileged"], &["try", "unshare x"], 0, "done");
    run(&["-t"], &["print", "on a terminal"], 0, "on a terminal");
    run(&["--memory", "64m", "--pids-limit", "20", "--cpus", "0.5"], &["exit", "0"], 0, "");
    let words: Vec<&str> = common.iter().chain(&["pith-guest", "/nope"]).copied().collect();
    engine.expect(&words, 127, "");
    // In the background, with what is asked of a running container.
    let detached: Vec<&str> = ["run", "-d", "--name", "pith-c"]
        .iter()
        .chain(&common[2..])
        .chain(&["pith-guest", "/bin/guest", "wait"])
        .copied()
        .collect();
    engine.expect(&detached, 0, "");
    engine.expect(&["exec", "pith-c", "/bin/guest", "exit", "9"], 9, "");
    engine.expect(&["pause", "pith-c"], 0, "");
    engine.expect(&["ps", "--all", "--format", "{{.Status}}"], 0, "Paused");
    engine.expect(&["unpause", "pith-c"], 0, "");
    engine.expect(&["kill", "pith-c"], 0, "");
    engine.expect(&["rm", "-f", "pith-c"], 0, "");
    engine.expect(&["system", "reset", "--force"], 0, "");
    let _ = std::fs::remove_dir_all(bundle.path("podman"));
    // Podman leaves the parent that it was told to use, and cleans up in the background.
    bundle.wait_for("the end of podman's cgroup", || {
        bundle.cgroups().iter().all(|dir| std::fs::remove_dir(dir).is_ok())
    });
}

fn buildah() {
    if !Path::new(BUILDAH).exists() {
        eprintln!("SKIPPED: buildah: there is no {BUILDAH} (apt-get install buildah)");
        return;
    }
    let bundle = Bundle::new("buildah");
    write_runtime(&bundle);
    let build = |steps: &str| {
        let file = format!("FROM scratch\nCOPY bin/guest /bin/guest\n{steps}");
        std::fs::write(bundle.path("Containerfile"), file).expect("write");
        let mut command = Command::new(BUILDAH);
        command
            .arg("--root")
            .arg(bundle.path("buildah/store"))
            .arg("--runroot")
            .arg(bundle.path("buildah/run"));
        command.args(["--storage-driver", "vfs", "build", "--isolation", "oci", "--network", "none"]);
        command.arg("--runtime").arg(bundle.path("runtime")).args(["--tag", "pith-built"]);
        command.arg("--file").arg(bundle.path("Containerfile")).arg(bundle.path("rootfs"));
        let outcome = bundle.finish(command);
        (outcome.code, outcome.stdout + &outcome.stderr)
    };
    let steps = "RUN [\"/bin/guest\", \"try\", \"mkdir /made\"]\n\
        WORKDIR /srv\n\
        USER 5:6\n\
        RUN [\"/bin/guest\", \"try\", \"list /made\", \"mkdir /made/more\"]\n\
        RUN [\"/bin/guest\", \"facts\"]\n";
    let (code, said) = build(steps);
    assert_eq!(code, 0, "{said}");
    for text in ["mkdir /made: done", "list /made: 0", "mkdir /made/more: refused 13", "\"ids\":[5,6]"] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let calls = std::fs::read_to_string(bundle.path("calls")).expect("the runtime was called");
    let created = calls.lines().filter(|line| line.contains("create ")).count();
    assert_eq!(created, 3, "each step is a container of this runtime: {calls}");
    let (code, said) = build("RUN [\"/bin/guest\", \"exit\", \"7\"]\n");
    assert!(code != 0 && said.contains("exit status 7"), "{code}: {said}");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}
