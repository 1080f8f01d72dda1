//! Route netlink sockets: one that asks, one request at a time, and one that is told of interfaces.
//!
//! Invariant: a socket belongs to the network namespace of the thread that opened it and keeps it for life
//! (netlink(7)), so that it may be used from any thread afterwards.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;

use crate::kernel;

// Numbers of include/uapi/linux/rtnetlink.h and if_link.h.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTNLGRP_LINK: u32 = 1;
const IFLA_IFNAME: u16 = 3;
/// Size of `struct ifinfomsg`; the interface's index is its second word.
const LINK_HEADER: usize = 16;

/// A socket for requests.
#[derive(Debug)]
pub(crate) struct Requests {
    socket: Socket,
    sequence: u32,
}

impl Requests {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Has the kernel do something; `flags` beside those of every request.
    pub(crate) fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, flags | NLM_F_ACK)?;
        self.answers(|_| {})
    }

    /// Bodies of all answers to a request to list.
    pub(crate) fn list(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<Vec<u8>>> {
        self.send(message, NLM_F_DUMP)?;
        let mut bodies = Vec::new();
        self.answers(|body| bodies.push(body.to_vec()))?;
        Ok(bodies)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Hands over what is answered to the last request, until the kernel has no more to say.
    fn answers(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in messages(&bytes) {
                // To a request that was given up.
                if message.sequence_number() != self.sequence {
                    continue;
                }
                match message.message_type() {
                    NLMSG_ERROR => return acknowledged(message.payload()),
                    NLMSG_DONE => return Ok(()),
                    _ => take(message.payload()),
                }
            }
        }
    }
}

/// What an acknowledgement says: a negated error number, and 0 for none.
fn acknowledged(payload: &[u8]) -> io::Result<()> {
    let code = payload.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    match i32::from_ne_bytes(*code) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// The messages of one datagram.
fn messages(bytes: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = message.length() as usize;
        // Every message begins at a multiple of four (NLMSG_ALIGN).
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// What became of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkChange {
    /// It is there, under this name.
    Is {
        index: u32,
        name: String,
    },
    Gone {
        index: u32,
    },
    /// More happened than the socket could hold.
    Missed,
}

/// A socket that is told whenever an interface comes, goes or changes.
#[derive(Debug)]
pub(crate) struct LinkChanges(AsyncFd<Socket>);

impl LinkChanges {
    /// Opens a socket in the calling thread's network namespace; call it in a tokio runtime.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(RTNLGRP_LINK)?;
        socket.set_non_blocking(true)?;
        kernel::watched(socket).map(Self)
    }

    /// Waits for something to happen and returns all that has. What is not read yet when this is dropped is
    /// read the next time.
    pub(crate) async fn next(&self) -> io::Result<Vec<LinkChange>> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut changes = Vec::new();
            loop {
                match self.0.get_ref().recv_from_full() {
                    Ok((bytes, _)) => changes.extend(messages(&bytes).filter_map(|message| change(&message))),
                    Err(error) => match error.raw_os_error() {
                        Some(libc::EAGAIN) => break,
                        Some(libc::EINTR) => {}
                        Some(libc::ENOBUFS) => changes.push(LinkChange::Missed),
                        _ => return Err(error),
                    },
                }
            }
            ready.clear_ready();
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}

fn change(message: &NetlinkBuffer<&[u8]>) -> Option<LinkChange> {
    let payload = message.payload();
    let index = u32::from_ne_bytes(*payload.get(4..)?.first_chunk()?);
    match message.message_type() {
        RTM_DELLINK => Some(LinkChange::Gone { index }),
        RTM_NEWLINK => {
            let mut attributes = NlasIterator::new(payload.get(LINK_HEADER..)?).filter_map(Result::ok);
            let name = attributes.find(|attribute| attribute.kind() == IFLA_IFNAME)?;
            let name = name.value().split(|byte| *byte == 0).next()?;
            Some(LinkChange::Is { index, name: String::from_utf8_lossy(name).into_owned() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as the kernel lays it out: header, `ifinfomsg`, attributes.
    fn message(kind: u16, index: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0; LINK_HEADER];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        for (kind, value) in attributes {
            let length = 4 + value.len() as u16;
            body.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
        bytes.extend([kind.to_ne_bytes(), [0; 2]].concat());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn changes_table() {
        let is = |index, name: &str| LinkChange::Is { index, name: name.to_owned() };
        let veth = message(RTM_NEWLINK, 7, &[(13, &[0; 4]), (IFLA_IFNAME, b"pith12\0")]);
        let cases = [
            ("a new one", veth.clone(), vec![is(7, "pith12")]),
            ("one that went", message(RTM_DELLINK, 9, &[]), vec![LinkChange::Gone { index: 9 }]),
            ("two at once", [veth.clone(), veth.clone()].concat(), vec![is(7, "pith12"), is(7, "pith12")]),
            ("without a name", message(RTM_NEWLINK, 7, &[]), vec![]),
            ("something else", message(20, 7, &[]), vec![]),
            ("cut off", veth[..30].to_vec(), vec![]),
            ("nothing", vec![], vec![]),
        ];
        for (name, bytes, expect) in cases {
            let found: Vec<_> = messages(&bytes).filter_map(|message| change(&message)).collect();
            assert_eq!(found, expect, "{name}");
        }
    }

    #[test]
    fn acknowledgements() {
        assert!(acknowledged(&[0; 4]).is_ok());
        let refused = acknowledged(&(-libc::ENODEV).to_ne_bytes()).expect_err("an error number");
        assert_eq!(refused.raw_os_error(), Some(libc::ENODEV));
        assert!(acknowledged(&[]).is_err());
    }
}
