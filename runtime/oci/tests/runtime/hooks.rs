//! Hooks of all kinds, and the agent that answers for system calls.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};

use crate::Test;
use crate::bundle::Bundle;

pub(crate) const TESTS: &[Test] = &[
    ("hooks_in_order", hooks_in_order),
    ("hooks_with_much_to_read", hooks_with_much_to_read),
    ("hooks_that_fail", hooks_that_fail),
    ("hooks_that_hang", hooks_that_hang),
];

const STAGES: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// This executable as a hook that writes to a file and ends with a code. Inside the container it lies elsewhere.
fn hook(bundle: &Bundle, stage: &str, code: &str) -> Value {
    let inside = stage == "startContainer";
    let (path, file) = if inside {
        ("/bin/guest".to_owned(), "/tmp/calls".to_owned())
    } else {
        (bundle.text("rootfs/bin/guest"), bundle.text("rootfs/tmp/calls"))
    };
    json!({ "path": path, "args": ["hook", file, stage, code], "env": ["HOOK=yes"] })
}

fn calls(bundle: &Bundle) -> Vec<Value> {
    let text = fs::read_to_string(bundle.path("rootfs/tmp/calls")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn names(calls: &[Value]) -> Vec<&str> {
    calls.iter().filter_map(|call| call["name"].as_str()).collect()
}

fn hooks_in_order() {
    let mut bundle = Bundle::new("hooks");
    bundle.config["annotations"] = json!({ "k": "v" });
    for stage in STAGES {
        bundle.config["hooks"][stage] = json!([hook(&bundle, stage, "0"), hook(&bundle, stage, "0")]);
    }
    bundle.args(&["wait"]);
    bundle.create().ok();
    let pid = bundle.pid();
    let twice =
        |stages: &[&'static str]| -> Vec<&str> { stages.iter().flat_map(|stage| [*stage; 2]).collect() };
    assert_eq!(names(&calls(&bundle)), twice(&STAGES[..3]));
    bundle.oci(&["start", "hooks"]).ok();
    assert_eq!(names(&calls(&bundle)), twice(&STAGES[..5]));
    bundle.oci(&["kill", "hooks", "KILL"]).ok();
    bundle.wait_status("stopped");
    bundle.oci(&["delete", "hooks"]).ok();
    let calls = calls(&bundle);
    assert_eq!(names(&calls), twice(&STAGES));
    for call in &calls {
        let (name, state) = (call["name"].as_str().unwrap_or_default(), &call["state"]);
        assert_eq!(state["id"], "hooks", "{name}");
        assert_eq!(state["bundle"], bundle.dir.display().to_string(), "{name}");
        assert_eq!(state["annotations"], json!({ "k": "v" }), "{name}");
        assert_eq!(call["env"], json!({ "HOOK": "yes" }), "{name}");
        let (status, inside) = match name {
            "prestart" | "startContainer" => ("created", name == "startContainer"),
            "createRuntime" | "createContainer" => ("creating", false),
            "poststart" => ("running", false),
            _ => ("stopped", false),
        };
        assert_eq!(state["status"], status, "{name}");
        let expect = match name {
            "poststop" => 0,
            _ if inside => 1,
            _ => pid,
        };
        assert_eq!(state["pid"], expect, "{name}");
        // Before pivot_root, and with the mounts in place.
        let mounted = call["proc mounted at root path"] == true;
        assert_eq!(mounted, name == "createContainer", "{name}");
    }
}

/// A state that is larger than what a socket takes at once.
fn hooks_with_much_to_read() {
    let mut bundle = Bundle::new("much");
    let annotation = "x".repeat(300_000);
    bundle.config["annotations"] = json!({ "k": annotation });
    let stages = ["createRuntime", "createContainer", "startContainer", "poststop"];
    for stage in stages {
        bundle.config["hooks"][stage] = json!([hook(&bundle, stage, "0")]);
    }
    bundle.args(&["exit", "0"]);
    bundle.run().ok();
    let calls = calls(&bundle);
    assert_eq!(names(&calls), stages);
    for call in &calls {
        assert_eq!(call["state"]["annotations"]["k"], annotation, "{}", call["name"]);
    }
}

fn hooks_that_fail() {
    for stage in STAGES {
        let mut bundle = Bundle::new(&format!("fail-{stage}"));
        let name = bundle.name.clone();
        for each in STAGES {
            let code = if each == stage { "3" } else { "0" };
            bundle.config["hooks"][each] = json!([hook(&bundle, each, code)]);
        }
        bundle.args(&["wait"]);
        let created = bundle.create();
        let text = format!("error running {stage} hook #0: exit status 3");
        if ["prestart", "createRuntime", "createContainer"].contains(&stage) {
            created.refused(&text);
            bundle.oci(&["state", &name]).refused("container does not exist");
            assert_eq!(names(&calls(&bundle)).last(), Some(&"poststop"), "{stage}");
            continue;
        }
        created.ok();
        let started = bundle.oci(&["start", &name]);
        if stage == "poststop" {
            started.ok();
            let outcome = bundle.oci(&["delete", "--force", &name]);
            assert!(outcome.code == 0 && outcome.stderr.contains(&text), "{outcome:?}");
            continue;
        }
        started.refused(&text);
        bundle.wait_status("stopped");
        bundle.oci(&["delete", &name]).ok();
        assert_eq!(names(&calls(&bundle)).last(), Some(&"poststop"), "{stage}");
    }
    // Before version 1.2 of the specification a failing poststart hook was no more than a warning.
    let mut bundle = Bundle::new("fail-old");
    bundle.config["ociVersion"] = "1.0.2".into();
    bundle.config["hooks"]["poststart"] =
        json!([hook(&bundle, "poststart", "3"), hook(&bundle, "poststart", "0")]);
    bundle.args(&["wait"]);
    bundle.create().ok();
    let outcome = bundle.oci(&["start", "fail-old"]);
    assert!(outcome.code == 0 && outcome.stderr.contains("level=warning"), "{outcome:?}");
    assert_eq!(names(&calls(&bundle)), ["poststart", "poststart"]);
    assert_eq!(bundle.status(), "running");
}

fn hooks_that_hang() {
    let mut bundle = Bundle::new("hang");
    let mut hanging = hook(&bundle, "createRuntime", "hang");
    hanging["timeout"] = 1.into();
    bundle.config["hooks"]["createRuntime"] = json!([hanging]);
    bundle.args(&["wait"]);
    bundle.create().refused("hook ran past specified timeout of 1s");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

/// Takes a seccomp listener and answers the first call on it with errno 71; what came with the listener.
pub(crate) fn answer_as_agent(listener: &UnixListener) -> Value {
    let (stream, _) = listener.accept().expect("accept");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0u8; 64 * 1024];
    let got = rustix::net::recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .expect("recvmsg");
    let state = serde_json::from_slice(&bytes[..got.bytes]).expect("JSON");
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let fd = fd.expect("a descriptor");
    pith_sys::seccomp::refuse_next(fd.as_fd(), 71).expect("answer");
    assert!(fd.as_raw_fd() > 2);
    state
}
