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
use pith_core::{Tables, Verdict, announce};

use crate::{
    family::{Family, Ipv4, Ipv6},
    maps::{Maps, count},
    packet::SocketBuffer,
    parking,
};

/// `ETH_P_IP`, `ETH_P_IPV6` and `ETH_P_ARP` as they lie in a packet.
pub(crate) const IPV4: u32 = 0x0800u16.to_be() as u32;
pub(crate) const IPV6: u32 = 0x86DDu16.to_be() as u32;
const ARP: u32 = 0x0806u16.to_be() as u32;

const AF_INET: u32 = 2;

// Functions of their own would bring symbols whose names tell the folder that they were built in.
#[classifier]
#[inline(always)]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    ingress(ctx.skb.skb)
}

#[classifier]
#[inline(always)]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    egress(ctx.skb.skb)
}

/// Of a node that has IPv6 too.
#[classifier]
#[inline(always)]
pub fn ingress_dual(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is the one the kernel gave.
    match unsafe { (*skb).protocol } {
        IPV6 => carry_out::<Ipv6>(skb, Ipv6::ingress(skb)),
        _ => ingress(skb),
    }
}

#[classifier]
#[inline(always)]
pub fn egress_dual(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is the one the kernel gave.
    match unsafe { (*skb).protocol } {
        IPV6 => carry_out::<Ipv6>(skb, Ipv6::egress(skb)),
        _ => egress(skb),
    }
}

#[inline(always)]
fn ingress(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the context is the one the kernel gave.
    let verdict = match unsafe { (*skb).protocol } {
        IPV4 => Ipv4::ingress(skb),
        ARP => announce::arp(&mut SocketBuffer(skb), &Maps::PACKET),
        _ => NOT_IP,
    };
    carry_out::<Ipv4>(skb, verdict)
}

#[inline(always)]
fn egress(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the context is the one the kernel gave.
    if unsafe { (*skb).protocol } != IPV4 {
        return not_ip();
    }
    carry_out::<Ipv4>(skb, Ipv4::egress(skb))
}

const NOT_IP: Verdict = Verdict::Pass(Reason::UplinkNotIpv4);

#[inline(always)]
pub(crate) fn not_ip() -> i32 {
    count(NOT_IP.reason());
    tcx_action_base::TCX_NEXT
}

/// Passing means that programs of others on the same hook have their turn too.
#[inline(always)]
pub(crate) fn carry_out<F: Family>(skb: *mut __sk_buff, verdict: Verdict) -> i32 {
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
            parking::park::<F>(skb);
            tcx_action_base::TCX_DROP
        }
        Verdict::Release(_) => {
            parking::release::<F>(skb);
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
