//! Log files in CRI format: `<RFC 3339 time> <stream> <P or F> <text>`.
//!
//! The writer rotates its own file, between two lines: no line is lost or torn, whoever crashes when.
//! Lines are written whole, many in one system call; where a disk takes only part of them, the file is cut
//! back to the last whole line and what did not fit is counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pith_container::supervisor::protocol::LogSpec;

use crate::time;

/// Longer lines are written in parts, marked `P`: containerd's limit.
pub(crate) const LINE_MAX: usize = 16 * 1024;

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Stdout,
    Stderr,
}

pub(crate) struct Log {
    spec: LogSpec,
    file: File,
    size: u64,
    /// Lines of one batch; empty between batches.
    batch: Vec<u8>,
    /// Lines that could not be written since the last one that could.
    lost: u64,
}

impl Log {
    pub(crate) fn open(spec: LogSpec) -> io::Result<Log> {
        if let Some(folder) = spec.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let (file, size) = open(&spec.path)?;
        Ok(Log { spec, file, size, batch: Vec::new(), lost: 0 })
    }

    /// Writes the whole lines in `pending` + `bytes` and leaves the rest in `pending`.
    pub(crate) fn append(&mut self, origin: Origin, pending: &mut Vec<u8>, bytes: &[u8]) {
        let stamp = time::rfc3339(time::now());
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, next) = (&rest[..end], &rest[end + 1..]);
            if pending.is_empty() {
                self.line(&stamp, origin, line);
            } else {
                pending.extend_from_slice(line);
                let line = std::mem::take(pending);
                self.line(&stamp, origin, &line);
            }
            rest = next;
        }
        pending.extend_from_slice(rest);
        while pending.len() >= LINE_MAX {
            let tail = pending.split_off(LINE_MAX);
            self.entry(&stamp, origin, 'P', pending);
            *pending = tail;
        }
        self.flush();
    }

    /// Writes what is left of a stream that has ended.
    pub(crate) fn finish(&mut self, origin: Origin, pending: &mut Vec<u8>) {
        if !pending.is_empty() {
            let stamp = time::rfc3339(time::now());
            self.entry(&stamp, origin, 'F', pending);
            pending.clear();
            self.flush();
        }
    }

    fn line(&mut self, stamp: &str, origin: Origin, line: &[u8]) {
        let mut rest = line;
        while rest.len() > LINE_MAX {
            let (part, next) = rest.split_at(LINE_MAX);
            self.entry(stamp, origin, 'P', part);
            rest = next;
        }
        self.entry(stamp, origin, 'F', rest);
    }

    fn entry(&mut self, stamp: &str, origin: Origin, tag: char, text: &[u8]) {
        let stream = match origin {
            Origin::Stdout => "stdout",
            Origin::Stderr => "stderr",
        };
        // Writing to memory does not fail.
        let _ = write!(self.batch, "{stamp} {stream} {tag} ");
        self.batch.extend_from_slice(text);
        self.batch.push(b'\n');
        if self.spec.max_size > 0 && self.size + self.batch.len() as u64 >= self.spec.max_size {
            self.flush();
            self.rotate();
        }
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match self.file.write_all(&self.batch) {
            Ok(()) => {
                self.size += self.batch.len() as u64;
                self.lost = 0;
            }
            Err(error) => {
                let lines = self.batch.iter().filter(|byte| **byte == b'\n').count() as u64;
                if self.lost == 0 {
                    eprintln!("pith-podd: log {}: {error}: lines are lost", self.spec.path.display());
                }
                self.lost += lines;
                // A disk that is full took the beginning of the batch: no torn line may stay behind.
                if let Err(error) = self.file.set_len(self.size) {
                    eprintln!("pith-podd: log {}: {error}", self.spec.path.display());
                }
            }
        }
        self.batch.clear();
    }

    /// Moves the file away under a name that sorts by age, begins a new one, and removes the oldest.
    fn rotate(&mut self) {
        let mut rotated = self.spec.path.clone().into_os_string();
        rotated.push(format!(".{}", time::file_suffix(time::now())));
        let done = std::fs::rename(&self.spec.path, PathBuf::from(rotated)).and_then(|()| self.reopen());
        if let Err(error) = done.and_then(|()| self.prune()) {
            eprintln!("pith-podd: rotate {}: {error}", self.spec.path.display());
        }
    }

    /// Goes on in a new file at the log's path.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.size) = open(&self.spec.path)?;
        Ok(())
    }

    fn prune(&self) -> io::Result<()> {
        let mut rotated = rotated(&self.spec.path)?;
        let keep = (self.spec.max_files.max(1) - 1) as usize;
        let excess = rotated.len().saturating_sub(keep);
        rotated.drain(..excess).try_for_each(std::fs::remove_file)
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// The files that a log was rotated into, oldest first.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path, max_size: u64, max_files: u32) -> Log {
        Log::open(LogSpec { path: dir.join("0.log"), max_size, max_files }).expect("open")
    }

    /// Stream, tag and text of every line.
    fn entries(text: &str) -> Vec<(String, String, String)> {
        text.lines()
            .map(|line| {
                let mut parts = line.splitn(4, ' ').skip(1).map(str::to_owned);
                let mut part = || parts.next().expect("four fields");
                (part(), part(), part())
            })
            .collect()
    }

    #[test]
    fn lines_and_parts() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut log = log(dir.path(), 0, 0);
        let mut pending = Vec::new();
        log.append(Origin::Stdout, &mut pending, b"one\ntw");
        log.append(Origin::Stdout, &mut pending, b"o\n\nrest");
        log.append(Origin::Stdout, &mut pending, &[b'x'; LINE_MAX]);
        assert_eq!(pending.len(), 4);
        log.finish(Origin::Stdout, &mut pending);
        log.append(Origin::Stderr, &mut Vec::new(), b"bad\n");

        let text = std::fs::read_to_string(dir.path().join("0.log")).expect("read");
        let entries = entries(&text);
        let short: Vec<_> = entries.iter().map(|(s, t, x)| (s.as_str(), t.as_str(), x.len())).collect();
        assert_eq!(
            short,
            [
                ("stdout", "F", 3),
                ("stdout", "F", 3),
                ("stdout", "F", 0),
                ("stdout", "P", LINE_MAX),
                ("stdout", "F", 4),
                ("stderr", "F", 3)
            ]
        );
        assert!(entries[3].2.starts_with("restxxx"));
        let stamp = text.split(' ').next().expect("a time");
        assert!(stamp.len() == 30 && stamp.ends_with('Z'), "{stamp}");
    }

    #[test]
    fn rotation_loses_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut log = log(dir.path(), 2_000, 4);
        for number in 0..100 {
            log.append(Origin::Stdout, &mut Vec::new(), format!("line {number}\n").as_bytes());
        }
        let current = dir.path().join("0.log");
        let mut files = rotated(&current).expect("list");
        assert_eq!(files.len(), 2, "100 lines of about 50 bytes");
        files.push(current);
        let mut numbers = Vec::new();
        for file in &files {
            let text = std::fs::read_to_string(file).expect("read");
            assert!(text.len() < 2_100, "{}", text.len());
            numbers.extend(entries(&text).into_iter().map(|(_, _, text)| text));
        }
        let expect: Vec<String> = (0..100).map(|number| format!("line {number}")).collect();
        assert_eq!(numbers, expect);
    }

    #[test]
    fn only_so_many_files_are_kept() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut log = log(dir.path(), 200, 3);
        for number in 0..100 {
            log.append(Origin::Stdout, &mut Vec::new(), format!("line {number}\n").as_bytes());
        }
        assert_eq!(rotated(&dir.path().join("0.log")).expect("list").len(), 2);
    }
}
