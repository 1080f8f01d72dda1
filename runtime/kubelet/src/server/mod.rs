//! The server on port 10250: what the API server asks of a node.
//!
//! | path | answers |
//! |---|---|
//! | `/healthz`, `/pods` | `ok`; this node's pods |
//! | `/containerLogs/{namespace}/{pod}/{container}` | its log, also followed |
//! | `/exec/…`, `/attach/…`, `/portForward/{namespace}/{pod}` | upgraded connections |
//! | `/stats/summary`, `/metrics`, `/metrics/resource` | figures |
//!
//! TLS only. Whoever asks shows a certificate of the cluster's authority for the API server's identity or
//! for `system:masters`; anyone else gets 401 or 403 and nothing is looked up for them.

mod attach;
mod exec;
mod figures;
mod forward;
mod logs;
mod query;
mod stdio;
mod tls;

use std::{collections::HashMap, convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, net::TcpStream, sync::watch, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Serving,
    context::{Context, PodCell},
    desired::PodUid,
    network::chain,
    observed::ContainerId,
};

pub use tls::TlsError;

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type Cells = watch::Receiver<HashMap<PodUid, Arc<PodCell>>>;

/// A client that connects has this long to finish its handshake, and to send the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A server that listens and has not begun to answer.
pub(crate) struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    /// What `acceptor` is made from.
    serving: watch::Receiver<Serving>,
    node: Arc<Context>,
    cells: Cells,
}

/// What one request is answered from.
#[derive(Clone)]
struct Answerer {
    node: Arc<Context>,
    cells: Cells,
    sessions: Sessions,
    /// Whether the client may ask anything: decided once a connection, by its certificate.
    standing: tls::Standing,
}

/// Upgraded connections: they outlive the requests that began them, and end with the server.
#[derive(Clone)]
struct Sessions {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Sessions {
    fn spawn(&self, session: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                // Dropping a session closes its connection and kills its process.
                () = stop.cancelled() => {}
                () = session => {}
            }
        });
    }
}

impl Server {
    pub(crate) async fn bind(
        node: Arc<Context>,
        mut serving: watch::Receiver<Serving>,
        cells: Cells,
    ) -> Result<Self, ServerError> {
        let address = node.config.listen;
        let acceptor = TlsAcceptor::from(Arc::new(tls::config(&serving.borrow_and_update())?));
        let listen = TcpListener::bind(address).await;
        let listener = listen.map_err(|source| ServerError::Listen { address, source })?;
        Ok(Self { listener, acceptor, serving, node, cells })
    }

