//! Commands and states: what each allows, what it answers, what it leaves.

use std::fs;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};

use crate::Test;
use crate::bundle::Bundle;

pub(crate) const TESTS: &[Test] = &[
    ("from_create_to_delete", from_create_to_delete),
    ("exit_codes", exit_codes),
    ("killing", killing),
    ("deleting", deleting),
    ("pausing", pausing),
    ("executing", executing),
    ("updating", updating),
    ("listing", listing),
    ("terminals", terminals),
    ("descriptors_kept", descriptors_kept),
    ("logs", logs),
    ("no_process", no_process),
    ("configuration_is_read_once", configuration_is_read_once),
];

fn from_create_to_delete() {
    let mut bundle = Bundle::new("life");
    bundle.args(&["term"]);
    bundle.config["annotations"] = json!({ "org.example.key": "value" });
    let pid_file = bundle.text("pid");
    bundle.write();
    bundle.oci(&["create", "--pid-file", &pid_file, "life"]).ok();
    let state = bundle.state();
    assert_eq!(state["ociVersion"], "1.2.0");
    assert_eq!(state["id"], "life");
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], bundle.dir.display().to_string());
    assert_eq!(state["annotations"]["org.example.key"], "value");
    assert_eq!(state["pid"].to_string(), fs::read_to_string(&pid_file).expect("pid file"));
    assert!(!bundle.path("rootfs/tmp/ready").exists(), "the program does not run before start");
    bundle.oci(&["create", "life"]).refused("container with given ID already exists");
    bundle.oci(&["delete", "life"]).refused("cannot delete container life that is not stopped: created");
    bundle.oci(&["start", "life"]).ok();
    assert_eq!(bundle.status(), "running");
    bundle.oci(&["start", "life"]).refused("cannot start an already running container");
    bundle.oci(&["delete", "life"]).refused("cannot delete container life that is not stopped: running");
    bundle.wait_for("the program", || bundle.path("rootfs/tmp/ready").exists());
    bundle.oci(&["kill", "life", "TERM"]).ok();
    bundle.wait_status("stopped");
    assert_eq!(bundle.state()["pid"], 0);
    bundle.oci(&["start", "life"]).refused("cannot start a container that has stopped");
    bundle.oci(&["kill", "life", "KILL"]).refused("container not running");
    bundle.oci(&["delete", "life"]).ok();
    bundle.oci(&["state", "life"]).refused("container does not exist");
    bundle.oci(&["delete", "life"]).refused("container does not exist");
    bundle.oci(&["delete", "--force", "life"]).ok();
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

fn exit_codes() {
    let mut bundle = Bundle::new("codes");
    for (args, code) in
        [(["exit", "0"], 0), (["exit", "7"], 7), (["killed", "9"], 137), (["killed", "15"], 143)]
    {
        // The first process of a pid namespace ignores signals that it sends to itself.
        bundle.config["linux"]["namespaces"] =
            json!([{ "type": "mount" }, { "type": "ipc" }, { "type": "cgroup" }]);
        bundle.config["hostname"] = Value::Null;
        bundle.config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "sysfs");
        bundle.args(&args);
        let outcome = bundle.run();
        assert_eq!(outcome.code, code, "{args:?}: {outcome:?}");
    }
    for (program, text) in [
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        ("/nope", "exec: \"/nope\": stat /nope: no such file or directory"),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
    ] {
        bundle.config["process"]["args"] = json!([program]);
        bundle.run().refused(&text.replace('"', "\\\""));
        assert_eq!(bundle.leftovers(), Vec::<String>::new());
    }
}

