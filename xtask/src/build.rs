//! Builds the workspace's programs and says where they are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The repository's root: this crate stands one level below it.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_owned)
        .expect("xtask is a folder of the repository")
}

/// Runs a command with its output shown; an error names the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed with {status}");
    }
    Ok(())
}

/// Builds everything in release mode and returns the folder of the programs.
pub(crate) fn programs() -> Result<PathBuf> {
    // The whole workspace in one call: cargo then settles the features of dependencies once, and builds them once.
    run(Command::new("cargo").args(["build", "--release", "--workspace"]).current_dir(root()))?;
    programs_dir()
}

/// Builds one program in release mode, and what it needs, and returns where it is.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    // `--workspace` settles features as a build of everything does, so that the two share their dependencies.
    let arguments = ["build", "--release", "--workspace", "--bin", name];
    run(Command::new("cargo").args(arguments).current_dir(root()))?;
    Ok(programs_dir()?.join(name))
}

/// `target/<triple>/release`: the target is named in `.cargo/config.toml`, so cargo gives it a folder of its own.
pub(crate) fn programs_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("find this program")?;
    exe.parent().map(Path::to_owned).context("this program stands in a folder")
}
