//! Hooks at socket calls that name or show an address (cgroup).

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_TCP_CLOSE,
    helpers::{bpf_get_socket_cookie, bpf_set_retval},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use pith_abi::{Connected, Peer, Peers, Reason, proto};
use pith_core::socket::{self, Place, Resolution};

use crate::{
    form::{Form, V4, V6},
    maps::{CONNECTED, Maps, PEERS, count, count_connection},
};

/// Verdicts of these hooks.
const REFUSE: i32 = 0;
const ALLOW: i32 = 1;

const ECONNREFUSED: i32 = 111;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, &V4)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, &V6)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    send(&ctx, &V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    send(&ctx, &V6)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    show(&ctx, &V4)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    show(&ctx, &V6)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    show(&ctx, &V4)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    show(&ctx, &V6)
}

/// A socket is closed for the last time. It may never have been connected, or to no Service.
#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    // SAFETY: the context is the one the kernel gave.
    if service_protocol(unsafe { (*ctx.sock).protocol }).is_some() {
        remove_connected(cookie(&ctx));
    }
    ALLOW
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, form: &impl Form) -> i32 {
    let Some(proto) = protocol(ctx) else { return ALLOW };
    match socket::connect(&maps(ctx), form.place(ctx), proto) {
        Resolution::Direct => {
            forget(ctx);
            count(Reason::SocketDirect);
            ALLOW
        }
        Resolution::To { peer, reason } => {
            count_connection(peer.service);
            count(remember_connected(ctx, &peer).unwrap_or(reason));
            form.set(ctx, Place { addr_be: peer.backend_addr_be, port_be: peer.backend_port_be });
            ALLOW
        }
        Resolution::Refuse(reason) => refuse(reason),
    }
}

#[inline(always)]
fn send(ctx: &SockAddrContext, form: &impl Form) -> i32 {
    let Some(proto) = protocol(ctx) else { return ALLOW };
    let place = form.place(ctx);
    let Some(service) = socket::service_at(&maps(ctx), place, proto) else {
        count(Reason::SocketDirect);
        return ALLOW;
    };
    let mut peers = storage(ctx);
    match socket::datagram(&maps(ctx), connected(ctx), peers.as_deref(), place, service) {
        Resolution::Direct => ALLOW,
        Resolution::To { peer, reason } => {
            if reason as u8 != Reason::SocketKept as u8 {
                count_connection(peer.service);
            }
            match &mut peers {
                Some(peers) => {
                    socket::remember(peers, &peer);
                    count(reason);
                }
                None => count(Reason::SocketNoStorage),
            }
            form.set(ctx, Place { addr_be: peer.backend_addr_be, port_be: peer.backend_port_be });
            ALLOW
        }
        Resolution::Refuse(reason) => refuse(reason),
    }
}

/// Shows the Service's address where a socket is told whom it talks to.
#[inline(always)]
fn show(ctx: &SockAddrContext, form: &impl Form) -> i32 {
    let asked = match connected(ctx) {
        Some(peer) => socket::asked(&peer, form.place(ctx)),
        None => existing_storage(ctx).and_then(|peers| socket::reverse(peers, form.place(ctx))),
    };
    if let Some(place) = asked {
        form.set(ctx, place);
        count(Reason::SocketReverse);
    }
    ALLOW
}

/// Without a value of our own the kernel would answer EPERM, which clients take for a lack of rights.
#[inline(always)]
fn refuse(reason: Reason) -> i32 {
    count(reason);
    // SAFETY: the helper takes a number.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}

/// The protocol under which a Service may be found.
#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    // SAFETY: the context is the one the kernel gave.
    service_protocol(unsafe { (*ctx.sock_addr).protocol })
}

#[inline(always)]
fn service_protocol(protocol: u32) -> Option<u8> {
    const IPPROTO_MPTCP: u32 = 262;
    const TCP: u32 = proto::TCP as u32;
    const UDP: u32 = proto::UDP as u32;
    match protocol {
        TCP | IPPROTO_MPTCP => Some(proto::TCP),
        UDP => Some(proto::UDP),
        _ => None,
    }
}

