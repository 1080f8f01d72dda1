//! The runtime as an engine sees it: bundles, commands, exit codes. Containers run this very executable (it is static)
//! from a root file system made for the test.
//!
//! Called as `guest` it is what runs inside, called as `hook` a hook; otherwise it runs the tests whose names contain
//! one of its arguments, one after the other. Each owns a folder and cgroups named for it, and fails if one is left.

mod bundle;
mod chapters;
mod config;
mod engine;
mod escapes;
mod fields;
mod guest;
mod hooks;
mod killed;
mod life;
mod limits;
mod refusals;
mod suites;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let Some(code) = guest::main(&args) {
        return code;
    }
    let filters: Vec<&String> = args[1..].iter().filter(|arg| !arg.starts_with('-')).collect();
    let tests: Vec<Test> = [
        life::TESTS,
        refusals::TESTS,
        suites::TESTS,
        fields::TESTS,
        config::TESTS,
        limits::TESTS,
        hooks::TESTS,
        escapes::TESTS,
        killed::TESTS,
        engine::TESTS,
        chapters::TESTS,
    ]
    .concat();
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = bundle::missing_right() {
        eprintln!("SKIPPED: runtime: {reason}");
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    for (name, test) in tests {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
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
