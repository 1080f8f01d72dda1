//! Layers that want out, and archives that want too much: each is refused with a reason, and leaves nothing.

use pith_image::{Error, Limits, Options, Store};

use crate::support::{Compression, Item, Parts, import, is_root, store, tar_of};

#[test]
fn entries_table() {
    if !is_root("entries_table") {
        return;
    }
    let cases: Vec<(&str, Vec<Item>, &str)> = vec![
        ("parent", vec![Item::File("../escape", b"x")], "a path with .. in it"),
        ("parent in the middle", vec![Item::File("a/../../escape", b"x")], "a path with .. in it"),
        ("hard link by parent", vec![Item::HardLink("a", "../../../../etc/passwd")], "a path with .. in it"),
        ("hard link by absolute path", vec![Item::HardLink("a", "/etc/passwd")], "not in this layer"),
        (
            "hard link through a link",
            vec![Item::Symlink("out", "/"), Item::HardLink("a", "out/etc/passwd")],
            "not in this layer",
        ),
        (
            "hard link to a folder",
            vec![Item::Dir("d/"), Item::HardLink("a", "d")],
            "hard link to a directory",
        ),
        ("hard link to the root", vec![Item::HardLink("a", "./")], "hard link to the root"),
        (
            "through a link that leads nowhere",
            vec![Item::Symlink("a", "missing"), Item::File("a/b", b"x")],
            "leads nowhere",
        ),
        ("through a loop", vec![Item::Symlink("a", "a"), Item::File("a/b", b"x")], "leads nowhere"),
        ("below a file", vec![Item::File("a", b"x"), Item::File("a/b", b"x")], "not a directory"),
        ("the root itself", vec![Item::File("./", b"x")], "replace the root"),
        ("a disk", vec![Item::Device("dev/mem", 1, 1)], "a device node"),
        ("a whiteout by hand", vec![Item::Device("etc", 0, 0)], "a device node"),
        (
            "overlayfs attributes",
            vec![Item::Xattr("a", "trusted.overlay.redirect", b"/etc")],
            "overlayfs would obey",
        ),
        ("whiteout of nothing", vec![Item::File("a/.wh.", b"")], "a whiteout of nothing"),
        ("whiteout of the parent", vec![Item::File("a/.wh...", b"")], "a whiteout of nothing"),
        ("whiteout above the root", vec![Item::File("../.wh.etc", b"")], "a path with .. in it"),
        (
            "whiteout through a link that leads nowhere",
            vec![Item::Symlink("out", "/no/such"), Item::File("out/.wh.a", b"")],
            "leads nowhere",
        ),
        ("a block device", vec![Item::Raw("dev/sda", b'4', 0o660, 0)], "a device node"),
        ("a link to nothing", vec![Item::Symlink("a", "")], "a link to nothing"),
        (
            "attributes of other users' overlays",
            vec![Item::Xattr("a", "user.overlay.metacopy", b"")],
            "overlayfs would obey",
        ),
        ("a long path", vec![Item::Long(b'L', 5000)], "longer than 4096 bytes"),
        ("a long name", vec![Item::Long(b'L', 300)], "its name is too long"),
    ];
    for (name, items, expect) in cases {
        let (_dir, store) = store();
        let parts = Parts::new("pith.local/bad:v1", vec![tar_of(&items)]);
        match import(&store, &parts) {
            Err(Error::Hostile { reason, .. }) => assert!(reason.contains(expect), "{name}: {reason}"),
            Err(error) => panic!("{name}: {error}"),
            Ok(image) => panic!("{name}: accepted as {}", image.id),
        }
        assert!(store.list().expect("list").is_empty(), "{name}");
        for rest in ["tmp", "layers", "blobs/sha256"] {
            let rest = store.dir().join(rest);
            assert_eq!(std::fs::read_dir(&rest).expect("list").count(), 0, "{name}: left in {rest:?}");
        }
    }
}

#[test]
fn links_stay_inside() {
    if !is_root("links_stay_inside") {
        return;
    }
    let (_dir, store) = store();
    let items = [
        Item::Dir("real/"),
        Item::Symlink("absolute", "/real"),
        Item::Symlink("up", "../../../real"),
        Item::File("absolute/a", b"a"),
        Item::File("up/b", b"b"),
        Item::Symlink("to-host", "/etc/passwd"),
        Item::Device("dev/null", 1, 3),
    ];
    let image = import(&store, &Parts::new("x", vec![tar_of(&items)])).expect("all of it is harmless");
    let root = image.lowerdirs().remove(0);
    for (path, expect) in [("real/a", b"a"), ("real/b", b"b")] {
        assert_eq!(std::fs::read(root.join(path)).expect(path), expect);
    }
}

#[test]
fn later_entries_replace_earlier_ones() {
    if !is_root("later_entries_replace_earlier_ones") {
        return;
    }
    let (_dir, store) = store();
    let items = [
        Item::Dir("a/"),
        Item::File("a/deep/file", b"1"),
        Item::File("a", b"now a file"),
        Item::File("b", b"2"),
        Item::Dir("b/"),
        Item::File("b/inside", b"3"),
        Item::Symlink("c", "b"),
        Item::File("c", b"not through the link"),
        Item::File(".wh.d", b""),
        Item::Dir("d/"),
        Item::File("e", b"kept"),
        Item::File(".wh.e", b""),
    ];
    let image = import(&store, &Parts::new("x", vec![tar_of(&items)])).expect("import");
    let root = image.lowerdirs().remove(0);
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect(path);
    assert_eq!(read("a"), "now a file");
    assert_eq!(read("b/inside"), "3");
    assert_eq!(read("c"), "not through the link");
    assert_eq!(read("e"), "kept", "whiteouts speak of lower layers");
    let mut value = [0_u8; 4];
    rustix::fs::getxattr(root.join("d"), "trusted.overlay.opaque", &mut value[..]).expect("opaque");
}

