//! `cargo xtask bench`: builds what measures and hands over to it.
//!
//! `pith-forward` measures forwarding and needs no cluster, so that it alone is built; `pith-bench` measures running
//! clusters.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::{program, programs, root, run};
use crate::image;

/// Parts of `pith-forward`.
const FORWARD: [&str; 5] = ["forward", "services", "packets", "programming", "draw"];

/// Options whose value may be the next word.
const WITH_VALUE: [&str; 3] = ["--services", "--output", "--picture"];

/// `nft` with the libraries that it needs and that a machine without it may lack.
const NFTABLES: [&str; 6] =
    ["nftables", "libnftables1", "libnftnl11", "libmnl0", "libjansson4", "libxtables12"];

pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    let part = part(arguments);
    // Options alone (`--quick`) mean all parts of the forwarding benchmark.
    if part.is_none_or(|part| FORWARD.contains(&part)) {
        return forward(arguments);
    }
    let programs = programs()?;
    let images = image::write(&programs)?;
    let mut bench = Command::new(programs.join("pith-bench"));
    bench.arg("--pith").arg(programs.join("pith")).arg("--images").arg(images);
    bench.arg("--output").arg(root().join("target/bench")).args(arguments);
    run(&mut bench)
}

/// The first word that is no option and no option's value.
fn part(arguments: &[String]) -> Option<&str> {
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if WITH_VALUE.contains(&word) {
            words.next();
        } else if !word.starts_with('-') {
            return Some(word);
        }
    }
    None
}

fn forward(arguments: &[String]) -> Result<()> {
    let mut bench = Command::new(program("pith-forward")?);
    bench.args(arguments);
    if !arguments.iter().any(|argument| argument.starts_with("--output")) {
        bench.arg("--output").arg(root().join("target/bench"));
    }
    match nftables(&root()) {
        Ok(Some(unpacked)) => drop(bench.arg("--unpacked").arg(unpacked)),
        Ok(None) => {}
        // The report then says that nftables is left out.
        Err(error) => eprintln!("nftables: {error:#}"),
    }
    run(&mut bench)
}

/// Where `nft` stands unpacked on a machine that has none of its own; nothing is installed.
fn nftables(root: &Path) -> Result<Option<PathBuf>> {
    if Path::new("/usr/sbin/nft").exists() {
        return Ok(None);
    }
    let unpacked = root.join("target/tools/nft");
    if unpacked.join("usr/sbin/nft").exists() {
        return Ok(Some(unpacked));
    }
    let packages = root.join("target/tools/nft-packages");
    fs::create_dir_all(&packages).with_context(|| format!("create {}", packages.display()))?;
    run(Command::new("apt-get").args(["download", "-qq"]).args(NFTABLES).current_dir(&packages))
        .context("download it (Debian: apt-get install nftables)")?;
    for entry in fs::read_dir(&packages).with_context(|| format!("read {}", packages.display()))? {
        let package = entry.with_context(|| format!("read {}", packages.display()))?.path();
        run(Command::new("dpkg").arg("-x").arg(package).arg(&unpacked))?;
    }
    Ok(Some(unpacked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_table() {
        for (words, expect) in [
            (&["--quick"][..], None),
            (&["--quick", "--picture", "a.svg"], None),
            (&["--services", "1,10", "forward"], Some("forward")),
            (&["--output=x", "start"], Some("start")),
            (&["container"], Some("container")),
        ] {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            assert_eq!(part(&words), expect, "{words:?}");
        }
    }
}
