//! `pith status`: what runs of a cluster on this machine, at a glance.

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client};
use serde::Serialize;

use crate::cli::{Output, StatusArgs};
use crate::cluster::{Cluster, Settings, replica_name};
use crate::roles::client_from;

#[derive(Serialize)]
struct Status {
    name: String,
    kubeconfig: String,
    primary: Option<i32>,
    replicas: Vec<Replica>,
    pods: usize,
    pods_running: usize,
    services: usize,
}

#[derive(Serialize)]
struct Replica {
    name: String,
    pid: Option<i32>,
    ready: bool,
    address: String,
    pods: usize,
}

pub(crate) fn run(args: &StatusArgs) -> Result<()> {
    let cluster = Cluster::new(&args.cluster)?;
    let Some(settings) = cluster.settings()? else {
        bail!("no cluster in {}: start one with `pith up`", cluster.dir.display());
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let status = runtime.block_on(observe(&cluster, &settings))?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status).context("write JSON")?),
        Output::Text => print(&status),
    }
    Ok(())
}

async fn observe(cluster: &Cluster, settings: &Settings) -> Result<Status> {
    let primary = cluster.daemon("primary").running()?.map(|process| process.pid);
    let (nodes, pods, services) = if primary.is_some() {
        let client = client_from(&cluster.kubeconfig()).await?;
        list(&client).await.context("ask the primary")?
    } else {
        Default::default()
    };
    let mut replicas = Vec::new();
    for number in 1..=settings.replicas {
        let name = replica_name(number);
        let pid = cluster.daemon(&name).running()?.map(|process| process.pid);
        let node = nodes.iter().find(|node| node.metadata.name.as_deref() == Some(name.as_str()));
        replicas.push(Replica {
            pid,
            ready: node.is_some_and(is_ready),
            address: node.and_then(internal_ip).unwrap_or_default().to_owned(),
            pods: pods.iter().filter(|pod| node_of(pod) == Some(name.as_str())).count(),
            name,
        });
    }
    Ok(Status {
        name: cluster.name.to_string(),
        kubeconfig: cluster.kubeconfig().display().to_string(),
        primary,
        replicas,
        pods: pods.len(),
        pods_running: pods.iter().filter(|pod| phase(pod) == Some("Running")).count(),
        services: services.len(),
    })
}

async fn list(client: &Client) -> Result<(Vec<Node>, Vec<Pod>, Vec<Service>)> {
    let everything = ListParams::default();
    let nodes = Api::<Node>::all(client.clone()).list(&everything).await.context("list nodes")?;
    let pods = Api::<Pod>::all(client.clone()).list(&everything).await.context("list pods")?;
    let services = Api::<Service>::all(client.clone()).list(&everything).await.context("list Services")?;
    Ok((nodes.items, pods.items, services.items))
}

pub(crate) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn internal_ip(node: &Node) -> Option<&str> {
    let addresses = node.status.as_ref()?.addresses.as_deref()?;
    addresses.iter().find(|address| address.type_ == "InternalIP").map(|address| address.address.as_str())
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn print(status: &Status) {
    let running = |pid: Option<i32>| pid.map_or_else(|| "not running".to_owned(), |pid| format!("pid {pid}"));
    println!("cluster {} · kubeconfig {}", status.name, status.kubeconfig);
    println!(
        "primary: {} · {} of {} pods running · {} Services\n",
        running(status.primary),
        status.pods_running,
        status.pods,
        status.services
    );
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["REPLICA", "STATUS", "PROCESS", "ADDRESS", "PODS"]);
    for replica in &status.replicas {
        let ready = if replica.ready { "Ready" } else { "NotReady" };
        let pods = replica.pods.to_string();
        table.add_row([replica.name.as_str(), ready, &running(replica.pid), &replica.address, &pods]);
    }
    println!("{table}");
}
