//! Services as the kernel sees them: frontend → Service → generation → backend.
//!
//! ```text
//! Frontend ─hash─► FrontendTarget{service, check}
//!                       │
//!                       ▼
//!   SERVICES[service] = Head{first, count, tag, flags}       one 64-bit word, replaced by one store
//!                       │
//!                       ▼
//!   BACKENDS[first .. first+count], each {addr, port, tag}   never changed while a Head points at it
//! ```
//!
//! Invariant: a reader that finds `backend.tag == head.tag` has a backend of exactly that generation. A
//! run of slots is written before the head that points at it and reused only under another tag, so a
//! reader that was paused between the two loads sees the difference and loads the head again.

use crate::Address6;

/// Slots that [`Head::first`] can address (24 bits).
pub const MAX_SLOTS: u32 = 1 << 24;
/// Backends that [`Head::count`] can hold (16 bits).
pub const MAX_BACKENDS_A_SERVICE: u32 = u16::MAX as u32;

/// An address at which a Service answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Frontend {
    /// IPv4 address; 0 stands for every address of the node (node ports).
    pub addr_be: u32,
    pub port_be: u16,
    /// Number from [`crate::proto`].
    pub proto: u8,
    /// A [`Scope`].
    pub scope: u8,
}

/// From where a frontend is reached: what is balanced may differ, and what is not there is not reached.
pub struct Scope;

impl Scope {
    /// Socket calls and packets of this node's pods, and socket calls of its own.
    pub const INSIDE: u8 = 0;
    /// Packets that arrive at the uplink.
    pub const OUTSIDE: u8 = 1;
    /// No address of a Service but of a backend that it had, and that is gone: packets of pods that still
    /// go there are led elsewhere or refused.
    pub const GONE: u8 = 2;
    /// As `INSIDE` for IPv6, where addresses are there by their [`crate::StandIn`]. What is IPv4 never looks there, lest
    /// it be sent to such an address; nor the other way round, so that each family has node ports of its own.
    pub const INSIDE6: u8 = 3;
    /// Packets that another node has handed on, because one of this node's backends is to answer the client.
    pub const HANDED: u8 = 4;
    /// As `OUTSIDE` for IPv6.
    pub const OUTSIDE6: u8 = 5;
    /// As `GONE` for IPv6.
    pub const GONE6: u8 = 6;

    /// The scope of IPv6 that a scope of IPv4 has beside it, or itself.
    #[inline(always)]
    pub const fn six(scope: u8) -> u8 {
        match scope {
            Self::INSIDE => Self::INSIDE6,
            Self::OUTSIDE => Self::OUTSIDE6,
            Self::GONE => Self::GONE6,
            other => other,
        }
    }
}

impl Frontend {
    /// A frontend as pods reach it.
    #[inline(always)]
    pub const fn new(addr_be: u32, port_be: u16, proto: u8) -> Self {
        Self { addr_be, port_be, proto, scope: Scope::INSIDE }
    }

    /// The same, reached from elsewhere.
    #[inline(always)]
    pub const fn scoped(self, scope: u8) -> Self {
        Self { scope, ..self }
    }

    /// Stands for an address at which Services answer, whatever the port; leads to
    /// [`FrontendTarget::NO_SERVICE`].
    #[inline(always)]
    pub const fn address(addr_be: u32) -> Self {
        Self::new(addr_be, 0, crate::proto::ICMP)
    }

    /// The frontend of a node port: any address of the node.
    #[inline(always)]
    pub const fn node_port(port_be: u16, proto: u8) -> Self {
        Self::new(0, port_be, proto)
    }

    /// A digest that [`FrontendTarget`] repeats. The kernel may hand the memory of a removed hash element
    /// to a new one while a paused program still reads it (kernel/bpf/hashtab.c, `bpf_mem_cache_free`):
    /// the digest then belongs to another frontend, and the reader notices.
    #[inline(always)]
    pub const fn check(&self) -> u32 {
        self.addr_be.wrapping_mul(0x9E37_79B1)
            ^ ((self.port_be as u32) << 16)
            ^ ((self.scope as u32) << 8)
            ^ self.proto as u32
    }
}

/// Which Service a frontend leads to: one word, so that it is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct FrontendTarget(pub u64);

impl FrontendTarget {
    /// The service of a frontend that stands for an address only.
    pub const NO_SERVICE: u32 = u32::MAX;

    #[inline(always)]
    pub const fn new(frontend: &Frontend, service: u32) -> Self {
        Self(((frontend.check() as u64) << 32) | service as u64)
    }

    /// Index into SERVICES, or `None` when the word does not belong to `frontend`.
    #[inline(always)]
    pub const fn service(self, frontend: &Frontend) -> Option<u32> {
        if (self.0 >> 32) as u32 == frontend.check() { Some(self.0 as u32) } else { None }
    }
}

/// How a Service balances; lives in SERVICES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// A packed [`Head`].
    pub head: u64,
    /// ClientIP affinity: how long a client stays with its backend after its last connection; 0 is off.
    pub affinity_ns: u64,
}

/// Bits of [`Head::flags`].
pub struct HeadFlags;

impl HeadFlags {
    /// Backends are chosen by ClientIP affinity first.
    pub const AFFINITY: u8 = 1;
    /// Slots are chosen by a hash of the client's address and port and not by chance: with a Maglev table
    /// in the slots, every node makes the same choice and a change moves few clients.
    pub const HASH: u8 = 2;
    /// That hash leaves the port out.
    pub const HASH_CLIENT: u8 = 4;
    /// Only sources in SOURCES are served.
    pub const SOURCES: u8 = 8;
    /// A packet that begins no connection may name its backend: by the connection ID of QUIC, in SERVERS.
    pub const NAMED: u8 = 16;
}

