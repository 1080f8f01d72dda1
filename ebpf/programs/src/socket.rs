//! Hooks at socket calls that name or show an address (cgroup).

use aya_ebpf::{helpers::bpf_set_retval, macros::cgroup_sock_addr, programs::SockAddrContext};
use pith_abi::{Peers, Reason, proto};
use pith_core::socket::{self, Place, Resolution};

use crate::{
    form::{Form, V4, V6},
    maps::{Maps, PEERS, count, count_connection},
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
            match storage(ctx) {
                Some(peers) => {
                    socket::remember_connected(peers, &peer);
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

#[inline(always)]
fn send(ctx: &SockAddrContext, form: &impl Form) -> i32 {
    let Some(proto) = protocol(ctx) else { return ALLOW };
    let place = form.place(ctx);
    let Some(service) = socket::service_at(&maps(ctx), place, proto) else {
        count(Reason::SocketDirect);
        return ALLOW;
    };
    let mut peers = storage(ctx);
    match socket::datagram(&maps(ctx), peers.as_deref(), place, service) {
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
    if let Some(peers) = existing_storage(ctx)
        && let Some(place) = socket::reverse(peers, form.place(ctx))
    {
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
    const IPPROTO_MPTCP: u32 = 262;
    const TCP: u32 = proto::TCP as u32;
    const UDP: u32 = proto::UDP as u32;
    // SAFETY: the context is the one the kernel gave.
    match unsafe { (*ctx.sock_addr).protocol } {
        TCP | IPPROTO_MPTCP => Some(proto::TCP),
        UDP => Some(proto::UDP),
        _ => None,
    }
}

#[inline(always)]
fn maps(ctx: &SockAddrContext) -> Maps {
    Maps { socket: ctx.sock_addr }
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
    if let Some(peers) = existing_storage(ctx) {
        *peers = Peers::default();
    }
}
