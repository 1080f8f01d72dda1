//! `pith primary`: store, API server, controllers and scheduler in one process.
//!
//! Controllers and scheduler use the same `kube` client as everybody else, built over the API server's router
//! instead of a socket.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pith_apiserver::{Config, Identity, Server};
use pith_controllers::Options;
use pith_proxy::{Gateway, GatewayConfig};
use pith_store::Embedded;
use tokio::net::TcpListener;

use super::credentials::write_private;
use super::tasks::Tasks;
use super::{cancelled_by_signals, notify_ready, uplink};
use crate::cli::PrimaryArgs;

/// The API is mostly waiting; more threads would only cost memory.
const WORKER_THREADS: usize = 2;

pub(crate) fn run(args: PrimaryArgs) -> Result<()> {
    // A process group's leader cannot make a session; it is apart from the terminal's already.
    match rustix::process::setsid() {
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error).context("make a session"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .context("start tokio")?;
    runtime.block_on(serve(args))
}

async fn serve(args: PrimaryArgs) -> Result<()> {
    ensure!(
        args.pod_cidr.six.is_some() == (args.service_cidr.iter().count() == 2),
        "--pod-cidr and --service-cidr are of the same families: Services without pods would answer nobody"
    );
    let tasks = Tasks::new(cancelled_by_signals()?);
    fs::create_dir_all(&args.dir).with_context(|| format!("create {}", args.dir.display()))?;
    // Ports first: one that is in use is said before anything is written.
    let mut listeners = Vec::new();
    for address in &args.listen {
        listeners.push(listen(*address).await?);
    }
    let config = Config {
        dir: args.dir.clone(),
        cluster_name: args.name.to_string(),
        advertise: args.listen[0],
        further_addresses: args.listen.iter().map(SocketAddr::ip).collect(),
        further_names: Vec::new(),
        service_cidr: args.service_cidr,
        certificate_lifetime: args.times.certificate_lifetime(),
        tolerations: args.times.tolerations(),
    };
    let store = Embedded::open(&args.dir.join("store")).context("open the store")?;
    let server = Server::open(config, Arc::new(store)).await.context("open the API server")?;
    write_kubeconfig(&args, &server)?;
    let options = Options {
        cluster_cidr: Some(args.pod_cidr),
        balancer_pools: args.balancer_cidr.map(|given| given.all()).unwrap_or_default(),
        root_ca: Some(server.pki().authority.certificate_pem().to_owned()),
        lease_grace: args.times.lease(),
        ..Options::default()
    };
    let controllers = server.client(Identity::controllers());
    tasks.start("controllers", pith_controllers::run(controllers, options, tasks.cancel()));
    tasks.start("scheduler", pith_scheduler::run(server.client(Identity::scheduler()), tasks.cancel()));
    if let Some(gateway) = gateway(&args)? {
        tasks.start("gateway", gateway.run(tasks.cancel()));
    }
    let cancel = tasks.cancel();
    tasks.start("API server", async move { server.serve(listeners, cancel).await });
    notify_ready();
    tasks.finish().await
}

/// The way out for the network behind this machine, if there is one.
fn gateway(args: &PrimaryArgs) -> Result<Option<Gateway>> {
    let (Some(inner), Some(network), Some(uplink), Some(bpffs)) =
        (&args.gateway_to, &args.gateway_cidr, &args.outside, &args.gateway_bpf_dir)
    else {
        return Ok(None);
    };
    fs::create_dir_all(bpffs).with_context(|| format!("create {}", bpffs.display()))?;
    let config = GatewayConfig {
        bpffs: bpffs.clone(),
        inner: inner.clone(),
        network: *network,
        uplink: uplink.clone(),
        address: uplink::first_address(uplink)?,
    };
    let gateway = Gateway::open(&config).with_context(|| format!("leave by {uplink}: see `pith doctor`"))?;
    Ok(Some(gateway))
}

/// The administrator's credentials, for the last of the addresses: in `pith up` the one on loopback.
fn write_kubeconfig(args: &PrimaryArgs, server: &Server) -> Result<()> {
    let address = args.listen.last().context("--listen has a default")?;
    let path = args.dir.join("kubeconfig");
    write_private(&path, &server.admin_kubeconfig(&format!("https://{address}"))?)
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("--listen {address} cannot be used: choose another address or port"))
}