#[inline(always)]
fn maps(ctx: &SockAddrContext) -> Maps {
    Maps { socket: ctx.sock_addr }
}

#[inline(always)]
fn cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the context is the one the kernel gave.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// The place of a socket in CONNECTED, if it is there.
#[inline(always)]
fn place(cookie: u64) -> Option<*mut Connected> {
    CONNECTED.get_ptr_mut(Connected::place(cookie))
}

/// Whose place it is.
#[inline(always)]
fn owner(place: *mut Connected) -> u64 {
    // SAFETY: array elements are never freed; one word, so it is whole.
    unsafe { ptr::read_volatile(&raw const (*place).cookie) }
}

/// Takes a free place. core offers no comparing exchange for this target, whose instructions have one.
#[inline(always)]
fn claim(place: *mut Connected, cookie: u64) -> bool {
    use core::intrinsics::{AtomicOrdering, atomic_cxchg};
    const RELAXED: AtomicOrdering = AtomicOrdering::Relaxed;
    // SAFETY: array elements are never freed, and aligned to 8 bytes.
    unsafe { atomic_cxchg::<u64, RELAXED, RELAXED>(&raw mut (*place).cookie, 0, cookie).1 }
}

/// The peer of a socket that is connected now. One that was, and is no longer, may have left one.
#[inline(always)]
fn connected(ctx: &SockAddrContext) -> Option<Peer> {
    // SAFETY: the context is the one the kernel gave, and its socket is valid for the call.
    if unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).state } == BPF_TCP_CLOSE {
        return None;
    }
    let cookie = cookie(ctx);
    let place = place(cookie)?;
    if owner(place) != cookie {
        return None;
    }
    // SAFETY: as above. A place is written by calls of the socket that has it only.
    Some(unsafe { (*place).peer })
}

/// Remembers the only peer of a socket, and says what was special about it.
#[inline(always)]
fn remember_connected(ctx: &SockAddrContext, peer: &Peer) -> Option<Reason> {
    let cookie = cookie(ctx);
    if let Some(place) = place(cookie)
        && (owner(place) == cookie || claim(place, cookie))
    {
        // SAFETY: array elements are never freed, and this one is the socket's now.
        unsafe { (*place).peer = *peer };
        forget_storage(ctx);
        return None;
    }
    match storage(ctx) {
        Some(peers) => {
            socket::remember_connected(peers, peer);
            Some(Reason::SocketPlaceTaken)
        }
        None => Some(Reason::SocketNoStorage),
    }
}

/// Gives a socket's place back.
#[inline(always)]
fn remove_connected(cookie: u64) {
    if let Some(place) = place(cookie)
        && owner(place) == cookie
    {
        // SAFETY: array elements are never freed; one word, so it is written whole.
        unsafe { ptr::write_volatile(&raw mut (*place).cookie, 0) };
    }
}

/// The socket's storage, made when missing.
#[inline(always)]
fn storage(ctx: &SockAddrContext) -> Option<&mut Peers> {
    // SAFETY: the socket of the context is valid for the call; the kernel zeroes new storage, and a value
    // of zeroes is an empty table. It lives as long as the socket.
    unsafe { PEERS.get_or_insert_ptr_mut(ctx, None).as_mut() }
}

#[inline(always)]
fn existing_storage(ctx: &SockAddrContext) -> Option<&mut Peers> {
    // SAFETY: as above.
    unsafe { PEERS.get_ptr_mut(ctx).as_mut() }
}

/// A socket that now goes to an address directly is shown that address.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    remove_connected(cookie(ctx));
    forget_storage(ctx);
}

#[inline(always)]
fn forget_storage(ctx: &SockAddrContext) {
    if let Some(peers) = existing_storage(ctx) {
        *peers = Peers::default();
    }
}
