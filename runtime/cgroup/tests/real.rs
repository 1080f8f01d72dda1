//! The crate against this host's kernel. Each test owns `pith-test-<pid>-<name>` in every hierarchy and removes
//! it, also when it fails.

use std::io::Write as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use pith_cgroup::{Cgroup, Controller, Error, Hierarchy, Kind, Place, Resource, leftovers, remove_tree};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);

/// A subtree of its own.
struct Subtree {
    hierarchy: Arc<Hierarchy>,
    name: String,
}

impl Subtree {
    /// `None`, after saying why, where cgroups may not be made.
    fn new(test: &str) -> Option<Subtree> {
        let hierarchy = match Hierarchy::detect() {
            Ok(hierarchy) => Arc::new(hierarchy),
            Err(error) => {
                eprintln!("SKIPPED: {test}: {error}");
                return None;
            }
        };
        let name = format!("pith-test-{}-{test}", std::process::id());
        match Cgroup::create(&hierarchy, &name) {
            Ok(_) => Some(Subtree { hierarchy, name }),
            Err(error) => {
                eprintln!("SKIPPED: {test}: {error}: {:?}", error.io_error());
                None
            }
        }
    }

    fn cgroup(&self, path: &str) -> Cgroup {
        Cgroup::create(&self.hierarchy, &format!("{}/{path}", self.name)).expect("create a cgroup")
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.hierarchy, &self.name, DEADLINE) {
            eprintln!("cannot remove {}: {error}", self.name);
        }
    }
}

/// A shell that waits for a line before it does what it was started for, so that it can be moved first.
struct Script {
    child: Child,
    stdin: ChildStdin,
}

impl Script {
    fn waiting(script: &str) -> Script {
        let mut child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start sh");
        let stdin = child.stdin.take().expect("stdin is piped");
        Script { child, stdin }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits")
    }

    fn go(&mut self) {
        writeln!(self.stdin, "go").expect("sh reads");
    }

    fn wait(mut self) -> ExitStatus {
        drop(self.stdin);
        self.child.wait().expect("wait for sh")
    }
}

fn resources(value: Value) -> LinuxResources {
    serde_json::from_value(value).expect("a resources object")
}

#[test]
fn memory_limit_kills_and_is_counted() {
    let Some(subtree) = Subtree::new("oom") else { return };
    let cgroup = subtree.cgroup("pod1/c1");
    cgroup
        .apply(&resources(json!({"memory": {"limit": 33_554_432, "swap": 33_554_432}})))
        .expect("set the limit");
    assert_eq!(cgroup.stats().expect("stats").memory.limit, Some(33_554_432));
    assert_eq!(cgroup.oom_kills().expect("count"), 0);

    // tail keeps what has no line end in memory.
    let mut script = Script::waiting("head -c 200000000 /dev/zero | tail");
    cgroup.add(script.pid()).expect("move in");
    script.go();
    script.wait();

    assert!(cgroup.oom_kills().expect("count") >= 1, "nobody was killed at the limit");
    assert!(cgroup.stats().expect("stats").memory.usage <= 33_554_432);
    cgroup.delete(DEADLINE).expect("delete");
}

#[test]
fn memory_limit_moves_up_and_down_with_its_swap_partner() {
    let Some(subtree) = Subtree::new("updown") else { return };
    let cgroup = subtree.cgroup("c");
    for limit in [64_u64 << 20, 256 << 20, 16 << 20] {
        cgroup.apply(&resources(json!({"memory": {"limit": limit, "swap": limit}}))).expect("set");
        assert_eq!(cgroup.stats().expect("stats").memory.limit, Some(limit));
    }
    cgroup.apply(&resources(json!({"memory": {"limit": -1, "swap": -1}}))).expect("lift");
    assert_eq!(cgroup.stats().expect("stats").memory.limit, None);
}

#[test]
fn cpu_quota_throttles() {
    let Some(subtree) = Subtree::new("cpu") else { return };
    let cgroup = subtree.cgroup("c");
    cgroup
        .apply(&resources(json!({"cpu": {"shares": 102, "quota": 10_000, "period": 100_000}})))
        .expect("set the quota");
    let mut script = Script::waiting("i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done");
    cgroup.add(script.pid()).expect("move in");
    script.go();
    script.wait();

    let cpu = cgroup.stats().expect("stats").cpu;
    assert!(cpu.throttled_periods > 0 && cpu.throttled_ns > 0, "never throttled: {cpu:?}");
    // 10 ms a period; what runs over (a tick, a slice of the other cpu) is taken from the next.
    let allowed_ns = (cpu.periods + 3) * 10_000_000 * 3 / 2;
    assert!(cpu.usage_ns <= allowed_ns, "used more than its quota: {cpu:?}");
    assert!(cpu.usage_ns > 10_000_000, "no cpu time was counted: {cpu:?}");
}

