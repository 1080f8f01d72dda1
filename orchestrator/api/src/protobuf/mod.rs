//! Kubernetes' protobuf bodies: the bytes `k8s\0`, then a `runtime.Unknown` holding the object's message. The
//! schema table knows every field's tag, so one reader serves all types.
//!
//! Everything read here is only an allegation: lengths are checked against what is left, nesting is limited,
//! unknown tags are skipped by their wire type.

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::{
    codec::Body,
    decode::Decoded,
    kinds::find_kind,
    quantity::Quantity,
    schema::{Field, Shape, Type},
    status::ApiError,
    time,
};

mod wire;

use self::wire::{Reader, Wire};

/// Media type of such bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What every one of them starts with.
pub const MAGIC: &[u8] = b"k8s\0";
/// Deeper nesting is refused.
const MAX_DEPTH: usize = 100;

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("the message ends in the middle of a field")]
    Truncated,
    #[error("a varint of more than ten bytes")]
    Varint,
    #[error("field {0} has wire type {1}, which its type does not")]
    WireType(u32, u8),
    #[error("messages nested more than {MAX_DEPTH} deep")]
    Depth,
    #[error("{field}: {reason}")]
    Value { field: String, reason: String },
}

type Read<T> = Result<T, WireError>;

/// The envelope around an object.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unknown<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
    pub content_type: &'a str,
}

impl<'a> Unknown<'a> {
    /// Opens the envelope, magic included.
    pub fn parse(bytes: &'a [u8]) -> Read<Self> {
        let body = bytes.strip_prefix(MAGIC).ok_or_else(|| WireError::Value {
            field: "body".into(),
            reason: "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
                .into(),
        })?;
        let mut unknown = Self::default();
        let mut reader = Reader { bytes: body };
        while let Some((tag, wire)) = reader.field()? {
            match (tag, wire) {
                (1, Wire::Bytes(meta)) => {
                    let mut reader = Reader { bytes: meta };
                    while let Some((tag, wire)) = reader.field()? {
                        match (tag, wire) {
                            (1, Wire::Bytes(text)) => unknown.api_version = utf8("apiVersion", text)?,
                            (2, Wire::Bytes(text)) => unknown.kind = utf8("kind", text)?,
                            _ => {}
                        }
                    }
                }
                (2, Wire::Bytes(raw)) => unknown.raw = raw,
                (4, Wire::Bytes(text)) => unknown.content_type = utf8("contentType", text)?,
                _ => {}
            }
        }
        Ok(unknown)
    }
}

/// Reads a body of an expected type.
pub(crate) fn decode(body: Body, bytes: &[u8]) -> Result<Decoded, ApiError> {
    let refuse =
        |e: WireError| ApiError::bad_request(format!("unable to decode {} from protobuf: {e}", body.kind));
    let unknown = Unknown::parse(bytes).map_err(refuse)?;
    let mut object = Map::new();
    if !unknown.api_version.is_empty() {
        object.insert("apiVersion".into(), unknown.api_version.into());
    }
    if !unknown.kind.is_empty() {
        object.insert("kind".into(), unknown.kind.into());
    }
    // Options travel under the group they are sent to, or as their own kind of meta.k8s.io.
    if body.group.is_empty() && body.kind.ends_with("Options") {
        object.clear();
    }
    message(body.schema, unknown.raw, &mut object, 0).map_err(refuse)?;
    body.schema.normalise(&mut object);
    Ok(Decoded { object, complaints: Vec::new() })
}

/// Reads one message of type `ty` into `object`; unknown tags are skipped.
pub(crate) fn message(
    ty: &'static Type,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Read<()> {
    if depth > MAX_DEPTH {
        return Err(WireError::Depth);
    }
    let mut reader = Reader { bytes };
    while let Some((tag, wire)) = reader.field()? {
        let Some(field) = ty.fields().iter().find(|f| u32::from(f.tag) == tag && f.tag != 0) else {
            continue;
        };
        if let Some(inner) = field.inlined() {
            message(inner, wire.bytes(tag)?, object, depth + 1)?;
            continue;
        }
        read_field(field, tag, wire, object, depth)?;
    }
    Ok(())
}