/// The pointer to a Service's current generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Head {
    /// First slot in BACKENDS; below [`MAX_SLOTS`].
    pub first: u32,
    /// Number of slots; 0: the Service has no endpoints.
    pub count: u16,
    /// Tag that every slot of this generation carries.
    pub tag: u16,
    /// [`HeadFlags`].
    pub flags: u8,
}

impl Head {
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.first as u64 & 0xFF_FFFF)
            | ((self.flags as u64) << 24)
            | ((self.count as u64) << 32)
            | ((self.tag as u64) << 48)
    }

    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self {
            first: (word & 0xFF_FFFF) as u32,
            flags: (word >> 24) as u8,
            count: (word >> 32) as u16,
            tag: (word >> 48) as u16,
        }
    }
}

/// One slot of a generation: one word, so that address, port and tag are read at once.
///
/// With port 0 the address is a node's: packets are handed on to it as they came, and it chooses among its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Backend(pub u64);

impl Backend {
    #[inline(always)]
    pub const fn new(addr_be: u32, port_be: u16, tag: u16) -> Self {
        Self(addr_be as u64 | ((port_be as u64) << 32) | ((tag as u64) << 48))
    }

    #[inline(always)]
    pub const fn addr_be(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub const fn port_be(self) -> u16 {
        (self.0 >> 32) as u16
    }

    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Whether it is a node that packets are handed on to.
    #[inline(always)]
    pub const fn is_node(self) -> bool {
        self.port_be() == 0
    }

    /// Whether both lead to the same address and port, in whatever generation.
    #[inline(always)]
    pub const fn same_place(self, other: Self) -> bool {
        self.0 << 16 == other.0 << 16
    }
}

/// A range of sources that a Service serves: key of a longest-prefix map, whose prefix covers the service
/// and then the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SourceKey {
    /// Index into SERVICES.
    pub service: u32,
    pub addr_be: u32,
}

/// The same for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SourceKey6 {
    /// Index into SERVICES.
    pub service: u32,
    pub address: Address6,
}

/// A backend by its address, as connection IDs of QUIC name it: key in SERVERS, which leads to a [`Backend`] whose tag
/// is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ServerKey {
    /// Index into SERVICES.
    pub service: u32,
    pub addr_be: u32,
}

/// A client of a Service with ClientIP affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct AffinityKey {
    /// IPv4 address of a client at the uplink, or 63 bits of an IPv6 one's digest; cookie of the network namespace for one at the socket,
    /// whose address is not chosen yet when it connects. Cookies and addresses may not be equal by
    /// chance: an address has [`AffinityKey::ADDRESS`] set.
    pub client: u64,
    /// Index into SERVICES.
    pub service: u32,
    pub zero: u32,
}

impl AffinityKey {
    /// Marks `client` as an address.
    pub const ADDRESS: u64 = 1 << 63;
}

/// Where a client of a Service with affinity went last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Affinity {
    /// The backend; its tag is ignored.
    pub backend: Backend,
    /// `bpf_ktime_get_ns` of the last connection.
    pub last_ns: u64,
    /// Slot within the generation where the backend was found.
    pub slot: u32,
    pub zero: u32,
}

const _: () = {
    assert!(size_of::<Frontend>() == 8);
    assert!(size_of::<FrontendTarget>() == 8);
    assert!(size_of::<Service>() == 16);
    assert!(size_of::<Backend>() == 8);
    assert!(size_of::<AffinityKey>() == 16);
    assert!(size_of::<SourceKey>() == 8);
    assert!(size_of::<ServerKey>() == 8);
    assert!(size_of::<SourceKey6>() == 20);
    assert!(size_of::<Affinity>() == 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_backend_keep_every_bit() {
        let heads = [
            Head::default(),
            Head { first: MAX_SLOTS - 1, count: u16::MAX, tag: u16::MAX, flags: u8::MAX },
            Head { first: 0x12_3456, count: 0x789A, tag: 0xBCDE, flags: 0xF0 },
        ];
        for head in heads {
            assert_eq!(Head::unpack(head.pack()), head);
        }
        let backend = Backend::new(0x0102_0304, 0x5060, 0x7080);
        assert_eq!((backend.addr_be(), backend.port_be(), backend.tag()), (0x0102_0304, 0x5060, 0x7080));
        assert!(backend.same_place(Backend::new(0x0102_0304, 0x5060, 1)));
        assert!(!backend.same_place(Backend::new(0x0102_0304, 0x5061, 0x7080)));
    }

    #[test]
    fn a_target_belongs_to_its_frontend() {
        let mine = Frontend::new(u32::from_ne_bytes([10, 96, 0, 1]), 80u16.to_be(), crate::proto::TCP);
        let others = [
            Frontend { port_be: 81u16.to_be(), ..mine },
            Frontend { proto: crate::proto::UDP, ..mine },
            Frontend { addr_be: u32::from_ne_bytes([10, 96, 0, 2]), ..mine },
            mine.scoped(Scope::OUTSIDE),
            mine.scoped(Scope::GONE),
        ];
        let target = FrontendTarget::new(&mine, 7);
        assert_eq!(target.service(&mine), Some(7));
        for other in others {
            assert_eq!(target.service(&other), None, "{other:?}");
        }
    }
}
