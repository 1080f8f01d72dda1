//! `pith inspect`: a running container as the kernel has it. Nothing is asked of whoever made it, beyond which process
//! it is.

mod cgroups;
mod mounts;
mod namespaces;
mod network;
mod rights;
mod target;
mod text;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use pith_network::names::ClusterName;
use serde::Serialize;

use crate::cli::{ClusterArgs, Output};
use crate::cluster::Cluster;
use crate::machine::require_root;
use crate::run;

#[derive(Args)]
pub(crate) struct InspectArgs {
    /// The cluster that POD is in.
    #[arg(long, default_value = "pith", value_parser = ClusterName::parse)]
    name: ClusterName,
    /// Where `pith run` keeps its containers [default: /var/lib/pith].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// POD/CONTAINER or NAMESPACE/POD/CONTAINER, the id of a container of `pith run` or `pith-oci`, or a process's number.
    container: String,
}

/// All that is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Picture {
    container: String,
    pid: i32,
    /// The name of its program.
    program: String,
    namespaces: Vec<namespaces::Namespace>,
    rights: rights::Rights,
    cgroups: Vec<cgroups::Cgroup>,
    /// eBPF programs of its version 2 cgroup and those above.
    cgroup_programs: Vec<network::Program>,
    interfaces: Vec<network::Interface>,
    /// The replica's end of the pod's interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    other_end: Option<network::Interface>,
    mounts: Vec<mounts::Mount>,
}

pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let Some(named) = target::parse(&args.container) else {
        bail!("{:?} is neither POD/CONTAINER, nor the id of a container, nor a process", args.container);
    };
    require_root("inspect")?;
    let cluster = Cluster::new(&ClusterArgs { name: args.name.clone(), dir: None })?;
    let dir = args.dir.clone().map_or_else(run::default_dir, Ok)?;
    let target = target::find(&named, &cluster.run_dir(), &dir)?;
    let picture = take(args.container.clone(), &args.name, &target)?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&picture).context("write JSON")?),
        Output::Text => print!("{}", text::page(&picture)),
    }
    Ok(())
}

fn take(container: String, cluster: &ClusterName, target: &target::Target) -> Result<Picture> {
    let pid = target.pid;
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).with_context(|| format!("read {path}"))
    };
    let cgroups = cgroups::of(pid)?;
    let cgroup_programs = cgroups::unified(&cgroups).map(network::of_cgroup).transpose()?.unwrap_or_default();
    let other_end = target.pod.as_ref().map(|pod| network::other_end(cluster, pod)).transpose()?.flatten();
    Ok(Picture {
        container,
        pid,
        program: read("comm")?.trim().to_owned(),
        namespaces: namespaces::of(pid),
        rights: rights::parse(&read("status")?)?,
        cgroups,
        cgroup_programs,
        interfaces: network::of(pid)?,
        other_end,
        mounts: mounts::parse(&read("mountinfo")?),
    })
}
