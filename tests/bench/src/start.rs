//! How long a cluster and its pods take to start, and what they cost in memory.
//!
//! A cluster of its own, next to whatever runs: `up` until all replicas are Ready, several times; then pods created
//! through the API until they are Running, one at a time and a hundred at once; then the memory of each process,
//! idle and with those pods.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::table::{Figure, Line, report, spread};
use crate::{kubernetes, memory, run as run_command};

const NAME: &str = "pith-bench";
const UPS: usize = 5;
const SINGLE_PODS: usize = 30;
const POD_CROWD: usize = 100;
const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) fn run(pith: &Path, images: &Path, output: &Path) -> Result<()> {
    let bench =
        Bench { pith: pith.to_owned(), images: images.to_owned(), dir: std::env::temp_dir().join(NAME) };
    let outcome = bench.measure();
    let down = bench.down();
    let lines = outcome?;
    down?;
    report("start", &lines, output)
}

struct Bench {
    pith: PathBuf,
    images: PathBuf,
    dir: PathBuf,
}

impl Bench {
    fn pith(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.pith);
        command.args(arguments).args(["--name", NAME, "--dir"]).arg(&self.dir);
        command
    }

    fn down(&self) -> Result<()> {
        run_command(&mut self.pith(&["down"]))
    }

    fn measure(&self) -> Result<Vec<Line>> {
        let ups = (0..UPS).map(|_| self.up()).collect::<Result<Vec<_>>>()?;
        let up = "pith up --replicas 3 → all Ready";
        let mut lines = vec![Line::new(up, spread(&ups), "≤ 2000 ms (k3s: tens of seconds)")];
        lines.extend(self.idle_memory()?);
        let archive = self.images.join("demo-v1.tar");
        run_command(self.pith(&["image", "import"]).arg(archive))?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
        runtime.block_on(async {
            let client = kubernetes::client(&self.dir.join("kubeconfig")).await?;
            lines.push(single_pods(&client).await?);
            lines.push(crowd(&client).await?);
            lines.push(podd_memory()?);
            Ok::<_, anyhow::Error>(())
        })?;
        Ok(lines)
    }

    /// One start from nothing, timed from outside: process start to the last replica Ready.
    fn up(&self) -> Result<f64> {
        self.down()?;
        let begin = Instant::now();
        run_command(&mut self.pith(&["up", "--detach", "--replicas", "3"]))?;
        Ok(begin.elapsed().as_secs_f64() * 1000.0)
    }

    fn idle_memory(&self) -> Result<Vec<Line>> {
        let output = self.pith(&["status", "--output", "json"]).output().context("run pith status")?;
        let status: Value = serde_json::from_slice(&output.stdout).context("read pith status")?;
        let line = |what: &str, pid: &Value, hold| {
            let memory = memory::of(pid.as_i64().with_context(|| format!("{what} does not run"))?)?;
            let measured = in_mib(memory.rss_kib, memory.pss_kib);
            Ok::<_, anyhow::Error>(Line::new(format!("idle memory of the {what}"), measured, hold))
        };
        Ok(vec![
            line("primary", &status["primary"], "≤ 40 MiB (kube-apiserver and its kin: 536 MiB)")?,
            line("replica", &status["replicas"][0]["pid"], "≤ 25 MiB")?,
        ])
    }
}

/// Created → Running, one after the other, on an otherwise idle cluster.
async fn single_pods(client: &Client) -> Result<Line> {
    let mut times = Vec::new();
    for number in 0..SINGLE_PODS {
        let started = start_pods(client, &[format!("single-{number}")]).await?;
        times.extend(started.into_values());
    }
    delete_all(client).await?;
    let what = format!("pod created → Running, one at a time ({SINGLE_PODS})");
    Ok(Line::new(what, spread(&times), "p50 ≤ 30, p99 ≤ 100 ms (containerd + runc: 155/180 ms)"))
}

