//! A route netlink socket that sends many requests as one message and waits for all their answers.
//!
//! Invariant: the socket belongs to the network namespace of the thread that opened it and keeps it for
//! life (netlink(7)), so it can be used from any thread afterwards. The kernel carries out the requests
//! of one send in order and goes on after a failed one (`netlink_rcv_skb` in net/netlink/af_netlink.c);
//! [`Rtnl::batch`] therefore reports the first failure, and every later one may be its consequence.

use std::{fmt, io};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

/// What the kernel refused, in words, with its own explanation where it gave one.
#[derive(Debug, thiserror::Error)]
pub enum RtnlError {
    /// The kernel answered a request with an error.
    #[error("{what}: {}{}", errno.desc(), explanation(kernel_says))]
    Refused {
        /// The request, in words.
        what: String,
        /// The error number.
        errno: Errno,
        /// The kernel's extended acknowledgement, empty where it gave none.
        kernel_says: String,
    },
    /// The socket itself failed.
    #[error("netlink socket: {what}")]
    Socket {
        /// The operation that failed.
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// An answer that is not netlink.
    #[error("netlink answer cannot be read: {0}")]
    Malformed(String),
}

impl RtnlError {
    /// The error number, where the kernel refused a request.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket { .. } | Self::Malformed(_) => None,
        }
    }

    fn malformed(error: impl fmt::Display) -> Self {
        Self::Malformed(error.to_string())
    }
}

fn explanation(kernel_says: &str) -> String {
    if kernel_says.is_empty() { String::new() } else { format!(" ({kernel_says})") }
}

/// One request of a batch.
#[derive(Debug, Clone)]
pub struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    what: String,
    tolerated: &'static [Errno],
}

impl Request {
    /// A query or a change of something that exists.
    pub fn set(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self { message, flags: NLM_F_REQUEST | NLM_F_ACK, what: what.into(), tolerated: &[] }
    }

    /// Creates; an object that exists is an error (`EEXIST`).
    pub fn create(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        let mut request = Self::set(what, message);
        request.flags |= NLM_F_CREATE | NLM_F_EXCL;
        request
    }

    /// Creates, or makes what exists equal to this.
    pub fn replace(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        let mut request = Self::set(what, message);
        request.flags |= NLM_F_CREATE | NLM_F_REPLACE;
        request
    }

    /// These answers count as success.
    pub fn tolerating(mut self, errors: &'static [Errno]) -> Self {
        self.tolerated = errors;
        self
    }
}

/// See the module.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
    sequence: u32,
}

