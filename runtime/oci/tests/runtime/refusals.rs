//! What is refused, in one line that says why, with nothing left behind.

use std::fs;

use serde_json::{Value, json};

use crate::Test;
use crate::bundle::Bundle;

pub(crate) const TESTS: &[Test] =
    &[("wrong_ids_and_words", wrong_ids_and_words), ("wrong_bundles", wrong_bundles)];

fn wrong_ids_and_words() {
    let mut bundle = Bundle::new("words");
    bundle.args(&["exit", "0"]);
    bundle.write();
    for id in ["", ".", "..", "a/b", "../x", "a b", "ä"] {
        for command in ["create", "run", "start", "state", "delete", "kill", "pause"] {
            bundle.oci(&[command, id]).refused("invalid container ID format");
        }
        bundle.oci(&["exec", id, "true"]).exec_refused("invalid container ID format");
    }
    for command in
        ["create", "run", "start", "state", "delete", "exec", "kill", "pause", "resume", "events", "ps"]
    {
        bundle.oci(&[command]).refused("argument(s)");
    }
    for command in ["start", "state", "delete", "pause", "resume", "events", "ps", "kill", "update"] {
        bundle.oci(&[command, "none"]).refused("container does not exist");
    }
    bundle.oci(&["exec", "none", "true"]).exec_refused("container does not exist");
    bundle.oci(&["create", "a", "b"]).refused("requires exactly 1 argument(s)");
    bundle.oci(&["create", "--nope", "a"]).refused("flag provided but not defined: -nope");
    bundle.oci(&["checkpoint", "a"]).refused("checkpoint is not supported");
    bundle.oci(&["restore", "a"]).refused("restore is not supported");
    bundle.oci(&["--systemd-cgroup", "create", "a"]).refused("systemd");
    assert_eq!(bundle.oci(&["frobnicate"]).code, 3);
    for (words, line) in [
        (vec!["-h"], "NAME:"),
        (vec!["checkpoint", "-h"], "   pith-oci checkpoint"),
        (vec!["exec", "--help"], "   --tty, -t"),
    ] {
        assert!(bundle.oci(&words).ok().lines().any(|found| found.starts_with(line)), "{words:?}");
    }
    assert!(bundle.oci(&["--version"]).ok().contains("spec: 1.2.0"));
    let features: Value = serde_json::from_str(&bundle.oci(&["features"]).ok()).expect("JSON");
    assert_eq!(features["ociVersionMax"], "1.2.0");
}

fn without(config: &mut Value, namespace: &str) {
    let namespaces = config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    namespaces.retain(|listed| listed["type"] != namespace);
}

