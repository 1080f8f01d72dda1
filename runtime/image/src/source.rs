//! The files of an image archive by name: a directory, or a tar archive (plain or compressed) that is read in
//! place by offset.
//!
//! A plain archive on disk is indexed by one pass over its headers and then read with pread(2), several layers
//! at once. What cannot be seeked in (gzip, zstd, a pipe) is first written to an unnamed file of the store.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::decompress;
use crate::error::{At, Error, Result};
use crate::tar::{self, Kind};
use crate::unpack::{Limits, archive_error, split_path, stream_error};

/// Files in one archive: a blob a layer and some documents; `docker save` of many images has thousands.
const FILES_MAX: usize = 100_000;
/// Bytes of their names.
const PATHS_MAX: usize = 16 << 20;
/// Old `docker save` links layers that images share; a link to a link is possible.
const LINKS_MAX: usize = 8;

pub(crate) struct Source {
    name: String,
    kind: SourceKind,
}

enum SourceKind {
    Directory(File),
    Archive { file: Arc<File>, members: BTreeMap<Vec<u8>, Member> },
}

enum Member {
    Data { at: u64, size: u64 },
    Link(Vec<u8>),
}

impl Source {
    /// `spool` is where an unnamed file may be made.
    pub(crate) fn open(path: &Path, spool: &Path, limits: &Limits) -> Result<Source> {
        let name = path.display().to_string();
        let mut file = File::open(path).at("open", path)?;
        if file.metadata().at("look at", path)?.is_dir() {
            return Ok(Source { name, kind: SourceKind::Directory(file) });
        }
        let mut head = [0_u8; 4];
        let seekable = file.stream_position().is_ok();
        if seekable {
            let read = file.read_at(&mut head, 0).at("read", path)?;
            if !decompress::is_compressed(&head[..read]) {
                return Source::index(name, file);
            }
        }
        Source::spooled(name, file, spool, limits)
    }

    /// Any stream, for example standard input.
    pub(crate) fn spooled(
        name: String,
        stream: impl Read + Send,
        spool: &Path,
        limits: &Limits,
    ) -> Result<Source> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(spool, flags, Mode::RUSR | Mode::WUSR).at("make a file in", spool)?;
        let mut file = File::from(file);
        let mut stream = decompress::reader(stream, limits).map_err(|e| stream_error(e, &name, 0))?;
        let mut buffer = vec![0_u8; 128 * 1024];
        let mut total = 0_u64;
        loop {
            let n = match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(stream_error(e, &name, total)),
            };
            total += n as u64;
            if total > limits.archive_bytes {
                return Err(Error::TooLarge { what: name, limit: limits.archive_bytes });
            }
            file.write_all(&buffer[..n]).at("write to", spool)?;
        }
        Source::index(name, file)
    }

    fn index(name: String, mut file: File) -> Result<Source> {
        file.seek(SeekFrom::Start(0)).at("rewind", Path::new(&name))?;
        let mut members = BTreeMap::new();
        let mut paths = 0;
        // Headers only: the data between them is seeked over, not read.
        let mut archive = tar::Reader::new(SeekingReader::new(&file, &name)?);
        while let Some(entry) = archive.next().map_err(|e| archive_error(e, &name))? {
            let Ok(components) = split_path(&entry.path) else {
                return Err(Error::Hostile {
                    blob: name,
                    entry: String::from_utf8_lossy(&entry.path).into_owned(),
                    reason: "a path with .. in it",
                });
            };
            let path = components.join(&b'/');
            let member = match entry.kind {
                Kind::File => Member::Data { at: entry.data_at, size: entry.size },
                Kind::Symlink => Member::Link(resolve_link(&components, &entry.link)),
                Kind::HardLink => Member::Link(resolve_link(&[], &entry.link)),
                Kind::Directory | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => continue,
            };
            paths += path.len();
            members.insert(path, member);
            if members.len() > FILES_MAX || paths > PATHS_MAX {
                return Err(Error::TooLarge { what: format!("the list of {name}"), limit: FILES_MAX as u64 });
            }
        }
        Ok(Source { name, kind: SourceKind::Archive { file: Arc::new(file), members } })
    }

    /// How errors call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// One of its files, or `None`.
    pub(crate) fn open_file(&self, path: &str) -> Result<Option<Part>> {
        match &self.kind {
            SourceKind::Directory(dir) => {
                let full = PathBuf::from(&self.name).join(path);
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let file = match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
                    Ok(file) => File::from(file),
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
                    Err(errno) => return Err(Error::io("open", &full, errno)),
                };
                let metadata = file.metadata().at("look at", &full)?;
                if !metadata.is_file() {
                    return Ok(None);
                }
                Ok(Some(Part { file: Arc::new(file), position: 0, end: metadata.len() }))
            }
            SourceKind::Archive { file, members } => {
                let mut path = path.as_bytes().to_vec();
                for _ in 0..LINKS_MAX {
                    match members.get(&path) {
                        None => return Ok(None),
                        Some(Member::Link(target)) => path.clone_from(target),
                        Some(Member::Data { at, size }) => {
                            let file = Arc::clone(file);
                            return Ok(Some(Part { file, position: *at, end: at.saturating_add(*size) }));
                        }
                    }
                }
                Ok(None)
            }
        }
    }

    /// A small file, whole.
    pub(crate) fn document(&self, path: &str, limits: &Limits) -> Result<Option<Vec<u8>>> {
        let Some(mut part) = self.open_file(path)? else { return Ok(None) };
        let what = format!("{path} of {}", self.name);
        if part.len() > limits.document_bytes {
            return Err(Error::TooLarge { what, limit: limits.document_bytes });
        }
        let mut content = Vec::new();
        part.read_to_end(&mut content).map_err(|e| stream_error(e, &what, 0))?;
        Ok(Some(content))
    }
}

