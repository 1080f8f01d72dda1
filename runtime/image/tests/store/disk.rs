//! A full disk: one clear line, nothing half left, and what was there goes on.
//!
//! Each test fills a tmpfs of its own, in a mount namespace that ends with its thread.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pith_image::{Auth, Error, Image, Quiet, Result, Store};

use crate::server::{Behaviour, Registry};
use crate::support::{Compression, Item, Parts, archive, import, is_root, noise, pull, tar_of, write_file};

/// Runs `test` with a store on a disk of so many KiB.
fn on_a_small_disk(kib: u32, test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().expect("a folder");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("root may");
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
            let size = format!("size={kib}k");
            mount(Some("pith-test"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
                .expect("a small disk");
            test(dir.path());
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn small() -> Parts {
    Parts::new("pith.local/small:v1", vec![tar_of(&[Item::File("small", b"small")])])
}

/// 600 KB that do not compress.
fn large(compression: Compression) -> Parts {
    let layer = tar_of(&[Item::File("lower", noise(1)), Item::File("upper", noise(2))]);
    Parts { compression, ..Parts::new("pith.local/large:v1", vec![layer]) }
}

/// What is left besides the small image.
fn check_rest(store: &Store, small: &Image) {
    let names = |dir: &str| {
        let entries = fs::read_dir(store.dir().join(dir)).expect("list");
        entries.map(|entry| entry.expect("an entry").file_name()).collect::<Vec<_>>()
    };
    for empty in ["tmp", "partial"] {
        assert!(names(empty).is_empty(), "left in {empty}: {:?}", names(empty));
    }
    assert_eq!(names("layers").len(), 1);
    let reopened = Store::open(store.dir()).expect("open");
    assert_eq!(reopened.list().expect("list").len(), 1);
    let image = reopened.resolve("pith.local/small:v1").expect("the image that was there");
    assert_eq!(image.id, small.id);
    assert_eq!(fs::read(image.lowerdirs()[0].join("small")).expect("read"), b"small");
}

fn check_error(result: Result<Image>) {
    let error = result.map(|image| image.id).expect_err("there is no room");
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("no space left") && !text.contains('\n'), "{text}");
}

#[test]
fn imports() {
    if !is_root("imports") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let plain = archive(&large(Compression::None).oci_files());
    let file = write_file(folder.path(), "large.tar", &plain);
    // Too small for what is unpacked, and too small even for what is written aside before.
    for kib in [1000, 400] {
        on_a_small_disk(kib, |dir| {
            let store = Store::open(dir.join("images")).expect("open");
            let small = import(&store, &small()).expect("there is room");
            check_error(store.import_stream(plain.as_slice(), None, &Quiet).map(|mut all| all.remove(0)));
            check_rest(&store, &small);
            if kib == 400 {
                check_error(store.import(&file, None, &Quiet).map(|mut all| all.remove(0)));
                check_rest(&store, &small);
            }
        });
    }
}

#[test]
fn pulls() {
    if !is_root("pulls") {
        return;
    }
    // Too small for the blob, and too small for blob and layer together.
    for kib in [400, 1000] {
        let registry = Registry::start(&[large(Compression::Gzip)], Behaviour::default());
        on_a_small_disk(kib, |dir| {
            let store = Store::open(dir.join("images")).expect("open");
            let small = import(&store, &small()).expect("there is room");
            check_error(pull(&store, &registry.reference(":amd64"), &Auth::Anonymous));
            check_rest(&store, &small);
        });
    }
}

/// No byte is free: what there is can be used, listed and removed, and then there is room again.
#[test]
fn a_store_on_a_full_disk_works() {
    if !is_root("a_store_on_a_full_disk_works") {
        return;
    }
    on_a_small_disk(1000, |dir| {
        let store = Store::open(dir.join("images")).expect("open");
        let small = import(&store, &small()).expect("there is room");
        let other = Parts::new("pith.local/other:v1", vec![tar_of(&[Item::File("other", noise(3))])]);
        import(&store, &other).expect("there is room");
        let ballast = vec![0; 1 << 20];
        fs::write(dir.join("ballast"), &ballast).expect_err("the disk is full now");
        let store = Store::open(dir.join("images")).expect("open");
        assert_eq!(store.list().expect("list").len(), 2);
        store.hold("container", &small.id).expect("hold");
        check_error(import(&store, &large(Compression::Gzip)));
        let removed = store.remove("pith.local/other:v1");
        // Its index is replaced by a new file, for which there may be no room: then nothing has changed.
        match removed {
            Ok(removed) => assert_eq!(removed.images.len(), 1),
            Err(error) => {
                assert!(matches!(error, Error::DiskFull { .. }), "{error}");
                assert_eq!(store.list().expect("list").len(), 2);
                fs::remove_file(dir.join("ballast")).expect("make room");
                store.remove("pith.local/other:v1").expect("remove");
            }
        }
        store.release("container").expect("release");
        if dir.join("ballast").exists() {
            fs::remove_file(dir.join("ballast")).expect("make room");
        }
        check_rest(&store, &small);
        let registry = Registry::start(&[other], Behaviour::default());
        pull(&store, &registry.reference(":amd64"), &Auth::Anonymous).expect("there is room again");
    });
}
