//! The images of one replica on disk. Several processes may use one store: the kubelet and `pith image import`.
//!
//! ```text
//! index.json              references and images; replaced whole, last
//! blobs/sha256/<hex>      manifests and configurations
//! layers/<diff id>/fs     an unpacked layer: a lower directory for overlayfs
//! layers/<diff id>/size   bytes of its files
//! partial/<hex>           layer blobs on their way from a registry; a broken pull goes on with them
//! holds/<holder>          link to the id of the image that a container runs from
//! empty                   the lower directory of images without layers
//! tmp, locks              work in progress; nothing that must survive
//! ```
//!
//! Invariants. A directory in `layers` is complete and was synced before it got its name. Compressed layers are
//! not kept. What is in `tmp` belongs to a running import, or to nobody: the next open sweeps it.
//!
//! Locks (flock: the kernel releases them with the process): `busy` is held shared by every import and pull and
//! exclusively by whoever deletes layers; `index` by writers of the index; `<diff id>` while that layer is made,
//! so that it is made once. Order: busy, then one layer, then index.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use oci_spec::image::ImageConfiguration;

use crate::beneath;
use crate::digest::Digest;
use crate::endpoint::Timeouts;
use crate::error::{At, Error, Result};
use crate::index::{self, Index, Record};
use crate::layout;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::unpack::Limits;

/// Configurations are parsed once; a node has a few hundred images at most.
const CONFIG_CACHE_MAX: usize = 512;
/// In the form of containerd's /etc/containerd/certs.d.
pub const HOSTS_DIR: &str = "/etc/pith/certs.d";

#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) dir: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) platform: Platform,
    pub(crate) timeouts: Timeouts,
    pub(crate) hosts_dir: Option<PathBuf>,
    counter: AtomicU64,
    /// The index as last read, with what `stat` said then.
    index: Mutex<Option<(Stamp, Arc<Index>)>>,
    configs: Mutex<HashMap<Digest, Arc<ImageConfiguration>>>,
}

/// Device, inode, size and time of modification tell one `index.json` from the next: each is a new file.
type Stamp = (u64, u64, u64, i64, i64);

/// How a store is opened when the defaults do not serve.
#[derive(Clone, Debug)]
pub struct Options {
    pub limits: Limits,
    pub platform: Platform,
    pub timeouts: Timeouts,
    /// Where mirrors are configured: a folder a registry, with a `hosts.toml` in it.
    pub hosts_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            limits: Limits::default(),
            platform: Platform::host(),
            timeouts: Timeouts::default(),
            hosts_dir: Some(PathBuf::from(HOSTS_DIR)),
        }
    }
}

/// An image that is complete in the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the configuration: what Docker calls the image's id.
    pub id: Digest,
    /// Digest of the manifest: what registries call it.
    pub digest: Digest,
    /// Normalised references to it, tags and digests.
    pub names: Vec<String>,
    pub config: Arc<ImageConfiguration>,
    /// Bytes of all files of all layers.
    pub bytes: u64,
    pub imported_at: SystemTime,
    layers: Vec<PathBuf>,
    empty: PathBuf,
}

impl Image {
    /// For overlayfs: topmost first, at least one, none twice (overlayfs refuses a directory that it has already,
    /// and the lower of two equal layers changes nothing).
    pub fn lowerdirs(&self) -> Vec<PathBuf> {
        let mut seen = BTreeSet::new();
        let mut dirs: Vec<PathBuf> =
            self.layers.iter().rev().filter(|layer| seen.insert(*layer)).cloned().collect();
        if dirs.is_empty() {
            dirs.push(self.empty.clone());
        }
        dirs
    }

    /// `registry/repository@sha256:…`, for a container's status.
    pub fn repo_digests(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str).filter(|name| name.contains('@'))
    }

    pub fn repo_tags(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str).filter(|name| !name.contains('@'))
    }
}

