//! Ways out of a container that worked on other runtimes, tried on this one.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::Test;
use crate::bundle::Bundle;

pub(crate) const TESTS: &[Test] = &[
    ("descriptors_of_the_host", descriptors_of_the_host),
    ("the_runtimes_executable", the_runtimes_executable),
    ("exchanged_mount_targets", exchanged_mount_targets),
    ("links_as_mount_targets", links_as_mount_targets),
    ("a_dev_that_leads_out", a_dev_that_leads_out),
    ("false_masks_and_consoles", false_masks_and_consoles),
    ("a_false_proc", a_false_proc),
    ("a_false_label", a_false_label),
    ("users_parsed_loosely", users_parsed_loosely),
    ("who_runs_away", who_runs_away),
    ("devices_of_the_host", devices_of_the_host),
];

/// CVE-2024-21626: a descriptor of the host that is open while the working directory is entered or the program is
/// executed.
fn descriptors_of_the_host() {
    let mut bundle = Bundle::new("escape-fds");
    bundle.args(&["try", "getcwd x"]);
    for number in 0..16 {
        for below in ["", "/..", "/../../../../etc"] {
            bundle.config["process"]["cwd"] = format!("/proc/self/fd/{number}{below}").into();
            let outcome = bundle.create();
            assert_eq!(outcome.code, 1, "{number}{below}: {outcome:?}");
            assert_eq!(bundle.leftovers(), Vec::<String>::new());
        }
    }
    bundle.config["process"]["cwd"] = "/".into();
    for number in 0..16 {
        bundle.config["process"]["args"] = json!([format!("/proc/self/fd/{number}/../../../../../bin/true")]);
        assert_ne!(bundle.run().code, 0, "a program by descriptor {number}");
    }
    // The same by exec into a running container.
    bundle.args(&["wait"]);
    bundle.create().ok();
    bundle.oci(&["start", "escape-fds"]).ok();
    for number in 0..16 {
        let cwd = format!("/proc/self/fd/{number}");
        assert_ne!(bundle.oci(&["exec", "--cwd", &cwd, "escape-fds", "true"]).code, 0, "{cwd}");
    }
    // A descriptor that the caller left open reaches nobody who was not promised it.
    let call = format!(
        "exec {} --root {} exec escape-fds guest facts 7</etc/passwd 9</",
        crate::bundle::program(),
        bundle.text("state")
    );
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", &call]).current_dir(&bundle.dir);
    let facts: serde_json::Value = serde_json::from_str(&bundle.finish(command).ok()).expect("JSON");
    assert_eq!(facts["fds"], json!(["0", "1", "2"]));
}

