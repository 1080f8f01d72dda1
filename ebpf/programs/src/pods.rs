//! Classifiers at the node's end of each pod's link (filters of its clsact).

use aya_ebpf::{macros::classifier, programs::TcContext};
use pith_core::pods;

use crate::{
    maps::Maps,
    packet::SocketBuffer,
    uplink::{NOT_IPV4, carry_out, is_ipv4},
};

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let verdict = if is_ipv4(skb) { pods::from_pod(&mut SocketBuffer(skb), &Maps::PACKET) } else { NOT_IPV4 };
    carry_out(skb, verdict)
}

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let verdict = if is_ipv4(skb) { pods::to_pod(&mut SocketBuffer(skb), &Maps::PACKET) } else { NOT_IPV4 };
    carry_out(skb, verdict)
}
