//! The packet logic: pure functions that the eBPF programs and host tests share.
//!
//! Everything that decides lives here, from the first header byte to the verdict. What it needs of its
//! surroundings are two traits: [`Bytes`] (a packet and its checksums) and [`Tables`] (maps, clock, chance). In the
//! kernel they are a socket buffer and BPF maps, in tests a vector and hash tables, so the very code that
//! the verifier accepts runs under proptest.
//!
//! What is decided is decided once for both families: an address is a number of 32 bits, an IPv4 address itself and an
//! IPv6 address by its stand-in. [`Packet`] is what of a packet is a family's own: any [`Bytes`] are an IPv4 packet,
//! [`six`] puts IPv6 over them.
//!
//! Invariant: nothing here panics, allocates, or loops without a constant bound.
//!
//! # What the verifier taught
//! The idea was tried first and holds: all entry points are accepted by Linux 6.18 as they come out of
//! rustc, without a line of assembly or a hint. The rules that make it so:
//! - **Every function is `#[inline(always)]`.** The core is generic over the traits, so each program is
//!   one function, and the 512 bytes of stack are shared by what is alive at the same time.
//! - **No closures across functions.** LLVM leaves some of them as functions of their own, whose type
//!   information the kernel refuses ("Invalid arg#1"). A trait method or an enum does the same and stays inline;
//!   this is why [`Tables::flow`] returns a [`Record`] and does not take a closure.
//! - **No loop around a loop.** The verifier walks every iteration: looking for a client's last backend
//!   inside the loop that retries a replaced generation cost 220,000 steps and half a second; one after the
//!   other they cost a quarter of that.
//! - **No question whose answer makes no difference.** Each `if` doubles what follows it. Asking whether a
//!   port changes before updating a checksum cost a third of all steps; a difference of nothing may as
//!   well be added. Today: 4,700 steps at `connect4`, 14,500 at `sendmsg4`, 11,000 at the uplink's egress,
//!   102,000 at its ingress, of 1,000,000 allowed; a test of the proxy holds them down.
//! - **What ways have in common is walked once.** The verifier walks the rest of the program again for every
//!   constant that it remembers. It remembers those in registers and those that are stored where a word of
//!   the stack begins, so where ways meet, what tells them apart goes through the middle of a word
//!   (`black_box` and the order of fields in `Start` and `Becomes`).
//! - **Shared words are loaded once.** What another CPU may replace is one 64-bit word with a tag in it
//!   (`pith_abi::Head`, `pith_abi::Backend`), loaded volatile; LLVM would otherwise load it twice and mix generations.
//! - **Checksums are the kernel's to write.** Packets from a local sender carry half a checksum
//!   (CHECKSUM_PARTIAL), so the core computes differences ([`checksum`]) and hands them to the helpers that know.
//! - Indexing with `%` or a constant, and arrays in place of slices, leave no bounds check behind, hence no
//!   panic and no unreachable loop for the verifier to stumble over.

#![no_std]

#[cfg(any(test, feature = "host"))]
extern crate std;

pub mod announce;
mod begin;
pub mod checksum;
pub mod crc;
mod direct;
pub mod fast;
pub mod flow;
pub mod fragment;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod icmp;
#[cfg(any(test, feature = "host"))]
pub mod model;
pub mod packet;
pub mod pods;
mod quic;
pub mod select;
pub mod six;
pub mod socket;
pub mod translate;
pub mod uplink;
mod v4;
#[cfg(any(test, feature = "host"))]
pub mod wire6;

#[cfg(test)]
mod direct_tests;
#[cfg(test)]
mod fast_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod quic_tests;
#[cfg(test)]
mod six_tests;
#[cfg(test)]
mod socket_tests;
#[cfg(test)]
mod uplink_tests;

use pith_abi::{
    Affinity, AffinityKey, Backend, Flow, FlowState, Fragment, FragmentKey, Frontend, FrontendTarget,
    HandedOn, NodeConfig, Reason, ServerKey, Service, Tuple,
};

