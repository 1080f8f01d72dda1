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
    let copied = dir.path().join("copied");
    std::fs::create_dir(&copied).expect("make");
    image[0].copy_to(&copied).expect("copy");
    assert_eq!(files_of(&copied), ["emptied/new", "folder/new", "kept", "replaced"]);
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

/// All that is no folder, by path.
fn files_of(root: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(dir).expect("list") {
            let path = entry.expect("an entry").path();
            if path.symlink_metadata().expect("there").is_dir() {
                waiting.push(path);
            } else {
                found.push(path.strip_prefix(root).expect("below").display().to_string());
            }
        }
    }
    found.sort();
    found
}

/// What overlayfs shows of each file, a copy has too.
#[test]
fn copies_are_as_the_layers() {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    if !is_root("copies_are_as_the_layers") {
        return;
    }
    let (dir, store) = store();
    let lower = tar_of(&[
        Item::Raw("bin/su", b'0', 0o4755, 7),
        Item::Raw("tmp", b'5', 0o1777, 0),
        Item::Symlink("link", "/no/such"),
        Item::File("one", b"1"),
        Item::HardLink("two", "one"),
        Item::Raw("pipe", b'6', 0o600, 0),
        Item::Device("dev/null", 1, 3),
        Item::Symlink("folder", "/etc"),
        Item::Xattr("noted", "user.note", b"kept"),
    ]);
    let upper =
        tar_of(&[Item::Dir("folder/"), Item::File("folder/passwd", b"inside"), Item::File("tmp/x", b"x")]);
    let parts = Parts::new("x", vec![lower, upper]);
    let path = write_file(dir.path(), "x.tar", &archive(&parts.oci_files()));
    let image = import(&store, &path).expect("import").remove(0);
    let root = dir.path().join("copied");
    std::fs::create_dir(&root).expect("make");
    image.copy_to(&root).expect("copy");
    let stat = |path: &str| std::fs::symlink_metadata(root.join(path)).expect(path);
    assert_eq!((stat("bin/su").mode() & 0o7777, stat("bin/su").uid()), (0o4755, 7));
    assert_eq!(stat("bin/su").mtime(), 1_700_000_000);
    assert_eq!(stat("tmp").mode() & 0o7777, 0o755, "the upper layer's folder counts");
    assert_eq!(std::fs::read_link(root.join("link")).expect("a link"), std::path::Path::new("/no/such"));
    assert_eq!(stat("one").ino(), stat("two").ino());
    assert!(stat("pipe").file_type().is_fifo() && stat("dev/null").file_type().is_char_device());
    assert_eq!(std::fs::read(root.join("folder/passwd")).expect("there"), b"inside", "not through the link");
    let mut value = [0_u8; 8];
    let length = rustix::fs::getxattr(root.join("noted"), "user.note", &mut value[..]).unwrap_or(4);
    assert!(length == 4 && (value == [0; 8] || &value[..4] == b"kept"));
    std::fs::write(root.join("one"), b"changed").expect("write");
    let layer = image.lowerdirs().pop().expect("two");
    assert_eq!(std::fs::read(layer.join("one")).expect("there"), b"1", "the layer is its own");
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
