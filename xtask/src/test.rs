//! `cargo xtask test`: every test, on a machine where nothing was installed by hand.
//!
//! Unit and integration tests of the crates first, then the end-to-end suites of `tests/` against clusters that
//! they start and tear down themselves, one at a time: they measure the machine's interfaces, cgroups and mounts.

use std::process::Command;

use anyhow::Result;

use crate::build::{programs, root, run};
use crate::{image, tools};

pub(crate) fn test(filter: &[String]) -> Result<()> {
    let root = root();
    let programs = programs()?;
    image::build()?;
    let tools = tools::fetch(&root)?;
    let mut crates = Command::new("cargo");
    crates.args(["test", "--release", "--workspace", "--exclude=pith-tests"]).args(filter).current_dir(&root);
    run(&mut crates)?;
    let mut suites = Command::new("cargo");
    suites
        .args(["test", "--release", "--package=pith-tests"])
        .args(filter)
        .args(["--", "--test-threads=1"])
        .env("PITH_BIN_DIR", &programs)
        .env("PITH_TOOLS_DIR", &tools)
        .env("PITH_IMAGES_DIR", root.join("target/images"))
        .current_dir(&root);
    run(&mut suites)
}
