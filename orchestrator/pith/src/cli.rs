//! The command line, a contract: scripts and tests rely on these names and defaults.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use pith_apiserver::{NoCidr, ServiceCidr, ServiceCidrs};
use pith_controllers::ClusterCidr;
use pith_image::{Platform, Reference};
use pith_network::names::ClusterName;

use crate::inspect::InspectArgs;
use crate::roles::proxying::AskArgs;
use crate::run::RunArgs;
use crate::why::Destination;

mod families;
mod kept;

pub(crate) use families::{Addresses, Networks};
pub(crate) use kept::{Kept, LimitArgs, ReplicaImageArgs, Snapshotter, Time, TimeArgs};

/// Where state lives unless `--dir` says otherwise.
pub(crate) const DEFAULT_DIR: &str = "/var/lib/pith";

#[derive(Parser)]
#[command(
    name = "pith",
    version,
    about = "A small Kubernetes whose replicas talk straight to the kernel",
    propagate_version = true
)]
pub(crate) struct Cli {
    /// What to log, in tracing's filter syntax (for example `info,pith_kubelet=debug`).
    #[arg(long, global = true, env = "PITH_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that do not go together in a way that clap cannot see: like its own refusals, exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsedWrongly(pub(crate) String);

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Start a whole cluster on this machine, or whatever of it is not running.
    Up(UpArgs),
    /// Stop a cluster that `up` started and leave nothing of it behind.
    Down(DownArgs),
    /// Show the replicas, pods and Services of a cluster on this machine.
    Status(StatusArgs),
    /// Show what a replica's eBPF programs know of Services: backends, generations, flows, verdicts.
    Services(ServicesArgs),
    /// Say what would happen to a packet, and why: every lookup, rule and rewrite, out of a replica's live maps.
    Why(WhyArgs),
    /// Run a primary: API server, controllers, scheduler.
    Primary(PrimaryArgs),
    /// Run a replica: kubelet, eBPF proxy, DNS.
    Replica(ReplicaArgs),
    /// Run only the eBPF kube-proxy, against any Kubernetes API.
    Proxy(ProxyArgs),
    /// Create bootstrap tokens with which replicas join.
    Token(TokenArgs),
    /// Look after a replica's image store.
    Image(ImageArgs),
    /// Run one container without any cluster.
    Run(RunArgs),
    /// Show a running container as the kernel has it.
    Inspect(InspectArgs),
    /// Say what this kernel can and cannot do for pith, and what to change.
    Doctor(DoctorArgs),
}

/// Which cluster of this machine is meant.
#[derive(Args, Clone)]
pub(crate) struct ClusterArgs {
    /// The cluster's name: several can run side by side.
    #[arg(long, default_value = "pith", value_parser = ClusterName::parse)]
    pub(crate) name: ClusterName,
    /// Where its state is kept [default: /var/lib/pith, or /var/lib/pith-NAME for another name].
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    #[default]
    Text,
    Json,
}

#[derive(Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// How many replicas, each in a network namespace of its own.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) replicas: u16,
    /// Return when every replica is Ready; without it, stay until Ctrl-C and stop the cluster then.
    #[arg(long)]
    pub(crate) detach: bool,
    /// The subnet that joins the replicas, an IPv4 /24 [default: a free one].
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub(crate) node_cidr: Option<Ipv4Net>,
    /// The addresses of pods, an IPv4 /16 [default: a free one].
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub(crate) pod_cidr: Option<Ipv4Net>,
    /// The addresses of Services.
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/16", value_parser = services)]
    pub(crate) service_cidr: Ipv4Net,
    /// Nodes and pods also have IPv6 addresses, and Services whose `ipFamilyPolicy` says so. Only the way out of the
    /// cluster is of IPv4 alone. The first `up` decides.
    #[arg(long)]
    pub(crate) dual_stack: bool,
    /// The API server's port [default: 6443, or the next free one].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// The interface through which pods reach the outside under this machine's address: `auto` is that of
    /// the default route, `none` keeps pods in [default: as in the first `up`, else auto].
    #[arg(long, value_name = "INTERFACE")]
    pub(crate) outside: Option<String>,
    #[command(flatten)]
    pub(crate) times: TimeArgs,
    #[command(flatten)]
    pub(crate) images: ReplicaImageArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

fn network(text: &str) -> Result<Ipv4Net, String> {
    text.parse().map_err(|_| "not an IPv4 network such as 10.244.0.0/16".to_owned())
}

/// Replicas have IPv4 in every case.
fn service_ranges(text: &str) -> Result<ServiceCidrs, String> {
    let ranges: ServiceCidrs = text.parse().map_err(|error: NoCidr| error.to_string())?;
    match ranges.primary().first() {
        IpAddr::V4(_) => Ok(ranges),
        IpAddr::V6(_) => Err("the first range is of IPv4: replicas without it are not supported".to_owned()),
    }
}

