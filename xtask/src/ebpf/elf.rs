//! Drops what is there for debuggers from a 64-bit little-endian ELF object, and finds the names of functions that rustc
//! mangled.
//!
//! Invariant: section numbers stay as they are, because symbols and relocations refer to them; a dropped
//! section becomes an empty one of type NULL. BTF stays: the kernel and the loader read it.

use anyhow::{Context, Result, ensure};

/// What nobody needs to load the programs: half of the object are the lines of the sources that each instruction comes
/// from, which the loader would keep in memory.
const DROPPED: [&[u8]; 4] = [b".debug_", b".rel.debug_", b".BTF.ext", b".rel.BTF.ext"];
const HEADER: usize = 64;
const SECTION_HEADER: usize = 64;
const SHT_NULL: u32 = 0;
const SHT_NOBITS: u32 = 8;

/// A section header: the fields that matter here, at their places (System V ABI, chapter 4).
struct Section<'a> {
    header: &'a [u8],
}

impl Section<'_> {
    fn name(&self) -> usize {
        u32_at(self.header, 0) as usize
    }

    fn kind(&self) -> u32 {
        u32_at(self.header, 4)
    }

    fn offset(&self) -> usize {
        u64_at(self.header, 24) as usize
    }

    fn size(&self) -> usize {
        u64_at(self.header, 32) as usize
    }

    fn align(&self) -> usize {
        (u64_at(self.header, 48) as usize).max(1)
    }
}

pub(super) fn without_debug_sections(object: &[u8]) -> Result<Vec<u8>> {
    ensure!(object.get(..6) == Some(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let header = object.get(..HEADER).context("the ELF header is cut off")?;
    let table = u64_at(header, 40) as usize;
    let count = usize::from(u16_at(header, 60));
    let names_index = usize::from(u16_at(header, 62));
    ensure!(usize::from(u16_at(header, 58)) == SECTION_HEADER, "section headers of another size");

    let section = |index: usize| -> Result<Section<'_>> {
        let start = table + index * SECTION_HEADER;
        let header = object.get(start..start + SECTION_HEADER).context("a section header is cut off")?;
        Ok(Section { header })
    };
    let names = section(names_index)?;
    let names = object.get(names.offset()..names.offset() + names.size()).context("no section names")?;

    let mut out = header.to_vec();
    let mut headers = Vec::with_capacity(count * SECTION_HEADER);
    for index in 0..count {
        let section = section(index)?;
        let name = names.get(section.name()..).context("a section's name is cut off")?;
        let mut header = section.header.to_vec();
        if DROPPED.iter().any(|dropped| name.starts_with(dropped)) {
            header.fill(0);
            header[4..8].copy_from_slice(&SHT_NULL.to_le_bytes());
        } else if !matches!(section.kind(), SHT_NULL | SHT_NOBITS) {
            let bytes = object
                .get(section.offset()..section.offset() + section.size())
                .context("a section is cut off")?;
            out.resize(out.len().next_multiple_of(section.align()), 0);
            header[24..32].copy_from_slice(&(out.len() as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        }
        headers.extend_from_slice(&header);
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let table = out.len() as u64;
    out[40..48].copy_from_slice(&table.to_le_bytes());
    out.extend_from_slice(&headers);
    Ok(out)
}

/// The first name that rustc mangled (its v0 scheme or the legacy one), among symbols and types alike.
pub(super) fn mangled_name(object: &[u8]) -> Option<&str> {
    object
        .split(|&byte| byte == 0)
        .filter(|name| name.starts_with(b"_R") || name.starts_with(b"_ZN"))
        .filter_map(|name| std::str::from_utf8(name).ok())
        .find(|name| name.len() > 8 && name.bytes().all(|byte| byte.is_ascii_graphic()))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | (u64::from(u32_at(bytes, at + 4)) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_object() {
        for (name, bytes) in [
            ("empty", &b""[..]),
            ("text", b"hello, this is no object at all, though it is long enough to be a header"),
            ("cut off", b"\x7fELF\x02\x01"),
        ] {
            assert!(without_debug_sections(bytes).is_err(), "{name}");
        }
    }

    #[test]
    fn stripping_twice_changes_nothing() {
        let object = include_bytes!("../../../ebpf/prebuilt/pith.o");
        let stripped = without_debug_sections(object).expect("the committed object is one");
        assert_eq!(stripped.as_slice(), object.as_slice());
    }

    #[test]
    fn finds_mangled_names() {
        let cases: [(&str, &[u8], Option<&str>); 4] = [
            ("names of our own", b"\0uplink_ingress\0_RUN\0maps\0", None),
            ("v0", b"\0maps\0_RNvNtCs8ZhpJ58PzK2_4pith6uplink\0", Some("_RNvNtCs8ZhpJ58PzK2_4pith6uplink")),
            ("legacy", b"_ZN4pith6uplink17h0123456789abcdefE\0", Some("_ZN4pith6uplink17h0123456789abcdefE")),
            ("code that begins like one", b"\0_R\x01\x02\x03\x04\x05\x06\x07\x08\0", None),
        ];
        for (case, object, expected) in cases {
            assert_eq!(mangled_name(object), expected, "{case}");
        }
    }
}