/// A stretch of a file, read by offset.
pub(crate) struct Part {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Part {
    pub(crate) fn len(&self) -> u64 {
        self.end - self.position
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.end - self.position).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.file.read_at(&mut buffer[..want], self.position)?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        self.position += n as u64;
        Ok(n)
    }
}

/// Reads in small pieces and turns long skips (io::copy into a sink reads) into seeks.
struct SeekingReader<'f> {
    file: &'f File,
    position: u64,
    length: u64,
}

impl<'f> SeekingReader<'f> {
    fn new(file: &'f File, name: &str) -> Result<SeekingReader<'f>> {
        let length = file.metadata().at("look at", Path::new(name))?.len();
        Ok(SeekingReader { file, position: 0, length })
    }
}

impl Read for SeekingReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl tar::Skip for SeekingReader<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let skipped = bytes.min(self.length.saturating_sub(self.position));
        self.position += skipped;
        Ok(skipped)
    }
}

/// Where a link of an archive leads, as a path of the archive; one that leads out leads nowhere.
fn resolve_link(from: &[&[u8]], link: &[u8]) -> Vec<u8> {
    let mut path: Vec<&[u8]> = match from.split_last() {
        Some((_, parents)) if !link.starts_with(b"/") => parents.to_vec(),
        _ => Vec::new(),
    };
    for part in link.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(path.pop()),
            name => path.push(name),
        }
    }
    path.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_table() {
        let cases = [
            ("b/layer.tar", "../a/layer.tar", "a/layer.tar"),
            ("b/layer.tar", "/a/layer.tar", "a/layer.tar"),
            ("x", "../../../etc/passwd", "etc/passwd"),
            ("x", "./y", "y"),
            ("", "a/b", "a/b"),
        ];
        for (from, link, expect) in cases {
            let from = split_path(from.as_bytes()).expect("plain");
            assert_eq!(resolve_link(&from, link.as_bytes()), expect.as_bytes(), "{link}");
        }
    }
}
