//! create.

use http::{Response, StatusCode};
use pith_api::{ApiError, meta};
use pith_store::Expect;
use rand::{Rng, distr::slice::Choose};
use serde_json::Value;

use super::{Call, read_body};
use crate::{
    admission,
    http::{Body, RequestBody, warn},
    objects::{Stored, encode},
    render,
};

/// Characters of generated names, and their number: upstream's `utilrand.String(5)`, without vowels and what
/// looks alike.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const NAME_CHARS: usize = 5;

/// Further tries for a generated name that is taken (upstream: `maxNameGenerationCreateAttempts` 8).
const NAME_TRIES: usize = 8;

pub(crate) async fn create(call: &Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let body = read_body(body).await?;
    let kind = call.target.kind;
    let (value, warnings) = kind.decode(call.content_type(), &body, call.validation()?)?;
    if call.target.name.is_some() {
        return Err(ApiError::method_not_allowed(call.target.subject(), "POST"));
    }
    let mut stored = create_value(call, value, call.dry_run()?).await?;
    // The answer to a dry run has no resourceVersion.
    match call.dry_run()? {
        true => {
            let mut value = stored.value(kind)?;
            meta::of_mut(&mut value).shift_remove("resourceVersion");
            stored.bytes = serde_json::to_vec(&value).map_err(ApiError::internal)?.into();
            let value = render::shown(call, kind, call.form, value)?;
            let mut response = render::value(call, StatusCode::CREATED, value);
            warn(&mut response, &warnings);
            warn(&mut response, &admission::warnings(call, &stored)?);
            Ok(response)
        }
        false => render::written(call, StatusCode::CREATED, &stored, &warnings),
    }
}

/// Creates a decoded object; a generated name that is taken is generated again.
pub(crate) async fn create_value(call: &Call, value: Value, dry_run: bool) -> Result<Stored, ApiError> {
    if !meta::name(&value).is_empty() || meta::text(&value, "generateName").is_empty() {
        return create_once(call, value, dry_run).await;
    }
    let mut tries = NAME_TRIES;
    loop {
        tries -= 1;
        match create_once(call, value.clone(), dry_run).await {
            Err(error) if error.reason == pith_api::Reason::AlreadyExists => {
                if tries == 0 {
                    return Err(ApiError::generate_name_conflict(*error.subject.unwrap_or_default()));
                }
            }
            done => return done,
        }
    }
}

async fn create_once(call: &Call, mut value: Value, dry_run: bool) -> Result<Stored, ApiError> {
    let kind = call.target.kind;
    place(call, &mut value)?;
    kind.default(&mut value);
    kind.prepare_create(&mut value);
    stamp(&mut value);
    let admitted = admission::create(call, &mut value).await?;
    let errors = kind.validate_create(&value);
    if !errors.is_empty() {
        return Err(kind.invalid(meta::name(&value), &errors));
    }
    if dry_run {
        return Ok(Stored { bytes: encode(kind, value)?.1, revision: pith_store::Revision(0) });
    }
    let subject = kind.subject(meta::name(&value));
    let stored = call.state.objects.put(kind, value, Expect::Absent).await;
    let stored = stored.map_err(|error| error.into_error(subject))?;
    admitted.keep();
    Ok(stored)
}

/// Settles name and namespace.
fn place(call: &Call, value: &mut Value) -> Result<(), ApiError> {
    let kind = call.target.kind;
    let given = meta::text(value, "namespace").to_owned();
    if kind.namespaced {
        let Some(namespace) = call.namespace() else {
            return Err(ApiError::method_not_allowed(call.target.subject(), "POST"));
        };
        if !given.is_empty() && given != namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        meta::of_mut(value).insert("namespace".into(), namespace.into());
    }
    if !meta::text(value, "resourceVersion").is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let prefix = meta::text(value, "generateName").to_owned();
    if meta::name(value).is_empty() {
        if prefix.is_empty() {
            // Validation says that the name is required.
            return Ok(());
        }
        let name = meta::generated_name(&prefix, &random_suffix());
        meta::of_mut(value).insert("name".into(), name.into());
    }
    Ok(())
}

fn random_suffix() -> String {
    let alphabet = Choose::new(NAME_ALPHABET).expect("the alphabet is not empty");
    rand::rng().sample_iter(alphabet).take(NAME_CHARS).map(|byte| char::from(*byte)).collect()
}

/// What only the server sets.
fn stamp(value: &mut Value) {
    let metadata = meta::of_mut(value);
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), pith_api::time::seconds(jiff::Timestamp::now()).into());
}
