//! The probe program as a one-layer image.

use std::io::Cursor;

use pith_image::{Quiet, Store};
use serde_json::json;
use sha2::{Digest, Sha256};

pub(crate) const IMAGE: &str = "pith.local/probe:test";

/// Imports the image that [`IMAGE`] names.
pub(crate) fn import(store: &Store, program: &[u8]) {
    let layer = tar(&[
        ("pith-probe", program, 0o755),
        ("tmp/.keep", b"", 0o644),
        ("etc/passwd", b"web:x:7:8::/:/\n", 0o644),
    ]);
    let digest: String = Sha256::digest(&layer).iter().map(|b| format!("{b:02x}")).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": ["/pith-probe"], "Cmd": ["sleep", "3600"], "Env": ["FROM_IMAGE=yes"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    let archive = tar(&[
        ("manifest.json", manifest.to_string().as_bytes(), 0o644),
        ("config.json", config.to_string().as_bytes(), 0o644),
        ("layer.tar", &layer, 0o644),
    ]);
    let imported = store.import_stream(Cursor::new(archive), None, &Quiet);
    assert_eq!(imported.expect("the archive is an image").len(), 1);
}

fn tar(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    for (path, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        tar.append_data(&mut header, path, *content).expect("memory takes it");
    }
    tar.into_inner().expect("memory takes it")
}
