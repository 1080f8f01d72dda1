//! What a container may use: each limit is run into, in whichever cgroup hierarchies this machine has.

use std::fs;
use std::process::{Child, Stdio};

use pith_cgroup::{Controller, Hierarchy, Kind};
use serde_json::{Value, json};

use crate::Test;
use crate::bundle::Bundle;

pub(crate) const TESTS: &[Test] = &[
    ("limits_memory", memory),
    ("limits_processes", processes),
    ("limits_cpu", cpu),
    ("limits_devices", devices),
    ("limits_from_birth", from_birth),
    ("limits_paused", paused),
];

fn hierarchy() -> Hierarchy {
    Hierarchy::detect().expect("cgroups are mounted")
}

/// A container that waits, with these resources.
fn waiting(name: &str, resources: Value) -> Bundle {
    let mut bundle = Bundle::new(name);
    bundle.config["linux"]["resources"] = resources;
    bundle.args(&["wait"]);
    bundle.create().ok();
    bundle.oci(&["start", name]).ok();
    bundle
}

fn stats(bundle: &Bundle) -> Value {
    let line = bundle.oci(&["events", "--stats", &bundle.name]).ok();
    serde_json::from_str::<Value>(&line).expect("JSON")["data"].take()
}

fn update(bundle: &Bundle, resources: &Value) {
    let path = bundle.text("resources.json");
    fs::write(&path, resources.to_string()).expect("write");
    bundle.oci(&["update", "--resources", &path, &bundle.name]).ok();
}

/// `events`, written to a file of the bundle until it is told to end.
struct Events(Child);

impl Events {
    fn of(bundle: &Bundle) -> Events {
        let mut command = bundle.command(&["events", "--interval", "100ms", &bundle.name]);
        let file = fs::File::create(bundle.path("events")).expect("create");
        Events(command.stdout(file).stderr(Stdio::null()).spawn().expect("start"))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whoever takes more is killed, and `events` tells.
fn memory() {
    let name = "limits-memory";
    let resources = json!({ "memory": { "limit": 64 << 20, "swap": 64 << 20 } });
    let bundle = waiting(name, resources);
    let eat = |mebibytes: &str| bundle.oci(&["exec", name, "guest", "eat", mebibytes]).code;
    assert_eq!(eat("24"), 0);
    let events = Events::of(&bundle);
    let heard = |what: &str| fs::read_to_string(bundle.path("events")).expect("events").contains(what);
    bundle.wait_for("figures", || heard("\"stats\""));
    assert_eq!(eat("80"), 128 + libc::SIGKILL, "beyond the limit");
    bundle.wait_for("the word of it", || heard("\"oom\""));
    drop(events);
    update(&bundle, &json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } }));
    assert_eq!(eat("24"), 128 + libc::SIGKILL, "beyond the new limit");
    assert_eq!(stats(&bundle)["memory"]["usage"]["limit"], 16 << 20);
    assert_eq!(bundle.status(), "running", "the others stay");
}

fn processes() {
    let name = "limits-processes";
    let bundle = waiting(name, json!({ "pids": { "limit": 5 } }));
    let count = || bundle.oci(&["exec", name, "guest", "count forks", "9"]).ok();
    // The first process and the one that counts are among the five.
    assert_eq!(count(), "3\n");
    assert_eq!(stats(&bundle)["pids"]["limit"], 5);
    bundle.oci(&["kill", name, "KILL"]).ok();
    bundle.wait_status("stopped");
    bundle.oci(&["delete", name]).ok();
    // From the first moment on.
    let mut bundle = Bundle::new(name);
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 3 });
    bundle.args(&["count forks", "9"]);
    assert_eq!(bundle.run().ok(), "2\n");
}

fn cpu() {
    let name = "limits-cpu";
    let bundle = waiting(name, json!({ "cpu": { "quota": 5_000, "period": 50_000, "shares": 512 } }));
    let throttled = || stats(&bundle)["cpu"]["throttling"]["throttledPeriods"].as_u64().unwrap_or(0);
    bundle.oci(&["exec", "--detach", name, "guest", "burn", "3600000"]).ok();
    bundle.wait_for("an end of a tenth of a processor", || throttled() > 0);
    // What an update leaves out stays.
    update(&bundle, &json!({ "cpu": { "period": 25_000 } }));
    let before = throttled();
    bundle.wait_for("an end of a fifth of a processor", || throttled() > before);
    if hierarchy().place(Controller::Cpuset).is_none() {
        eprintln!("SKIPPED: limits_cpu: this machine has no cpuset controller");
        return;
    }
    update(&bundle, &json!({ "cpu": { "cpus": "0", "mems": "0" } }));
    let status = fs::read_to_string(format!("/proc/{}/status", bundle.pid())).expect("it runs");
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
}

