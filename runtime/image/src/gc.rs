//! Removing: by name, by age and fullness of the disk, and what nobody refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::beneath;
use crate::digest::Digest;
use crate::error::{At, Error, Result};
use crate::index::Index;
use crate::reference::Reference;
use crate::store::{Store, WorkDir, find};

/// Parts of blobs that no pull came back for.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// When images that nobody uses go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The kubelet's: from `high_percent` of the disk in use, least recently used first, down to
    /// `low_percent`; none that came within `min_age`, and none that a file brought, which nobody could pull again.
    Thresholds { high_percent: u8, low_percent: u8, min_age: Duration },
    /// All of them, also those that a file brought.
    Unused { min_age: Duration },
}

impl Default for Policy {
    /// Kubernetes' defaults: 85 %, 80 %, two minutes.
    fn default() -> Policy {
        Policy::Thresholds { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120) }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that mean nothing any more.
    pub names: Vec<String>,
    /// Images that are gone.
    pub images: Vec<Digest>,
    /// Bytes of the files of the layers that went with them.
    pub bytes: u64,
    /// Bytes that should have gone beyond those, had there been images that nobody uses.
    pub short_of: u64,
    /// Something is being imported, so layers that nobody needs any more stay until the next collection.
    pub deferred: bool,
}

/// The disk that the store is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Of all images' files.
    pub image_bytes: u64,
    pub disk_bytes: u64,
    pub disk_free_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl Usage {
    pub fn disk_percent(&self) -> u8 {
        let used = self.disk_bytes.saturating_sub(self.disk_free_bytes);
        u8::try_from(used.saturating_mul(100).checked_div(self.disk_bytes).unwrap_or(0)).unwrap_or(100)
    }
}

impl Store {
    /// Takes a name away; the image goes with its last one. An id takes the image and all its names.
    pub fn remove(&self, text: &str) -> Result<Removed> {
        let holds = self.held()?;
        let lock = self.lock("index")?;
        let mut index = Index::load(self.dir())?;
        let id = find(&index, text)?;
        let mut removed = Removed::default();
        let names = index.names_of(&id);
        let named = Reference::parse(text).ok().filter(|r| names.contains(&r.to_string()));
        let gone: Vec<String> = match &named {
            Some(reference) => names_that_go(&names, reference),
            None => names.clone(),
        };
        let last = gone.len() == names.len();
        if last && let Some(holders) = holds.get(&id) {
            return Err(Error::InUse { reference: text.to_owned(), holders: holders.clone() });
        }
        index.references.retain(|name, _| !gone.contains(name));
        removed.names = gone;
        if last {
            index.forget(&id);
            removed.images.push(id);
        }
        index.save(self.dir())?;
        drop(lock);
        self.delete_unreferenced(&mut removed)?;
        Ok(removed)
    }

    /// Removes what `policy` says, sparing images that containers hold and those `in_use`.
    pub fn gc(&self, in_use: &BTreeSet<Digest>, policy: Policy) -> Result<Removed> {
        let mut removed = Removed::default();
        let (mut to_free, min_age) = match policy {
            Policy::Unused { min_age } => (u64::MAX, min_age),
            Policy::Thresholds { high_percent, low_percent, min_age } => {
                let usage = self.usage()?;
                let used = usage.disk_bytes.saturating_sub(usage.disk_free_bytes);
                let keep = usage.disk_bytes / 100 * u64::from(low_percent);
                let full = usage.disk_percent() >= high_percent;
                (if full { used.saturating_sub(keep) } else { 0 }, min_age)
            }
        };
        let lock = self.lock("index")?;
        let holds = self.held()?;
        let mut index = Index::load(self.dir())?;
        let by_fullness = matches!(policy, Policy::Thresholds { .. });
        for (id, bytes) in self.oldest_first(&index, min_age) {
            if to_free == 0 {
                break;
            }
            if by_fullness && index.images[&id].from_file {
                continue;
            }
            if in_use.contains(&id) || holds.contains_key(&id) {
                continue;
            }
            removed.names.extend(index.names_of(&id));
            index.forget(&id);
            removed.images.push(id);
            // An estimate: layers that other images share stay.
            to_free = to_free.saturating_sub(bytes);
        }
        if by_fullness {
            removed.short_of = to_free;
        }
        if !removed.images.is_empty() {
            index.save(self.dir())?;
        }
        drop(lock);
        self.delete_unreferenced(&mut removed)?;
        Ok(removed)
    }