#[test]
fn pids_limit_holds() {
    let Some(subtree) = Subtree::new("pids") else { return };
    let cgroup = subtree.cgroup("c");
    cgroup.apply(&resources(json!({"pids": {"limit": 3}}))).expect("set");
    let mut script = Script::waiting("sleep 60 & sleep 60 & sleep 60 & sleep 60 & wait");
    cgroup.add(script.pid()).expect("move in");
    script.go();
    // dash ends when fork fails.
    let status = script.wait();
    assert!(!status.success(), "four children although three processes are the limit");
    assert_eq!(cgroup.stats().expect("stats").pids.limit, Some(3));
    cgroup.kill().expect("kill");
    cgroup.delete(DEADLINE).expect("delete");
}

#[test]
fn kill_reaches_everything_below() {
    let Some(subtree) = Subtree::new("kill") else { return };
    let (pod, first) = (subtree.cgroup("pod1"), subtree.cgroup("pod1/a"));
    let second = subtree.cgroup("pod1/b/nested");
    let scripts: Vec<Script> = [&first, &second]
        .into_iter()
        .map(|cgroup| {
            let mut script = Script::waiting("trap '' TERM; while :; do sleep 1000; done");
            cgroup.add(script.pid()).expect("move in");
            script.go();
            script
        })
        .collect();
    assert!(pod.all_pids().expect("list").len() >= 2);
    assert!(matches!(pod.wait_empty(Duration::from_millis(1)), Err(Error::StillPopulated { .. })));

    pod.kill().expect("kill");
    for script in scripts {
        assert!(!script.wait().success());
    }
    pod.wait_empty(DEADLINE).expect("all gone");
    pod.delete(DEADLINE).expect("delete with what is below");
    assert!(pod.dirs().is_empty(), "left: {:?}", pod.dirs());
}

#[test]
fn freeze_stops_and_thaw_continues() {
    let Some(subtree) = Subtree::new("freeze") else { return };
    let cgroup = subtree.cgroup("c");
    let mut script = Script::waiting("while :; do :; done");
    cgroup.add(script.pid()).expect("move in");
    script.go();
    cgroup.freeze(DEADLINE).expect("freeze");
    // It is called frozen just before it leaves the processor: its last microseconds may still be added.
    let start = Instant::now();
    let mut after = cgroup.stats().expect("stats").cpu.usage_ns;
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let now = cgroup.stats().expect("stats").cpu.usage_ns;
        if now == after {
            break;
        }
        assert!(start.elapsed() < DEADLINE, "a frozen process uses the cpu");
        after = now;
    }
    cgroup.thaw(DEADLINE).expect("thaw");
    let start = Instant::now();
    while cgroup.stats().expect("stats").cpu.usage_ns == after {
        assert!(start.elapsed() < DEADLINE, "still frozen");
        std::thread::yield_now();
    }
    cgroup.kill().expect("kill");
    script.wait();
}

#[test]
fn a_later_controller_takes_the_processes_along() {
    let Some(subtree) = Subtree::new("later") else { return };
    if !matches!(subtree.hierarchy.place(Controller::Cpuset), Some(Place::V1(_))) {
        eprintln!("SKIPPED: a_later_controller_takes_the_processes_along: cpuset is not in v1 here");
        return;
    }
    let cgroup = subtree.cgroup("pod1/c1");
    let mut script = Script::waiting("exit 7");
    cgroup.add(script.pid()).expect("move in");
    let before = cgroup.join().expect("join").v1_procs.len();

    cgroup.apply(&resources(json!({"cpu": {"cpus": "0"}}))).expect("pin to one cpu");

    assert_eq!(cgroup.join().expect("join").v1_procs.len(), before + 1);
    let membership = std::fs::read_to_string(format!("/proc/{}/cgroup", script.pid())).expect("read");
    let cpuset = membership.lines().find(|line| line.contains(":cpuset:")).expect("has a cpuset line");
    assert!(cpuset.ends_with("pod1/c1"), "{cpuset}");
    script.go();
    assert_eq!(script.wait().code(), Some(7));
}

