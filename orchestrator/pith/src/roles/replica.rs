//! `pith replica`: kubelet, eBPF proxy and DNS of one node, wired together. They meet in the API and in
//! [`ReplicaNetwork`]; when one fails the process ends, and its pods and their traffic go on until the next start
//! adopts them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kube::Client;
use pith_cgroup::{Cgroup, Hierarchy};
use pith_kubelet::{Config, Deps, Kubelet, Serving};
use pith_proxy::{Cidr, Datapath, NodeIdentity};
use tokio::sync::watch;

use super::credentials::{self, Kept, Member, Source};
use super::pod_network::{Place, ReplicaNetwork};
use super::renewal::Renewal;
use super::tasks::Tasks;
use super::{cancelled_by_signals, client_from, notify_ready, proxying, surroundings, uplink};
use crate::cli::{ReplicaArgs, Snapshotter};
use crate::doctor;
use crate::machine::require_root;

/// A node has little to compute; more threads would only cost memory.
const WORKER_THREADS: usize = 2;

pub(crate) fn run(args: ReplicaArgs) -> Result<()> {
    require_root("replica")?;
    doctor::require()?;
    let source = credentials::source(&args)?;
    surroundings::keep_pods_in_memory(&args.run_dir)?;
    let host_netns = surroundings::enter(args.netns.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .context("start tokio")?;
    runtime.block_on(serve(&args, source, host_netns))
}

async fn serve(args: &ReplicaArgs, source: Source<'_>, host_netns: OwnedFd) -> Result<()> {
    let tasks = Tasks::new(cancelled_by_signals()?);
    let node = args.node_name.clone().map_or_else(crate::machine::hostname, Ok)?;
    let uplink = args.uplink.clone().map_or_else(uplink::of_default_route, Ok)?;
    let address = match args.node_ip.and_then(|given| given.four) {
        Some(address) => address,
        None => uplink::first_address(&uplink)?,
    };
    for dir in [&args.dir, &args.run_dir, &args.bpf_dir] {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let address6 = args.node_ip.and_then(|given| given.six);
    let datapath = open_datapath(args, &uplink, address, address6)?;
    let member = Member { node: node.clone(), address: address.into() };
    let (client, serving) = access(source, &args.dir, member, &tasks).await?;
    let mut options = pith_image::Options::default();
    options.hosts_dir = args.images.hosts_dir.clone().or(options.hosts_dir);
    let images = pith_image::Store::open_with(args.dir.join("images"), options)?;
    let identity = NodeIdentity::new(node.as_str());
    proxying::start(&tasks, &args.ask, client.clone(), datapath, identity);
    let network = ReplicaNetwork::new(Place {
        client: client.clone(),
        node: node.clone(),
        uplink,
        state_dir: args.dir.join("network"),
        host_netns,
        cluster_cidrs: args.cluster_cidr.map(|given| given.all()).unwrap_or_default(),
        tasks: tasks.clone(),
    });
    let deps = Deps { client, images, network: Arc::new(network), podd: podd_program()?, serving };
    let mut config = Config::new(node, address.into(), &args.dir, &args.run_dir, &args.cgroup);
    config.second_node_ip = address6.map(IpAddr::from);
    config.max_pods = args.max_pods;
    config.copy_roots = Snapshotter::copies(args.images.snapshotter);
    config.image_gc = args.images.policy()?;
    tasks.start("kubelet", Kubelet::run(config, deps, tasks.cancel()));
    notify_ready();
    tasks.finish().await
}

/// A client for the API, and what the kubelet's server shows. Certificates from joining are renewed from here on; those
/// in a kubeconfig of the user's are the user's to renew, and come without any for a server.
async fn access(
    source: Source<'_>,
    dir: &Path,
    member: Member,
    tasks: &Tasks,
) -> Result<(Client, Option<watch::Receiver<Serving>>)> {
    let dir = dir.join("credentials");
    let kept = match source {
        Source::Kubeconfig(path) => return Ok((client_from(path).await?, None)),
        Source::Kept => Kept::read(&dir)?,
        Source::Join { server, token } => Kept::join(&dir, server, &token, &member).await?,
    };
    let renewal = Renewal::new(kept, member).await?;
    let access = (renewal.client(), Some(renewal.serving()));
    tasks.start("certificates", renewal.run(tasks.cancel()));
    Ok(access)
}

/// Programs and maps come before everything else: pods adopted from a former process never miss a Service.
fn open_datapath(
    args: &ReplicaArgs,
    uplink: &str,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
) -> Result<Datapath> {
    let hierarchy = Arc::new(Hierarchy::detect()?);
    let cgroup = Cgroup::create(&hierarchy, &args.cgroup)?;
    let cgroup =
        cgroup.v2_dir().context("eBPF programs attach to a cgroup v2 hierarchy: see `pith doctor`")?;
    let mut config = pith_proxy::Config::new(&args.bpf_dir, cgroup);
    config.limits = args.limits.limits();
    let four = args.cluster_cidr.and_then(|given| given.four);
    config.cluster_cidr = four.and_then(|cidr| Cidr::new(cidr.addr(), cidr.prefix_len()));
    config.cluster_cidr6 = args.cluster_cidr.and_then(|given| given.six);
    config.dual = address6.is_some();
    config.pod_interfaces = Some(pith_network::pods::INTERFACE_PREFIX.to_owned());
    config.xdp = args.xdp;
    let mut datapath = Datapath::open(&config)?;
    let addresses = std::iter::once(address.into()).chain(address6.map(IpAddr::from));
    datapath.attach_uplink(uplink, &addresses.collect::<Vec<_>>())?;
    Ok(datapath)
}

/// `pith-podd` stands beside this program.
fn podd_program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program's own file")?;
    let podd = own.parent().unwrap_or(Path::new("/")).join("pith-podd");
    if !podd.exists() {
        bail!("{} is missing: install it beside pith", podd.display());
    }
    Ok(podd)
}
