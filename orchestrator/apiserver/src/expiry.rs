//! Events are kept for an hour, as upstream keeps them; so are decided certificate requests, and bootstrap tokens
//! that have expired are removed.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use pith_store::{Expect, ListRequest};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    objects::{Objects, Stored, failed},
    state::State,
};

/// `--event-ttl`'s default, and the certificate cleaner's bound for approved requests.
const KEPT_S: i64 = 3600;
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Objects looked at between two chances for others to run.
const PAGE: usize = 500;

/// Sweeps until the server stops.
pub(crate) async fn run(state: Arc<State>) -> std::io::Result<()> {
    let mut ticks = interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // A sweep that is cut short begins again at the next start.
            _ = ticks.tick() => {}
            () = state.stopping.cancelled() => return Ok(()),
        }
        let now = Timestamp::now();
        for (group, plural, is_over) in [
            ("", "events", event_is_over as fn(&Value, Timestamp) -> bool),
            ("certificates.k8s.io", "certificatesigningrequests", request_is_over),
            ("", "secrets", token_is_over),
        ] {
            if let Err(error) = sweep(&state, group, plural, is_over, now).await {
                tracing::warn!(%error, plural, "sweeping what has expired");
            }
        }
    }
}

async fn sweep(
    state: &State,
    group: &str,
    plural: &str,
    is_over: fn(&Value, Timestamp) -> bool,
    now: Timestamp,
) -> Result<(), pith_api::ApiError> {
    let kind = pith_api::find(group, "v1", plural).expect("a kind of the table");
    let fail = |error| failed(kind.subject(""), error);
    let mut request = ListRequest { limit: Some(PAGE), ..ListRequest::all(Objects::prefix(kind, None)?) };
    loop {
        let listing = state.objects.store.list(request.clone()).await.map_err(fail)?;
        request.after = listing.entries.last().map(|entry| entry.key.clone());
        for entry in listing.entries {
            let (key, revision) = (entry.key.clone(), entry.revision);
            if is_over(&Stored::from(entry).value(kind)?, now) {
                match state.objects.store.delete(key, Expect::At(revision)).await {
                    // Changed or gone meanwhile: not ours to remove any more.
                    Ok(_) | Err(pith_store::Error::Changed { .. } | pith_store::Error::Absent { .. }) => {}
                    Err(error) => return Err(fail(error)),
                }
            }
        }
        if listing.remaining == 0 {
            return Ok(());
        }
        tokio::task::yield_now().await;
    }
}

fn older_than_kept(at: &Value, now: Timestamp) -> bool {
    let at = at.as_str().and_then(|text| pith_api::time::parse(text).ok());
    at.is_some_and(|at| now.as_second() - at.as_second() > KEPT_S)
}

fn event_is_over(event: &Value, now: Timestamp) -> bool {
    let seen = ["lastTimestamp", "eventTime", "firstTimestamp"].iter().map(|field| &event[*field]);
    let series = std::iter::once(&event["series"]["lastObservedTime"]);
    let latest =
        series.chain(seen).find(|at| at.is_string()).unwrap_or(&event["metadata"]["creationTimestamp"]);
    older_than_kept(latest, now)
}

fn request_is_over(request: &Value, now: Timestamp) -> bool {
    let decided = request["status"]["conditions"].as_array().is_some_and(|list| !list.is_empty());
    decided && older_than_kept(&request["metadata"]["creationTimestamp"], now)
}

fn token_is_over(secret: &Value, now: Timestamp) -> bool {
    if secret["type"] != "bootstrap.kubernetes.io/token" {
        return false;
    }
    let expiry = secret["data"]["expiration"].as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
    let expiry = expiry.and_then(|bytes| String::from_utf8(bytes).ok());
    expiry.and_then(|text| pith_api::time::parse(&text).ok()).is_some_and(|expiry| expiry <= now)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_counts_from_when_it_was_last_seen() {
        let now: Timestamp = "2026-01-02T03:00:00Z".parse().expect("a time");
        for (event, over) in [
            (json!({"metadata": {"creationTimestamp": "2026-01-02T01:00:00Z"}}), true),
            (
                json!({"metadata": {"creationTimestamp": "2026-01-02T01:00:00Z"}, "lastTimestamp": "2026-01-02T02:30:00Z"}),
                false,
            ),
            (
                json!({"metadata": {"creationTimestamp": "2026-01-02T01:00:00Z"}, "eventTime": "2026-01-02T01:30:00.000000Z"}),
                true,
            ),
            (json!({}), false),
        ] {
            assert_eq!(event_is_over(&event, now), over, "{event}");
        }
    }
}
