//! What things cost. Runs only when asked for: `cargo test -p pith-podd --test pods -- bench`; with
//! `PITH_PODD` another build of the supervisor is measured.

use std::time::{Duration, Instant};

use pith_container::supervisor::Streams;
use pith_container::supervisor::protocol::Phase;

use crate::Test;
use crate::pod::{DEADLINE, Pod, eventually, wait_for};

/// What a supervisor may take.
pub(crate) const RESIDENT_MAX_KB: u64 = 1024;

pub(crate) const TESTS: &[Test] =
    &[("bench_pod", pod), ("bench_container", container), ("bench_exec", exec), ("bench_memory", memory)];

fn print(what: &str, mut samples: Vec<Duration>) {
    samples.sort();
    let at = |quantile: f64| samples[((samples.len() - 1) as f64 * quantile) as usize].as_secs_f64() * 1e3;
    println!("{what}: p50 {:.2} ms, p90 {:.2} ms, min {:.2} ms", at(0.5), at(0.9), at(0.0));
}

fn pod() {
    let mut spawn = Vec::new();
    let mut stop = Vec::new();
    for _ in 0..30 {
        let pod = Pod::start("bench");
        spawn.push(pod.spawned_in);
        let start = Instant::now();
        pod.supervisor().stop().expect("stop");
        stop.push(start.elapsed());
    }
    print("supervisor spawned and listening", spawn);
    print("supervisor stopped", stop);
}

fn container() {
    let mut pod = Pod::start("bench");
    let supervisor = pod.supervisor().clone();
    let (_, events) = supervisor.subscribe().expect("subscribe");
    let spec = pod.ready_with("c", &["exit", "0"], |_, _, _| {});
    let (mut started, mut ended, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..200 {
        let start = Instant::now();
        supervisor.run(spec.clone()).expect("run");
        started.push(start.elapsed());
        wait_for(&events, "c", Phase::Exited);
        ended.push(start.elapsed());
        supervisor.delete("c").expect("delete");
        deleted.push(start.elapsed());
    }
    print("container: request to execve", started);
    print("container: request to exit of the program", ended);
    print("container: request to deletion", deleted);
}

fn exec() {
    let mut pod = Pod::start("bench");
    pod.run("c", &["wait"]);
    let plan = pod.exec_plan("c", &["exit", "0"], |_| {});
    let mut samples = Vec::new();
    for _ in 0..300 {
        let start = Instant::now();
        let exec = pod.supervisor().exec("c", plan.clone(), Streams::default()).expect("exec");
        exec.wait(Some(DEADLINE)).expect("wait").expect("ends");
        samples.push(start.elapsed());
    }
    print("exec: request to exit code", samples);
}

fn memory() {
    let mut pod = Pod::start("bench");
    let pid = pod.supervisor().pid();
    let show = |when: &str| {
        let small = || memory_of(pid).0 < RESIDENT_MAX_KB;
        eventually("it gives back what it does not need", small);
        let (rss, pss, dirty) = memory_of(pid);
        println!("supervisor {when}: Rss {rss} kB, Pss {pss} kB, private dirty {dirty} kB");
    };
    show("idle");
    pod.run("a", &["wait"]);
    pod.run("b", &["wait"]);
    show("with two containers");
    for _ in 0..50 {
        pod.exec("a", &["exit", "0"]);
    }
    show("after 50 execs");
    let second = Pod::start("bench");
    show("beside another pod");
    drop(second);
}

/// Resident, proportional and private dirty memory of a process, in kB.
pub(crate) fn memory_of(pid: i32) -> (u64, u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or("");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    };
    (field("Rss:"), field("Pss:"), field("Private_Dirty:"))
}
