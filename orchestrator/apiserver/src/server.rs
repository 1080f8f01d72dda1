//! The running server: opened once, reached in process or over TLS.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use pith_store::Store;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::{Tolerations, service_ranges::ServiceCidrs, services::Allocations},
    authn::Proof,
    authz::BuiltinRules,
    bootstrap::{self, Existing},
    expiry,
    http::{Body, BodyError, BoxError, RequestBody},
    identity::Identity,
    metrics::Metrics,
    objects::Objects,
    openapi::Documents,
    pki::{self, Pki, kubeconfig, token::BootstrapToken},
    router,
    service_tokens::ServiceTokens,
    state::{MAX_IN_FLIGHT, State},
    stream_proxy::Kubelets,
    tls::{self, Names},
};

/// A client that does not finish its handshake in this time is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that are under way when the server stops get so long to finish.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// Connections at once.
const MAX_CONNECTIONS: usize = 16_384;

/// What a server is opened with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Keys and certificates are in `pki` below.
    pub dir: PathBuf,
    pub cluster_name: String,
    /// Where clients, replicas and pods reach this server: the endpoint of the Service `kubernetes`.
    pub advertise: SocketAddr,
    /// Further addresses and names of this server, for its certificate.
    pub further_addresses: Vec<IpAddr>,
    pub further_names: Vec<String>,
    pub service_cidr: ServiceCidrs,
    /// How long the certificates are good that processes renew by themselves: the primary's own, and those of nodes.
    pub certificate_lifetime: Duration,
    /// What pods are given that do not say how long they stay on a node in trouble.
    pub tolerations: Tolerations,
}

/// Why a server could not be opened or could not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Pki(#[from] pki::Error),
    #[error("cannot prepare the cluster's first objects: {0}")]
    Bootstrap(String),
    #[error("a listener failed")]
    Listener(#[source] std::io::Error),
}

/// The API server. Clones are handles of the same one.
#[derive(Clone)]
pub struct Server {
    state: Arc<State>,
    tls: Arc<ServerConfig>,
    cluster_name: String,
    service_cidr: ServiceCidrs,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("cluster_name", &self.cluster_name).finish_non_exhaustive()
    }
}

impl Server {
    /// Makes or reads the keys, and makes the objects that every cluster has.
    pub async fn open(config: Config, store: Arc<dyn Store>) -> Result<Self, Error> {
        let pki = Arc::new(Pki::open(&config.dir.join("pki"), config.certificate_lifetime)?);
        let mut addresses = vec![
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
            config.advertise.ip(),
            config.service_cidr.primary().first(),
        ];
        addresses.extend(&config.further_addresses);
        addresses.sort();
        addresses.dedup();
        let tls = tls::server_config(&pki, Names::new(config.further_names, addresses))?;
        let objects = Objects { store };
        let failed = |error: pith_api::ApiError| Error::Bootstrap(error.to_string());
        bootstrap::objects(&objects, &config.service_cidr, config.advertise, Existing::Replaced)
            .await
            .map_err(failed)?;
        let services = bootstrap::services(&objects).await.map_err(failed)?;
        let state = State {
            services: Allocations::rebuild(config.service_cidr, services.iter()),
            tolerations: config.tolerations,
            tokens: ServiceTokens::new(&pki),
            kubelets: Kubelets::new(&pki)?,
            authorizer: Box::new(BuiltinRules),
            metrics: Metrics::new(),
            openapi: Documents::default(),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            advertise: (config.advertise.ip(), config.advertise.port()),
            stopping: CancellationToken::new(),
            streams: TaskTracker::new(),
            objects,
            pki,
        };
        let service_cidr = config.service_cidr;
        Ok(Self { state: Arc::new(state), tls, cluster_name: config.cluster_name, service_cidr })
    }

    /// A client inside this process: the same router, no socket, acting as `identity`.
    pub fn client(&self, identity: Identity) -> kube::Client {
        kube::Client::new(InProcess { state: self.state.clone(), identity }, "default")
    }

    /// The cluster's keys.
    pub fn pki(&self) -> &Pki {
        &self.state.pki
    }