impl Rtnl {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, RtnlError> {
        let failed = |what| move |source| RtnlError::Socket { what, source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("open"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect"))?;
        // The kernel then says in words why it refuses, and does not send the whole request back.
        socket.set_ext_ack(true).map_err(failed("NETLINK_EXT_ACK"))?;
        socket.set_cap_ack(true).map_err(failed("NETLINK_CAP_ACK"))?;
        // With strict checking the kernel filters dumps by what the request names (since Linux 4.20).
        socket.set_netlink_get_strict_chk(true).map_err(failed("NETLINK_GET_STRICT_CHK"))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends all requests at once and returns what the kernel answered besides its acknowledgements.
    ///
    /// # Errors
    /// The first request that was refused with something it does not tolerate.
    pub fn batch(&mut self, requests: Vec<Request>) -> Result<Vec<RouteNetlinkMessage>, RtnlError> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.sequence.wrapping_add(1);
        let mut whats = Vec::with_capacity(requests.len());
        let mut bytes = Vec::with_capacity(256 * requests.len());
        for request in requests {
            whats.push((request.what, request.tolerated));
            self.append(&mut bytes, request.message, request.flags);
        }
        self.send(&bytes)?;

        let mut waiting = whats.len();
        let mut failure: Option<(usize, RtnlError)> = None;
        let mut answers = Vec::new();
        while waiting > 0 {
            let buffer = self.receive()?;
            for message in messages(&buffer) {
                let message = message?;
                let index = message.header.sequence_number.wrapping_sub(first) as usize;
                // An answer to an earlier batch that ended in an error of the socket.
                let Some((what, tolerated)) = whats.get(index) else { continue };
                match message.payload {
                    NetlinkPayload::Error(answer) => {
                        waiting -= 1;
                        let errno = Errno::from_raw(answer.raw_code().abs());
                        let earlier = failure.as_ref().is_some_and(|(at, _)| *at < index);
                        if answer.code.is_some() && !tolerated.contains(&errno) && !earlier {
                            let kernel_says = kernel_says(&answer.header);
                            let what = what.clone();
                            failure = Some((index, RtnlError::Refused { what, errno, kernel_says }));
                        }
                    }
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
        match failure {
            Some((_, error)) => Err(error),
            None => Ok(answers),
        }
    }

    /// Lists all objects that match `message`. What this version cannot parse is left out: it is not ours.
    pub fn dump(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, RtnlError> {
        let found = self.dump_unread(what, message)?;
        let read = found.iter().filter_map(|message| match read(message).map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(inner)) => Some(inner),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, what, "an entry of a netlink dump is left out");
                None
            }
        });
        Ok(read.collect())
    }

    /// The same, each message as the kernel sent it, for who must not miss what cannot be parsed.
    pub fn dump_unread(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<Vec<u8>>, RtnlError> {
        let mut bytes = Vec::with_capacity(256);
        self.append(&mut bytes, message, NLM_F_REQUEST | NLM_F_DUMP);
        self.send(&bytes)?;
        let mut found = Vec::new();
        loop {
            let buffer = self.receive()?;
            for message in split(&buffer) {
                let head = NetlinkBuffer::new_checked(message).map_err(RtnlError::malformed)?;
                if head.sequence_number() != self.sequence {
                    continue;
                }
                match head.message_type() {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => return Err(refusal(what, message)),
                    _ => found.push(message.to_vec()),
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + aligned(message.buffer_len()), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn send(&self, bytes: &[u8]) -> Result<(), RtnlError> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(RtnlError::Socket { what: "send", source }),
            }
        }
    }

    fn receive(&self) -> Result<Vec<u8>, RtnlError> {
        loop {
            match self.socket.recv_from_full() {
                Ok((buffer, _)) => return Ok(buffer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(RtnlError::Socket { what: "receive", source }),
            }
        }
    }
}

/// NLMSG_ALIGN: every netlink message starts at a multiple of four.
const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

type Parsed = Result<NetlinkMessage<RouteNetlinkMessage>, RtnlError>;

fn read(message: &[u8]) -> Parsed {
    NetlinkMessage::deserialize(message).map_err(RtnlError::malformed)
}

/// What an answer says that refuses.
fn refusal(what: &str, message: &[u8]) -> RtnlError {
    match read(message).map(|message| message.payload) {
        Ok(NetlinkPayload::Error(answer)) => RtnlError::Refused {
            what: what.to_owned(),
            errno: Errno::from_raw(answer.raw_code().abs()),
            kernel_says: kernel_says(&answer.header),
        },
        Ok(_) => RtnlError::Malformed("an error without a number".to_owned()),
        Err(error) => error,
    }
}

/// The messages of one datagram.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Parsed> + '_ {
    split(datagram).map(read)
}

fn split(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let message = rest.get(..length).filter(|message| message.len() >= 16)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some(message)
    })
}

/// NLMSGERR_ATTR_MSG of an acknowledgement: after the error code come the request's header (16 bytes; its
/// body is left out because of NETLINK_CAP_ACK) and then attributes of {length, type, value}.
fn kernel_says(after_code: &[u8]) -> String {
    const NLMSG_HEADER: usize = 16;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let mut rest = after_code.get(NLMSG_HEADER..).unwrap_or_default();
    while let (Some(length), Some(kind)) = (rest.get(..2), rest.get(2..4)) {
        let length = u16::from_ne_bytes([length[0], length[1]]) as usize;
        let kind = u16::from_ne_bytes([kind[0], kind[1]]);
        let Some(value) = rest.get(4..length) else { break };
        if kind == NLMSGERR_ATTR_MSG {
            return String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        }
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    String::new()
}
