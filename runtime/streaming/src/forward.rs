//! Port-forward: connections that the client opens to ports of the pod, any number in one session.

use std::future::Future;

use http::Request;
use tokio::sync::mpsc;

use crate::{
    negotiate::{Accepted, Agreed, Refusal, Spoken, negotiate},
    pipe::{Duplex, Output},
    session::{SessionError, Task, switched},
    spdy, websocket,
};

/// Connections that may wait to be taken before the client waits.
pub(crate) const WAITING_MAX: usize = 16;

/// One connection of the client.
#[derive(Debug)]
pub struct Forward {
    /// The pod's port.
    pub port: u16,
    /// What the client sends and gets. Its end from the client is a half close.
    pub data: Duplex,
    /// A text here is why the connection failed; kubectl prints it. Drop it when there is nothing to say.
    pub error: Output,
}

/// A client's session. Dropping it closes the connection.
#[derive(Debug)]
pub struct ForwardSession {
    forwards: mpsc::Receiver<Forward>,
    task: Task,
}

impl ForwardSession {
    pub(crate) fn new(forwards: mpsc::Receiver<Forward>, task: Task) -> Self {
        Self { forwards, task }
    }

    /// The next connection; `None` when the client has gone.
    pub async fn next(&mut self) -> Option<Forward> {
        self.forwards.recv().await
    }

    /// How the session ended; waits until it does.
    ///
    /// # Errors
    /// The client broke the protocol, or the connection failed.
    pub async fn ended(self) -> Result<(), SessionError> {
        self.task.join().await
    }
}

/// Protocol of port-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// SPDY streams, plain or inside a WebSocket.
    Streams,
    /// Two WebSocket channels for each port that the request names.
    Channels,
}

const SPOKEN: Spoken<'static, Protocol> = Spoken {
    websocket: &[
        ("SPDY/3.1+portforward.k8s.io", Protocol::Streams),
        ("v4.channel.k8s.io", Protocol::Channels),
    ],
    spdy: &[("portforward.k8s.io", Protocol::Streams)],
    spdy_unnamed: None,
};

/// Accepts an upgrade request for port-forward; see [`exec::accept`](crate::exec::accept) for where it
/// must come from. The ports are the request's own (`port=80&port=81`, for clients that name them there)
/// or come with each connection.
///
/// # Errors
/// The request cannot be upgraded: answer with [`Refusal::response`].
pub fn accept<B>(
    request: &mut Request<B>,
) -> Result<Accepted<impl Future<Output = Result<ForwardSession, SessionError>> + Send + use<B>>, Refusal> {
    let (agreed, response) = negotiate(request, &SPOKEN)?;
    let ports = match agreed {
        Agreed::WebSocket(Protocol::Channels) => ports(request.uri().query().unwrap_or_default())?,
        Agreed::WebSocket(Protocol::Streams) | Agreed::Spdy(_) => Vec::new(),
    };
    let upgrade = hyper::upgrade::on(request);
    let session = async move {
        let connection = switched(upgrade).await?;
        Ok(match agreed {
            Agreed::WebSocket(Protocol::Channels) => websocket::forward::start(connection, ports),
            Agreed::WebSocket(Protocol::Streams) => {
                let (read, write) = websocket::tunnel(connection).await;
                spdy::forward::start(read, write)
            }
            Agreed::Spdy(_) => {
                let (read, write) = tokio::io::split(connection);
                spdy::forward::start(read, write)
            }
        })
    };
    Ok(Accepted { response, session })
}

/// The ports that a query names: `port=80&port=81`, `ports=80,81`.
fn ports(query: &str) -> Result<Vec<u16>, Refusal> {
    let values = query.split('&').filter_map(|pair| pair.split_once('='));
    let values = values.filter(|(name, _)| matches!(*name, "port" | "ports"));
    let texts = values.flat_map(|(_, value)| value.split(',').flat_map(|value| value.split("%2C")));
    let ports: Vec<u16> = texts
        .map(|text| text.parse().ok().filter(|port| *port > 0))
        .collect::<Option<_>>()
        .ok_or_else(|| Refusal::BadRequest("port must be 1 to 65535".to_owned()))?;
    // Channels have one byte, two of them a port.
    match ports.len() {
        0 => Err(Refusal::BadRequest("query parameter \"port\" is required".to_owned())),
        1..=64 => Ok(ports),
        _ => Err(Refusal::BadRequest("at most 64 ports".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_query() {
        for (query, expect) in [
            ("port=80", Some(vec![80])),
            ("ports=80,81&port=82", Some(vec![80, 81, 82])),
            ("ports=80%2C81", Some(vec![80, 81])),
            ("port=0", None),
            ("port=65536", None),
            ("port=x", None),
            ("", None),
        ] {
            assert_eq!(ports(query).ok(), expect, "{query}");
        }
    }
}
