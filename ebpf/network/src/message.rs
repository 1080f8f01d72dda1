//! Route netlink messages by what they are for, so that the rest of the crate reads like `ip` commands.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// Interface index of `lo`: the kernel registers it first in every namespace
/// (LOOPBACK_IFINDEX, include/net/flow.h).
pub(crate) const LOOPBACK: u32 = 1;

/// What a link needs to be found again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<Mac>,
    /// The bridge that it is a port of.
    pub(crate) controller: Option<u32>,
    pub(crate) up: bool,
    pub(crate) kind: Option<InfoKind>,
}

impl Link {
    pub(crate) fn from_message(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: String::new(),
            mtu: 0,
            mac: None,
            controller: None,
            up: message.header.flags.contains(LinkFlags::Up),
            kind: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.clone()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }

    /// The links among `messages`.
    pub(crate) fn all(messages: &[RouteNetlinkMessage]) -> Vec<Self> {
        messages
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(Self::from_message(link)),
                _ => None,
            })
            .collect()
    }
}

/// One end of a veth pair that is to be made.
#[derive(Debug, Clone)]
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Option<Mac>,
    pub(crate) up: bool,
    /// The namespace it is born in; `None` is the socket's own.
    pub(crate) netns: Option<BorrowedFd<'a>>,
    /// The bridge it is born on.
    pub(crate) controller: Option<u32>,
}

impl VethEnd<'_> {
    fn message(&self, mtu: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        if self.up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes.push(LinkAttribute::IfName(self.name.to_owned()));
        message.attributes.push(LinkAttribute::Mtu(mtu));
        if let Some(mac) = self.mac {
            message.attributes.push(LinkAttribute::Address(mac.to_vec()));
        }
        if let Some(netns) = &self.netns {
            message.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        }
        if let Some(controller) = self.controller {
            message.attributes.push(LinkAttribute::Controller(controller));
        }
        message
    }
}

/// `ip link add NEAR type veth peer FAR`: both ends in their namespaces and named, in one request. Only
/// the near one can be born up: the far one is made first and would open without a peer (`veth_open`,
/// drivers/net/veth.c: ENOTCONN).
pub(crate) fn veth(near: &VethEnd<'_>, far: &VethEnd<'_>, mtu: u32) -> RouteNetlinkMessage {
    let mut message = near.message(mtu);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far.message(mtu)))),
    ]));
    RouteNetlinkMessage::NewLink(message)
}

/// `ip link add NAME type bridge`, without the forwarding delay that only spanning tree needs.
pub(crate) fn bridge(name: &str, mac: Mac, mtu: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::ForwardDelay(0)])),
        ]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

/// `ip link set`: the link with this index, changed by `attributes`, and up.
pub(crate) fn link_up(index: u32, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

/// `ip link set NAME up`.
pub(crate) fn named_link_up(name: &str) -> RouteNetlinkMessage {
    link_up(0, vec![LinkAttribute::IfName(name.to_owned())])
}

/// `ip link set NAME alias ALIAS`. An alias cannot be given when a link is made (rtnl_create_link).
pub(crate) fn link_alias(name: &str, alias: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes =
        vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::IfAlias(alias.to_owned())];
    RouteNetlinkMessage::SetLink(message)
}

/// `ip link show NAME`.
pub(crate) fn get_link(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    RouteNetlinkMessage::GetLink(message)
}

/// `ip link show`, as a dump.
pub(crate) fn get_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

/// `ip link del NAME`.
pub(crate) fn delete_link(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    RouteNetlinkMessage::DelLink(message)
}

/// `ip link set NAME group GROUP`.
pub(crate) fn link_group(name: &str, group: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Group(group)];
    RouteNetlinkMessage::SetLink(message)
}

/// `ip link del group GROUP`: all of them in one go.
pub(crate) fn delete_group(group: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::Group(group)];
    RouteNetlinkMessage::DelLink(message)
}

