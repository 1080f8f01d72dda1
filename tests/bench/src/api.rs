//! What the primary alone carries: durable creates, watches, lists, and pods scheduled over 5,000 nodes.
//!
//! A primary of its own on the loopback, without replicas: the nodes are objects that nobody stands behind. The
//! clients are on the same machine and take their part of its processors: the report says how much.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::cpu::Cpu;
use crate::kubernetes;
use crate::table::{Line, rate, report, spread};

const CLIENTS: usize = 64;
const CREATE_FOR: Duration = Duration::from_secs(5);
const WATCHERS: usize = 100;
const WATCHED_WRITES: usize = 200;
const NODES: usize = 5_000;
const PODS: usize = 10_000;
const PODS_WITH_AFFINITY: usize = 2_000;
const LISTS: usize = 20;
const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) fn run(pith: &Path, output: &Path) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start tokio")?;
    let lines = runtime.block_on(async {
        let primary = Primary::start(pith).await?;
        let clients = primary.clients().await?;
        let mut lines = vec![creates(&clients, &primary).await?, fan_out(&clients, &primary).await?];
        make_nodes(&clients).await?;
        let hold = "≥ 2000 /s (kube-scheduler: 680)";
        lines.push(schedule(&clients, &primary, PODS, "plain", &json!({}), hold).await?);
        let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
            "labelSelector": {"matchLabels": {"app": "near"}}, "topologyKey": "topology.kubernetes.io/zone",
        }]}}});
        let hold = "≥ 500 /s (kube-scheduler: 35)";
        lines.push(schedule(&clients, &primary, PODS_WITH_AFFINITY, "near", &near, hold).await?);
        lines.push(lists(&clients).await?);
        Ok::<_, anyhow::Error>(lines)
    })?;
    report("api", &lines, output)
}

/// A primary with a folder of its own; both go when it is dropped.
struct Primary {
    process: Child,
    dir: PathBuf,
}

impl Primary {
    async fn start(pith: &Path) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("pith-bench-api-{}", std::process::id()));
        let port = {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
            free.local_addr().context("find a free port")?.port()
        };
        let mut command = Command::new(pith);
        command.arg("primary");
        command.args(["--listen", &format!("127.0.0.1:{port}"), "--dir"]).arg(&dir);
        // Nobody renews the nodes' leases, and each takes a /24.
        command.args(["--node-monitor-grace-period", "24h", "--pod-cidr", "10.0.0.0/8"]);
        command.args(["--service-cidr", "172.31.0.0/16"]).stdin(Stdio::null());
        let process = command.spawn().with_context(|| format!("start {}", pith.display()))?;
        let primary = Self { process, dir };
        let ready = async {
            loop {
                if let Ok(client) = primary.client().await
                    && client.apiserver_version().await.is_ok()
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, ready).await.context("the primary does not answer")?;
        Ok(primary)
    }

    /// One with a connection of its own.
    async fn client(&self) -> Result<Client> {
        kubernetes::client(&self.dir.join("kubeconfig")).await
    }

    fn cpu(&self) -> Result<Cpu> {
        Cpu::now(self.process.id())
    }

    async fn clients(&self) -> Result<Vec<Client>> {
        try_join_all((0..CLIENTS).map(|_| self.client())).await
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// A POST as clients send it, without typing its answer: what is measured is the server.
async fn create(client: &Client, path: &str, body: &Value) -> Result<()> {
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(body.to_string().into_bytes()).context("a request")?;
    client.request_text(request).await.map(drop).with_context(|| format!("POST {path}"))
}

fn config_map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"k": "v".repeat(1000)}})
}

/// Each client one at a time, for some seconds.
async fn creates(clients: &[Client], primary: &Primary) -> Result<Line> {
    let cpu = primary.cpu()?;
    let begin = Instant::now();
    let tasks = clients.iter().cloned().enumerate().map(|(number, client)| async move {
        let mut times = Vec::new();
        while begin.elapsed() < CREATE_FOR {
            let body = config_map(&format!("c{number}-{}", times.len()));
            let start = Instant::now();
            create(&client, "/api/v1/namespaces/default/configmaps", &body).await?;
            times.push(ms(start));
        }
        Ok::<_, anyhow::Error>(times)
    });
    let times = spawn_all(tasks).await?.concat();
    let mut measured = vec![rate(times.len(), begin.elapsed().as_secs_f64())];
    measured.extend(spread(&times));
    measured.extend(cpu.each(times.len())?);
    let what = format!("durable creates of 1 KB at {CLIENTS} clients");
    Ok(Line::new(what, measured, "≥ 5000 /s, p99 ≤ 20 ms (kube-apiserver + etcd: 1590 /s)"))
}

/// Runs them on all threads and collects what they return.
async fn spawn_all<T: Send + 'static>(
    tasks: impl Iterator<Item = impl Future<Output = Result<T>> + Send + 'static>,
) -> Result<Vec<T>> {
    let handles: Vec<_> = tasks.map(tokio::spawn).collect();
    let mut all = Vec::new();
    for handle in handles {
        all.push(handle.await.context("a client")??);
    }
    Ok(all)
}

