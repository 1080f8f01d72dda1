//! Namespaces, mounts, propagation, seccomp: what config.json says is what the program finds.

use std::fs;
use std::os::unix::fs::chown;

use serde_json::{Value, json};

use crate::Test;
use crate::bundle::Bundle;

pub(crate) const TESTS: &[Test] = &[
    ("namespaces_by_path", namespaces_by_path),
    ("namespaces_left_out", namespaces_left_out),
    ("no_mount_namespace", no_mount_namespace),
    ("user_namespaces", user_namespaces),
    ("mapped_mounts", mapped_mounts),
    ("mounts", mounts),
    ("root_propagation", root_propagation),
    ("seccomp", seccomp),
    ("seccomp_of_other_runtimes", seccomp_of_other_runtimes),
    ("time", time),
];

fn namespaces_by_path() {
    let mut bundle = Bundle::new("joined");
    let mut holder = Bundle::new("holder");
    holder.args(&["wait"]);
    holder.create().ok();
    let pid = holder.pid();
    let path = |kind: &str| format!("/proc/{pid}/ns/{kind}");
    let id = |kind: &str| fs::read_link(path(kind)).expect("a link").display().to_string();
    bundle.config["linux"]["namespaces"] = json!([
        { "type": "mount" },
        { "type": "pid", "path": path("pid") },
        { "type": "network", "path": path("net") },
        { "type": "ipc", "path": path("ipc") },
        { "type": "uts", "path": path("uts") },
        { "type": "cgroup", "path": path("cgroup") },
    ]);
    let facts = bundle.facts();
    for kind in ["pid", "net", "ipc", "uts", "cgroup"] {
        assert_eq!(facts["namespaces"][kind], id(kind), "{kind}");
    }
    assert_ne!(facts["namespaces"]["mnt"], id("mnt"));
    assert_ne!(facts["pid"], 1);
}

fn namespaces_left_out() {
    let mut bundle = Bundle::new("inherited");
    bundle.config["linux"]["namespaces"] = json!([{ "type": "mount" }]);
    bundle.config["hostname"] = Value::Null;
    let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["type"] != "sysfs" && mount["type"] != "mqueue");
    let facts = bundle.facts();
    for kind in ["pid", "net", "ipc", "uts", "cgroup", "user", "time"] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).expect("a link").display().to_string();
        assert_eq!(facts["namespaces"][kind], own, "{kind}");
    }
    let cgroup = facts["mounts"].as_array().expect("mounts").iter().any(|mount| {
        mount.as_str().is_some_and(|mount| mount.contains("/pith-oci-test/inherited /sys/fs/cgroup"))
    });
    assert!(cgroup, "its own cgroup, and not the host's: {:#}", facts["mounts"]);
}

/// Nor a mount namespace: what is mounted is seen outside as well, below the root alone, and goes with the container.
fn no_mount_namespace() {
    let mut bundle = Bundle::new("unmounted");
    bundle.config["linux"]["namespaces"] = json!([]);
    bundle.config["hostname"] = Value::Null;
    bundle.run().refused("linux.namespaces[mount] is missing");
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    let before = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let facts = bundle.facts();
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user", "time"] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).expect("a link").display().to_string();
        assert_eq!(facts["namespaces"][kind], own, "{kind}");
    }
    assert_eq!(facts["devices"]["null"], "c 1:3 666 0:0");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").expect("mounts"), before);
    // By exec, too, nobody gets at the host's root.
    bundle.args(&["wait"]);
    bundle.create().ok();
    bundle.oci(&["start", "unmounted"]).ok();
    let words = ["exec", "unmounted", "guest", "try", "list /srv", "mkdir /srv/made"];
    assert_eq!(bundle.oci(&words).ok(), "list /srv: 0\nmkdir /srv/made: done\n");
    assert!(bundle.path("rootfs/srv/made").exists() && bundle.path("rootfs/dev/null").exists());
    bundle.oci(&["delete", "--force", "unmounted"]).ok();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").expect("mounts"), before);
    assert!(!bundle.path("rootfs/dev/null").exists());
    // What cannot be mounted leaves nothing either.
    bundle.config["mounts"]
        .as_array_mut()
        .expect("mounts")
        .push(json!({ "destination": "/x", "type": "nofs" }));
    bundle.create().refused("nofs");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").expect("mounts"), before);
    bundle.config["mounts"] = json!([]);
    bundle.args(&["try", "list /srv", "list /dev"]);
    assert_eq!(bundle.run().ok(), "list /srv: 1\nlist /dev: 0\n");
}

