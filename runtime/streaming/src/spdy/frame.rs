//! Frames to and from bytes. Pure.
//!
//! ```text
//!  control  |1| version 15 | type 16 | flags 8 | length 24 | payload
//!  data     |0|      stream id 31    | flags 8 | length 24 | payload
//! ```
//! All numbers are big-endian.

use crate::session::ProtocolError;

/// Bytes before every payload.
pub(crate) const HEADER_BYTES: usize = 8;
/// Longest control frame that is accepted: headers of a few streamType and port lines.
pub(crate) const CONTROL_BYTES_MAX: usize = 16 * 1024;
/// Longest data frame that is sent; what is received may be longer and is taken in pieces.
pub(crate) const DATA_BYTES_MAX: usize = 32 * 1024;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Status codes of RST_STREAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reset {
    /// No room for another stream.
    Refused = 3,
}

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    Control { kind: u16, fin: bool, length: usize },
    Data { stream: u32, fin: bool, length: usize },
}

impl Head {
    pub(crate) fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self, ProtocolError> {
        let [a, b, c, d, flags, e, f, g] = bytes;
        let first = u32::from_be_bytes([a, b, c, d]);
        let length = u32::from_be_bytes([0, e, f, g]) as usize;
        let fin = flags & FLAG_FIN != 0;
        if first >> 31 == 0 {
            return Ok(Self::Data { stream: first, fin, length });
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(ProtocolError::SpdyVersion(version));
        }
        let kind = u16::from_be_bytes([c, d]);
        if length > CONTROL_BYTES_MAX {
            return Err(ProtocolError::SpdyLength { kind, length });
        }
        Ok(Self::Control { kind, fin, length })
    }
}

/// A control frame from the client. Header blocks are still compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Control<'a> {
    SynStream {
        stream: u32,
        fin: bool,
        block: &'a [u8],
    },
    /// To a stream that we did not open, or more headers for one: read only because headers are
    /// compressed as one sequence.
    Headers {
        block: &'a [u8],
    },
    RstStream {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Settings, window updates, and types of other versions: nothing to do.
    Ignored,
}

impl<'a> Control<'a> {
    pub(crate) fn parse(kind: u16, fin: bool, payload: &'a [u8]) -> Result<Self, ProtocolError> {
        let bad = || ProtocolError::SpdyLength { kind, length: payload.len() };
        let number = |at: usize| -> Result<u32, ProtocolError> {
            let bytes = payload.get(at..at + 4).ok_or_else(bad)?;
            Ok(u32::from_be_bytes(bytes.try_into().expect("four bytes")) & 0x7fff_ffff)
        };
        let rest = |at: usize| payload.get(at..).ok_or_else(bad);
        Ok(match kind {
            // Stream id, associated stream id, priority, slot.
            SYN_STREAM => Self::SynStream { stream: number(0)?, fin, block: rest(10)? },
            SYN_REPLY | HEADERS => Self::Headers { block: rest(4)? },
            RST_STREAM => Self::RstStream { stream: number(0)? },
            PING => {
                let bytes = payload.get(..4).ok_or_else(bad)?;
                Self::Ping { id: u32::from_be_bytes(bytes.try_into().expect("four bytes")) }
            }
            GOAWAY => Self::GoAway,
            _ => Self::Ignored,
        })
    }
}

/// A stream is taken; `block` is its compressed headers.
pub(crate) fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control(SYN_REPLY, 0, &[&stream.to_be_bytes(), block])
}

/// A stream is not taken.
pub(crate) fn rst_stream(stream: u32, status: Reset) -> Vec<u8> {
    control(RST_STREAM, 0, &[&stream.to_be_bytes(), &(status as u32).to_be_bytes()])
}

/// The answer to a ping.
pub(crate) fn ping(id: u32) -> Vec<u8> {
    control(PING, 0, &[&id.to_be_bytes()])
}

/// No more streams; all is well.
pub(crate) fn goaway(last_stream: u32) -> Vec<u8> {
    control(GOAWAY, 0, &[&last_stream.to_be_bytes(), &0_u32.to_be_bytes()])
}

/// The client may send that many bytes more on the stream.
pub(crate) fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    control(WINDOW_UPDATE, 0, &[&stream.to_be_bytes(), &bytes.to_be_bytes()])
}

