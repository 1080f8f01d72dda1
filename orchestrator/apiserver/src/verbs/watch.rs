//! watch: first what is there if asked for, then every change as a line of JSON.
//!
//! ```text
//!  Listing ──(no initial events wanted)──────────────► Following
//!     └─ ADDED for each, then BOOKMARK if asked for ──►    │ ADDED MODIFIED DELETED, BOOKMARK each minute
//!                                                          ├─ timeout, server stopping, client gone ─► end
//!                                                          └─ history forgotten ─► ERROR 410 ─► end
//! ```
//! A change counts by what the selectors make of it: an object that begins to match is ADDED, one that no longer
//! does is DELETED. The body is pulled by the client's reading; nothing is queued for a slow one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use pith_api::ApiError;
use pith_store::{Event, ListRequest, Revision, Watch};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Call, read::requested_revision};
use crate::{
    accept::Form,
    admission,
    filter::Filter,
    http::{Body, streamed},
    metrics::WatchGuard,
    objects::{Objects, Stored, failed},
    render::table,
};

/// Upstream sends bookmarks about once a minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// Where the client does not say, a watch ends after 30 to 60 minutes (`--min-request-timeout` 1800).
const MIN_TIMEOUT_S: u64 = 1800;

/// Marks the bookmark after the initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

