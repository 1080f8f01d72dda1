//! Looks at the journal before fjall does, and cuts off a write that a power cut tore.
//!
//! A batch that was being written when the power went may be on disk in part: its first and last blocks but not
//! those between. fjall takes a batch without an end for a torn one and drops it, but refuses to open when the
//! end is there and the checksum is wrong; and it would silently drop everything behind damage in the middle.
//! So: a bad batch with nothing valid behind it was never acknowledged, and is cut off (a copy is kept); with a
//! valid batch behind it, the disk lost acknowledged data, and opening fails.
//!
//! The format is that of fjall 3 (`journal/entry.rs`), little-endian:
//! start = 1, items u32, sequence u64 · item = 2, type u8, compression u8, keyspace u64, key length u16,
//! length u32, length on disk u32, key, value · clear = 4, keyspace u64 · end = 3, XXH3 of items u64, `FJL` 3.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use xxhash_rust::xxh3::Xxh3;

use crate::Error;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = *b"FJL\x03";

/// Cuts a torn batch off the active journal of the database in `dir`, if there is one.
pub(super) fn drop_torn_tail(dir: &Path) -> Result<(), Error> {
    let Some(path) = active_journal(dir)? else { return Ok(()) };
    let failed = |action| {
        let path = path.clone();
        move |source| Error::File { action, path, source: Arc::new(source) }
    };
    let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("cannot open"))?;
    let good = valid_bytes(&file).map_err(failed("cannot read"))?;
    let tail = read_tail(&mut file, good).map_err(failed("cannot read"))?;
    if tail.iter().all(|byte| *byte == 0) {
        // The preallocated rest.
        return Ok(());
    }
    if holds_valid_batch(&tail) {
        return Err(Error::Journal { path, position: good });
    }
    let kept = path.with_extension("torn");
    tracing::warn!(
        journal = %path.display(), position = good, copy = %kept.display(),
        "the last write before the crash is torn; it was never acknowledged and is dropped"
    );
    fs::write(&kept, &tail).map_err(failed("cannot copy the end of"))?;
    file.set_len(good).and_then(|()| file.sync_all()).map_err(failed("cannot cut"))
}

/// The journal with the highest number; the others are complete.
fn active_journal(dir: &Path) -> Result<Option<PathBuf>, Error> {
    let failed =
        |source| Error::File { action: "cannot list", path: dir.to_owned(), source: Arc::new(source) };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse().ok());
        if let Some(number) = number
            && newest.as_ref().is_none_or(|(highest, _)| number > *highest)
        {
            newest = Some((number, path));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// How many bytes from the beginning are whole, valid batches.
fn valid_bytes(file: &File) -> io::Result<u64> {
    let mut reader = Counted { inner: BufReader::with_capacity(1 << 16, file), count: 0 };
    loop {
        let good = reader.count;
        match read_batch(&mut reader) {
            Ok(true) => {}
            Ok(false) => return Ok(good),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(good),
            Err(error) => return Err(error),
        }
    }
}

fn read_tail(file: &mut File, from: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    let mut block = [0; 1 << 16];
    // The preallocated rest is tens of megabytes of zeros: do not keep them.
    let mut zeros = 0;
    loop {
        match file.read(&mut block)? {
            0 => return Ok(tail),
            read if block[..read].iter().all(|byte| *byte == 0) => zeros += read,
            read => {
                tail.resize(tail.len() + zeros, 0);
                zeros = 0;
                tail.extend_from_slice(&block[..read]);
            }
        }
    }
}

/// Whether a whole batch follows any end marker in these bytes.
fn holds_valid_batch(bytes: &[u8]) -> bool {
    let ends = bytes.windows(TRAILER.len()).enumerate().filter(|(_, window)| *window == TRAILER);
    ends.map(|(position, _)| &bytes[position + TRAILER.len()..])
        .any(|mut rest| matches!(read_batch(&mut rest), Ok(true)))
}

/// Reads one batch; false if what is there is none.
fn read_batch(reader: &mut impl Read) -> io::Result<bool> {
    if number::<1>(reader)? != u64::from(START) {
        return Ok(false);
    }
    let items = number::<4>(reader)?;
    number::<8>(reader)?;
    let mut checksum = Xxh3::new();
    for _ in 0..items {
        if !read_item(reader, &mut checksum)? {
            return Ok(false);
        }
    }
    if number::<1>(reader)? != u64::from(END) || number::<8>(reader)? != checksum.digest() {
        return Ok(false);
    }
    let mut trailer = [0; TRAILER.len()];
    reader.read_exact(&mut trailer)?;
    Ok(trailer == TRAILER)
}

fn read_item(reader: &mut impl Read, checksum: &mut Xxh3) -> io::Result<bool> {
    let mut tag = [0; 1];
    reader.read_exact(&mut tag)?;
    checksum.update(&tag);
    match tag[0] {
        CLEAR => digest(reader, checksum, 8)?,
        ITEM => {
            let mut head = [0; 20];
            reader.read_exact(&mut head)?;
            checksum.update(&head);
            let key = u16::from_le_bytes([head[10], head[11]]);
            let value = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
            digest(reader, checksum, u64::from(key) + u64::from(value))?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Adds the next bytes to the checksum, a block at a time: a damaged length must not cost its size in memory.
fn digest(reader: &mut impl Read, checksum: &mut Xxh3, length: u64) -> io::Result<()> {
    let mut part = reader.take(length);
    let mut block = [0; 4096];
    while part.limit() > 0 {
        match part.read(&mut block)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => checksum.update(&block[..read]),
        }
    }
    Ok(())
}

/// A little-endian number of N bytes.
fn number<const N: usize>(reader: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes[..N])?;
    Ok(u64::from_le_bytes(bytes))
}

/// Counts what was read through it.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        Ok(read)
    }
}
