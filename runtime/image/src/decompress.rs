//! Compressed streams, recognised by their first bytes: media types are often wrong, magic numbers are not.

use std::io::{self, BufReader, Cursor, Read};

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const BUFFER: usize = 128 * 1024;

/// The decompressed bytes of `input`; several members or frames in a row (pigz, zstd --rsyncable, eStargz)
/// are one stream.
pub(crate) fn reader<'r, R: Read + Send + 'r>(mut input: R) -> io::Result<Box<dyn Read + Send + 'r>> {
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
    let whole = BufReader::with_capacity(BUFFER, Cursor::new(head.to_vec()).chain(input));
    if head.starts_with(GZIP) {
        Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole)))
    } else if head == ZSTD {
        Ok(Box::new(zstd::stream::read::Decoder::with_buffer(whole)?))
    } else {
        Ok(Box::new(whole))
    }
}

pub(crate) fn is_compressed(head: &[u8]) -> bool {
    head.starts_with(GZIP) || head.starts_with(ZSTD)
}
