//! The contract between the eBPF programs and user space: names, keys and values of every map.
//!
//! Invariant: a change of anything here that an older proxy or program would misread raises [`LAYOUT`].
//! Types have a fixed size (asserted), no implicit padding, and say their byte order in the field's name:
//! `_be` is network order exactly as it lies in a packet, everything else is the machine's order.
//!
//! ```text
//! FRONTENDS  Frontend ──► FrontendTarget ─┐            hash, one entry an address:port/protocol
//! SERVICES   index    ──► Service ◄───────┘            array, the pointer that swaps a generation
//! BACKENDS   slot     ──► Backend ◄─ Service.head      array, generations as runs of slots
//! AFFINITY   AffinityKey ► Affinity                    LRU hash, ClientIP affinity
//! CONNECTED  cookie's end ► Connected                  array, whom a connected socket asked for, until its release
//! PEERS      socket   ──► Peers                        socket storage, dies with the socket
//! ADDRESSES  StandIn  ──► Known6                      hash, the IPv6 addresses that Services, nodes and flows have
//! FLOWS      reply Tuple ► Flow                        hash, the one record of a translated flow
//! FORWARD    first Tuple ► reply Tuple                 hash, an index into FLOWS that carries no state
//! HANDED_ON  first Tuple ► HandedOn                    hash, flows of which another node sees the replies
//! SOURCES    service, range ► 1                        longest prefix, who may use a Service; SOURCES6 for IPv6
//! SERVERS    ServerKey ──► Backend                     hash, backends that packets name by themselves
//! FRAGMENTS  FragmentKey ► Fragment                    LRU hash, pieces whose first was translated
//! PARKED     ParkedKey ► Parked                    LRU hash, pieces that came before their first
//! CARRY      words ► bit matrix                        array, for checksums of SCTP
//! CONNECTIONS index     ► count a CPU                 per-CPU array, connections that sockets made
//! AT_PODS    AtPods   ──► count                        array, what there is to do at pods' links
//! NODES      address  ──► NodeClass bits               hash, addresses of this node and of the others
//! NODE       family   ──► NodeConfig                   array, IPv4 and IPv6
//! NODE6      0        ──► Networks6                    array of one
//! REASONS    Reason   ──► count a CPU                  per-CPU array
//! ```

#![no_std]

mod address6;
mod flow;
mod node;
mod reason;
mod service;
mod socket;

pub use address6::{Address6, Known6, StandIn};
pub use flow::{
    AtPods, Flow, FlowFlags, FlowState, Fragment, FragmentKey, HandedOn, Hook, Parked, ParkedKey, Tuple,
};
pub use node::{Networks6, NodeClass, NodeConfig, NodeFlags};
pub use reason::{REASON_COUNT, Reason};
pub use service::{
    Affinity, AffinityKey, Backend, Frontend, FrontendTarget, Head, HeadFlags, MAX_BACKENDS_A_SERVICE,
    MAX_SLOTS, Scope, ServerKey, Service, SourceKey, SourceKey6,
};
pub use socket::{Connected, PEERS_A_SOCKET, Peer, Peers};

/// Version of every type and map name in this crate. It is part of the path under which maps are pinned.
pub const LAYOUT: u32 = 10;

// A counter more is a larger REASONS, which maps of an older proxy do not have: another layout as well.
const _: () = assert!(LAYOUT == 10 && REASON_COUNT == 47);

/// Names of the maps as the object file and bpffs know them.
pub mod map_name {
    pub const FRONTENDS: &str = "FRONTENDS";
    pub const SERVICES: &str = "SERVICES";
    pub const BACKENDS: &str = "BACKENDS";
    pub const AFFINITY: &str = "AFFINITY";
    pub const CONNECTED: &str = "CONNECTED";
    pub const PEERS: &str = "PEERS";
    pub const FLOWS: &str = "FLOWS";
    pub const FORWARD: &str = "FORWARD";
    pub const NODES: &str = "NODES";
    pub const NODE: &str = "NODE";
    pub const REASONS: &str = "REASONS";

