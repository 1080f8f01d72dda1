//! `pith up`: a whole cluster on this machine, or whatever of it is not running.
//!
//! The primary runs in the host, each replica in a network namespace of its own, joined by a bridge. Every
//! replica joins with a bootstrap token, exactly as one on another machine would. Nothing here is undone when a
//! step fails: the next `up` goes on from where this one stopped, and `down` removes it.

use std::fmt::Display;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use pith_network::addressing::Networks6;
use pith_network::topology::{self, ReplicaNet, Topology};
use rustix::mount::{MountFlags, mount};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::cli::{Kept, UpArgs};
use crate::cluster::process::write_atomically;
use crate::cluster::{BPF_DIR, Cluster, Settings, down, outside_by_default, replica_name, status};
use crate::doctor;
use crate::machine::require_root;
use crate::roles::{client_from, proxying::METRICS_PORT, uplink};
use crate::token;

const FIRST_PORT: u16 = 6443;
const PORTS_TRIED: u16 = 64;
/// A token is used within moments; it need not live longer.
const TOKEN_TTL: Duration = Duration::from_secs(10 * 60);
const NODES_READY_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn run(args: &UpArgs) -> Result<()> {
    require_root("up")?;
    doctor::require()?;
    let started = Instant::now();
    let cluster = Cluster::new(&args.cluster)?;
    let lock = cluster.lock()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let children = match runtime.block_on(start(&cluster, args)) {
        Ok(children) => children,
        Err(error) => {
            // Refused before anything was made: then nothing is left, not even the lock.
            if !cluster.run_dir().exists() {
                cluster.remove_lock(lock)?;
            }
            return Err(error);
        }
    };
    drop(lock);
    println!("ready in {} ms", started.elapsed().as_millis());
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    if args.detach {
        return Ok(());
    }
    println!("Ctrl-C stops the cluster and keeps its state; `pith down` removes it");
    runtime.block_on(stay(children))?;
    let failures = down::stop(&cluster);
    if failures.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = failures.iter().map(|failure| format!("{failure:#}")).collect();
    bail!("cluster \"{}\" did not stop cleanly:\n  {}", cluster.name, lines.join("\n  "))
}

/// Brings everything up that is not running; returns the processes it started.
async fn start(cluster: &Cluster, args: &UpArgs) -> Result<Vec<(String, Child)>> {
    let known = cluster.settings()?;
    let topology = ensure_network(cluster, args, known.as_ref())?;
    let settings = settle(cluster, args, known, &topology)?;
    for dir in [cluster.dir.clone(), cluster.log_dir(), cluster.run_dir(), cluster.primary_dir()] {
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    }
    cluster.save(&settings)?;
    mount_bpffs(cluster)?;

    let mut children = Vec::new();
    children.extend(start_primary(cluster, &settings, &topology, way_out(&settings.outside)?).await?);
    let client = client_from(&cluster.kubeconfig()).await?;
    children.extend(start_replicas(cluster, &settings, &topology, &client).await?);
    wait_for_nodes(client, settings.replicas).await?;
    Ok(children)
}

fn ensure_network(cluster: &Cluster, args: &UpArgs, known: Option<&Settings>) -> Result<Topology> {
    // A stopped cluster keeps its subnets, since objects in its store hold addresses of them.
    let config = topology::Config {
        cluster: cluster.name.clone(),
        replicas: args.replicas,
        nodes: args.node_cidr.or(known.map(|settings| settings.node_cidr)),
        nodes6: dual_stack(args, known).then(|| Networks6::of(&cluster.name).nodes),
        pods: args.pod_cidr.or(known.map(|settings| settings.pod_cidr)),
        services: args.service_cidr,
    };
    topology::ensure(&config).context("set up the network")
}

/// What the first `up` chose stays; what this one asks for must agree with it.
fn settle(
    cluster: &Cluster,
    args: &UpArgs,
    known: Option<Settings>,
    topology: &Topology,
) -> Result<Settings> {
    let Some(mut settings) = known else {
        args.images.policy()?;
        return Ok(Settings {
            name: cluster.name.to_string(),
            node_cidr: topology.addressing.nodes,
            pod_cidr: topology.addressing.pods,
            service_cidr: args.service_cidr,
            dual_stack: args.dual_stack,
            port: choose_port(args.port, topology.addressing.host())?,
            replicas: args.replicas,
            times: args.times.clone(),
            images: args.images.clone(),
            limits: args.limits,
            outside: args.outside.clone().unwrap_or_else(outside_by_default),
        });
    };
    if args.dual_stack && !settings.dual_stack {
        bail!(
            "--dual-stack: the cluster \"{}\" was made with IPv4 alone, and its nodes and pods keep their addresses; `pith down` it first",
            cluster.name
        );
    }
    let fixed = [
        ("--node-cidr", args.node_cidr, settings.node_cidr),
        ("--pod-cidr", args.pod_cidr, settings.pod_cidr),
    ];
    for (flag, asked, has) in fixed {
        if let Some(asked) = asked
            && asked.trunc() != has
        {
            bail!("{flag} {asked}: the cluster \"{}\" has {has}; `pith down` it first", cluster.name);
        }
    }
    if args.replicas < settings.replicas {
        bail!(
            "--replicas {}: the cluster \"{}\" has {}; drain and delete a replica with kubectl, or `pith down`",
            args.replicas,
            cluster.name,
            settings.replicas
        );
    }
    settings.replicas = args.replicas;
    settings.times = args.times.or(&settings.times);
    settings.images = args.images.or(&settings.images);
    settings.images.policy()?;
    settings.limits = args.limits.or(&settings.limits);
    if let Some(outside) = &args.outside {
        settings.outside.clone_from(outside);
    }
    Ok(settings)
}

