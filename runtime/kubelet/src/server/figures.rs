//! What pods use: `/stats/summary`, `/metrics/resource`, and a few figures about the kubelet itself.

use std::{fmt::Write, sync::Arc};

use http::Response;
use jiff::Timestamp;
use pith_cgroup::Stats;
use serde_json::{Value, json};

use super::{Body, typed};
use crate::context::{Context, PodCell, blocking};

/// The figures of one container.
struct Container {
    name: String,
    stats: Stats,
    started_at: Option<Timestamp>,
}

struct Pod {
    cell: Arc<PodCell>,
    stats: Stats,
    containers: Vec<Container>,
}

fn measure(cell: &Arc<PodCell>) -> Option<Pod> {
    let whole = cell.node.cgroup(&cell.id, None).ok()?.stats().ok()?;
    let status = cell.status.borrow().clone();
    let containers = cell.record().containers.into_iter().filter(|(_, c)| c.exit.is_none());
    let containers = containers.filter_map(|(name, c)| {
        let stats = cell.node.cgroup(&cell.id, Some(&c.id.0)).ok()?.stats().ok()?;
        let told = status.as_ref()?.container_statuses.iter().flatten().find(|s| s.name == name);
        let state = told.and_then(|s| s.state.as_ref()?.running.as_ref()?.started_at.as_ref());
        Some(Container { name, stats, started_at: state.map(|t| t.0) })
    });
    Some(Pod { cell: cell.clone(), stats: whole, containers: containers.collect() })
}

async fn measure_all(node: &Arc<Context>, cells: Vec<Arc<PodCell>>) -> (Option<Stats>, Vec<Pod>) {
    let node = node.clone();
    blocking(move || {
        let whole = pith_cgroup::Cgroup::open(&node.hierarchy, &node.config.cgroup);
        let whole = whole.and_then(|c| c.stats()).ok();
        let pods = cells.iter().filter(|c| c.sandbox().is_some()).filter_map(measure).collect();
        (whole, pods)
    })
    .await
}

fn cpu(stats: &Stats, now: Timestamp) -> Value {
    json!({"time": now, "usageCoreNanoSeconds": stats.cpu.usage_ns})
}

fn memory(stats: &Stats, now: Timestamp) -> Value {
    json!({
        "time": now,
        "usageBytes": stats.memory.usage,
        "workingSetBytes": stats.memory.working_set,
        "rssBytes": stats.memory.rss,
        "pageFaults": stats.memory.page_faults,
        "majorPageFaults": stats.memory.major_page_faults,
    })
}

pub(super) async fn summary(node: &Arc<Context>, cells: Vec<Arc<PodCell>>) -> Response<Body> {
    let (whole, pods) = measure_all(node, cells).await;
    let now = Timestamp::now();
    let pods: Vec<_> = pods
        .iter()
        .map(|pod| {
            let containers: Vec<_> = pod
                .containers
                .iter()
                .map(|c| {
                    json!({"name": c.name, "startTime": c.started_at,
                        "cpu": cpu(&c.stats, now), "memory": memory(&c.stats, now)})
                })
                .collect();
            let id = &pod.cell.id;
            json!({
                "podRef": {"name": id.name, "namespace": id.namespace, "uid": id.uid},
                "cpu": cpu(&pod.stats, now), "memory": memory(&pod.stats, now),
                "process_stats": {"process_count": pod.stats.pids.current},
                "containers": containers,
            })
        })
        .collect();
    let whole = whole
        .map(|s| json!({"nodeName": node.config.node_name, "cpu": cpu(&s, now), "memory": memory(&s, now)}));
    let whole = whole.unwrap_or_else(|| json!({"nodeName": node.config.node_name}));
    typed("application/json", json!({"node": whole, "pods": pods}).to_string())
}

pub(super) async fn resource(node: &Arc<Context>, cells: Vec<Arc<PodCell>>) -> Response<Body> {
    let (whole, pods) = measure_all(node, cells).await;
    let mut page = Page::default();
    for pod in &pods {
        let id = &pod.cell.id;
        let labels = format!("namespace=\"{}\",pod=\"{}\"", id.namespace, id.name);
        for c in &pod.containers {
            let own = format!("container=\"{}\",{labels}", c.name);
            page.add("container_cpu_usage_seconds_total", &own, seconds(c.stats.cpu.usage_ns));
            page.add("container_memory_working_set_bytes", &own, c.stats.memory.working_set.to_string());
        }
        page.add("pod_cpu_usage_seconds_total", &labels, seconds(pod.stats.cpu.usage_ns));
        page.add("pod_memory_working_set_bytes", &labels, pod.stats.memory.working_set.to_string());
    }
    if let Some(stats) = whole {
        page.add("node_cpu_usage_seconds_total", "", seconds(stats.cpu.usage_ns));
        page.add("node_memory_working_set_bytes", "", stats.memory.working_set.to_string());
    }
    page.answer()
}

pub(super) fn metrics(cells: Vec<Arc<PodCell>>) -> Response<Body> {
    let mut page = Page::default();
    let running = |c: &&Arc<PodCell>| c.sandbox().is_some();
    let containers =
        cells.iter().map(|c| c.record().containers.values().filter(|c| c.exit.is_none()).count());
    page.add(
        "kubelet_running_containers",
        "container_state=\"running\"",
        containers.sum::<usize>().to_string(),
    );
    page.add("kubelet_running_pods", "", cells.iter().filter(running).count().to_string());
    page.add("kubelet_desired_pods", "", cells.len().to_string());
    page.answer()
}

fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// Prometheus' text format, samples gathered by their metric.
#[derive(Default)]
struct Page {
    samples: std::collections::BTreeMap<&'static str, String>,
}

impl Page {
    fn add(&mut self, metric: &'static str, labels: &str, value: impl std::fmt::Display) {
        let lines = self.samples.entry(metric).or_default();
        // Writing to memory does not fail.
        let _ = match labels {
            "" => writeln!(lines, "{metric} {value}"),
            labels => writeln!(lines, "{metric}{{{labels}}} {value}"),
        };
    }

    fn answer(self) -> Response<Body> {
        let mut out = String::new();
        for (metric, lines) in self.samples {
            let kind = if metric.ends_with("_total") { "counter" } else { "gauge" };
            let _ = write!(out, "# TYPE {metric} {kind}\n{lines}");
        }
        typed("text/plain; version=0.0.4; charset=utf-8", out)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn text_format() {
        let mut page = Page::default();
        page.add("b", "x=\"1\"", 2);
        page.add("a_total", "", seconds(1_500_000_000));
        let body = page.answer().into_body().collect().await.expect("in memory").to_bytes();
        assert_eq!(body, "# TYPE a_total counter\na_total 1.500000000\n# TYPE b gauge\nb{x=\"1\"} 2\n");
    }
}
