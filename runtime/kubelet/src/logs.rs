//! Reading container logs in CRI format: `<RFC 3339 time> <stream> <P or F> <text>`.
//!
//! The writer rotates by renaming `0.log` to `0.log.<time>` and going on in a new `0.log`; a reader that
//! follows finishes the file it has open before it opens the next, so that no line is lost.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

/// What a client wants to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) follow: bool,
    /// Only the last lines.
    pub(crate) tail: Option<usize>,
    pub(crate) since: Option<Timestamp>,
    /// Each line begins with its time.
    pub(crate) timestamps: bool,
    pub(crate) limit_bytes: Option<usize>,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    time: &'a str,
    /// The line goes on in the next entry.
    partial: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let _stream = parts.next()?;
    let tags = parts.next()?;
    let text = parts.next().unwrap_or_default();
    Some(Entry { time, partial: tags.starts_with(b"P"), text })
}

/// The rotated files of a log, oldest first, and the current one last.
fn files(log: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return vec![];
    };
    let prefix = format!("{name}.");
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut rotated: Vec<_> = entries
        .filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with(&prefix)))
        .map(|e| e.path())
        .collect();
    rotated.sort();
    if log.exists() {
        rotated.push(log.to_owned());
    }
    rotated
}

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// A position in a log that moves forward through its files.
pub(crate) struct Reader {
    log: PathBuf,
    /// Files still to be read after the open one, oldest first; the current file is opened by its path.
    queue: Vec<PathBuf>,
    open: Option<File>,
    query: Query,
    /// A line that has not ended yet.
    pending: Vec<u8>,
    /// The entry before was partial: this one goes on in the same line.
    continues: bool,
    sent: usize,
}

impl Reader {
    /// Opens a log at the place where `query` begins.
    pub(crate) fn open(log: &Path, query: Query) -> io::Result<Self> {
        let mut queue = files(log);
        let mut offset = 0;
        if let Some(tail) = query.tail {
            (queue, offset) = tail_start(queue, tail)?;
        }
        queue.reverse();
        let mut reader = Self {
            log: log.to_owned(),
            queue,
            open: None,
            query,
            pending: vec![],
            continues: false,
            sent: 0,
        };
        reader.next_file()?;
        if let Some(file) = &mut reader.open {
            file.seek(SeekFrom::Start(offset))?;
        }
        Ok(reader)
    }

    fn next_file(&mut self) -> io::Result<()> {
        self.open = match self.queue.pop() {
            Some(path) => match File::open(&path) {
                Ok(file) => Some(file),
                // Rotated away since it was listed: its content is lost to us, the next file is not.
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(e),
            },
            None => None,
        };
        Ok(())
    }

    /// Everything was sent that the client asked for.
    pub(crate) fn is_full(&self) -> bool {
        self.query.limit_bytes.is_some_and(|max| self.sent >= max)
    }

