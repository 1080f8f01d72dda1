//! Objects live in namespaces that exist and are not being emptied.

use pith_api::{ApiError, meta, status::StatusCause};
use serde_json::{Value, json};

use crate::verbs::Call;

/// Without these the cluster does not work (upstream: `NamespaceLifecycle`'s immortal namespaces).
const PROTECTED: &[&str] = &["default", "kube-system", "kube-public"];

pub(super) async fn create(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let kind = call.target.kind;
    if (kind.group, kind.plural) == ("", "namespaces") {
        // The namespace controller empties a namespace before this finalizer goes.
        object["spec"]["finalizers"] = json!(["kubernetes"]);
        object["status"] = json!({"phase": "Active"});
        return Ok(());
    }
    let Some(namespace) = call.namespace().filter(|_| kind.namespaced) else { return Ok(()) };
    let namespaces = pith_api::find("", "v1", "namespaces").expect("a core kind");
    let Some(found) = call.state.objects.value(namespaces, None, namespace).await? else {
        return Err(ApiError::not_found(namespaces.subject(namespace)));
    };
    if found["metadata"]["deletionTimestamp"].is_string() {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut error = ApiError::forbidden(kind.subject(meta::name(object)), why);
        error.causes.push(StatusCause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        });
        return Err(error);
    }
    Ok(())
}

pub(super) fn delete(call: &Call, old: &Value) -> Result<(), ApiError> {
    let kind = call.target.kind;
    if (kind.group, kind.plural) == ("", "namespaces") && PROTECTED.contains(&meta::name(old)) {
        return Err(ApiError::forbidden(kind.subject(meta::name(old)), "this namespace may not be deleted"));
    }
    Ok(())
}
