//! The processes of a cluster on this machine: started detached, found again by a pid file, stopped by pidfd.
//!
//! Invariant: a signal goes only to the process that was started here. A pid file holds the pid and the
//! process's start time, since pids are reused.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};

/// How long a killed process may take to be gone.
const DYING_DEADLINE: Duration = Duration::from_secs(10);
/// How long a process may take from its start until it says that it is ready.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// A process of the cluster, running or not: `primary`, `replica-1`, …
pub(crate) struct Daemon {
    pub(crate) name: String,
    pid_file: PathBuf,
    log_file: PathBuf,
    notify_socket: PathBuf,
}

/// A process that was found alive.
pub(crate) struct Running {
    pub(crate) pid: i32,
    pidfd: OwnedFd,
}

impl Daemon {
    pub(crate) fn new(name: &str, run_dir: &Path, log_dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            pid_file: run_dir.join(format!("{name}.pid")),
            log_file: log_dir.join(format!("{name}.log")),
            notify_socket: run_dir.join(format!("{name}.notify")),
        }
    }

    /// The live process behind the pid file, if there is one.
    pub(crate) fn running(&self) -> Result<Option<Running>> {
        let text = match fs::read_to_string(&self.pid_file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(format!("read {}", self.pid_file.display())),
        };
        let Some((pid, started)) = parse_pid_file(&text) else { return Ok(None) };
        let Some(handle) = Pid::from_raw(pid) else { return Ok(None) };
        let Ok(pidfd) = pidfd_open(handle, PidfdFlags::empty()) else { return Ok(None) };
        // The start time is read after the pidfd is open: from here on the pid cannot change its owner.
        let running = Running { pid, pidfd };
        if start_time(pid) != Some(started) {
            return Ok(None);
        }
        // `kill -9` returns before the process is gone, and `pith up` may be quicker than its end.
        if running.is_dying() {
            running.wait_or_kill(DYING_DEADLINE)?;
            return Ok(None);
        }
        Ok(Some(running))
    }

    /// Starts `command` in the background and waits until it reports `READY=1` (sd_notify(3)).
    pub(crate) async fn start(&self, mut command: Command) -> Result<Child> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log_file)
            .with_context(|| format!("open {}", self.log_file.display()))?;
        remove_if_there(&self.notify_socket)?;
        let ready = UnixDatagram::bind(&self.notify_socket)
            .with_context(|| format!("bind {}", self.notify_socket.display()))?;
        command
            .env("NOTIFY_SOCKET", &self.notify_socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("duplicate the log's descriptor")?)
            .stderr(log)
            // A group of its own: Ctrl-C at the terminal is for `pith up`, which then stops things in order.
            .process_group(0);
        let mut child = command.spawn().with_context(|| format!("start {}", self.name))?;
        let pid = child.id().context("the process just started has a pid")?.cast_signed();
        let started = start_time(pid).with_context(|| format!("{} ended at once", self.name))?;
        write_atomically(&self.pid_file, &format!("{pid} {started}\n"))?;
        let outcome = wait_ready(&ready, &mut child).await;
        remove_if_there(&self.notify_socket)?;
        outcome.map_err(|error| self.explain(error))?;
        Ok(child)
    }

    /// Adds the last lines of the log to an error: they say why a process did not come up.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let log = fs::read_to_string(&self.log_file).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        anyhow!(
            "{}: {error:#}; its log {} ends with:\n{}",
            self.name,
            self.log_file.display(),
            tail.join("\n")
        )
    }
}

impl Running {
    /// Whether it was killed and is on its way out: SIGKILL is pending (proc_pid_status(5), `SigPnd` and `ShdPnd`)
    /// or the exit has begun (proc_pid_stat(5), flags).
    fn is_dying(&self) -> bool {
        let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap_or_default();
        has_pending_kill(&read("status")) || is_exiting(&read("stat"))
    }

    /// Asks the process to stop. One that has ended already is fine.
    pub(crate) fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Waits until the process has ended; kills it when `grace` is over.
    pub(crate) fn wait_or_kill(&self, grace: Duration) -> Result<()> {
        if !self.wait(grace)? {
            self.signal(Signal::KILL)?;
            if !self.wait(Duration::from_secs(10))? {
                bail!("process {} does not end, even on SIGKILL", self.pid);
            }
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("signal process {}", self.pid)),
        }
    }

    /// True when the process ended within `timeout`. A pidfd becomes readable then (pidfd_open(2)).
    fn wait(&self, timeout: Duration) -> Result<bool> {
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).context("deadline too far away")?;
            let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for a process"),
            }
        }
    }
}

