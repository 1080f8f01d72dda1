//! Reading and writing the kernel's control files: one open, one read or write, one close.
//!
//! Control files are never created or truncated, and a value must reach the kernel in a single `write`,
//! which is why `std::fs::write` (O_CREAT | O_TRUNC) is not used.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};

/// Larger than any control file that is read here; `memory.stat`, the largest, has about 2 KiB.
const READ_MAX: usize = 64 * 1024;

pub(crate) fn write(path: &Path, value: &str) -> Result<()> {
    ToWrite::open(path, value)?.write(value)
}

/// A control file that takes several values, each in a `write` of its own.
pub(crate) struct ToWrite<'p> {
    path: &'p Path,
    file: OwnedFd,
}

impl ToWrite<'_> {
    /// `first` is what will be written first, for the error.
    pub(crate) fn open<'p>(path: &'p Path, first: &str) -> Result<ToWrite<'p>> {
        match rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => Ok(ToWrite { path, file }),
            Err(errno) => Err(failed(path, first, errno.into())),
        }
    }

    pub(crate) fn write(&self, value: &str) -> Result<()> {
        match rustix::io::write(&self.file, value.as_bytes()) {
            Ok(written) if written == value.len() => Ok(()),
            Ok(_) => Err(failed(self.path, value, io::ErrorKind::WriteZero.into())),
            Err(errno) => Err(failed(self.path, value, errno.into())),
        }
    }
}

fn failed(path: &Path, value: &str, source: io::Error) -> Error {
    Error::Write { path: path.to_path_buf(), value: value.to_owned(), source }
}

/// A whole control file, or an error when it is absurdly long.
pub(crate) fn read(path: &Path) -> Result<String> {
    read_up_to(path, READ_MAX)
}

/// `cgroup.procs` grows with the number of processes: up to the kernel's own limit of 4,194,304 of them.
pub(crate) fn read_all(path: &Path) -> Result<String> {
    read_up_to(path, 8 * 4_194_304)
}

fn read_up_to(path: &Path, max: usize) -> Result<String> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("open", path, e))?;
    let mut content = Vec::new();
    loop {
        let mut chunk = [0_u8; 4096];
        let n = rustix::io::read(&file, &mut chunk).map_err(|e| Error::io("read", path, e))?;
        if n == 0 {
            break;
        }
        content.extend_from_slice(&chunk[..n]);
        if content.len() > max {
            return Err(Error::io("read", path, io::Error::from(io::ErrorKind::FileTooLarge)));
        }
    }
    String::from_utf8(content)
        .map_err(|e| Error::io("read", path, io::Error::new(io::ErrorKind::InvalidData, e)))
}

/// A file with one number; `max` and v1's "no limit" (a page-aligned `i64::MAX`) are `None`.
pub(crate) fn read_limit(path: &Path) -> Result<Option<u64>> {
    let content = read(path)?;
    parse_limit(&content).ok_or_else(|| Error::Malformed { path: path.to_path_buf(), content })
}

pub(crate) fn read_number(path: &Path) -> Result<u64> {
    let content = read(path)?;
    content.trim().parse().map_err(|_| Error::Malformed { path: path.to_path_buf(), content })
}

/// The value of `key` in a file of `key value` lines.
pub(crate) fn keyed(content: &str, key: &str) -> Option<u64> {
    content
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
}

#[expect(clippy::option_option, reason = "outer: could be read; inner: is there a limit")]
fn parse_limit(content: &str) -> Option<Option<u64>> {
    /// PAGE_COUNTER_MAX of a 64-bit kernel with 4 KiB pages (mm/page_counter.c), the largest of all page sizes.
    const V1_UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;
    match content.trim() {
        "max" | "-1" => Some(None),
        number => number.parse().ok().map(|n: u64| if n >= V1_UNLIMITED & !0xffff { None } else { Some(n) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_table() {
        let cases = [
            ("v2 none", "max\n", Some(None)),
            ("v1 none, 4 KiB pages", "9223372036854771712\n", Some(None)),
            ("v1 none, 64 KiB pages", "9223372036854710272\n", Some(None)),
            ("v1 quota none", "-1\n", Some(None)),
            ("a limit", "67108864\n", Some(Some(67_108_864))),
            ("nonsense", "many\n", None),
        ];
        for (name, content, expect) in cases {
            assert_eq!(parse_limit(content), expect, "{name}");
        }
    }

    #[test]
    fn keyed_takes_whole_keys_only() {
        let content = "total_rss_huge 1\nrss 2\ntotal_rss 3\n";
        assert_eq!(keyed(content, "rss"), Some(2));
        assert_eq!(keyed(content, "total_rss"), Some(3));
        assert_eq!(keyed(content, "cache"), None);
    }
}