fn killing() {
    let mut bundle = Bundle::new("killing");
    bundle.args(&["wait"]);
    bundle.create().ok();
    bundle.oci(&["kill", "killing", "FOO"]).refused("unknown signal");
    bundle.oci(&["kill", "killing", "0"]).ok();
    // A created container can be killed too.
    bundle.oci(&["kill", "killing", "SIGKILL"]).ok();
    bundle.wait_status("stopped");
    bundle.oci(&["delete", "killing"]).ok();
    // Without a pid namespace, nobody ends with the first process but by the runtime.
    bundle.config["linux"]["namespaces"] =
        json!([{ "type": "mount" }, { "type": "ipc" }, { "type": "cgroup" }]);
    bundle.config["hostname"] = Value::Null;
    bundle.config["mounts"] = json!([]);
    bundle.args(&["fork", "3"]);
    bundle.create().ok();
    bundle.oci(&["start", "killing"]).ok();
    let pids = || -> usize {
        let text = bundle.oci(&["ps", "--format", "json", "killing"]).ok();
        serde_json::from_str::<Vec<i32>>(&text).expect("pids").len()
    };
    bundle.wait_for("four processes", || pids() == 4);
    bundle.oci(&["kill", "killing", "KILL"]).ok();
    bundle.wait_for("nobody", || pids() == 0);
    bundle.oci(&["delete", "killing"]).ok();
}

fn deleting() {
    let mut bundle = Bundle::new("deleting");
    bundle.args(&["fork", "5"]);
    for start in [false, true] {
        bundle.create().ok();
        if start {
            bundle.oci(&["start", "deleting"]).ok();
        }
        bundle.oci(&["delete", "--force", "deleting"]).ok();
        assert_eq!(bundle.leftovers(), Vec::<String>::new());
    }
    // What was not made for the container stays: a cgroup that was there before, folders above.
    let above = fs::read_dir("/sys/fs/cgroup")
        .expect("list")
        .flatten()
        .find(|entry| entry.path().join("pids.max").exists() || entry.file_name() == "pids");
    if let Some(above) = above {
        let kept = above.path().join("pith-oci-test-kept");
        fs::create_dir_all(&kept).expect("mkdir");
        bundle.config["linux"]["cgroupsPath"] = "/pith-oci-test-kept/below".into();
        bundle.create().ok();
        bundle.oci(&["delete", "--force", "deleting"]).ok();
        let (stays, gone) = (kept.exists(), !kept.join("below").exists());
        let _ = fs::remove_dir(&kept);
        let others = fs::read_dir("/sys/fs/cgroup").expect("list").flatten();
        let left = others.filter(|root| root.path().join("pith-oci-test-kept").exists()).count();
        assert_eq!(left, 0, "what was made in other hierarchies is gone");
        assert!(stays && gone, "only what was made is removed");
    }
    // A power cut may tear the state.
    fs::create_dir_all(bundle.path("state/torn")).expect("mkdir");
    fs::write(bundle.path("state/torn/state.json"), "{").expect("write");
    bundle.oci(&["delete", "torn"]).refused("state of torn");
    bundle.oci(&["delete", "--force", "torn"]).ok();
    bundle.oci(&["state", "torn"]).refused("container does not exist");
    // A cgroup in use belongs to somebody else.
    bundle.config["linux"]["cgroupsPath"] = "/pith-oci-test/deleting".into();
    bundle.create().ok();
    bundle.oci(&["create", "second"]).refused("container's cgroup is not empty");
    assert_eq!(bundle.status(), "created");
}

fn pausing() {
    let mut bundle = Bundle::new("pausing");
    bundle.args(&["wait"]);
    bundle.create().ok();
    bundle.oci(&["start", "pausing"]).ok();
    bundle.oci(&["resume", "pausing"]).refused("container not paused");
    bundle.oci(&["pause", "pausing"]).ok();
    assert_eq!(bundle.status(), "paused");
    bundle.oci(&["exec", "pausing", "guest", "exit", "0"]).exec_refused("paused");
    bundle.oci(&["resume", "pausing"]).ok();
    assert_eq!(bundle.status(), "running");
    bundle.oci(&["exec", "pausing", "guest", "exit", "0"]).ok();
    bundle.oci(&["pause", "pausing"]).ok();
    // A paused container can be killed and deleted.
    bundle.oci(&["delete", "--force", "pausing"]).ok();
}

