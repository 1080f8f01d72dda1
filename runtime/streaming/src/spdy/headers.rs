//! Header blocks: names and values, compressed with zlib in one sequence for the whole connection.
//!
//! Invariant: every block of a connection passes through its [`Reader`] in order, also those nobody cares
//! about, because each continues the compression of the one before.

use std::collections::HashMap;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::session::ProtocolError;

/// Longest block that is accepted, decompressed.
const BLOCK_BYTES_MAX: usize = 64 * 1024;

const CUT_SHORT: ProtocolError = ProtocolError::SpdyHeaders("cut short");

/// Headers by lower-case name.
pub(crate) type Headers = HashMap<String, String>;

/// Decompresses the client's blocks.
#[derive(Debug)]
pub(crate) struct Reader(Decompress);

impl Reader {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(crate) fn read(&mut self, block: &[u8]) -> Result<Headers, ProtocolError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        let mut plain = Vec::new();
        loop {
            if plain.len() > BLOCK_BYTES_MAX {
                return Err(ProtocolError::SpdyHeaders("too long"));
            }
            plain.reserve(1024);
            let before = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before.0).expect("of a slice");
            block = &block[taken..];
            match result {
                // The client's compression ends with the connection, not before.
                Ok(Status::StreamEnd) => return Err(ProtocolError::SpdyHeaders("compression ended")),
                Ok(Status::Ok | Status::BufError) => {
                    let idle = (self.0.total_in(), self.0.total_out()) == before;
                    if block.is_empty() && plain.len() < plain.capacity() {
                        return Ok(plain);
                    }
                    if idle {
                        return Err(ProtocolError::SpdyHeaders("cannot be decompressed"));
                    }
                }
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|_| ProtocolError::SpdyHeaders("another dictionary"))?;
                }
                Err(_) => return Err(ProtocolError::SpdyHeaders("cannot be decompressed")),
            }
        }
    }
}

/// Compresses ours.
#[derive(Debug)]
pub(crate) struct Writer(Compress);

impl Writer {
    pub(crate) fn new() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&dictionary()).expect("nothing is compressed yet");
        Self(compress)
    }

    pub(crate) fn write(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = Vec::new();
        let number = |n: usize, plain: &mut Vec<u8>| {
            plain.extend_from_slice(&u32::try_from(n).expect("headers are short").to_be_bytes());
        };
        number(headers.len(), &mut plain);
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            number(text.len(), &mut plain);
            plain.extend_from_slice(text.as_bytes());
        }
        // A flush costs a few bytes besides; more room than ever needed, so that one call does it.
        let mut block = Vec::with_capacity(plain.len() + 1024);
        self.0
            .compress_vec(&plain, &mut block, FlushCompress::Sync)
            .expect("compressing into enough room cannot fail");
        block
    }
}

/// Count, then length and bytes of each name and value.
fn parse(plain: &[u8]) -> Result<Headers, ProtocolError> {
    let mut rest = plain;
    let mut headers = Headers::new();
    for _ in 0..number(&mut rest)? {
        let name = text(&mut rest)?;
        let value = text(&mut rest)?;
        headers.insert(name.to_ascii_lowercase(), value);
    }
    Ok(headers)
}

fn number(rest: &mut &[u8]) -> Result<usize, ProtocolError> {
    let (bytes, after) = rest.split_first_chunk::<4>().ok_or(CUT_SHORT)?;
    *rest = after;
    Ok(u32::from_be_bytes(*bytes) as usize)
}

fn text(rest: &mut &[u8]) -> Result<String, ProtocolError> {
    let length = number(rest)?;
    let (bytes, after) = rest.split_at_checked(length).ok_or(CUT_SHORT)?;
    *rest = after;
    String::from_utf8(bytes.to_vec()).map_err(|_| ProtocolError::SpdyHeaders("not text"))
}

/// SPDY/3's dictionary (section 2.6.10.1 of the draft): words with their lengths, then plain text. Its
/// Adler-32 is 0xe3c6a7c2.
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
        accept-language accept-ranges age allow authorization cache-control connection content-base \
        content-encoding content-language content-length content-location content-md5 content-range \
        content-type date etag expect expires from host if-match if-modified-since if-none-match \
        if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
        proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
        user-agent vary via warning www-authenticate method get status";
    const MORE_WORDS: [&str; 8] =
        ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
    const TEXT: &str = "10010120120220520630030230330430530630740240540640740840941041141241341441541641750\
        2504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 \
        Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service \
        UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, \
        Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
        application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,\
        sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS.split_ascii_whitespace().chain(MORE_WORDS) {
        dictionary.extend_from_slice(&u32::try_from(word.len()).expect("words are short").to_be_bytes());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(TEXT.as_bytes());
    dictionary
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned(headers: &[(&str, &str)]) -> Headers {
        headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn the_dictionary_is_the_drafts() {
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(dictionary().len(), 1423);
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_continue_each_other() {
        let (mut writer, mut reader) = (Writer::new(), Reader::new());
        let stdin = [("streamtype", "stdin")];
        let port = [("streamtype", "data"), ("port", "8080"), ("requestid", "0")];
        let first = writer.write(&port);
        assert_eq!(&first[2..6], [0xe3, 0xc6, 0xa7, 0xc2], "names the dictionary");
        assert_eq!(reader.read(&first), Ok(owned(&port)));
        let second = writer.write(&port);
        assert!(second.len() < first.len(), "the second time it is a reference to the first");
        assert_eq!(reader.read(&second), Ok(owned(&port)));
        assert_eq!(reader.read(&writer.write(&stdin)), Ok(owned(&stdin)));
        assert_eq!(reader.read(&writer.write(&[])), Ok(Headers::new()));
        assert!(Reader::new().read(&second).is_err(), "not from the middle");
    }

    #[test]
    fn hostile_blocks_are_refused() {
        let bomb = {
            let mut compress = Compress::new(Compression::best(), true);
            compress.set_dictionary(&dictionary()).expect("first");
            let mut block = Vec::with_capacity(64 * 1024);
            compress.compress_vec(&vec![0; 4 << 20], &mut block, FlushCompress::Sync).expect("enough room");
            block
        };
        let lie = {
            let mut writer = Compress::new(Compression::fast(), true);
            writer.set_dictionary(&dictionary()).expect("first");
            let mut block = Vec::with_capacity(1024);
            let plain = [0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'x'];
            writer.compress_vec(&plain, &mut block, FlushCompress::Sync).expect("enough room");
            block
        };
        for (name, block, error) in [
            ("bomb", bomb, "too long"),
            ("a length that lies", lie, "cut short"),
            ("no zlib", b"not zlib at all".to_vec(), "cannot be decompressed"),
            ("nothing", Vec::new(), "cut short"),
        ] {
            assert_eq!(Reader::new().read(&block), Err(ProtocolError::SpdyHeaders(error)), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_headers_survive(headers in prop::collection::vec(("[a-z]{1,20}", ".{0,200}"), 0..20)) {
            let pairs: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let (mut writer, mut reader) = (Writer::new(), Reader::new());
            for _ in 0..3 {
                prop_assert_eq!(reader.read(&writer.write(&pairs)), Ok(owned(&pairs)));
            }
        }

        #[test]
        fn no_block_panics(block: Vec<u8>) {
            let _ = Reader::new().read(&block);
            let _ = parse(&block);
        }
    }
}
