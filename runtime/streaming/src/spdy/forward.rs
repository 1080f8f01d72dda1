//! Port-forward over SPDY: each connection is an error stream and a data stream with the same request id.

use std::{collections::HashMap, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    connection::{self, Opened, STREAMS_MAX},
    headers::Headers,
};
use crate::{
    forward::{Forward, ForwardSession, WAITING_MAX},
    pipe::{Duplex, Output},
    session::{SessionError, Task},
};

/// How long the second stream of a pair may take (`StreamCreationTimeout` of kubelets).
const PAIR: Duration = Duration::from_secs(30);

/// Starts the connection.
pub(crate) fn start(
    read: impl AsyncRead + Send + Unpin + 'static,
    write: impl AsyncWrite + Send + Unpin + 'static,
) -> ForwardSession {
    let (opened_sender, opened) = mpsc::channel(1);
    let (forward_sender, forwards) = mpsc::channel(WAITING_MAX);
    // Only the client ends a port-forward in an orderly way.
    let (_, close) = oneshot::channel();
    let task = Task::spawn(async move {
        let running = connection::run(read, write, opened_sender, close);
        // Pairing ends only when the connection has, or when nobody takes what it makes.
        tokio::select! {
            ended = running => ended,
            ended = pair(opened, forward_sender) => ended,
        }
    });
    ForwardSession::new(forwards, task)
}

/// The first stream of a pair, until the second comes.
struct Half {
    since: Instant,
    port: u16,
    error: Option<Duplex>,
    data: Option<Duplex>,
}

async fn pair(
    mut opened: mpsc::Receiver<Opened>,
    forwards: mpsc::Sender<Forward>,
) -> Result<(), SessionError> {
    let mut halves: HashMap<String, Half> = HashMap::new();
    loop {
        let oldest = halves.values().map(|half| half.since).min();
        let expiry = oldest.map(|since| since + PAIR);
        let stream = tokio::select! {
            stream = opened.recv() => stream,
            () = sleep_until(expiry.unwrap_or_else(Instant::now)), if expiry.is_some() => {
                // Dropping the stream closes it: the client sees that connection end.
                halves.retain(|_, half| half.since.elapsed() < PAIR);
                continue;
            }
        };
        let Some(Opened { id, headers, stream }) = stream else {
            return std::future::pending().await;
        };
        let Some((key, role, port)) = identify(id, &headers) else {
            tracing::debug!(id, ?headers, "a port-forward stream without type or port is closed");
            continue;
        };
        let half = halves.entry(key.clone()).or_insert_with(|| Half {
            since: Instant::now(),
            port,
            error: None,
            data: None,
        });
        match role {
            Role::Error => half.error = Some(stream),
            Role::Data => half.data = Some(stream),
        }
        if half.error.is_none() || half.data.is_none() {
            continue;
        }
        if let Some(Half { port, error: Some(error), data: Some(data), .. }) = halves.remove(&key) {
            let error: Output = error.into_output();
            if forwards.send(Forward { port, data, error }).await.is_err() {
                return Ok(());
            }
        }
        debug_assert!(halves.len() <= STREAMS_MAX, "each half holds a stream of the connection");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Error,
    Data,
}

/// Which pair a stream belongs to, as which half, and to which port. Clients that name no request id
/// open the data stream right after its error stream.
fn identify(id: u32, headers: &Headers) -> Option<(String, Role, u16)> {
    let role = match headers.get("streamtype")?.as_str() {
        "error" => Role::Error,
        "data" => Role::Data,
        _ => return None,
    };
    let port = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    let pair = match (headers.get("requestid"), role) {
        (Some(request), _) => request.clone(),
        (None, Role::Error) => format!("stream {id}"),
        (None, Role::Data) => format!("stream {}", id.saturating_sub(2)),
    };
    Some((pair, role, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_paired_by_request_or_by_order() {
        let headers = |text: &str| -> Headers {
            let pairs = text.split_whitespace().filter_map(|it| it.split_once('='));
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        for (id, text, expect) in [
            (5, "streamtype=error port=80 requestid=2", Some(("2", Role::Error, 80))),
            (7, "streamtype=data port=80 requestid=2", Some(("2", Role::Data, 80))),
            (5, "streamtype=error port=80", Some(("stream 5", Role::Error, 80))),
            (7, "streamtype=data port=80", Some(("stream 5", Role::Data, 80))),
            (7, "streamtype=data port=0", None),
            (7, "streamtype=data port=70000", None),
            (7, "streamtype=stdin port=80", None),
            (7, "port=80", None),
        ] {
            let expect = expect.map(|(pair, role, port)| (pair.to_owned(), role, port));
            assert_eq!(identify(id, &headers(text)), expect, "{text}");
        }
    }
}
