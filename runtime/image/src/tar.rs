//! Tar archives as a stream of entries: ustar, PAX and GNU long names, with a limit on everything.
//!
//! Written here because the archives come from strangers: extension headers are bounded (a gigabyte of PAX
//! header must not become a gigabyte of memory), every fault carries its offset, and what an entry means
//! (path, link, size, owner) is decided once, the way GNU tar and Go's archive/tar decide it.
//!
//! ```text
//! [x: PAX records]* [L/K: GNU long names]* header, data, padding to 512 … two zero blocks
//! ```
//!
//! Invariant: `next` leaves the reader at the data of the entry that it returned; the data that was not read is
//! skipped by the following `next`.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// PAX records and long names of one entry. PATH_MAX is 4 KiB; xattr values are at most 64 KiB each.
const EXTENSION_MAX: u64 = 1024 * 1024;
/// Extension headers before one entry: one PAX header, one long name and one long link are usual.
const EXTENSIONS_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// As it is in the archive: nothing is checked yet.
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    /// Where in the stream its data begins.
    pub(crate) data_at: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error("byte {at}: {reason}")]
    Malformed { at: u64, reason: &'static str },
    #[error("byte {at}: {what} is not supported")]
    Unsupported { at: u64, what: &'static str },
    #[error("byte {at}")]
    Io {
        at: u64,
        #[source]
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, TarError>;

/// How data is passed over that nobody wants: by reading it, unless the source can seek.
pub(crate) trait Skip: Read + Sized {
    /// Passes over `bytes`, or over what there is; returns how many that were.
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        io::copy(&mut self.by_ref().take(bytes), &mut io::sink())
    }
}

impl<R: Read> Skip for crate::digest::HashingReader<R> {}
impl Skip for &[u8] {}

pub(crate) struct Reader<R> {
    inner: R,
    /// Bytes taken from `inner`.
    position: u64,
    /// Of the current entry: data not read yet, and the zeroes after it.
    data_left: u64,
    padding: u64,
}

/// What extension headers say about the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl<R: Skip> Reader<R> {
    pub(crate) fn new(inner: R) -> Reader<R> {
        Reader { inner, position: 0, data_left: 0, padding: 0 }
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        let mut seen = 0;
        loop {
            self.skip_data()?;
            let at = self.position;
            let Some(header) = self.header()? else {
                return if seen == 0 { Ok(None) } else { malformed(at, "it ends after an extension header") };
            };
            let size = number(&header[124..136]).ok_or(TarError::Malformed { at, reason: "its size" })?;
            let typeflag = header[156];
            if !matches!(typeflag, b'x' | b'g' | b'L' | b'K') {
                return self.entry(at, &header, size, extensions).map(Some);
            }
            seen += 1;
            if seen > EXTENSIONS_MAX {
                return malformed(at, "too many extension headers before one entry");
            }
            self.begin_data(size);
            if typeflag == b'g' {
                // Global records (git archive's commit id) say nothing that an image may depend on.
                continue;
            }
            if size > EXTENSION_MAX {
                return malformed(at, "an extension header of more than a mebibyte");
            }
            let content = self.extension()?;
            match typeflag {
                b'x' => extensions.take_pax(&content, at)?,
                b'L' => extensions.path = Some(until_nul(&content).to_vec()),
                _ => extensions.link = Some(until_nul(&content).to_vec()),
            }
        }
    }

    fn entry(&mut self, at: u64, header: &[u8; BLOCK], size: u64, ext: Extensions) -> Result<Entry> {
        let path = ext.path.unwrap_or_else(|| header_path(header));
        let kind = match header[156] {
            b'0' | b'7' => Kind::File,
            // Before POSIX a directory was a file whose name ends with a slash.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(TarError::Unsupported { at, what: "a GNU sparse file" }),
            _ => return malformed(at, "an entry of unknown type"),
        };
        // Only files have data; what others state as their size is noise (Go: isHeaderOnlyType).
        let size = if kind == Kind::File { ext.size.unwrap_or(size) } else { 0 };
        self.begin_data(size);
        let field = |range: std::ops::Range<usize>, reason| {
            number(&header[range]).ok_or(TarError::Malformed { at, reason })
        };
        let id = |value: u64, reason| {
            u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or(TarError::Malformed { at, reason })
        };
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => (
                id(field(329..337, "its device number")?, "its device number")?,
                id(field(337..345, "its device number")?, "its device number")?,
            ),
            _ => (0, 0),
        };
        let mtime = match ext.mtime {
            Some(time) => time,
            None => Time {
                seconds: signed(&header[136..148]).ok_or(TarError::Malformed { at, reason: "its time" })?,
                nanoseconds: 0,
            },
        };
        Ok(Entry {
            kind,
            path,
            link: ext.link.unwrap_or_else(|| until_nul(&header[157..257]).to_vec()),
            mode: u32::try_from(field(100..108, "its mode")? & 0o7777).unwrap_or(0),
            uid: id(ext.uid.map_or_else(|| field(108..116, "its owner"), Ok)?, "its owner")?,
            gid: id(ext.gid.map_or_else(|| field(116..124, "its group"), Ok)?, "its group")?,
            mtime,
            size,
            device,
            xattrs: ext.xattrs,
            data_at: self.position,
        })
    }

    /// One header block whose checksum is right; `None` at the end (a block of zeroes, or nothing at all).
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let at = self.position;
        let mut header = [0_u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return malformed(at, "it ends inside a header"),
                Ok(n) => {
                    filled += n;
                    self.position += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Io { at: self.position, source }),
            }
        }
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let stated = number(&header[148..156]).ok_or(TarError::Malformed { at, reason: "its checksum" })?;
        let sum: u64 = header
            .iter()
            .enumerate()
            .map(|(n, byte)| u64::from(if (148..156).contains(&n) { b' ' } else { *byte }))
            .sum();
        if sum != stated {
            return malformed(at, "the checksum of a header is wrong");
        }
        Ok(Some(header))
    }

    fn begin_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn skip_data(&mut self) -> Result<()> {
        let skip = self.data_left.saturating_add(self.padding);
        if skip == 0 {
            return Ok(());
        }
        let at = self.position;
        let skipped = self.inner.skip(skip).map_err(|source| TarError::Io { at, source })?;
        self.position += skipped;
        // Some writers leave out the padding of the last file.
        if skipped < self.data_left {
            return malformed(self.position, "it ends inside a file");
        }
        (self.data_left, self.padding) = (0, 0);
        Ok(())
    }
}

