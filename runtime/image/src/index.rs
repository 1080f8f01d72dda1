//! `index.json`: which images the store holds, and what they are called.
//!
//! Invariant: it names only images whose manifest, configuration and layers are complete on disk, because it is
//! replaced (rename) after they were synced. Readers need no lock; writers hold `index.lock`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{At, Error, Result};

pub(crate) const FILE: &str = "index.json";
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    version: u32,
    /// By id: the digest of the configuration.
    pub(crate) images: BTreeMap<Digest, Record>,
    /// Normalised references, tags and digests alike, to ids.
    pub(crate) references: BTreeMap<String, Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Of the manifest.
    pub(crate) digest: Digest,
    /// Diff ids, lowest first.
    pub(crate) layers: Vec<Digest>,
    /// Of all files of all layers.
    pub(crate) bytes: u64,
    /// Seconds since 1970.
    pub(crate) imported_at: u64,
    /// A file brought it: perhaps no registry has it.
    #[serde(default)]
    pub(crate) from_file: bool,
}

impl Default for Index {
    fn default() -> Index {
        Index { version: VERSION, images: BTreeMap::new(), references: BTreeMap::new() }
    }
}

impl Index {
    pub(crate) fn load(store: &Path) -> Result<Index> {
        let path = store.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Index::default()),
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        let index: Index = crate::layout::parse(&path.display().to_string(), &bytes)?;
        if index.version != VERSION {
            return Err(Error::Unsupported {
                what: format!("{} of version {}", path.display(), index.version),
                reason: format!("this program writes version {VERSION}"),
            });
        }
        Ok(index)
    }

    /// Durable when it returns.
    pub(crate) fn save(&self, store: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self).expect("maps of strings and numbers are JSON");
        write_durably(store, FILE, &bytes)?;
        File::open(store).and_then(|dir| dir.sync_all()).at("sync", store)
    }

    pub(crate) fn names_of(&self, id: &Digest) -> Vec<String> {
        self.references.iter().filter(|(_, of)| *of == id).map(|(name, _)| name.clone()).collect()
    }

    /// Layers that some image needs.
    pub(crate) fn live_layers(&self) -> BTreeSet<&Digest> {
        self.images.values().flat_map(|record| &record.layers).collect()
    }

    /// Manifests and configurations that some image needs.
    pub(crate) fn live_blobs(&self) -> BTreeSet<&Digest> {
        self.images.iter().flat_map(|(id, record)| [id, &record.digest]).collect()
    }

    pub(crate) fn forget(&mut self, id: &Digest) {
        self.images.remove(id);
        self.references.retain(|_, of| of != id);
    }
}

/// `dir/name` is either what it was or all of `bytes`, whenever the machine stops. The caller syncs `dir`.
/// One writer at a time (the caller holds a lock): the temporary name is fixed, so that leftovers are reused.
pub(crate) fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, temporary) = (dir.join(name), dir.join(format!(".{name}.new")));
    let mut file = File::create(&temporary).at("create", &temporary)?;
    file.write_all(bytes).at("write", &temporary)?;
    file.sync_all().at("sync", &temporary)?;
    fs::rename(&temporary, &path).at("put in place", &path)
}