fn read_field(
    field: &'static Field,
    tag: u32,
    wire: Wire<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Read<()> {
    match &field.shape {
        Shape::List(item) => {
            let slot = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = slot else { return Ok(()) };
            match (item.as_ref(), wire) {
                // Numbers may come packed into one field.
                (Shape::Bool | Shape::Int32 | Shape::Int64, Wire::Bytes(packed)) => {
                    let mut reader = Reader { bytes: packed };
                    while !reader.bytes.is_empty() {
                        list.push(scalar(item, field.name, tag, Wire::Varint(reader.varint()?), depth)?);
                    }
                }
                (_, wire) => list.push(scalar(item, field.name, tag, wire, depth)?),
            }
        }
        Shape::Map(item) => {
            let slot = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(map) = slot else { return Ok(()) };
            let (key, value) = map_entry(item, field.name, wire.bytes(tag)?, depth)?;
            map.insert(key, value);
        }
        // A message that is sent in two parts is the two merged.
        Shape::Object(index) => {
            let slot = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(inner) = slot else { return Ok(()) };
            message(Type::at(*index), wire.bytes(tag)?, inner, depth + 1)?;
        }
        shape => {
            let value = scalar(shape, field.name, tag, wire, depth)?;
            object.insert(field.name.to_owned(), value);
        }
    }
    Ok(())
}

fn map_entry(item: &'static Shape, name: &str, bytes: &[u8], depth: usize) -> Read<(String, Value)> {
    let (mut key, mut value) = (String::new(), None);
    let mut reader = Reader { bytes };
    while let Some((tag, wire)) = reader.field()? {
        match (tag, wire) {
            (1, Wire::Bytes(text)) => key = utf8(name, text)?.to_owned(),
            (2, wire) => value = Some(scalar(item, name, tag, wire, depth)?),
            _ => {}
        }
    }
    let value = match (value, item) {
        (Some(value), _) => value,
        (None, Shape::String | Shape::Bytes) => Value::String(String::new()),
        (None, Shape::Quantity) => Value::String("0".into()),
        (None, Shape::Names | Shape::List(_)) => Value::Array(Vec::new()),
        (None, Shape::Object(_) | Shape::Map(_)) => Value::Object(Map::new()),
        (None, Shape::Bool) => Value::Bool(false),
        (None, _) => 0.into(),
    };
    Ok((key, value))
}

/// One value that is neither a list nor a map.
fn scalar(shape: &'static Shape, name: &str, tag: u32, wire: Wire<'_>, depth: usize) -> Read<Value> {
    Ok(match shape {
        Shape::Bool => Value::Bool(wire.varint(tag)? != 0),
        // Negative numbers travel sign-extended to 64 bits.
        Shape::Int32 => (wire.varint(tag)? as i32).into(),
        Shape::Int64 => (wire.varint(tag)? as i64).into(),
        Shape::Float64 => match wire {
            Wire::Fixed64(bits) => Value::from(f64::from_bits(bits)),
            other => return Err(WireError::WireType(tag, other.number())),
        },
        Shape::String => utf8(name, wire.bytes(tag)?)?.into(),
        Shape::Bytes => BASE64_STANDARD.encode(wire.bytes(tag)?).into(),
        Shape::Time | Shape::MicroTime => timestamp(shape, name, wire.bytes(tag)?)?,
        Shape::Duration => go_duration(parts(wire.bytes(tag)?)?.numbers[1] as i64).into(),
        Shape::Quantity => {
            let text = utf8(name, parts(wire.bytes(tag)?)?.texts[1])?;
            let text = if text.is_empty() { "0" } else { text };
            let quantity: Quantity = text
                .parse()
                .map_err(|e| WireError::Value { field: name.to_owned(), reason: format!("{text:?}: {e}") })?;
            quantity.to_string().into()
        }
        Shape::IntOrString => {
            let parts = parts(wire.bytes(tag)?)?;
            if parts.numbers[1] == 1 {
                utf8(name, parts.texts[3])?.into()
            } else {
                (parts.numbers[2] as i32).into()
            }
        }
        Shape::Raw => raw(name, parts(wire.bytes(tag)?)?.texts[1], depth)?,
        Shape::Names => {
            let mut names = Vec::new();
            let mut reader = Reader { bytes: wire.bytes(tag)? };
            while let Some((tag, wire)) = reader.field()? {
                if let (1, Wire::Bytes(text)) = (tag, wire) {
                    names.push(utf8(name, text)?.into());
                }
            }
            Value::Array(names)
        }
        Shape::Object(index) => {
            let mut inner = Map::new();
            message(Type::at(*index), wire.bytes(tag)?, &mut inner, depth + 1)?;
            Value::Object(inner)
        }
        Shape::List(_) | Shape::Map(_) => return Err(WireError::WireType(tag, wire.number())),
    })
}

/// An empty message is Go's zero time, which JSON leaves out.
fn timestamp(shape: &Shape, name: &str, bytes: &[u8]) -> Read<Value> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let parts = parts(bytes)?;
    let at = Timestamp::new(parts.numbers[1] as i64, parts.numbers[2] as i32)
        .map_err(|e| WireError::Value { field: name.to_owned(), reason: e.to_string() })?;
    Ok(if *shape == Shape::Time { time::seconds(at) } else { time::micros(at) }.into())
}

