//! What can be done to resources, one module a verb.

pub(crate) mod apply;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod patch;
pub(crate) mod questions;
pub(crate) mod read;
pub(crate) mod subresources;
pub(crate) mod token;
pub(crate) mod update;
pub(crate) mod watch;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use pith_api::{ApiError, FieldValidation};

use crate::{
    accept::Form,
    http::RequestBody,
    identity::Identity,
    request::{Query, Target},
    state::State,
};

/// The largest body a request may have; upstream's bound.
const MAX_BODY_BYTES: usize = 3 << 20;

/// A request for a resource that passed authentication and authorization.
pub(crate) struct Call {
    pub(crate) state: Arc<State>,
    pub(crate) who: Identity,
    pub(crate) target: Target,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) uri: Uri,
    pub(crate) form: Form,
    pub(crate) takes_gzip: bool,
}

impl Call {
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.target.namespace.as_deref()
    }

    pub(crate) fn content_type(&self) -> &str {
        self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn validation(&self) -> Result<FieldValidation, ApiError> {
        let word = self.query.get("fieldValidation");
        FieldValidation::parse(word).ok_or_else(|| {
            ApiError::bad_request(format!(
                "unsupported fieldValidation value: {word:?}; supported: \"Ignore\", \"Warn\", \"Strict\""
            ))
        })
    }

    /// Whether the write is to be checked only.
    pub(crate) fn dry_run(&self) -> Result<bool, ApiError> {
        self.query.dry_run()
    }
}

/// Reads a body to its end.
pub(crate) async fn read_body(body: RequestBody) -> Result<Bytes, ApiError> {
    match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ApiError::too_large(format!("Request entity too large: limit is {MAX_BODY_BYTES}")))
        }
        Err(error) => Err(ApiError::bad_request(format!("the body could not be read: {error}"))),
    }
}

/// The status of a creation or update.
pub(crate) fn written(created: bool) -> StatusCode {
    if created { StatusCode::CREATED } else { StatusCode::OK }
}
