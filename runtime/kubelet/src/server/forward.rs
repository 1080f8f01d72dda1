//! `/portForward`: a client's connections carried to ports on the pod's loopback.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use hyper::body::Incoming;
use pith_streaming::forward::{self, Forward};
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
    task::JoinSet,
};

use super::{Body, Sessions, full, refuse};
use crate::{context::PodCell, network::chain};

/// How long a port of the pod may take to accept.
const CONNECT: Duration = Duration::from_secs(10);

pub(super) fn answer(
    sessions: &Sessions,
    cell: Arc<PodCell>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    match forward::accept(&mut request) {
        Ok(accepted) => {
            sessions.spawn(async move {
                let Ok(mut session) = accepted.session.await else { return };
                let mut connections = JoinSet::new();
                while let Some(forward) = session.next().await {
                    while connections.try_join_next().is_some() {}
                    connections.spawn(serve(cell.clone(), forward));
                }
            });
            accepted.response.map(|()| full(""))
        }
        Err(refusal) => refuse(&refusal),
    }
}

async fn serve(cell: Arc<PodCell>, forward: Forward) {
    let Forward { port, mut data, mut error } = forward;
    match connect(&cell, port).await {
        Ok(mut stream) => {
            drop(error);
            let _ = copy_bidirectional(&mut data, &mut stream).await;
        }
        Err(problem) => {
            let pod = &cell.id.uid;
            let message = format!(
                "an error occurred forwarding {port} -> {port}: error forwarding port {port} to pod {pod}: {problem}"
            );
            let _ = error.write_all(message.as_bytes()).await;
        }
    }
}

/// A connection to a port on the pod's own loopback.
async fn connect(cell: &PodCell, port: u16) -> Result<TcpStream, String> {
    let sandbox = cell.sandbox().ok_or("the pod is not running")?;
    let netns = match cell.desired.borrow().host_network {
        true => None,
        false => Some(sandbox.supervisor.netns().map_err(|e| chain(&e))?),
    };
    let (answer, connected) = tokio::sync::oneshot::channel();
    // A thread of its own: it stays in the pod's network namespace until it ends.
    let thread = std::thread::Builder::new().name("pith-forward".to_owned()).spawn(move || {
        let _ = answer.send(connect_within(netns, port));
    });
    thread.map_err(|e| e.to_string())?;
    let stream = connected.await.map_err(|_| "the connecting thread ended")?.map_err(|e| e.to_string())?;
    stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)).map_err(|e| e.to_string())
}

fn connect_within(netns: Option<OwnedFd>, port: u16) -> io::Result<std::net::TcpStream> {
    if let Some(netns) = netns {
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
    }
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    std::net::TcpStream::connect_timeout(&v4, CONNECT)
        .or_else(|error| std::net::TcpStream::connect_timeout(&v6, CONNECT).map_err(|_| error))
}
