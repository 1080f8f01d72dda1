//! Classifiers at the uplink (tcx).

use aya_ebpf::{
    bindings::{
        __sk_buff, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1 as NextHop, tcx_action_base,
    },
    helpers::{bpf_redirect, bpf_redirect_neigh},
    macros::classifier,
    programs::TcContext,
};
use pith_abi::{NodeConfig, Reason};
use pith_core::{Tables, Verdict, announce, uplink};

use crate::{
    maps::{Maps, count},
    packet::SocketBuffer,
    parking,
};

/// `ETH_P_IP` and `ETH_P_ARP` as they lie in a packet.
const IPV4: u32 = 0x0800u16.to_be() as u32;
const ARP: u32 = 0x0806u16.to_be() as u32;

const AF_INET: u32 = 2;

// A function of its own would bring a symbol whose name tells the folder that it was built in.
#[classifier]
#[inline(always)]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is the one the kernel gave.
    let verdict = match unsafe { (*skb).protocol } {
        IPV4 => uplink::ingress(&mut SocketBuffer(skb), &Maps::PACKET),
        ARP => announce::arp(&mut SocketBuffer(skb), &Maps::PACKET),
        _ => NOT_IPV4,
    };
    carry_out(skb, verdict)
}

#[classifier]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let verdict = if is_ipv4(skb) { uplink::egress(&mut SocketBuffer(skb), &Maps::PACKET) } else { NOT_IPV4 };
    carry_out(skb, verdict)
}

pub(crate) const NOT_IPV4: Verdict = Verdict::Pass(Reason::UplinkNotIpv4);

#[inline(always)]
pub(crate) fn is_ipv4(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is the one the kernel gave.
    unsafe { (*skb).protocol == IPV4 }
}

/// Passing means that programs of others on the same hook have their turn too.
#[inline(always)]
pub(crate) fn carry_out(skb: *mut __sk_buff, verdict: Verdict) -> i32 {
    count(verdict.reason());
    match verdict {
        Verdict::Pass(_) => tcx_action_base::TCX_NEXT,
        Verdict::Drop(_) => tcx_action_base::TCX_DROP,
        Verdict::Forward(_) => redirect(|node| node.uplink),
        Verdict::HandOn(_, node_be) => redirect_to(node_be),
        Verdict::Inward(_) => redirect(|node| node.inner),
        // SAFETY: the context is the one the kernel gave; the helper takes numbers.
        Verdict::Return(_) => unsafe { bpf_redirect((*skb).ifindex, 0) as i32 },
        Verdict::Park(_) => {
            parking::park(skb);
            tcx_action_base::TCX_DROP
        }
        Verdict::Release(_) => {
            parking::release(skb);
            tcx_action_base::TCX_DROP
        }
    }
}

/// Out of an interface, past the host stack.
#[inline(always)]
fn redirect(interface: impl FnOnce(&NodeConfig) -> u32) -> i32 {
    match Maps::PACKET.node() {
        // SAFETY: no parameters are passed: the kernel looks up route and neighbour by the packet.
        Some(node) => unsafe { bpf_redirect_neigh(interface(node), core::ptr::null_mut(), 0, 0) as i32 },
        None => tcx_action_base::TCX_DROP,
    }
}

/// Out of the uplink, to a neighbour there whatever the routes say of the packet's destination.
#[inline(always)]
fn redirect_to(neighbour_be: u32) -> i32 {
    let Some(node) = Maps::PACKET.node() else { return tcx_action_base::TCX_DROP };
    let mut next =
        bpf_redir_neigh { nh_family: AF_INET, __bindgen_anon_1: NextHop { ipv4_nh: neighbour_be } };
    // SAFETY: the parameters live as long as the call, which copies them.
    unsafe { bpf_redirect_neigh(node.uplink, &raw mut next, size_of_val(&next) as i32, 0) as i32 }
}
