//! What the server counts, as `/metrics` shows it.

use http::StatusCode;
use pith_api::Kind;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    resource: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    group: &'static str,
    resource: &'static str,
}

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    watches: Family<KindLabels, Gauge>,
    revision: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        registry.register("apiserver_request", "Requests by verb, resource and code", requests.clone());
        let watches = Family::default();
        registry.register("apiserver_longrunning_requests", "Watches that are being read", watches.clone());
        let revision = Gauge::default();
        registry.register("apiserver_storage_revision", "Latest revision of the store", revision.clone());
        Self { registry, requests, watches, revision }
    }

    /// A request was answered; `resource` is empty for paths that are no resource.
    pub(crate) fn answered(&self, verb: &'static str, resource: &'static str, code: StatusCode) {
        self.requests.get_or_create(&RequestLabels { verb, resource, code: code.as_u16() }).inc();
    }

    /// Counts a watch for as long as the guard lives.
    pub(crate) fn watch_started(&self, kind: &'static Kind) -> WatchGuard {
        let labels = KindLabels { group: kind.group, resource: kind.plural };
        let gauge = self.watches.get_or_create(&labels).clone();
        gauge.inc();
        WatchGuard { gauge }
    }

    pub(crate) fn text(&self, revision: u64) -> String {
        self.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# {error}\n"),
        }
    }
}

/// See [`Metrics::watch_started`].
pub(crate) struct WatchGuard {
    gauge: Gauge,
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}
