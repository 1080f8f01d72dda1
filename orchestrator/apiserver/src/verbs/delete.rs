//! delete and deletecollection: at once, after a grace period, or when the finalizers are done.
//!
//! ```text
//!            ┌ nothing to wait for ───────────────────────────► removed, DELETED
//!  DELETE ───┤ finalizers (own, orphan, foreground, namespace) ► deletionTimestamp ─ last one gone ─► removed
//!            └ a pod on a node, grace > 0 ────────────────────► deletionTimestamp ─ kubelet: grace 0 ► removed
//! ```

use http::{Response, StatusCode};
use pith_api::{ApiError, Kind, codec, meta, status};
use pith_store::{Expect, ListRequest, Revision};
use serde_json::{Value, json};

use super::{Call, read_body, update::MAX_TRIES, update::is_over};
use crate::{
    admission,
    filter::Filter,
    http::{Body, RequestBody},
    objects::{Objects, PutError, Stored, encode, failed},
    render,
};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Upstream's default where a pod does not say.
const DEFAULT_GRACE_S: i64 = 30;

/// What `DeleteOptions` say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) grace_s: Option<i64>,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) uid: Option<String>,
    pub(crate) revision: Option<String>,
    pub(crate) dry_run: bool,
}

/// What becomes of the objects that an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Orphan,
    Background,
    Foreground,
}

impl Options {
    /// From the body, then the query.
    pub(crate) async fn read(call: &Call, body: RequestBody) -> Result<Self, ApiError> {
        let body = read_body(body).await?;
        let given = codec::decode_options("DeleteOptions", call.content_type(), &body)?;
        Self::of(call, &given)
    }

    pub(crate) fn of(call: &Call, given: &Value) -> Result<Self, ApiError> {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let mut options = Self {
            grace_s: given["gracePeriodSeconds"].as_i64(),
            propagation: None,
            uid: text(&given["preconditions"]["uid"]),
            revision: text(&given["preconditions"]["resourceVersion"]),
            dry_run: call.dry_run()?,
        };
        if let Some(entries) = given["dryRun"].as_array()
            && !entries.is_empty()
        {
            match entries.iter().all(|entry| entry == "All") {
                true => options.dry_run = true,
                false => return Err(ApiError::bad_request("unsupported dryRun value; supported: \"All\"")),
            }
        }
        if options.grace_s.is_none() {
            options.grace_s = call.query.number("gracePeriodSeconds")?;
        }
        let word = match given["propagationPolicy"].as_str() {
            Some(word) => word.to_owned(),
            None => call.query.get("propagationPolicy").to_owned(),
        };
        options.propagation = match word.as_str() {
            "" => None,
            "Orphan" => Some(Propagation::Orphan),
            "Background" => Some(Propagation::Background),
            "Foreground" => Some(Propagation::Foreground),
            other => {
                return Err(ApiError::bad_request(format!(
                    "propagationPolicy: Unsupported value: {other:?}: supported values: \"Background\", \
                     \"Foreground\", \"Orphan\""
                )));
            }
        };
        if options.propagation.is_none() {
            let orphan = given["orphanDependents"].as_bool();
            options.propagation =
                orphan.map(|orphan| if orphan { Propagation::Orphan } else { Propagation::Background });
        }
        if options.grace_s.is_some_and(|seconds| seconds < 0) {
            // Upstream: a negative grace period means one second.
            options.grace_s = Some(1);
        }
        Ok(options)
    }
}

pub(crate) async fn delete(call: &Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let options = Options::read(call, body).await?;
    let name = call.target.require_name()?;
    let outcome = delete_one(call, name, &options).await?;
    let kind = call.target.kind;
    match outcome {
        // Kinds whose last state clients want to see; for the others a word is enough.
        Outcome::Removed(last) if !returns_object(kind) => {
            let mut subject = kind.subject(name);
            subject.uid = meta::text(&last.value(kind)?, "uid").to_owned();
            Ok(render::value(call, StatusCode::OK, status::success(&subject)))
        }
        Outcome::Removed(last) | Outcome::Waiting(last) => render::object(call, StatusCode::OK, &last),
    }
}

fn returns_object(kind: &Kind) -> bool {
    let kinds = [
        "pods",
        "services",
        "serviceaccounts",
        "persistentvolumes",
        "persistentvolumeclaims",
        "resourcequotas",
    ];
    kind.group.is_empty() && kinds.contains(&kind.plural)
}

/// What a deletion led to.
pub(crate) enum Outcome {
    Removed(Stored),
    /// It will go when its grace period or its finalizers are done.
    Waiting(Stored),
}

/// Deletes an object; tries again while others change it.
pub(crate) async fn delete_one(call: &Call, name: &str, options: &Options) -> Result<Outcome, ApiError> {
    let kind = call.target.kind;
    for _ in 0..MAX_TRIES {
        let stored = call.state.objects.get(kind, call.namespace(), name).await?;
        match delete_stored(call, name, &stored, options).await {
            Err(PutError::Changed) => {}
            Err(PutError::Other(error)) => return Err(error),
            Ok(outcome) => return Ok(outcome),
        }
    }
    Err(ApiError::modified(kind.subject(name)))
}

