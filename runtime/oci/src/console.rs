//! Standard streams, inherited descriptors and terminals.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use pith_sys::process::{Child, Ended};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, OutputModes, Termios};

use crate::error::{Error, Result};
use crate::notify;

/// Descriptors that the caller left open for the container's program, from 3 on.
#[derive(Debug, Default)]
pub struct Inherited {
    fds: Vec<OwnedFd>,
    /// As many of them are sockets by sd_listen_fds(3).
    pub(crate) sockets: u32,
}

impl Inherited {
    /// Takes `preserve` descriptors, and before those the sockets that `LISTEN_FDS` announces. Must come before
    /// anything else is opened: a number that is not open now would be one of ours later.
    pub(crate) fn take(preserve: u32) -> Result<Inherited> {
        let sockets = match std::env::var("LISTEN_FDS") {
            Ok(count) => count.parse().unwrap_or(0),
            Err(_) => 0,
        };
        let take = |number| {
            pith_sys::descriptor::inherited(number)
                .map_err(|_| Error::Usage(format!("preserve-fds: descriptor {number} is not open")))
        };
        let fds = (3..3 + sockets + preserve).map(take).collect::<Result<Vec<_>>>()?;
        Ok(Inherited { fds, sockets })
    }

    pub(crate) fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }

    /// What tells the program of its sockets.
    pub(crate) fn variables(&self) -> Vec<String> {
        if self.sockets == 0 {
            return Vec::new();
        }
        vec![format!("LISTEN_FDS={}", self.sockets), "LISTEN_PID=1".to_owned()]
    }
}

pub(crate) fn stdio() -> [BorrowedFd<'static>; 3] {
    [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()]
}

/// A terminal needs somebody to serve it: this command while it runs, or whoever listens at the console socket.
pub(crate) fn check(terminal: bool, socket: bool, attached: bool) -> Result<()> {
    match (terminal, socket, attached) {
        (true, false, false) => {
            Err(Error::Console("cannot allocate tty if runc will detach without setting console socket"))
        }
        (false, true, _) | (true, true, true) => {
            Err(Error::Console("cannot use console socket if runc will not detach or allocate tty"))
        }
        _ => Ok(()),
    }
}

/// Sends a terminal's master to who listens at a path.
pub(crate) fn hand_over(socket: &str, master: &OwnedFd) -> Result<()> {
    notify::send(&PathBuf::from(socket), b"/dev/ptmx", master)
}

/// Signals that are passed on to the process in the foreground.
const FORWARDED: &[i32] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCONT,
    libc::SIGWINCH,
    libc::SIGALRM,
];

/// Signals and terminal of a command that stays until its process has ended.
pub(crate) struct Foreground {
    signals: OwnedFd,
}

impl Foreground {
    /// From here on signals are kept until there is a process to pass them on to.
    pub(crate) fn new() -> Result<Foreground> {
        let signals = pith_sys::process::signal_descriptor(FORWARDED).map_err(Error::kernel("signalfd"))?;
        Ok(Foreground { signals })
    }

    /// Serves a process until it has ended; the exit code that stands for that.
    pub(crate) fn serve(&self, child: &Child, terminal: Option<OwnedFd>) -> Result<i32> {
        let mut relay = terminal.map(Relay::new).transpose()?;
        let ended = loop {
            let mut fds =
                vec![PollFd::new(&child.pidfd, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            if let Some(relay) = &relay {
                fds.push(PollFd::new(&relay.master, PollFlags::IN));
                if relay.reads_input {
                    fds.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
                }
            }
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::Kernel { operation: "poll", source: errno }),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if let Some(relay) = &mut relay {
                if ready.get(2) == Some(&true) {
                    relay.output();
                }
                if ready.get(3) == Some(&true) {
                    relay.input();
                }
            }
            if ready[1] {
                self.forward(child, relay.as_ref());
            }
            if ready[0] {
                break pith_sys::process::wait(&child.pidfd).map_err(Error::kernel("wait"))?;
            }
        };
        if let Some(relay) = &mut relay {
            relay.drain();
        }
        Ok(exit_code(ended))
    }

    fn forward(&self, child: &Child, relay: Option<&Relay>) {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        while let Ok(length) = rustix::io::read(&self.signals, &mut info) {
            if length != info.len() {
                return;
            }
            // ssi_signo is the first field of signalfd_siginfo (signalfd(2)).
            let signal = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            if signal == libc::SIGWINCH as u32
                && let Some(relay) = relay
            {
                relay.resize();
                continue;
            }
            // A process that has just ended needs no signal.
            let _ = pith_sys::process::signal(child.pidfd.as_fd(), signal as i32);
        }
    }
}

pub(crate) fn exit_code(ended: Ended) -> i32 {
    match ended {
        Ended::Code(code) => code,
        Ended::Signal(signal) => 128 + signal,
    }
}

/// Readies a terminal that this command is to serve, before anything is written to it: ends of lines stay what the
/// program wrote. Who reads the output may be no terminal, and one that is makes of them what it needs.
pub(crate) fn keep_line_ends(master: &OwnedFd) {
    if let Ok(mut modes) = rustix::termios::tcgetattr(master) {
        modes.output_modes.remove(OutputModes::ONLCR);
        let _ = rustix::termios::tcsetattr(master, OptionalActions::Now, &modes);
    }
}

/// Between the terminal that this command was called on and the container's.
struct Relay {
    master: OwnedFd,
    reads_input: bool,
    /// How the terminal was before, where standard input is one.
    before: Option<Termios>,
}

impl Relay {
    fn new(master: OwnedFd) -> Result<Relay> {
        rustix::io::ioctl_fionbio(&master, true).map_err(Error::kernel("make the terminal non-blocking"))?;
        let stdin = rustix::stdio::stdin();
        let before = rustix::termios::tcgetattr(stdin).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            raw.output_modes.insert(OutputModes::OPOST);
            rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw)
                .map_err(Error::kernel("make the terminal raw"))?;
        }
        let relay = Relay { master, reads_input: true, before };
        relay.resize();
        Ok(relay)
    }

    fn resize(&self) {
        if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    fn input(&mut self) {
        let mut buffer = [0u8; 4096];
        match std::io::stdin().lock().read(&mut buffer) {
            Ok(0) | Err(_) => {
                self.reads_input = false;
                // The end of the input, as a terminal has it.
                let _ = rustix::io::write(&self.master, &[4]);
            }
            Ok(length) => {
                let mut rest = &buffer[..length];
                while !rest.is_empty() {
                    match rustix::io::write(&self.master, rest) {
                        Ok(written) => rest = &rest[written..],
                        Err(Errno::AGAIN) => {
                            let mut fds = [PollFd::new(&self.master, PollFlags::OUT)];
                            if rustix::event::poll(&mut fds, None).is_err() {
                                return;
                            }
                        }
                        Err(Errno::INTR) => {}
                        Err(_) => return,
                    }
                }
            }
        }
    }

    /// False when there is nothing more now.
    fn output(&mut self) -> bool {
        let mut buffer = [0u8; 16 * 1024];
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(length) if length > 0 => {
                let mut out = std::io::stdout().lock();
                out.write_all(&buffer[..length]).and_then(|()| out.flush()).is_ok()
            }
            Ok(_) | Err(_) => false,
        }
    }

    fn drain(&mut self) {
        while self.output() {}
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Nothing can be done about a terminal that is gone.
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, before);
        }
    }
}
