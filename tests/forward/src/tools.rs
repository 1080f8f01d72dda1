//! The programs of others that load rules: `iptables-legacy-restore` and `nft`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::interrupt;

/// Looked at every so often while a program runs.
const TICK: Duration = Duration::from_millis(1);

/// One program, and where its libraries are when they are not the machine's.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    pub(crate) program: PathBuf,
    libraries: Option<OsString>,
    pub(crate) version: String,
}

/// How a program that was given a deadline ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ended {
    After(Duration),
    /// It was stopped.
    TooLate,
}

impl Tool {
    /// Looks for a program on this machine and below `unpacked`, where packages are that were not installed.
    pub(crate) fn find(name: &str, unpacked: Option<&Path>) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        let installed = folders.map(|folder| (folder.join(name), None));
        let carried = unpacked.into_iter().map(|root| {
            let libraries = [root.join("usr/lib/x86_64-linux-gnu"), root.join("lib/x86_64-linux-gnu")];
            (root.join("usr/sbin").join(name), std::env::join_paths(libraries).ok())
        });
        installed.chain(carried).find_map(|(program, libraries)| {
            let mut tool = Self { program, libraries, version: String::new() };
            let output = tool.command(&["--version"]).output().ok()?;
            output.status.success().then(|| {
                tool.version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                tool
            })
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    /// Runs the program in the calling thread's namespace with `text` as its input, and stops it at the deadline.
    pub(crate) fn feed(&self, arguments: &[&str], text: &str, deadline: Duration) -> Result<Ended> {
        // Files rather than pipes: a program that is not done reading cannot block this one.
        let mut input = tempfile::tempfile().context("a file for the rules")?;
        input.write_all(text.as_bytes()).context("write the rules")?;
        input.seek(SeekFrom::Start(0)).context("rewind the rules")?;
        let mut errors = tempfile::tempfile().context("a file for errors")?;
        let begin = Instant::now();
        let mut child = self
            .command(arguments)
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(errors.try_clone().context("copy a descriptor")?)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let status = loop {
            if let Some(status) = child.try_wait().context("wait for it")? {
                break status;
            }
            if begin.elapsed() > deadline || interrupt::check().is_err() {
                child.kill().context("stop it")?;
                child.wait().context("wait for it")?;
                interrupt::check()?;
                return Ok(Ended::TooLate);
            }
            thread::sleep(TICK);
        };
        let took = begin.elapsed();
        if !status.success() {
            bail!("{} {arguments:?}: {status}: {}", self.program.display(), first_lines(&mut errors)?);
        }
        Ok(Ended::After(took))
    }
}

fn first_lines(errors: &mut File) -> Result<String> {
    errors.seek(SeekFrom::Start(0)).context("rewind the errors")?;
    let mut text = String::new();
    errors.take(2_000).read_to_string(&mut text).context("read the errors")?;
    Ok(text.trim().to_owned())
}
