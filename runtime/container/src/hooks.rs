//! Hooks: programs that run at stages of a container's life, with its state on their standard input.
//!
//! State and output are kept in memory files, so that neither a hook that does not read nor one that leaves a
//! background process behind can hold anybody up.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::plan::{Hook, Stage};

/// As much of a failed hook's output as an error repeats, in bytes.
const OUTPUT_MAX: u64 = 4096;

/// A hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("error running {stage} hook #{index}: {path}: {source}")]
    Start { stage: Stage, index: usize, path: String, source: std::io::Error },
    #[error("error running {stage} hook #{index}: {}, stdout+stderr: {output}", ending(*status))]
    Failed { stage: Stage, index: usize, status: ExitStatus, output: String },
    #[error("error running {stage} hook #{index}: hook ran past specified timeout of {seconds}s")]
    TimedOut { stage: Stage, index: usize, seconds: u64 },
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}

/// Runs hooks one after the other; the first that fails ends it.
pub fn run_all(stage: Stage, hooks: &[Hook], state: &[u8]) -> Result<(), HookError> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| run(stage, index, hook, state))
}

/// Runs one hook and waits for it.
pub fn run(stage: Stage, index: usize, hook: &Hook, state: &[u8]) -> Result<(), HookError> {
    let start = |source| HookError::Start { stage, index, path: hook.path.display().to_string(), source };
    let (input, mut output) = (memory(state).map_err(start)?, memory(b"").map_err(start)?);
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    if let Some(env) = &hook.env {
        command.env_clear();
        command.envs(env.iter().filter_map(|variable| variable.split_once('=')));
    }
    command.stdin(input);
    command.stdout(output.try_clone().map_err(start)?).stderr(output.try_clone().map_err(start)?);
    let mut child = command.spawn().map_err(start)?;
    if let Some(seconds) = hook.timeout_s {
        let ended = ends_within(child.id(), seconds).map_err(|errno| start(errno.into()))?;
        if !ended {
            let _ = child.kill();
            let _ = child.wait();
            return Err(HookError::TimedOut { stage, index, seconds });
        }
    }
    let status = child.wait().map_err(start)?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    let _ = output.rewind().and_then(|()| output.take(OUTPUT_MAX).read_to_end(&mut text));
    let output = String::from_utf8_lossy(&text).into_owned();
    Err(HookError::Failed { stage, index, status, output })
}

fn memory(content: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("pith-hook", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

fn ends_within(pid: u32, seconds: u64) -> Result<bool, Errno> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let timeout = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: ["name", "-c", script].map(str::to_owned).to_vec(),
            env: Some(vec!["SAID=yes".to_owned()]),
            timeout_s: None,
        }
    }

    #[test]
    fn hooks_table() {
        let cases: [(&str, Hook, Result<(), &str>); 5] = [
            ("state on stdin", sh("test \"$(cat)\" = '{\"id\":1}'"), Ok(())),
            ("its own environment only", sh("test \"$SAID$HOME\" = yes"), Ok(())),
            (
                "failure with output",
                sh("echo no; echo luck >&2; exit 3"),
                Err("error running prestart hook #0: exit status 3, stdout+stderr: no\nluck\n"),
            ),
            (
                "in time",
                Hook { timeout_s: Some(1), ..sh("sleep 60") },
                Err("error running prestart hook #0: hook ran past specified timeout of 1s"),
            ),
            (
                "absent",
                Hook { path: "/no/such".into(), ..sh("") },
                Err("error running prestart hook #0: /no/such: No such file or directory (os error 2)"),
            ),
        ];
        for (name, hook, expect) in cases {
            let got = run_all(Stage::Prestart, &[hook], b"{\"id\":1}").map_err(|error| error.to_string());
            assert_eq!(got, expect.map_err(str::to_owned), "{name}");
        }
    }
}
