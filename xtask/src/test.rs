//! `cargo xtask test`: every test, on a machine where nothing was installed by hand.
//!
//! Unit and integration tests of the crates and the end-to-end suites of `tests/`, against clusters that these start
//! and tear down themselves. One test at a time: some measure the machine's interfaces, cgroups and mounts.

use std::process::Command;

use anyhow::Result;

use crate::build::{programs_dir, root, run};
use crate::{image, tools};

pub(crate) fn test(filter: &[String]) -> Result<()> {
    let root = root();
    // With the tests, so that cargo settles the features of dependencies for both once, and builds them once.
    run(Command::new("cargo")
        .args(["build", "--release", "--workspace", "--all-targets"])
        .current_dir(&root))?;
    let programs = programs_dir()?;
    let images = image::write(&programs)?;
    let tools = tools::fetch(&root)?;
    let mut tests = Command::new("cargo");
    tests
        .args(["test", "--release", "--workspace", "--no-fail-fast", "--"])
        .arg("--test-threads=1")
        .args(filter)
        .env("PITH_BIN_DIR", &programs)
        .env("PITH_TOOLS_DIR", &tools)
        .env("PITH_IMAGES_DIR", &images)
        .current_dir(&root);
    run(&mut tests)
}
