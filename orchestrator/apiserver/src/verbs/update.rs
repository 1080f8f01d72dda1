//! update, and the part that patches share with it: from an old object and a wanted one to what is written.

use http::{Response, StatusCode};
use pith_api::{
    ApiError, Subresource,
    managed::{self, Writer},
    meta,
};
use pith_store::Expect;
use serde_json::Value;

use super::{Call, apply, read_body, written};
use crate::{
    admission,
    http::{Body, RequestBody},
    objects::{Objects, PutError, Stored, encode, named_revision, set_revision},
    render,
};

/// Tries of a write that names no revision, when others are faster.
pub(crate) const MAX_TRIES: usize = 16;

/// Kinds that a PUT may create (upstream: `AllowCreateOnUpdate`).
const CREATED_BY_UPDATE: &[&str] = &["endpoints", "events", "leases", "services"];

pub(crate) async fn update(
    call: &Call,
    body: RequestBody,
    door: Subresource,
) -> Result<Response<Body>, ApiError> {
    let body = read_body(body).await?;
    let kind = call.target.kind;
    let name = call.target.require_name()?;
    let (mut value, warnings) = kind.decode(call.content_type(), &body, call.validation()?)?;
    check_name(call, &mut value, name)?;
    let wanted = named_revision(&value)?;
    for _ in 0..MAX_TRIES {
        let Some(old) = call.state.objects.find(kind, call.namespace(), name).await? else {
            return create_instead(call, value, door, &warnings).await;
        };
        let current = old.value(kind)?;
        check_preconditions(call, &value, &current)?;
        if wanted.is_some_and(|wanted| wanted != old.revision && wanted.0 != 0) {
            return Err(ApiError::modified(kind.subject(name)));
        }
        match write(call, &old, &current, value.clone(), door, Managers::Follow(door)).await {
            Ok(stored) => {
                return render::written(call, StatusCode::OK, &stored, &warnings);
            }
            Err(PutError::Changed) if wanted.is_none() => {}
            Err(error) => return Err(error.into_error(kind.subject(name))),
        }
    }
    Err(ApiError::modified(kind.subject(name)))
}

async fn create_instead(
    call: &Call,
    mut value: Value,
    door: Subresource,
    warnings: &[String],
) -> Result<Response<Body>, ApiError> {
    let kind = call.target.kind;
    let may = door == Subresource::Main && CREATED_BY_UPDATE.contains(&kind.plural);
    if !may || named_revision(&value)?.is_some() {
        return Err(ApiError::not_found(call.target.subject()));
    }
    meta::of_mut(&mut value).shift_remove("uid");
    let stored = super::create::create_value(call, value, call.dry_run()?).await?;
    render::written(call, written(true), &stored, warnings)
}

/// The object's name and namespace are those of the path.
fn check_name(call: &Call, value: &mut Value, name: &str) -> Result<(), ApiError> {
    let given = meta::name(value).to_owned();
    if given.is_empty() {
        meta::of_mut(value).insert("name".into(), name.into());
    } else if given != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let Some(namespace) = call.namespace() else { return Ok(()) };
    let given = meta::text(value, "namespace").to_owned();
    if given.is_empty() {
        meta::of_mut(value).insert("namespace".into(), namespace.into());
    } else if given != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

fn check_preconditions(call: &Call, new: &Value, old: &Value) -> Result<(), ApiError> {
    let (wanted, found) = (meta::text(new, "uid"), meta::text(old, "uid"));
    if !wanted.is_empty() && wanted != found {
        return Err(ApiError::conflict(
            call.target.subject(),
            format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"),
        ));
    }
    Ok(())
}

/// Who manages the fields of an object that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Managers {
    /// The writer manages what it changes, where that is followed; recorded as written through this door.
    Follow(Subresource),
    /// As the new object says: the outcome of an apply.
    Settled,
}

/// Writes `new` over `old`, through a door. What ends the life of an object that was being deleted removes it.
pub(crate) async fn write(
    call: &Call,
    stored: &Stored,
    old: &Value,
    mut new: Value,
    door: Subresource,
    managers: Managers,
) -> Result<Stored, PutError> {
    let kind = call.target.kind;
    let name = meta::name(old).to_owned();
    kind.default(&mut new);
    kind.prepare_update(&mut new, old, door);
    if let Managers::Follow(through) = managers {
        let by = Writer { manager: apply::manager(call), door: through, now: jiff::Timestamp::now() };
        managed::updated(kind, old, &mut new, by);
    }
    let admitted = admission::update(call, &mut new, old, door).await?;
    let errors = kind.validate_update(&new, old, door);
    if !errors.is_empty() {
        return Err(kind.invalid(&name, &errors).into());
    }
    if call.dry_run()? {
        return Ok(Stored { bytes: encode(kind, new)?.1, revision: stored.revision });
    }
    if is_over(&new) {
        let key = Objects::key(kind, call.namespace(), &name)?;
        let bytes = encode(kind, new)?.1;
        let gone = call.state.objects.delete(kind, key, stored.revision).await?;
        admission::deleted(&call.state, kind, old);
        return Ok(Stored { bytes, revision: gone.revision });
    }
    set_revision(&mut new, stored.revision);
    if new == *old {
        // Nothing changed: no new revision, no event. Upstream does the same.
        return Ok(stored.clone());
    }
    let written = call.state.objects.put(kind, new, Expect::At(stored.revision)).await?;
    admitted.keep();
    Ok(written)
}

/// Whether a deletion that waited has nothing to wait for any more.
pub(crate) fn is_over(object: &Value) -> bool {
    let metadata = &object["metadata"];
    let deleting = metadata["deletionTimestamp"].is_string();
    let no_finalizers = metadata["finalizers"].as_array().is_none_or(Vec::is_empty);
    let no_grace = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0;
    let no_content =
        object["kind"] != "Namespace" || object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
    deleting && no_finalizers && no_grace && no_content
}