/// The port asked for, or the first free one from 6443 on.
fn choose_port(asked: Option<u16>, host: Ipv4Addr) -> Result<u16> {
    let free = |port: u16| {
        let addresses = [Ipv4Addr::LOCALHOST, host].map(|ip| SocketAddr::from((ip, port)));
        addresses.iter().try_for_each(|address| TcpListener::bind(address).map(drop))
    };
    match asked {
        Some(port) => {
            free(port)
                .with_context(|| format!("--port {port} cannot be used: choose another or leave it out"))?;
            Ok(port)
        }
        None => (FIRST_PORT..FIRST_PORT + PORTS_TRIED)
            .find(|port| free(*port).is_ok())
            .with_context(|| format!("no free port from {FIRST_PORT} on: name one with --port")),
    }
}

/// Pins need a bpffs. Where the host has none, one is mounted, and `down` takes it away.
fn mount_bpffs(cluster: &Cluster) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPF_DIR) && fields.next() == Some("bpf")
    });
    if !mounted {
        mount("bpf", BPF_DIR, "bpf", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
            .with_context(|| format!("mount a bpffs at {BPF_DIR}"))?;
        write_atomically(&cluster.bpffs_note(), "mounted by pith up\n")?;
    }
    let dir = cluster.bpf_dir();
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))
}

/// The interface through which pods reach the outside, if there is one that can be used.
fn way_out(outside: &str) -> Result<Option<String>> {
    let interface = match outside {
        "none" => return Ok(None),
        "auto" => match uplink::of_default_route() {
            Ok(interface) => interface,
            Err(_) => {
                println!("pods cannot reach the outside: this machine has no default route");
                return Ok(None);
            }
        },
        name => name.to_owned(),
    };
    if uplink::is_ethernet(&interface) && uplink::first_address(&interface).is_ok() {
        return Ok(Some(interface));
    }
    if outside != "auto" {
        bail!("--outside {interface}: not an Ethernet interface with an IPv4 address");
    }
    println!("pods cannot reach the outside: {interface} is not an Ethernet interface with an IPv4 address");
    Ok(None)
}

