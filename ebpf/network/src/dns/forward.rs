//! Asking the machine's resolvers about names that are none of the cluster's.
//!
//! Invariant: at most [`QUESTIONS_MAX`] questions are under way, each takes at most [`TOTAL`]; each has a
//! socket, and so a port, and an id of its own, so that nobody who does not see them can answer for the
//! resolver.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::mpsc,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    sync::{Semaphore, oneshot},
    time::timeout,
};

/// How many questions are asked at once; more are answered with SERVFAIL.
const QUESTIONS_MAX: usize = 256;
/// How long one resolver has.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long all of them have: clients ask again after five seconds (RES_TIMEOUT of resolv.conf(5)).
const TOTAL: Duration = Duration::from_millis(4500);
/// Longest answer over UDP that is taken.
const UDP_BYTES_MAX: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(crate) struct Forwarder {
    resolvers: Vec<SocketAddr>,
    sockets: Sockets,
    room: Semaphore,
}

impl Forwarder {
    pub(crate) fn new(resolvers: Vec<SocketAddr>, netns: Option<OwnedFd>) -> io::Result<Self> {
        let sockets = match netns {
            Some(netns) => Sockets::in_netns(netns)?,
            None => Sockets::Here,
        };
        Ok(Self { resolvers, sockets, room: Semaphore::new(QUESTIONS_MAX) })
    }

    /// Whether there is anybody to ask.
    pub(crate) fn is_empty(&self) -> bool {
        self.resolvers.is_empty()
    }

    /// The first resolver's answer to a whole question message, with the question's id. `None` when there
    /// is none in time, or too many questions are under way.
    pub(crate) async fn ask(&self, question: &[u8]) -> Option<Vec<u8>> {
        let _room = self.room.try_acquire().ok()?;
        let asking = async {
            // A second round: the first datagram may have been lost.
            for resolver in self.resolvers.iter().chain(&self.resolvers) {
                match timeout(ATTEMPT, self.ask_one(*resolver, question)).await {
                    Ok(Ok(answer)) => return Some(answer),
                    Ok(Err(error)) => tracing::debug!(%resolver, %error, "a resolver cannot be asked"),
                    Err(_) => tracing::debug!(%resolver, "a resolver does not answer"),
                }
            }
            None
        };
        timeout(TOTAL, asking).await.ok().flatten()
    }

    async fn ask_one(&self, resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let id = rand::random::<u16>().to_be_bytes();
        let mut asked = question.to_vec();
        asked[..2].copy_from_slice(&id);
        let mut answer = self.over_udp(resolver, &asked).await?;
        if is_truncated(&answer) {
            // The truncated answer is one all the same, should TCP fail.
            if let Ok(whole) = self.over_tcp(resolver, &asked).await {
                answer = whole;
            }
        }
        answer[..2].copy_from_slice(&question[..2]);
        Ok(answer)
    }

    async fn over_udp(&self, resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let socket = UdpSocket::from_std(self.sockets.udp(resolver.ip()).await?)?;
        socket.connect(resolver).await?;
        socket.send(question).await?;
        let mut buffer = vec![0; UDP_BYTES_MAX];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if answers(question, &buffer[..length]) {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    }

    async fn over_tcp(&self, resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = self.sockets.tcp(resolver.ip()).await?.connect(resolver).await?;
        let length = u16::try_from(question.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        if answers(question, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// Bytes of a message's header (RFC 1035, 4.1.1).
pub(crate) const HEADER_BYTES: usize = 12;

/// Whether a message is an answer (QR) to this very question: same id, same question section.
fn answers(question: &[u8], answer: &[u8]) -> bool {
    let section = |message: &[u8]| -> Option<Vec<u8>> {
        let end = question_end(message)?;
        Some(message[HEADER_BYTES..end].to_ascii_lowercase())
    };
    answer.len() >= HEADER_BYTES
        && answer[..2] == question[..2]
        && answer[2] & 0x80 != 0
        && section(answer) == section(question)
}

/// Where the only question of a message ends; names in it are never compressed.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        match *message.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    // The last label's zero, type, and class.
    let end = at + 1 + 4;
    (end <= message.len()).then_some(end)
}

fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// Where sockets to the resolvers come from.
#[derive(Debug)]
enum Sockets {
    Here,
    /// From a thread that lives in another network namespace; a socket stays in the one it was made in.
    There(mpsc::Sender<Wanted>),
}

#[derive(Debug)]
enum Wanted {
    Udp(IpAddr, oneshot::Sender<io::Result<std::net::UdpSocket>>),
    Tcp(IpAddr, oneshot::Sender<io::Result<TcpSocket>>),
}

impl Sockets {
    fn in_netns(netns: OwnedFd) -> io::Result<Self> {
        // Bounded by the questions under way, each of which waits for its socket.
        let (wanted, wants) = mpsc::channel::<Wanted>();
        let (entered, enter) = mpsc::channel();
        std::thread::Builder::new().name("pith-dns-out".to_owned()).spawn(move || {
            let inside = setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
            let failed = inside.is_err();
            if entered.send(inside).is_err() || failed {
                return;
            }
            for want in wants {
                match want {
                    Wanted::Udp(family, reply) => drop(reply.send(udp(family))),
                    Wanted::Tcp(family, reply) => drop(reply.send(tcp(family))),
                }
            }
        })?;
        enter.recv().map_err(io::Error::other)??;
        Ok(Self::There(wanted))
    }

    async fn udp(&self, family: IpAddr) -> io::Result<std::net::UdpSocket> {
        let Self::There(thread) = self else { return udp(family) };
        let (reply, socket) = oneshot::channel();
        thread.send(Wanted::Udp(family, reply)).map_err(io::Error::other)?;
        socket.await.map_err(io::Error::other)?
    }

    async fn tcp(&self, family: IpAddr) -> io::Result<TcpSocket> {
        let Self::There(thread) = self else { return tcp(family) };
        let (reply, socket) = oneshot::channel();
        thread.send(Wanted::Tcp(family, reply)).map_err(io::Error::other)?;
        socket.await.map_err(io::Error::other)?
    }
}

fn udp(family: IpAddr) -> io::Result<std::net::UdpSocket> {
    let any: IpAddr = match family {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn tcp(family: IpAddr) -> io::Result<TcpSocket> {
    match family {
        IpAddr::V4(_) => TcpSocket::new_v4(),
        IpAddr::V6(_) => TcpSocket::new_v6(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let message = |id: u8, flags: u8, name: &[u8]| {
            let mut message = vec![0, id, flags, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            message.extend_from_slice(name);
            message.extend_from_slice(&[0, 0, 1, 0, 1]);
            message
        };
        let question = message(7, 0, b"\x03abc");
        for (name, answer, expect) in [
            ("the answer", message(7, 0x80, b"\x03abc"), true),
            ("case does not count", message(7, 0x80, b"\x03aBc"), true),
            ("another id", message(8, 0x80, b"\x03abc"), false),
            ("another name", message(7, 0x80, b"\x03abd"), false),
            ("a question", message(7, 0, b"\x03abc"), false),
            ("cut short", message(7, 0x80, b"\x03abc")[..14].to_vec(), false),
            ("a pointer", message(7, 0x80, b"\xc0\x0c"), false),
            ("nothing", Vec::new(), false),
        ] {
            assert_eq!(answers(&question, &answer), expect, "{name}");
        }
    }
}