use crate::{
    icmp::IcmpError,
    packet::{Header, Transport},
    translate::Hops,
};

/// A packet that starts at its Ethernet header. Offsets are in bytes from there.
pub trait Bytes {
    /// `None` beyond the packet's end.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// The same for the headers of every packet, which nearly always lie where they can be read directly.
    #[inline(always)]
    fn peek<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.load(offset)
    }

    /// Writes without touching any checksum.
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()>;

    /// Brings the checksum of a transport header, at `offset`, up to date after a change of `diff`
    /// ([`checksum::diff`]) in what it covers. Only the packet knows how: network cards and virtual links
    /// leave this checksum to be completed later, when it covers the pseudo header only.
    fn update_l4_checksum(&mut self, offset: u32, diff: u32, covered: Covered) -> Option<()>;

    /// How a change at the beginning of an SCTP packet of so many 32-bit words shows in its checksum.
    fn crc_carry(&self, words: u32) -> Option<&crc::Carry>;
}

/// What changed below a transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    pub pseudo_header: PseudoHeader,
    /// A checksum of 0 means that there is none, and must stay (UDP, RFC 768).
    pub zero_is_none: bool,
}

/// Whether a change is in the pseudo header (addresses) and not in the segment itself, and in which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PseudoHeader {
    None,
    Ipv4,
    /// Unlike IPv4's addresses these are in no other checksum, which those who have summed up the whole packet have to
    /// know.
    Ipv6,
}

/// What a family's packets have, as decisions need it. Addresses are 32 bits, see [`six`].
pub trait Packet {
    /// `None` when there is no complete header.
    fn header(&self) -> Option<Header>;
    /// `None` when the transport header is not complete.
    fn transport(&self, header: &Header) -> Option<Transport>;
    /// Turns a packet with tuple `from` into one with tuple `to`. `None` when the packet could not be
    /// written; it may then be changed in part and must not go on.
    fn translate(&mut self, header: &Header, from: &Tuple, to: &Tuple, hops: Hops) -> Option<()>;
    /// The same for a piece other than the first, which has addresses only.
    fn readdress(&mut self, header: &Header, src_be: u32, dst_be: u32, hops: Hops) -> Option<()>;
    /// The tuple of the packet that an ICMP error is about.
    fn inside(&self, header: &Header) -> Option<Tuple>;
    /// Translates an ICMP error together with the packet inside it.
    fn translate_error(&mut self, header: &Header, error: &IcmpError, hops: Hops) -> Option<()>;
    /// The address of the backend that a UDP packet's connection ID names ([`quic`]).
    fn server(&self, header: &Header) -> Option<u32>;
    /// Whether another node has handed it on, and it begins a flow.
    fn is_handed_on(&self) -> bool;
    /// Counts the hop of a packet that is handed on as it came, and marks it where it begins a flow.
    fn hand_on(&mut self, header: &Header, begins: bool) -> Option<()>;
}

/// The maps and the two helpers that decisions depend on. All methods take `&self`: in the kernel every
/// map is shared with other CPUs, and on the host the model uses cells.
pub trait Tables {
    type Record<'a>: Record
    where
        Self: 'a;

    fn node(&self) -> Option<&NodeConfig>;
    /// Whether an address is one of this node's pods'.
    #[inline(always)]
    fn is_local_pod(&self, node: &NodeConfig, addr_be: u32) -> bool {
        node.is_local_pod(addr_be)
    }
    /// Whether an address is any pod's.
    #[inline(always)]
    fn is_pod(&self, node: &NodeConfig, addr_be: u32) -> bool {
        node.is_pod(addr_be)
    }
    /// Whether an address is one that a host can answer from: group and broadcast addresses are nobody's.
    #[inline(always)]
    fn is_hosts(&self, addr_be: u32) -> bool {
        addr_be.to_ne_bytes()[0] < 224
    }
    /// A number that is the same at every node for the same address.
    #[inline(always)]
    fn identity(&self, addr_be: u32) -> u64 {
        addr_be.into()
    }
    /// Bits of [`pith_abi::NodeClass`]; 0 for an address that is no node's.
    fn node_class(&self, addr_be: u32) -> u32;

