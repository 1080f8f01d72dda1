//! The reader against archives by another writer (the `tar` crate), against odd and broken headers, and against
//! noise.

use proptest::prelude::*;

use super::*;

/// All entries with their data, or the error.
fn read_all(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(archive);
    let mut all = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut data = Vec::new();
        let at = reader.position;
        reader.read_to_end(&mut data).map_err(|source| TarError::Io { at, source })?;
        all.push((entry, data));
    }
    Ok(all)
}

/// A ustar header with the checksum right; `edit` changes it first.
fn header(typeflag: u8, name: &[u8], size: usize, edit: impl Fn(&mut [u8; BLOCK])) -> Vec<u8> {
    let mut header = [0_u8; BLOCK];
    header[..name.len()].copy_from_slice(name);
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[156] = typeflag;
    header[257..265].copy_from_slice(b"ustar\x0000");
    edit(&mut header);
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header.to_vec()
}

fn with_data(mut header: Vec<u8>, data: &[u8]) -> Vec<u8> {
    header.extend_from_slice(data);
    header.resize(header.len().div_ceil(BLOCK) * BLOCK, 0);
    header
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut content = String::new();
    for (key, value) in records {
        let body = format!(" {key}={value}\n");
        // The length counts its own digits.
        let length = (body.len()..).find(|n| n.to_string().len() + body.len() == *n).expect("some n");
        content.push_str(&format!("{length}{body}"));
    }
    with_data(header(b'x', b"pax", content.len(), |_| ()), content.as_bytes())
}

#[test]
fn entries_table() {
    let long_name = [b"d/".as_slice(), &b"n".repeat(300)].concat();
    let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
    type Check = fn(&Entry) -> bool;
    let cases: Vec<(&str, Vec<u8>, Check)> = vec![
        ("a file", with_data(header(b'0', b"f", 3, |_| ()), b"abc"), |e| {
            (e.kind, e.size, e.mode) == (Kind::File, 3, 0o644)
        }),
        ("before POSIX: a file", with_data(header(0, b"f", 1, |_| ()), b"x"), |e| e.kind == Kind::File),
        ("before POSIX: a folder", header(0, b"d/", 0, |_| ()), |e| e.kind == Kind::Directory),
        ("ustar prefix", header(b'5', b"name", 0, |h| h[345..351].copy_from_slice(b"prefix")), |e| {
            e.path == b"prefix/name"
        }),
        (
            "GNU magic has no prefix",
            header(b'5', b"name", 0, |h| {
                h[257..265].copy_from_slice(b"ustar  \0");
                h[345..351].copy_from_slice(b"123456");
            }),
            |e| e.path == b"name",
        ),
        (
            "GNU long name",
            [
                with_data(header(b'L', b"././@LongLink", 303, |_| ()), &[&long_name[..], b"\0"].concat()),
                header(b'0', b"x", 0, |_| ()),
            ]
            .concat(),
            |e| e.path.len() == 302 && e.path.starts_with(b"d/nnn"),
        ),
        (
            "GNU long link",
            [with_data(header(b'K', b"././@LongLink", 4, |_| ()), b"far\0"), header(b'2', b"x", 0, |_| ())]
                .concat(),
            |e| e.link == b"far" && e.kind == Kind::Symlink,
        ),
        (
            "PAX path, link, owner",
            [
                pax(&[("path", "ä/ö"), ("linkpath", "l"), ("uid", "100000"), ("gid", "7")]),
                header(b'1', b"x", 0, |_| ()),
            ]
            .concat(),
            |e| e.path == "ä/ö".as_bytes() && e.link == b"l" && (e.uid, e.gid) == (100_000, 7),
        ),
        ("a hard link has no data, whatever it says", header(b'1', b"x", 4096, |_| ()), |e| e.size == 0),
        (
            "global records are passed over",
            [
                with_data(header(b'g', b"pax", 20, |_| ()), b"20 comment=abcdefgh\n"),
                header(b'5', b"x", 0, |_| ()),
            ]
            .concat(),
            |e| e.path == b"x",
        ),
        ("xattr", [pax(&[("SCHILY.xattr.user.a", "b=c")]), header(b'0', b"x", 0, |_| ())].concat(), |e| {
            e.xattrs == [("user.a".to_owned(), b"b=c".to_vec())]
        }),
        (
            "binary owner",
            header(b'0', b"x", 0, |h| h[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0, 1, 0, 0])),
            |e| e.uid == 65_536,
        ),
        ("before 1970, binary", header(b'0', b"x", 0, |h| h[136..148].fill(0xff)), |e| e.mtime.seconds == -1),
        ("a device", header(b'3', b"x", 0, |h| h[329..345].copy_from_slice(b"0000001\x000000003\0")), |e| {
            e.device == (1, 3)
        }),
    ];
    for (name, archive, check) in cases {
        let entries = read_all(&archive).unwrap_or_else(|e| panic!("{name}: {e}"));
        let [(entry, _)] = entries.as_slice() else { panic!("{name}: {} entries", entries.len()) };
        assert!(check(entry), "{name}: {entry:?}");
    }
    for (text, expect) in [
        ("1", Some(time(1, 0))),
        ("1.5", Some(time(1, 500_000_000))),
        ("1.0000000019", Some(time(1, 1))),
        ("-1.25", Some(time(-2, 750_000_000))),
        ("-0.5", Some(time(-1, 500_000_000))),
        ("1.x", None),
        ("", None),
    ] {
        assert_eq!(pax_time(text.as_bytes()), expect, "{text}");
    }
}