/// Embedded objects are JSON, or an envelope like the body itself.
fn raw(name: &str, bytes: &[u8], depth: usize) -> Read<Value> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    if !bytes.starts_with(MAGIC) {
        return serde_json::from_slice(bytes)
            .map_err(|e| WireError::Value { field: name.to_owned(), reason: e.to_string() });
    }
    let unknown = Unknown::parse(bytes)?;
    let (group, version) = unknown.api_version.rsplit_once('/').unwrap_or(("", unknown.api_version));
    let kind = find_kind(group, version, unknown.kind).ok_or_else(|| WireError::Value {
        field: name.to_owned(),
        reason: format!("no kind {:?} is registered for version {:?}", unknown.kind, unknown.api_version),
    })?;
    let mut object = Map::new();
    object.insert("kind".into(), unknown.kind.into());
    object.insert("apiVersion".into(), unknown.api_version.into());
    message(kind.schema(), unknown.raw, &mut object, depth + 1)?;
    kind.schema().normalise(&mut object);
    Ok(Value::Object(object))
}

/// The fields 1 to 3 of a small message, whichever way they came.
#[derive(Default)]
struct Parts<'a> {
    numbers: [u64; 4],
    texts: [&'a [u8]; 4],
}

fn parts(bytes: &[u8]) -> Read<Parts<'_>> {
    let mut parts = Parts::default();
    let mut reader = Reader { bytes };
    while let Some((tag, wire)) = reader.field()? {
        let Some(slot) = usize::try_from(tag).ok().filter(|t| (1..4).contains(t)) else { continue };
        match wire {
            Wire::Varint(number) | Wire::Fixed64(number) => parts.numbers[slot] = number,
            Wire::Fixed32(number) => parts.numbers[slot] = number.into(),
            Wire::Bytes(text) => parts.texts[slot] = text,
        }
    }
    Ok(parts)
}

fn utf8<'a>(name: &str, bytes: &'a [u8]) -> Read<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| WireError::Value { field: name.to_owned(), reason: e.to_string() })
}

/// Go's `time.Duration` as text: `1h2m3.5s`.
fn go_duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".to_owned();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let total = nanos.unsigned_abs();
    let fraction = |value: u64, unit: u64| {
        let text = format!("{}.{:0width$}", value / unit, value % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let text = match total {
        0..1_000 => format!("{total}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(total, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(total, 1_000_000)),
        _ => {
            let (minutes, rest) = (total / 60_000_000_000, total % 60_000_000_000);
            let seconds = fraction(rest, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}