    /// A kubeconfig for the administrator; `server` is a URL.
    pub fn admin_kubeconfig(&self, server: &str) -> Result<String, Error> {
        let admin = self.state.pki.admin()?;
        Ok(kubeconfig(&self.cluster_name, server, self.state.pki.authority.certificate_pem(), &admin))
    }

    /// Makes a token that replicas can join with for as long as `lifetime`.
    pub async fn create_token(&self, lifetime: Duration) -> Result<BootstrapToken, Error> {
        let token = BootstrapToken::generate(&self.state.pki.authority.key_hash());
        let failed = |error: pith_api::ApiError| Error::Bootstrap(error.to_string());
        bootstrap::token(&self.state.objects, &token, lifetime).await.map_err(failed)?;
        Ok(token)
    }

    /// Serves on these listeners until `cancel`, then lets requests finish for a moment. Watches and streams end
    /// at once. The server cannot be served again afterwards.
    pub async fn serve(&self, listeners: Vec<TcpListener>, cancel: CancellationToken) -> Result<(), Error> {
        let mut tasks = JoinSet::new();
        let connections = TaskTracker::new();
        for listener in listeners {
            tasks.spawn(accept(self.clone(), listener, connections.clone()));
        }
        tasks.spawn(expiry::run(self.state.clone()));
        tasks.spawn(bootstrap::keep(self.state.clone(), self.service_cidr));
        let outcome = tokio::select! {
            // The wait for listeners may be cancelled: they are told to stop below.
            () = cancel.cancelled() => Ok(()),
            Some(ended) = tasks.join_next() => ended.unwrap_or_else(|panic| Err(std::io::Error::other(panic))),
        };
        self.state.stopping.cancel();
        connections.close();
        self.state.streams.close();
        let all = async {
            while tasks.join_next().await.is_some() {}
            connections.wait().await;
            self.state.streams.wait().await;
        };
        if tokio::time::timeout(SHUTDOWN_DEADLINE, all).await.is_err() {
            tracing::warn!(connections = connections.len(), "connections were cut at shutdown");
        }
        outcome.map_err(Error::Listener)
    }
}

/// Accepts until the server stops.
async fn accept(server: Server, listener: TcpListener, connections: TaskTracker) -> std::io::Result<()> {
    let stopping = server.state.stopping.clone();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            // A connection that is accepted and lost here would be closed like all others at shutdown.
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => return Ok(()),
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // The client is gone already, or descriptors ran out: the next one may work.
            Err(error) if is_passing(&error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(limit = MAX_CONNECTIONS, "too many connections: one is refused");
            continue;
        };
        let (server, stopping) = (server.clone(), stopping.clone());
        connections.spawn(async move {
            let _place = place;
            if let Err(error) = connection(&server, stream, stopping).await {
                tracing::debug!(%error, "connection");
            }
        });
    }
}

fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    // EMFILE and ENFILE have no kind of their own (accept(2)).
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
        || matches!(error.raw_os_error(), Some(23 | 24))
}

async fn connection(server: &Server, stream: TcpStream, stopping: CancellationToken) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let handshake = TlsAcceptor::from(server.tls.clone()).accept(stream);
    let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await??;
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let proof = certificate.and_then(Proof::of_certificate);
    let state = server.state.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (state, proof) = (state.clone(), proof.clone());
        async move {
            let mut request =
                request.map(|body| body.map_err(|error| BodyError(error.into())).boxed_unsync());
            if let Some(proof) = proof {
                request.extensions_mut().insert(proof);
            }
            Ok::<_, Infallible>(router::handle(state, request).await)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // Not cancelled here: the other arm goes on with the same connection.
        done = connection.as_mut() => return done,
        () = stopping.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::time::timeout(SHUTDOWN_DEADLINE, connection).await?
}

/// The router as a tower service, for clients in this process.
#[derive(Clone)]
struct InProcess {
    state: Arc<State>,
    identity: Identity,
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request: Request<RequestBody> =
            request.map(|body| body.map_err(|error| BodyError(error.into())).boxed_unsync());
        request.extensions_mut().insert(Proof::in_process(self.identity.clone()));
        let state = self.state.clone();
        Box::pin(async move { Ok(router::handle(state, request).await) })
    }
}