#[test]
fn device_rules_hold() {
    let Some(subtree) = Subtree::new("devices") else { return };
    let cgroup = subtree.cgroup("c");
    let rules = json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}]});
    cgroup.apply(&resources(rules)).expect("set the rules");
    for (script, allowed) in [(": </dev/null", true), (": </dev/zero", false)] {
        let mut script_run = Script::waiting(&format!("{script} 2>&1"));
        cgroup.add(script_run.pid()).expect("move in");
        script_run.go();
        assert_eq!(script_run.wait().success(), allowed, "{script}");
    }
}

#[test]
fn pressure_is_there_for_every_cgroup() {
    let Some(subtree) = Subtree::new("psi") else { return };
    let cgroup = subtree.cgroup("c");
    if subtree.hierarchy.kind() == Kind::V1 {
        eprintln!("SKIPPED: pressure_is_there_for_every_cgroup: no v2 tree");
        return;
    }
    for resource in [Resource::Cpu, Resource::Memory, Resource::Io] {
        let Some(pressure) = cgroup.pressure(resource).expect("read") else {
            eprintln!("SKIPPED: pressure_is_there_for_every_cgroup: the kernel keeps none");
            return;
        };
        assert!(pressure.some.avg10 <= 100.0);
    }
}

#[test]
fn leftovers_are_found_and_removed() {
    let Some(subtree) = Subtree::new("left") else { return };
    subtree.cgroup("replica-1/pod1/c1");
    let found = leftovers(&subtree.hierarchy, &subtree.name).expect("look");
    let hierarchies = subtree.cgroup("replica-1/pod1/c1").dirs().len();
    assert_eq!(found.len(), hierarchies, "one a hierarchy: {found:?}");
    remove_tree(&subtree.hierarchy, &subtree.name, DEADLINE).expect("remove");
    assert!(leftovers(&subtree.hierarchy, &subtree.name).expect("look").is_empty());
    remove_tree(&subtree.hierarchy, &subtree.name, DEADLINE).expect("removing nothing is fine");
}

#[test]
fn creating_twice_is_adopting() {
    let Some(subtree) = Subtree::new("adopt") else { return };
    let first = subtree.cgroup("c");
    first.apply(&resources(json!({"pids": {"limit": 9}}))).expect("set");
    let second = subtree.cgroup("c");
    assert_eq!(second.stats().expect("stats").pids.limit, Some(9), "limits survive");
}

/// `cargo test -p pith-cgroup --test real -- --ignored --nocapture`: the figures that the docs quote.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_pod() {
    const ROUNDS: u32 = 200;
    let Some(subtree) = Subtree::new("cost") else { return };
    subtree.cgroup("pod");
    let limits = resources(json!({"memory": {"limit": 67_108_864, "swap": 67_108_864},
        "cpu": {"shares": 102, "quota": 50_000, "period": 100_000}, "pids": {"limit": 100}}));
    let [mut create, mut apply, mut add, mut stats, mut delete] = [Duration::ZERO; 5];
    let timed = |sum: &mut Duration, run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        *sum += start.elapsed();
    };
    for round in 0..ROUNDS {
        let cgroup =
            Cgroup::open(&subtree.hierarchy, &format!("{}/pod/c{round}", subtree.name)).expect("path");
        timed(&mut create, &mut || {
            Cgroup::create(&subtree.hierarchy, cgroup.path()).expect("create");
        });
        timed(&mut apply, &mut || cgroup.apply(&limits).expect("apply"));
        timed(&mut stats, &mut || {
            cgroup.stats().expect("stats");
        });
        if round % 10 == 0 {
            let script = Script::waiting("exit");
            timed(&mut add, &mut || cgroup.add(script.pid()).expect("move"));
            script.wait();
        }
        timed(&mut delete, &mut || cgroup.delete(DEADLINE).expect("delete"));
    }
    let moved = ROUNDS / 10;
    for (what, sum, rounds) in [
        ("create", create, ROUNDS),
        ("apply", apply, ROUNDS),
        ("stats", stats, ROUNDS),
        ("move a process", add, moved),
        ("delete", delete, ROUNDS),
    ] {
        println!("{what}: {:.1} µs", (sum / rounds).as_secs_f64() * 1e6);
    }
}
