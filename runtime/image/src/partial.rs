//! A blob on its way: what has arrived is on disk and goes on growing there, in this pull or in a later one.
//!
//! Its bytes are not synced as they come: after a power cut some may be zeroes. They are hashed before they are used, and
//! fetched once more when they are not the blob.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::blocking::{blocking, joined};
use crate::digest::{Digest, Hasher};
use crate::error::{At, Error, Result};
use crate::store::Store;

/// Chunks on their way from the network to the disk.
const CHUNKS_IN_FLIGHT: usize = 16;
const READ_BUFFER: usize = 128 * 1024;

/// Locked against others who want the same blob, in this process and in others.
pub(crate) struct Partial {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    path: PathBuf,
    file: Arc<File>,
    /// Of what is in the file.
    hasher: Hasher,
}

impl Partial {
    pub(crate) async fn open(store: &Store, digest: &Digest, size: u64) -> Result<Partial> {
        let path = store.dir().join("partial").join(digest.hex());
        let digest = digest.clone();
        blocking(move || {
            let file = lock(&path)?;
            let mut partial = Partial { digest, size, path, file: Arc::new(file), hasher: Hasher::default() };
            partial.hash()?;
            // Longer, or as long and something else: nothing that could become the blob.
            let done = partial.hasher.bytes() >= size;
            if done && partial.hasher.clone().finish() != partial.digest {
                partial.restart()?;
            }
            Ok(partial)
        })
        .await
    }

    /// Bytes that are on disk.
    pub(crate) fn received(&self) -> u64 {
        self.hasher.bytes()
    }

    fn hash(&mut self) -> Result<()> {
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(0)).at("rewind", &self.path)?;
        self.hasher = Hasher::default();
        let mut buffer = vec![0_u8; READ_BUFFER];
        loop {
            let n = file.read(&mut buffer).at("read", &self.path)?;
            if n == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..n]);
        }
    }

    /// From nothing.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.hasher = Hasher::default();
        self.file.set_len(0).at("empty", &self.path)
    }

    /// Where to send what arrives, starting at `from`: 0, or where the file ends.
    pub(crate) fn write_from(&self, from: u64) -> Result<Writer> {
        let (sender, mut receiver) = mpsc::channel::<bytes::Bytes>(CHUNKS_IN_FLIGHT);
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let mut hasher = if from == 0 { Hasher::default() } else { self.hasher.clone() };
        file.set_len(from).at("shorten", &path)?;
        let thread = tokio::task::spawn_blocking(move || {
            let mut file = &*file;
            let mut write = || {
                file.seek(SeekFrom::Start(from)).at("seek in", &path)?;
                while let Some(chunk) = receiver.blocking_recv() {
                    file.write_all(&chunk).at("write", &path)?;
                    hasher.update(&chunk);
                }
                Ok(())
            };
            let result = write();
            (hasher, result)
        });
        Ok(Writer { sender: Some(sender), thread })
    }

    /// Waits until all that was sent is in the file.
    pub(crate) async fn written(&mut self, mut writer: Writer) -> Result<()> {
        writer.sender = None;
        let (hasher, result) = joined(writer.thread.await.map(Ok))?;
        self.hasher = hasher;
        result
    }

    /// The file, rewound, if it is the blob; if not, it is gone.
    pub(crate) fn verify(&mut self) -> Result<Arc<File>> {
        let got = self.hasher.clone().finish();
        if got != self.digest {
            self.restart()?;
            let blob = format!("blob {}", self.digest);
            return Err(Error::DigestMismatch { blob, expected: self.digest.clone(), got });
        }
        (&*self.file).seek(SeekFrom::Start(0)).at("rewind", &self.path)?;
        Ok(Arc::clone(&self.file))
    }

    /// It has become a layer, or never will.
    pub(crate) fn remove(&self) -> Result<()> {
        remove_file(&self.path)
    }
}

/// A thread that appends to a partial blob.
pub(crate) struct Writer {
    sender: Option<mpsc::Sender<bytes::Bytes>>,
    thread: tokio::task::JoinHandle<(Hasher, Result<()>)>,
}

impl Writer {
    /// Whether it still takes chunks; if not, [`Partial::written`] says why.
    pub(crate) async fn send(&self, chunk: bytes::Bytes) -> bool {
        match &self.sender {
            Some(sender) => sender.send(chunk).await.is_ok(),
            None => false,
        }
    }
}

/// What there may be of a blob that nobody needs any more.
pub(crate) fn remove(store: &Store, digest: &Digest) -> Result<()> {
    remove_file(&store.dir().join("partial").join(digest.hex()))
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// The file of that name, locked. One that its holder removed meanwhile has no name, and is of no use to the next pull.
fn lock(path: &Path) -> Result<File> {
    loop {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path);
        let file = file.at("open", path)?;
        file.lock().at("lock", path)?;
        let locked = file.metadata().at("look at", path)?.ino();
        match fs::metadata(path) {
            Ok(named) if named.ino() == locked => return Ok(file),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("look at", path, e)),
        }
    }
}
