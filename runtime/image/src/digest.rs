//! `sha256:<64 hex digits>`: the only digest that images on this store are known by, and readers that
//! compute it of what passes through them.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Parsed, so that its hex part is safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not sha256: and 64 lower-case hex digits")]
pub struct BadDigest(String);

const PREFIX: &str = "sha256:";

impl Digest {
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::from_hash(&Sha256::digest(bytes))
    }

    fn from_hash(hash: &[u8]) -> Digest {
        let mut text = String::with_capacity(PREFIX.len() + 64);
        text.push_str(PREFIX);
        for byte in hash {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).expect("a nibble is a hex digit"));
            }
        }
        Digest(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 digits: the name of its file or directory in the store.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }

    /// The first 12 digits, as people write it.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Digest, BadDigest> {
        let hex = text.strip_prefix(PREFIX).unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(Digest(text.to_owned()))
        } else {
            Err(BadDigest(text.chars().take(100).collect()))
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = BadDigest;

    fn try_from(text: String) -> Result<Digest, BadDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes fed piece by piece.
#[derive(Clone, Default)]
pub(crate) struct Hasher {
    hash: Sha256,
    bytes: u64,
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::from_hash(&self.hash.finalize())
    }
}

/// Hashes and counts what is read through it; fails once more than `max` bytes came.
pub(crate) struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    max: u64,
}

/// The source of the error that a [`HashingReader`] reports beyond its limit.
#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
pub(crate) struct BeyondLimit(pub(crate) u64);

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R, max: u64) -> HashingReader<R> {
        HashingReader { inner, hasher: Hasher::default(), max }
    }

    /// Reads what is left (padding after the end of a tar archive belongs to its digest).
    pub(crate) fn finish(mut self) -> io::Result<(Digest, u64, R)> {
        io::copy(&mut self, &mut io::sink())?;
        let bytes = self.hasher.bytes();
        Ok((self.hasher.finish(), bytes, self.inner))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        if self.hasher.bytes() > self.max {
            return Err(io::Error::other(BeyondLimit(self.max)));
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn parse_table() {
        let upper = EMPTY.to_uppercase();
        let long = format!("{EMPTY}0");
        let cases = [
            (EMPTY, true),
            (upper.as_str(), false),
            (long.as_str(), false),
            ("sha256:", false),
            ("sha512:00", false),
            ("sha256:../../../../../../../../../../../../../../../../../../../../../etc", false),
            ("", false),
        ];
        for (text, good) in cases {
            assert_eq!(text.parse::<Digest>().is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn hashes_what_passes() {
        assert_eq!(Digest::of(b"").as_str(), EMPTY);
        let mut reader = HashingReader::new(&b"hello"[..], 5);
        let mut first = [0; 2];
        reader.read_exact(&mut first).expect("two bytes");
        let (digest, bytes, _) = reader.finish().expect("the rest");
        assert_eq!((digest, bytes), (Digest::of(b"hello"), 5));
        assert!(HashingReader::new(&b"hello"[..], 4).finish().is_err(), "beyond its limit");
    }
}