/// From the beginning of a write until each of the watchers has it.
async fn fan_out(clients: &[Client], primary: &Primary) -> Result<Line> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "fan"}}))?;
    let first = clients.first().context("there are clients")?;
    Api::all(first.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .context("create the namespace")?;
    let begin = Instant::now();
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let maps: Api<ConfigMap> = Api::namespaced(primary.client().await?, "fan");
        let from =
            maps.list_metadata(&ListParams::default()).await.context("list")?.metadata.resource_version;
        let events = maps.watch_metadata(&WatchParams::default(), &from.unwrap_or_default()).await?;
        watchers.push(tokio::spawn(seen(events.boxed(), begin)));
    }
    let mut writes = Vec::new();
    for number in 0..WATCHED_WRITES {
        writes.push(ms(begin));
        create(first, "/api/v1/namespaces/fan/configmaps", &config_map(&format!("w{number}"))).await?;
    }
    let mut times = Vec::new();
    for watcher in watchers {
        let seen = tokio::time::timeout(DEADLINE, watcher)
            .await
            .context("a watcher waits")?
            .context("a watcher")??;
        times.extend(seen.into_iter().map(|(number, at)| at - writes[number]));
    }
    let what = format!("write begun → seen by each of {WATCHERS} watchers");
    Ok(Line::new(what, spread(&times), ""))
}

type Events = futures::stream::BoxStream<'static, kube::Result<WatchEvent<PartialObjectMeta<ConfigMap>>>>;

/// The number of each write and when it was seen, until all of them were.
async fn seen(mut events: Events, begin: Instant) -> Result<Vec<(usize, f64)>> {
    let mut seen = Vec::new();
    while seen.len() < WATCHED_WRITES {
        if let WatchEvent::Added(map) = events.try_next().await?.context("the watch ended")? {
            let number = map.metadata.name.as_deref().and_then(|name| name.strip_prefix('w')?.parse().ok());
            seen.extend(number.map(|number| (number, ms(begin))));
        }
    }
    Ok(seen)
}

async fn make_nodes(clients: &[Client]) -> Result<()> {
    let node = |index: usize| {
        let name = format!("node-{index}");
        json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-{}", index % 10),
            }},
            "status": {
                "allocatable": {"cpu": "32", "memory": "256Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        })
    };
    let tasks = clients.iter().cloned().enumerate().map(|(number, client)| async move {
        for index in (number..NODES).step_by(CLIENTS) {
            create(&client, "/api/v1/nodes", &node(index)).await?;
        }
        Ok(())
    });
    spawn_all(tasks).await?;
    let nodes: Api<Node> = Api::all(clients[0].clone());
    let usable = async {
        loop {
            let list = nodes.list(&ListParams::default()).await.context("list nodes")?;
            let tainted = |node: &&Node| node.spec.as_ref().is_some_and(|spec| spec.taints.is_some());
            if list.items.iter().filter(tainted).count() == 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(DEADLINE, usable).await.context("nodes stay tainted")?
}

/// From the first request for a pod until the last of them has its node: creates, decisions and bindings.
async fn schedule(
    clients: &[Client],
    primary: &Primary,
    count: usize,
    app: &'static str,
    spec: &Value,
    hold: &'static str,
) -> Result<Line> {
    let pods: Api<Pod> = Api::default_namespaced(clients[0].clone());
    let (ours, bound) = (format!("app={app}"), "spec.nodeName!=");
    let from = pods.list_metadata(&ListParams::default().labels(&ours)).await.context("list pods")?;
    let from = from.metadata.resource_version.unwrap_or_default();
    // A pod comes into this watch with its node.
    let params = WatchParams::default().labels(&ours).fields(bound);
    let mut events = pods.watch_metadata(&params, &from).await?.boxed();
    let cpu = primary.cpu()?;
    let begin = Instant::now();
    let tasks = clients.iter().cloned().enumerate().map(|(number, client)| {
        let mut pod = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"labels": {"app": app}},
            "spec": {"containers": [{
                "name": "main", "image": "i", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
            }]},
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][field] = value.clone();
        }
        async move {
            for index in (number..count).step_by(CLIENTS) {
                pod["metadata"]["name"] = format!("{app}-{index}").into();
                create(&client, "/api/v1/namespaces/default/pods", &pod).await?;
            }
            Ok(())
        }
    });
    let created = async {
        spawn_all(tasks).await?;
        Ok::<_, anyhow::Error>(begin.elapsed())
    };
    let bound = async {
        let mut bound = HashSet::new();
        while bound.len() < count {
            match events.try_next().await?.context("the watch of pods ended")? {
                WatchEvent::Added(pod) => bound.extend(pod.metadata.name),
                WatchEvent::Error(error) => bail!("the watch of pods: {error:?}"),
                _ => {}
            }
        }
        Ok(begin.elapsed())
    };
    let both = futures::future::try_join(created, bound);
    let (created, bound) =
        tokio::time::timeout(DEADLINE, both).await.context("pods stay without a node")??;
    let what = format!("{count} {app} pods created and bound at {NODES} nodes");
    let mut all_created = rate(count, created.as_secs_f64());
    all_created.name = "created";
    let mut all_bound = rate(count, bound.as_secs_f64());
    all_bound.name = "bound";
    let mut measured = vec![all_created, all_bound];
    measured.extend(cpu.each(count)?);
    Ok(Line::new(what, measured, hold))
}

async fn lists(clients: &[Client]) -> Result<Line> {
    let mut times = Vec::new();
    for _ in 0..LISTS {
        let start = Instant::now();
        let request =
            http::Request::get("/api/v1/namespaces/default/pods").body(Vec::new()).context("a request")?;
        clients[0].request_text(request).await.context("list pods")?;
        times.push(ms(start));
    }
    Ok(Line::new(format!("list of {} pods, one client", PODS + PODS_WITH_AFFINITY), spread(&times), ""))
}
