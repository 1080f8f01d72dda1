//! `pith services`: what a replica's programs know of Services, read from their maps: backends, generations, flows,
//! and how often each verdict was given.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use pith_proxy::inspect::{Balanced, Inspection, inspect};
use serde::Serialize;

use crate::cli::{Output, ServicesArgs};
use crate::cluster::Cluster;
use crate::machine::require_root;
use crate::roles::client_from;

/// What is printed.
#[derive(Serialize)]
struct Report {
    /// Where the maps are.
    folder: PathBuf,
    services: Vec<Named>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Serialize)]
struct Named {
    /// `namespace/name`; empty where the API was not asked or does not know it.
    name: String,
    #[serde(flatten)]
    balanced: Balanced,
}

#[derive(Serialize)]
struct Rest {
    flows: pith_proxy::inspect::Flows,
    verdicts: Vec<pith_proxy::inspect::Verdict>,
}

pub(crate) fn run(args: &ServicesArgs) -> Result<()> {
    require_root("services")?;
    let cluster = Cluster::new(&args.cluster)?;
    let folder = args.bpf_dir.clone().unwrap_or_else(|| cluster.bpf_dir().join(&args.replica));
    let Inspection { services, flows, verdicts } = inspect(&folder)?;
    let names = names(&cluster);
    let services = services
        .into_iter()
        .map(|balanced| {
            let places = [&balanced.inside, &balanced.outside, &balanced.handed].into_iter().flatten();
            let name = places.filter_map(|place| names.get(place)).next().cloned().unwrap_or_default();
            Named { name, balanced }
        })
        .collect();
    let report = Report { folder, services, rest: Rest { flows, verdicts } };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report).context("write JSON")?),
        Output::Text => print(&report),
    }
    Ok(())
}

/// Names of Services by where they are reached. The maps know no names, and are shown without where the API
/// does not answer.
fn names(cluster: &Cluster) -> HashMap<String, String> {
    let list = || -> Result<Vec<Service>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = client_from(&cluster.kubeconfig()).await?;
            Ok(Api::<Service>::all(client).list(&ListParams::default()).await?.items)
        })
    };
    let mut names = HashMap::new();
    for service in list().unwrap_or_default() {
        let name = format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any());
        let Some(spec) = &service.spec else { continue };
        for port in spec.ports.iter().flatten() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            let balancers = status.into_iter().flat_map(|status| status.ingress.iter().flatten());
            let balancers = balancers.filter_map(|ingress| ingress.ip.as_ref());
            let own = spec.cluster_ips.iter().flatten().chain(spec.external_ips.iter().flatten());
            for address in own.chain(balancers) {
                names.insert(format!("{address}:{}/{protocol}", port.port), name.clone());
            }
            if let Some(node_port) = port.node_port {
                names.insert(format!("node port {node_port}/{protocol}"), name.clone());
            }
        }
    }
    names
}

fn print(report: &Report) {
    let mut table = Table::new();
    let header = ["SERVICE", "REACHED AT", "GENERATION", "BALANCE", "BACKENDS", "CONNECTIONS", "FLOWS"];
    table.load_style(NOTHING).set_header(header);
    for Named { name, balanced } in &report.services {
        table.add_row([
            name,
            &places(balanced),
            &balanced.generation.to_string(),
            &balance(balanced),
            &backends(balanced),
            &balanced.connections.to_string(),
            &balanced.flows.to_string(),
        ]);
    }
    println!("{table}\n");
    let flows = &report.rest.flows;
    println!("{} of {} flows", flows.live, flows.limit);
    if flows.handed_on > 0 {
        println!("{} flows are handed on to other nodes, which answer them", flows.handed_on);
    }
    for sender in &flows.heaviest {
        println!("  {:>8}  began by {}", sender.flows, sender.address);
    }
    println!("\nverdicts");
    for verdict in &report.rest.verdicts {
        println!("  {:>8}  {:<22} {}", verdict.count, verdict.reason, verdict.meaning);
    }
}

fn places(balanced: &Balanced) -> String {
    let from_outside = |place: &String| format!("{place} from outside");
    let outside = balanced.outside.iter().filter(|place| !balanced.inside.contains(place));
    let inside = balanced.inside.iter().map(|place| match balanced.outside.contains(place) {
        true => place.clone(),
        false => format!("{place} from pods"),
    });
    let handed = balanced.handed.iter().map(|place| format!("{place} from other nodes"));
    inside.chain(outside.map(from_outside)).chain(handed).collect::<Vec<_>>().join("\n")
}

fn balance(balanced: &Balanced) -> String {
    let affinity = balanced.affinity_s.map(|seconds| format!("a client stays for {seconds} s"));
    let named = balanced.quic_server_id.map(|id| format!("QUIC by {id}"));
    let sources = balanced.sources.iter().map(|range| format!("serves {range}"));
    [balanced.balance.to_owned()]
        .into_iter()
        .chain(affinity)
        .chain(named)
        .chain(sources)
        .collect::<Vec<_>>()
        .join("\n")
}

fn backends(balanced: &Balanced) -> String {
    let weighted = balanced.backends.iter().any(|backend| backend.slots > 1);
    let lines = balanced.backends.iter().map(|backend| {
        let place = match backend.address.port() {
            0 => format!("the node {}", backend.address.ip()),
            _ => backend.address.to_string(),
        };
        if weighted { format!("{place} in {} slots", backend.slots) } else { place }
    });
    let lines: Vec<String> = lines.collect();
    if lines.is_empty() { "none: refused".to_owned() } else { lines.join("\n") }
}
