//! What a socket remembers of the Services it talks to, in storage that the kernel frees with the socket.

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

/// Storage of one socket. A connected socket uses the first entry only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Peers {
    pub peers: [Peer; PEERS_A_SOCKET],
    /// Entry to be written next.
    pub next: u32,
    pub zero: u32,
}

const _: () = {
    assert!(size_of::<Peer>() == 24);
    assert!(size_of::<Peers>() == 24 * PEERS_A_SOCKET + 8);
};
