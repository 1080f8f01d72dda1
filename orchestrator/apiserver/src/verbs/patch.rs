//! patch.

use http::{Response, StatusCode};
use pith_api::{ApiError, Subresource, meta, patch::Patch};
use serde_json::Value;

use super::{
    Call, apply, read_body,
    update::{MAX_TRIES, Managers, write},
};
use crate::{
    http::{Body, RequestBody},
    objects::{PutError, named_revision},
    render,
};

pub(crate) async fn patch(
    call: &Call,
    body: RequestBody,
    door: Subresource,
) -> Result<Response<Body>, ApiError> {
    if apply::is_apply(call.content_type()) {
        return apply::apply(call, body, door).await;
    }
    let body = read_body(body).await?;
    let patch = Patch::parse(call.content_type(), &body)?;
    let kind = call.target.kind;
    let name = call.target.require_name()?;
    for _ in 0..MAX_TRIES {
        let old = call.state.objects.get(kind, call.namespace(), name).await?;
        let current = old.value(kind)?;
        let patched = patch.apply(kind, &current)?;
        let (mut new, warnings) = kind.decode_value(patched, call.validation()?)?;
        check_identity(call, &mut new, &current)?;
        // The patch itself may say which revision it is for.
        let pinned = named_revision(&new)? != Some(old.revision);
        if pinned && named_revision(&new)?.is_some_and(|revision| revision.0 != 0) {
            return Err(ApiError::modified(kind.subject(name)));
        }
        match write(call, &old, &current, new, door, Managers::Follow(door)).await {
            Ok(stored) => {
                return render::written(call, StatusCode::OK, &stored, &warnings);
            }
            // Someone else was faster: the patch is applied to what is there now.
            Err(PutError::Changed) => {}
            Err(PutError::Other(error)) => return Err(error),
        }
    }
    Err(ApiError::modified(kind.subject(name)))
}

/// A patch may not move an object to another name.
pub(super) fn check_identity(call: &Call, new: &mut Value, old: &Value) -> Result<(), ApiError> {
    for field in ["name", "namespace"] {
        let (given, kept) = (meta::text(new, field), meta::text(old, field));
        if given.is_empty() && !kept.is_empty() {
            meta::of_mut(new).insert(field.into(), kept.into());
        } else if given != kept {
            return Err(ApiError::bad_request(format!(
                "the {field} of the object ({given}) does not match the {field} on the URL ({kept})"
            )));
        }
    }
    let (given, kept) = (meta::text(new, "uid"), meta::text(old, "uid"));
    if !given.is_empty() && given != kept {
        return Err(ApiError::conflict(
            call.target.subject(),
            format!("Precondition failed: UID in precondition: {given}, UID in object meta: {kept}"),
        ));
    }
    Ok(())
}
