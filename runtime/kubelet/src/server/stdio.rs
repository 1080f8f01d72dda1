//! The kubelet's ends of a process's standard streams: pipes and terminals, and what is carried through them.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    time::Duration,
};

use pith_streaming::exec::TerminalSize;
use rustix::{
    fs::OFlags,
    termios::{Winsize, tcsetwinsize},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy},
    net::unix::pipe,
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Children of a process that has ended may hold its output open: it is over once it is silent for so long.
const SILENCE: Duration = Duration::from_millis(100);
/// Bytes taken from a process's output at once.
const CHUNK: usize = 32 << 10;

/// One standard stream: the process's end and ours.
pub(super) struct Pipe {
    pub(super) theirs: Option<OwnedFd>,
    pub(super) ours: Option<OwnedFd>,
}

/// A pipe's ends for reading and writing, if it is wanted.
fn ends(wanted: bool) -> io::Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    match wanted {
        true => {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            Ok((Some(read), Some(write)))
        }
        false => Ok((None, None)),
    }
}

impl Pipe {
    /// For what the process reads.
    pub(super) fn input(wanted: bool) -> io::Result<Self> {
        let (theirs, ours) = ends(wanted)?;
        Ok(Self { theirs, ours })
    }

    /// For what the process writes.
    pub(super) fn output(wanted: bool) -> io::Result<Self> {
        let (ours, theirs) = ends(wanted)?;
        Ok(Self { theirs, ours })
    }
}

/// What a process writes, each stream carried to the client by a task of its own.
pub(super) struct Outputs {
    tasks: JoinSet<()>,
    ended: CancellationToken,
}

impl Outputs {
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), ended: CancellationToken::new() }
    }

    /// The streams that there are, each with the client's end of it.
    pub(super) fn of<W>(streams: [(Option<OwnedFd>, Option<W>); 2]) -> Self
    where
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let mut outputs = Self::new();
        for (from, to) in streams.into_iter().filter_map(|(from, to)| from.zip(to)) {
            outputs.carry(from, to);
        }
        outputs
    }

    /// `from` is one end of a pipe or terminal.
    pub(super) fn carry<W>(&mut self, from: OwnedFd, mut to: W)
    where
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let ended = self.ended.clone();
        self.tasks.spawn(async move {
            if let Err(error) = pump(from, &mut to, &ended).await {
                tracing::debug!(%error, "output ended early");
            }
        });
    }

    /// Until everything that the process wrote has been passed on.
    pub(super) async fn closed(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    /// The same after the process has ended.
    pub(super) async fn finish(mut self) {
        self.ended.cancel();
        self.closed().await;
    }
}

/// Copies until the output is closed. After the process has `ended` also until nobody writes any more: what
/// it wrote is all there by then, but a child in the background could keep the client waiting for ever.
async fn pump(
    from: OwnedFd,
    to: &mut (impl AsyncWrite + Unpin),
    ended: &CancellationToken,
) -> io::Result<()> {
    nonblocking(&from)?;
    let from = pipe::Receiver::from_file_unchecked(File::from(from))?;
    let mut chunk = vec![0; CHUNK];
    let mut is_over = false;
    loop {
        tokio::select! {
            // What can be read goes before the clock. Waiting takes nothing away, in any of them.
            biased;
            ready = from.readable() => ready?,
            () = ended.cancelled(), if !is_over => {
                is_over = true;
                continue;
            }
            () = tokio::time::sleep(SILENCE), if is_over => return Ok(()),
        }
        match from.try_read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&chunk[..n]).await?,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // A terminal that no process has open any more (pty(7)).
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

pub(super) async fn feed(mut from: impl AsyncRead + Unpin, to: io::Result<pipe::Sender>) {
    if let Ok(mut to) = to {
        let _ = copy(&mut from, &mut to).await;
    }
}

/// A terminal's master, to write to.
pub(super) fn typing(master: &OwnedFd) -> io::Result<pipe::Sender> {
    nonblocking(master)?;
    pipe::Sender::from_file_unchecked(File::from(master.try_clone()?))
}

pub(super) async fn follow_size(master: OwnedFd, mut resize: watch::Receiver<Option<TerminalSize>>) {
    while resize.changed().await.is_ok() {
        let Some(size) = *resize.borrow_and_update() else { continue };
        let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        if let Err(error) = tcsetwinsize(&master, size) {
            tracing::debug!(%error, "resizing a terminal");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer like a slow client: a little at a time.
    async fn carried(script: impl FnOnce(std::io::PipeWriter) -> Option<std::io::PipeWriter>) -> Vec<u8> {
        let (reader, writer) = io::pipe().expect("a pipe");
        let (near, mut far) = tokio::io::duplex(16);
        let mut outputs = Outputs::new();
        outputs.carry(reader.into(), near);
        let held = script(writer);
        let reading = async {
            let mut all = vec![];
            tokio::io::AsyncReadExt::read_to_end(&mut far, &mut all).await.expect("reads");
            all
        };
        let ((), all) = tokio::join!(outputs.finish(), reading);
        drop(held);
        all
    }

    #[tokio::test]
    async fn all_output_arrives_and_nothing_waits_for_a_background_child() {
        use std::io::Write;
        let text = vec![b'x'; 60_000];
        let write = |mut writer: std::io::PipeWriter| {
            writer.write_all(&text).expect("fits into the pipe");
            writer
        };
        // The process was the last writer; a child still holds the pipe.
        assert_eq!(
            carried(|w| {
                drop(write(w));
                None
            })
            .await
            .len(),
            text.len()
        );
        assert_eq!(carried(|w| Some(write(w))).await.len(), text.len());
    }
}