async fn wait_ready(ready: &UnixDatagram, child: &mut Child) -> Result<()> {
    let mut message = [0; 512];
    let deadline = tokio::time::sleep(READY_DEADLINE);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            // Each arm may be dropped: a datagram stays queued, wait() can be called again.
            received = ready.recv(&mut message) => {
                let length = received.context("read the readiness message")?;
                if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    return Ok(());
                }
            }
            status = child.wait() => bail!("ended with {} before it was ready", status.context("wait")?),
            () = &mut deadline => bail!("not ready after {} s", READY_DEADLINE.as_secs()),
        }
    }
}

/// `pid start-time`, as [`Daemon::start`] writes it.
fn parse_pid_file(text: &str) -> Option<(i32, u64)> {
    let (pid, started) = text.trim().split_once(' ')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

/// Start time of a live process in clock ticks since boot: field 22 of proc_pid_stat(5). Zombies count as dead.
fn start_time(pid: i32) -> Option<u64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn has_pending_kill(status: &str) -> bool {
    let kill = 1 << (Signal::KILL.as_raw() - 1);
    let pending = |line: &str| {
        let (field, mask) = line.split_once(':')?;
        matches!(field, "SigPnd" | "ShdPnd").then(|| u64::from_str_radix(mask.trim(), 16).ok())?
    };
    status.lines().filter_map(pending).any(|mask| mask & kill != 0)
}

/// An empty text stands for a process that is gone.
fn is_exiting(stat: &str) -> bool {
    /// Of the kernel's `include/linux/sched.h`.
    const PF_EXITING: u64 = 0x4;
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse().ok());
    flags.is_none_or(|flags: u64| flags & PF_EXITING != 0)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The command name in parentheses may hold spaces and parentheses itself: count from the last one.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (*fields.first()? != "Z").then(|| fields.get(19)?.parse().ok()).flatten()
}

pub(crate) fn write_atomically(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text).with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("rename to {}", path.display()))
}

pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_file_table() {
        let cases = [("12 345\n", Some((12, 345))), ("12", None), ("", None), ("x 1", None)];
        for (text, expect) in cases {
            assert_eq!(parse_pid_file(text), expect, "{text:?}");
        }
    }

    #[test]
    fn start_time_counts_from_the_last_parenthesis() {
        let rest = "1 1 1 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 777 0";
        assert_eq!(parse_start_time(&format!("5 (a) b) S {rest}")), Some(777));
        assert_eq!(parse_start_time(&format!("5 (gone) Z {rest}")), None);
    }

    #[test]
    fn a_killed_process_is_dying() {
        let cases = [("SigPnd:\t0000000000000100\n", true), ("ShdPnd:\t0000000000000100\n", true)];
        let others = [("SigPnd:\t0000000000004000\nSigBlk:\t0000000000000100\n", false), ("", false)];
        for (status, expect) in cases.into_iter().chain(others) {
            assert_eq!(has_pending_kill(status), expect, "{status:?}");
        }
        for (flags, expect) in [(0x0040_0000, false), (0x0040_0004, true)] {
            assert_eq!(is_exiting(&format!("5 (a) b) S 1 1 1 0 -1 {flags} 1 0")), expect, "{flags:x}");
        }
        assert!(is_exiting(""));
    }

    /// Memory that is touched takes its time to be given back: the process is there for a while after `kill`.
    #[tokio::test]
    async fn a_killed_process_does_not_run() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let daemon = Daemon::new("it", dir.path(), dir.path());
        for _ in 0..20 {
            let mut child = Command::new("head")
                .args(["-c", "64M", "/dev/zero"])
                .stdout(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("head starts");
            let pid = child.id().expect("it runs").cast_signed();
            let Some(started) = start_time(pid) else { continue };
            fs::write(dir.path().join("it.pid"), format!("{pid} {started}")).expect("write");
            child.start_kill().expect("signalled");
            assert!(daemon.running().expect("readable").is_none());
            child.wait().await.expect("reaped");
        }
    }

    #[tokio::test]
    async fn a_process_is_found_again_and_only_itself() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let daemon = Daemon::new("it", dir.path(), dir.path());
        assert!(daemon.running().expect("no pid file is no error").is_none());
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let pid = child.id().expect("it runs").cast_signed();
        let started = start_time(pid).expect("it runs");
        fs::write(dir.path().join("it.pid"), format!("{pid} {}", started + 1)).expect("write");
        assert!(daemon.running().expect("readable").is_none(), "another start time is another process");
        fs::write(dir.path().join("it.pid"), format!("{pid} {started}")).expect("write");
        let running = daemon.running().expect("readable").expect("alive");
        running.terminate().expect("signalled");
        running.wait_or_kill(Duration::from_secs(10)).expect("ended");
        child.wait().await.expect("reaped");
        assert!(daemon.running().expect("readable").is_none());
    }
}
