//! Packets of this node's pods, at the node's end of each pod's link.
//!
//! Connections to Services are translated at the socket and none of their packets needs anything here. What
//! comes by is the rest: packets of raw sockets, pings of Services' addresses, ports that no Service has, and
//! sockets that were given a backend which is gone meanwhile.
//!
//! ```text
//!   from the pod: Service's address or a gone backend? ──no──► pass
//!       known flow ──► same backend            a reply to itself ──► undo
//!       Service ──► select ──► rewrite         gone ──► datagram: another backend; segment: reset
//!       neither ──► this node refuses, or answers a ping
//!   to the pod:   reply of such a flow ──► undo
//! ```
//! Invariant: both directions of a flow that begins here pass here, at the same pod's link.

use pith_abi::{Flow, FlowFlags, Frontend, FrontendTarget, Hook, NodeConfig, Reason, Scope, Tuple, proto};

use crate::{
    Packet, Tables, Verdict,
    begin::{Source, Start, begin},
    flow, fragment, icmp,
    packet::{Header, Transport, tcp},
    select::{Client, Selection, select},
    translate::Hops,
    uplink::{is_pong, no_port},
};

const PASS: Verdict = Verdict::Pass(Reason::PodPass);

/// What a pod's packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Service(u32),
    /// A Service's address, but none of its ports.
    Address,
    /// A backend that this Service had.
    Gone(u32),
}

/// A packet comes from a pod.
#[inline(always)]
pub fn from_pod<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(node) = tables.node() else { return PASS };
    let Some(header) = packet.header() else { return PASS };
    if node.addr_be == 0 {
        return PASS;
    }
    if header.later_fragment {
        return later(packet, tables, &header, Hook::FROM_POD);
    }
    // Most packets by far, and none of them is translated at a link.
    if tables.is_pod(node, header.dst_be) && !tables.any_gone() {
        return PASS;
    }
    let Some(Transport::Flow { tuple, tcp_flags }) = packet.transport(&header) else { return PASS };
    let Some(asked) = asked(tables, node, &tuple) else { return PASS };
    match resolve(tables, node, &tuple, tcp_flags, asked) {
        Ok((to, reason)) => {
            fragment::lead(tables, &header, &to, Hook::FROM_POD);
            match packet.translate(&header, &tuple, &to, Hops::Keep) {
                Some(()) => Verdict::Pass(reason),
                None => Verdict::Drop(Reason::RewriteFailed),
            }
        }
        Err(reason) => Verdict::Drop(reason),
    }
}

/// A packet goes to a pod.
#[inline(always)]
pub fn to_pod<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    if !tables.pods_have_flows() {
        return PASS;
    }
    let Some(node) = tables.node() else { return PASS };
    let Some(header) = packet.header() else { return PASS };
    if header.later_fragment {
        return later(packet, tables, &header, Hook::TO_POD);
    }
    let done = match packet.transport(&header) {
        Some(Transport::Flow { tuple, tcp_flags }) => {
            let Some(forward) = flow::reply(tables, &tuple, tcp_flags) else { return PASS };
            let to = forward.reversed();
            fragment::lead(tables, &header, &to, Hook::TO_POD);
            packet.translate(&header, &tuple, &to, Hops::Keep).map(|()| Reason::FlowReply)
        }
        Some(Transport::IcmpError) => {
            let Some(error) = icmp::parse(packet, tables, &header, node) else { return PASS };
            packet.translate_error(&header, &error, Hops::Keep).map(|()| Reason::IcmpError)
        }
        Some(Transport::Other) | None => return PASS,
    };
    match done {
        Some(reason) => Verdict::Pass(reason),
        None => Verdict::Drop(Reason::RewriteFailed),
    }
}

#[inline(always)]
fn later<P: Packet, T: Tables>(packet: &mut P, tables: &T, header: &Header, hook: u8) -> Verdict {
    let Some(to) = fragment::led(tables, &fragment::key(header, hook)) else { return PASS };
    match packet.readdress(header, to.src_be, to.dst_be, Hops::Keep) {
        Some(()) => Verdict::Pass(Reason::FragmentTranslated),
        None => Verdict::Drop(Reason::RewriteFailed),
    }
}