impl Store {
    /// Opens the store, made if it is missing, and sweeps what a killed import left behind.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Store> {
        Store::open_with(dir, Options::default())
    }

    pub fn open_with(dir: impl Into<PathBuf>, options: Options) -> Result<Store> {
        let dir = dir.into();
        let mut unsynced = BTreeSet::new();
        for name in ["", "blobs/sha256", "layers", "partial", "holds", "empty", "tmp", "locks"] {
            let path = dir.join(name);
            let missing = path.ancestors().take_while(|path| !path.is_dir());
            unsynced.extend(missing.filter_map(Path::parent).map(Path::to_owned));
            // 700: unpacked images hold set-user-ID programs, which must be out of reach of the host's users.
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.at("create", &path)?;
        }
        // What is put into a folder is durable only if the folder is.
        for above in unsynced {
            let above = if above.as_os_str().is_empty() { Path::new(".") } else { &above };
            File::open(above).and_then(|above| above.sync_all()).at("sync", above)?;
        }
        // The exception: it becomes a container's root directory.
        let empty = dir.join("empty");
        rustix::fs::chmod(&empty, rustix::fs::Mode::from_raw_mode(0o755)).at("set the mode of", &empty)?;
        let store = Store {
            inner: Arc::new(Inner {
                dir,
                limits: options.limits,
                platform: options.platform,
                timeouts: options.timeouts,
                hosts_dir: options.hosts_dir,
                counter: AtomicU64::new(0),
                index: Mutex::new(None),
                configs: Mutex::new(HashMap::new()),
            }),
        };
        store.index()?;
        store.sweep()?;
        Ok(store)
    }

    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The image of a reference (`nginx`, `pith.local/demo:v1`, `repo@sha256:…`), of an id, or of the first 12 or
    /// more digits of one. Costs a `stat` of the index when nothing changed.
    pub fn resolve(&self, text: &str) -> Result<Image> {
        let index = self.index()?;
        let id = find(&index, text)?;
        self.image(&index, &id)
    }

    /// Every image, by id.
    pub fn list(&self) -> Result<Vec<Image>> {
        let index = self.index()?;
        index.images.keys().map(|id| self.image(&index, id)).collect()
    }

    /// Names an image that is in the store once more.
    pub fn tag(&self, existing: &str, name: &Reference) -> Result<Image> {
        let _lock = self.lock("index")?;
        let mut index = Index::load(&self.inner.dir)?;
        let id = find(&index, existing)?;
        index.references.insert(name.to_string(), id.clone());
        index.save(&self.inner.dir)?;
        self.image(&index, &id)
    }

    /// Says that `holder` (a container id) runs from this image: it is not removed before [`Store::release`].
    /// Survives restarts. One link on disk, not synced: after a power cut no container runs either.
    pub fn hold(&self, holder: &str, id: &Digest) -> Result<()> {
        let path = self.hold_path(holder)?;
        let _lock = self.lock_shared("index")?;
        if !self.index()?.images.contains_key(id) {
            return Err(Error::NotFound { reference: id.to_string() });
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &path, e)),
            _ => {}
        }
        std::os::unix::fs::symlink(id.as_str(), &path).at("create", &path)?;
        self.touch(id)
    }

    /// When it was last used: garbage collection takes the oldest first.
    fn touch(&self, id: &Digest) -> Result<()> {
        let blob = self.blob_path(id);
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let now = rustix::fs::Timestamps { last_access: now, last_modification: now };
        rustix::fs::utimensat(rustix::fs::CWD, &blob, &now, rustix::fs::AtFlags::empty()).at("touch", &blob)
    }

    /// The end of [`Store::hold`]; without one, nothing.
    pub fn release(&self, holder: &str) -> Result<()> {
        let path = self.hold_path(holder)?;
        let held = fs::read_link(&path).ok().and_then(|target| target.to_str()?.parse::<Digest>().ok());
        match fs::remove_file(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            removed => removed.at("remove", &path)?,
        }
        // It was in use until now, however long ago it began to be.
        match held.map(|id| self.touch(&id)) {
            Some(Err(Error::Io { source, .. })) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Some(touched) => touched,
            None => Ok(()),
        }
    }

    /// Who holds which image.
    pub fn holds(&self) -> Result<Vec<(String, Digest)>> {
        let dir = self.inner.dir.join("holds");
        let mut holds = Vec::new();
        for entry in fs::read_dir(&dir).at("list", &dir)? {
            let entry = entry.at("list", &dir)?;
            let target = match fs::read_link(entry.path()) {
                Ok(target) => target,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("read link", &entry.path(), e)),
            };
            if let (Ok(holder), Some(Ok(id))) =
                (entry.file_name().into_string(), target.to_str().map(str::parse))
            {
                holds.push((holder, id));
            }
        }
        Ok(holds)
    }

    fn hold_path(&self, holder: &str) -> Result<PathBuf> {
        if holder.is_empty() || holder.starts_with('.') || holder.contains('/') || holder.len() > 255 {
            let (text, reason) = (holder.to_owned(), "it cannot be a file name".to_owned());
            return Err(Error::BadReference { text, reason });
        }
        Ok(self.inner.dir.join("holds").join(holder))
    }

    /// The current index, read again only when the file was replaced.
    pub(crate) fn index(&self) -> Result<Arc<Index>> {
        let path = self.inner.dir.join(index::FILE);
        let stamp = match fs::metadata(&path) {
            Ok(m) => (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => (0, 0, 0, 0, 0),
            Err(e) => return Err(Error::io("look at", &path, e)),
        };
        let mut cached = self.inner.index.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, index)) = &*cached
            && *of == stamp
        {
            return Ok(Arc::clone(index));
        }
        let index = Arc::new(Index::load(&self.inner.dir)?);
        *cached = Some((stamp, Arc::clone(&index)));
        Ok(index)
    }

    pub(crate) fn image(&self, index: &Index, id: &Digest) -> Result<Image> {
        let not_found = || Error::NotFound { reference: id.to_string() };
        let record = index.images.get(id).ok_or_else(not_found)?;
        Ok(Image {
            id: id.clone(),
            digest: record.digest.clone(),
            names: index.names_of(id),
            config: self.config(id)?,
            bytes: record.bytes,
            imported_at: SystemTime::UNIX_EPOCH + Duration::from_secs(record.imported_at),
            layers: record.layers.iter().map(|layer| self.layer_path(layer).join("fs")).collect(),
            empty: self.inner.dir.join("empty"),
        })
    }

    fn config(&self, id: &Digest) -> Result<Arc<ImageConfiguration>> {
        let mut configs = self.inner.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(id) {
            return Ok(Arc::clone(config));
        }
        let path = self.blob_path(id);
        let bytes = fs::read(&path).at("read", &path)?;
        let got = Digest::of(&bytes);
        if got != *id {
            let blob = path.display().to_string();
            return Err(Error::DigestMismatch { blob, expected: id.clone(), got });
        }
        let config = Arc::new(layout::parse_config(&path.display().to_string(), &bytes)?);
        if configs.len() >= CONFIG_CACHE_MAX {
            configs.clear();
        }
        configs.insert(id.clone(), Arc::clone(&config));
        Ok(config)
    }

    /// Makes an image visible: its documents, then the index. Its layers are in place.
    pub(crate) fn commit(
        &self,
        documents: &layout::Documents,
        names: &[Reference],
        bytes: u64,
        from_file: bool,
    ) -> Result<Image> {
        let _lock = self.lock("index")?;
        let blobs = self.inner.dir.join("blobs/sha256");
        index::write_durably(&blobs, documents.manifest_digest.hex(), &documents.manifest)?;
        index::write_durably(&blobs, documents.config_digest.hex(), &documents.config)?;
        for dir in [blobs, self.inner.dir.join("layers")] {
            File::open(&dir).and_then(|dir| dir.sync_all()).at("sync", &dir)?;
        }
        let id = &documents.config_digest;
        let mut index = Index::load(&self.inner.dir)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        // Its other names may be in no registry.
        let from_file = from_file || index.images.get(id).is_some_and(|known| known.from_file);
        let record = Record {
            digest: documents.manifest_digest.clone(),
            layers: documents.diff_ids.clone(),
            bytes,
            imported_at: now,
            from_file,
        };
        index.images.insert(id.clone(), record);
        for name in names {
            index.references.insert(name.to_string(), id.clone());
        }
        index.save(&self.inner.dir)?;
        self.image(&index, id)
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.dir.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.inner.dir.join("layers").join(diff_id.hex())
    }

    /// A directory in `tmp` of its own, removed when dropped.
    pub(crate) fn work_dir(&self) -> Result<WorkDir> {
        let number = self.inner.counter.fetch_add(1, Ordering::Relaxed);
        // Stores of one process may share the directory: the address tells them apart.
        let name = format!("{}-{:x}-{number}", std::process::id(), Arc::as_ptr(&self.inner).addr());
        let path = self.inner.dir.join("tmp").join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).at("create", &path)?;
        Ok(WorkDir { path })
    }

    /// Waits for the lock; it ends with the returned file.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let (file, path) = self.lock_file(name)?;
        file.lock().at("lock", &path)?;
        Ok(file)
    }

    pub(crate) fn lock_shared(&self, name: &str) -> Result<File> {
        let (file, path) = self.lock_file(name)?;
        file.lock_shared().at("lock", &path)?;
        Ok(file)
    }

    /// `None` when others hold it.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<File>> {
        let (file, path) = self.lock_file(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(Error::io("lock", &path, e)),
        }
    }

    fn lock_file(&self, name: &str) -> Result<(File, PathBuf)> {
        let path = self.inner.dir.join("locks").join(name);
        let file = File::options().create(true).append(true).open(&path).at("open", &path)?;
        Ok((file, path))
    }
}

