//! `cargo xtask ci`: what must hold besides the tests: formatting, lints, layering, the eBPF object's origin.

use std::process::Command;

use anyhow::Result;

use crate::build::{root, run};
use crate::{ebpf, tidy};

pub(crate) fn ci() -> Result<()> {
    let root = root();
    run(Command::new("cargo").args(["fmt", "--all", "--check"]).current_dir(&root))?;
    run(Command::new("cargo")
        .args(["clippy", "--release", "--workspace", "--all-targets", "--", "--deny=warnings"])
        .current_dir(&root))?;
    tidy::run()?;
    ebpf::run(true)
}
