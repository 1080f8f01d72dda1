//! The few tools one misses most in an image without any.

use std::fs;
use std::io::{copy, stdin, stdout};

use anyhow::{Context, Result};

pub(crate) fn cat(files: &[String]) -> Result<()> {
    if files.is_empty() {
        copy(&mut stdin(), &mut stdout()).context("copy standard input")?;
    }
    for path in files {
        let mut file = fs::File::open(path).with_context(|| format!("open {path}"))?;
        copy(&mut file, &mut stdout()).with_context(|| format!("copy {path}"))?;
    }
    Ok(())
}

pub(crate) fn environment() {
    for (key, value) in std::env::vars_os() {
        println!("{}={}", key.to_string_lossy(), value.to_string_lossy());
    }
}

/// What the kernel says of this process: the lines of proc_pid_status(5) that tell what it may do.
pub(crate) fn identity() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let shown = [
        "Uid:",
        "Gid:",
        "Groups:",
        "CapInh:",
        "CapPrm:",
        "CapEff:",
        "CapBnd:",
        "CapAmb:",
        "NoNewPrivs:",
        "Seccomp:",
    ];
    for line in status.lines().filter(|line| shown.iter().any(|name| line.starts_with(name))) {
        println!("{line}");
    }
    Ok(())
}

pub(crate) fn list(folder: &str) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {folder}"))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list {folder}"))?;
        let slash = if entry.file_type().is_ok_and(|kind| kind.is_dir()) { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    names.iter().for_each(|name| println!("{name}"));
    Ok(())
}
