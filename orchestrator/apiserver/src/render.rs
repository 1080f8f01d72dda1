//! Objects into answers: JSON, tables, metadata only; compressed where it is large and the client takes it.

use std::io::Write;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderValue, Response, StatusCode, header};
use pith_api::{ApiError, Kind, print::IncludeObject};
use pith_store::Revision;
use serde_json::{Value, json};

use crate::{
    accept::Form,
    admission,
    http::{Body, JSON, answer, warn},
    objects::Stored,
    verbs::Call,
};

/// Smaller answers are not worth compressing; upstream's bound as well.
const GZIP_FROM_BYTES: usize = 128 << 10;

/// What a list says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListMeta {
    pub(crate) revision: Revision,
    pub(crate) continues: Option<String>,
    pub(crate) remaining: Option<usize>,
}

impl ListMeta {
    fn value(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.revision.to_string()});
        if let Some(token) = &self.continues {
            meta["continue"] = token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
        meta
    }
}

/// How the rows of a table carry their objects.
pub(crate) fn include_object(call: &Call) -> Result<IncludeObject, ApiError> {
    let word = call.query.get("includeObject");
    IncludeObject::parse(word)
        .ok_or_else(|| ApiError::bad_request(format!("unrecognized includeObject value: {word:?}")))
}

/// One object, in the form that the client wants.
pub(crate) fn object(call: &Call, status: StatusCode, stored: &Stored) -> Result<Response<Body>, ApiError> {
    let kind = call.target.kind;
    let bytes = match call.form {
        Form::Objects => stored.json(kind)?,
        Form::Metadata => stored.metadata_json(kind)?,
        Form::Table => table(call, kind, stored.value(kind)?)?.to_string().into_bytes(),
    };
    Ok(sized(call, status, bytes))
}

/// One object that was written, with warnings of what was passed over in the request and what the cluster does not do.
pub(crate) fn written(
    call: &Call,
    status: StatusCode,
    stored: &Stored,
    warnings: &[String],
) -> Result<Response<Body>, ApiError> {
    let mut response = object(call, status, stored)?;
    warn(&mut response, warnings);
    warn(&mut response, &admission::warnings(call, stored)?);
    Ok(response)
}

/// An object that is not stored (a dry run's, a question's answer).
pub(crate) fn value(call: &Call, status: StatusCode, value: Value) -> Response<Body> {
    sized(call, status, value.to_string().into_bytes())
}

/// One object as a table or as metadata.
pub(crate) fn shown(call: &Call, kind: &Kind, form: Form, value: Value) -> Result<Value, ApiError> {
    Ok(match form {
        Form::Objects => value,
        Form::Metadata => pith_api::print::partial_metadata(&value),
        Form::Table => table(call, kind, value)?,
    })
}

/// One object as a table of one row.
pub(crate) fn table(call: &Call, kind: &Kind, value: Value) -> Result<Value, ApiError> {
    let revision = value["metadata"]["resourceVersion"].clone();
    let mut table = kind.table(&[value], jiff::Timestamp::now(), include_object(call)?);
    table["metadata"]["resourceVersion"] = revision;
    Ok(table)
}

/// A list.
pub(crate) fn list(call: &Call, items: &[Stored], meta: &ListMeta) -> Result<Response<Body>, ApiError> {
    let kind = call.target.kind;
    let bytes = match call.form {
        Form::Objects => joined(&kind.list_kind(), &kind.api_version(), meta, items, |item| item.json(kind))?,
        Form::Metadata => joined("PartialObjectMetadataList", "meta.k8s.io/v1", meta, items, |item| {
            item.metadata_json(kind)
        })?,
        Form::Table => {
            let values: Result<Vec<Value>, ApiError> = items.iter().map(|item| item.value(kind)).collect();
            let mut table = kind.table(&values?, jiff::Timestamp::now(), include_object(call)?);
            table["metadata"] = meta.value();
            table.to_string().into_bytes()
        }
    };
    Ok(sized(call, StatusCode::OK, bytes))
}

/// A list of texts, one behind the other.
fn joined(
    kind: &str,
    api_version: &str,
    meta: &ListMeta,
    items: &[Stored],
    text: impl Fn(&Stored) -> Result<Vec<u8>, ApiError>,
) -> Result<Vec<u8>, ApiError> {
    let length: usize = items.iter().map(|item| item.bytes.len() + 40).sum();
    let mut out = Vec::with_capacity(length + 200);
    let meta = meta.value();
    let head = format!("{{\"kind\":{kind:?},\"apiVersion\":{api_version:?},\"metadata\":{meta},\"items\":[");
    out.extend_from_slice(head.as_bytes());
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&text(item)?);
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

fn sized(call: &Call, status: StatusCode, bytes: Vec<u8>) -> Response<Body> {
    if bytes.len() < GZIP_FROM_BYTES || !call.takes_gzip {
        return answer(status, JSON, bytes);
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::new(1));
    let compressed = encoder.write_all(&bytes).and_then(|()| encoder.finish());
    let Ok(compressed) = compressed else { return answer(status, JSON, bytes) };
    let mut response = answer(status, JSON, Bytes::from(compressed));
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}
