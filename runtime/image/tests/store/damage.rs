//! Damaged archives, and stores cut at any moment: the error names what is wrong, and the next open works.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use pith_image::{Digest, Error, Quiet, Store};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::support::{Compression, Item, Parts, archive, import, is_root, store, tar_of, write_file};

fn sample(name: &'static str) -> Parts {
    let lower = tar_of(&[Item::Dir("etc/"), Item::File("etc/hosts", b"127.0.0.1 localhost\n")]);
    Parts::new(name, vec![lower, tar_of(&[Item::File("bin/sh", &[7; 5000])])])
}

/// The error, as its kind.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::Corrupt { .. } => "corrupt",
        Error::DigestMismatch { .. } => "digest mismatch",
        Error::WrongPlatform { .. } => "wrong platform",
        Error::Unsupported { .. } => "unsupported",
        Error::Hostile { .. } => "hostile",
        Error::TooLarge { .. } => "too large",
        Error::BadReference { .. } => "bad reference",
        _ => "another",
    }
}

#[test]
fn damage_table() {
    if !is_root("damage_table") {
        return;
    }
    let parts = sample("pith.local/x:v1");
    let blob = parts.blobs().remove(0);
    let blob_path = format!("blobs/sha256/{}", Digest::of(&blob).hex());
    let config_path = format!("blobs/sha256/{}", Digest::of(&parts.config()).hex());
    type Edit<'e> = Box<dyn Fn(&mut std::collections::BTreeMap<String, Vec<u8>>) + 'e>;
    let cases: Vec<(&str, Edit<'_>, &str, &str)> = vec![
        (
            "layer flipped",
            Box::new(|f| *f.get_mut(&blob_path).expect("there").last_mut().expect("bytes") ^= 1),
            "digest mismatch",
            &blob_path,
        ),
        (
            "layer cut",
            Box::new(|f| f.get_mut(&blob_path).expect("there").truncate(40)),
            "digest mismatch",
            &blob_path,
        ),
        ("layer missing", Box::new(|f| drop(f.remove(&blob_path))), "corrupt", &blob_path),
        (
            "config flipped",
            Box::new(|f| f.get_mut(&config_path).expect("there")[0] = b' '),
            "digest mismatch",
            &config_path,
        ),
        ("config missing", Box::new(|f| drop(f.remove(&config_path))), "corrupt", &config_path),
        (
            "index is no JSON",
            Box::new(|f| drop(f.insert("index.json".into(), b"{".to_vec()))),
            "corrupt",
            "index.json",
        ),
        (
            "index is empty",
            Box::new(|f| {
                drop(f.insert("index.json".into(), br#"{"schemaVersion":2,"manifests":[]}"#.to_vec()))
            }),
            "corrupt",
            "index.json",
        ),
        ("not an image", Box::new(|f| f.clear()), "unsupported", "neither"),
    ];
    for (name, edit, expect, names) in cases {
        let (_dir, store) = store();
        let mut files = parts.oci_files();
        edit(&mut files);
        let error = store.import_stream(archive(&files).as_slice(), None, &Quiet).expect_err(name);
        assert_eq!(kind(&error), expect, "{name}: {error}");
        assert!(error.to_string().contains(names), "{name}: {error}");
        assert!(store.list().expect("list").is_empty(), "{name}");
    }
}

/// Built wrong rather than damaged: the digests are right, the content is not.
#[test]
fn inconsistent_images() {
    if !is_root("inconsistent_images") {
        return;
    }
    let (_dir, store) = store();
    let arm = Parts { architecture: "arm64", ..sample("pith.local/arm:v1") };
    let error = import(&store, &arm).expect_err("another architecture");
    assert_eq!(error.to_string(), "pith.local/arm:v1 is for linux/arm64, this machine needs linux/amd64");

    let mut garbage = sample("pith.local/garbage:v1");
    garbage.layers[0] = b"this is not a tar archive at all, whatever its digest".to_vec();
    let error = import(&store, &garbage).expect_err("not a tar archive");
    assert_eq!(kind(&error), "corrupt", "{error}");
    assert!(error.to_string().contains("byte 0"), "{error}");

    // The configuration promises other content than the manifest's layer has.
    let parts = sample("pith.local/lie:v1");
    let mut files = parts.docker_files();
    files.insert("layer0/layer.tar".to_owned(), tar_of(&[Item::File("etc/other", b"!")]));
    let error = store.import_stream(archive(&files).as_slice(), None, &Quiet).expect_err("other content");
    assert_eq!(kind(&error), "digest mismatch", "{error}");
}

/// Any cut and any flipped bit: an error of a kind that says so, or an image whose content is verified.
#[test]
fn cut_and_flipped_anywhere() {
    if !is_root("cut_and_flipped_anywhere") {
        return;
    }
    let (_dir, store) = store();
    let parts = Parts { compression: Compression::None, ..sample("pith.local/x:v1") };
    let good = archive(&parts.oci_files());
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let damage = (0..good.len(), any::<bool>(), 0_u8..8);
    runner
        .run(&damage, |(position, cut, bit)| {
            let mut bad = good.clone();
            if cut {
                bad.truncate(position);
            } else {
                bad[position] ^= 1 << bit;
            }
            match store.import_stream(bad.as_slice(), None, &Quiet) {
                Err(error) => prop_assert_ne!(kind(&error), "another", "{} at {}", error, position),
                Ok(images) => {
                    for image in images {
                        prop_assert_eq!(image.id, Digest::of(&parts.config()));
                    }
                }
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    import(&store, &parts).expect("the good one");
}

const CHILD: &str = "PITH_IMAGE_TEST_IMPORT";

/// Not a test of its own: what `killed_at_any_moment` runs and kills.
#[test]
fn import_for_the_killer() {
    let Some(arguments) = std::env::var_os(CHILD) else { return };
    let (archive, dir) = arguments.to_str().and_then(|a| a.split_once('|')).expect("two paths");
    let store = Store::open(dir).expect("open");
    loop {
        store.import(archive.as_ref(), None, &Quiet).expect("import");
        store.remove("pith.local/x:v1").expect("remove");
    }
}

#[test]
fn killed_at_any_moment() {
    if !is_root("killed_at_any_moment") {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let parts = sample("pith.local/x:v1");
    let path = write_file(dir.path(), "x.tar", &archive(&parts.oci_files()));
    let store_dir = dir.path().join("images");
    for round in 0..25_u64 {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "damage::import_for_the_killer"])
            .env(CHILD, format!("{}|{}", path.display(), store_dir.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start");
        // Not a wait for anything: the moment of the kill is what varies.
        std::thread::sleep(Duration::from_micros(5_000 + round * 1_700));
        child.kill().expect("kill");
        let status = child.wait().expect("wait");
        assert_eq!(status.signal(), Some(9), "it ended by itself: {status}");

        let store = Store::open(&store_dir).unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(std::fs::read_dir(store_dir.join("tmp")).expect("list").count(), 0, "swept");
        for image in store.list().expect("list") {
            for layer in image.lowerdirs() {
                assert!(layer.is_dir(), "round {round}: {layer:?} is missing");
            }
        }
    }
    let store = Store::open(&store_dir).expect("open");
    let image = import(&store, &parts).expect("import after all that");
    assert_eq!(std::fs::read(image.lowerdirs()[0].join("bin/sh")).expect("there"), [7; 5000]);
}