fn executing() {
    let mut bundle = Bundle::new("executing");
    bundle.args(&["wait"]);
    bundle.create().ok();
    // Before start as well (runc and crun allow it).
    bundle.oci(&["exec", "executing", "guest", "exit", "3"]);
    bundle.oci(&["start", "executing"]).ok();
    assert_eq!(bundle.oci(&["exec", "executing", "guest", "exit", "9"]).code, 9);
    let facts = |words: &[&str]| -> Value {
        let words: Vec<&str> =
            ["exec"].iter().chain(words).chain(&["executing", "guest", "facts"]).copied().collect();
        let text = bundle.oci(&words).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    let own = facts(&[]);
    assert_eq!(own["fds"], json!(["0", "1", "2"]));
    let init = format!("/proc/{}/ns", bundle.pid());
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let theirs = fs::read_link(format!("{init}/{kind}")).expect("a link").display().to_string();
        assert_eq!(own["namespaces"][kind], theirs, "{kind}");
    }
    let other = facts(&[
        "--user",
        "5:6",
        "--additional-gids",
        "7,8",
        "--cwd",
        "/srv",
        "--env",
        "A=b",
        "--cap",
        "CAP_NET_RAW",
        "--no-new-privs",
    ]);
    assert_eq!(
        (&other["ids"], &other["cwd"], &other["env"]["A"]),
        (&json!([5, 6]), &json!("/srv"), &json!("b"))
    );
    assert_eq!(other["status"]["Groups"], "7 8");
    assert_eq!(other["status"]["NoNewPrivs"], "1");
    assert_eq!(other["status"]["CapInh"], "0000000000000000", "CVE-2022-29162");
    let cap_net_raw = 1 << 13;
    let bounding = u64::from_str_radix(other["status"]["CapBnd"].as_str().unwrap_or_default(), 16);
    assert!(bounding.is_ok_and(|set| set & cap_net_raw != 0));
    for (words, text) in [
        (vec!["executing"], "process args cannot be empty"),
        (vec!["executing", "nope"], "executable file not found in $PATH"),
        (vec!["--user", "x", "executing", "true"], "is not a user or group number"),
        (vec!["--user", " 0", "executing", "true"], "is not a user or group number"),
        (vec!["--process", "/nope", "executing"], "/nope"),
        (vec!["--pid-file", "/nope/pid", "executing", "true"], "/nope/pid"),
        (vec!["--cgroup", "..", "executing", "true"], ".. is not a sub cgroup path"),
        (vec!["--cgroup", "whaaat:/", "executing", "true"], "unknown controller whaaat"),
    ] {
        let words: Vec<&str> = ["exec"].into_iter().chain(words).collect();
        bundle.oci(&words).exec_refused(text);
    }
    let process = json!({ "cwd": "/tmp", "user": { "uid": 1, "gid": 2 }, "args": ["/bin/guest", "wait"] });
    fs::write(bundle.path("process.json"), process.to_string()).expect("write");
    let (file, pid_file) = (bundle.text("process.json"), bundle.text("exec.pid"));
    bundle.oci(&["exec", "--process", &file, "--detach", "--pid-file", &pid_file, "executing"]).ok();
    // A process may leave its user out.
    let plain = json!({ "cwd": "/tmp", "args": ["/bin/guest", "exit", "5"] });
    fs::write(bundle.path("plain.json"), plain.to_string()).expect("write");
    assert_eq!(bundle.oci(&["exec", "--process", &bundle.text("plain.json"), "executing"]).code, 5);
    let pid = fs::read_to_string(&pid_file).expect("pid file");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    assert!(status.contains("Uid:\t1\t1\t1\t1\n"), "{status}");
    bundle.oci(&["kill", "executing", "KILL"]).ok();
    bundle.wait_status("stopped");
    bundle.oci(&["exec", "executing", "true"]).exec_refused("cannot exec in a stopped container");
}

