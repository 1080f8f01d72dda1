//! A small HTTP server, for questions about this node that are answered from memory.

use std::{convert::Infallible, future::ready, io, net::SocketAddr, time::Duration};

use futures::{StreamExt, stream};
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tracing::debug;

/// Questions answered at one time; the next waits.
const MAX_CONNECTIONS: usize = 32;
/// How long a question may take to arrive.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) type Answer = Response<String>;

/// A listener without waiting, for who has to know at once that a port is taken.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Answers every question by `answer`, for ever.
pub(crate) async fn serve(listener: TcpListener, answer: impl Fn(&Request<Incoming>) -> Answer) {
    let connections = stream::unfold(&listener, |listener| async move {
        loop {
            // A connection that failed before it was taken is the client's business.
            if let Ok((stream, _)) = listener.accept().await {
                return Some((stream, listener));
            }
            tokio::task::yield_now().await;
        }
    });
    connections.for_each_concurrent(MAX_CONNECTIONS, |stream| talk(stream, &answer)).await;
}

async fn talk(stream: TcpStream, answer: &impl Fn(&Request<Incoming>) -> Answer) {
    let service = service_fn(|request| ready(Ok::<_, Infallible>(answer(&request))));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASK_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away or asks nothing is its own business.
    match timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a client was not answered"),
        Err(_) => debug!("a client kept its connection too long"),
    }
}