/// `ip address add ADDRESS/PREFIX dev INDEX`.
pub(crate) fn address(index: u32, net: Ipv4Net) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes =
        vec![AddressAttribute::Local(net.addr().into()), AddressAttribute::Address(net.addr().into())];
    if net.prefix_len() < 31 {
        message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
    }
    RouteNetlinkMessage::NewAddress(message)
}

/// `ip -4 address show`, as a dump.
pub(crate) fn get_addresses() -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    RouteNetlinkMessage::GetAddress(message)
}

/// The IPv4 addresses among `messages`, each with its interface's index.
pub(crate) fn addresses(messages: &[RouteNetlinkMessage]) -> Vec<(u32, Ipv4Net)> {
    messages
        .iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewAddress(message) = message else { return None };
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            })?;
            Some((message.header.index, Ipv4Net::new(local, message.header.prefix_len).ok()?))
        })
        .collect()
}

/// `ip address del`.
pub(crate) fn delete_address(index: u32, net: Ipv4Net) -> RouteNetlinkMessage {
    match address(index, net) {
        RouteNetlinkMessage::NewAddress(message) => RouteNetlinkMessage::DelAddress(message),
        other => other,
    }
}

/// An IPv4 route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Ipv4Net,
    pub(crate) via: Option<Ipv4Addr>,
    /// Interface index.
    pub(crate) device: Option<u32>,
    pub(crate) kind: RouteType,
    pub(crate) protocol: RouteProtocol,
    pub(crate) metric: Option<u32>,
    /// The source address of what this machine itself sends there.
    pub(crate) source: Option<Ipv4Addr>,
    /// `via` is reachable on `device` although no address or route says so.
    pub(crate) on_link: bool,
}

impl Route {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = self.destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = self.protocol;
        message.header.kind = self.kind;
        message.header.scope = match (self.via, self.kind) {
            (None, RouteType::Unicast) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        if self.on_link {
            message.header.flags = RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        if self.destination.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(RouteAddress::Inet(self.destination.network())));
        }
        if let Some(via) = self.via {
            attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(via)));
        }
        if let Some(device) = self.device {
            attributes.push(RouteAttribute::Oif(device));
        }
        if let Some(source) = self.source {
            attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
        }
        if let Some(metric) = self.metric {
            attributes.push(RouteAttribute::Priority(metric));
        }
        message
    }

    /// `ip route add`/`replace`, by the request's flags.
    pub(crate) fn new_message(&self) -> RouteNetlinkMessage {
        RouteNetlinkMessage::NewRoute(self.message())
    }

    /// `ip route del`.
    pub(crate) fn delete_message(&self) -> RouteNetlinkMessage {
        RouteNetlinkMessage::DelRoute(self.message())
    }

    /// `ip route show`, as a dump.
    pub(crate) fn dump_message() -> RouteNetlinkMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        RouteNetlinkMessage::GetRoute(message)
    }

    /// The IPv4 routes of the main table among `messages`.
    pub(crate) fn all(messages: &[RouteNetlinkMessage]) -> Vec<Self> {
        messages.iter().filter_map(Self::parse).collect()
    }

    fn parse(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return None };
        let header = &message.header;
        if header.address_family != AddressFamily::Inet || header.table != RouteHeader::RT_TABLE_MAIN {
            return None;
        }
        let (mut destination, mut via, mut device, mut metric, mut source) =
            (Ipv4Addr::UNSPECIFIED, None, None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
                RouteAttribute::Oif(index) => device = Some(*index),
                RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
                RouteAttribute::Priority(priority) => metric = Some(*priority),
                _ => {}
            }
        }
        Some(Self {
            destination: Ipv4Net::new(destination, header.destination_prefix_length).ok()?,
            via,
            device,
            kind: header.kind,
            protocol: header.protocol,
            metric,
            source,
            on_link: header.flags.contains(RouteFlags::Onlink),
        })
    }
}

/// `ip neighbour replace ADDRESS lladdr MAC dev INDEX nud permanent`: nobody ever has to ask for it.
pub(crate) fn permanent_neighbour(index: u32, address: Ipv4Addr, mac: Mac) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}