async fn start_primary(
    cluster: &Cluster,
    settings: &Settings,
    topology: &Topology,
    way_out: Option<String>,
) -> Result<Option<(String, Child)>> {
    let host = topology.addressing.host();
    let daemon = cluster.daemon("primary");
    if daemon.running()?.is_some() {
        return Ok(None);
    }
    let mut command = Command::new(own_program()?);
    command.arg("primary").arg("--dir").arg(cluster.primary_dir());
    let six = settings.dual_stack.then(|| Networks6::of(&cluster.name));
    command.args(["--name", &settings.name]);
    command.args(["--pod-cidr", &pair(settings.pod_cidr, six.map(|six| six.pods))]);
    command.args(["--service-cidr", &pair(settings.service_cidr, six.map(|six| six.services))]);
    if let Some(pool) = topology.addressing.balancers() {
        command.args(["--balancer-cidr", &pair(pool, six.map(|six| six.balancers))]);
    }
    command.args(settings.times.flags());
    // The bridge's address is advertised: replicas and pods reach the API there.
    command.arg("--listen").arg(SocketAddr::from((host, settings.port)).to_string());
    command.arg("--listen").arg(SocketAddr::from((Ipv4Addr::LOCALHOST, settings.port)).to_string());
    if let Some(outside) = way_out {
        command.args(["--gateway-to", &topology.bridge, "--gateway-cidr", &settings.node_cidr.to_string()]);
        command.args(["--outside", &outside]).arg("--gateway-bpf-dir").arg(cluster.gateway_bpf_dir());
    }
    let child = daemon.start(command).await?;
    let kubeconfig = cluster.primary_dir().join("kubeconfig");
    let text = fs::read_to_string(&kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    write_atomically(&cluster.kubeconfig(), &text)?;
    Ok(Some(("primary".to_owned(), child)))
}

async fn start_replicas(
    cluster: &Cluster,
    settings: &Settings,
    topology: &Topology,
    client: &Client,
) -> Result<Vec<(String, Child)>> {
    let missing: Vec<(String, &ReplicaNet)> = (1..=settings.replicas)
        .map(replica_name)
        .zip(&topology.replicas)
        .filter_map(|(name, net)| match cluster.daemon(&name).running() {
            Ok(Some(_)) => None,
            Ok(None) => Some(Ok((name, net))),
            Err(error) => Some(Err(error)),
        })
        .collect::<Result<_>>()?;
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let token = token::create(client, &cluster.kubeconfig(), TOKEN_TTL).await?.to_string();
    let url = format!("https://{}:{}", topology.addressing.host(), settings.port);
    let starts = missing.into_iter().map(|(name, net)| {
        let command = replica_command(cluster, settings, topology, &name, net, &url, &token);
        async move { Ok::<_, anyhow::Error>((name.clone(), cluster.daemon(&name).start(command?).await?)) }
    });
    futures::stream::iter(starts).buffer_unordered(usize::from(settings.replicas)).try_collect().await
}

fn replica_command(
    cluster: &Cluster,
    settings: &Settings,
    topology: &Topology,
    name: &str,
    net: &ReplicaNet,
    url: &str,
    token: &str,
) -> Result<Command> {
    let mut command = Command::new(own_program()?);
    command.arg("replica").arg("--dir").arg(cluster.replica_dir(name));
    command.arg("--run-dir").arg(cluster.run_dir().join(name));
    command.args(["--join", url, "--node-name", name]);
    // Not on the command line, where every user of the machine could read it.
    command.env("PITH_TOKEN", token);
    command.arg("--node-ip").arg(pair(net.address, net.address6));
    command.args(["--uplink", topology::UPLINK, "--netns", net.netns.name()]);
    let six = settings.dual_stack.then(|| Networks6::of(&cluster.name));
    command.arg("--cluster-cidr").arg(pair(topology.addressing.pods, six.map(|six| six.pods)));
    command.arg("--cgroup").arg(format!("{}/{name}", cluster.cgroup()));
    command.arg("--bpf-dir").arg(cluster.bpf_dir().join(name));
    command.args(settings.images.flags());
    command.args(settings.limits.flags());
    // Where the API server's proxy of nodes asks.
    let metrics = SocketAddr::from((net.address, METRICS_PORT));
    command.arg("--metrics-bind-address").arg(metrics.to_string());
    Ok(command)
}

/// What there is of both families, as flags take it.
fn pair(four: impl Display, six: Option<impl Display>) -> String {
    six.map_or_else(|| four.to_string(), |six| format!("{four},{six}"))
}

/// The families that the first `up` chose stay.
fn dual_stack(args: &UpArgs, known: Option<&Settings>) -> bool {
    known.map_or(args.dual_stack, |settings| settings.dual_stack)
}

fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("find this program's own file")
}

/// Waits until as many nodes are Ready as there are replicas.
async fn wait_for_nodes(client: Client, replicas: u16) -> Result<()> {
    let mut events = watcher(Api::<Node>::all(client), watcher::Config::default()).applied_objects().boxed();
    let mut ready = std::collections::BTreeSet::new();
    let all_ready = async {
        while ready.len() < usize::from(replicas) {
            let node = events.try_next().await.context("watch nodes")?.context("the watch of nodes ended")?;
            let name = node.metadata.name.clone().unwrap_or_default();
            if status::is_ready(&node) {
                ready.insert(name)
            } else {
                ready.remove(&name)
            };
        }
        Ok::<_, anyhow::Error>(())
    };
    match tokio::time::timeout(NODES_READY_DEADLINE, all_ready).await {
        Ok(outcome) => outcome,
        Err(_) => bail!(
            "{} of {replicas} replicas are Ready after {} s: see `pith status` and the logs",
            ready.len(),
            NODES_READY_DEADLINE.as_secs()
        ),
    }
}

/// Stays until Ctrl-C or SIGTERM, and says when a process of the cluster ends meanwhile.
async fn stay(children: Vec<(String, Child)>) -> Result<()> {
    let mut ends: JoinSet<(String, std::io::Result<ExitStatus>)> = JoinSet::new();
    for (name, mut child) in children {
        ends.spawn(async move {
            let status = child.wait().await;
            (name, status)
        });
    }
    let stop = crate::roles::cancelled_by_signals()?;
    loop {
        // Both may be dropped: a cancelled token stays cancelled, an ended child stays in the set.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(ended) = ends.join_next() => {
                let (name, status) = ended.context("wait for a process")?;
                let status = status.with_context(|| format!("wait for {name}"))?;
                eprintln!("pith: {name} ended with {status}; `pith up --detach` starts it again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_refused_when_asked_for_and_passed_over_when_not() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = taken.local_addr().expect("bound").port();
        let error = choose_port(Some(port), Ipv4Addr::LOCALHOST).expect_err("in use");
        assert!(error.to_string().contains(&port.to_string()), "{error}");
        assert_ne!(choose_port(None, Ipv4Addr::LOCALHOST).expect("one is free"), port);
    }
}
