//! Images made by hand: layers as lists of entries, archives in every shape, and ways to damage them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pith_image::{Auth, Digest, Image, Keychain, Quiet, Reference, Result, Store};
use serde_json::{Value, json};
use tempfile::TempDir;

/// One tar entry.
#[derive(Clone)]
pub(crate) enum Item {
    File(&'static str, &'static [u8]),
    Dir(&'static str),
    Symlink(&'static str, &'static str),
    HardLink(&'static str, &'static str),
    Device(&'static str, u32, u32),
    Xattr(&'static str, &'static str, &'static [u8]),
    /// Any type, with mode and owner, empty.
    Raw(&'static str, u8, u32, u64),
    /// An empty file with a PAX record of its own.
    Pax(&'static str, &'static [u8]),
    /// An empty file with a name of so many characters, by GNU's extension of that type.
    Long(u8, usize),
}

/// A tar stream of the items; paths are written as they are, however hostile.
pub(crate) fn tar_of(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        let (path, data): (&str, &[u8]) = match item {
            Item::File(path, data) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(data.len() as u64);
                (path, data)
            }
            Item::Dir(path) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                (path, b"")
            }
            Item::Symlink(path, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                set_raw(&mut header.as_mut_bytes()[157..257], target);
                (path, b"")
            }
            Item::HardLink(path, target) => {
                header.set_entry_type(tar::EntryType::Link);
                set_raw(&mut header.as_mut_bytes()[157..257], target);
                (path, b"")
            }
            Item::Device(path, major, minor) => {
                header.set_entry_type(tar::EntryType::Char);
                header.set_device_major(*major).expect("fits");
                header.set_device_minor(*minor).expect("fits");
                (path, b"")
            }
            Item::Raw(path, kind, mode, uid) => {
                header.set_entry_type(tar::EntryType::new(*kind));
                header.set_mode(*mode);
                header.set_uid(*uid);
                (path, b"")
            }
            Item::Pax(key, value) => {
                builder.append_pax_extensions([(*key, *value)]).expect("write to memory");
                header.set_entry_type(tar::EntryType::Regular);
                ("with-pax", b"")
            }
            Item::Long(kind, length) => {
                let mut long = header.clone();
                long.set_entry_type(tar::EntryType::new(*kind));
                long.set_size(*length as u64);
                long.set_cksum();
                builder.append(&long, "l".repeat(*length).as_bytes()).expect("write to memory");
                header.set_entry_type(tar::EntryType::Regular);
                ("short", b"")
            }
            Item::Xattr(path, name, value) => {
                let key = format!("SCHILY.xattr.{name}");
                builder.append_pax_extensions([(key.as_str(), *value)]).expect("write to memory");
                header.set_entry_type(tar::EntryType::Regular);
                (path, b"")
            }
        };
        set_raw(&mut header.as_mut_bytes()[..100], path);
        header.set_cksum();
        builder.append(&header, data).expect("write to memory");
    }
    builder.into_inner().expect("write to memory")
}

fn set_raw(field: &mut [u8], text: &str) {
    field.fill(0);
    field[..text.len()].copy_from_slice(text.as_bytes());
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

pub(crate) fn compress(bytes: &[u8], how: Compression) -> Vec<u8> {
    match how {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).expect("write to memory");
            encoder.finish().expect("write to memory")
        }
        Compression::Zstd => zstd::encode_all(bytes, 1).expect("write to memory"),
    }
}

/// An image in pieces, before it is put into an archive or a registry.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) name: &'static str,
    pub(crate) architecture: &'static str,
    /// Uncompressed.
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) compression: Compression,
}

impl Parts {
    pub(crate) fn new(name: &'static str, layers: Vec<Vec<u8>>) -> Parts {
        Parts { name, architecture: "amd64", layers, compression: Compression::Gzip }
    }

    pub(crate) fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|l| Digest::of(l).to_string()).collect();
        json!({"architecture": self.architecture, "os": "linux",
            "config": {"Cmd": ["/bin/true"], "Env": ["A=b"], "Entrypoint": null, "Volumes": null},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
    }

    pub(crate) fn blobs(&self) -> Vec<Vec<u8>> {
        self.layers.iter().map(|layer| compress(layer, self.compression)).collect()
    }

    pub(crate) fn manifest(&self) -> Vec<u8> {
        let config = self.config();
        let layers: Vec<Value> = self
            .blobs()
            .iter()
            .map(|blob| {
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": Digest::of(blob), "size": blob.len()})
            })
            .collect();
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config), "size": config.len()},
            "layers": layers})
        .to_string()
        .into_bytes()
    }

    /// Path in an OCI layout → content.
    pub(crate) fn oci_files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let manifest = self.manifest();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::of(&manifest), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": self.name}}]});
        files.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        files.insert("index.json".to_owned(), index.to_string().into_bytes());
        for blob in self.blobs().into_iter().chain([self.config(), manifest]) {
            files.insert(format!("blobs/sha256/{}", Digest::of(&blob).hex()), blob);
        }
        files
    }

    /// As `docker save` wrote it before 25: a folder a layer, the second time a layer appears a link.
    pub(crate) fn docker_files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let config = self.config();
        let config_name = format!("{}.json", Digest::of(&config).hex());
        let names: Vec<String> = (0..self.layers.len()).map(|n| format!("layer{n}/layer.tar")).collect();
        let manifest = json!([{"Config": config_name, "RepoTags": [self.name], "Layers": names}]);
        files.insert("manifest.json".to_owned(), manifest.to_string().into_bytes());
        files.insert(config_name, config);
        files.extend(names.into_iter().zip(self.layers.clone()));
        files
    }
}

/// A tar archive of files.
pub(crate) fn archive(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content.as_slice()).expect("write to memory");
    }
    builder.into_inner().expect("write to memory")
}

pub(crate) fn write_file(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).expect("make a folder");
    }
    std::fs::write(&path, content).expect("write a file");
    path
}

/// An empty store in a folder of its own.
pub(crate) fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path().join("images")).expect("open a store");
    (dir, store)
}

/// Imports an OCI archive of the parts, as a stream.
pub(crate) fn import(store: &Store, parts: &Parts) -> Result<Image> {
    let archive = archive(&parts.oci_files());
    store.import_stream(archive.as_slice(), None, &Quiet).map(|mut images| images.remove(0))
}

/// Root makes device nodes and owners; without it most of this crate cannot be tested.
pub(crate) fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: {test}: needs root");
    }
    root
}

pub(crate) fn noise(seed: u8) -> &'static [u8] {
    // Does not compress, so that halves of blobs are worth something.
    let mut state = u32::from(seed) + 1;
    let bytes = (0..300_000).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    bytes.collect::<Vec<u8>>().leak()
}

pub(crate) fn app(architecture: &'static str) -> Parts {
    let layers = vec![tar_of(&[Item::File("lower", noise(1))]), tar_of(&[Item::File("upper", noise(2))])];
    Parts { architecture, ..Parts::new("unused", layers) }
}

pub(crate) fn pull(store: &Store, reference: &Reference, auth: &Auth) -> Result<Image> {
    run(store.pull(reference, &Keychain::of(auth.clone()), Arc::new(Quiet)))
}

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

pub(crate) fn check(image: &Image) {
    let dirs = image.lowerdirs();
    assert_eq!(std::fs::read(dirs[0].join("upper")).expect("there"), noise(2));
    assert_eq!(std::fs::read(dirs[1].join("lower")).expect("there"), noise(1));
}
