//! What cargo calls in place of rustc: rustc itself, told another hash.
//!
//! Cargo tells every crate a hash of where its package lies (`-C metadata`), and rustc puts functions in the order of
//! names that hold it. So the same sources give another object in another folder. A name for a hash makes that order
//! the same everywhere; there are no two crates of one name among those of the target.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt,
    process::Command,
};

/// Says to this program that cargo calls it for rustc.
const CALLED: &str = "PITH_XTASK_IS_RUSTC";

/// Has cargo call this program in place of rustc.
pub(super) fn call_instead(cargo: &mut Command) -> io::Result<()> {
    cargo.env("RUSTC_WRAPPER", env::current_exe()?).env(CALLED, "1");
    Ok(())
}

/// Becomes rustc where cargo called this program for it; returns only if it did not, or with an error.
pub(crate) fn become_it() -> io::Result<()> {
    if env::var_os(CALLED).is_none() {
        return Ok(());
    }
    let mut arguments = env::args_os().skip(1);
    let rustc = arguments.next().ok_or_else(|| io::Error::other("cargo names rustc first"))?;
    Err(Command::new(rustc).args(named(arguments.collect())).exec())
}

/// Arguments of rustc with the crate's name as its hash, where they are for the target.
fn named(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let after = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let (Some(name), Some(target)) = (after("--crate-name"), after("--target")) else { return arguments };
    if target != super::TARGET {
        return arguments;
    }
    for argument in &mut arguments {
        if argument.as_encoded_bytes().starts_with(b"metadata=") {
            *argument = [OsStr::new("metadata="), &name].into_iter().collect();
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_of_the_target_are_known_by_name() {
        let with = |target: &str, hash: &str| -> Vec<OsString> {
            let text = format!("--crate-name pith_core --target {target} -C metadata={hash} -C opt-level=3");
            text.split(' ').map(OsString::from).collect()
        };
        assert_eq!(named(with(super::super::TARGET, "0123")), with(super::super::TARGET, "pith_core"));
        assert_eq!(named(with("x86_64-unknown-linux-gnu", "0123")), with("x86_64-unknown-linux-gnu", "0123"));
        let asks: Vec<OsString> = ["-vV".into()].into();
        assert_eq!(named(asks.clone()), asks);
    }
}
