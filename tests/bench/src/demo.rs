//! The demo of `cargo xtask up`: a cluster whose workload answers through eBPF.
//!
//! Starts three replicas, imports the demo image, applies `demo/demo.yaml` and asks the Service at each replica's
//! NodePort; prints how long each step took, how to go on with kubectl, and how to stop.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client};

use crate::{kubernetes, run as run_command};

const MANIFEST: &str = include_str!("../../../demo/demo.yaml");
const DIR: &str = "/var/lib/pith";
const NODE_PORT: u16 = 30080;
/// So many requests that each of three pods is picked with certainty, for all practical purposes.
const REQUESTS: usize = 60;
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn run(pith: &Path, images: &Path) -> Result<()> {
    let mut steps = Steps::default();
    steps.time("pith up", || run_command(Command::new(pith).args(["up", "--detach"])))?;
    let mut import = Command::new(pith);
    import.args(["image", "import", "--name", "pith"]).arg(images.join("demo-v1.tar"));
    steps.time("image import", || run_command(&mut import))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let kubeconfig = Path::new(DIR).join("kubeconfig");
    let client = runtime.block_on(kubernetes::client(&kubeconfig))?;
    steps.time("demo ready", || runtime.block_on(apply_demo(&client)))?;
    let nodes = runtime.block_on(addresses(&client))?;
    steps.time("Service ready", || nodes.iter().try_for_each(|node| answered(node)))?;
    let answers = steps.time("requests", || ask(&nodes))?;
    report(&steps, &answers, &nodes, pith, &kubeconfig);
    Ok(())
}

/// What was done and how long it took.
#[derive(Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn time<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("==> {name}");
        let start = Instant::now();
        let outcome = step().with_context(|| format!("step {name:?}"))?;
        self.0.push((name, start.elapsed()));
        Ok(outcome)
    }
}

async fn apply_demo(client: &Client) -> Result<()> {
    let (deployment, service) = MANIFEST.split_once("\n---\n").context("demo.yaml holds two documents")?;
    let deployment: Deployment = serde_saphyr::from_str(deployment).context("the demo's Deployment")?;
    let service: Service = serde_saphyr::from_str(service).context("the demo's Service")?;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let services: Api<Service> = Api::default_namespaced(client.clone());
    create_or_patch(&deployments, &deployment).await?;
    create_or_patch(&services, &service).await?;
    let available = await_condition(deployments, "demo", AllAvailable);
    tokio::time::timeout(DEADLINE, available).await.context("the demo is not available in time")??;
    Ok(())
}

/// Running the command twice must work: what is there already is brought to what the file says.
async fn create_or_patch<K>(api: &Api<K>, object: &K) -> Result<()>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let name = object.meta().name.clone().context("an object of the demo has a name")?;
    match api.create(&Default::default(), object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => api
            .patch(&name, &PatchParams::default(), &Patch::Merge(object))
            .await
            .map(drop)
            .map_err(Into::into),
        Err(error) => Err(error.into()),
    }
}

struct AllAvailable;

impl Condition<Deployment> for AllAvailable {
    fn matches_object(&self, deployment: Option<&Deployment>) -> bool {
        let Some(deployment) = deployment else { return false };
        let wanted = deployment.spec.replicas;
        let status = deployment.status.as_ref();
        status.and_then(|status| status.available_replicas) == wanted
            && status.and_then(|status| status.observed_generation) == deployment.metadata.generation
    }
}

/// The replicas' addresses, at which the NodePort answers.
async fn addresses(client: &Client) -> Result<Vec<String>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let list = nodes.list(&Default::default()).await.context("list nodes")?;
    let addresses = list.items.into_iter().filter_map(|node| {
        let addresses = node.status?.addresses?;
        addresses.into_iter().find(|address| address.type_ == "InternalIP").map(|address| address.address)
    });
    Ok(addresses.collect())
}

/// Waits until a replica's NodePort answers: its proxy refuses what it knows no endpoints of yet, and hears of them
/// a moment after the Deployment is available.
fn answered(node: &str) -> Result<()> {
    let address = address(node)?;
    let start = Instant::now();
    while let Err(error) = get(address) {
        if start.elapsed() > DEADLINE {
            return Err(error.context(format!("ask {address}")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn address(node: &str) -> Result<SocketAddr> {
    format!("{node}:{NODE_PORT}").parse().context("a replica's address")
}

/// Requests to each replica's NodePort in turn; counts which pod answered.
fn ask(nodes: &[String]) -> Result<BTreeMap<String, usize>> {
    let mut answers = BTreeMap::new();
    for node in nodes.iter().cycle().take(REQUESTS) {
        let address = address(node)?;
        *answers.entry(get(address).with_context(|| format!("ask {address}"))?).or_default() += 1;
    }
    if answers.len() < 2 {
        bail!("only one pod answered: {answers:?}");
    }
    Ok(answers)
}

/// The first line of the answer's body: the demo program puts its pod's name there.
fn get(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer has an empty line")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("answered {:?}", head.lines().next().unwrap_or_default());
    }
    Ok(body.lines().next().unwrap_or_default().to_owned())
}

fn report(
    steps: &Steps,
    answers: &BTreeMap<String, usize>,
    nodes: &[String],
    pith: &Path,
    kubeconfig: &Path,
) {
    println!("\n{REQUESTS} requests to NodePort {NODE_PORT} of {} were answered by", nodes.join(", "));
    for (pod, count) in answers {
        println!("  {count:>3} × {pod}");
    }
    println!("\ntime taken");
    for (name, time) in &steps.0 {
        println!("  {name:<14} {:>9.1} ms", time.as_secs_f64() * 1000.0);
    }
    println!("\nthe cluster goes on running; use it with");
    println!("  export KUBECONFIG={}", kubeconfig.display());
    println!("  kubectl get pods -o wide");
    println!("  {} status", pith.display());
    println!("and stop it with");
    println!("  {} down", pith.display());
}