#[test]
fn bombs() {
    if !is_root("bombs") {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let limits = Limits {
        layer_bytes: 1 << 20,
        layer_entries: 100,
        document_bytes: 4096,
        ratio_free_bytes: 800_000,
        ..Limits::default()
    };
    let options = Options { limits, ..Options::default() };
    let store = Store::open_with(dir.path(), options).expect("open");
    let zeroes: &'static [u8] = vec![0_u8; 8 << 20].leak();
    let many: Vec<Item> = std::iter::repeat_n(Item::Dir("d/"), 101).collect();
    let long_name: &'static str = "n".repeat(90).leak();
    for (name, parts) in [
        ("bytes, gzip", Parts::new("x", vec![tar_of(&[Item::File("zeroes", zeroes)])])),
        (
            "bytes, zstd",
            Parts {
                compression: Compression::Zstd,
                ..Parts::new("x", vec![tar_of(&[Item::File("zeroes", zeroes)])])
            },
        ),
        (
            "ratio",
            Parts {
                compression: Compression::Zstd,
                ..Parts::new("x", vec![tar_of(&[Item::File("zeroes", &zeroes[..900_000])])])
            },
        ),
        ("behind the end", Parts::new("x", vec![[tar_of(&[]), zeroes.to_vec()].concat()])),
        ("entries", Parts::new("x", vec![tar_of(&many)])),
        ("documents", Parts::new("x", vec![tar_of(&[Item::Dir(long_name)]); 60])),
    ] {
        match import(&store, &parts) {
            Err(Error::TooLarge { .. }) => {}
            Err(error) => panic!("{name}: {error}"),
            Ok(image) => panic!("{name}: accepted as {}", image.id),
        }
    }
}

/// Refused as malformed or unknown rather than as hostile; nothing is left of them either.
#[test]
fn odd_entries_table() {
    if !is_root("odd_entries_table") {
        return;
    }
    for (name, items, expect) in [
        ("a socket", vec![Item::Raw("run/sock", b's', 0o600, 0)], "unknown type"),
        ("a GNU sparse file", vec![Item::Raw("sparse", b'S', 0o600, 0)], "GNU sparse file is not supported"),
        ("a PAX sparse file", vec![Item::Pax("GNU.sparse.major", b"1")], "GNU sparse file is not supported"),
        ("a negative size", vec![Item::Pax("size", b"-1")], "PAX size"),
        ("a size beyond the archive", vec![Item::Pax("size", b"18446744073709551615")], "ends inside a file"),
        ("an owner beyond 32 bits", vec![Item::Pax("uid", b"4294967296")], "owner"),
        ("the owner that means nobody at all", vec![Item::Pax("uid", b"4294967295")], "owner"),
        ("a header of a mebibyte", vec![Item::Long(b'L', 1_100_000)], "more than a mebibyte"),
    ] {
        let (_dir, store) = store();
        let error = import(&store, &Parts::new("x", vec![tar_of(&items)])).expect_err(name).to_string();
        assert!(error.contains(expect) && !error.contains('\n'), "{name}: {error}");
        for rest in ["tmp", "layers", "blobs/sha256"] {
            let rest = store.dir().join(rest);
            assert_eq!(std::fs::read_dir(&rest).expect("list").count(), 0, "{name}: left in {rest:?}");
        }
    }
}

/// What looks odd and is legitimate is kept as it is.
#[test]
fn odd_but_kept() {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    if !is_root("odd_but_kept") {
        return;
    }
    let (_dir, store) = store();
    // Version 2, effective, CAP_NET_RAW permitted.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let items = [
        Item::Raw("bin/su", b'0', 0o4755, 0),
        Item::Raw("tmp", b'5', 0o1777, 0),
        Item::Raw("run/pipe", b'6', 0o600, 0),
        Item::Raw("home/far", b'0', 0o644, 2_000_000),
        Item::Xattr("bin/ping", "security.capability", capability.to_vec().leak()),
        Item::Long(b'L', 200),
        Item::File("twice", b"1"),
        Item::File("twice", b"22"),
        Item::HardLink("again", "twice"),
    ];
    let image = import(&store, &Parts::new("x", vec![tar_of(&items)])).expect("all of it is legitimate");
    let root = image.lowerdirs().remove(0);
    let stat = |path: &str| std::fs::symlink_metadata(root.join(path)).expect(path);
    assert_eq!(stat("bin/su").mode() & 0o7777, 0o4755);
    assert_eq!(stat("tmp").mode() & 0o7777, 0o1777);
    assert!(stat("run/pipe").file_type().is_fifo());
    assert_eq!(stat("home/far").uid(), 2_000_000);
    assert_eq!(stat(&"l".repeat(200)).len(), 0);
    assert_eq!((stat("twice").ino(), stat("twice").len()), (stat("again").ino(), 2));
    let mut value = [0_u8; 64];
    let length = rustix::fs::getxattr(root.join("bin/ping"), "security.capability", &mut value[..]);
    assert_eq!(value[..length.expect("kept")], capability);
}
