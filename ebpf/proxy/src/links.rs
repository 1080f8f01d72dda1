//! A socket that is told what becomes of interfaces.

use std::io;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkAttribute};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use pith_netlink::{RtnlError, messages};
use tokio::io::unix::AsyncFd;

use crate::kernel;

/// The group that hears of interfaces (include/uapi/linux/rtnetlink.h).
const RTNLGRP_LINK: u32 = 1;

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
                    Ok((bytes, _)) => changes.extend(messages(&bytes).filter_map(change)),
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

fn change(message: Result<NetlinkMessage<RouteNetlinkMessage>, RtnlError>) -> Option<LinkChange> {
    match message.map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))) => {
            Some(LinkChange::Gone { index: link.header.index })
        }
        Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))) => {
            let index = link.header.index;
            link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(LinkChange::Is { index, name }),
                _ => None,
            })
        }
        Ok(_) => None,
        // Some interface's, of a kind that is not understood.
        Err(_) => Some(LinkChange::Missed),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::{address::AddressMessage, link::LinkMessage};

    use super::*;

    /// A message as the kernel sends it.
    fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), message.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn link(index: u32, name: Option<&str>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::Mtu(1500)];
        link.attributes.extend(name.map(|name| LinkAttribute::IfName(name.to_owned())));
        link
    }

    #[test]
    fn changes_table() {
        let is = |index, name: &str| LinkChange::Is { index, name: name.to_owned() };
        let veth = bytes(RouteNetlinkMessage::NewLink(link(7, Some("pith12"))));
        let cases = [
            ("a new one", veth.clone(), vec![is(7, "pith12")]),
            (
                "one that went",
                bytes(RouteNetlinkMessage::DelLink(link(9, None))),
                vec![LinkChange::Gone { index: 9 }],
            ),
            ("two at once", [veth.clone(), veth.clone()].concat(), vec![is(7, "pith12"), is(7, "pith12")]),
            ("without a name", bytes(RouteNetlinkMessage::NewLink(link(7, None))), vec![]),
            ("something else", bytes(RouteNetlinkMessage::NewAddress(AddressMessage::default())), vec![]),
            ("cut off", veth[..30].to_vec(), vec![]),
            ("nothing", vec![], vec![]),
        ];
        for (name, bytes, expect) in cases {
            let found: Vec<_> = messages(&bytes).filter_map(change).collect();
            assert_eq!(found, expect, "{name}");
        }
    }
}
