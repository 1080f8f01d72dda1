//! Packets that go out again by the interface they came in by, before the host has made a socket buffer of them.
//!
//! ```text
//!  TCP or UDP, whole, to this node ─no─┐
//!      │                               │
//!  of a flow that both ends know ─no───┤
//!  and that goes elsewhere             │
//!      │                               ▼
//!  seen within the last second ─no──► left to the uplink's ingress, as it came
//!      │                               ▲
//!  hops left, next hop known ─no───────┘
//!      │
//!  rewrite ──► out
//! ```
//! Invariant: what is left has not been changed, noted or counted, so that [`crate::uplink::ingress`] treats it as if
//! there were nothing here. What goes out becomes exactly what it would have become there.
//!
//! Once a second the packet of a flow is left, and ages the flow's record: by it the stack also sees that the next
//! hop is in use and asks whether it is still there, which nothing here does.

use pith_abi::{FlowFlags, NodeClass, NodeConfig, Reason, Tuple, proto};

use crate::{
    Bytes, Tables,
    flow::{self, Known},
    packet::{Header, L3, Transport},
    translate::translate,
    uplink::Way,
};

/// Where the type of what follows lies in an Ethernet header.
const ETHERTYPE: u32 = 12;
const IPV4: [u8; 2] = [8, 0];
/// Offset of the transport header behind an IPv4 header without options.
const L4: u32 = L3 + 20;
/// Flows whose packets leave under this node's address, to a backend elsewhere. Any flag more makes them something
/// that is not known here.
const TRANSLATED: u8 = FlowFlags::DESTINATION | FlowFlags::SOURCE;

/// What is to be done with a packet that nobody has looked at yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fast {
    /// Nothing was done. The uplink's ingress sees it next.
    Leave,
    /// Out by the interface it came in by.
    Out(Reason),
    Drop(Reason),
}

/// A packet for which the way is looked up, as it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    pub to: Tuple,
    /// As the IPv4 header says.
    pub tos: u8,
    pub length: u16,
}

/// The kernel's routes and neighbours.
pub trait Routes {
    /// The Ethernet addresses, destination first, under which a packet leaves by the uplink. `None` where a neighbour
    /// has to be asked for, or the packet is too large, or routes lead elsewhere: the stack knows what to do then.
    fn next_hop(&self, node: &NodeConfig, packet: &Leaving) -> Option<[u8; 12]>;
}

/// A packet arrives at the uplink, from its Ethernet header on.
#[inline(always)]
pub fn forward<P: Bytes, T: Tables, R: Routes>(packet: &mut P, tables: &T, routes: &R) -> Fast {
    match find(packet, tables, routes) {
        None => Fast::Leave,
        Some(found) => {
            let Found { header, tuple, to, reason, addresses } = found;
            match packet
                .store(0, &addresses)
                .and_then(|()| translate(packet, &header, &tuple, &to, Way::Uplink.hops()))
            {
                Some(()) => Fast::Out(reason),
                None => Fast::Drop(Reason::RewriteFailed),
            }
        }
    }
}

/// A packet that goes out again.
struct Found {
    header: Header,
    tuple: Tuple,
    to: Tuple,
    reason: Reason,
    addresses: [u8; 12],
}

#[inline(always)]
fn find<P: Bytes, T: Tables, R: Routes>(packet: &P, tables: &T, routes: &R) -> Option<Found> {
    let node = tables.node()?;
    if packet.peek::<2>(ETHERTYPE)? != IPV4 {
        return None;
    }
    let header = Header::parse(packet)?;
    // The last packet that may not be sent on is answered by who counts hops for all.
    let whole = !header.later_fragment && !header.more_fragments;
    if header.l4 != L4 || !whole || header.ttl <= 1 || !matches!(header.proto, proto::TCP | proto::UDP) {
        return None;
    }
    // Said once more, so that offsets are constants.
    let header = Header { l4: L4, ..header };
    let own = header.dst_be == node.addr_be;
    let class = if own { NodeClass::OWN } else { tables.node_class(header.dst_be) };
    if node.addr_be == 0 || class & (NodeClass::OWN | NodeClass::SERVICE) == 0 {
        return None;
    }
    let Some(Transport::Flow { tuple, tcp_flags }) = header.transport(packet) else { return None };
    let (known, to, reason) = known(tables, node, &tuple, tcp_flags, class & NodeClass::OWN != 0)?;
    let now_ns = tables.now_ns();
    if known.flow.flags != TRANSLATED || flow::aged(known.flow.last_ns, now_ns) {
        return None;
    }
    if Way::to(tables, node, to.dst_be) != Way::Uplink {
        return None;
    }
    let [tos] = packet.peek::<1>(L3 + 1)?;
    let addresses = routes.next_hop(node, &Leaving { to, tos, length: header.length })?;
    known.note(tcp_flags, now_ns);
    Some(Found { header, tuple, to, reason, addresses })
}

/// The flow that a packet belongs to, and what the packet becomes: the same question in the same order as at
/// [`crate::uplink::ingress`].
#[inline(always)]
fn known<'t, T: Tables>(
    tables: &'t T,
    node: &NodeConfig,
    tuple: &Tuple,
    tcp_flags: u8,
    own: bool,
) -> Option<(Known<T::Record<'t>>, Tuple, Reason)> {
    let dport = u16::from_be(tuple.dport_be);
    if own
        && dport >= node.snat_first
        && dport <= node.snat_last
        && let Some(known) = flow::find_reply(tables, tuple)
    {
        let to = known.flow.forward.reversed();
        return Some((known, to, Reason::FlowReplyXdp));
    }
    let known = flow::find_forward(tables, tuple, tcp_flags)?;
    let to = known.key.reversed();
    Some((known, to, Reason::FlowForwardXdp))
}
