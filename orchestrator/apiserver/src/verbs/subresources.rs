//! What lies below an object: status, scale, binding, eviction, tokens, streams.

use http::{Response, StatusCode, request::Parts};
use pith_api::{ApiError, FieldValidation, Kind, Subresource, meta, patch::Patch, scale};
use pith_store::Expect;
use serde_json::{Value, json};

use super::{
    Call, apply,
    delete::{Options, delete_one},
    patch::patch,
    questions, read, read_body, token,
    update::{MAX_TRIES, Managers, update, write},
};
use crate::{
    http::{Body, RequestBody},
    objects::{PutError, named_revision},
    render,
    request::Verb,
    stream_proxy,
};

/// Carries out a verb on the target's subresource.
pub(crate) async fn dispatch(
    call: &Call,
    verb: Verb,
    parts: Parts,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let kind = call.target.kind;
    let name = call.target.subresource.as_deref().unwrap_or_default();
    let known = kind.subresource(name).ok_or_else(ApiError::no_such_path)?;
    let refused = || ApiError::method_not_allowed(call.target.subject(), parts.method.as_str());
    if name != "proxy" && !known.verbs.contains(&verb.as_str()) {
        return Err(refused());
    }
    match (name, verb) {
        ("log" | "exec" | "attach" | "portforward" | "proxy", _) => {
            stream_proxy::handle(call, name, parts, body).await
        }
        ("scale", Verb::Get) => get_scale(call).await,
        ("scale", Verb::Update | Verb::Patch) => change_scale(call, verb, body).await,
        ("binding", Verb::Create) => {
            let name = call.target.require_name()?.to_owned();
            bind(call, &name, body).await
        }
        ("eviction", Verb::Create) => evict(call, body).await,
        ("token", Verb::Create) => token::create(call, body).await,
        (_, Verb::Get) => read::get(call).await,
        (door, Verb::Update) => update(call, body, self::door(door)?).await,
        (door, Verb::Patch) => patch(call, body, self::door(door)?).await,
        _ => Err(refused()),
    }
}

fn door(name: &str) -> Result<Subresource, ApiError> {
    Ok(match name {
        "status" => Subresource::Status,
        "finalize" => Subresource::Finalize,
        "approval" => Subresource::Approval,
        "ephemeralcontainers" => Subresource::EphemeralContainers,
        "resize" => Subresource::Resize,
        _ => return Err(ApiError::no_such_path()),
    })
}

fn scale_kind() -> &'static Kind {
    pith_api::find_kind("autoscaling", "v1", "Scale").expect("the table of kinds has Scale")
}

async fn get_scale(call: &Call) -> Result<Response<Body>, ApiError> {
    let kind = call.target.kind;
    let stored = call.state.objects.get(kind, call.namespace(), call.target.require_name()?).await?;
    Ok(render::value(call, StatusCode::OK, scale::of(kind, &stored.value(kind)?)))
}

/// How a Scale is to be changed.
enum ScaleChange {
    Whole(Value),
    Patch(Patch),
}

async fn change_scale(call: &Call, verb: Verb, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let kind = call.target.kind;
    let name = call.target.require_name()?;
    apply::refuse(call.content_type())?;
    let body = read_body(body).await?;
    let change = match verb {
        Verb::Patch => ScaleChange::Patch(Patch::parse(call.content_type(), &body)?),
        _ => ScaleChange::Whole(scale_kind().decode(call.content_type(), &body, call.validation()?)?.0),
    };
    for _ in 0..MAX_TRIES {
        let stored = call.state.objects.get(kind, call.namespace(), name).await?;
        let current = stored.value(kind)?;
        let wanted = match &change {
            ScaleChange::Whole(value) => value.clone(),
            ScaleChange::Patch(patch) => {
                let patched = patch.apply(scale_kind(), &scale::of(kind, &current))?;
                scale_kind().decode_value(patched, call.validation()?)?.0
            }
        };
        if named_revision(&wanted)?.is_some_and(|wanted| wanted.0 != 0 && wanted != stored.revision) {
            return Err(ApiError::modified(kind.subject(name)));
        }
        let replicas = scale::replicas(&wanted);
        if replicas < 0 {
            let error = pith_api::FieldError::invalid(
                "spec.replicas",
                &json!(replicas),
                "must be greater than or equal to 0",
            );
            return Err(scale_kind().invalid(name, &[error]));
        }
        let mut new = current.clone();
        scale::apply(&wanted, &mut new);
        let managers = Managers::Follow(Subresource::Scale);
        match write(call, &stored, &current, new, Subresource::Main, managers).await {
            Ok(stored) => {
                return Ok(render::value(call, StatusCode::OK, scale::of(kind, &stored.value(kind)?)));
            }
            Err(PutError::Changed) => {}
            Err(PutError::Other(error)) => return Err(error),
        }
    }
    Err(ApiError::modified(kind.subject(name)))
}

