//! The two families of IP, as entry points choose between them.

use aya_ebpf::bindings::__sk_buff;
use pith_core::{Verdict, packet::Header, pods, six, uplink};

use crate::{maps::Maps, packet::SocketBuffer};

pub(crate) trait Family {
    fn header(skb: *mut __sk_buff) -> Option<Header>;
    fn ingress(skb: *mut __sk_buff) -> Verdict;
    fn egress(skb: *mut __sk_buff) -> Verdict;
    fn from_pod(skb: *mut __sk_buff) -> Verdict;
    fn to_pod(skb: *mut __sk_buff) -> Verdict;
}

pub(crate) struct Ipv4;
pub(crate) struct Ipv6;

impl Family for Ipv4 {
    #[inline(always)]
    fn header(skb: *mut __sk_buff) -> Option<Header> {
        Header::parse(&SocketBuffer(skb))
    }

    #[inline(always)]
    fn ingress(skb: *mut __sk_buff) -> Verdict {
        uplink::ingress(&mut SocketBuffer(skb), &Maps::PACKET)
    }

    #[inline(always)]
    fn egress(skb: *mut __sk_buff) -> Verdict {
        uplink::egress(&mut SocketBuffer(skb), &Maps::PACKET)
    }

    #[inline(always)]
    fn from_pod(skb: *mut __sk_buff) -> Verdict {
        pods::from_pod(&mut SocketBuffer(skb), &Maps::PACKET)
    }

    #[inline(always)]
    fn to_pod(skb: *mut __sk_buff) -> Verdict {
        pods::to_pod(&mut SocketBuffer(skb), &Maps::PACKET)
    }
}

impl Family for Ipv6 {
    #[inline(always)]
    fn header(skb: *mut __sk_buff) -> Option<Header> {
        six::header(&SocketBuffer(skb), &Maps::PACKET)
    }

    #[inline(always)]
    fn ingress(skb: *mut __sk_buff) -> Verdict {
        six::ingress(&mut SocketBuffer(skb), &Maps::PACKET)
    }

    #[inline(always)]
    fn egress(skb: *mut __sk_buff) -> Verdict {
        six::egress(&mut SocketBuffer(skb), &Maps::PACKET)
    }

    #[inline(always)]
    fn from_pod(skb: *mut __sk_buff) -> Verdict {
        six::from_pod(&mut SocketBuffer(skb), &Maps::PACKET)
    }

    #[inline(always)]
    fn to_pod(skb: *mut __sk_buff) -> Verdict {
        six::to_pod(&mut SocketBuffer(skb), &Maps::PACKET)
    }
}
