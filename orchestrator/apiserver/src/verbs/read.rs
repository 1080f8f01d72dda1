//! get and list.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::{Response, StatusCode};
use pith_api::ApiError;
use pith_store::{Entry, Key, ListRequest, Prefix, Revision};
use serde_json::{Value, json};

use super::Call;
use crate::{
    admission,
    filter::Filter,
    http::Body,
    objects::{Objects, Stored, failed},
    render::{self, ListMeta},
};

/// Entries looked at in one go while a selector picks few of many.
const PAGE: usize = 500;

pub(crate) async fn get(call: &Call) -> Result<Response<Body>, ApiError> {
    let name = call.target.require_name()?;
    admission::read(call, Some(name)).await?;
    // The newest state is served whatever resourceVersion is asked for, unless it is not reached yet.
    await_revision(call, requested_revision(call)?).await?;
    let stored = call.state.objects.get(call.target.kind, call.namespace(), name).await?;
    render::object(call, StatusCode::OK, &stored)
}

/// `resourceVersion` of the query; `None` where it is absent.
pub(crate) fn requested_revision(call: &Call) -> Result<Option<Revision>, ApiError> {
    match call.query.get("resourceVersion") {
        "" => Ok(None),
        text => text
            .parse()
            .map(|number| Some(Revision(number)))
            .map_err(|_| ApiError::bad_request(format!("invalid resource version {text:?}: not a number"))),
    }
}

/// Fails for revisions that were never reached; this store has no replicas that could lag behind.
async fn await_revision(call: &Call, wanted: Option<Revision>) -> Result<(), ApiError> {
    let latest = call.state.objects.store.revision().await;
    let latest = latest.map_err(|error| failed(call.target.subject(), error))?;
    match wanted {
        Some(wanted) if wanted > latest => Err(ApiError::too_large_resource_version(wanted.0, latest.0)),
        _ => Ok(()),
    }
}

/// Where a list begins and for which revision it is true.
struct Start {
    after: Option<Key>,
    at: Option<Revision>,
    limit: Option<usize>,
}

pub(crate) async fn list(call: &Call) -> Result<Response<Body>, ApiError> {
    let filter = Filter::of(call.target.kind, &call.query)?;
    admission::read(call, filter.name()).await?;
    let prefix = Objects::prefix(call.target.kind, call.namespace())?;
    let start = start(call, &prefix).await?;
    let (entries, meta) = select(call, &filter, prefix, start).await?;
    let items: Vec<Stored> = entries.into_iter().map(Stored::from).collect();
    render::list(call, &items, &meta)
}

async fn start(call: &Call, prefix: &Prefix) -> Result<Start, ApiError> {
    let limit = call.query.number::<usize>("limit")?.filter(|limit| *limit > 0);
    let revision = requested_revision(call)?;
    let word = call.query.get("resourceVersionMatch");
    if !matches!(word, "" | "Exact" | "NotOlderThan") {
        return Err(ApiError::bad_request(format!(
            "resourceVersionMatch: Unsupported value: {word:?}: supported values: \"Exact\", \"NotOlderThan\""
        )));
    }
    let token = call.query.get("continue");
    if !token.is_empty() {
        if revision.is_some_and(|revision| revision.0 != 0) || !word.is_empty() {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let (at, after) = read_token(token, prefix)?;
        return Ok(Start { after: Some(after), at, limit });
    }
    if !word.is_empty() && revision.is_none() {
        return Err(ApiError::bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ));
    }
    if word == "Exact" && revision == Some(Revision(0)) {
        return Err(ApiError::bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
        ));
    }
    await_revision(call, revision).await?;
    // A page of an older list has to be of that list; any other is newest.
    Ok(Start { after: None, at: revision.filter(|_| word == "Exact"), limit })
}

/// Reads until the limit is reached or nothing is left; all of it true at one revision.
async fn select(
    call: &Call,
    filter: &Filter,
    prefix: Prefix,
    start: Start,
) -> Result<(Vec<Entry>, ListMeta), ApiError> {
    let everything = filter.is_everything();
    let mut request = ListRequest { prefix, limit: start.limit, after: start.after, at: start.at };
    if !everything && start.limit.is_some() {
        request.limit = Some(PAGE);
    }
    let mut chosen: Vec<Entry> = Vec::new();
    loop {
        let listing = call.state.objects.store.list(request.clone()).await;
        let listing = listing.map_err(|error| expired(call, &request, error))?;
        let mut meta = ListMeta { revision: listing.revision, ..ListMeta::default() };
        let last = listing.entries.last().map(|entry| entry.key.clone());
        for entry in listing.entries {
            if !everything && !filter.passes(&entry.key, &Stored::from(entry.clone()))? {
                continue;
            }
            if start.limit.is_some_and(|limit| chosen.len() == limit) {
                let last = chosen.last().map(|entry| entry.key.clone());
                meta.continues = last.map(|key| write_token(&request.prefix, &key, listing.revision));
                return Ok((chosen, meta));
            }
            chosen.push(entry);
        }
        if listing.remaining == 0 {
            return Ok((chosen, meta));
        }
        if everything {
            meta.remaining = Some(listing.remaining);
            meta.continues = last.map(|key| write_token(&request.prefix, &key, listing.revision));
            return Ok((chosen, meta));
        }
        request.after = last;
        request.at = Some(listing.revision);
    }
}

/// A page whose revision is forgotten.
fn expired(call: &Call, request: &ListRequest, error: pith_store::Error) -> ApiError {
    match (&error, &request.after) {
        (pith_store::Error::Compacted { .. }, Some(_)) => ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You must start a new \
             list without the continue parameter.",
        ),
        _ => failed(call.target.subject(), error),
    }
}

/// The token says behind which key and at which revision; revision 0 is "whatever is there".
fn write_token(prefix: &Prefix, key: &Key, revision: Revision) -> String {
    let start = &key.as_str()[prefix.as_str().len()..];
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision.0, "start": start});
    BASE64_URL_SAFE_NO_PAD.encode(token.to_string())
}

fn read_token(token: &str, prefix: &Prefix) -> Result<(Option<Revision>, Key), ApiError> {
    let bad = || ApiError::bad_request("continue key is not valid");
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    let revision = value["rv"].as_u64().ok_or_else(bad)?;
    let key = prefix.key_after(value["start"].as_str().ok_or_else(bad)?).map_err(|_| bad())?;
    Ok((Some(Revision(revision)).filter(|revision| revision.0 != 0), key))
}
