//! Reads the type descriptions that every Go program carries for reflection (`internal/abi`: `Type`,
//! `StructType`, `Name`), from a linux/amd64 executable that is linked at fixed addresses.
//!
//! Only facts are taken: names, kinds, tags. Offsets below are those of Go 1.20 to 1.26; a program laid out
//! otherwise fails a bounds or name check instead of yielding nonsense.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// Address of a type description; unique per type within one executable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct TypeAddr(u64);

/// What a Go type is, as far as API types go.
#[derive(Debug)]
pub(super) enum Shape {
    Bool,
    Int32,
    Int64,
    Float64,
    Byte,
    String,
    Pointer(TypeAddr),
    Slice(TypeAddr),
    Map(TypeAddr),
    Struct(Vec<Field>),
    Other(u8),
}

#[derive(Debug)]
pub(super) struct Field {
    pub name: String,
    pub tag: String,
    pub ty: TypeAddr,
}

#[derive(Debug)]
pub(super) struct GoType {
    /// Type name without its package; empty for unnamed types.
    pub name: String,
    /// Import path, such as `k8s.io/api/core/v1`.
    pub package: String,
    pub shape: Shape,
}

/// A Go executable's bytes with the two sections that matter located.
pub(super) struct Program {
    bytes: Vec<u8>,
    /// Loaded ranges: address, file offset, length.
    ranges: Vec<(u64, u64, u64)>,
    /// `runtime.types`: the address that name and type offsets count from.
    types: u64,
    typelinks: Vec<i32>,
}

