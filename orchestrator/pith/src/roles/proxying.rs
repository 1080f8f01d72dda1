//! What `pith replica` and `pith proxy` have in common: how the eBPF proxy is set up and where it can be asked.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;
use kube::Client;
use pith_proxy::{Datapath, NodeIdentity};

use super::tasks::Tasks;

/// kube-proxy's ports.
pub(crate) const METRICS_PORT: u16 = 10249;
const HEALTH_PORT: u16 = 10256;

/// Where the proxy can be asked. The names are those of kube-proxy.
#[derive(Args, Clone, Debug)]
pub(crate) struct AskArgs {
    /// Where the proxy's metrics are served, as kube-proxy serves its own.
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT)))]
    pub(crate) metrics_bind_address: SocketAddr,
    /// Where load balancers ask whether the proxy has what it needs.
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, HEALTH_PORT)))]
    pub(crate) healthz_bind_address: SocketAddr,
}

/// Starts the proxy and what answers for it.
pub(crate) fn start(tasks: &Tasks, ask: &AskArgs, client: Client, datapath: Datapath, node: NodeIdentity) {
    let metrics = datapath.metrics();
    tasks.start("proxy", pith_proxy::run(client, datapath, node, tasks.cancel()));
    tasks.start("proxy metrics", metrics.clone().serve(ask.metrics_bind_address, tasks.cancel()));
    tasks.start("proxy health", metrics.serve_health(ask.healthz_bind_address, tasks.cancel()));
}
