//! `serviceaccounts/<name>/token`: a token for an account, bound to a pod where asked for.

use http::{Response, StatusCode};
use pith_api::{ApiError, Subject, meta};
use serde_json::{Value, json};

use super::{Call, read_body};
use crate::{
    http::{Body, RequestBody},
    render,
    service_tokens::{Reference, Wanted},
};

pub(crate) async fn create(call: &Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let body = read_body(body).await?;
    let request_kind = pith_api::find_kind("authentication.k8s.io", "v1", "TokenRequest")
        .expect("the table of kinds has TokenRequest");
    let (mut request, _) = request_kind.decode(call.content_type(), &body, call.validation()?)?;
    let kind = call.target.kind;
    let (namespace, name) = (call.namespace().unwrap_or_default(), call.target.require_name()?);
    let account = call.state.objects.get(kind, Some(namespace), name).await?.value(kind)?;

    let spec = &request["spec"];
    let audiences = spec["audiences"].as_array().into_iter().flatten();
    let audiences = audiences.filter_map(|audience| audience.as_str().map(str::to_owned)).collect();
    let lifetime_s = spec["expirationSeconds"].as_i64();
    let bound = bound_object(call, namespace, name, &spec["boundObjectRef"]).await?;
    let is_pod = bound.as_ref().is_some_and(|(kind, _, _)| kind == "Pod");
    let node = match &bound {
        Some((_, object, _)) if is_pod => node_of(call, object).await?,
        _ => None,
    };
    let reference = bound.map(|(_, _, reference)| reference);
    let wanted = Wanted {
        namespace,
        account: Reference { name: name.to_owned(), uid: meta::text(&account, "uid").to_owned() },
        pod: reference.clone().filter(|_| is_pod),
        secret: reference.filter(|_| !is_pod),
        node,
        audiences,
        lifetime_s,
    };
    let (token, expiry_s) = call.state.tokens.issue(wanted)?;
    let expiry = jiff::Timestamp::from_second(i64::try_from(expiry_s).unwrap_or(i64::MAX));
    let expiry = expiry.map_err(ApiError::internal)?;
    request["metadata"] = json!({
        "name": name, "namespace": namespace,
        "creationTimestamp": pith_api::time::seconds(jiff::Timestamp::now()),
    });
    request["status"] = json!({"token": token, "expirationTimestamp": pith_api::time::seconds(expiry)});
    Ok(render::value(call, StatusCode::CREATED, request))
}

/// What the token is to die with. A node may only ask for tokens of its own pods' accounts.
async fn bound_object(
    call: &Call,
    namespace: &str,
    account: &str,
    reference: &Value,
) -> Result<Option<(String, Value, Reference)>, ApiError> {
    let forbidden =
        |why: &str| ApiError::forbidden(Subject::new("", "serviceaccounts", account), why.to_owned());
    let kind_name = reference["kind"].as_str().unwrap_or_default();
    let plural = match kind_name {
        "Pod" => "pods",
        "Secret" => "secrets",
        "" if call.who.node().is_some() => return Err(forbidden("a node's request must be bound to a pod")),
        "" => return Ok(None),
        other => return Err(ApiError::bad_request(format!("cannot bind token to object of type {other}"))),
    };
    let kind = pith_api::find("", "v1", plural).expect("a core kind");
    let name = reference["name"].as_str().unwrap_or_default();
    let object = call.state.objects.get(kind, Some(namespace), name).await?.value(kind)?;
    let found = meta::text(&object, "uid").to_owned();
    let wanted = reference["uid"].as_str().unwrap_or_default();
    if !wanted.is_empty() && wanted != found {
        return Err(ApiError::conflict(
            kind.subject(name),
            format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        ));
    }
    if let Some(node) = call.who.node()
        && (plural != "pods"
            || object["spec"]["nodeName"] != node
            || object["spec"]["serviceAccountName"] != account)
    {
        return Err(forbidden("a node may only ask for tokens of accounts of pods that run on it"));
    }
    Ok(Some((kind_name.to_owned(), object, Reference { name: name.to_owned(), uid: found })))
}

async fn node_of(call: &Call, pod: &Value) -> Result<Option<Reference>, ApiError> {
    let Some(name) = pod["spec"]["nodeName"].as_str().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let kind = pith_api::find("", "v1", "nodes").expect("a core kind");
    let node = call.state.objects.value(kind, None, name).await?;
    Ok(node.map(|node| Reference { name: name.to_owned(), uid: meta::text(&node, "uid").to_owned() }))
}
