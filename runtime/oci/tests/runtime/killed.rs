//! SIGKILL at any moment: whatever is left, `delete --force` cleans it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Test;
use crate::bundle::Bundle;

pub(crate) const TESTS: &[Test] = &[
    ("killed_while_creating", killed_while_creating),
    ("killed_while_deleting", killed_while_deleting),
    ("killed_at_a_call", killed_at_a_call),
];

/// Kills in each round a little later than in the last.
const ROUNDS: u32 = 60;

fn kill_after(mut command: std::process::Command, delay: Duration) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start");
    let start = Instant::now();
    while start.elapsed() < delay {
        std::hint::spin_loop();
    }
    let _ = child.kill();
    child.wait().expect("wait").success()
}

/// How long the command takes when nobody kills it.
fn length(bundle: &Bundle, words: &[&str]) -> Duration {
    let start = Instant::now();
    bundle.oci(words).ok();
    start.elapsed()
}

fn clean(bundle: &Bundle, round: u32) {
    bundle.oci(&["delete", "--force", &bundle.name]).ok();
    bundle.wait_for("the end of its processes", || processes(bundle) == 0);
    assert_eq!(bundle.leftovers(), Vec::<String>::new(), "round {round}");
}

/// Processes whose root or executable is the bundle's.
fn processes(bundle: &Bundle) -> usize {
    let entries = std::fs::read_dir("/proc").expect("list").flatten();
    let ours = bundle.text("state");
    let is_ours = |line: &[u8]| line.windows(ours.len()).any(|part| part == ours.as_bytes());
    entries
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| is_ours(line))
        .count()
}

fn killed_while_creating() {
    let mut bundle = Bundle::new("killed");
    bundle.args(&["wait"]);
    bundle.write();
    let whole = length(&bundle, &["create", "killed"]);
    clean(&bundle, 0);
    let mut completed = 0;
    for round in 1..=ROUNDS {
        let command = bundle.command(&["create", "killed"]);
        completed += u32::from(kill_after(command, whole * round / ROUNDS));
        clean(&bundle, round);
    }
    println!("  {completed} of {ROUNDS} were not killed in time");
}

/// More calls than either process of `create` makes, and how many are passed over from one round to the next.
const CALLS: usize = 480;
const STRIDE: usize = 13;

/// The same by the kernel's own steps: whoever takes part dies with its so-manieth system call.
fn killed_at_a_call() {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("SKIPPED: killed_at_a_call: strace is not installed");
        return;
    }
    let mut bundle = Bundle::new("stepwise");
    bundle.args(&["wait"]);
    bundle.write();
    let traced = |words: &[&str], call: usize| {
        let plain = bundle.command(words);
        let mut command = Command::new("strace");
        command.args(["-f", "-o", "/dev/null", "-e"]).arg(format!("inject=all:signal=SIGKILL:when={call}"));
        command.arg(plain.get_program()).args(plain.get_args()).current_dir(&bundle.dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("strace")
    };
    let force = ["delete", "--force", "stepwise"];
    for call in (1..CALLS).step_by(STRIDE) {
        let round = u32::try_from(call).unwrap_or(0);
        let mut creating = traced(&["create", "stepwise"], call);
        // It follows a container that came to be, too.
        bundle.wait_for("the end of create", || {
            creating.try_wait().expect("wait").is_some()
                || bundle.oci(&["state", "stepwise"]).stdout.contains("\"created\",")
        });
        clean(&bundle, round);
        creating.wait().expect("wait");
        bundle.create().ok();
        traced(&force, call).wait().expect("wait");
        clean(&bundle, round);
    }
}

fn killed_while_deleting() {
    let mut bundle = Bundle::new("undeleted");
    bundle.args(&["fork", "3"]);
    bundle.write();
    let mut whole = Duration::ZERO;
    for round in 0..=ROUNDS {
        bundle.oci(&["create", "undeleted"]).ok();
        bundle.oci(&["start", "undeleted"]).ok();
        let words = ["delete", "--force", "undeleted"];
        if round == 0 {
            whole = length(&bundle, &words);
        } else {
            kill_after(bundle.command(&words), whole * round / ROUNDS);
        }
        clean(&bundle, round);
    }
}