/// CVE-2019-5736: the runtime's file, reached by executing it from inside and opened for writing once it may be.
fn the_runtimes_executable() {
    let mut bundle = Bundle::new("escape-exe");
    let before = fs::read(crate::bundle::program()).expect("the program");
    // As root with every capability, so that no right is what stops it.
    let all = pith_container::compile::capability_names();
    bundle.config["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
    bundle.config["process"]["noNewPrivileges"] = false.into();
    bundle.args(&["wait"]);
    bundle.create().ok();
    let pid = bundle.pid();
    // While it waits to be started it is the runtime: its file, as a process in the container could find it.
    let exe = format!("/proc/{pid}/exe");
    let open = |path: &str| {
        fs::OpenOptions::new().write(true).open(path).err().and_then(|error| error.raw_os_error())
    };
    assert_eq!(open(&exe), Some(libc::ETXTBSY), "even for the host's root");
    let held =
        rustix::fs::open(exe.as_str(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("open");
    bundle.oci(&["delete", "--force", "escape-exe"]).ok();
    // Nobody executes it any more, which is what the attack waits for.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    assert_eq!(open(&path), Some(libc::EROFS));
    // Neither can the mount it is seen through be changed.
    let change = pith_sys::mount::Change { clear: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
    assert!(pith_sys::mount::set_attributes(std::os::fd::AsFd::as_fd(&held), change).is_err());
    // The program of the container is the runtime itself, by link and as an interpreter.
    let root = bundle.path("rootfs");
    symlink("/proc/self/exe", root.join("bin/link")).expect("symlink");
    fs::write(root.join("bin/script"), "#!/proc/self/exe\n").expect("write");
    fs::set_permissions(root.join("bin/script"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
    for program in ["/bin/link", "/bin/script"] {
        bundle.config["process"]["args"] = json!([program]);
        // Executing it harms nobody.
        bundle.run();
    }
    assert_eq!(fs::read(crate::bundle::program()).expect("the program"), before);
}

/// CVE-2021-30465, CVE-2025-31133: a folder of a shared volume is exchanged with a link while it is mounted on, covered or
/// entered, or while something is made in it.
fn exchanged_mount_targets() {
    let mut bundle = Bundle::new("escape-race");
    let (volume, outside, source) = (bundle.path("volume"), bundle.path("outside"), bundle.path("source"));
    for dir in [&volume, &outside, &source] {
        fs::create_dir_all(dir).expect("mkdir");
    }
    fs::write(source.join("planted"), "").expect("write");
    fs::create_dir_all(volume.join("a")).expect("mkdir");
    symlink(&outside, volume.join("b")).expect("symlink");
    let bind = |source: &std::path::Path, target: &str| json!({ "destination": target, "source": source, "options": ["rbind"] });
    bundle.config["mounts"].as_array_mut().expect("mounts").push(bind(&volume, "/volume"));
    bundle.args(&["exit", "0"]);
    let plain = bundle.config.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let exchanger = {
        let (volume, stop) = (volume.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let (a, b) = (volume.join("a"), volume.join("b"));
            while !stop.load(Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &a,
                    rustix::fs::CWD,
                    &b,
                    rustix::fs::RenameFlags::EXCHANGE,
                );
            }
        })
    };
    // Whoever makes, covers or enters something at a path of the image's, or of a volume's.
    type Way<'a> = (&'a str, &'a dyn Fn(&mut serde_json::Value));
    let ways: [Way<'_>; 4] = [
        ("mounts", &|config| {
            config["mounts"].as_array_mut().expect("mounts").push(bind(&source, "/volume/a/made"));
        }),
        ("devices", &|config| {
            let made = json!({ "path": "/volume/a/made", "type": "c", "major": 1, "minor": 3 });
            config["linux"]["devices"] = json!([made]);
        }),
        ("cwd", &|config| config["process"]["cwd"] = "/volume/a/made/deep".into()),
        ("masks", &|config| {
            config["linux"]["maskedPaths"] = json!(["/volume/a"]);
            config["linux"]["readonlyPaths"] = json!(["/volume/a"]);
        }),
    ];
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let before = mounts();
    for (name, change) in ways {
        bundle.config = plain.clone();
        change(&mut bundle.config);
        bundle.write();
        for _ in 0..15 {
            // It may fail; it may not mount or make anything outside of the root.
            bundle.oci(&["run", "escape-race"]);
        }
        assert_eq!(fs::read_dir(&outside).expect("list").count(), 0, "{name}: nothing was made outside");
        assert_eq!(mounts(), before, "{name}");
    }
    stop.store(true, Ordering::Relaxed);
    exchanger.join().expect("the exchanger");
}

/// CVE-2019-19921 and kin: targets that are links out of the root.
fn links_as_mount_targets() {
    let mut bundle = Bundle::new("escape-links");
    let outside = bundle.path("outside");
    let source = bundle.path("source");
    fs::create_dir_all(&outside).expect("mkdir");
    fs::create_dir_all(&source).expect("mkdir");
    let root = bundle.path("rootfs");
    symlink(&outside, root.join("absolute")).expect("symlink");
    symlink("../../../../../../../..", root.join("up")).expect("symlink");
    symlink("/proc/self/cwd", root.join("magic")).expect("symlink");
    bundle.args(&["exit", "0"]);
    let plain = bundle.config["mounts"].clone();
    for target in
        ["/absolute/made".to_owned(), format!("/up{}/made", outside.display()), "/magic/made".to_owned()]
    {
        bundle.config["mounts"] = plain.clone();
        let mount = json!({ "destination": target, "source": source, "options": ["rbind"] });
        bundle.config["mounts"].as_array_mut().expect("mounts").push(mount);
        bundle.run();
        assert_eq!(fs::read_dir(&outside).expect("list").count(), 0, "{target}");
    }
}

/// CVE-2026-41579, CVE-2026-47766: the image's /dev is a link to the host's.
fn a_dev_that_leads_out() {
    let mut bundle = Bundle::new("escape-dev");
    let outside = bundle.path("outside");
    fs::create_dir_all(&outside).expect("mkdir");
    fs::remove_dir(bundle.path("rootfs/dev")).expect("rmdir");
    symlink(&outside, bundle.path("rootfs/dev")).expect("symlink");
    bundle.args(&["exit", "0"]);
    let mounts = bundle.config["mounts"].clone();
    bundle.run();
    // Without a /dev of the configuration its devices go to the image's.
    bundle.config["mounts"] = json!([{ "destination": "/proc", "type": "proc", "source": "proc" }]);
    bundle.config["linux"]["devices"] = json!([{ "path": "/dev/made", "type": "c", "major": 1, "minor": 3 }]);
    bundle.run();
    bundle.config["mounts"] = mounts;
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 0, "nothing was made outside");
}

/// CVE-2025-31133 and CVE-2025-52565: what masks a file or becomes the console is not what it is taken for.
fn false_masks_and_consoles() {
    let mut bundle = Bundle::new("escape-masks");
    fs::write(bundle.path("secret"), "secret").expect("write");
    let root = bundle.path("rootfs");
    // The image's own /dev with a link in place of null and console: a mask taken from there would show the target.
    let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| !mount["destination"].as_str().unwrap_or_default().starts_with("/dev"));
    symlink("/proc/sys/kernel/core_pattern", root.join("dev/null")).expect("symlink");
    bundle.args(&["try", "length /proc/kcore", "open-write /proc/sys/kernel/core_pattern"]);
    let outcome = bundle.run();
    assert!(outcome.code == 1 && outcome.stderr.contains("exists and is something else"), "{outcome:?}");
    fs::remove_file(root.join("dev/null")).expect("remove");
    // A console that is a link: the terminal must not cover what it points to.
    symlink("/proc/sys/kernel/core_pattern", root.join("dev/console")).expect("symlink");
    fs::create_dir_all(root.join("dev/pts")).expect("mkdir");
    let pts = json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
        "options": ["newinstance", "ptmxmode=0666", "mode=0620"] });
    bundle.config["mounts"].as_array_mut().expect("mounts").push(pts);
    bundle.config["process"]["terminal"] = true.into();
    bundle.args(&["try", "open-write /proc/sys/kernel/core_pattern"]);
    let outcome = bundle.run();
    assert!(outcome.code == 1 && outcome.stderr.contains("/dev/console is a link"), "{outcome:?}");
    fs::remove_file(root.join("dev/console")).expect("remove");
    // A devpts of the image's making: its ptmx is no multiplexer.
    let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["destination"] != "/dev/pts");
    fs::write(root.join("dev/pts/ptmx"), "").expect("write");
    let outcome = bundle.run();
    assert!(outcome.code == 1 && outcome.stderr.contains("is not a terminal multiplexer"), "{outcome:?}");
}

