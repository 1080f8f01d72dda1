//! Server-side apply: a PATCH that says what its sender wants of an object, which need not exist yet.

use http::{Response, StatusCode};
use jiff::Timestamp;
use pith_api::{
    ApiError, FieldError, Reason, Subject, Subresource,
    managed::{self, Writer},
};
use serde_json::Value;

use super::{
    Call, create,
    patch::check_identity,
    read_body,
    update::{MAX_TRIES, Managers, write},
    written,
};
use crate::{
    http::{Body, RequestBody},
    objects::{PutError, Stored},
    render,
    request::Verb,
    router,
};

const MEDIA_TYPE: &str = "application/apply-patch+yaml";
/// The bytes of a manager's name (upstream: `FieldManagerMaxLength`).
const MANAGER_MAX: usize = 128;

/// Whether a PATCH of this content type is an apply.
pub(crate) fn is_apply(content_type: &str) -> bool {
    content_type.split(';').next().unwrap_or_default().trim() == MEDIA_TYPE
}

/// For what can be patched but not applied.
pub(crate) fn refuse(content_type: &str) -> Result<(), ApiError> {
    match is_apply(content_type) {
        true => Err(ApiError::new(Reason::UnsupportedMediaType, "a Scale cannot be applied: patch it")),
        false => Ok(()),
    }
}

/// The name under which a write of this request is recorded.
pub(crate) fn manager(call: &Call) -> &str {
    match call.query.get("fieldManager") {
        "" => {
            let agent = call.headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok());
            let name = agent.unwrap_or_default().split('/').next().unwrap_or_default();
            if name.is_empty() { "unknown" } else { name }
        }
        given => given,
    }
}

fn check_manager(name: &str) -> Result<(), ApiError> {
    let error = match name.len() {
        0 => FieldError::required("fieldManager", "is required for apply patch"),
        1..=MANAGER_MAX => return Ok(()),
        _ => FieldError::too_long("fieldManager", MANAGER_MAX),
    };
    Err(ApiError::invalid(Subject::new("meta.k8s.io", "PatchOptions", ""), &[error]))
}

pub(crate) async fn apply(
    call: &Call,
    body: RequestBody,
    door: Subresource,
) -> Result<Response<Body>, ApiError> {
    check_manager(call.query.get("fieldManager"))?;
    let force = call.query.flag("force");
    let body = read_body(body).await?;
    let kind = call.target.kind;
    let name = call.target.require_name()?;
    let (config, warnings) = kind.decode("application/yaml", &body, call.validation()?)?;
    let answer = |status: StatusCode, stored: Stored| render::written(call, status, &stored, &warnings);
    for _ in 0..MAX_TRIES {
        let by = Writer { manager: call.query.get("fieldManager"), door, now: Timestamp::now() };
        let Some(old) = call.state.objects.find(kind, call.namespace(), name).await? else {
            match create_applied(call, &config, by, force).await {
                // Someone else created it meanwhile: then it is changed.
                Err(error) if error.reason == Reason::AlreadyExists => continue,
                created => return answer(written(true), created?),
            }
        };
        let current = old.value(kind)?;
        let mut new = managed::apply(kind, Some(&current), &config, by, force)?;
        check_identity(call, &mut new, &current)?;
        if config["metadata"]["resourceVersion"]
            .as_str()
            .is_some_and(|given| given != old.revision.to_string())
        {
            return Err(ApiError::modified(kind.subject(name)));
        }
        match write(call, &old, &current, new, door, Managers::Settled).await {
            Ok(stored) => return answer(StatusCode::OK, stored),
            Err(PutError::Changed) => {}
            Err(PutError::Other(error)) => return Err(error),
        }
    }
    Err(ApiError::modified(kind.subject(name)))
}

async fn create_applied(
    call: &Call,
    config: &Value,
    by: Writer<'_>,
    force: bool,
) -> Result<Stored, ApiError> {
    if by.door != Subresource::Main {
        return Err(ApiError::not_found(call.target.subject()));
    }
    // An apply that creates needs the right to create as well.
    router::authorize(&call.state, &call.who, Verb::Create, &call.target, &call.query)?;
    let mut new = managed::apply(call.target.kind, None, config, by, force)?;
    let identity =
        serde_json::json!({ "metadata": { "name": call.target.name, "namespace": call.namespace() } });
    check_identity(call, &mut new, &identity)?;
    create::create_value(call, new, call.dry_run()?).await
}