/// The id that `text` means.
pub(crate) fn find(index: &Index, text: &str) -> Result<Digest> {
    let not_found = || Error::NotFound { reference: text.to_owned() };
    if let Ok(id) = text.parse::<Digest>() {
        return index.images.contains_key(&id).then_some(id).ok_or_else(not_found);
    }
    let parsed = Reference::parse(text);
    if let Ok(reference) = &parsed {
        if let Some(id) = index.references.get(&reference.to_string()) {
            return Ok(id.clone());
        }
        // Podman and buildah name what they build here localhost/…, and find it by its short name too.
        let short =
            !text.split('/').next().is_some_and(|first| first.contains(['.', ':'])) || !text.contains('/');
        if short
            && let Ok(local) = Reference::parse(&format!("localhost/{text}"))
            && let Some(id) = index.references.get(&local.to_string())
        {
            return Ok(id.clone());
        }
    }
    if text.len() >= 12 && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        let mut matching = index.images.keys().filter(|id| id.hex().starts_with(text));
        if let (Some(only), None) = (matching.next(), matching.next()) {
            return Ok(only.clone());
        }
    }
    parsed?;
    Err(not_found())
}

/// See [`Store::work_dir`].
pub(crate) struct WorkDir {
    pub(crate) path: PathBuf,
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // Whatever is left is swept by the next open; there is nobody to tell.
        let _ = beneath::remove_path(&self.path);
    }
}
