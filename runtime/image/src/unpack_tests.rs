//! Layers made by an adversary: whatever the entries are, nothing outside the directory is touched.

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};

use super::*;

#[test]
fn paths_table() {
    let long = "x".repeat(5000);
    let cases = [
        ("a/b", Some(vec!["a", "b"])),
        ("./a//b/", Some(vec!["a", "b"])),
        ("/etc/passwd", Some(vec!["etc", "passwd"])),
        ("./", Some(vec![])),
        ("..", None),
        ("a/../b", None),
        ("a/..", None),
        ("a\0b", None),
        (long.as_str(), None),
    ];
    for (path, expect) in cases {
        let expect = expect.map(|parts| parts.into_iter().map(str::as_bytes).collect::<Vec<_>>());
        assert_eq!(split_path(path.as_bytes()).ok(), expect, "{path:?}");
    }
}

/// Few names, so that entries meet: a link first, then something through it.
fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => Just("a"), 4 => Just("b"), 2 => Just("c"), 1 => Just(".."), 1 => Just("."), 1 => Just(""),
        1 => Just(".wh.a"), 1 => Just(".wh..wh..opq"), 1 => Just(".wh..."), 1 => Just(".wh."),
    ];
    proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        path(),
        Just("../outside".to_owned()),
        Just("../../../../outside".to_owned()),
        Just("/".to_owned()),
        Just("/proc/self/root".to_owned()),
        path().prop_map(|path| format!("/{path}")),
        Just("../sentinel".to_owned()),
    ]
}

fn archive(entries: &[(u8, String, String)]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (kind, path, target) in entries {
        let mut header = ::tar::Header::new_ustar();
        header.set_entry_type(::tar::EntryType::new(*kind));
        header.set_mode(0o755);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        let data: &[u8] = if *kind == b'0' { b"data" } else { b"" };
        header.set_size(data.len() as u64);
        if matches!(kind, b'1' | b'2') {
            header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, data).expect("in memory");
    }
    builder.into_inner().expect("in memory")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_escapes(
        entries in proptest::collection::vec((prop_oneof![Just(b'0'), Just(b'1'), Just(b'2'), Just(b'5'), Just(b'6')], path(), target()), 1..12)
    ) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: nothing_escapes: needs root");
            return Ok(());
        }
        let around = tempfile::tempdir().expect("a folder");
        let (root, outside) = (around.path().join("root"), around.path().join("outside"));
        std::fs::create_dir(&root).expect("make");
        std::fs::create_dir(&outside).expect("make");
        std::fs::write(around.path().join("sentinel"), "untouched").expect("write");
        let fd = rustix::fs::open(&root, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("open");

        let stream = archive(&entries);
        let result = unpack(stream.as_slice(), fd, &Limits::default(), "test");

        if let Err(error) = result {
            let expected = matches!(error, Error::Hostile { .. });
            prop_assert!(expected, "{error}: {entries:?}");
        }
        prop_assert_eq!(std::fs::read(around.path().join("sentinel")).expect("there"), b"untouched");
        prop_assert_eq!(std::fs::read_dir(&outside).expect("there").count(), 0);
        prop_assert_eq!(std::fs::read_dir(around.path()).expect("there").count(), 3);
        let sentinel = std::fs::metadata(around.path().join("sentinel")).expect("there");
        prop_assert_eq!(std::os::unix::fs::MetadataExt::nlink(&sentinel), 1, "linked into the layer");
    }
}