/// Of the sizes that the API server takes.
fn services(text: &str) -> Result<Ipv4Net, String> {
    text.parse::<ServiceCidr>().map_err(|error| error.to_string())?;
    network(text).map(|network| network.trunc())
}

#[derive(Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Stop everything but keep the state folder, so that the next `up` goes on from it.
    #[arg(long)]
    pub(crate) keep_state: bool,
}

#[derive(Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Args)]
pub(crate) struct ServicesArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Whose programs.
    #[arg(long, value_name = "NAME", default_value = "replica-1")]
    pub(crate) replica: String,
    /// Where its maps are pinned, for a replica or proxy that `up` has not started.
    #[arg(long, value_name = "FOLDER", conflicts_with = "replica")]
    pub(crate) bpf_dir: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Args)]
pub(crate) struct WhyArgs {
    /// Who sends it: an address, or a pod by [NAMESPACE/]NAME.
    #[arg(value_name = "SRC")]
    pub(crate) source: String,
    /// To whom: an address ([ADDRESS]:PORT in IPv6) or a Service by NAME[.NAMESPACE]; ADDRESS/ICMP for a ping.
    #[arg(value_name = "DST:PORT/PROTO")]
    pub(crate) destination: Destination,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Where the packet is seen [default: the sender's replica, else replica-1].
    #[arg(long, value_name = "NAME")]
    pub(crate) replica: Option<String>,
    /// Where the maps are pinned, for a replica or proxy that `up` has not started.
    #[arg(long, value_name = "FOLDER", conflicts_with = "replica")]
    pub(crate) bpf_dir: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Args)]
pub(crate) struct PrimaryArgs {
    /// Where the store, the keys and the admin kubeconfig are kept.
    #[arg(long, default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
    /// Address to serve the API on; may be given several times. The first is the one advertised.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6443")]
    pub(crate) listen: Vec<SocketAddr>,
    /// Where objects are stored: only `embedded` for now.
    #[arg(long, default_value = "embedded", value_parser = ["embedded"])]
    pub(crate) store: String,
    /// The cluster's name in the kubeconfig.
    #[arg(long, default_value = "pith", value_parser = ClusterName::parse)]
    pub(crate) name: ClusterName,
    /// The addresses of pods, of IPv4 or of both families: 10.244.0.0/16,fd00:244::/48. Each replica gets a /24 and
    /// a /64 of them.
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "10.244.0.0/16")]
    pub(crate) pod_cidr: ClusterCidr,
    /// The addresses of Services.
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "10.96.0.0/16", value_parser = service_ranges)]
    pub(crate) service_cidr: ServiceCidrs,
    /// The pool of addresses for Services of type LoadBalancer, of one family or one of each. The network in front of
    /// the nodes must lead there, or be the nodes' own: then one of them answers for each. Without it nobody gives
    /// addresses.
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub(crate) balancer_cidr: Option<Networks>,
    /// A network behind this machine that leaves under its address: the interface that leads there. `pith up`
    /// names its bridge.
    #[arg(long, value_name = "INTERFACE", requires_all = ["gateway_cidr", "outside", "gateway_bpf_dir"])]
    pub(crate) gateway_to: Option<String>,
    /// The addresses of that network.
    #[arg(long, value_name = "CIDR")]
    pub(crate) gateway_cidr: Option<pith_proxy::Cidr>,
    /// The interface through which it leaves.
    #[arg(long, value_name = "INTERFACE")]
    pub(crate) outside: Option<String>,
    /// Where the gateway's maps and links are pinned.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) gateway_bpf_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) times: TimeArgs,
}

