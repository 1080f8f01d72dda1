//! IPv6 packets with correct checksums, for tests and benchmarks. Addresses are real ones here, and no numbers.

use std::{vec, vec::Vec};

use pith_abi::{Address6, proto};

use crate::{checksum, host::Buffer};

/// Offset of the transport header where none other comes between.
pub const L4: usize = 14 + 40;

/// Addresses and ports of a packet, in the order in which it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub src: (Address6, u16),
    pub dst: (Address6, u16),
}

impl Ends {
    pub fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src }
    }

    /// Of a packet without further headers.
    pub fn of(packet: &Buffer) -> Self {
        let frame = &packet.0;
        let address = |at: usize| Address6::from_octets(core::array::from_fn(|byte| frame[at + byte]));
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        Self { src: (address(22), port(L4)), dst: (address(38), port(L4 + 2)) }
    }
}

/// A segment of TCP.
pub fn segment(ends: Ends, tcp_flags: u8, payload: &[u8]) -> Buffer {
    let mut header = [0; 20];
    header[..2].copy_from_slice(&ends.src.1.to_be_bytes());
    header[2..4].copy_from_slice(&ends.dst.1.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = tcp_flags;
    let l4 = [&header[..], payload].concat();
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xDD, 0x60, 0, 0, 0];
    frame.extend_from_slice(&(l4.len() as u16).to_be_bytes());
    frame.extend_from_slice(&[proto::TCP, 64]);
    frame.extend_from_slice(&ends.src.0.octets());
    frame.extend_from_slice(&ends.dst.0.octets());
    frame.extend_from_slice(&l4);
    let sum = !checksum::fold(sum(&frame));
    frame[L4 + 16..L4 + 18].copy_from_slice(&sum.to_ne_bytes());
    Buffer(frame)
}

/// Over everything that the transport checksum covers: all ones in a packet that is right.
pub fn sum(frame: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    let pseudo: Vec<u8> = [&frame[22..L4], &frame[18..20], &[0, frame[20]]].concat();
    [&pseudo, &frame[L4..]].into_iter().flat_map(|part| part.chunks(2)).map(word).fold(0, checksum::add)
}