/// /dev/kmsg by another name: nobody may use it who was not told so, also not while running.
fn devices() {
    let mut bundle = Bundle::new("limits-devices");
    bundle.config["linux"]["devices"] =
        json!([{ "path": "/dev/made", "type": "c", "major": 1, "minor": 11 }]);
    let denied = json!({ "allow": false, "access": "rwm" });
    let allowed = json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw" });
    bundle.config["linux"]["resources"]["devices"] = json!([denied]);
    let attempts = ["open-write /dev/made", "write /dev/null"];
    bundle.args(&[&["try"], &attempts[..]].concat());
    assert_eq!(bundle.run().ok(), "open-write /dev/made: refused 1\nwrite /dev/null: done\n");
    bundle.config["linux"]["resources"]["devices"] = json!([denied, allowed]);
    assert_eq!(bundle.run().ok(), "open-write /dev/made: done\nwrite /dev/null: done\n");
    bundle.args(&["wait"]);
    bundle.create().ok();
    bundle.oci(&["start", "limits-devices"]).ok();
    let attempt = || bundle.oci(&["exec", "limits-devices", "guest", "try", attempts[0]]).ok();
    assert_eq!(attempt(), "open-write /dev/made: done\n");
    update(
        &bundle,
        &json!({ "devices": [allowed, { "allow": false, "type": "c", "major": 1, "minor": 11, "access": "rw" }] }),
    );
    assert_eq!(attempt(), "open-write /dev/made: refused 1\n");
}

/// The container's process, and what is executed in it, never were in another cgroup: where there is a version 2
/// tree they are born in theirs, and enter those of version 1 before they are anybody's program.
fn from_birth() {
    let name = "limits-from-birth";
    let mut bundle = Bundle::new(name);
    bundle.args(&["wait"]);
    bundle.write();
    let created = bundle.oci(&["--debug", "create", name]);
    let born = created.stderr.contains("CLONE_INTO_CGROUP");
    assert_eq!(born, hierarchy().kind() != Kind::V1, "{created:?}");
    bundle.oci(&["start", name]).ok();
    let within = |text: &str| {
        let ours = format!(":/pith-oci-test/{name}");
        let inside: Vec<&str> = text.lines().filter(|line| line.ends_with(&ours)).collect();
        let has = |what: &str| inside.iter().any(|line| line.contains(what));
        match hierarchy().kind() {
            Kind::V2 => has("0::"),
            Kind::Hybrid => has("0::") && has("memory") && has("pids") && has("cpu"),
            Kind::V1 => has("memory") && has("pids") && has("cpu") && has("freezer") && has("devices"),
        }
    };
    let own = fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).expect("it runs");
    assert!(within(&own), "{own}");
    let pid_file = bundle.text("exec.pid");
    bundle.oci(&["exec", "--detach", "--pid-file", &pid_file, name, "guest", "wait"]).ok();
    let pid = fs::read_to_string(&pid_file).expect("its number");
    let theirs = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
    assert!(within(&theirs), "{theirs}");
}

/// Nobody in a paused container gets any time.
fn paused() {
    let name = "limits-paused";
    let bundle = waiting(name, json!({}));
    bundle.oci(&["exec", "--detach", name, "guest", "burn", "3600000"]).ok();
    let used = || stats(&bundle)["cpu"]["usage"]["total"].as_u64().unwrap_or(0);
    let start = used();
    bundle.wait_for("work", || used() > start);
    bundle.oci(&["pause", name]).ok();
    let before = used();
    bundle.oci(&["ps", "--format", "json", name]).ok();
    assert_eq!(used(), before, "they went on");
    bundle.oci(&["resume", name]).ok();
    bundle.wait_for("more work", || used() > before);
}