    pub fn usage(&self) -> Result<Usage> {
        let disk = rustix::fs::statvfs(self.dir()).at("look at the disk of", self.dir())?;
        let index = self.index()?;
        let layers = index.live_layers().into_iter().map(|layer| self.layer_bytes(layer));
        let image_bytes = layers.map(|bytes| bytes.map(Option::unwrap_or_default)).sum::<Result<u64>>()?;
        Ok(Usage {
            image_bytes,
            disk_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
            disk_free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            inodes: disk.f_files,
            inodes_free: disk.f_favail,
        })
    }

    fn held(&self) -> Result<BTreeMap<Digest, Vec<String>>> {
        let mut held: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for (holder, id) in self.holds()? {
            held.entry(id).or_default().push(holder);
        }
        Ok(held)
    }

    /// Ids and sizes, least recently used first, without those younger than `min_age`.
    fn oldest_first(&self, index: &Index, min_age: Duration) -> Vec<(Digest, u64)> {
        let now = SystemTime::now();
        let mut images: Vec<(SystemTime, Digest, u64)> = index
            .images
            .iter()
            .map(|(id, record)| {
                // `hold` touches the configuration.
                let used = fs::metadata(self.blob_path(id)).and_then(|m| m.modified());
                (used.unwrap_or(SystemTime::UNIX_EPOCH), id.clone(), record.bytes)
            })
            .filter(|(used, _, _)| now.duration_since(*used).is_ok_and(|age| age >= min_age))
            .collect();
        images.sort();
        images.into_iter().map(|(_, id, bytes)| (id, bytes)).collect()
    }

    /// Deletes layers, blobs, parts of blobs and lock files that nothing refers to. Not while something is being
    /// imported: its layers are referred to only at its end.
    fn delete_unreferenced(&self, removed: &mut Removed) -> Result<()> {
        let Some(_busy) = self.try_lock("busy")? else {
            removed.deferred = true;
            return Ok(());
        };
        let index = Index::load(self.dir())?;
        let (layers, blobs) = (index.live_layers(), index.live_blobs());
        let live =
            |digests: &BTreeSet<&Digest>, name: &str| digests.iter().any(|digest| digest.hex() == name);
        let mut doomed: Vec<WorkDir> = Vec::new();
        for (name, path) in entries(&self.dir().join("layers"))? {
            if live(&layers, &name) {
                continue;
            }
            if let Ok(diff_id) = format!("sha256:{name}").parse() {
                removed.bytes += self.layer_bytes(&diff_id)?.unwrap_or(0);
            }
            // Out of sight at once; what takes time happens where a kill leaves only rubbish in tmp.
            let work = self.work_dir()?;
            fs::rename(&path, work.path.join("layer")).at("put away", &path)?;
            doomed.push(work);
        }
        for (name, path) in entries(&self.dir().join("blobs/sha256"))? {
            if !live(&blobs, &name) {
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
        for (_, path) in entries(&self.dir().join("partial"))? {
            let modified = fs::metadata(&path).and_then(|m| m.modified()).at("look at", &path)?;
            if modified.elapsed().is_ok_and(|age| age > PARTIAL_AGE_MAX) {
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
        // Nobody waits for a layer's lock while nobody imports.
        for (name, path) in entries(&self.dir().join("locks"))? {
            if !matches!(name.as_str(), "busy" | "index") {
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
        drop(doomed);
        Ok(())
    }

    /// Removes what killed imports left in `tmp`. Someone importing right now does it at another time.
    pub(crate) fn sweep(&self) -> Result<()> {
        let Some(_busy) = self.try_lock("busy")? else { return Ok(()) };
        for (_, path) in entries(&self.dir().join("tmp"))? {
            beneath::remove_path(&path).at("sweep", &path)?;
        }
        Ok(())
    }
}

/// `reference`, and if no other tag is left the digests of the same repository, which came with it.
fn names_that_go(names: &[String], reference: &Reference) -> Vec<String> {
    let text = reference.to_string();
    let rest: Vec<&String> = names.iter().filter(|name| **name != text).collect();
    let same_digests = format!("{}@", reference.name());
    if rest.iter().all(|name| name.starts_with(&same_digests)) {
        return names.to_vec();
    }
    vec![text]
}

fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(found)
}
