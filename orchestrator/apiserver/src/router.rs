//! From a request to the verb that answers it: authenticate, find the place, authorize, carry out.

use std::sync::Arc;

use http::{Method, Request, Response};
use pith_api::{ApiError, Subresource};

use crate::{
    accept,
    authn::{Proof, authenticate},
    authz::{Attributes, path_refusal, refusal},
    filter::Filter,
    http::{Body, RequestBody, failure},
    identity::Identity,
    paths,
    request::{Place, Query, Target, Verb, place, verb},
    state::State,
    verbs::{Call, create, delete, patch, read, subresources, update, watch},
};

/// Answers a request; failures become Status objects.
pub(crate) async fn handle(state: Arc<State>, request: Request<RequestBody>) -> Response<Body> {
    let mut seen = Seen::default();
    let head = request.method() == Method::HEAD;
    let response = match route(&state, request, &mut seen).await {
        Ok(response) => response,
        Err(error) => {
            tracing::debug!(code = error.code(), message = %error, "refused");
            failure(&error)
        }
    };
    state.metrics.answered(seen.verb, seen.resource, response.status());
    match head {
        true => response.map(|_| crate::http::full("")),
        false => response,
    }
}

/// What a request turned out to be about, for the metrics.
#[derive(Default)]
struct Seen {
    verb: &'static str,
    resource: &'static str,
}

async fn route(
    state: &Arc<State>,
    request: Request<RequestBody>,
    seen: &mut Seen,
) -> Result<Response<Body>, ApiError> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let who = authenticate(state, parts.extensions.get::<Proof>(), &parts.headers).await?;
    let target = match place(&path) {
        Ok(Place::Resource(target)) => target,
        Ok(other) => {
            authorize_path(state, &who, &parts.method, &path)?;
            seen.verb = "get";
            return paths::handle(state, other, &parts).await;
        }
        Err(error) => {
            // Nobody learns what is there without saying who they are.
            if who.is_anonymous() { return Err(ApiError::unauthorized()) } else { return Err(error) }
        }
    };
    let query = Query::of(&parts);
    let Some(verb) = verb(&parts.method, &target, &query) else {
        return Err(ApiError::method_not_allowed(target.subject(), parts.method.as_str()));
    };
    (seen.verb, seen.resource) = (verb.as_str(), target.kind.plural);
    authorize(state, &who, verb, &target, &query)?;
    let form = match streams(&target) {
        true => accept::Form::Objects,
        false => accept::form(&parts.headers)?,
    };
    let call = Call {
        state: state.clone(),
        who,
        target,
        query,
        headers: parts.headers.clone(),
        uri: parts.uri.clone(),
        form,
        takes_gzip: accept::takes_gzip(&parts.headers),
    };
    if verb == Verb::Watch {
        return watch::watch(call).await;
    }
    if streams(&call.target) {
        return subresources::dispatch(&call, verb, parts, body).await;
    }
    let _permit = state
        .in_flight
        .try_acquire()
        .map_err(|_| ApiError::too_many_requests("Too many requests, please try again later.", 1))?;
    if call.target.subresource.is_some() {
        return subresources::dispatch(&call, verb, parts, body).await;
    }
    if !call.target.kind.verbs.contains(&verb.as_str()) {
        return Err(ApiError::method_not_allowed(call.target.subject(), parts.method.as_str()));
    }
    match verb {
        Verb::Get => read::get(&call).await,
        Verb::List => read::list(&call).await,
        Verb::Create if !call.target.kind.is_stored() => subresources::create_unstored(&call, body).await,
        Verb::Create => create::create(&call, body).await,
        Verb::Update => update::update(&call, body, Subresource::Main).await,
        Verb::Patch => patch::patch(&call, body, Subresource::Main).await,
        Verb::Delete => delete::delete(&call, body).await,
        Verb::DeleteCollection => delete::delete_collection(&call, body).await,
        Verb::Watch => Err(ApiError::internal("watches are answered above")),
    }
}

/// Requests that last as long as somebody reads them.
fn streams(target: &Target) -> bool {
    matches!(target.subresource.as_deref(), Some("log" | "exec" | "attach" | "portforward" | "proxy"))
}

fn authorize_path(state: &State, who: &Identity, method: &Method, path: &str) -> Result<(), ApiError> {
    if state.authorizer.may_request(who, method, path) {
        return Ok(());
    }
    match who.is_anonymous() {
        true => Err(ApiError::unauthorized()),
        false => Err(path_refusal(who, method, path)),
    }
}

pub(crate) fn authorize(
    state: &State,
    who: &Identity,
    verb: Verb,
    target: &Target,
    query: &Query,
) -> Result<(), ApiError> {
    if who.is_anonymous() {
        return Err(ApiError::unauthorized());
    }
    // A list or watch of one name counts as one of that object.
    let filter = Filter::of(target.kind, query).ok();
    let selected = filter.as_ref().and_then(Filter::name);
    let name = target.name.as_deref().or(selected).unwrap_or_default();
    // Below namespaces/<name> the namespace is that one.
    let namespace = match (target.kind.group, target.kind.plural) {
        ("", "namespaces") => name,
        _ => target.namespace.as_deref().unwrap_or_default(),
    };
    let subresource = target.subresource.as_deref();
    let what = Attributes {
        verb: verb.for_authorization(subresource).as_str(),
        group: target.kind.group,
        resource: target.kind.plural,
        subresource: subresource.unwrap_or_default(),
        namespace,
        name,
        selected_node: filter.as_ref().and_then(Filter::node),
    };
    match state.authorizer.may(who, &what) {
        true => Ok(()),
        false => Err(refusal(who, &what)),
    }
}