    /// Answers until `stop`, which also ends every connection.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let sessions = Sessions { tracker: TaskTracker::new(), stop: stop.clone() };
        loop {
            tokio::select! {
                // Connections end with the set.
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let sessions = sessions.clone();
                        let (node, cells) = (self.node.clone(), self.cells.clone());
                        let answer = move |standing| Answerer { node, cells, sessions, standing };
                        connections.spawn(connection(self.acceptor.clone(), stream, answer));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection");
                        // Out of descriptors, for one: trying again at once would only burn time.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Ok(()) = self.serving.changed() => self.renew_certificate(),
                Some(_) = connections.join_next() => {}
            }
        }
        sessions.tracker.close();
        sessions.tracker.wait().await;
    }

    /// For connections from now on; those that there are keep what they were made with.
    fn renew_certificate(&mut self) {
        match tls::config(&self.serving.borrow_and_update()) {
            Ok(config) => self.acceptor = TlsAcceptor::from(Arc::new(config)),
            Err(error) => tracing::warn!(error = chain(&error), "the server keeps its certificate"),
        }
    }
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    answerer: impl FnOnce(tls::Standing) -> Answerer,
) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let answerer = answerer(tls::standing(stream.get_ref().1));
    let service = hyper::service::service_fn(move |request| {
        let answerer = answerer.clone();
        async move { Ok::<_, Infallible>(answerer.answer(request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended early");
    }
}

impl Answerer {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        match &self.standing {
            tls::Standing::Trusted => {}
            tls::Standing::Unknown => return text(StatusCode::UNAUTHORIZED, "Unauthorized"),
            tls::Standing::Refused(name) => {
                return text(StatusCode::FORBIDDEN, format!("Forbidden (user={name})"));
            }
        }
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let get = request.method() == Method::GET;
        let streams = get || request.method() == Method::POST;
        match parts.as_slice() {
            ["healthz"] if get => text(StatusCode::OK, "ok"),
            ["pods"] if get => self.pods(),
            ["stats", "summary"] if get => figures::summary(&self.node, self.list()).await,
            ["metrics"] if get => figures::metrics(self.list()),
            ["metrics", "resource"] if get => figures::resource(&self.node, self.list()).await,
            ["containerLogs", namespace, pod, container] if get => match self.find(namespace, pod) {
                Some(cell) => logs::answer(cell, container, request.uri().query()).await,
                None => text(StatusCode::NOT_FOUND, no_pod(namespace, pod)),
            },
            [verb @ ("exec" | "attach"), namespace, pod, rest @ .., container]
                if streams && rest.len() <= 1 =>
            {
                match self.running(namespace, pod, container) {
                    Ok((cell, id)) if *verb == "exec" => exec::answer(&self.sessions, cell, id, request),
                    Ok((cell, id)) => attach::answer(&self.sessions, cell, container, id, request),
                    Err(missing) => text(StatusCode::NOT_FOUND, missing),
                }
            }
            ["portForward", namespace, pod, ..] if streams => match self.find(namespace, pod) {
                Some(cell) => forward::answer(&self.sessions, cell, request),
                None => text(StatusCode::NOT_FOUND, no_pod(namespace, pod)),
            },
            _ => text(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }

    fn list(&self) -> Vec<Arc<PodCell>> {
        self.cells.borrow().values().cloned().collect()
    }

    /// The pod of that name; of several, one that is not on its way out.
    fn find(&self, namespace: &str, name: &str) -> Option<Arc<PodCell>> {
        let cells = self.cells.borrow();
        let named = cells.values().filter(|c| c.id.namespace == namespace && c.id.name == name);
        named.max_by_key(|c| c.desired.borrow().fate == crate::desired::Fate::Run).cloned()
    }

    /// A container that runs; what is missing, otherwise.
    fn running(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<(Arc<PodCell>, ContainerId), String> {
        let cell = self.find(namespace, pod).ok_or_else(|| no_pod(namespace, pod))?;
        let record = cell.record();
        match record.containers.get(container) {
            Some(c) if c.exit.is_none() && cell.sandbox().is_some() => Ok((cell, c.id.clone())),
            Some(_) | None => Err(format!("container not found (\"{container}\")")),
        }
    }

    fn pods(&self) -> Response<Body> {
        let items: Vec<_> = self
            .list()
            .iter()
            .map(|cell| {
                let mut pod = (*cell.desired().pod).clone();
                if let Some(status) = &*cell.status.borrow() {
                    pod.status = Some((**status).clone());
                }
                pod
            })
            .collect();
        let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
        typed("application/json", list.to_string())
    }
}

fn refuse(refusal: &pith_streaming::Refusal) -> Response<Body> {
    text(refusal.status(), refusal.to_string())
}

fn no_pod(namespace: &str, pod: &str) -> String {
    format!("pod \"{namespace}/{pod}\" not found")
}

pub(crate) fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn text(status: StatusCode, content: impl Into<String>) -> Response<Body> {
    let mut response = typed("text/plain; charset=utf-8", content.into());
    *response.status_mut() = status;
    response
}

fn typed(content_type: &'static str, content: String) -> Response<Body> {
    let mut response = Response::new(full(content));
    let value = http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(http::header::CONTENT_TYPE, value);
    response
}