#[inline(always)]
fn asked<T: Tables>(tables: &T, node: &NodeConfig, tuple: &Tuple) -> Option<Asked> {
    let place = Frontend::new(tuple.dst_be, tuple.dport_be, tuple.proto);
    if tables.is_pod(node, tuple.dst_be) {
        let gone = place.scoped(Scope::GONE);
        return tables.frontend(&gone)?.service(&gone).map(Asked::Gone);
    }
    if let Some(target) = tables.frontend(&place) {
        return match target.service(&place)? {
            // A ping whose identifier is 0 looks like the address itself.
            FrontendTarget::NO_SERVICE => Some(Asked::Address),
            service => Some(Asked::Service(service)),
        };
    }
    let address = Frontend::address(tuple.dst_be);
    tables.frontend(&address)?.service(&address).map(|_| Asked::Address)
}

/// What a pod's packet becomes, or why it is left as it is.
#[inline(always)]
fn resolve<T: Tables>(
    tables: &T,
    node: &NodeConfig,
    tuple: &Tuple,
    tcp_flags: u8,
    asked: Asked,
) -> Result<(Tuple, Reason), Reason> {
    if let Some(key) = flow::forward(tables, tuple, tcp_flags) {
        return Ok((key.reversed(), Reason::FlowForward));
    }
    // A pod that reached itself answers the Service's address.
    if let Some(forward) = flow::reply(tables, tuple, tcp_flags) {
        return Ok((forward.reversed(), Reason::FlowReply));
    }
    let mut start = first_packet(tables, node, tuple, tcp_flags, asked)?;
    start.flags |= FlowFlags::AT_POD;
    let begun = begin(tables, node, tuple, &start)?;
    // Afterwards, so that who finds no flow before this can tell that one has begun since.
    tables.pod_flow_begun();
    Ok(begun)
}

/// Where the first packet of a flow is led.
#[inline(always)]
fn first_packet<T: Tables>(
    tables: &T,
    node: &NodeConfig,
    tuple: &Tuple,
    tcp_flags: u8,
    asked: Asked,
) -> Result<Start, Reason> {
    let is_tcp = tuple.proto == proto::TCP;
    let (service, refused) = match asked {
        Asked::Address if is_pong(tuple) => return Err(Reason::ServiceNoFlow),
        Asked::Address => (Flow::NO_SERVICE, no_port(tuple)),
        Asked::Service(_) if is_tcp && !tcp::opens(tcp_flags) => (Flow::NO_SERVICE, Reason::ServiceNoFlow),
        Asked::Service(service) => (service, Reason::ServiceNoEndpoints),
        // A new connection is meant for that very place, and goes on there.
        Asked::Gone(_) if is_tcp && tcp::opens(tcp_flags) => {
            return Ok(Start {
                word: 0,
                source: Source::Own,
                addr_be: tuple.dst_be,
                port_be: tuple.dport_be,
                service: Flow::NO_SERVICE,
                flags: 0,
                reason: Reason::PodPass,
            });
        }
        Asked::Gone(_) if is_tcp => (Flow::NO_SERVICE, Reason::BackendGone),
        Asked::Gone(service) => (service, Reason::BackendGone),
    };
    // No Service has that index: it is without endpoints.
    let choice = match select(tables, service, Client::Sender(tuple.src_be, tuple.sport_be)) {
        Selection::Chosen(choice) => choice,
        Selection::Empty => return Ok(Start::answer(node, refused)),
        Selection::Race => return Err(Reason::GenerationRace),
    };
    let (addr_be, port_be) = (choice.backend.addr_be(), choice.backend.port_be());
    let (source, flags) = if addr_be == tuple.src_be {
        (Source::Asked, FlowFlags::DESTINATION | FlowFlags::SOURCE)
    } else {
        (Source::Own, FlowFlags::DESTINATION)
    };
    let reason = match asked {
        Asked::Gone(_) => Reason::Resteered,
        _ if tables.is_local_pod(node, addr_be) => Reason::ServiceLocal,
        _ => Reason::ServiceRemote,
    };
    Ok(Start { addr_be, service, word: 0, source, flags, reason, port_be })
}
