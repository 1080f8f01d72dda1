//! Kinds of API objects and everything about them that needs no IO: the table of kinds, decoding (JSON, YAML,
//! protobuf), defaults, validation, patches, selectors, printing, discovery and OpenAPI.
//!
//! Objects are `serde_json::Value` here and on the whole server. One table of types (`schema/types.txt`) drives
//! decoding, protobuf, patches and OpenAPI; one table of kinds ([`kinds()`]) drives the rest.
//!
//! What happens to a write, in this order: [`Kind::decode`] → [`Kind::default`] → [`Kind::prepare_create`] or
//! [`Kind::prepare_update`] → [`Kind::validate_create`] or [`Kind::validate_update`] → [`Kind::to_storage`].

mod certificate;
mod cluster;
pub mod codec;
mod config;
mod decode;
pub mod discovery;
mod endpoints;
mod event;
pub mod field;
mod kind;
mod kinds;
mod lease;
pub mod managed;
pub mod meta;
mod names;
mod object;
pub mod openapi;
pub mod patch;
pub mod placement;
pub mod pod;
pub mod print;
pub mod protobuf;
pub mod quantity;
pub mod scale;
pub mod schema;
pub mod selector;
mod service;
pub mod status;
pub mod time;
mod workload;

pub use codec::FieldValidation;
pub use field::FieldError;
pub use kind::{Kind, STORED_VERBS, Subresource, SubresourceKind, api_version};
pub use kinds::{find, find_kind, kinds};
pub use service::families::{Family, Settled, settle as settle_families};
pub use status::{ApiError, Reason, Subject};

/// Decodes standard base64, as Go's encoding/json does for `[]byte`.
pub(crate) fn base64_bytes(text: &str) -> Result<Vec<u8>, base64::DecodeError> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    BASE64_STANDARD
        .decode(text.as_bytes().iter().copied().filter(|b| !matches!(b, b'\r' | b'\n')).collect::<Vec<_>>())
}