fn with_users(bundle: &mut Bundle) {
    bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({ "type": "user" }));
    for kind in ["uidMappings", "gidMappings"] {
        bundle.config["linux"][kind] = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
    }
    chown(bundle.path("rootfs/srv"), Some(100_003), Some(100_004)).expect("chown");
}

fn user_namespaces() {
    let mut bundle = Bundle::new("users");
    with_users(&mut bundle);
    // A folder that only the host's root may enter leads to the root and to a volume.
    let private = bundle.path("private");
    fs::create_dir_all(private.join("volume")).expect("mkdir");
    fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
    fs::write(private.join("volume/file"), "").expect("write");
    let mount =
        json!({ "destination": "/mnt", "source": private.join("volume"), "options": ["rbind", "ro"] });
    bundle.config["mounts"].as_array_mut().expect("mounts").push(mount);
    let facts = bundle.facts();
    assert_eq!(facts["ids"], json!([0, 0]));
    assert_eq!(facts["owner of srv"], json!([3, 4]));
    let map: Vec<&str> = facts["uid_map"].as_str().unwrap_or_default().split_whitespace().collect();
    assert_eq!(map, ["0", "100000", "1000"]);
    assert!(facts["devices"]["null"].as_str().is_some_and(|null| null.starts_with("c 1:3 666")), "{facts:#}");
    bundle.args(&["try", "list /mnt", "write /mnt/x", "write /dev/null"]);
    assert_eq!(bundle.run().ok(), "list /mnt: 1\nwrite /mnt/x: refused 30\nwrite /dev/null: done\n");
    // Exec enters it too.
    bundle.args(&["wait"]);
    bundle.create().ok();
    bundle.oci(&["start", "users"]).ok();
    let facts: Value =
        serde_json::from_str(&bundle.oci(&["exec", "users", "guest", "facts"]).ok()).expect("JSON");
    assert_eq!(facts["ids"], json!([0, 0]));
    let theirs = fs::read_link(format!("/proc/{}/ns/user", bundle.pid())).expect("a link");
    assert_eq!(facts["namespaces"]["user"], theirs.display().to_string());
    // And another container by path.
    let mut second = Bundle::new("users2");
    with_users(&mut second);
    let path = format!("/proc/{}/ns/user", bundle.pid());
    for namespace in second.config["linux"]["namespaces"].as_array_mut().expect("namespaces") {
        if namespace["type"] == "user" {
            namespace["path"] = path.clone().into();
        }
    }
    let facts = second.facts();
    assert_eq!(facts["namespaces"]["user"], theirs.display().to_string());
    assert_eq!((&facts["ids"], &facts["pid"]), (&json!([0, 0]), &json!(1)));
}

fn mapped_mounts() {
    let mut bundle = Bundle::new("idmap");
    let volume = bundle.path("volume");
    fs::create_dir_all(volume.join("below")).expect("mkdir");
    chown(&volume, Some(5), Some(6)).expect("chown");
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 100 }]);
    let mut mount = json!({ "destination": "/srv", "source": volume, "options": ["rbind"],
        "uidMappings": map, "gidMappings": map });
    bundle.config["mounts"].as_array_mut().expect("mounts").push(mount.clone());
    let facts = bundle.facts();
    assert_eq!(facts["owner of srv"], json!([1005, 1006]));
    mount["gidMappings"] = Value::Null;
    let last = bundle.config["mounts"].as_array_mut().expect("mounts").last_mut().expect("one");
    *last = mount;
    bundle.run().refused("without mappings for both users and groups");
}

