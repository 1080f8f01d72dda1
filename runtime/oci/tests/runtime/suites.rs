//! What the test suites of runc and runtime-tools ask for, and this runtime once did otherwise.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::{Value, json};

use crate::Test;
use crate::bundle::Bundle;

pub(crate) const TESTS: &[Test] = &[
    ("suite_mounts", mounts),
    ("suite_links", links),
    ("suite_command_line", command_line),
    ("suite_terminal", terminal),
    ("suite_no_pivot", no_pivot),
    ("suite_frozen", frozen),
    ("full_disk", full_disk),
];

fn add_mount(bundle: &mut Bundle, mount: Value) {
    bundle.config["mounts"].as_array_mut().expect("mounts").push(mount);
}

/// A tmpfs has the mode of what it covers unless another is asked for; data for a bind mount is passed over, in words.
fn mounts() {
    let mut bundle = Bundle::new("modes");
    let tmpfs = |at: &str, options: Value| json!({ "destination": at, "type": "tmpfs", "options": options });
    for (at, mode) in [("kept", 0o7710), ("other", 0o755)] {
        fs::create_dir(bundle.path("rootfs/srv").join(at)).expect("mkdir");
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(bundle.path("rootfs/srv").join(at), mode).expect("chmod");
    }
    add_mount(&mut bundle, tmpfs("/srv/kept", json!(["nosuid"])));
    add_mount(&mut bundle, tmpfs("/srv/other", json!(["mode=0444"])));
    add_mount(&mut bundle, tmpfs("/srv/new", json!([])));
    let source = bundle.path("rootfs/etc").display().to_string();
    add_mount(
        &mut bundle,
        json!({ "destination": "/mnt", "source": source, "options": ["bind", "mode=755", "size=1k"] }),
    );
    let paths = ["mode /srv/kept", "mode /srv/other", "mode /srv/new", "length /mnt/passwd"];
    bundle.args(&[&["try"], &paths[..]].concat());
    let outcome = bundle.run();
    assert!(outcome.stderr.contains("size is nothing to a bind mount"), "{outcome:?}");
    let expect = ["7710", "444", "1777", "30"];
    let expect: String = paths.iter().zip(expect).map(|(path, found)| format!("{path}: {found}\n")).collect();
    assert_eq!(outcome.ok(), expect);
}

/// An image does not say where procfs and sysfs are mounted: what is masked in them is masked by name.
fn links() {
    let bundle = Bundle::new("links");
    for (name, path) in [("proc", "/proc"), ("sys", "/sys")] {
        fs::remove_dir(bundle.path("rootfs").join(name)).expect("rmdir");
        symlink("/srv", bundle.path("rootfs").join(name)).expect("symlink");
        bundle.run().refused(&format!("{path} must be mounted on ordinary directory"));
        fs::remove_file(bundle.path("rootfs").join(name)).expect("rm");
    }
    assert_eq!(bundle.leftovers(), [""; 0]);
}

/// Flags stand where people put them, and files are named from where the command is called.
fn command_line() {
    let mut bundle = Bundle::new("order");
    bundle.args(&["wait"]);
    bundle.config["linux"]["seccomp"] =
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/nobody" });
    bundle.write();
    let path = bundle.dir.display().to_string();
    let mut create = bundle.command(&["create", "order", "--pid-file", "pid", "--bundle", &path]);
    create.current_dir(bundle.path("rootfs"));
    bundle.finish(create).ok();
    assert_eq!(fs::read_to_string(bundle.path("rootfs/pid")).expect("written"), bundle.pid().to_string());
    bundle.oci(&["update", "order", "--memory", "64m"]).ok();
    bundle.oci(&["update", "order", "--memory", "-1"]).ok();
    let exec = bundle.oci(&["exec", "--cap", "CAP_UNKNOWN", "order", "true"]);
    assert!(exec.stderr.contains("CAP_UNKNOWN"), "{exec:?}");
    exec.ok();
    bundle.oci(&["kill", "order", "KILL", "--all"]).ok();
    bundle.wait_status("stopped");
    bundle.oci(&["delete", "order", "--force"]).ok();
    // crun's words: another file of the bundle, and who makes cgroups.
    fs::rename(bundle.path("config.json"), bundle.path("other.json")).expect("rename");
    bundle.oci(&["--cgroup-manager", "cgroupfs", "create", "--config", "other.json", "order"]).ok();
    bundle.oci(&["delete", "--force", "order"]).ok();
    bundle
        .oci(&["--cgroup-manager", "disabled", "create", "order"])
        .refused("\"disabled\\\" is not supported");
    // Without a path of its own a container's cgroup has its name.
    bundle.config["linux"]["cgroupsPath"] = Value::Null;
    bundle.name = format!("order-{}", std::process::id());
    bundle.create().ok();
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).expect("it is there");
    assert!(cgroup.lines().any(|line| line.ends_with(&format!(":/{}", bundle.name))), "{cgroup}");
    bundle.oci(&["delete", "--force", &bundle.name]).ok();
}