#[derive(Args)]
pub(crate) struct ReplicaArgs {
    /// Where images, pods' volumes and credentials are kept.
    #[arg(long, default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
    /// Where sockets are kept.
    #[arg(long, default_value = "/run/pith")]
    pub(crate) run_dir: PathBuf,
    /// The API server to join, for example https://10.0.0.1:6443.
    #[arg(long, value_name = "URL", requires = "token", conflicts_with = "kubeconfig")]
    pub(crate) join: Option<String>,
    /// The bootstrap token, from `pith token create`.
    #[arg(long, env = "PITH_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Credentials in place of a token, for pith or any other Kubernetes API.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The node's name [default: the host's name].
    #[arg(long)]
    pub(crate) node_name: Option<String>,
    /// The node's address, or one of each family [default: the uplink's first, of IPv4].
    #[arg(long, value_name = "ADDRESS[,ADDRESS]")]
    pub(crate) node_ip: Option<Addresses>,
    /// The interface that leads to the other nodes [default: the default route's].
    #[arg(long, value_name = "INTERFACE")]
    pub(crate) uplink: Option<String>,
    /// Where packets of known connections to backends on other nodes are sent on: in the uplink's driver (XDP) or behind
    /// it (tcx). `auto`: in the driver of physical devices. Where the driver refuses, tcx does it, and an event says so.
    #[arg(long, value_name = "auto|native|off", default_value = "auto")]
    pub(crate) xdp: pith_proxy::Xdp,
    /// The network namespace to live in, a name under /run/netns [default: the one it is started in].
    #[arg(long, value_name = "NAME")]
    pub(crate) netns: Option<String>,
    /// The addresses of all pods of the cluster; what pods send elsewhere is masqueraded.
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub(crate) cluster_cidr: Option<Networks>,
    /// The cgroup subtree of this replica, relative to each hierarchy's root.
    #[arg(long, default_value = "pith/replica")]
    pub(crate) cgroup: String,
    /// Folder for pinned maps and links below a bpffs.
    #[arg(long, default_value = "/sys/fs/bpf/pith/replica")]
    pub(crate) bpf_dir: PathBuf,
    /// Most pods at a time.
    #[arg(long, default_value_t = 250)]
    pub(crate) max_pods: u32,
    #[command(flatten)]
    pub(crate) images: ReplicaImageArgs,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

#[derive(Args)]
pub(crate) struct ProxyArgs {
    /// Credentials for the Kubernetes API.
    #[arg(long, value_name = "FILE", required_unless_present = "cleanup")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Take away what a proxy left in the kernel, which answers for Services as they were when it ended, and no more.
    #[arg(long)]
    pub(crate) cleanup: bool,
    /// This node's name in that cluster [default: the host's name].
    #[arg(long)]
    pub(crate) node_name: Option<String>,
    /// The interface that leads to the other nodes [default: the default route's].
    #[arg(long, value_name = "INTERFACE")]
    pub(crate) uplink: Option<String>,
    /// Where packets of known connections to backends on other nodes are sent on: in the uplink's driver (XDP) or behind
    /// it (tcx). `auto`: in the driver of physical devices. Where the driver refuses, tcx does it, and an event says so.
    #[arg(long, value_name = "auto|native|off", default_value = "auto")]
    pub(crate) xdp: pith_proxy::Xdp,
    /// The v2 cgroup whose processes reach Services [default: the hierarchy's root].
    #[arg(long)]
    pub(crate) cgroup: Option<PathBuf>,
    /// Folder for pinned maps and links below a bpffs.
    #[arg(long, default_value = "/sys/fs/bpf/pith/proxy")]
    pub(crate) bpf_dir: PathBuf,
    /// How the names of pods' interfaces begin, such as `cali` or `lxc`. With it, programs at them take what
    /// no socket call translates: raw packets, pings, SCTP, clients that hold on to a backend which is gone.
    #[arg(long, value_name = "PREFIX", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) pod_interfaces: Option<String>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

#[derive(Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

#[derive(Subcommand)]
pub(crate) enum TokenCommand {
    /// Print a new bootstrap token.
    Create {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// How many hours it is good for.
        #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
        ttl_hours: u32,
    },
}

#[derive(Args)]
pub(crate) struct ImageArgs {
    /// Act on every replica of this cluster on this machine.
    #[arg(long, global = true, value_parser = ClusterName::parse)]
    pub(crate) name: Option<ClusterName>,
    /// The state folder of the replica, or with --name of the cluster.
    #[arg(long, global = true)]
    pub(crate) dir: Option<PathBuf>,
    /// Where mirrors of registries are configured, in the form of containerd's certs.d.
    #[arg(long, global = true, value_name = "DIR", default_value = pith_image::HOSTS_DIR)]
    pub(crate) hosts_dir: PathBuf,
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Read images from an OCI layout or a `docker save` archive.
    Import {
        file: PathBuf,
        /// Which of its variants, such as linux/arm64 [default: this machine's].
        #[arg(long)]
        platform: Option<Platform>,
    },
    /// Fetch an image from its registry, with the logins of `docker login` or `podman login`.
    Pull {
        reference: Reference,
        /// Which of its variants, such as linux/arm64 [default: this machine's].
        #[arg(long)]
        platform: Option<Platform>,
    },
    /// List the images.
    Ls,
    /// Forget an image; its layers go with the next gc.
    Rm { reference: String },
    /// Remove images that no container uses, and what no image uses.
    Gc {
        /// Spare images that were used or came within this time: a pod that wants one may be on its way.
        #[arg(long, value_name = "TIME", default_value = "2m")]
        min_age: Time,
        /// Only if the disk is that full, and only until it is 5 percent less so.
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
        above: Option<u8>,
    },
}

#[derive(Args)]
pub(crate) struct DoctorArgs {
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}
