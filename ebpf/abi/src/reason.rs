//! Why a packet or a socket call got its verdict. Each has a counter in REASONS.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Index into REASONS.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of its index.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)+];

            /// Name in metrics and reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Reason::$variant => $name,)+
                }
            }

            /// What it means, in a sentence.
            pub const fn describe(self) -> &'static str {
                match self {
                    $(Reason::$variant => concat!($($doc,)+).trim_ascii(),)+
                }
            }
        }
    };
}

// Append only: the index is part of the layout.
reasons! {
    /// A socket went to an address that is no Service.
    SocketDirect = "socket_direct",
    /// A socket went to a Service and was given a backend.
    SocketTranslated = "socket_translated",
    /// A socket went to a Service without endpoints and was refused.
    SocketNoEndpoints = "socket_no_endpoints",
    /// A datagram kept the backend its socket used before.
    SocketKept = "socket_kept",
    /// A socket was shown the Service's address in place of the backend's.
    SocketReverse = "socket_reverse",
    /// The kernel refused storage for a socket: replies show the backend's address.
    SocketNoStorage = "socket_no_storage",
    /// A Service was changing: its generation was replaced during every try to read it, or another node handed it on
    /// before this one had its backends for that.
    GenerationRace = "generation_race",
    /// A packet at the uplink is none of ours.
    UplinkPass = "uplink_pass",
    /// A packet at the uplink that is not IPv4.
    UplinkNotIpv4 = "uplink_not_ipv4",
    /// A packet at the uplink is too short or malformed; the host stack judges it.
    UplinkMalformed = "uplink_malformed",
    /// A later fragment at the uplink whose first was not translated, or is not known.
    UplinkFragment = "uplink_fragment",
    /// A first packet to a node port was given a backend on this node.
    NodePortLocal = "node_port_local",
    /// A first packet to a node port was given a backend elsewhere.
    NodePortRemote = "node_port_remote",
    /// A node port without endpoints; the host stack refuses it (RST or ICMP).
    NodePortNoEndpoints = "node_port_no_endpoints",
    /// A packet to a node port belongs to no flow and does not begin one; the host stack answers.
    NodePortNoFlow = "node_port_no_flow",
    /// A packet of a known flow, in the direction it began.
    FlowForward = "flow_forward",
    /// A packet of a known flow, in the other direction.
    FlowReply = "flow_reply",
    /// A first packet from a pod to the outside left under the node's address.
    Masqueraded = "masqueraded",
    /// A packet that must leave under the node's address belongs to no flow and cannot begin one.
    MasqueradeNoFlow = "masquerade_no_flow",
    /// The flow table is full: no new flow is begun, those it holds go on.
    FlowTableFull = "flow_table_full",
    /// No source port was free towards that destination.
    NoSourcePort = "no_source_port",
    /// The tuple of the replies is taken by another live flow.
    ReplyTaken = "reply_taken",
    /// An ICMP error was translated together with the packet inside it.
    IcmpError = "icmp_error",
    /// A packet ran out of hops.
    TtlExceeded = "ttl_exceeded",
    /// The kernel refused to change the packet.
    RewriteFailed = "rewrite_failed",
    /// A first packet to a Service's address was given a backend on this node.
    ServiceLocal = "service_local",
    /// A first packet to a Service's address was given a backend elsewhere.
    ServiceRemote = "service_remote",
    /// A packet to a Service without endpoints; this node's stack refuses it (RST or ICMP).
    ServiceNoEndpoints = "service_no_endpoints",
    /// A packet to a Service belongs to no flow and does not begin one; this node's stack refuses it. What
    /// cannot be refused, an echo reply, is dropped.
    ServiceNoFlow = "service_no_flow",
    /// A packet to a Service's address but to none of its ports; this node's stack refuses it.
    ServiceNoPort = "service_no_port",
    /// A ping of a Service's address; this node's stack answers.
    ServicePing = "service_ping",
    /// A packet from outside the ranges that the Service serves was dropped.
    SourceDenied = "source_denied",
    /// A later fragment was translated as its first was.
    FragmentTranslated = "fragment_translated",
    /// A packet of a pod that needs no translation.
    PodPass = "pod_pass",
    /// A datagram to a backend that is gone was led to another one.
    Resteered = "resteered",
    /// A segment to a backend that is gone; this node's stack resets the connection.
    BackendGone = "backend_gone",
    /// An ARP request for an address that this node announces was answered.
    Announced = "announced",
    /// A later fragment came before its first and waits for it.
    FragmentParked = "fragment_parked",
    /// A first fragment was sent round again, with those behind it that had waited.
    FragmentsReleased = "fragments_released",
    /// A later fragment came before its first and is too large to wait.
    FragmentTooLarge = "fragment_too_large",
    /// A socket went to a Service while another one had its place in the table of connected sockets; what it
    /// was given is kept in storage of its own, which takes longer.
    SocketPlaceTaken = "socket_place_taken",
    /// A packet of a known flow to a backend elsewhere was sent on in XDP, before the host made a socket buffer of it.
    FlowForwardXdp = "flow_forward_xdp",
    /// A reply of a backend elsewhere was sent on in XDP, before the host made a socket buffer of it.
    FlowReplyXdp = "flow_reply_xdp",
    /// A first packet was handed on as it came, to the node of its backend, which answers the client itself.
    DirectBegun = "direct_begun",
    /// A packet of a flow that was handed on before was handed on too.
    DirectForward = "direct_forward",
    /// A first packet that another node handed on was given a backend here.
    DirectTaken = "direct_taken",
    /// A packet of no flow was led to the backend that its QUIC connection ID names: its client has moved.
    ConnectionNamed = "connection_named",
}

/// Number of counters.
pub const REASON_COUNT: usize = Reason::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_is_position() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{}", reason.name());
            assert!(reason.describe().ends_with('.'), "{}", reason.name());
        }
    }
}
