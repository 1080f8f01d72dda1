//! Putting one layer into the store: unpack into a work directory, verify, sync, rename.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::decompress;
use crate::digest::{Digest, HashingReader};
use crate::error::{At, Error, Result};
use crate::store::Store;
use crate::unpack::{Unpacked, stream_error, unpack};

/// Up to so many entries a layer's files are synced one by one.
const SYNC_EACH_MAX: u64 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Installed {
    /// It was there already. Bytes of its files.
    Present(u64),
    New(u64),
}

impl Installed {
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Installed::Present(bytes) | Installed::New(bytes) => bytes,
        }
    }
}

/// The right to make one layer, across all processes.
pub(crate) struct LayerLock(#[expect(dead_code, reason = "held for its lock")] File);

impl Store {
    /// Waits until nobody else is making that layer.
    pub(crate) fn lock_layer(&self, diff_id: &Digest) -> Result<LayerLock> {
        self.lock(diff_id.hex()).map(LayerLock)
    }

    /// Bytes of the files of a layer that is complete.
    pub(crate) fn layer_bytes(&self, diff_id: &Digest) -> Result<Option<u64>> {
        let path = self.layer_path(diff_id).join("size");
        match fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map(Some)
                .map_err(|e| Error::corrupt(path.display().to_string(), "its only line", e)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    /// Unpacks `stream` (compressed or not) as the layer `diff_id`. `blob` is what errors call it; `digest` the
    /// digest of the stream as it comes, verified where it is given.
    pub(crate) fn install_layer(
        &self,
        _lock: &LayerLock,
        diff_id: &Digest,
        blob: &str,
        digest: Option<&Digest>,
        stream: impl Read + Send,
    ) -> Result<Installed> {
        if let Some(bytes) = self.layer_bytes(diff_id)? {
            return Ok(Installed::Present(bytes));
        }
        let work = self.work_dir()?;
        let root = work.path.join("fs");
        fs::create_dir(&root).at("create", &root)?;
        // create_dir's mode passes the umask; an archive that says nothing of its root means 755.
        rustix::fs::chmod(&root, Mode::from_raw_mode(0o755)).at("set the mode of", &root)?;

        let Unpacked { bytes, entries } = self.unpack_verified(&root, diff_id, blob, digest, stream)?;

        let size = work.path.join("size");
        fs::write(&size, bytes.to_string()).at("write", &size)?;
        sync(&work.path, entries)?;
        let target = self.layer_path(diff_id);
        fs::rename(&work.path, &target).at("put in place", &target)?;
        Ok(Installed::New(bytes))
    }

    fn unpack_verified(
        &self,
        root: &Path,
        diff_id: &Digest,
        blob: &str,
        digest: Option<&Digest>,
        stream: impl Read + Send,
    ) -> Result<Unpacked> {
        let limits = &self.inner.limits;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root_fd = rustix::fs::open(root, flags, Mode::empty()).at("open", root)?;
        // A stream that is not compressed has the diff id as its digest, which is verified anyway.
        let verify = digest.filter(|digest| *digest != diff_id);
        let mut transferred = HashingReader::new(stream, u64::MAX);
        let result = decompress::reader(&mut transferred, limits)
            .map_err(|e| stream_error(e, blob, 0))
            .and_then(|plain| {
                let plain = HashingReader::new(plain, limits.layer_bytes);
                let (unpacked, plain) = unpack(plain, root_fd, limits, blob)?;
                let (got, _, _) = plain.finish().map_err(|e| stream_error(e, blob, 0))?;
                Ok((unpacked, got))
            });
        if let Some(expected) = verify {
            // Also after an error: damage in transfer shows as nonsense in the archive first, and the
            // digest tells which of the two it is. Errors of the disk stay what they are.
            let about_content = !matches!(result, Err(Error::Io { .. } | Error::DiskFull { .. }));
            if about_content
                && let Ok((got, _, _)) = transferred.finish()
                && got != *expected
            {
                let expected = expected.clone();
                return Err(Error::DigestMismatch { blob: blob.to_owned(), expected, got });
            }
        }
        let (unpacked, got) = result?;
        if got != *diff_id {
            let blob = format!("the content of {blob}");
            return Err(Error::DigestMismatch { blob, expected: diff_id.clone(), got });
        }
        Ok(unpacked)
    }
}

/// Makes a layer durable: without it a power cut leaves a directory with the right name and empty files.
///
/// A layer of many files takes one sync of the file system. That also writes whatever else is waiting there
/// (after a build that is seconds' worth), so one of few files syncs just those.
fn sync(top: &Path, entries: u64) -> Result<()> {
    if entries > SYNC_EACH_MAX {
        let dir = File::open(top).at("open", top)?;
        return rustix::fs::syncfs(&dir).at("sync", top);
    }
    let mut waiting = vec![top.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).at("look at", &path)?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).at("list", &path)? {
                waiting.push(entry.at("list", &path)?.path());
            }
        }
        // Links, pipes and device nodes are durable with the directory that they are in.
        if metadata.is_dir() || metadata.is_file() {
            File::open(&path).and_then(|file| file.sync_all()).at("sync", &path)?;
        }
    }
    Ok(())
}
