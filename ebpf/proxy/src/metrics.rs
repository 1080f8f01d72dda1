//! What the proxy counts, for Prometheus, and whether it is healthy. Names and addresses are kube-proxy's where it has
//! the same figure, so that its dashboards and alerts go on working.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aya::maps::{MapData, PerCpuArray};
use http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use pith_abi::Reason;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    http::{Answer, listen, serve},
    world::Event,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MapLabels {
    map: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InterfaceLabels {
    interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Figures of one proxy. Those of verdicts are read from the kernel when somebody asks.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Whether the maps have held everything once.
    synced: AtomicBool,
    sync_seconds: Histogram,
    synced_at: Gauge<f64, AtomicU64>,
    service_changes: Counter,
    endpoint_changes: Counter,
    not_applied: Gauge,
    entries: Family<MapLabels, Gauge>,
    max_entries: Family<MapLabels, Gauge>,
    xdp: Family<InterfaceLabels, Gauge>,
}

impl Metrics {
    pub(crate) fn new(reasons: PerCpuArray<MapData, u64>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Verdicts(reasons)));
        let all = &mut registry;
        Self {
            synced: AtomicBool::new(false),
            sync_seconds: registered(
                all,
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "From changes that were seen to maps that hold them",
                // From 0.1 ms, which one changed endpoint takes, to 3 s.
                Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            ),
            synced_at: registered(
                all,
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When the maps were written last",
                Gauge::default(),
            ),
            service_changes: registered(
                all,
                "kubeproxy_sync_proxy_rules_service_changes",
                "Changes of Services that were seen",
                Counter::default(),
            ),
            endpoint_changes: registered(
                all,
                "kubeproxy_sync_proxy_rules_endpoint_changes",
                "Changes of EndpointSlices that were seen",
                Counter::default(),
            ),
            not_applied: registered(
                all,
                "pith_proxy_services_not_applied",
                "Services of which the maps do not hold everything",
                Gauge::default(),
            ),
            entries: registered(all, "pith_proxy_map_entries", "Entries that a map holds", Family::default()),
            max_entries: registered(
                all,
                "pith_proxy_map_max_entries",
                "Entries that a map can hold",
                Family::default(),
            ),
            xdp: registered(
                all,
                "pith_proxy_xdp_attached",
                "Whether packets at an uplink meet XDP in the driver first",
                Family::default(),
            ),
            registry,
        }
    }

    /// Changes were seen.
    pub(crate) fn seen(&self, event: &Event) {
        match event {
            Event::Service(_) => drop(self.service_changes.inc()),
            Event::Slice(_) => drop(self.endpoint_changes.inc()),
            Event::Node(_) | Event::Pod(_) => {}
        }
    }

    /// The maps hold what was seen, but for some Services.
    pub(crate) fn synced(&self, took: Duration, not_applied: usize) {
        self.sync_seconds.observe(took.as_secs_f64());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.synced_at.set(now.as_secs_f64());
        self.not_applied.set(signed(not_applied));
        self.synced.store(true, Ordering::Relaxed);
    }

    pub(crate) fn holds(&self, map: &'static str, entries: usize, max_entries: u32) {
        self.entries.get_or_create(&MapLabels { map }).set(signed(entries));
        self.max_entries.get_or_create(&MapLabels { map }).set(max_entries.into());
    }

    pub(crate) fn has_xdp(&self, interface: &str, attached: bool) {
        let interface = interface.to_owned();
        self.xdp.get_or_create(&InterfaceLabels { interface }).set(attached.into());
    }

    /// All of them, as `/metrics` shows them.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry).map(|()| text)
    }

    /// Answers at `/metrics`, as kube-proxy does at port 10249, until `cancel`. Nothing ends because it cannot.
    pub async fn serve(
        self: Arc<Self>,
        address: SocketAddr,
        cancel: CancellationToken,
    ) -> Result<(), Infallible> {
        let answer = |path: &str| match path {
            "/metrics" => match self.text() {
                Ok(text) => typed(StatusCode::OK, OPENMETRICS, text),
                Err(error) => typed(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{error}\n")),
            },
            _ => not_found("/metrics"),
        };
        answer_at(address, "metrics", answer, cancel).await;
        Ok(())
    }

    /// Answers at `/healthz` and `/livez`, as kube-proxy does at port 10256, until `cancel`: 503 until the maps
    /// have held everything once.
    pub async fn serve_health(
        self: Arc<Self>,
        address: SocketAddr,
        cancel: CancellationToken,
    ) -> Result<(), Infallible> {
        let answer = |path: &str| match (path, self.synced.load(Ordering::Relaxed)) {
            ("/healthz", false) => typed(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "not synced yet\n".into()),
            ("/healthz" | "/livez", _) => typed(StatusCode::OK, PLAIN, "ok\n".into()),
            _ => not_found("/healthz, /livez"),
        };
        answer_at(address, "health", answer, cancel).await;
        Ok(())
    }
}

/// The metric, which the registry knows from here on: both are the same figure.
fn registered<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

async fn answer_at(
    address: SocketAddr,
    what: &str,
    answer: impl Fn(&str) -> Answer,
    cancel: CancellationToken,
) {
    match listen(address) {
        Ok(listener) => {
            // Nobody loses anything when an answer is not finished.
            let served = serve(listener, |request| answer(request.uri().path()));
            let _cancelled = cancel.run_until_cancelled(served).await;
        }
        // Balancing goes on: a pod in the host's network may have the port.
        Err(error) => {
            warn!(%address, %error, "nobody can ask for the proxy's {what}");
            cancel.cancelled().await;
        }
    }
}

fn typed(status: StatusCode, kind: &'static str, text: String) -> Answer {
    let mut answer = Answer::new(text);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn not_found(paths: &str) -> Answer {
    typed(StatusCode::NOT_FOUND, PLAIN, format!("here is {paths}\n"))
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Reads REASONS.
struct Verdicts(PerCpuArray<MapData, u64>);

impl fmt::Debug for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verdicts")
    }
}

impl Collector for Verdicts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Verdicts of the programs, since their maps were made";
        let mut family = encoder.encode_descriptor("pith_proxy_verdicts", help, None, MetricType::Counter)?;
        for reason in Reason::ALL {
            // A map that cannot be read leaves its figures out, rather than saying 0.
            let Ok(count) = self.0.get(&(*reason as u32), 0) else { continue };
            let count = ConstCounter::new(count.iter().sum::<u64>());
            count.encode(family.encode_family(&ReasonLabels { reason: reason.name() })?)?;
        }
        Ok(())
    }
}