/// CVE-2025-52881, CVE-2019-16884: /proc is something else, so that what is written there goes elsewhere.
fn a_false_proc() {
    let mut bundle = Bundle::new("escape-proc");
    let root = bundle.path("rootfs");
    fs::create_dir_all(root.join("proc/sys/kernel")).expect("mkdir");
    fs::write(root.join("proc/sys/kernel/msgmax"), "").expect("write");
    let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["destination"] != "/proc");
    bundle.config["linux"]["sysctl"] = json!({ "kernel.msgmax": "1" });
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    bundle.args(&["exit", "0"]);
    bundle.run().refused("/proc/sys is not a procfs");
    assert_eq!(fs::read_to_string(root.join("proc/sys/kernel/msgmax")).expect("read"), "");
    // A link in a genuine one leads nowhere else either.
    let mount = json!({ "destination": "/proc", "type": "proc", "source": "proc" });
    bundle.config["mounts"].as_array_mut().expect("mounts").insert(0, mount);
    bundle.config["linux"]["sysctl"] = json!({ "net/../../self/oom_score_adj": "1" });
    let outcome = bundle.run();
    assert_eq!(outcome.code, 1, "{outcome:?}");
}

/// CVE-2019-16884: what a security module is told goes to a file of the image's.
fn a_false_label() {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if !enabled.starts_with('Y') {
        eprintln!("SKIPPED: a_false_label: this kernel has no apparmor");
        return;
    }
    let mut bundle = Bundle::new("escape-label");
    let attributes = bundle.path("volume/self/attr/apparmor");
    fs::create_dir_all(&attributes).expect("mkdir");
    symlink("self", bundle.path("volume/thread-self")).expect("symlink");
    fs::write(attributes.join("exec"), "").expect("write");
    bundle.config["process"]["apparmorProfile"] = "unconfined".into();
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    let proc = json!({ "destination": "/proc", "source": bundle.path("volume"), "options": ["bind"] });
    let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["destination"] != "/proc");
    mounts.push(proc);
    bundle.args(&["exit", "0"]);
    bundle.run().refused("/proc is not a procfs");
    assert_eq!(fs::read_to_string(attributes.join("exec")).expect("read"), "");
}

