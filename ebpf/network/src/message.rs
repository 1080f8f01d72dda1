//! Route netlink messages by what they are for, so that the rest of the crate reads like `ip` commands.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
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

/// `ip address add ADDRESS/PREFIX dev INDEX`, usable at once: nobody else can have it, so nobody is asked
/// (`nodad`).
pub(crate) fn address(index: u32, net: impl Into<IpNet>) -> RouteNetlinkMessage {
    let net = net.into();
    let mut message = AddressMessage::default();
    message.header.family = net.addr().into();
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        IpNet::V4(_) => {}
        IpNet::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
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
pub(crate) fn delete_address(index: u32, net: impl Into<IpNet>) -> RouteNetlinkMessage {
    match address(index, net) {
        RouteNetlinkMessage::NewAddress(message) => RouteNetlinkMessage::DelAddress(message),
        other => other,
    }
}

/// A route of the main table. Its addresses are of one family, the destination's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: IpNet,
    pub(crate) via: Option<IpAddr>,
    /// Interface index.
    pub(crate) device: Option<u32>,
    pub(crate) kind: RouteType,
    pub(crate) protocol: RouteProtocol,
    pub(crate) metric: Option<u32>,
    /// The source address of what this machine itself sends there.
    pub(crate) source: Option<IpAddr>,
    /// `via` is reachable on `device` although no address or route says so.
    pub(crate) on_link: bool,
}

impl Route {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = self.destination.addr().into();
        message.header.destination_prefix_length = self.destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = self.protocol;
        message.header.kind = self.kind;
        message.header.scope = match (self.via, self.kind) {
            // Routes of IPv6 have no scope (net/ipv6/route.c).
            (None, RouteType::Unicast) if self.destination.addr().is_ipv4() => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        if self.on_link {
            message.header.flags = RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        if self.destination.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(self.destination.network().into()));
        }
        if let Some(via) = self.via {
            attributes.push(RouteAttribute::Gateway(via.into()));
        }
        if let Some(device) = self.device {
            attributes.push(RouteAttribute::Oif(device));
        }
        if let Some(source) = self.source {
            attributes.push(RouteAttribute::PrefSource(source.into()));
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

    /// `ip route show`, as a dump of both families.
    pub(crate) fn dump_message() -> RouteNetlinkMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Unspec;
        RouteNetlinkMessage::GetRoute(message)
    }

    /// The routes of the main table among `messages`.
    pub(crate) fn all(messages: &[RouteNetlinkMessage]) -> Vec<Self> {
        messages.iter().filter_map(Self::parse).collect()
    }

    fn parse(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return None };
        let header = &message.header;
        let unspecified: IpAddr = match header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        if header.table != RouteHeader::RT_TABLE_MAIN {
            return None;
        }
        let (mut destination, mut via, mut device, mut metric, mut source) =
            (unspecified, None, None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip(address)?,
                RouteAttribute::Gateway(address) => via = ip(address),
                RouteAttribute::Oif(index) => device = Some(*index),
                RouteAttribute::PrefSource(address) => source = ip(address),
                RouteAttribute::Priority(priority) => metric = Some(*priority),
                _ => {}
            }
        }
        Some(Self {
            destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
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

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// `ip neighbour replace ADDRESS lladdr MAC dev INDEX nud permanent`: nobody ever has to ask for it.
pub(crate) fn permanent_neighbour(index: u32, address: impl Into<IpAddr>, mac: Mac) -> RouteNetlinkMessage {
    let address = address.into();
    let mut message = NeighbourMessage::default();
    message.header.family = address.into();
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}