/// Who is frozen by somebody else, through version 1, takes no SIGKILL: it is thawed for its end.
fn frozen() {
    let freezer =
        std::path::PathBuf::from(format!("/sys/fs/cgroup/freezer/pith-oci-test-{}", std::process::id()));
    if fs::create_dir(&freezer).is_err() {
        eprintln!("SKIPPED: suite_frozen: no version 1 freezer");
        return;
    }
    let mut bundle = Bundle::new("frozen");
    bundle.args(&["wait"]);
    bundle.create().ok();
    fs::write(freezer.join("tasks"), bundle.pid().to_string()).expect("moved");
    fs::write(freezer.join("freezer.state"), "FROZEN").expect("frozen");
    bundle.oci(&["delete", "--force", "frozen"]).ok();
    // Nobody is created in a cgroup that is frozen already.
    fs::write(freezer.join("freezer.state"), "FROZEN").expect("frozen");
    let path = format!("/pith-oci-test-{}", std::process::id());
    let own = std::mem::replace(&mut bundle.config["linux"]["cgroupsPath"], path.into());
    bundle.create().refused("container's cgroup unexpectedly frozen");
    bundle.config["linux"]["cgroupsPath"] = own;
    fs::remove_dir(&freezer).expect("empty");
}

/// Where the disk is full: one line, runc's exit code, and nothing half-created.
fn full_disk() {
    let mut bundle = Bundle::new("full");
    bundle.args(&["wait"]);
    bundle.write();
    let (oci, disk) = (crate::bundle::program(), bundle.text("disk"));
    fs::create_dir(&disk).expect("mkdir");
    let aside = bundle.text("state");
    let cases = [
        ("size=64k", format!("--root {disk}/state create full"), "state/full/state.json"),
        ("size=1m,nr_inodes=5", format!("--root {disk}/state create full"), "state/full"),
        ("size=1m,nr_inodes=4", format!("--root {disk}/state run full"), "state/full"),
        ("size=64k", format!("--root {aside} create --pid-file {disk}/new/pid full"), "new/pid"),
        ("size=64k", format!("spec --bundle {disk}/new"), "new/config.json"),
    ];
    for (options, words, file) in cases {
        // The tmpfs ends with its namespace; `find` has the last word.
        let script = format!(
            "mount -t tmpfs -o {options} pith-full {disk} && mkdir {disk}/state {disk}/new || exit 9
            cat /dev/zero >{disk}/fill 2>/dev/null; {oci} {words}; code=$?
            find {disk}/state {disk}/new -mindepth 1; exit $code"
        );
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).current_dir(&bundle.dir);
        let outcome = bundle.finish(command);
        assert_eq!(outcome.stdout, "", "{words}");
        assert!(outcome.stderr.contains(&format!("{disk}/{file}")), "{outcome:?}");
        outcome.refused("No space left on device");
        assert_eq!(bundle.leftovers(), [""; 0], "{words}");
    }
}

/// A read-only /dev has its console, and lines end as the program wrote them.
fn terminal() {
    let mut bundle = Bundle::new("lines");
    bundle.config["process"]["terminal"] = true.into();
    let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
    let dev = mounts.iter_mut().find(|mount| mount["destination"] == "/dev").expect("/dev");
    dev["options"].as_array_mut().expect("options").push("ro".into());
    bundle.args(&["try", "mkdir /dev/new", "list /srv"]);
    assert_eq!(bundle.run().ok(), "mkdir /dev/new: refused 30\nlist /srv: 0\n");
}

/// Without pivot_root(2) the host's procfs does not stay behind, unmasked: the kernel would let a user namespace mount
/// another such then.
fn no_pivot() {
    let mut bundle = Bundle::new("moved");
    bundle.args(&["try", "proc in users"]);
    bundle.write();
    for words in [vec!["run", "moved"], vec!["run", "--no-pivot", "moved"]] {
        assert_eq!(bundle.oci(&words).ok(), "proc in users: refused 1\n", "{words:?}");
    }
}