    fn frontend(&self, frontend: &Frontend) -> Option<FrontendTarget>;
    /// The head is loaded once, as one word.
    fn service(&self, index: u32) -> Option<Service>;
    fn backend(&self, slot: u32) -> Option<Backend>;

    /// Whether a Service that serves some sources only serves this one.
    fn serves_source(&self, service: u32, addr_be: u32) -> bool;

    /// A Service's backend at an address, where packets may name it.
    fn server(&self, key: &ServerKey) -> Option<Backend>;

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity);

    fn flow(&self, key: &Tuple) -> Option<Self::Record<'_>>;
    /// A flow is about to begin with the packet at hand.
    #[inline(always)]
    fn begins(&self) -> Result<(), NotAdded> {
        Ok(())
    }
    fn add_flow(&self, key: &Tuple, flow: &Flow) -> Result<(), NotAdded>;
    fn remove_flow(&self, key: &Tuple);
    fn forward(&self, forward: &Tuple) -> Option<Tuple>;
    /// Adds or replaces.
    fn set_forward(&self, forward: &Tuple, key: &Tuple) -> Result<(), NotAdded>;

    fn handed_on(&self, tuple: &Tuple) -> Option<HandedOn>;
    /// Adds or replaces.
    fn set_handed_on(&self, tuple: &Tuple, flow: &HandedOn) -> Result<(), NotAdded>;
    /// Writes into the record where there is one.
    fn note_handed_on(&self, tuple: &Tuple, state: FlowState, last_ns: u64);

    /// Whether a flow that began at a pod's link may be left.
    fn pods_have_flows(&self) -> bool;
    /// Such a flow is in the tables now.
    fn pod_flow_begun(&self);
    /// Whether any backend is remembered as gone.
    fn any_gone(&self) -> bool;

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment);
    /// Whether pieces wait for their first.
    fn any_parked(&self, key: &FragmentKey) -> bool;

    fn random(&self) -> u32;
    fn now_ns(&self) -> u64;
    /// Cookie of the network namespace of the socket at hand; 0 where a packet is at hand.
    fn netns_cookie(&self) -> u64;
}

/// A flow's record in its place. Other CPUs may write it at any time, so it is copied out and never
/// borrowed.
pub trait Record {
    fn get(&self) -> Flow;
    fn set_life(&self, state: FlowState, last_ns: u64);
    /// Gives the place to another flow with the same reply tuple.
    fn replace(&self, flow: &Flow);
}

/// Why a record was not added to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdded {
    /// There is one under that key.
    Exists,
    /// The table holds as many as it may.
    Full,
}

/// What is to be done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the host stack or, when leaving, to the wire.
    Pass(Reason),
    /// Out of the uplink past the host stack, towards the packet's (new) destination. The stack would
    /// refuse it, because its source is an address of this node.
    Forward(Reason),
    /// Out of the uplink past the host stack, to the node with this address whatever the packet's destination.
    HandOn(Reason, u32),
    /// Into the pods' network past the host stack, which may not forward at all.
    Inward(Reason),
    /// Back out of the interface it came in by, as it is now.
    Return(Reason),
    /// Kept, as a piece of a datagram whose first is not known yet ([`fragment`]).
    Park(Reason),
    /// Through the same hook once more, and after it the pieces that were kept for it.
    Release(Reason),
    Drop(Reason),
}

impl Verdict {
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Pass(reason)
            | Self::Forward(reason)
            | Self::HandOn(reason, _)
            | Self::Inward(reason)
            | Self::Return(reason)
            | Self::Park(reason)
            | Self::Release(reason)
            | Self::Drop(reason) => reason,
        }
    }
}
