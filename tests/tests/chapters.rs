//! The chapters of docs/internals: their commands are run as they stand, so that they stay true.

use std::path::Path;
use std::process::{Command, Stdio};

use pith_tests::{bin_dir, images_dir, missing_right, tools_dir};

/// The newest kubectl that `cargo xtask test` fetches.
const KUBECTL: &str = "kubectl-1.37";

#[test]
fn from_a_process_to_a_container() {
    if let Some(reason) = missing_right() {
        eprintln!("SKIPPED: chapter process: {reason}");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    run(folder.path(), &["process.md"], "");
}

#[test]
fn from_a_container_to_a_pod_and_a_service() {
    let kubectl = tools_dir().join(KUBECTL);
    let reason = missing_right().or_else(|| {
        (!kubectl.exists()).then(|| format!("{} is missing: run `cargo xtask test`", kubectl.display()))
    });
    if let Some(reason) = reason {
        eprintln!("SKIPPED: chapters pod and service: {reason}");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(kubectl, folder.path().join("kubectl")).expect("linked");
    let cluster = Cluster { name: format!("ch{}", std::process::id()), dir: folder.path() };
    run(folder.path(), &["pod.md", "service.md"], &cluster.name);
}

/// Taken down however the test ends.
struct Cluster<'a> {
    name: String,
    dir: &'a Path,
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        let mut down = Command::new(bin_dir().join("pith"));
        down.args(["down", "--name", &self.name, "--dir"]).arg(self.dir.join("cluster"));
        let output = down.output().expect("pith starts");
        if !output.status.success() {
            eprintln!("{output:?}");
        }
    }
}

/// Runs the commands of chapters, one after the other, by one shell that stops at the first that fails.
fn run(folder: &Path, chapters: &[&str], cluster: &str) {
    let script: String = chapters.iter().map(|name| commands(name)).collect();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("sh");
    // Said before it is done: the last line tells what failed.
    shell.args(["-eux", "-c", &script]).current_dir(folder).stdin(Stdio::null());
    shell.env("PATH", format!("{}:{}:{path}", bin_dir().display(), folder.display()));
    shell.env("DEMO", images_dir().join("demo-v1.tar")).env("CLUSTER", cluster).env("HOME", folder);
    let output = shell.output().expect("sh starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{chapters:?}:\n{}\n{}", text(&output.stdout), text(&output.stderr));
}

fn commands(chapter: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/internals").join(chapter);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.split("```sh\n").skip(1).filter_map(|part| part.split("```").next()).collect()
}
