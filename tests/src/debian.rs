//! Debian's packages as files: fetched once into `target/tools/debian` by apt, which verifies them, and unpacked into
//! folders. Nothing is installed on the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::program::folder;

/// Unpacks these packages and all that they depend on into `root`. `work` is for apt's notes.
///
/// # Errors
/// When they cannot be had.
pub fn unpack(names: &[&str], work: &Path, root: &Path) -> Result<()> {
    for package in packages(names, work)? {
        extract(&package, root)?;
    }
    Ok(())
}

/// Unpacks one package without what it depends on.
pub(crate) fn unpack_alone(name: &str, root: &Path) -> Result<()> {
    let cache = folder("PITH_TOOLS_DIR", "target/tools").join("debian");
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let find =
        || -> Result<Option<PathBuf>> { Ok(files(&cache)?.into_iter().find(|path| is_of(path, name))) };
    if find()?.is_none() {
        let options = ["--quiet=2", "--option", "APT::Sandbox::User=root"];
        run(Command::new("apt-get").arg("download").args(options).arg(name).current_dir(&cache))?;
    }
    extract(&find()?.with_context(|| format!("apt-get brought no {name}"))?, root)
}

/// The first package that `name` depends on whose name begins with `prefix`: what a metapackage stands for.
pub(crate) fn dependency(name: &str, prefix: &str) -> Result<Option<String>> {
    let output =
        Command::new("apt-cache").args(["depends", "--important", name]).output().context("run apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut all = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(all.find(|name| name.starts_with(prefix)).map(str::to_owned))
}

fn extract(package: &Path, root: &Path) -> Result<()> {
    run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(root))
}

/// `NAME_VERSION_ARCHITECTURE.deb`
fn is_of(path: &Path, name: &str) -> bool {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    file.split_once('_').is_some_and(|(package, _)| package == name)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || format!("list {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(list)? {
        paths.push(entry.with_context(list)?.path());
    }
    Ok(paths)
}

/// The package files of these packages and of all that they depend on, as on a machine where nothing is installed.
fn packages(names: &[&str], work: &Path) -> Result<Vec<PathBuf>> {
    let cache = folder("PITH_TOOLS_DIR", "target/tools").join("debian");
    fs::create_dir_all(cache.join("partial")).with_context(|| format!("create {}", cache.display()))?;
    fs::create_dir_all(work).with_context(|| format!("create {}", work.display()))?;
    let nothing_installed = work.join("status");
    fs::write(&nothing_installed, "").with_context(|| format!("write {}", nothing_installed.display()))?;
    let apt = |more: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "--yes", "--quiet=2", "--no-install-recommends"]).args(more);
        for (option, value) in [
            ("Dir::State::status", nothing_installed.display().to_string()),
            ("Dir::Cache::archives", cache.display().to_string()),
            ("Debug::NoLocking", "true".to_owned()),
            ("APT::Sandbox::User", "root".to_owned()),
        ] {
            apt.args(["--option", &format!("{option}={value}")]);
        }
        apt.args(names);
        apt
    };
    run(&mut apt(&["--download-only"]))?;
    let wanted = installed_by(&mut apt(&["--simulate"]))?;
    let mut found = Vec::new();
    for path in files(&cache)? {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if wanted.iter().any(|prefix| file.starts_with(prefix.as_str())) {
            found.push(path);
        }
    }
    found.sort();
    if found.len() < wanted.len() {
        bail!("{} of the {} packages of {names:?} are missing", wanted.len() - found.len(), wanted.len());
    }
    Ok(found)
}

/// `name_version_` of each package that apt would install: how the files of its cache begin.
fn installed_by(simulated: &mut Command) -> Result<Vec<String>> {
    let output = simulated.output().context("run apt-get")?;
    if !output.status.success() {
        bail!("apt-get: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(installed_line).collect())
}

/// `Inst NAME (VERSION ORIGIN [ARCHITECTURE])`
fn installed_line(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    let version = rest.split(' ').next()?.replace(':', "%3a");
    Some(format!("{name}_{version}_"))
}

/// Runs to the end; an error carries what the program said.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("{program} failed ({}): {said}", output.status);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_lines_table() {
        for (line, expect) in [
            (
                "Inst zlib1g (1:1.2.13.dfsg-1 Debian:12.12/oldstable [amd64])",
                Some("zlib1g_1%3a1.2.13.dfsg-1_"),
            ),
            ("Inst base-passwd (3.6.1 Debian:12 [amd64]) []", Some("base-passwd_3.6.1_")),
            ("Conf base-passwd (3.6.1 Debian:12 [amd64])", None),
            ("", None),
        ] {
            assert_eq!(installed_line(line).as_deref(), expect, "{line}");
        }
    }

    #[test]
    fn package_files_by_name() {
        let file = Path::new("/x/linux-image-6.12.9-cloud-amd64_6.12.9-1_amd64.deb");
        assert!(is_of(file, "linux-image-6.12.9-cloud-amd64"));
        assert!(!is_of(file, "linux-image"));
    }
}
