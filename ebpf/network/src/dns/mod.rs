//! The replica's name server: the names of Services and pods, and everybody else's by asking on.
//!
//! One task watches Services and EndpointSlices and keeps the [`Catalog`](catalog::Catalog) up to date;
//! one answers UDP and one accepts TCP. What the cluster knows is answered at once from the catalog;
//! other names are asked of the machine's resolvers, a bounded number at a time.
//!
//! Invariant: until the first lists are complete, names of the cluster are answered with SERVFAIL, so that
//! no client remembers that a Service does not exist when nobody has looked yet.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, RwLock},
};

use ipnet::IpNet;
use kube::Client;
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

mod answer;
mod catalog;
mod forward;
mod question;
pub mod resolv;
mod server;
mod watch;

use catalog::Catalog;
use forward::Forwarder;
use server::Server;

/// The customary cluster domain.
pub const DOMAIN: &str = "cluster.local";
/// The port of name servers.
pub const PORT: u16 = 53;

/// What a name server needs to know.
#[derive(Debug)]
pub struct Config {
    /// Where to listen, UDP and TCP: the gateway's address, port 53.
    pub listen: SocketAddr,
    /// The cluster's domain, without a dot at the end.
    pub domain: String,
    /// Whom to ask for other names, in order. None of them: such names are refused.
    pub resolvers: Vec<SocketAddr>,
    /// The namespace from which they are reached; `None` is the one of the calling thread. A replica of
    /// `pith up` asks from the host's, where its resolvers may be on the loopback.
    pub resolvers_netns: Option<OwnedFd>,
    /// Addresses of pods and Services: nobody else can name them, so nobody else is asked.
    pub own_addresses: Vec<IpNet>,
}

/// Why there is no name server.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The address cannot be listened on.
    #[error("listen on {address}/{protocol}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// `udp` or `tcp`.
        protocol: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// The domain is none.
    #[error("cluster domain {0:?} is no domain name")]
    Domain(String),
    /// The resolvers' namespace cannot be entered.
    #[error("enter the network namespace of the resolvers")]
    ResolversNetns(#[source] std::io::Error),
}

/// A name server that listens already and answers once it [runs](Dns::run).
#[derive(Debug)]
pub struct Dns {
    udp: UdpSocket,
    tcp: TcpListener,
    server: Arc<Server>,
}

impl Dns {
    /// Listens. Must be called within the runtime.
    ///
    /// # Errors
    /// See [`DnsError`].
    pub async fn bind(config: Config) -> Result<Self, DnsError> {
        let address = config.listen;
        let failed = |protocol| move |source| DnsError::Listen { address, protocol, source };
        let udp = UdpSocket::bind(address).await.map_err(failed("udp"))?;
        // Port 0 in tests: the same for both.
        let address = udp.local_addr().map_err(failed("udp"))?;
        let tcp = TcpListener::bind(address).await.map_err(failed("tcp"))?;
        let zone = question::Zone::new(&config.domain, address.ip(), config.own_addresses)
            .ok_or_else(|| DnsError::Domain(config.domain.clone()))?;
        // A resolver that is this server would be asked what it asks.
        let resolvers = config.resolvers.into_iter().filter(|it| *it != address).collect();
        let forwarder =
            Forwarder::new(resolvers, config.resolvers_netns).map_err(DnsError::ResolversNetns)?;
        let catalog = RwLock::new(Catalog::default());
        Ok(Self { udp, tcp, server: Arc::new(Server { zone, catalog, forwarder }) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.udp.local_addr().expect("it is bound")
    }

    /// Answers until cancelled.
    pub async fn run(self, client: Client, cancel: CancellationToken) {
        let Self { udp, tcp, server } = self;
        let mut tasks = JoinSet::new();
        tasks.spawn(watch::services(client.clone(), Arc::clone(&server)));
        tasks.spawn(watch::slices(client, Arc::clone(&server)));
        tasks.spawn(server::serve_udp(udp, Arc::clone(&server)));
        tasks.spawn(server::serve_tcp(tcp, server));
        // None of them ends by itself; cancelled, they end with the set: a question half answered is asked
        // again by its client.
        cancel.cancelled().await;
        tasks.shutdown().await;
    }
}

/// Listens and answers until cancelled.
///
/// # Errors
/// See [`DnsError`].
pub async fn run(client: Client, config: Config, cancel: CancellationToken) -> Result<(), DnsError> {
    Dns::bind(config).await?.run(client, cancel).await;
    Ok(())
}

/// The addresses of resolvers, on the port of name servers.
pub fn resolvers(addresses: &[IpAddr]) -> Vec<SocketAddr> {
    addresses.iter().map(|address| SocketAddr::new(*address, PORT)).collect()
}