fn mounts() {
    let mut bundle = Bundle::new("mounts");
    let volume = bundle.path("volume");
    fs::create_dir_all(&volume).expect("mkdir");
    fs::write(volume.join("file"), "x").expect("write");
    fs::write(bundle.path("rootfs/srv/image"), "x").expect("write");
    let plain = bundle.config["mounts"].clone();
    let source = volume.display().to_string();
    let file = format!("{source}/file");
    let cases = [
        (
            "bind",
            json!({ "destination": "/mnt", "source": source, "options": ["bind"] }),
            "write /mnt/a",
            "done",
        ),
        (
            "relative source",
            json!({ "destination": "/mnt", "source": "volume", "options": ["bind"] }),
            "list /mnt",
            "2",
        ),
        (
            "relative target",
            json!({ "destination": "mnt", "source": source, "options": ["bind"] }),
            "list /mnt",
            "2",
        ),
        (
            "read-only",
            json!({ "destination": "/mnt", "source": source, "options": ["rbind", "ro"] }),
            "write /mnt/a",
            "refused 30",
        ),
        (
            "recursively",
            json!({ "destination": "/mnt", "source": source, "options": ["rbind", "rro"] }),
            "write /mnt/a",
            "refused 30",
        ),
        (
            "a file",
            json!({ "destination": "/a/b/c", "source": file, "options": ["bind", "ro"] }),
            "length /a/b/c",
            "1",
        ),
        (
            "tmpfs",
            json!({ "destination": "/mnt", "type": "tmpfs", "options": ["size=64k", "mode=700"] }),
            "write /mnt/a",
            "done",
        ),
        ("tmpfs covers", json!({ "destination": "/srv", "type": "tmpfs" }), "list /srv", "0"),
        (
            "tmpcopyup",
            json!({ "destination": "/srv", "type": "tmpfs", "options": ["tmpcopyup"] }),
            "list /srv",
            "1",
        ),
        (
            "tmpcopyup, read-only",
            json!({ "destination": "/srv", "type": "tmpfs", "options": ["tmpcopyup", "ro"] }),
            "write /srv/a",
            "refused 30",
        ),
        (
            "remount",
            json!({ "destination": "/tmp", "options": ["remount", "ro"] }),
            "write /tmp/a",
            "refused 30",
        ),
        (
            "noexec and more",
            json!({ "destination": "/mnt", "type": "tmpfs", "options": ["noexec", "nosuid", "nodev", "noatime"] }),
            "write /mnt/a",
            "done",
        ),
        (
            "shared",
            json!({ "destination": "/mnt", "source": source, "options": ["rbind", "rshared"] }),
            "shared /mnt",
            "shared",
        ),
        (
            "unbindable",
            json!({ "destination": "/mnt", "source": source, "options": ["bind", "unbindable"] }),
            "shared /mnt",
            "unbindable",
        ),
    ];
    for (name, mount, what, expect) in cases {
        bundle.config["mounts"] = plain.clone();
        let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
        if mount["options"].as_array().is_some_and(|options| options.contains(&json!("remount"))) {
            mounts.push(json!({ "destination": "/tmp", "type": "tmpfs" }));
        }
        mounts.push(mount);
        bundle.args(&["try", what]);
        let text = bundle.run().ok();
        let got = text.trim().strip_prefix(what).and_then(|rest| rest.strip_prefix(": ")).unwrap_or_default();
        assert!(got.starts_with(expect), "{name}: {got}");
    }
    bundle.config["mounts"] = plain;
    bundle.args(&["try", "write /x"]);
    assert_eq!(bundle.run().ok(), "write /x: done\n");
    bundle.config["root"]["readonly"] = true.into();
    assert_eq!(bundle.run().ok(), "write /x: refused 30\n");
    // Masked and read-only paths.
    fs::write(bundle.path("rootfs/etc/secret"), "secret").expect("write");
    bundle.config["linux"]["maskedPaths"] = json!(["/etc/secret", "/srv", "/none"]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/proc/sys", "/none"]);
    bundle.args(&["try", "length /etc/secret", "list /srv", "open-write /proc/sys/kernel/domainname"]);
    let expect = "length /etc/secret: 0\nlist /srv: 0\nopen-write /proc/sys/kernel/domainname: refused 30\n";
    assert_eq!(bundle.run().ok(), expect);
}

fn root_propagation() {
    let mut bundle = Bundle::new("propagation");
    for (name, expect) in [
        ("shared", "shared"),
        ("slave", ""),
        ("private", ""),
        ("unbindable", "unbindable"),
        ("rshared", "shared"),
    ] {
        bundle.config["linux"]["rootfsPropagation"] = name.into();
        bundle.args(&["try", "shared /"]);
        let text = bundle.run().ok();
        assert!(text.trim().trim_start_matches("shared /:").trim().starts_with(expect), "{name}: {text}");
    }
    bundle.config["linux"]["rootfsPropagation"] = "sideways".into();
    bundle.run().refused("is not a propagation");
}

fn seccomp() {
    let mut bundle = Bundle::new("seccomp");
    let cases = [
        (
            "errno",
            json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 11 }]),
            "refused 11",
        ),
        (
            "default errno",
            json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }]),
            "refused 1",
        ),
        (
            "another mode",
            json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO",
            "args": [{ "index": 1, "value": 7, "op": "SCMP_CMP_EQ" }] }]),
            "done",
        ),
        (
            "this mode",
            json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 12,
            "args": [{ "index": 1, "value": 511, "op": "SCMP_CMP_EQ" }] }]),
            "refused 12",
        ),
        ("unknown names", json!([{ "names": ["nosuchcall"], "action": "SCMP_ACT_ERRNO" }]), "done"),
    ];
    for (number, (name, calls, expect)) in cases.into_iter().enumerate() {
        bundle.config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": calls });
        let what = format!("mkdir /tmp/{number}");
        for no_new_privileges in [true, false] {
            let _ = fs::remove_dir(bundle.path(&format!("rootfs/tmp/{number}")));
            bundle.config["process"]["noNewPrivileges"] = no_new_privileges.into();
            bundle.args(&["try", &what]);
            assert_eq!(bundle.run().ok(), format!("{what}: {expect}\n"), "{name}");
        }
    }
    // A listener: the agent answers for the call.
    let socket = bundle.text("agent");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "meta",
        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }],
    });
    bundle.args(&["try", "mkdir /tmp/notified"]);
    let agent = std::thread::spawn(move || crate::hooks::answer_as_agent(&listener));
    assert_eq!(bundle.run().ok(), "mkdir /tmp/notified: refused 71\n");
    let state = agent.join().expect("the agent");
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert_eq!((&state["metadata"], &state["state"]["id"]), (&json!("meta"), &json!("seccomp")));
    bundle.config["linux"]["seccomp"]["listenerPath"] = Value::Null;
    bundle.run().refused("needs a listenerPath");
}

