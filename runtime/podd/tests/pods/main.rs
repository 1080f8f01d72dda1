//! Pods on real namespaces: the supervisor is started as the kubelet starts it, its containers run this
//! very executable (it is static) from a root file system made for the test.
//!
//! Called as `guest` it is what runs inside; otherwise it runs the tests whose names contain one of its
//! arguments, one after the other. Each owns a folder and cgroups named for it and removes them.

mod bench;
mod escapes;
mod guest;
mod life;
mod pod;
mod streams;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let Some(code) = guest::main(&args) {
        return code;
    }
    let filters: Vec<&String> = args[1..].iter().filter(|arg| !arg.starts_with('-')).collect();
    let tests: Vec<Test> = [life::TESTS, streams::TESTS, escapes::TESTS, bench::TESTS].concat();
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = pod::missing_right() {
        eprintln!("SKIPPED: pods: {reason}");
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    for (name, test) in tests {
        let wanted = filters.iter().any(|filter| name.contains(filter.as_str()));
        // Measurements run only when asked for.
        if !wanted && (!filters.is_empty() || name.starts_with("bench")) {
            continue;
        }
        let outcome = catch_unwind(AssertUnwindSafe(test));
        println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        if outcome.is_err() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        println!("failed: {}", failed.join(", "));
        ExitCode::FAILURE
    }
}