impl Program {
    pub(super) fn parse(bytes: Vec<u8>) -> Result<Self> {
        ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
        let at = |o: u64, n: usize| -> Result<&[u8]> {
            let o = usize::try_from(o)?;
            bytes.get(o..o + n).context("truncated ELF file")
        };
        let table = u64::from_le_bytes(at(0x28, 8)?.try_into()?);
        let entry = u64::from(u16::from_le_bytes(at(0x3a, 2)?.try_into()?));
        let count = u64::from(u16::from_le_bytes(at(0x3c, 2)?.try_into()?));
        let names_index = u64::from(u16::from_le_bytes(at(0x3e, 2)?.try_into()?));
        let header = |i: u64| -> Result<(u32, u32, u64, u64, u64)> {
            let h = at(table + i * entry, 64)?;
            Ok((
                u32::from_le_bytes(h[0..4].try_into()?),
                u32::from_le_bytes(h[4..8].try_into()?),
                u64::from_le_bytes(h[16..24].try_into()?),
                u64::from_le_bytes(h[24..32].try_into()?),
                u64::from_le_bytes(h[32..40].try_into()?),
            ))
        };
        let names = header(names_index)?.3;
        let mut ranges = Vec::new();
        let mut sections = BTreeMap::new();
        for i in 0..count {
            let (name, kind, addr, offset, size) = header(i)?;
            let start = usize::try_from(names + u64::from(name))?;
            let text = bytes.get(start..).context("truncated section names")?;
            let end = text.iter().position(|b| *b == 0).context("unterminated section name")?;
            sections.insert(String::from_utf8_lossy(&text[..end]).into_owned(), (addr, offset, size));
            // SHT_PROGBITS with an address: what a pointer may lead into.
            if addr != 0 && kind == 1 {
                ranges.push((addr, offset, size));
            }
        }
        let (types, ..) = *sections.get(".rodata").context("no .rodata section")?;
        let (_, offset, size) =
            *sections.get(".typelink").context("no .typelink section: not a Go program?")?;
        let typelinks = at(offset, usize::try_from(size)?)?
            .chunks_exact(4)
            .map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]]))
            .collect();
        Ok(Self { bytes, ranges, types, typelinks })
    }

    /// The type descriptions that the linker lists (all pointer, slice and map types among them).
    pub(super) fn listed(&self) -> impl Iterator<Item = TypeAddr> {
        self.typelinks.iter().map(|offset| TypeAddr(self.types.wrapping_add_signed(i64::from(*offset))))
    }

    pub(super) fn read(&self, TypeAddr(addr): TypeAddr) -> Result<GoType> {
        const NAMED: u8 = 4;
        const UNCOMMON: u8 = 1;
        const EXTRA_STAR: u8 = 2;
        let head = self.at(addr, 48)?;
        let (flags, kind) = (head[20], head[23] & 0x1f);
        let string_offset = i32::from_le_bytes(head[40..44].try_into()?);
        let (mut text, _) = self.name(self.types.wrapping_add_signed(i64::from(string_offset)))?;
        if flags & EXTRA_STAR != 0 {
            text.remove(0);
        }
        let (shape, size) = match kind {
            1 => (Shape::Bool, 48),
            5 => (Shape::Int32, 48),
            2 | 6 => (Shape::Int64, 48),
            8 => (Shape::Byte, 48),
            14 => (Shape::Float64, 48),
            24 => (Shape::String, 48),
            22 => (Shape::Pointer(TypeAddr(self.word(addr + 48)?)), 56),
            23 => (Shape::Slice(TypeAddr(self.word(addr + 48)?)), 56),
            21 => (Shape::Map(TypeAddr(self.word(addr + 56)?)), 0),
            25 => (Shape::Struct(self.fields(addr)?), 80),
            other => (Shape::Other(other), 0),
        };
        let mut package = String::new();
        if flags & UNCOMMON != 0 && size != 0 {
            let offset = i32::from_le_bytes(self.at(addr + size, 4)?.try_into()?);
            if offset != 0 {
                package = self.name(self.types.wrapping_add_signed(i64::from(offset)))?.0;
            }
        }
        let name = if flags & NAMED != 0 {
            text.rsplit('.').next().unwrap_or_default().to_owned()
        } else {
            String::new()
        };
        Ok(GoType { name, package, shape })
    }

    fn fields(&self, addr: u64) -> Result<Vec<Field>> {
        let (list, len) = (self.word(addr + 56)?, self.word(addr + 64)?);
        if len > 1000 {
            bail!("a struct of {len} fields: this Go version lays types out differently");
        }
        (0..len)
            .map(|i| {
                let at = list + i * 24;
                let (name, tag) = self.name(self.word(at)?)?;
                Ok(Field { name, tag, ty: TypeAddr(self.word(at + 8)?) })
            })
            .collect()
    }

    /// A `Name`: one byte of flags, then the name and, if flagged, the tag, each behind a varint length.
    fn name(&self, addr: u64) -> Result<(String, String)> {
        const HAS_TAG: u8 = 2;
        let flags = self.at(addr, 1)?[0];
        let (name, next) = self.text(addr + 1)?;
        let tag = if flags & HAS_TAG != 0 { self.text(next)?.0 } else { String::new() };
        Ok((name, tag))
    }

    fn text(&self, mut addr: u64) -> Result<(String, u64)> {
        let (mut len, mut shift) = (0usize, 0);
        loop {
            let byte = self.at(addr, 1)?[0];
            addr += 1;
            len |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
            ensure!(shift < 28, "a name longer than any name");
        }
        let text = std::str::from_utf8(self.at(addr, len)?).context("a name that is not UTF-8")?;
        Ok((text.to_owned(), addr + len as u64))
    }

    fn word(&self, addr: u64) -> Result<u64> {
        Ok(u64::from_le_bytes(self.at(addr, 8)?.try_into()?))
    }

    fn at(&self, addr: u64, len: usize) -> Result<&[u8]> {
        let (base, offset, _) = self
            .ranges
            .iter()
            .find(|(base, _, size)| *base <= addr && addr + len as u64 <= base + size)
            .with_context(|| format!("address {addr:#x} is outside the program"))?;
        let start = usize::try_from(addr - base + offset)?;
        self.bytes.get(start..start + len).context("truncated program")
    }
}