/// Bytes of a stream, at most [`DATA_BYTES_MAX`].
pub(crate) fn data(stream: u32, fin: bool, payload: &[u8]) -> Vec<u8> {
    frame(stream, u8::from(fin) * FLAG_FIN, &[payload])
}

/// What a client sends to open a stream.
#[cfg(test)]
pub(crate) fn syn_stream(stream: u32, fin: bool, block: &[u8]) -> Vec<u8> {
    control(SYN_STREAM, u8::from(fin) * FLAG_FIN, &[&stream.to_be_bytes(), &[0; 6], block])
}

fn control(kind: u16, flags: u8, parts: &[&[u8]]) -> Vec<u8> {
    frame(0x8000_0000 | u32::from(VERSION) << 16 | u32::from(kind), flags, parts)
}

fn frame(first: u32, flags: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let [_, a, b, c] = u32::try_from(length).expect("frames are short").to_be_bytes();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    bytes.extend_from_slice(&first.to_be_bytes());
    bytes.extend_from_slice(&[flags, a, b, c]);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(bytes: &[u8]) -> Result<Head, ProtocolError> {
        Head::parse(bytes[..HEADER_BYTES].try_into().expect("eight bytes"))
    }

    #[test]
    fn heads() {
        for (name, bytes, expect) in [
            ("data with fin", [0, 0, 0, 5, 1, 0, 1, 2], Ok(Head::Data { stream: 5, fin: true, length: 258 })),
            (
                "syn stream",
                [0x80, 3, 0, 1, 0, 0, 0, 10],
                Ok(Head::Control { kind: 1, fin: false, length: 10 }),
            ),
            ("version 2", [0x80, 2, 0, 1, 0, 0, 0, 10], Err(ProtocolError::SpdyVersion(2))),
            (
                "too long",
                [0x80, 3, 0, 1, 0, 1, 0, 0],
                Err(ProtocolError::SpdyLength { kind: 1, length: 65536 }),
            ),
            ("longest data", [0, 0, 0, 1, 0, 255, 255, 255], {
                Ok(Head::Data { stream: 1, fin: false, length: 0xff_ffff })
            }),
        ] {
            assert_eq!(Head::parse(bytes), expect, "{name}");
        }
    }

    #[test]
    fn control_payloads() {
        for (name, kind, payload, expect) in [
            (
                "syn stream",
                1,
                &[0x80, 0, 0, 7, 0, 0, 0, 0, 0, 0, 9, 9][..],
                Ok(Control::SynStream { stream: 7, fin: false, block: &[9, 9] }),
            ),
            ("short", 1, &[0, 0, 0, 7], Err(ProtocolError::SpdyLength { kind: 1, length: 4 })),
            ("reset", 3, &[0, 0, 0, 7, 0, 0, 0, 5], Ok(Control::RstStream { stream: 7 })),
            ("empty reset", 3, &[], Err(ProtocolError::SpdyLength { kind: 3, length: 0 })),
            ("ping keeps all bits", 6, &[0xff, 0, 0, 1], Ok(Control::Ping { id: 0xff00_0001 })),
            ("settings", 4, &[0, 0, 0, 0], Ok(Control::Ignored)),
            ("unknown", 77, &[], Ok(Control::Ignored)),
        ] {
            assert_eq!(Control::parse(kind, false, payload), expect, "{name}");
        }
    }

    #[test]
    fn what_is_sent_can_be_read() {
        assert_eq!(head(&data(3, true, b"abc")), Ok(Head::Data { stream: 3, fin: true, length: 3 }));
        assert_eq!(head(&ping(1)), Ok(Head::Control { kind: PING, fin: false, length: 4 }));
        assert_eq!(head(&goaway(1)), Ok(Head::Control { kind: GOAWAY, fin: false, length: 8 }));
        assert_eq!(
            head(&rst_stream(1, Reset::Refused)),
            Ok(Head::Control { kind: RST_STREAM, fin: false, length: 8 })
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: [u8; HEADER_BYTES], kind: u16, fin: bool, payload: Vec<u8>) {
            let _ = Head::parse(bytes);
            let _ = Control::parse(kind, fin, &payload);
        }
    }
}
