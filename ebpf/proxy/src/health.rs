//! Answers to load balancers that ask whether a Service has endpoints on this node (healthCheckNodePort).
//!
//! One listener a Service. What it answers is a number that the driver sets; 200 where it is above 0, else 503,
//! as kube-proxy does.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tracing::warn;

use crate::{plan::Health, service::ServiceName};

/// Questions answered at one time for one Service; the next waits.
const MAX_CONNECTIONS: usize = 32;
/// How long a question may take to arrive.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of a question that are read.
const MAX_HEAD: usize = 4096;

struct Listening {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    task: AbortHandle,
}

/// All listeners of this node. They end with it.
#[derive(Default)]
pub(crate) struct Servers {
    by_service: HashMap<ServiceName, Listening>,
    tasks: JoinSet<()>,
}

impl Servers {
    /// Makes a Service's listener what the plan says.
    pub(crate) fn set(&mut self, service: &ServiceName, health: Option<Health>) {
        match (self.by_service.get(service), health) {
            (Some(known), Some(health)) if known.port == health.port => {
                known.endpoints.store(health.endpoints, Ordering::Relaxed);
                return;
            }
            (None, None) => return,
            _ => {}
        }
        if let Some(old) = self.by_service.remove(service) {
            old.task.abort();
        }
        while self.tasks.try_join_next().is_some() {}
        let Some(health) = health else { return };
        let endpoints = Arc::new(AtomicUsize::new(health.endpoints));
        match listen(health.port) {
            Ok(listener) => {
                let task = self.tasks.spawn(serve(listener, service.clone(), endpoints.clone()));
                self.by_service.insert(service.clone(), Listening { port: health.port, endpoints, task });
            }
            // Balancing goes on; balancers take a node that does not answer for one without endpoints.
            Err(error) => warn!(%service, port = health.port, %error, "nobody can ask for its health"),
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn serve(listener: TcpListener, service: ServiceName, endpoints: Arc<AtomicUsize>) {
    let connections = stream::unfold(&listener, |listener| async move {
        loop {
            // A connection that failed before it was taken is the client's business.
            if let Ok((stream, _)) = listener.accept().await {
                return Some((stream, listener));
            }
            tokio::task::yield_now().await;
        }
    });
    let answer = |stream| {
        let answer = answer(stream, &service, endpoints.load(Ordering::Relaxed));
        // A client that went away is its own business.
        async { drop(timeout(ASK_TIMEOUT, answer).await) }
    };
    connections.for_each_concurrent(MAX_CONNECTIONS, answer).await;
}

async fn answer(mut stream: TcpStream, service: &ServiceName, endpoints: usize) -> io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 512];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < MAX_HEAD {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => head.extend_from_slice(&buffer[..read]),
        }
    }
    let status = if endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
    let (namespace, name) = service.0.split_once('/').unwrap_or_default();
    let body = format!(
        "{{\"service\":{{\"namespace\":\"{namespace}\",\"name\":\"{name}\"}},\"localEndpoints\":{endpoints},\"serviceProxyHealthy\":true}}"
    );
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