async fn delete_stored(
    call: &Call,
    name: &str,
    stored: &Stored,
    options: &Options,
) -> Result<Outcome, PutError> {
    let kind = call.target.kind;
    let old = stored.value(kind)?;
    check_preconditions(call, &old, options)?;
    admission::delete(call, &old)?;
    let mut new = old.clone();
    mark(kind, &mut new, options);
    if options.dry_run {
        return Ok(Outcome::Waiting(Stored { bytes: encode(kind, new)?.1, revision: stored.revision }));
    }
    if is_over(&new) {
        let key = Objects::key(kind, call.namespace(), name)?;
        let gone = call.state.objects.delete(kind, key, stored.revision).await?;
        admission::deleted(&call.state, kind, &old);
        // Clients see the object as it was last, at the revision of its end.
        let last = if returns_object(kind) { encode(kind, new)?.1 } else { stored.bytes.clone() };
        return Ok(Outcome::Removed(Stored { bytes: last, revision: gone.revision }));
    }
    let (_, bytes) = encode(kind, new.clone())?;
    if bytes == stored.bytes {
        return Ok(Outcome::Waiting(stored.clone()));
    }
    Ok(Outcome::Waiting(call.state.objects.put(kind, new, Expect::At(stored.revision)).await?))
}

fn check_preconditions(call: &Call, old: &Value, options: &Options) -> Result<(), ApiError> {
    let failed = |what: &str, wanted: &str, found: &str| {
        ApiError::conflict(
            call.target.kind.subject(meta::name(old)),
            format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"),
        )
    };
    let found = meta::text(old, "uid");
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != found) {
        return Err(failed("UID", wanted, found));
    }
    let found = meta::text(old, "resourceVersion");
    if let Some(wanted) = options.revision.as_deref().filter(|wanted| *wanted != found) {
        return Err(failed("ResourceVersion", wanted, found));
    }
    Ok(())
}

/// Turns an object into one that is being deleted.
fn mark(kind: &Kind, object: &mut Value, options: &Options) {
    let grace_s = grace(kind, object, options);
    set_finalizers(object, options.propagation);
    let now = jiff::Timestamp::now();
    let was_deleting = object["metadata"]["deletionTimestamp"].is_string();
    let had_grace_s = object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let metadata = meta::of_mut(object);
    // A second request may only shorten the time that is left.
    if !was_deleting || grace_s < had_grace_s {
        let end = now + jiff::SignedDuration::from_secs(grace_s);
        metadata.insert("deletionTimestamp".into(), pith_api::time::seconds(end).into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace_s.into());
        if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
            metadata.insert("generation".into(), (generation + 1).into());
        }
    }
    if kind.plural == "namespaces" && kind.group.is_empty() {
        object["status"]["phase"] = "Terminating".into();
    }
}

/// Only pods have a grace period, and only those that run somewhere need it.
fn grace(kind: &Kind, object: &Value, options: &Options) -> i64 {
    if kind.plural != "pods" || !kind.group.is_empty() {
        return 0;
    }
    let unscheduled = object["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let finished = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unscheduled || finished {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64();
    options.grace_s.or(own).unwrap_or(DEFAULT_GRACE_S).max(0)
}

/// Orphaning and foreground deletion are finalizers that the garbage collector removes when it is done.
fn set_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let metadata = meta::of_mut(object);
    let mut finalizers: Vec<String> = metadata
        .get("finalizers")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(|entry| entry.as_str().map(str::to_owned)).collect())
        .unwrap_or_default();
    let Some(propagation) = propagation else { return };
    finalizers.retain(|entry| entry != ORPHAN && entry != FOREGROUND);
    match propagation {
        Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
        Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
        Propagation::Background => {}
    }
    match finalizers.is_empty() {
        true => metadata.shift_remove("finalizers"),
        false => metadata.insert("finalizers".into(), json!(finalizers)),
    };
}

/// Deletes what the selectors name; answers with what it was.
pub(crate) async fn delete_collection(call: &Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let options = Options::read(call, body).await?;
    let kind = call.target.kind;
    if kind.namespaced && call.namespace().is_none() {
        return Err(ApiError::method_not_allowed(call.target.subject(), "DELETE"));
    }
    let filter = Filter::of(kind, &call.query)?;
    let prefix = Objects::prefix(kind, call.namespace())?;
    let listing = call.state.objects.store.list(ListRequest::all(prefix)).await;
    let listing = listing.map_err(|error| failed(call.target.subject(), error))?;
    let mut gone = Vec::new();
    let mut revision: Revision = listing.revision;
    for entry in listing.entries {
        let key = entry.key.clone();
        if !filter.passes(&key, &Stored::from(entry))? {
            continue;
        }
        match delete_one(call, key.name(), &options).await {
            Ok(Outcome::Removed(last) | Outcome::Waiting(last)) => {
                revision = revision.max(last.revision);
                gone.push(last);
            }
            // Someone else deleted it meanwhile, which is what was wanted.
            Err(error) if error.reason == pith_api::Reason::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    render::list(call, &gone, &render::ListMeta { revision, ..render::ListMeta::default() })
}