fn updating() {
    let mut bundle = Bundle::new("updating");
    bundle.args(&["wait"]);
    bundle.config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 10 });
    bundle.create().ok();
    bundle.oci(&["start", "updating"]).ok();
    let read = |names: &[&str]| -> String {
        let found = bundle.cgroups().into_iter().flat_map(|dir| names.iter().map(move |name| dir.join(name)));
        found.filter_map(|path| fs::read_to_string(path).ok()).collect::<String>().trim().to_owned()
    };
    let memory = ["memory.limit_in_bytes", "memory.max"];
    assert_eq!(read(&memory), (64 << 20).to_string());
    bundle.oci(&["update", "--memory", "32m", "--pids-limit", "20", "updating"]).ok();
    assert_eq!((read(&memory), read(&["pids.max"])), ((32 << 20).to_string(), "20".to_owned()));
    let resources = bundle.text("resources.json");
    fs::write(&resources, r#"{"memory": {"limit": 50331648}}"#).expect("write");
    bundle.oci(&["update", "--resources", &resources, "updating"]).ok();
    assert_eq!(read(&memory), (48 << 20).to_string());
    bundle.oci(&["update", "--memory", "lots", "updating"]).refused("invalid value for memory: lots");
    bundle.oci(&["update", "--l3-cache-schema", "x", "updating"]).refused("intelRdt is not supported");
    let events: Value =
        serde_json::from_str(&bundle.oci(&["events", "--stats", "updating"]).ok()).expect("JSON");
    assert_eq!((&events["type"], &events["id"]), (&json!("stats"), &json!("updating")));
    assert_eq!(events["data"]["pids"]["limit"], 20);
    assert_eq!(events["data"]["memory"]["usage"]["limit"], 48 << 20);
}

fn listing() {
    let mut bundle = Bundle::new("listing");
    assert_eq!(bundle.oci(&["list", "--format", "json"]).ok().trim(), "null");
    bundle.args(&["wait"]);
    for id in ["one", "two"] {
        bundle.config["linux"]["cgroupsPath"] = format!("/pith-oci-test/listing-{id}").into();
        bundle.write();
        bundle.oci(&["create", id]).ok();
    }
    bundle.oci(&["start", "two"]).ok();
    let list: Value = serde_json::from_str(&bundle.oci(&["list", "--format", "json"]).ok()).expect("JSON");
    let known: Vec<_> =
        list.as_array().expect("a list").iter().map(|c| (c["id"].clone(), c["status"].clone())).collect();
    assert_eq!(known, [(json!("one"), json!("created")), (json!("two"), json!("running"))]);
    assert_eq!(bundle.oci(&["list", "-q"]).ok(), "one\ntwo\n");
    let table = bundle.oci(&["list"]).ok();
    assert!(table.starts_with("ID          PID "), "{table}");
    let processes = bundle.oci(&["ps", "two"]);
    assert!(processes.stdout.contains("guest wait") || processes.stderr.contains("ps"), "{processes:?}");
    bundle.oci(&["list", "--format", "x"]).refused("invalid format option");
}

/// What a console socket gets.
fn receive_master(listener: &UnixListener) -> OwnedFd {
    let (stream, _) = listener.accept().expect("accept");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0u8; 64];
    let got = rustix::net::recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .expect("recvmsg");
    assert_eq!(&bytes[..got.bytes], b"/dev/ptmx");
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return fds.next().expect("a descriptor");
        }
    }
    panic!("no descriptor came");
}

