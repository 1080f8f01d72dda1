//! Classifiers at the node's end of each pod's link (filters of its clsact).

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};

use crate::{
    family::{Family, Ipv4, Ipv6},
    uplink::{IPV4, IPV6, carry_out, not_ip},
};

#[classifier]
#[inline(always)]
pub fn from_pod(ctx: TcContext) -> i32 {
    from::<Ipv4>(ctx.skb.skb, IPV4)
}

#[classifier]
#[inline(always)]
pub fn to_pod(ctx: TcContext) -> i32 {
    to::<Ipv4>(ctx.skb.skb, IPV4)
}

/// Of a node that has IPv6 too.
#[classifier]
#[inline(always)]
pub fn from_pod_dual(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is the one the kernel gave.
    if unsafe { (*skb).protocol } == IPV6 { from::<Ipv6>(skb, IPV6) } else { from::<Ipv4>(skb, IPV4) }
}

#[classifier]
#[inline(always)]
pub fn to_pod_dual(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is the one the kernel gave.
    if unsafe { (*skb).protocol } == IPV6 { to::<Ipv6>(skb, IPV6) } else { to::<Ipv4>(skb, IPV4) }
}

#[inline(always)]
fn from<F: Family>(skb: *mut __sk_buff, protocol: u32) -> i32 {
    // SAFETY: the context is the one the kernel gave.
    if unsafe { (*skb).protocol } == protocol { carry_out::<F>(skb, F::from_pod(skb)) } else { not_ip() }
}

#[inline(always)]
fn to<F: Family>(skb: *mut __sk_buff, protocol: u32) -> i32 {
    // SAFETY: the context is the one the kernel gave.
    if unsafe { (*skb).protocol } == protocol { carry_out::<F>(skb, F::to_pod(skb)) } else { not_ip() }
}