/// CVE-2026-30892 and kin: whoever is no user ends as root. And what the runtime's caller has is not the container's.
fn users_parsed_loosely() {
    let mut bundle = Bundle::new("escape-users");
    // setresuid(2) takes the last of all numbers for "as it is".
    for user in [
        json!({ "uid": u32::MAX, "gid": 0 }),
        json!({ "uid": 0, "gid": u32::MAX }),
        json!({ "uid": 5, "gid": 5, "additionalGids": [u32::MAX] }),
    ] {
        bundle.config["process"]["user"] = user;
        bundle.args(&["facts"]);
        bundle.run().refused("is nobody's number");
    }
    for user in
        [json!({ "uid": -1, "gid": 0 }), json!({ "uid": 1_u64 << 32, "gid": 0 }), json!({ "uid": "0" })]
    {
        bundle.config["process"]["user"] = user;
        assert_eq!(bundle.run().code, 1);
    }
    bundle.config["process"]["user"] = json!({ "uid": 5, "gid": 5 });
    bundle.args(&["wait"]);
    bundle.create().ok();
    bundle.oci(&["start", "escape-users"]).ok();
    for user in [
        "",
        " 0",
        "0 ",
        "+0",
        "-0",
        "-1",
        "0x0",
        "00:",
        "1:",
        ":1",
        "1:+0",
        "1:2:3",
        "root",
        "4294967296",
        "\u{660}",
    ] {
        bundle
            .oci(&["exec", "--user", user, "escape-users", "true"])
            .exec_refused("is not a user or group number");
    }
    bundle.oci(&["exec", "--user", "4294967295", "escape-users", "true"]).exec_refused("is nobody's number");
    // CVE-2022-29162 and kin.
    let mut command =
        bundle.command(&["exec", "escape-users", "guest", "try", "env PITH_SECRET", "env HOME"]);
    command.env("PITH_SECRET", "secret").env("HOME", "/secret");
    assert_eq!(bundle.finish(command).ok(), "env PITH_SECRET: unset\nenv HOME: /\n");
}

/// Processes that are never where a list has them, in no pid namespace of their own: none is left when the runtime
/// says so.
fn who_runs_away() {
    let mut bundle = Bundle::new("escape-away");
    bundle.config["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "ipc" }]);
    bundle.config["hostname"] = serde_json::Value::Null;
    bundle.config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "sysfs");
    for first in ["wait", "run away"] {
        bundle.args(&[first]);
        bundle.create().ok();
        bundle.oci(&["start", "escape-away"]).ok();
        if first == "wait" {
            for _ in 0..3 {
                bundle.oci(&["exec", "--detach", "escape-away", "guest", "run away"]).ok();
            }
        }
        bundle.oci(&["delete", "--force", "escape-away"]).ok();
        // Its cgroups could not be removed with anybody in them.
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{first}");
    }
}

/// A container whose configuration says nothing of devices may make nodes (as everywhere), and use none of them.
fn devices_of_the_host() {
    let mut bundle = Bundle::new("escape-devices");
    bundle.config["linux"]["resources"] = json!({});
    let all = pith_container::compile::capability_names();
    bundle.config["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
    bundle.args(&["try", "mknod /tmp/disk", "length /tmp/disk", "length /dev/null", "write /dev/null"]);
    let expect =
        "mknod /tmp/disk: done\nlength /tmp/disk: refused 1\nlength /dev/null: 0\nwrite /dev/null: done\n";
    assert_eq!(bundle.run().ok(), expect);
}
