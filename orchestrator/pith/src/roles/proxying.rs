//! What `pith replica` and `pith proxy` have in common: how the eBPF proxy is set up and where it can be asked.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;
use kube::Client;
use pith_proxy::{Datapath, Limits, NodeIdentity};
use serde::{Deserialize, Serialize};

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

/// How much the proxy's maps hold. Maps that are there keep their size.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LimitArgs {
    /// Most addresses × ports at which Services answer [default: 65536].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_frontends: Option<u32>,
    /// Most ports of Services, each counted once for every policy that differs [default: 65536].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_services: Option<u32>,
    /// Most endpoints of all Services together [default: 262144].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_backends: Option<u32>,
    /// Most clients that Services with affinity remember; the oldest are forgotten first [default: 4096].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_affinity: Option<u32>,
    /// Most flows that packets have at one time [default: 65536].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_flows: Option<u32>,
    /// Most ranges of sources that Services name [default: 16384].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit_sources: Option<u32>,
}

impl LimitArgs {
    pub(crate) fn limits(&self) -> Limits {
        let default = Limits::DEFAULT;
        Limits {
            frontends: self.limit_frontends.unwrap_or(default.frontends),
            services: self.limit_services.unwrap_or(default.services),
            backends: self.limit_backends.unwrap_or(default.backends),
            affinity: self.limit_affinity.unwrap_or(default.affinity),
            flows: self.limit_flows.unwrap_or(default.flows),
            sources: self.limit_sources.unwrap_or(default.sources),
            ..default
        }
    }

    /// What is given here, and else what was given before.
    pub(crate) fn or(&self, before: &Self) -> Self {
        Self {
            limit_frontends: self.limit_frontends.or(before.limit_frontends),
            limit_services: self.limit_services.or(before.limit_services),
            limit_backends: self.limit_backends.or(before.limit_backends),
            limit_affinity: self.limit_affinity.or(before.limit_affinity),
            limit_flows: self.limit_flows.or(before.limit_flows),
            limit_sources: self.limit_sources.or(before.limit_sources),
        }
    }

    /// As arguments of another process.
    pub(crate) fn flags(&self) -> impl Iterator<Item = String> + use<> {
        let all = [
            ("frontends", self.limit_frontends),
            ("services", self.limit_services),
            ("backends", self.limit_backends),
            ("affinity", self.limit_affinity),
            ("flows", self.limit_flows),
            ("sources", self.limit_sources),
        ];
        all.into_iter().filter_map(|(name, limit)| limit.map(|limit| format!("--limit-{name}={limit}")))
    }
}

/// Starts the proxy and what answers for it.
pub(crate) fn start(tasks: &Tasks, ask: &AskArgs, client: Client, datapath: Datapath, node: NodeIdentity) {
    let metrics = datapath.metrics();
    tasks.start("proxy", pith_proxy::run(client, datapath, node, tasks.cancel()));
    tasks.start("proxy metrics", metrics.clone().serve(ask.metrics_bind_address, tasks.cancel()));
    tasks.start("proxy health", metrics.serve_health(ask.healthz_bind_address, tasks.cancel()));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn limits_reach_the_replica_and_are_kept() {
        let up = |flags: &[&str]| match Cli::try_parse_from(["pith", "up"].iter().chain(flags)) {
            Ok(Cli { command: Command::Up(args), .. }) => args.limits,
            _ => panic!("{flags:?} are flags of up"),
        };
        let first = up(&["--limit-backends=64", "--limit-flows=9"]);
        let second = up(&["--limit-flows=10"]).or(&first);
        let flags: Vec<String> = second.flags().collect();
        assert_eq!(flags, ["--limit-backends=64", "--limit-flows=10"]);
        let replica = ["pith", "replica"].into_iter().chain(flags.iter().map(String::as_str));
        let replica = match Cli::try_parse_from(replica) {
            Ok(Cli { command: Command::Replica(args), .. }) => args.limits.limits(),
            _ => panic!("{flags:?} are flags of replica"),
        };
        assert_eq!(replica, Limits { backends: 64, flows: 10, ..Limits::DEFAULT });
    }
}
