//! `cargo xtask image`: the demo and probe images, made from this workspace's own static program.
//!
//! Each is an OCI image layout in a tar archive (image-spec, "image-layout"), with nothing from outside in it and
//! nothing of the moment: the same program gives the same bytes.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::build::{programs, root};

/// Media types of the OCI image specification.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Archives say when a file was last changed; the epoch keeps them reproducible.
const MTIME: u64 = 0;

struct Image {
    file: &'static str,
    reference: &'static str,
    entrypoint: &'static [&'static str],
    version: &'static str,
}

const IMAGES: [Image; 3] = [
    Image {
        file: "demo-v1.tar",
        reference: "pith.local/demo:v1",
        entrypoint: &["/pith-probe", "serve"],
        version: "v1",
    },
    Image {
        file: "demo-v2.tar",
        reference: "pith.local/demo:v2",
        entrypoint: &["/pith-probe", "serve"],
        version: "v2",
    },
    Image {
        file: "probe.tar",
        reference: "pith.local/probe:latest",
        entrypoint: &["/pith-probe"],
        version: "v1",
    },
];

/// Builds the program and writes all images; returns their folder.
pub(crate) fn build() -> Result<PathBuf> {
    write(&programs()?)
}

/// Writes all images into `target/images` from a program that is built already, and returns the folder.
pub(crate) fn write(programs: &Path) -> Result<PathBuf> {
    let binary = programs.join("pith-probe");
    let program = fs::read(&binary).with_context(|| format!("read {}", binary.display()))?;
    let folder = root().join("target/images");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let layer = layer(&program).context("write the layer")?;
    for image in &IMAGES {
        let path = folder.join(image.file);
        let archive = archive(image, &layer).with_context(|| format!("write {}", image.reference))?;
        write_if_changed(&path, &archive)?;
        println!("{}: {}", path.display(), image.reference);
    }
    Ok(folder)
}

/// The root filesystem: the program, two users, and the folders that programs expect.
fn layer(program: &[u8]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (folder, mode) in [("bin/", 0o755), ("etc/", 0o755), ("tmp/", 0o1777), ("var/", 0o755)] {
        append(&mut tar, folder, EntryType::Directory, mode, &[])?;
    }
    let users = "root:x:0:0:root:/:/pith-probe\nprobe:x:65532:65532:probe:/:/pith-probe\n";
    append(&mut tar, "etc/passwd", EntryType::Regular, 0o644, users.as_bytes())?;
    append(&mut tar, "etc/group", EntryType::Regular, 0o644, b"root:x:0:\nprobe:x:65532:\n")?;
    append(&mut tar, "pith-probe", EntryType::Regular, 0o755, program)?;
    tar.into_inner().context("finish the layer")
}

fn archive(image: &Image, layer: &[u8]) -> Result<Vec<u8>> {
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": image.entrypoint,
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/", format!("PROBE_VERSION={}", image.version)],
            "ExposedPorts": { "8080/tcp": {} },
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(layer)] },
    }))
    .context("the image's configuration")?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, layer)],
    }))
    .context("the manifest")?;
    let mut entry = descriptor(MANIFEST, &manifest);
    entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": image.reference });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    let index = serde_json::to_vec(&index).context("the index")?;

    let mut tar = Builder::new(Vec::new());
    append(&mut tar, "oci-layout", EntryType::Regular, 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", EntryType::Regular, 0o644, &index)?;
    for folder in ["blobs/", "blobs/sha256/"] {
        append(&mut tar, folder, EntryType::Directory, 0o755, &[])?;
    }
    for blob in [config.as_slice(), &manifest, layer] {
        let path = format!("blobs/{}", digest(blob).replace(':', "/"));
        append(&mut tar, &path, EntryType::Regular, 0o644, blob)?;
    }
    tar.into_inner().context("finish the archive")
}

fn append(tar: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME);
    header.set_size(u64::try_from(content.len()).context("a size")?);
    tar.append_data(&mut header, path, Cursor::new(content)).with_context(|| format!("add {path}"))
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The OCI's, which is Go's, name of the architecture that this workspace is built for.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Keeps the file's time where nothing changed, so that nothing that depends on it is done again.
fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().expect("an archive") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("readable");
            files.insert(path, content);
        }
        files
    }

    #[test]
    fn an_archive_is_reproducible_and_its_digests_hold() {
        let layer = layer(b"program").expect("a layer");
        let first = archive(&IMAGES[0], &layer).expect("an archive");
        assert_eq!(first, archive(&IMAGES[0], &layer).expect("an archive"));
        let files = files(&first);
        let index: Value = serde_json::from_slice(&files["index.json"]).expect("JSON");
        let manifest = &index["manifests"][0];
        assert_eq!(manifest["annotations"]["org.opencontainers.image.ref.name"], "pith.local/demo:v1");
        for (path, content) in
            files.iter().filter(|(path, _)| path.starts_with("blobs/sha256/") && !path.ends_with('/'))
        {
            let named = path.trim_start_matches("blobs/").replace('/', ":");
            assert_eq!(named, digest(content), "{path}");
        }
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().expect("text");
            files[&format!("blobs/{}", digest.replace(':', "/"))].clone()
        };
        let manifest: Value = serde_json::from_slice(&blob(manifest)).expect("JSON");
        assert_eq!(blob(&manifest["layers"][0]), layer);
    }
}
