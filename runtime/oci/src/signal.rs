//! `kill`, `pause` and `resume`.

use std::os::fd::AsFd;
use std::time::Duration;

use pith_cgroup::Cgroup;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::state::{self, Folder, Status};

/// How long freezing may take: every process has to come to a place where it can stop.
const FREEZE: Duration = Duration::from_secs(10);

pub(crate) fn kill(folder: &Folder, signal: Option<&str>, all: bool) -> Result<()> {
    let signal = number(signal.unwrap_or("SIGTERM"))?;
    let state = folder.load()?;
    match state.status(folder) {
        Status::Created | Status::Running | Status::Paused => {}
        // What the container's first process left behind in its cgroup can still be reached.
        Status::Stopped if all => {}
        Status::Creating | Status::Stopped => return Err(Error::NotRunning),
    }
    let cgroup = state.cgroup.as_ref().map(|place| place.open()).transpose()?;
    match cgroup {
        // Without a pid namespace the others do not end with the first.
        Some(cgroup) if all || (signal == libc::SIGKILL && !state.own_pids) => signal_all(&cgroup, signal),
        _ => {
            let process = state.process.ok_or(Error::NotRunning)?;
            let pidfd = process.open()?.ok_or(Error::NotRunning)?;
            pith_sys::process::signal(pidfd.as_fd(), signal).map_err(|errno| match errno {
                Errno::SRCH => Error::NotRunning,
                errno => Error::Kernel { operation: "kill", source: errno },
            })
        }
    }
}

fn signal_all(cgroup: &Cgroup, signal: i32) -> Result<()> {
    if signal == libc::SIGKILL {
        return Ok(cgroup.kill()?);
    }
    for pid in cgroup.all_pids()? {
        let sent = state::open(pid)
            .and_then(|pidfd| pidfd.map_or(Ok(()), |pidfd| pith_sys::process::signal(pidfd.as_fd(), signal)));
        match sent {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(Error::Kernel { operation: "kill", source: errno }),
        }
    }
    Ok(())
}

pub(crate) fn pause(folder: &Folder) -> Result<()> {
    let state = folder.load()?;
    match state.status(folder) {
        Status::Created | Status::Running => {}
        status @ (Status::Creating | Status::Paused | Status::Stopped) => {
            return Err(Error::CannotPause(status));
        }
    }
    let place = state.cgroup.ok_or(Error::CannotPause(Status::Running))?;
    Ok(place.open()?.freeze(FREEZE)?)
}

pub(crate) fn resume(folder: &Folder) -> Result<()> {
    let state = folder.load()?;
    if state.status(folder) != Status::Paused {
        return Err(Error::NotPaused);
    }
    let place = state.cgroup.ok_or(Error::NotPaused)?;
    Ok(place.open()?.thaw(FREEZE)?)
}

/// Names of signal(7); the numbers are those of x86 and ARM.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The first and the last real-time signal, as programs that use libc count them (two are its own).
const REAL_TIME: (i32, i32) = (34, 64);

/// A signal by number or name: `9`, `KILL`, `SIGKILL`, `SIGRTMIN+3`.
fn number(text: &str) -> Result<i32> {
    let unknown = || Error::UnknownSignal(text.to_owned());
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=REAL_TIME.1).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let real_time = || {
        let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
        let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
            (Some(rest), _) => REAL_TIME.0 + offset(rest)?,
            (None, Some(rest)) => REAL_TIME.1 + offset(rest)?,
            (None, None) => return None,
        };
        (REAL_TIME.0..=REAL_TIME.1).contains(&number).then_some(number)
    };
    known.or_else(real_time).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_table() {
        let cases = [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("SIGKILL", Some(9)),
            ("sigterm", Some(15)),
            ("0", Some(0)),
            ("64", Some(64)),
            ("65", None),
            ("-1", None),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMAX+1", None),
            ("SIGFOO", None),
            ("", None),
        ];
        for (text, expect) in cases {
            assert_eq!(number(text).ok(), expect, "{text:?}");
        }
    }
}
