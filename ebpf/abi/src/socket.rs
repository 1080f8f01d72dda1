//! What is remembered of the Services that a socket talks to.
//!
//! A connected socket talks to one: its [`Peer`] is in CONNECTED, in the place that the last bits of the
//! socket's cookie give it, until a program at the socket's release clears it. Cookies are counted up, so that
//! sockets one after the other have places one after the other. Making storage at a socket takes the kernel many
//! times as long, a hash half of that, and most sockets live for one short connection. Sockets that send
//! datagrams to several Services have [`Peers`] in storage of their own, made once, and so have connected
//! ones whose place is taken.

/// Services a socket that is not connected can hold apart; the oldest is forgotten beyond that.
pub const PEERS_A_SOCKET: usize = 4;

/// A Service address that a socket asked for, and the backend it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Peer {
    pub frontend_addr_be: u32,
    /// 0 where the entry is unused.
    pub backend_addr_be: u32,
    pub frontend_port_be: u16,
    pub backend_port_be: u16,
    /// Index into SERVICES.
    pub service: u32,
    /// Slot within the generation where the backend was found.
    pub slot: u16,
    /// Tag of that generation.
    pub tag: u16,
    pub zero: u32,
}

/// Storage of one socket. A socket that is connected uses the first entry only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Peers {
    pub peers: [Peer; PEERS_A_SOCKET],
    /// Entry to be written next.
    pub next: u32,
    pub zero: u32,
}

/// A place in CONNECTED.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Connected {
    /// Of the socket that has it; 0 where it is free.
    pub cookie: u64,
    pub peer: Peer,
}

impl Connected {
    /// A power of two: most sockets of a node find their place free.
    pub const PLACES: u32 = 65_536;

    /// The place of a socket.
    #[inline(always)]
    pub const fn place(cookie: u64) -> u32 {
        cookie as u32 % Self::PLACES
    }
}

const _: () = {
    assert!(Connected::PLACES.is_power_of_two());
    assert!(size_of::<Connected>() == 32);
    assert!(size_of::<Peer>() == 24);
    assert!(size_of::<Peers>() == 24 * PEERS_A_SOCKET + 8);
};
