//! Compressed streams, recognised by their first bytes: media types are often wrong, magic numbers are not.

use std::io::{self, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::unpack::Limits;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const BUFFER: usize = 128 * 1024;

/// The source of the error when so little becomes so much that it can only be meant to fill the disk.
#[derive(Debug, thiserror::Error)]
#[error("it unpacks to more than {ratio} times its size")]
pub(crate) struct Bomb {
    pub(crate) ratio: u64,
    pub(crate) limit: u64,
}

/// The decompressed bytes of `input`; several members or frames in a row (pigz, zstd --rsyncable, eStargz)
/// are one stream.
pub(crate) fn reader<'r, R: Read + Send + 'r>(
    mut input: R,
    limits: &Limits,
) -> io::Result<Box<dyn Read + Send + 'r>> {
    let mut head = [0_u8; 4];
    let mut filled = 0;
    while filled < head.len() {
        match input.read(&mut head[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let head = &head[..filled];
    let compressed = Arc::new(AtomicU64::new(0));
    let counted = Counted { inner: Cursor::new(head.to_vec()).chain(input), count: Arc::clone(&compressed) };
    let whole = BufReader::with_capacity(BUFFER, counted);
    let plain: Box<dyn Read + Send + 'r> = if head.starts_with(GZIP) {
        Box::new(flate2::bufread::MultiGzDecoder::new(whole))
    } else if head == ZSTD {
        Box::new(zstd::stream::read::Decoder::with_buffer(whole)?)
    } else {
        return Ok(Box::new(whole));
    };
    let (ratio, free) = (limits.ratio, limits.ratio_free_bytes);
    Ok(Box::new(Bounded { inner: plain, plain: 0, compressed, ratio, free }))
}

pub(crate) fn is_compressed(head: &[u8]) -> bool {
    head.starts_with(GZIP) || head.starts_with(ZSTD)
}

struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

struct Bounded<R> {
    inner: R,
    /// Bytes so far, out of and into the decompressor.
    plain: u64,
    compressed: Arc<AtomicU64>,
    ratio: u64,
    free: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.plain += n as u64;
        let limit = self.compressed.load(Ordering::Relaxed).saturating_mul(self.ratio).max(self.free);
        if self.plain > limit {
            return Err(io::Error::other(Bomb { ratio: self.ratio, limit }));
        }
        Ok(n)
    }
}
