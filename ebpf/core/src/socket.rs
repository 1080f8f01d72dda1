//! Services at the socket: a Service's address is replaced before the connection begins, so that none of
//! its packets is ever rewritten.
//!
//! What a socket was given is remembered ([`pith_abi::Peer`]): `getpeername` and `recvmsg` show the Service's
//! address again, and datagrams to one Service keep their backend for as long as it is one.

use pith_abi::{Backend, Frontend, Head, NodeClass, PEERS_A_SOCKET, Peer, Peers, Reason, Scope, StandIn};

use crate::{
    Tables,
    select::{Choice, Client, Selection, find, select},
};

/// An address and a port. An IPv6 address is there by its stand-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub addr_be: u32,
    pub port_be: u16,
}

/// What a call that names an address came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The address is no Service: leave it.
    Direct,
    /// Replace the address by `peer`'s backend and remember the peer.
    To { peer: Peer, reason: Reason },
    /// Fail the call at once with ECONNREFUSED.
    Refuse(Reason),
}

/// The Service that answers at a place, for the socket at hand.
#[inline(always)]
pub fn service_at<T: Tables>(tables: &T, place: Place, proto: u8) -> Option<u32> {
    let scope = if StandIn::of(place.addr_be).is_some() { Scope::INSIDE6 } else { Scope::INSIDE };
    let exact = Frontend::new(place.addr_be, place.port_be, proto).scoped(scope);
    if let Some(target) = tables.frontend(&exact) {
        return target.service(&exact);
    }
    if !is_node(tables, place.addr_be) {
        return None;
    }
    let node_port = Frontend::node_port(place.port_be, proto).scoped(scope);
    tables.frontend(&node_port)?.service(&node_port)
}

/// Whether an address is this node's. Loopback is, but only in the node's own network namespace: a pod's
/// 127.0.0.1 is the pod's.
#[inline(always)]
fn is_node<T: Tables>(tables: &T, addr_be: u32) -> bool {
    if addr_be.to_ne_bytes()[0] == 127 {
        return tables
            .node()
            .is_some_and(|node| node.netns_cookie != 0 && node.netns_cookie == tables.netns_cookie());
    }
    tables.node_class(addr_be) & NodeClass::OWN != 0
}

/// A socket connects to `place`.
#[inline(always)]
pub fn connect<T: Tables>(tables: &T, place: Place, proto: u8) -> Resolution {
    match service_at(tables, place, proto) {
        None => Resolution::Direct,
        Some(service) => choose(tables, place, service),
    }
}

/// A socket sends a datagram to a Service at `place`. The backend it used last is kept while the Service
/// has it: a client that goes on with the same socket goes on with the same server, and is given another
/// one at once when that is gone.
///
/// `connected` is the peer of a socket that is connected, and yet names an address: answers come from there
/// only.
#[inline(always)]
pub fn datagram<T: Tables>(
    tables: &T,
    connected: Option<Peer>,
    peers: Option<&Peers>,
    place: Place,
    service: u32,
) -> Resolution {
    let last = match connected {
        Some(peer) if is_of(&peer, place, service) => Some(peer),
        _ => peers.and_then(|peers| last_peer(peers, place, service)),
    };
    if let Some(last) = last
        && let Some(peer) = kept(tables, &last)
    {
        return Resolution::To { peer, reason: Reason::SocketKept };
    }
    choose(tables, place, service)
}

#[inline(always)]
fn choose<T: Tables>(tables: &T, place: Place, service: u32) -> Resolution {
    match select(tables, service, Client::Socket) {
        Selection::Chosen(choice) => {
            Resolution::To { peer: peer(place, service, choice), reason: Reason::SocketTranslated }
        }
        Selection::Empty => Resolution::Refuse(Reason::SocketNoEndpoints),
        Selection::Race => Resolution::Refuse(Reason::GenerationRace),
    }
}

#[inline(always)]
fn peer(place: Place, service: u32, choice: Choice) -> Peer {
    Peer {
        frontend_addr_be: place.addr_be,
        backend_addr_be: choice.backend.addr_be(),
        frontend_port_be: place.port_be,
        backend_port_be: choice.backend.port_be(),
        service,
        slot: choice.slot as u16,
        tag: choice.tag,
        zero: 0,
    }
}

#[inline(always)]
fn last_peer(peers: &Peers, place: Place, service: u32) -> Option<Peer> {
    let mut at = 0;
    while at < PEERS_A_SOCKET {
        let peer = &peers.peers[at];
        if is_of(peer, place, service) {
            return Some(*peer);
        }
        at += 1;
    }
    None
}

#[inline(always)]
fn is_of(peer: &Peer, place: Place, service: u32) -> bool {
    peer.frontend_addr_be == place.addr_be
        && peer.frontend_port_be == place.port_be
        && peer.backend_addr_be != 0
        && peer.service == service
}

/// The peer where its backend still is one.
#[inline(always)]
fn kept<T: Tables>(tables: &T, last: &Peer) -> Option<Peer> {
    let head = Head::unpack(tables.service(last.service)?.head);
    if head.count != 0 && head.tag == last.tag {
        return Some(*last);
    }
    let backend = Backend::new(last.backend_addr_be, last.backend_port_be, head.tag);
    let choice = find(tables, head, backend, u32::from(last.slot))?;
    Some(Peer { slot: choice.slot as u16, tag: choice.tag, ..*last })
}

/// Remembers a peer of a socket that is not connected, in place of an older one of the same Service.
#[inline(always)]
pub fn remember(peers: &mut Peers, peer: &Peer) {
    let mut at = 0;
    while at < PEERS_A_SOCKET {
        let old = &mut peers.peers[at];
        if old.frontend_addr_be == peer.frontend_addr_be && old.frontend_port_be == peer.frontend_port_be {
            *old = *peer;
            return;
        }
        at += 1;
    }
    let next = peers.next as usize % PEERS_A_SOCKET;
    peers.peers[next] = *peer;
    peers.next = (next as u32 + 1) % PEERS_A_SOCKET as u32;
}

/// Remembers the only peer of a connected socket in its storage.
#[inline(always)]
pub fn remember_connected(peers: &mut Peers, peer: &Peer) {
    *peers = Peers::default();
    peers.peers[0] = *peer;
    peers.next = 1;
}

/// The Service's address for a backend's, where the socket was given that backend.
#[inline(always)]
pub fn reverse(peers: &Peers, place: Place) -> Option<Place> {
    let mut at = 0;
    while at < PEERS_A_SOCKET {
        if let Some(asked) = asked(&peers.peers[at], place) {
            return Some(asked);
        }
        at += 1;
    }
    None
}

/// The same for one peer.
#[inline(always)]
pub fn asked(peer: &Peer, place: Place) -> Option<Place> {
    if peer.backend_addr_be == place.addr_be
        && peer.backend_port_be == place.port_be
        && peer.backend_addr_be != 0
    {
        return Some(Place { addr_be: peer.frontend_addr_be, port_be: peer.frontend_port_be });
    }
    None
}
