//! Patches of objects: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and strategic merge patch.
//!
//! A patch is parsed once and applied to the object as stored; the outcome goes through
//! [`crate::Kind::decode_value`] like any body.

use serde_json::Value;

use crate::{
    kind::Kind,
    status::{ApiError, Reason},
};

pub mod strategic;

/// Operations in one JSON patch, as upstream limits them.
const MAX_OPERATIONS: usize = 10_000;

/// A parsed patch.
#[derive(Clone, Debug)]
pub enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

/// Media types that a PATCH may have; the last is server-side apply (see [`crate::managed`]).
pub const MEDIA_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

impl Patch {
    pub fn parse(content_type: &str, body: &[u8]) -> Result<Self, ApiError> {
        let bad = |e: serde_json::Error| ApiError::bad_request(format!("error decoding patch: {e}"));
        let object = |body: &[u8]| match serde_json::from_slice(body).map_err(bad)? {
            value @ Value::Object(_) => Ok(value),
            _ => Err(ApiError::bad_request("error decoding patch: a merge patch must be a JSON object")),
        };
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => {
                let patch: json_patch::Patch = serde_json::from_slice(body).map_err(bad)?;
                if patch.0.len() > MAX_OPERATIONS {
                    return Err(ApiError::too_large(format!(
                        "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                        patch.0.len()
                    )));
                }
                Ok(Self::Json(patch))
            }
            "application/merge-patch+json" => object(body).map(Self::Merge),
            "application/strategic-merge-patch+json" => object(body).map(Self::Strategic),
            _ => Err(ApiError::unsupported_media_type(MEDIA_TYPES)),
        }
    }

    /// The object after the patch.
    pub fn apply(&self, kind: &Kind, object: &Value) -> Result<Value, ApiError> {
        let mut patched = object.clone();
        match self {
            Self::Json(patch) => json_patch::patch(&mut patched, patch).map_err(|e| {
                // A failed `test`, or a path that is not there: the patch was understood, but does not fit.
                ApiError::new(
                    Reason::Invalid,
                    format!("the server rejected our request due to an error in our request: {e}"),
                )
            })?,
            Self::Merge(patch) => json_patch::merge(&mut patched, patch),
            Self::Strategic(patch) => {
                patched = strategic::apply(kind.schema(), patched, patch).map_err(ApiError::from)?;
            }
        }
        Ok(patched)
    }
}
