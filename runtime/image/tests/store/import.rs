//! Archives in every shape into a store: what comes out, what is refused, and what survives a cut.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use pith_image::{Digest, Error, Image, Quiet, Reference, Store};

use crate::support::{Compression, Item, Parts, archive, compress, is_root, store, tar_of, write_file};

fn two_layers(name: &'static str) -> Parts {
    let lower = tar_of(&[
        Item::Dir("etc/"),
        Item::File("etc/hosts", b"127.0.0.1 localhost\n"),
        Item::File("etc/old", b"old"),
        Item::Dir("var/cache/"),
    ]);
    let upper = tar_of(&[
        Item::File("etc/.wh.old", b""),
        Item::Dir("var/cache/"),
        Item::File("var/cache/.wh..wh..opq", b""),
        Item::Symlink("etc/mtab", "/proc/mounts"),
        Item::File("etc/motd", b"hello\n"),
        Item::HardLink("etc/hosts2", "etc/motd"),
    ]);
    Parts::new(name, vec![lower, upper])
}

fn import(store: &Store, path: &Path) -> Result<Vec<Image>, Error> {
    store.import(path, None, &Quiet)
}

#[test]
fn every_shape_of_archive_gives_the_same_image() {
    if !is_root("every_shape_of_archive_gives_the_same_image") {
        return;
    }
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let parts = Parts { compression, ..two_layers("pith.local/demo:v1") };
        for (kind, files) in [("oci", parts.oci_files()), ("docker", parts.docker_files())] {
            let (dir, store) = store();
            let tar = archive(&files);
            for (n, outer) in
                [Compression::None, Compression::Gzip, Compression::Zstd].into_iter().enumerate()
            {
                let path = write_file(dir.path(), &format!("{n}.tar"), &compress(&tar, outer));
                let images = import(&store, &path).unwrap_or_else(|e| panic!("{kind} {n}: {e}"));
                assert_eq!(images.len(), 1, "{kind} {n}");
                assert_eq!(images[0].id, Digest::of(&parts.config()), "{kind} {n}");
            }
            let folder = dir.path().join("folder");
            for (name, content) in &files {
                write_file(&folder, name, content);
            }
            import(&store, &folder).unwrap_or_else(|e| panic!("{kind} as a folder: {e}"));
            store.import_stream(tar.as_slice(), None, &Quiet).expect("from a stream");
            check_content(&store.resolve("pith.local/demo:v1").expect("by its name"));
        }
    }
}

fn check_content(image: &Image) {
    assert_eq!(image.names, ["pith.local/demo:v1"]);
    assert_eq!(image.config.config().as_ref().and_then(|c| c.cmd().clone()), Some(vec!["/bin/true".into()]));
    let dirs = image.lowerdirs();
    let [upper, lower] = dirs.as_slice() else { panic!("two layers: {dirs:?}") };
    assert_eq!(std::fs::read(lower.join("etc/hosts")).expect("a file"), b"127.0.0.1 localhost\n");
    let whiteout = std::fs::symlink_metadata(upper.join("etc/old")).expect("a whiteout");
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    let mut value = [0_u8; 8];
    let n = rustix::fs::getxattr(upper.join("var/cache"), "trusted.overlay.opaque", &mut value[..])
        .expect("opaque");
    assert_eq!(&value[..n], b"y");
    assert_eq!(std::fs::read_link(upper.join("etc/mtab")).expect("a link"), Path::new("/proc/mounts"));
    let (motd, linked) = (upper.join("etc/motd"), upper.join("etc/hosts2"));
    let (motd, linked) = (std::fs::metadata(motd).expect("there"), std::fs::metadata(linked).expect("there"));
    assert_eq!((motd.ino(), motd.nlink()), (linked.ino(), 2));
    assert_eq!(motd.mtime(), 1_700_000_000);
    let cache = std::fs::metadata(lower.join("var/cache")).expect("there");
    assert_eq!((cache.mtime(), cache.mode() & 0o7777), (1_700_000_000, 0o755));
}

/// The kernel is the judge of whiteouts and opaque folders: mounted in a mount namespace of its own.
#[test]
fn overlayfs_reads_the_layers() {
    if !is_root("overlayfs_reads_the_layers") {
        return;
    }
    let (dir, store) = store();
    let lower = tar_of(&[
        Item::File("gone", b"1"),
        Item::File("kept", b"2"),
        Item::File("emptied/old", b"3"),
        Item::File("replaced/old", b"4"),
        Item::File("folder/old", b"5"),
    ]);
    let upper = tar_of(&[
        Item::File(".wh.gone", b""),
        Item::File("emptied/.wh..wh..opq", b""),
        Item::File("emptied/new", b"6"),
        Item::File(".wh.replaced", b""),
        Item::File("replaced", b"7"),
        Item::File(".wh.folder", b""),
        Item::Dir("folder/"),
        Item::File("folder/new", b"8"),
    ]);
    // The lowest again on top of nothing new: overlayfs would refuse to stack it twice.
    let parts = Parts::new("x", vec![lower.clone(), tar_of(&[]), upper, tar_of(&[])]);
    let image =
        import(&store, &write_file(dir.path(), "x.tar", &archive(&parts.docker_files()))).expect("import");
    let lowerdirs: Vec<_> = image[0].lowerdirs().iter().map(|dir| dir.display().to_string()).collect();
    assert_eq!(lowerdirs.len(), 3, "equal layers are stacked once");
    let target = dir.path().join("merged");
    std::fs::create_dir(&target).expect("make");
    let script =
        r#"mount -t overlay -o "ro,lowerdir=$1" none "$2" && cd "$2" && find . -type f | sort | xargs"#;
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh", &lowerdirs.join(":")])
        .arg(&target)
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let files = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            assert_eq!(files, "./emptied/new ./folder/new ./kept ./replaced");
        }
        other => eprintln!("SKIPPED: overlayfs_reads_the_layers: no overlayfs or no unshare here: {other:?}"),
    }
}

#[test]
fn names() {
    if !is_root("names") {
        return;
    }
    let (dir, store) = store();
    let path =
        write_file(dir.path(), "a.tar", &archive(&two_layers("docker.io/library/demo:v1").oci_files()));
    let name = Reference::parse("localhost/other").expect("a name");
    let image = store.import(&path, Some(&name), &Quiet).expect("import").remove(0);
    let short = image.id.short().to_owned();
    for text in
        ["demo:v1", "docker.io/library/demo:v1", "other", "localhost/other:latest", &short, image.id.as_str()]
    {
        assert_eq!(store.resolve(text).expect(text).id, image.id, "{text}");
    }
    for text in ["demo", "demo:v2", "pith.local/demo:v1", "000000000000"] {
        assert!(matches!(store.resolve(text), Err(Error::NotFound { .. })), "{text}");
    }
    assert!(matches!(store.resolve("not a name"), Err(Error::BadReference { .. })));
}
