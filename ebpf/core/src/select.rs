//! Selection: from a Service to one of its backends.
//!
//! Invariant: a backend is returned only from the generation whose head was read, however often heads are
//! replaced meanwhile (see `pith_abi::Head`).

use pith_abi::{Affinity, AffinityKey, Backend, Head, HeadFlags, Service};

use crate::Tables;

/// How often a head that was replaced while its slot was read is read again. One replacement during a
/// lookup is rare, several in a row need a program that is paused several times.
const TRIES: u32 = 4;

/// How many slots around its last one a backend is looked for after a change of generation. Backends
/// are kept in order, so each one removed or added moves the others by one.
const NEIGHBOURHOOD: u32 = 32;

/// A backend and where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub backend: Backend,
    /// Slot within the generation.
    pub slot: u32,
    /// Tag of the generation.
    pub tag: u16,
}

/// What asking a Service for a backend came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    Chosen(Choice),
    /// The Service has no backends.
    Empty,
    /// Its generation was replaced during every try.
    Race,
}

/// Who asks for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// The socket at hand: its address is not chosen yet, so its network namespace stands for it.
    Socket,
    /// The sender of a packet: address and port, as they lie in it.
    Sender(u32, u16),
}

impl Client {
    /// See [`AffinityKey::client`].
    #[inline(always)]
    fn key<T: Tables>(self, tables: &T) -> u64 {
        match self {
            Self::Socket => tables.netns_cookie(),
            Self::Sender(addr_be, _) => AffinityKey::ADDRESS | tables.identity(addr_be),
        }
    }

    /// A number that is the same for the same client, evenly spread over clients. The port of a socket is
    /// not chosen yet, so that chance stands for it.
    #[inline(always)]
    fn hash<T: Tables>(self, tables: &T, flags: u8) -> u32 {
        let port = match self {
            _ if flags & HeadFlags::HASH_CLIENT != 0 => 0,
            Self::Socket => tables.random(),
            Self::Sender(_, port_be) => u32::from(port_be),
        };
        let client = self.key(tables) ^ (u64::from(port) << 32);
        // The finalizer of MurmurHash3.
        let mixed = (client ^ (client >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
        (mixed >> 32) as u32
    }
}

/// Chooses a backend for a new connection.
#[inline(always)]
pub fn select<T: Tables>(tables: &T, index: u32, client: Client) -> Selection {
    let Some(service) = tables.service(index) else { return Selection::Empty };
    let head = Head::unpack(service.head);
    if head.flags & HeadFlags::AFFINITY == 0 {
        return any(tables, index, client);
    }
    let key = AffinityKey { client: client.key(tables), service: index, zero: 0 };
    let now = tables.now_ns();
    let selection = match last(tables, &key, &service, head, now) {
        Some(choice) => Selection::Chosen(choice),
        None => any(tables, index, client),
    };
    if let Selection::Chosen(Choice { backend, slot, .. }) = selection {
        tables.set_affinity(&key, &Affinity { backend, last_ns: now, slot, zero: 0 });
    }
    selection
}

/// A backend by chance, or by the client's hash where the Service says so.
#[inline(always)]
fn any<T: Tables>(tables: &T, index: u32, client: Client) -> Selection {
    let mut tries = 0;
    while tries < TRIES {
        tries += 1;
        let Some(service) = tables.service(index) else { return Selection::Empty };
        let head = Head::unpack(service.head);
        if head.count == 0 {
            return Selection::Empty;
        }
        // The upper half of the product is uniform over 0..count, without a division.
        let pick =
            if head.flags & HeadFlags::HASH == 0 { tables.random() } else { client.hash(tables, head.flags) };
        let slot = ((pick as u64 * head.count as u64) >> 32) as u32;
        let Some(backend) = tables.backend(head.first + slot) else { return Selection::Empty };
        if backend.tag() == head.tag {
            return Selection::Chosen(Choice { backend, slot, tag: head.tag });
        }
    }
    Selection::Race
}

/// The client's last backend where it is still one.
#[inline(always)]
fn last<T: Tables>(
    tables: &T,
    key: &AffinityKey,
    service: &Service,
    head: Head,
    now_ns: u64,
) -> Option<Choice> {
    let last = tables.affinity(key)?;
    if now_ns.wrapping_sub(last.last_ns) >= service.affinity_ns {
        return None;
    }
    find(tables, head, last.backend, last.slot)
}

/// Looks for a backend in the generation `head`, near the slot where it was last.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, head: Head, backend: Backend, near: u32) -> Option<Choice> {
    let count = u32::from(head.count);
    let first = near.saturating_sub(NEIGHBOURHOOD / 2);
    let mut step = 0;
    while step < NEIGHBOURHOOD {
        let slot = first + step;
        if slot >= count {
            return None;
        }
        let here = tables.backend(head.first + slot)?;
        if here.tag() == head.tag && here.same_place(backend) {
            return Some(Choice { backend: here, slot, tag: head.tag });
        }
        step += 1;
    }
    None
}
