//! `pith proxy`: only the eBPF kube-proxy, on a node of any Kubernetes cluster.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use pith_cgroup::Hierarchy;
use pith_proxy::{Datapath, NodeIdentity};

use super::tasks::Tasks;
use super::{cancelled_by_signals, client_from, notify_ready, proxying, uplink};
use crate::cli::ProxyArgs;
use crate::machine::{hostname, require_root};

pub(crate) fn run(args: ProxyArgs) -> Result<()> {
    require_root("proxy")?;
    match args.kubeconfig.clone() {
        Some(kubeconfig) if !args.cleanup => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start tokio")?
            .block_on(serve(args, &kubeconfig)),
        _ => Ok(Datapath::remove(&args.bpf_dir)?),
    }
}

async fn serve(args: ProxyArgs, kubeconfig: &Path) -> Result<()> {
    let tasks = Tasks::new(cancelled_by_signals()?);
    let client = client_from(kubeconfig).await?;
    let node = args.node_name.map_or_else(hostname, Ok)?;
    let uplink = args.uplink.map_or_else(uplink::of_default_route, Ok)?;
    let address = uplink::first_address(&uplink)?;
    let address6 = uplink::first_address6(&uplink)?;
    let cgroup = match args.cgroup {
        Some(cgroup) => cgroup,
        None => {
            let hierarchy = Hierarchy::detect()?;
            let root = hierarchy
                .v2_root()
                .context("eBPF programs attach to a cgroup v2 hierarchy: see `pith doctor`")?;
            root.to_owned()
        }
    };
    fs::create_dir_all(&args.bpf_dir).with_context(|| format!("create {}", args.bpf_dir.display()))?;
    let mut config = pith_proxy::Config::new(&args.bpf_dir, cgroup);
    config.limits = args.limits.limits();
    config.pod_interfaces = args.pod_interfaces;
    config.xdp = args.xdp;
    config.dual = address6.is_some();
    let mut datapath = Datapath::open(&config)?;
    let addresses: Vec<IpAddr> = std::iter::once(address.into()).chain(address6.map(IpAddr::from)).collect();
    datapath.attach_uplink(&uplink, &addresses)?;
    proxying::start(&tasks, &args.ask, client, datapath, NodeIdentity::new(node));
    notify_ready();
    tasks.finish().await
}