fn wrong_bundles() {
    let mut bundle = Bundle::new("wrong");
    bundle.args(&["exit", "0"]);
    let good = bundle.config.clone();
    let apparmor = fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    let no_profile = if apparmor.starts_with('Y') {
        "write exec p to /proc/self/attr/apparmor/exec: No such file"
    } else {
        "process.apparmorProfile is not supported"
    };
    type Wrong = (&'static str, fn(&mut Value), &'static str);
    let cases: &[Wrong] = &[
        ("version", |c| c["ociVersion"] = "invalid".into(), "ociVersion"),
        ("no version", |c| c["ociVersion"] = "".into(), "ociVersion is missing"),
        ("later version", |c| c["ociVersion"] = "2.0.0".into(), "ociVersion 2.0.0 is not supported"),
        ("no root", |c| c["root"] = Value::Null, "root is missing"),
        ("missing root", |c| c["root"]["path"] = "nowhere".into(), "root.path: nowhere"),
        ("root is a file", |c| c["root"]["path"] = "config.json".into(), "is not a directory"),
        ("relative cwd", |c| c["process"]["cwd"] = "tmp".into(), "process.cwd"),
        ("no args", |c| c["process"]["args"] = json!([]), "process.args is missing"),
        ("wrong type", |c| c["process"]["args"] = json!("sh"), "invalid type"),
        ("wrong rlimit", |c| c["process"]["rlimits"][0]["type"] = "RLIMIT_X".into(), "RLIMIT_X"),
        (
            "rlimit twice",
            |c| {
                let limit = c["process"]["rlimits"][0].clone();
                c["process"]["rlimits"] = json!([limit, limit]);
            },
            "process.rlimits",
        ),
        ("soft above hard", |c| c["process"]["rlimits"][0]["soft"] = 9999.into(), "soft limit above"),
        (
            "nice",
            |c| {
                c["process"]["scheduler"] = json!({ "policy": "SCHED_OTHER", "nice": 20 });
            },
            "process.scheduler.nice",
        ),
        (
            "priority without real time",
            |c| {
                c["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "priority": 1 });
            },
            "process.scheduler.priority",
        ),
        (
            "deadline without SCHED_DEADLINE",
            |c| {
                c["process"]["scheduler"] = json!({ "policy": "SCHED_OTHER", "deadline": 1 });
            },
            "process.scheduler.runtime",
        ),
        (
            "io priority",
            |c| {
                c["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 });
            },
            "process.ioPriority.priority",
        ),
        (
            "personality flags",
            |c| {
                c["linux"]["personality"] = json!({ "domain": "LINUX", "flags": ["x"] });
            },
            "linux.personality.flags is not supported",
        ),
        (
            "memory policy",
            |c| {
                c["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "x" });
            },
            "linux.memoryPolicy.nodes",
        ),
        (
            "network devices",
            |c| {
                c["linux"]["netDevices"] = json!({ "eth0": {} });
            },
            "linux.netDevices is not supported",
        ),
        ("wrong namespace", |c| c["linux"]["namespaces"][0]["type"] = "x".into(), "unknown variant"),
        (
            "namespace twice",
            |c| c["linux"]["namespaces"][0]["type"] = "mount".into(),
            "names a namespace twice",
        ),
        ("relative namespace", |c| c["linux"]["namespaces"][0]["path"] = "x".into(), "is not absolute"),
        ("absent namespace", |c| c["linux"]["namespaces"][1]["path"] = "/nope".into(), "No such file"),
        ("hostname of nobody", |c| without(c, "uts"), "hostname is not supported without"),
        (
            "domainname of nobody",
            |c| {
                without(c, "uts");
                c["hostname"] = Value::Null;
                c["domainname"] = "x".into();
            },
            "domainname is not supported without",
        ),
        ("relative mask", |c| c["linux"]["maskedPaths"] = json!(["etc"]), "linux.maskedPaths"),
        ("relative read-only path", |c| c["linux"]["readonlyPaths"] = json!(["etc"]), "linux.readonlyPaths"),
        (
            "device in the way of a file",
            |c| {
                c["linux"]["devices"] =
                    json!([{ "path": "/etc/passwd", "type": "c", "major": 1, "minor": 3 }]);
            },
            "exists and is something else",
        ),
        (
            "namespace of another type",
            |c| {
                c["linux"]["namespaces"][1]["path"] = "/proc/self/ns/ipc".into();
            },
            "Invalid argument",
        ),
        ("hook path", |c| c["hooks"] = json!({ "prestart": [{ "path": "x" }] }), "hooks.prestart[0].path"),
        (
            "hook timeout",
            |c| {
                c["hooks"] = json!({ "poststop": [{ "path": "/x", "timeout": 0 }] });
            },
            "hooks.poststop[0].timeout",
        ),
        ("cgroup path", |c| c["linux"]["cgroupsPath"] = "/../x".into(), "leaves the cgroup tree"),
        (
            "intelRdt",
            |c| c["linux"]["intelRdt"] = json!({ "closID": "x" }),
            "linux.intelRdt is not supported",
        ),
        ("apparmor", |c| c["process"]["apparmorProfile"] = "p".into(), no_profile),
        ("selinux", |c| c["process"]["selinuxLabel"] = "l".into(), "process.selinuxLabel is not supported"),
        ("mount label", |c| c["linux"]["mountLabel"] = "l".into(), "linux.mountLabel is not supported"),
        ("windows", |c| c["windows"] = json!({ "layerFolders": [] }), "windows is not supported"),
        (
            "sysctl",
            |c| c["linux"]["sysctl"] = json!({ "vm.swappiness": "1" }),
            "not in a separate kernel namespace",
        ),
        (
            "mappings",
            |c| {
                c["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": 1, "size": 1 }]);
            },
            "without a user namespace",
        ),
        (
            "device outside",
            |c| c["linux"]["devices"] = json!([{ "path": "/", "type": "c" }]),
            "names no device",
        ),
        (
            "seccomp argument",
            |c| {
                c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
                "names": ["mkdir"], "action": "SCMP_ACT_ERRNO",
                "args": [{ "index": 9, "value": 1, "op": "SCMP_CMP_EQ" }] }] });
            },
            "there is no argument 9",
        ),
        ("mount type", |c| c["mounts"] = json!([{ "destination": "/tmp", "type": "nofs" }]), "nofs"),
        (
            "mount source",
            |c| {
                c["mounts"] = json!([{ "destination": "/tmp", "source": "/nope", "options": ["bind"] }]);
            },
            "/nope",
        ),
        (
            "mount option",
            |c| {
                c["mounts"] =
                    json!([{ "destination": "/tmp", "type": "tmpfs", "options": ["nosuchoption"] }]);
            },
            "nosuchoption",
        ),
        (
            "time offsets",
            |c| {
                c["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1 } });
            },
            "without a new time namespace",
        ),
    ];
    for (name, change, text) in cases {
        bundle.config = good.clone();
        change(&mut bundle.config);
        let outcome = bundle.create();
        assert!(outcome.code == 1 && outcome.stderr.contains(text), "{name}: {outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{name}: {outcome:?}");
        assert_eq!(bundle.leftovers(), Vec::<String>::new(), "{name}");
    }
    bundle.config = good;
    fs::write(bundle.path("config.json"), "{").expect("write");
    bundle.oci(&["create", "wrong"]).refused("EOF while parsing");
    fs::remove_file(bundle.path("config.json")).expect("remove");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let pipe = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, bundle.path("config.json"), pipe, mode, 0).expect("mknod");
    bundle.oci(&["create", "wrong"]).refused("is not a regular file");
    fs::remove_file(bundle.path("config.json")).expect("remove");
    bundle.oci(&["create", "wrong"]).refused("not found");
    bundle.oci(&["create", "--bundle", "/nowhere", "wrong"]).refused("/nowhere");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}