/// Reads the data of the current entry; ending early is an error.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends inside a file"));
        }
        self.position += n as u64;
        self.data_left -= n as u64;
        Ok(n)
    }
}

impl<R: Read> Reader<R> {
    /// The content of an extension header, whose size was checked.
    fn extension(&mut self) -> Result<Vec<u8>> {
        let at = self.position;
        let mut content = Vec::new();
        match self.read_to_end(&mut content) {
            Ok(_) => Ok(content),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && e.raw_os_error().is_none() => {
                malformed(at, "it ends inside an extension header")
            }
            Err(source) => Err(TarError::Io { at, source }),
        }
    }
}

impl Extensions {
    /// Records `length key=value\n`, where length counts the whole record (pax(1)).
    fn take_pax(&mut self, content: &[u8], at: u64) -> Result<()> {
        let bad = TarError::Malformed { at, reason: "its PAX records" };
        let mut rest = content;
        // Zeroes after the records are padding that some writers count into the size.
        while rest.iter().any(|byte| *byte != 0) {
            let Some((key, value, tail)) = pax_record(rest) else { return Err(bad) };
            rest = tail;
            match key {
                "path" => self.path = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "size" => self.size = Some(decimal(value).ok_or(bad_field(at, "its PAX size"))?),
                "uid" => self.uid = Some(decimal(value).ok_or(bad_field(at, "its PAX uid"))?),
                "gid" => self.gid = Some(decimal(value).ok_or(bad_field(at, "its PAX gid"))?),
                "mtime" => self.mtime = Some(pax_time(value).ok_or(bad_field(at, "its PAX mtime"))?),
                key if key.starts_with("GNU.sparse.") => {
                    return Err(TarError::Unsupported { at, what: "a GNU sparse file" });
                }
                key => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        self.xattrs.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn pax_record(rest: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let space = rest.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&rest[..space])?).ok()?;
    if length <= space + 1 || length > rest.len() {
        return None;
    }
    let (record, tail) = rest.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let key = std::str::from_utf8(&record[..equals]).ok().filter(|key| !key.is_empty())?;
    Some((key, &record[equals + 1..], tail))
}

/// Seconds since 1970 with an optional fraction; may be negative.
fn pax_time(value: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut nanoseconds: u32 = 0;
    for digit in fraction.bytes().chain(std::iter::repeat(b'0')).take(9) {
        nanoseconds = nanoseconds * 10 + u32::from(digit - b'0');
    }
    // -1.25 is a quarter before second -1.
    if whole.starts_with('-') && nanoseconds > 0 {
        seconds = seconds.checked_sub(1)?;
        nanoseconds = 1_000_000_000 - nanoseconds;
    }
    Some(Time { seconds, nanoseconds })
}

fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    // POSIX's magic is "ustar\0"; GNU's is "ustar  " and uses these bytes for something else.
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        return [prefix, b"/", name].concat();
    }
    name.to_vec()
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn decimal(text: &[u8]) -> Option<u64> {
    // str::parse would take a plus sign.
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A numeric field: octal digits with spaces or NULs around them, or (GNU) a big-endian binary number whose
/// first bit is set. Empty is 0.
fn number(field: &[u8]) -> Option<u64> {
    u64::try_from(signed(field)?).ok()
}

fn signed(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Two's complement; the top bit only marks the format, the next one is the sign.
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { i128::from(first) - 0x100 } else { i128::from(first & 0x7f) };
        for byte in rest {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return i64::try_from(value).ok();
    }
    let digits =
        field.iter().copied().skip_while(|byte| *byte == b' ').take_while(|byte| !matches!(byte, 0 | b' '));
    let mut value: i64 = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

fn bad_field(at: u64, reason: &'static str) -> TarError {
    TarError::Malformed { at, reason }
}

fn malformed<T>(at: u64, reason: &'static str) -> Result<T> {
    Err(TarError::Malformed { at, reason })
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