    pub const SOURCES: &str = "SOURCES";
    pub const FRAGMENTS: &str = "FRAGMENTS";
    pub const PARKED: &str = "PARKED";
    pub const CARRY: &str = "CARRY";
    pub const AT_PODS: &str = "AT_PODS";
    pub const CONNECTIONS: &str = "CONNECTIONS";
    pub const SOURCES6: &str = "SOURCES6";
    pub const NODE6: &str = "NODE6";
    pub const ADDRESSES: &str = "ADDRESSES";
    pub const HANDED_ON: &str = "HANDED_ON";
    pub const SERVERS: &str = "SERVERS";

    pub const ALL: [&str; 22] = [
        FRONTENDS,
        SERVICES,
        BACKENDS,
        AFFINITY,
        CONNECTED,
        PEERS,
        FLOWS,
        FORWARD,
        NODES,
        NODE,
        REASONS,
        SOURCES,
        FRAGMENTS,
        PARKED,
        CARRY,
        AT_PODS,
        CONNECTIONS,
        SOURCES6,
        NODE6,
        ADDRESSES,
        HANDED_ON,
        SERVERS,
    ];
}

/// Sizes of the maps as the object file declares them; user space may choose others when it creates them.
pub mod default_limit {
    /// Addresses × ports that may be Services: about two a Service port (ClusterIP and node port).
    pub const FRONTENDS: u32 = 65_536;
    /// Balancing groups: one a Service port, two where internal and external policy differ.
    pub const SERVICES: u32 = 65_536;
    /// Endpoints of all Services together, plus room for the generation being written.
    pub const BACKENDS: u32 = 262_144;
    /// Clients remembered by Services with ClientIP affinity.
    pub const AFFINITY: u32 = 4_096;
    /// Places for sockets that are connected to Services, see [`crate::Connected`]: 32 bytes each.
    pub const SOCKETS: u32 = crate::Connected::PLACES;
    /// Flows translated at the uplink at one time: node ports from outside, pods to the outside.
    pub const FLOWS: u32 = 65_536;
    /// Addresses of nodes.
    pub const NODES: u32 = 16_384;
    /// Ranges of sources, of all Services together.
    pub const SOURCES: u32 = 16_384;
    /// Backends of Services whose packets name them by connection IDs of QUIC.
    pub const SERVERS: u32 = 16_384;
    /// IPv6 addresses of Services and backends.
    pub const ADDRESSES: u32 = 65_536;
    /// Datagrams in pieces, under way at one time.
    pub const FRAGMENTS: u32 = 4_096;
    /// Pieces that came before their first: 1.5 KiB each, the oldest give way.
    pub const PARKED: u32 = 512;
}

/// Protocol numbers of IP that Services know (RFC 5237 registry).
pub mod proto {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const SCTP: u8 = 132;
}

/// Lets user space copy the types to and from maps as bytes.
#[cfg(feature = "user")]
mod user {
    #![allow(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]

    use super::*;

    macro_rules! pod {
        ($($ty:ty),+ $(,)?) => {
            $(
                // SAFETY: the type is Copy, repr(C) or repr(transparent) over integers only, any bit
                // pattern is a value of it, and its assertions show that it has no implicit padding.
                unsafe impl aya::Pod for $ty {}
            )+
        };
    }

    pod!(
        Address6,
        Affinity,
        AffinityKey,
        Backend,
        Connected,
        Flow,
        Fragment,
        FragmentKey,
        Frontend,
        FrontendTarget,
        HandedOn,
        Known6,
        Networks6,
        NodeClass,
        NodeConfig,
        Peer,
        Peers,
        ServerKey,
        Service,
        SourceKey,
        SourceKey6,
        StandIn,
        Tuple
    );
}
