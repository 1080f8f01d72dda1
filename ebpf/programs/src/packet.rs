//! A socket buffer as the core's packet.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INVALIDATE_HASH, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::{bpf_csum_update, bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use pith_core::{Bytes, Covered, PseudoHeader, crc::Carry};

use crate::maps::CARRY;

/// Where what follows the largest IPv4 header begins: 14 bytes of Ethernet, 15 words.
const BEHIND_IPV4: u32 = 14 + 60;

/// A packet in the hands of a classifier.
pub(crate) struct SocketBuffer(pub(crate) *mut __sk_buff);

impl Bytes for SocketBuffer {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the context is the one the kernel gave, and `bytes` has room for N bytes.
        let failed =
            unsafe { bpf_skb_load_bytes(self.0.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) };
        if failed != 0 {
            return None;
        }
        // SAFETY: the helper filled all N bytes.
        Some(unsafe { bytes.assume_init() })
    }

    #[inline(always)]
    fn peek<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // SAFETY: the context is the one the kernel gave.
        let (start, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        // The verifier wants to know how far it may be: behind an IPv4 header at most.
        if offset <= BEHIND_IPV4 {
            let place = start + offset as usize;
            if place + N <= end {
                // SAFETY: all N bytes lie before the end of the packet's linear part.
                return Some(unsafe { (place as *const [u8; N]).read_unaligned() });
            }
        }
        self.load(offset)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        // The hash of the flow is another one now.
        let flags = u64::from(BPF_F_INVALIDATE_HASH);
        // SAFETY: the context is the one the kernel gave, and `bytes` has N bytes.
        let failed =
            unsafe { bpf_skb_store_bytes(self.0.cast(), offset, bytes.as_ptr().cast(), N as u32, flags) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn crc_carry(&self, words: u32) -> Option<&Carry> {
        CARRY.get(words)
    }

    #[inline(always)]
    fn update_l4_checksum(&mut self, offset: u32, diff: u32, covered: Covered) -> Option<()> {
        let addresses = !matches!(covered.pseudo_header, PseudoHeader::None);
        let pseudo = if addresses { u64::from(BPF_F_PSEUDO_HDR) } else { 0 };
        let zero = if covered.zero_is_none { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        // SAFETY: the context is the one the kernel gave; size 0, in the low bits of the flags, means that
        // `to` is a difference.
        let failed = unsafe { bpf_l4_csum_replace(self.0.cast(), offset, 0, u64::from(diff), pseudo | zero) };
        if matches!(covered.pseudo_header, PseudoHeader::Ipv6) {
            // Where a network card has summed up the whole packet (CHECKSUM_COMPLETE) the helper has taken the difference
            // off that sum, in which IPv4's header checksum makes up for it, and here nothing does. Fails where there is
            // no such sum. SAFETY: the context is the one the kernel gave.
            unsafe { bpf_csum_update(self.0, diff) };
        }
        (failed == 0).then_some(())
    }
}