fn terminals() {
    let mut bundle = Bundle::new("terminals");
    bundle.args(&["facts"]);
    bundle.config["process"]["terminal"] = true.into();
    bundle.config["process"]["consoleSize"] = json!({ "height": 11, "width": 222 });
    bundle.write();
    bundle.oci(&["create", "terminals"]).refused("without setting console socket");
    let socket = bundle.text("console");
    let listener = UnixListener::bind(&socket).expect("bind");
    bundle.oci(&["create", "--console-socket", &socket, "terminals"]).ok();
    let master = receive_master(&listener);
    bundle.oci(&["start", "terminals"]).ok();
    let mut text = String::new();
    let mut buffer = [0u8; 4096];
    while let Ok(length @ 1..) = rustix::io::read(&master, &mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    let facts: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(facts["terminal"], json!([11, 222]));
    assert!(
        facts["devices"]["console"].as_str().is_some_and(|device| device.starts_with("c 136:")),
        "{facts}"
    );
    bundle.wait_status("stopped");
    bundle.oci(&["delete", "terminals"]).ok();
    // In the foreground the command is the terminal's other side.
    let text = bundle.oci(&["run", "terminals"]).ok();
    let facts: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(facts["fds"], json!(["0", "1", "2"]));
    bundle.config["process"]["terminal"] = false.into();
    bundle.write();
    bundle.oci(&["create", "--console-socket", &socket, "terminals"]).refused("cannot use console socket");
}

fn descriptors_kept() {
    let mut bundle = Bundle::new("kept");
    bundle.args(&["facts"]);
    bundle.write();
    bundle.oci(&["run", "--preserve-fds", "90", "kept"]).refused("descriptor 3 is not open");
    // A shell opens them: this process's own would be close-on-exec.
    let mut command = std::process::Command::new("/bin/sh");
    let call = format!(
        "exec {} --root {} run --preserve-fds 2 kept 3</dev/null 4</dev/zero 5</etc/passwd",
        crate::bundle::program(),
        bundle.text("state")
    );
    command.args(["-c", &call]).current_dir(&bundle.dir);
    let facts: Value = serde_json::from_str(&bundle.finish(command).ok()).expect("JSON");
    assert_eq!(facts["fds"], json!(["0", "1", "2", "3", "4"]));
    let mut command = std::process::Command::new("/bin/sh");
    let call = format!(
        "LISTEN_FDS=1 exec {} --root {} run kept 3</dev/null",
        crate::bundle::program(),
        bundle.text("state")
    );
    command.args(["-c", &call]).current_dir(&bundle.dir);
    let facts: Value = serde_json::from_str(&bundle.finish(command).ok()).expect("JSON");
    assert_eq!((&facts["fds"], &facts["env"]["LISTEN_FDS"]), (&json!(["0", "1", "2", "3"]), &json!("1")));
    // Input and output are the caller's.
    bundle.args(&["cat"]);
    bundle.write();
    let mut command = bundle.command(&["run", "kept"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
    child.stdin.take().expect("piped").write_all(b"hello").expect("write");
    let output = child.wait_with_output().expect("wait");
    assert_eq!(output.stdout, b"hello");
}

fn logs() {
    let bundle = Bundle::new("logs");
    let log = bundle.text("log");
    let outcome = bundle.oci(&["--log", &log, "--log-format", "json", "state", "none"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (1, "container does not exist\n"));
    let line: Value = serde_json::from_str(&fs::read_to_string(&log).expect("a log")).expect("JSON");
    assert_eq!((&line["level"], &line["msg"]), (&json!("error"), &json!("container does not exist")));
    let outcome = bundle.oci(&["state", "none"]);
    assert!(outcome.stderr.contains("level=error msg=\"container does not exist\""), "{outcome:?}");
    assert_eq!(bundle.oci(&["--log-format", "x", "state", "none"]).code, 1);
}

fn no_process() {
    let mut bundle = Bundle::new("noprocess");
    bundle.config["process"] = Value::Null;
    bundle.create().ok();
    assert_eq!(bundle.status(), "created");
    bundle.oci(&["start", "noprocess"]).refused("process is missing");
    assert_eq!(bundle.status(), "stopped");
    bundle.oci(&["delete", "noprocess"]).ok();
}

fn configuration_is_read_once() {
    let mut bundle = Bundle::new("once");
    bundle.args(&["try", "mkdir /tmp/first"]);
    bundle.create().ok();
    bundle.args(&["try", "mkdir /tmp/second"]);
    bundle.write();
    bundle.oci(&["start", "once"]).ok();
    bundle.wait_status("stopped");
    let made = |name: &str| bundle.path("rootfs/tmp").join(name).exists();
    assert_eq!((made("first"), made("second")), (true, false));
}