/// Profiles that were written for other runtimes, years ago, do not know the calls that this one makes.
fn seccomp_of_other_runtimes() {
    let mut bundle = Bundle::new("profile");
    let ours = [
        "accept4",
        "capget",
        "close_range",
        "faccessat2",
        "openat2",
        "prctl",
        "recvmsg",
        "sendmsg",
        "setgroups",
        "setresgid",
        "setresuid",
    ];
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ours, "action": "SCMP_ACT_ERRNO" }],
    });
    let wanted = json!(["CAP_KILL"]);
    bundle.config["process"]["capabilities"] =
        json!({ "bounding": wanted, "effective": wanted, "permitted": wanted });
    bundle.config["process"]["user"] = json!({ "uid": 0, "gid": 6, "additionalGids": [7] });
    for no_new_privileges in [true, false] {
        bundle.config["process"]["noNewPrivileges"] = no_new_privileges.into();
        let status = &bundle.facts()["status"];
        let rights = [&status["Seccomp"], &status["CapPrm"], &status["CapEff"], &status["Groups"]];
        assert_eq!(rights, ["2", "0000000000000020", "0000000000000020", "7"], "{no_new_privileges}");
        bundle.args(&["true"]);
        bundle.create().ok();
        bundle.oci(&["start", "profile"]).ok();
        bundle.wait_status("stopped");
        bundle.oci(&["delete", "profile"]).ok();
    }
}

fn time() {
    let mut bundle = Bundle::new("time");
    if !std::path::Path::new("/proc/self/ns/time").exists() {
        eprintln!("SKIPPED: time: this kernel has no time namespaces");
        return;
    }
    bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({ "type": "time" }));
    bundle.config["linux"]["timeOffsets"] =
        json!({ "monotonic": { "secs": 1000, "nanosecs": 5 }, "boottime": { "secs": 1_000_000 } });
    let facts = bundle.facts();
    let offsets: Vec<&str> = facts["timens"].as_str().unwrap_or_default().split_whitespace().collect();
    assert_eq!(offsets, ["monotonic", "1000", "5", "boottime", "1000000", "0"]);
    let uptime: f64 =
        facts["uptime"].as_str().and_then(|text| text.split('.').next()?.parse().ok()).unwrap_or(0.0);
    assert!(uptime > 1_000_000.0, "{uptime}");
}
