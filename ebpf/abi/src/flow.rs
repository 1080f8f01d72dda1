//! Flows that are translated packet by packet at the uplink.
//!
//! A flow has one record, [`Flow`], in FLOWS under the tuple of its reply packets; FORWARD leads from the
//! tuple of its first packet to that key and holds no state of its own. Losing either never leaves a
//! half-translated flow: without the record neither direction is translated, without the index the next
//! forward packet finds no flow and is treated as new.

/// Addresses and ports of a packet as they lie in it. For ICMP echo the identifier stands in `sport_be` of
/// a request and in `dport_be` of a reply, the other is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Tuple {
    pub src_be: u32,
    pub dst_be: u32,
    pub sport_be: u16,
    pub dport_be: u16,
    /// Number from [`crate::proto`].
    pub proto: u8,
    pub zero: [u8; 3],
}

impl Tuple {
    #[inline(always)]
    pub const fn new(src_be: u32, sport_be: u16, dst_be: u32, dport_be: u16, proto: u8) -> Self {
        Self { src_be, dst_be, sport_be, dport_be, proto, zero: [0; 3] }
    }

    /// The tuple of a packet in the other direction.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self::new(self.dst_be, self.dport_be, self.src_be, self.sport_be, self.proto)
    }
}

/// The one record of a translated flow, kept under the tuple of its reply packets.
///
/// A forward packet becomes `key.reversed()`, a reply packet becomes `forward.reversed()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Tuple of forward packets before translation.
    pub forward: Tuple,
    /// `bpf_ktime_get_coarse_ns` of the last packet, at most a second behind.
    pub last_ns: u64,
    /// Index into SERVICES, [`Flow::NO_SERVICE`] for a masqueraded flow.
    pub service: u32,
    /// A [`FlowState`].
    pub state: u8,
    /// [`FlowFlags`].
    pub flags: u8,
    pub zero: [u8; 2],
}

impl Flow {
    pub const NO_SERVICE: u32 = u32::MAX;
}

/// A flow whose packets are handed on to another node as they came, kept under the tuple that they have. Its replies
/// do not come by here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct HandedOn {
    /// `bpf_ktime_get_coarse_ns` of the last packet, at most a second behind.
    pub last_ns: u64,
    /// Address of the node.
    pub node_be: u32,
    /// A [`FlowState`].
    pub state: u8,
    pub zero: [u8; 3],
}

/// A datagram that came in pieces, of which only the first has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKey {
    pub src_be: u32,
    pub dst_be: u32,
    /// IPv4 fills the first two bytes.
    pub id_be: u32,
    pub proto: u8,
    /// A [`Hook`]: the same piece passes several.
    pub hook: u8,
    /// 4 or 6.
    pub family: u8,
    pub zero: u8,
}

/// What the addresses of a datagram's pieces become. Where the source is 0, they are handed on as they came, to the
/// node that the destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Fragment {
    pub src_be: u32,
    pub dst_be: u32,
    /// `bpf_ktime_get_coarse_ns` of the first piece: identifiers come again.
    pub first_ns: u64,
}

/// Which of the pieces that came before their first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ParkedKey {
    pub fragment: FragmentKey,
    /// Counted from 0, below [`Parked::PIECES`].
    pub nth: u32,
}

/// A piece that came before its first and waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Parked {
    /// `bpf_ktime_get_coarse_ns` of its arrival.
    pub parked_ns: u64,
    /// How many of `bytes` it has.
    pub length: u32,
    /// From its Ethernet header on.
    pub bytes: [u8; Self::BYTES],
}

impl Parked {
    /// Frames at an uplink with the MTU of Ethernet have 1514.
    pub const BYTES: usize = 1524;
    /// Of one datagram: the largest has 44 of that MTU.
    pub const PIECES: u32 = 48;
}

/// Words of AT_PODS: whether the programs at pods' links have anything to do. Most of the time they have not,
/// and then a packet between pods costs them hardly more than the question.
pub struct AtPods;

impl AtPods {
    /// A mark that every flow that begins at a pod's link replaces by another, at random: programs cannot
    /// count together.
    pub const BEGUN: u32 = 0;
    /// The mark that stood when user space last found none of those flows left.
    pub const SETTLED: u32 = 1;
    /// Whether any backend is remembered as gone ([`crate::Scope::GONE`]).
    pub const GONE: u32 = 2;
    pub const WORDS: u32 = 3;
}

/// Where a program sees a packet.
pub struct Hook;

impl Hook {
    pub const UPLINK_INGRESS: u8 = 0;
    pub const UPLINK_EGRESS: u8 = 1;
    pub const FROM_POD: u8 = 2;
    pub const TO_POD: u8 = 3;
}

/// Bits of [`Flow::flags`].
pub struct FlowFlags;

impl FlowFlags {
    /// The source of forward packets becomes the node.
    pub const SOURCE: u8 = 1;
    /// The destination of forward packets becomes a backend.
    pub const DESTINATION: u8 = 2;
    /// It began at a pod's link, and its replies are undone there.
    pub const AT_POD: u8 = 4;
}

/// Life of a flow. Transitions are in `pith_core::flow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowState {
    /// Forward packets only.
    Opening = 0,
    /// Packets both ways.
    Open = 1,
    /// The side that began has closed (TCP FIN).
    ClosedByFirst = 2,
    /// The side that answered has closed (TCP FIN).
    ClosedByOther = 3,
    /// Closed both ways, or reset.
    Closed = 4,
}

impl FlowState {
    /// A value from the map; an unknown one counts as closed, so that the record is collected soon.
    #[inline(always)]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            0 => Self::Opening,
            1 => Self::Open,
            2 => Self::ClosedByFirst,
            3 => Self::ClosedByOther,
            _ => Self::Closed,
        }
    }
}

const _: () = {
    assert!(size_of::<Tuple>() == 16);
    assert!(size_of::<Flow>() == 32);
    assert!(size_of::<HandedOn>() == 16);
    assert!(size_of::<FragmentKey>() == 16);
    assert!(size_of::<Fragment>() == 16);
    assert!(size_of::<ParkedKey>() == 20);
    assert!(size_of::<Parked>() == 1536);
};
