//! The program in the uplink's driver (XDP), and what it sees: a frame in memory, and no socket buffer yet.

use core::mem;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as FibLookup, xdp_action, xdp_md,
    },
    helpers::bpf_fib_lookup,
    macros::xdp,
    programs::XdpContext,
};
use pith_abi::NodeConfig;
use pith_core::{
    Bytes, Covered, checksum,
    crc::Carry,
    fast::{self, Fast, Leaving, Routes},
};

use crate::maps::{CARRY, Maps, count};

/// `AF_INET`.
const IPV4: u8 = 2;

// Frames of several buffers are taken too: headers lie in the first.
#[xdp(frags)]
pub fn uplink_xdp(ctx: XdpContext) -> u32 {
    let frame = ctx.ctx;
    match fast::forward(&mut Frame(frame), &Maps::PACKET, &Kernel(frame)) {
        Fast::Leave => xdp_action::XDP_PASS,
        Fast::Out(reason) => {
            count(reason);
            xdp_action::XDP_TX
        }
        Fast::Drop(reason) => {
            count(reason);
            xdp_action::XDP_DROP
        }
    }
}

/// A frame in the hands of the driver. Nobody has looked at its checksums, and they are complete.
struct Frame(*mut xdp_md);

impl Frame {
    /// Where N bytes lie. The verifier follows offsets that are constants.
    #[inline(always)]
    fn place<const N: usize>(&self, offset: u32) -> Option<*mut [u8; N]> {
        // SAFETY: the context is the one the kernel gave.
        let (start, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let place = start + offset as usize;
        (place + N <= end).then_some(place as *mut [u8; N])
    }
}

impl Bytes for Frame {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let place = self.place::<N>(offset)?;
        // SAFETY: all N bytes lie before the end of the frame's first buffer.
        Some(unsafe { place.read_unaligned() })
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        let place = self.place::<N>(offset)?;
        // SAFETY: as above, and the frame is this program's alone until it ends.
        unsafe { place.write_unaligned(*bytes) };
        Some(())
    }

    #[inline(always)]
    fn crc_carry(&self, words: u32) -> Option<&Carry> {
        CARRY.get(words)
    }

    #[inline(always)]
    fn update_l4_checksum(&mut self, offset: u32, diff: u32, covered: Covered) -> Option<()> {
        let old = u16::from_ne_bytes(self.load::<2>(offset)?);
        if covered.zero_is_none && old == 0 {
            return Some(());
        }
        let new = match checksum::apply(old, diff) {
            0 if covered.zero_is_none => 0xFFFF,
            new => new,
        };
        self.store(offset, &new.to_ne_bytes())
    }
}

/// The kernel's routes, asked as `bpf_redirect_neigh` asks them at the uplink's ingress.
struct Kernel(*mut xdp_md);

impl Routes for Kernel {
    #[inline(always)]
    fn next_hop(&self, node: &NodeConfig, packet: &Leaving) -> Option<[u8; 12]> {
        // SAFETY: numbers and arrays of numbers, of which 0 is one.
        let mut lookup: FibLookup = unsafe { mem::zeroed() };
        lookup.family = IPV4;
        lookup.l4_protocol = packet.to.proto;
        lookup.sport = packet.to.sport_be;
        lookup.dport = packet.to.dport_be;
        lookup.ifindex = node.uplink;
        lookup.__bindgen_anon_1.tot_len = packet.length;
        lookup.__bindgen_anon_2.tos = packet.tos;
        lookup.__bindgen_anon_3.ipv4_src = packet.to.src_be;
        lookup.__bindgen_anon_4.ipv4_dst = packet.to.dst_be;
        let size = mem::size_of::<FibLookup>() as i32;
        // SAFETY: the context is the one the kernel gave, and `lookup` has as many bytes as said.
        let answer =
            unsafe { bpf_fib_lookup(self.0.cast(), &raw mut lookup, size, BPF_FIB_LOOKUP_OUTPUT) };
        if answer != i64::from(BPF_FIB_LKUP_RET_SUCCESS) || lookup.ifindex != node.uplink {
            return None;
        }
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (lookup.dmac, lookup.smac);
        Some([a, b, c, d, e, f, g, h, i, j, k, l])
    }
}
