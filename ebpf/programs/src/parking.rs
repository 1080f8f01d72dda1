//! Pieces of datagrams that came before their first: kept as bytes, and sent through the uplink's ingress again
//! when it is there. The kernel has no way to keep the packet itself.

use core::{hint::black_box, ptr};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_CSUM_LEVEL_RESET, BPF_F_INGRESS, BPF_NOEXIST},
    helpers::{
        bpf_clone_redirect, bpf_csum_level, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
};
use pith_abi::{FragmentKey, Hook, Parked, ParkedKey};
use pith_core::{Tables, fragment};

use crate::{
    family::Family,
    maps::{Maps, PARKED, PARKING},
};

/// Keeps a piece until its first comes. What cannot be kept is lost, as pieces may be.
#[inline(always)]
pub(crate) fn park<F: Family>(skb: *mut __sk_buff) {
    let Some(header) = F::header(skb) else { return };
    let Some(place) = PARKING.get_ptr_mut(0) else { return };
    let Some(length) = fragment::parked_length(&header).and_then(bounded) else { return };
    // SAFETY: the pointer is to this CPU's element, which nothing else uses while a program runs here; it has
    // room for `length` bytes.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), 0, (&raw mut (*place).bytes).cast(), length) != 0 {
            return;
        }
        (*place).length = length;
        (*place).parked_ns = Maps::PACKET.now_ns();
    }
    let key = fragment::key(&header, Hook::UPLINK_INGRESS);
    let mut nth = 0;
    while nth < Parked::PIECES {
        // SAFETY: as above.
        let piece = unsafe { &*place };
        if PARKED.insert(&ParkedKey { fragment: key, nth }, piece, BPF_NOEXIST.into()).is_ok() {
            break;
        }
        nth += 1;
    }
    // The first may have come meanwhile, and have found nobody waiting.
    if fragment::led(&Maps::PACKET, &key).is_some() {
        send_parked(skb, &key);
    }
}

/// Sends a first piece round again, and those behind it that have waited.
#[inline(always)]
pub(crate) fn release<F: Family>(skb: *mut __sk_buff) {
    let Some(header) = F::header(skb) else { return };
    again(skb);
    send_parked(skb, &fragment::key(&header, Hook::UPLINK_INGRESS));
}

/// Sends the pieces that wait, each written over the packet at hand.
#[inline(always)]
fn send_parked(skb: *mut __sk_buff, key: &FragmentKey) {
    let now = Maps::PACKET.now_ns();
    // SAFETY: the context is the one the kernel gave. Each piece has a checksum of its own, or none that a
    // network card has looked at.
    unsafe { bpf_csum_level(skb, BPF_CSUM_LEVEL_RESET.into()) };
    let mut nth = 0;
    while nth < Parked::PIECES {
        let key = ParkedKey { fragment: *key, nth };
        let Some(piece) = PARKED.get_ptr(&key) else { return };
        // SAFETY: the element stays mapped. An LRU map may give it to another piece meanwhile, which is then
        // sent twice.
        unsafe {
            if let Some(length) = bounded(ptr::read_volatile(&raw const (*piece).length))
                && now.wrapping_sub((*piece).parked_ns) <= fragment::WAIT_NS
                && bpf_skb_change_tail(skb, length, 0) == 0
                && bpf_skb_store_bytes(skb.cast(), 0, (&raw const (*piece).bytes).cast(), length, 0) == 0
            {
                again(skb);
            }
        }
        // It may be gone already.
        let _ = PARKED.remove(&key);
        nth += 1;
    }
}

/// A length that the verifier knows to be above 0 and within [`Parked::bytes`]. Asked at once, LLVM would
/// make one comparison of it, of another number.
#[inline(always)]
fn bounded(length: u32) -> Option<u32> {
    let length = black_box(u64::from(length));
    if length == 0 {
        return None;
    }
    let length = black_box(length);
    if length > Parked::BYTES as u64 {
        return None;
    }
    Some(length as u32)
}

/// Sends a copy of the packet as it is through the ingress of the interface that it came by.
#[inline(always)]
fn again(skb: *mut __sk_buff) {
    // SAFETY: the context is the one the kernel gave; the helper takes numbers. A copy that cannot be made is a
    // packet lost.
    unsafe { bpf_clone_redirect(skb, (*skb).ifindex, BPF_F_INGRESS.into()) };
}