    /// The next piece of output, formatted; `None` at what is the end for now.
    pub(crate) fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut chunk = vec![0; CHUNK];
        while !self.is_full() {
            let n = match &mut self.open {
                Some(file) => file.read(&mut chunk)?,
                None => 0,
            };
            if n == 0 {
                if !self.advance()? {
                    return Ok(None);
                }
                continue;
            }
            self.pending.extend_from_slice(&chunk[..n]);
            let out = self.format();
            if !out.is_empty() {
                return Ok(Some(out));
            }
        }
        Ok(None)
    }

    /// Goes on to the next file, if there is one.
    fn advance(&mut self) -> io::Result<bool> {
        if !self.queue.is_empty() {
            self.next_file()?;
            return Ok(true);
        }
        let current = match fs::metadata(&self.log) {
            Ok(meta) => (meta.dev(), meta.ino()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        if let Some(file) = &mut self.open {
            let meta = file.metadata()?;
            if (meta.dev(), meta.ino()) == current {
                return Ok(false);
            }
            // Between the last read and the rename the writer may have added lines.
            if meta.len() > file.stream_position()? {
                return Ok(true);
            }
        }
        self.open = Some(File::open(&self.log)?);
        Ok(true)
    }

    fn format(&mut self) -> Vec<u8> {
        let mut out = vec![];
        let Some(end) = self.pending.iter().rposition(|b| *b == b'\n') else { return out };
        let rest = self.pending.split_off(end + 1);
        let lines = std::mem::replace(&mut self.pending, rest);
        for line in lines.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let Some(entry) = parse(line) else { continue };
            if !self.is_wanted(&entry) {
                continue;
            }
            if self.query.timestamps && !self.continues {
                out.extend_from_slice(entry.time.as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(entry.text);
            if !entry.partial {
                out.push(b'\n');
            }
            self.continues = entry.partial;
        }
        if let Some(max) = self.query.limit_bytes {
            out.truncate(max.saturating_sub(self.sent));
        }
        self.sent += out.len();
        out
    }

    fn is_wanted(&self, entry: &Entry<'_>) -> bool {
        match self.query.since {
            Some(since) => entry.time.parse::<Timestamp>().is_ok_and(|t| t >= since),
            None => true,
        }
    }
}

/// Where the last `tail` lines begin: the files from there on, and the offset in the first of them.
fn tail_start(files: Vec<PathBuf>, tail: usize) -> io::Result<(Vec<PathBuf>, u64)> {
    let mut left = tail;
    for (index, path) in files.iter().enumerate().rev() {
        let content = fs::read(path)?;
        // An entry that ends a line starts the count of the line after it.
        let ends: Vec<usize> = line_ends(&content);
        if ends.len() > left {
            let cut = ends[ends.len() - left - 1];
            return Ok((files[index..].to_vec(), cut as u64));
        }
        left -= ends.len();
        if left == 0 {
            return Ok((files[index..].to_vec(), 0));
        }
    }
    Ok((files, 0))
}

/// Offsets behind each entry that ends a line.
fn line_ends(content: &[u8]) -> Vec<usize> {
    let mut ends = vec![];
    let mut start = 0;
    for (i, _) in content.iter().enumerate().filter(|(_, b)| **b == b'\n') {
        if parse(&content[start..i]).is_some_and(|e| !e.partial) {
            ends.push(i + 1);
        }
        start = i + 1;
    }
    ends
}

/// The end of a log as text: at most so many lines and bytes.
pub(crate) fn tail(log: &Path, lines: usize, bytes: usize) -> String {
    let query = Query { tail: Some(lines), ..Query::default() };
    let mut out = vec![];
    if let Ok(mut reader) = Reader::open(log, query) {
        while let Ok(Some(piece)) = reader.read() {
            out.extend_from_slice(&piece);
        }
    }
    let from = out.len().saturating_sub(bytes);
    String::from_utf8_lossy(&out[from..]).into_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn all(reader: &mut Reader) -> String {
        let mut out = vec![];
        while let Some(piece) = reader.read().expect("reads") {
            out.extend_from_slice(&piece);
        }
        String::from_utf8(out).expect("text")
    }

    fn line(second: u32, tag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z stdout {tag} {text}\n")
    }

    #[test]
    fn queries() {
        let temp = tempfile::tempdir().expect("temporary folder");
        let log = temp.path().join("0.log");
        fs::write(temp.path().join("0.log.20260101-000001"), line(1, "F", "a") + &line(2, "F", "b"))
            .expect("writes");
        fs::write(&log, line(3, "P", "c") + &line(3, "F", "c") + &line(4, "F", "d")).expect("writes");
        let since = "2026-01-01T00:00:03Z".parse().ok();
        let cases = [
            (Query::default(), "a\nb\ncc\nd\n"),
            (Query { tail: Some(1), ..Query::default() }, "d\n"),
            (Query { tail: Some(2), ..Query::default() }, "cc\nd\n"),
            (Query { tail: Some(3), ..Query::default() }, "b\ncc\nd\n"),
            (Query { tail: Some(9), ..Query::default() }, "a\nb\ncc\nd\n"),
            (Query { tail: Some(0), ..Query::default() }, ""),
            (Query { since, ..Query::default() }, "cc\nd\n"),
            (Query { limit_bytes: Some(3), ..Query::default() }, "a\nb"),
            (
                Query { tail: Some(2), timestamps: true, ..Query::default() },
                "2026-01-01T00:00:03.000000000Z cc\n2026-01-01T00:00:04.000000000Z d\n",
            ),
        ];
        for (query, expect) in cases {
            let mut reader = Reader::open(&log, query.clone()).expect("opens");
            assert_eq!(all(&mut reader), expect, "{query:?}");
        }
        assert_eq!(tail(&log, 80, 3), "c\nd\n"[1..].to_owned());
    }

    #[test]
    fn a_follower_misses_nothing_when_the_log_is_rotated() {
        let temp = tempfile::tempdir().expect("temporary folder");
        let log = temp.path().join("0.log");
        fs::write(&log, line(1, "F", "a")).expect("writes");
        let mut reader = Reader::open(&log, Query { follow: true, ..Query::default() }).expect("opens");
        assert_eq!(all(&mut reader), "a\n");
        let mut old = fs::OpenOptions::new().append(true).open(&log).expect("opens");
        fs::rename(&log, temp.path().join("0.log.1")).expect("renames");
        old.write_all(line(2, "F", "b").as_bytes()).expect("writes");
        fs::write(&log, line(3, "F", "c")).expect("writes");
        assert_eq!(all(&mut reader), "b\nc\n");
    }
}