fn pods() -> &'static Kind {
    pith_api::find("", "v1", "pods").expect("a core kind")
}

/// `pods/<name>/binding`, and `bindings` whose body names the pod: gives a pod to a node, once.
pub(crate) async fn bind(call: &Call, name: &str, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let body = read_body(body).await?;
    let kind = pith_api::find_kind("", "v1", "Binding").expect("the table of kinds has Binding");
    let (binding, _) = kind.decode(call.content_type(), &body, FieldValidation::Ignore)?;
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default();
    if !matches!(target["kind"].as_str(), None | Some("" | "Node")) || node.is_empty() {
        let error = pith_api::FieldError::required("target.name", "");
        return Err(kind.invalid(name, &[error]));
    }
    let name = match name.is_empty() {
        true => meta::name(&binding),
        false => name,
    };
    if call.dry_run()? {
        return Ok(render::value(call, StatusCode::CREATED, success()));
    }
    for _ in 0..MAX_TRIES {
        let stored = call.state.objects.get(pods(), call.namespace(), name).await?;
        let mut pod = stored.value(pods())?;
        assign(&mut pod, node, &binding)?;
        match call.state.objects.put(pods(), pod, Expect::At(stored.revision)).await {
            Ok(_) => return Ok(render::value(call, StatusCode::CREATED, success())),
            Err(PutError::Changed) => {}
            Err(PutError::Other(error)) => return Err(error),
        }
    }
    Err(ApiError::modified(pods().subject(name)))
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

fn assign(pod: &mut Value, node: &str, binding: &Value) -> Result<(), ApiError> {
    let name = meta::name(pod).to_owned();
    let conflict = |why: String| {
        let mut subject = pods().subject(&name);
        subject.kind = "pods/binding".to_owned();
        Err(ApiError::conflict(subject, why))
    };
    let wanted = meta::text(binding, "uid");
    if !wanted.is_empty() && wanted != meta::text(pod, "uid") {
        let found = meta::text(pod, "uid");
        return conflict(format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
        ));
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    match pod["spec"]["nodeName"].as_str() {
        None | Some("") => {}
        Some(other) => return conflict(format!("pod {name} is already assigned to node {other:?}")),
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    pod["spec"]["nodeName"] = node.into();
    if let Some(annotations) = binding["metadata"]["annotations"].as_object() {
        for (key, value) in annotations {
            pod["metadata"]["annotations"][key] = value.clone();
        }
    }
    let now = pith_api::time::seconds(jiff::Timestamp::now());
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
    });
    let conditions = &mut pod["status"]["conditions"];
    match conditions.as_array_mut() {
        Some(list) => {
            list.retain(|found| found["type"] != "PodScheduled");
            list.push(condition);
        }
        None => *conditions = json!([condition]),
    }
    Ok(())
}

/// Deletes a pod on behalf of whoever drains its node. Disruption budgets are not kinds of this server yet.
async fn evict(call: &Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let body = read_body(body).await?;
    let kind = pith_api::find_kind("policy", "v1", "Eviction").expect("the table of kinds has Eviction");
    let (eviction, _) = kind.decode(call.content_type(), &body, FieldValidation::Ignore)?;
    let options = Options::of(call, &eviction["deleteOptions"])?;
    delete_one(call, call.target.require_name()?, &options).await?;
    Ok(render::value(call, StatusCode::CREATED, success()))
}

/// Creates that are not objects: questions and bindings.
pub(crate) async fn create_unstored(call: &Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    match (call.target.kind.group, call.target.kind.kind) {
        ("", "Binding") => bind(call, "", body).await,
        _ => questions::create(call, body).await,
    }
}