async fn crowd(client: &Client) -> Result<Line> {
    let names: Vec<String> = (0..POD_CROWD).map(|number| format!("crowd-{number}")).collect();
    let started = start_pods(client, &names).await?;
    let last = started.into_values().fold(0.0, f64::max);
    let what = format!("{POD_CROWD} pods at once → all Running");
    let measured = vec![Figure { name: "", number: last, unit: "ms" }];
    Ok(Line::new(what, measured, "≤ 2000 ms (containerd + runc: 10100 ms)"))
}

/// Creates pods at once and returns the milliseconds from the first request until each was seen Running.
async fn start_pods(client: &Client, names: &[String]) -> Result<BTreeMap<String, f64>> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let mut events = watcher(pods.clone(), watcher::Config::default()).applied_objects().boxed();
    let begin = Instant::now();
    let creations = async {
        let creations = names.iter().map(|name| create(&pods, name));
        futures::stream::iter(creations).buffer_unordered(16).try_collect::<Vec<()>>().await
    };
    let running = async {
        let mut times = BTreeMap::new();
        while times.len() < names.len() {
            let pod = events.try_next().await.context("watch pods")?.context("the watch of pods ended")?;
            let name = pod.metadata.name.clone().unwrap_or_default();
            let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
            if phase == "Running" && names.contains(&name) {
                times.entry(name).or_insert_with(|| begin.elapsed().as_secs_f64() * 1000.0);
            }
        }
        Ok::<_, anyhow::Error>(times)
    };
    match tokio::time::timeout(DEADLINE, futures::future::try_join(creations, running)).await {
        Ok(outcome) => Ok(outcome?.1),
        Err(_) => bail!("{} pods are not Running after {} s", names.len(), DEADLINE.as_secs()),
    }
}

async fn create(pods: &Api<Pod>, name: &str) -> Result<()> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "app": "bench" } },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "main", "image": "pith.local/demo:v1", "imagePullPolicy": "Never" }],
        },
    }))
    .context("the benchmark's pod")?;
    pods.create(&PostParams::default(), &pod).await.with_context(|| format!("create pod {name}"))?;
    Ok(())
}

async fn delete_all(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let ours = ListParams::default().labels("app=bench");
    pods.delete_collection(&DeleteParams::default(), &ours).await.context("delete pods")?;
    let mut events = watcher(pods.clone(), watcher::Config::default().labels("app=bench")).boxed();
    let mut left: BTreeMap<String, ()> = BTreeMap::new();
    let gone = async {
        loop {
            match events.try_next().await.context("watch pods")?.context("the watch of pods ended")? {
                watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => {
                    left.insert(pod.metadata.name.unwrap_or_default(), ());
                }
                watcher::Event::Delete(pod) => {
                    left.remove(&pod.metadata.name.unwrap_or_default());
                    if left.is_empty() {
                        return Ok::<_, anyhow::Error>(());
                    }
                }
                watcher::Event::InitDone if left.is_empty() => return Ok(()),
                watcher::Event::Init | watcher::Event::InitDone => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.context("pods do not go")?
}

/// What a pod costs beyond its own processes: its supervisor.
fn podd_memory() -> Result<Line> {
    let all = memory::of_all_named("pith-podd")?;
    let count = u64::try_from(all.len().max(1)).expect("a count of processes fits");
    let rss: u64 = all.iter().map(|memory| memory.rss_kib).sum();
    let pss: u64 = all.iter().map(|memory| memory.pss_kib).sum();
    let what = format!("memory of a pod's supervisor, mean of {}", all.len());
    let measured = in_mib(rss / count, pss / count);
    Ok(Line::new(what, measured, "≤ 1 MiB PSS (containerd's shim: 13.7 RSS, 3.4 PSS)"))
}

fn in_mib(rss_kib: u64, pss_kib: u64) -> Vec<Figure> {
    [("RSS", rss_kib), ("PSS", pss_kib)]
        .map(|(name, kib)| Figure { name, number: mib(kib), unit: "MiB" })
        .into()
}

fn mib(kib: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "kibibytes of memory are far below 2^52")]
    let kib = kib as f64;
    kib / 1024.0
}
