//! Stock kubectl in the versions that `cargo xtask test` fetched.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::program::folder;

/// One kubectl binary pointed at one cluster.
#[derive(Clone)]
pub struct Kubectl {
    binary: PathBuf,
    kubeconfig: PathBuf,
}

/// What a run printed and how it ended.
#[derive(Debug)]
pub struct Reply {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Kubectl {
    /// The newest kubectl at hand is used unless a test names a version such as `1.29`.
    /// `None`, after a loud line, when this version could not be fetched.
    pub fn new(version: &str, kubeconfig: &Path) -> Option<Self> {
        let binary = folder("PITH_TOOLS_DIR", "target/tools").join(format!("kubectl-{version}"));
        if !binary.exists() {
            eprintln!("SKIPPED: kubectl {version} is not at {}: run `cargo xtask test`", binary.display());
            return None;
        }
        Some(Self { binary, kubeconfig: kubeconfig.to_owned() })
    }

    /// The command with this cluster's credentials and nothing of the user's configuration or caches.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.binary);
        let home = self.kubeconfig.parent().expect("a kubeconfig stands in a folder");
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig).env("HOME", home);
        command
    }

    /// Runs to the end, whatever the outcome.
    pub fn try_run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Reply {
        let output = self.command(arguments).stdin(Stdio::null()).output();
        Reply::from(output.expect("kubectl starts"))
    }

    /// Runs and returns standard output.
    ///
    /// # Panics
    /// When kubectl fails, with all that it printed.
    pub fn run<S: AsRef<OsStr> + std::fmt::Debug>(&self, arguments: &[S]) -> String {
        let reply = self.try_run(arguments);
        assert!(reply.ok, "kubectl {arguments:?} failed:\n{}{}", reply.stdout, reply.stderr);
        reply.stdout
    }

    /// `kubectl … -o json`, parsed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.run(&all)).expect("kubectl prints JSON when asked for it")
    }

    /// `kubectl VERB -f -` with a manifest on standard input.
    pub fn with_input(&self, arguments: &[&str], input: &str) -> Reply {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // kubectl may end before it has read all: then what it printed says why.
        let written = stdin.write_all(input.as_bytes());
        drop(stdin);
        let reply = Reply::from(child.wait_with_output().expect("kubectl ends"));
        assert!(written.is_ok() || !reply.ok, "kubectl took its input");
        reply
    }

    /// Applies a manifest.
    ///
    /// # Panics
    /// When the API server refuses it.
    pub fn apply(&self, manifest: &str) {
        let reply = self.with_input(&["apply", "-f", "-"], manifest);
        assert!(reply.ok, "kubectl apply failed:\n{}{}", reply.stdout, reply.stderr);
    }
}

impl From<Output> for Reply {
    fn from(output: Output) -> Self {
        Self {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