pub(crate) async fn watch(call: Call) -> Result<Response<Body>, ApiError> {
    let filter = Filter::of(call.target.kind, &call.query)?;
    admission::read(&call, filter.name()).await?;
    let wanted = Wanted::of(&call)?;
    let body = match Follower::start(call, filter, wanted).await {
        Ok(follower) => streamed(futures::stream::unfold(follower, |mut follower| async move {
            follower.next().await.map(|chunk| (Ok(chunk), follower))
        })),
        // As upstream: the watch begins and at once ends with the error. Clients look for it there, and some
        // ask for the same revision for ever when the request itself fails with 410.
        Err(error) if error.code() == StatusCode::GONE.as_u16() => {
            let mut out = Vec::new();
            push_line(&mut out, "ERROR", error.to_status().to_string().as_bytes());
            streamed(futures::stream::iter([Ok(Bytes::from(out))]))
        }
        Err(error) => return Err(error),
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// What the query asks for.
struct Wanted {
    /// Behind which revision to begin; `None` with the state as it is.
    after: Option<Revision>,
    bookmarks: bool,
    /// A bookmark after the initial events.
    ends_initial: bool,
    timeout: Duration,
}

impl Wanted {
    fn of(call: &Call) -> Result<Self, ApiError> {
        let query = &call.query;
        let revision = requested_revision(call)?.filter(|revision| revision.0 != 0);
        let bookmarks = query.flag("allowWatchBookmarks");
        let initial = query.has("sendInitialEvents").then(|| query.flag("sendInitialEvents"));
        let word = query.get("resourceVersionMatch");
        match initial {
            Some(_) if word != "NotOlderThan" => {
                return Err(ApiError::bad_request(
                    "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to \
                     NotOlderThan",
                ));
            }
            None if !word.is_empty() => {
                return Err(ApiError::bad_request(
                    "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless \
                     sendInitialEvents is provided",
                ));
            }
            _ => {}
        }
        let after = match initial {
            Some(true) => None,
            // Without a revision to begin at there is none to continue from.
            _ => revision,
        };
        let timeout = match query.number::<u64>("timeoutSeconds")?.filter(|seconds| *seconds > 0) {
            Some(seconds) => Duration::from_secs(seconds),
            None => Duration::from_secs(rand::rng().random_range(MIN_TIMEOUT_S..2 * MIN_TIMEOUT_S)),
        };
        // `sendInitialEvents=false` begins with what comes next.
        let after = if initial == Some(false) && after.is_none() { Some(Revision(0)) } else { after };
        Ok(Self { after, bookmarks, ends_initial: initial == Some(true) && bookmarks, timeout })
    }
}

/// A watch that is being read.
struct Follower {
    call: Call,
    filter: Filter,
    source: Box<dyn Watch>,
    /// What is there, until it was sent.
    initial: Option<Bytes>,
    bookmarks: Option<Interval>,
    deadline: Instant,
    stopping: CancellationToken,
    /// Tables carry their columns once.
    columns_sent: bool,
    over: bool,
    _counted: WatchGuard,
}

impl Follower {
    async fn start(call: Call, filter: Filter, wanted: Wanted) -> Result<Self, ApiError> {
        let kind = call.target.kind;
        let store = &call.state.objects.store;
        let fail = |error| failed(call.target.subject(), error);
        let prefix = Objects::prefix(kind, call.namespace())?;
        let (initial, after) = match wanted.after {
            Some(Revision(0)) => (None, store.revision().await.map_err(fail)?),
            Some(after) => (None, after),
            None => {
                let listing = store.list(ListRequest::all(prefix.clone())).await.map_err(fail)?;
                let revision = listing.revision;
                (Some(listing), revision)
            }
        };
        let source = store.watch(prefix, after).await.map_err(fail)?;
        let start = Instant::now();
        let bookmarks = wanted.bookmarks.then(|| {
            let mut interval = interval_at(start + BOOKMARK_EVERY, BOOKMARK_EVERY);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        let mut follower = Self {
            filter,
            source,
            initial: None,
            bookmarks,
            deadline: start + wanted.timeout,
            stopping: call.state.stopping.clone(),
            columns_sent: false,
            over: false,
            _counted: call.state.metrics.watch_started(kind),
            call,
        };
        if let Some(listing) = initial {
            let mut out = Vec::new();
            for entry in listing.entries {
                let key = entry.key.clone();
                let stored = Stored::from(entry);
                if follower.filter.passes(&key, &stored)? {
                    follower.line(&mut out, "ADDED", &stored)?;
                }
            }
            if wanted.ends_initial {
                follower.bookmark(&mut out, listing.revision, true)?;
            }
            follower.initial = Some(out.into()).filter(|out: &Bytes| !out.is_empty());
        }
        Ok(follower)
    }

    /// The next lines; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(initial) = self.initial.take() {
            return Some(initial);
        }
        while !self.over {
            let mut out = Vec::new();
            let done = tokio::select! {
                // None of these loses anything when another is faster: the place in the history only moves with
                // an answer, ticks and deadlines stay due.
                events = self.source.next() => match events {
                    Ok(events) => self.changes(&mut out, &events),
                    Err(error) => Err(failed(self.call.target.subject(), error)),
                },
                () = tick(&mut self.bookmarks) => match self.source.progress().await {
                    Ok(revision) => self.bookmark(&mut out, revision, false),
                    Err(error) => Err(failed(self.call.target.subject(), error)),
                },
                () = sleep_until(self.deadline) => return None,
                () = self.stopping.cancelled() => return None,
            };
            if let Err(error) = done {
                self.over = true;
                push_line(&mut out, "ERROR", error.to_status().to_string().as_bytes());
            }
            if !out.is_empty() {
                return Some(out.into());
            }
        }
        None
    }

    fn changes(&mut self, out: &mut Vec<u8>, events: &[Arc<Event>]) -> Result<(), ApiError> {
        for event in events {
            if let Some((kind, stored)) = change(&self.filter, event)? {
                self.line(out, kind, &stored)?;
            }
        }
        Ok(())
    }

    fn line(&mut self, out: &mut Vec<u8>, what: &str, stored: &Stored) -> Result<(), ApiError> {
        let kind = self.call.target.kind;
        let object = match self.call.form {
            Form::Objects => stored.json(kind)?,
            Form::Metadata => stored.metadata_json(kind)?,
            Form::Table => self.row(stored.value(kind)?)?.to_string().into_bytes(),
        };
        push_line(out, what, &object);
        Ok(())
    }

    fn row(&mut self, value: Value) -> Result<Value, ApiError> {
        let mut table = table(&self.call, self.call.target.kind, value)?;
        if self.columns_sent {
            table["columnDefinitions"] = Value::Null;
        }
        self.columns_sent = true;
        Ok(table)
    }

    fn bookmark(&mut self, out: &mut Vec<u8>, revision: Revision, initial: bool) -> Result<(), ApiError> {
        let kind = self.call.target.kind;
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object = json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata});
        let object = match self.call.form {
            // A table's bookmark has a row with the object's metadata, which carries the annotation.
            Form::Table => {
                let row = json!({"cells": [], "object": pith_api::print::partial_metadata(&object)});
                json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1",
                    "metadata": {"resourceVersion": revision.to_string()},
                    "columnDefinitions": null, "rows": [row],
                })
            }
            Form::Metadata => pith_api::print::partial_metadata(&object),
            Form::Objects => object,
        };
        push_line(out, "BOOKMARK", object.to_string().as_bytes());
        Ok(())
    }
}

async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

fn push_line(out: &mut Vec<u8>, what: &str, object: &[u8]) {
    out.extend_from_slice(format!("{{\"type\":\"{what}\",\"object\":").as_bytes());
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}

/// What a change of the store is to whoever sees the world through the selectors.
fn change(filter: &Filter, event: &Event) -> Result<Option<(&'static str, Stored)>, ApiError> {
    let new = event.value.clone().map(|bytes| Stored { bytes, revision: event.revision });
    // A deleted object is shown as it was, at the revision of its deletion.
    let old = event.previous.clone().map(|entry| Stored { bytes: entry.value, revision: event.revision });
    let matches = |stored: &Option<Stored>| match stored {
        None => Ok(false),
        Some(stored) => filter.passes(&event.key, stored),
    };
    let (now, before) = (matches(&new)?, matches(&old)?);
    Ok(match (now, before) {
        (true, false) => new.map(|stored| ("ADDED", stored)),
        (true, true) => new.map(|stored| ("MODIFIED", stored)),
        (false, true) => old.map(|stored| ("DELETED", stored)),
        (false, false) => None,
    })
}