#[test]
fn faults_table() {
    let huge = [header(b'x', b"pax", 2 << 20, |_| ()), vec![0; 2 << 20]].concat();
    let endless = pax(&[("comment", "x")]).repeat(EXTENSIONS_MAX + 1);
    let cases = [
        ("cut in a header", header(b'0', b"x", 0, |_| ())[..300].to_vec(), "inside a header"),
        ("cut in a file", with_data(header(b'0', b"x", 2000, |_| ()), b"short"), "byte 512"),
        ("cut after an extension", pax(&[("path", "x")]), "after an extension"),
        (
            "checksum",
            {
                let mut h = header(b'0', b"x", 0, |_| ());
                h[0] = b'y';
                h
            },
            "checksum",
        ),
        ("a megabyte of records", huge, "more than a mebibyte"),
        ("records without end", endless, "too many extension headers"),
        ("unknown type", header(b'Q', b"x", 0, |_| ()), "unknown type"),
        ("negative size", header(b'0', b"x", 0, |h| h[124..136].fill(0xff)), "its size"),
        ("not octal", header(b'0', b"x", 0, |h| h[124..136].fill(b'9')), "its size"),
        (
            "owner -1 would mean unchanged",
            [pax(&[("uid", "4294967295")]), header(b'0', b"x", 0, |_| ())].concat(),
            "its owner",
        ),
        ("PAX uid", [pax(&[("uid", "+1")]), header(b'0', b"x", 0, |_| ())].concat(), "its PAX uid"),
        ("PAX length", with_data(header(b'x', b"pax", 9, |_| ()), b"99 a=b\n\x01\x01"), "its PAX records"),
        ("sparse", header(b'S', b"x", 0, |_| ()), "sparse"),
        ("PAX sparse", [pax(&[("GNU.sparse.major", "1")]), header(b'0', b"x", 0, |_| ())].concat(), "sparse"),
    ];
    for (name, archive, expect) in cases {
        match read_all(&archive) {
            Ok(entries) => panic!("{name}: read as {entries:?}"),
            Err(error) => assert!(error.to_string().contains(expect), "{name}: {error}"),
        }
    }
}

#[test]
fn ends_where_it_ends() {
    for (name, archive, count) in [
        ("nothing", Vec::new(), 0),
        ("zeroes", vec![0; 1024], 0),
        ("no zeroes at the end", header(b'5', b"x", 0, |_| ()), 1),
        ("what follows the end is not read", [vec![0; 1024], header(b'5', b"x", 0, |_| ())].concat(), 0),
    ] {
        assert_eq!(read_all(&archive).expect(name).len(), count, "{name}");
    }
}

fn name() -> impl Strategy<Value = String> {
    proptest::collection::vec("[a-zA-Z0-9_ äß-]{1,40}", 1..8).prop_map(|parts| parts.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// What the tar crate writes (long names become GNU extensions), this reads.
    #[test]
    fn reads_what_others_write(
        files in proptest::collection::vec((name(), proptest::collection::vec(any::<u8>(), 0..2000), 0_u32..0o10000), 0..8)
    ) {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (path, data, mode) in &files {
            let mut header = ::tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(*mode);
            header.set_uid(1000);
            header.set_mtime(99);
            builder.append_data(&mut header, format!("r/{path}"), data.as_slice()).expect("in memory");
        }
        let archive = builder.into_inner().expect("in memory");
        let read = read_all(&archive).expect("a good archive");
        prop_assert_eq!(read.len(), files.len());
        for ((entry, data), (path, written, mode)) in read.iter().zip(&files) {
            let expect = format!("r/{path}").into_bytes();
            prop_assert_eq!(&entry.path, &expect);
            prop_assert_eq!(data, written);
            prop_assert_eq!((entry.mode, entry.uid, entry.mtime.seconds), (*mode, 1000, 99));
        }
    }

    /// Damage is an error or other content, never a panic, and never more data than there is.
    #[test]
    fn survives_damage(position in 0_usize..4096, byte: u8, cut in 0_usize..4096) {
        let mut archive = [
            pax(&[("path", "some/where"), ("mtime", "12.5"), ("SCHILY.xattr.user.x", "y")]),
            with_data(header(b'0', b"x", 700, |_| ()), &[7; 700]),
            with_data(header(b'L', b"././@LongLink", 5, |_| ()), b"long\0"),
            header(b'5', b"d/", 0, |_| ()),
            vec![0; 1024],
        ].concat();
        archive[position % 4096] = byte;
        archive.truncate(cut.max(position));
        let length = archive.len() as u64;
        if let Ok(entries) = read_all(&archive) {
            prop_assert!(entries.iter().map(|(_, data)| data.len() as u64).sum::<u64>() <= length);
        }
    }

    #[test]
    fn survives_noise(noise in proptest::collection::vec(any::<u8>(), 0..3000)) {
        drop(read_all(&noise));
    }
}
