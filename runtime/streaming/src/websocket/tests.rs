//! WebSocket sessions over byte streams.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::{channels, forward, tunnel};
use crate::{
    exec::{ExecSession, Streams, TerminalSize, Version},
    session::{ProtocolError, SessionError},
    status::Outcome,
};

const DEADLINE: Duration = Duration::from_secs(10);
const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };

type Client = WebSocketStream<DuplexStream>;

async fn connect() -> (DuplexStream, Client) {
    let (server, io) = tokio::io::duplex(16 * 1024);
    (server, WebSocketStream::from_raw_socket(io, Role::Client, None).await)
}

async fn start_exec(version: Version) -> (ExecSession, Client) {
    let (server, mut client) = connect().await;
    let session = channels::start(server, version, ALL);
    assert_eq!(receive(&mut client).await, Some(vec![1]), "the sign that the session is there");
    (session, client)
}

#[tokio::test]
async fn the_first_message_is_on_the_lowest_channel_that_is_heard() {
    let only = |stdout, stderr| Streams { stdin: true, stdout, stderr, tty: false };
    for (streams, channel) in
        [(only(true, true), 1), (only(true, false), 1), (only(false, true), 2), (only(false, false), 3)]
    {
        let (server, mut client) = connect().await;
        let _session = channels::start(server, Version::V4, streams);
        assert_eq!(receive(&mut client).await, Some(vec![channel]), "{streams:?}");
    }
}

/// The next binary message; `None` when the server has closed.
async fn receive(client: &mut Client) -> Option<Vec<u8>> {
    match timeout(DEADLINE, client.next()).await.expect("in time") {
        Some(Ok(Message::Binary(bytes))) => Some(bytes.to_vec()),
        Some(Ok(Message::Close(_)) | Err(_)) | None => None,
        Some(Ok(other)) => panic!("unexpected {other:?}"),
    }
}

async fn send(client: &mut Client, bytes: &[u8]) {
    client.send(Message::Binary(bytes.to_vec().into())).await.expect("the server reads");
}

#[tokio::test]
async fn channels_carry_each_their_own() {
    let (mut session, mut client) = start_exec(Version::V5).await;
    send(&mut client, b"\x00hel").await;
    send(&mut client, b"").await;
    send(&mut client, b"\x00lo").await;
    send(&mut client, br#"{"Width":1}"#.map(|_| 0).as_slice()).await;
    send(&mut client, b"\x04{\"Width\":93,\"Height\":31}").await;
    let size = Some(TerminalSize { width: 93, height: 31 });
    drop(session.resize.wait_for(|it| *it == size).await.expect("said"));
    send(&mut client, &[255, 0]).await;
    let mut input = Vec::new();
    session.stdin.expect("asked for").read_to_end(&mut input).await.expect("closed by v5's signal");
    assert!(input.starts_with(b"hello"));

    session.stdout.expect("asked for").write_all(b"out").await.expect("written");
    assert_eq!(receive(&mut client).await.expect("output"), b"\x01out");
    session.stderr.expect("asked for").write_all(b"err").await.expect("written");
    assert_eq!(receive(&mut client).await.expect("error output"), b"\x02err");
    let finishing = tokio::spawn(session.control.finish(Outcome::Exited(9)));
    let status = [b"\x03".as_slice(), &Outcome::Exited(9).json()].concat();
    assert_eq!(receive(&mut client).await, Some(status));
    assert_eq!(receive(&mut client).await, None, "closed");
    drop(client);
    finishing.await.expect("no panic").expect("the client got it all");
}

#[tokio::test]
async fn output_written_before_the_end_arrives_before_the_status() {
    let (session, mut client) = start_exec(Version::V4).await;
    let mut stdout = session.stdout.expect("asked for");
    drop(session.stderr);
    let writing = tokio::spawn(async move {
        stdout.write_all(&vec![5; 1_000_000]).await.expect("the client reads");
        drop(stdout);
        session.control.finish(Outcome::Exited(0)).await
    });
    let mut length = 0;
    let status = loop {
        let message = receive(&mut client).await.expect("a status at the end");
        match message[0] {
            1 => length += message.len() - 1,
            channel => break (channel, message),
        }
    };
    assert_eq!((length, status.0), (1_000_000, 3));
    drop(client);
    writing.await.expect("no panic").expect("the client got it all");
}

#[tokio::test]
async fn a_text_message_is_as_good_as_a_binary_one() {
    let (session, mut client) = start_exec(Version::V4).await;
    client.send(Message::Text("\0typed".into())).await.expect("the server reads");
    let mut typed = [0; 5];
    session.stdin.expect("asked for").read_exact(&mut typed).await.expect("sent");
    assert_eq!(&typed, b"typed");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_everything() {
    let (session, client) = start_exec(Version::V5).await;
    drop(client);
    timeout(DEADLINE, session.control.closed().cancelled()).await.expect("noticed");
    let mut stdout = session.stdout.expect("asked for");
    assert!(stdout.write_all(b"x").await.is_err(), "nobody reads");
}

#[tokio::test]
async fn hostile_messages_end_the_connection_with_their_name() {
    for (name, message, expect) in [
        ("channel 9", Message::Binary(vec![9, 9].into()), ProtocolError::UnknownChannel(9)),
        ("v5's signal in v4", Message::Binary(vec![255, 0].into()), ProtocolError::UnknownChannel(255)),
        ("text on channel 120", Message::Text("x".into()), ProtocolError::UnknownChannel(120)),
    ] {
        let (session, mut client) = start_exec(Version::V4).await;
        client.send(message).await.expect("the server reads");
        timeout(DEADLINE, session.control.closed().cancelled()).await.expect("noticed");
        match session.control.finish(Outcome::Detached).await {
            Err(SessionError::Protocol(error)) => assert_eq!(error, expect, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let (session, mut client) = start_exec(Version::V5).await;
    send(&mut client, b"\x04{}").await;
    timeout(DEADLINE, session.control.closed().cancelled()).await.expect("noticed");
    let error = session.control.finish(Outcome::Detached).await.expect_err("broken");
    assert!(matches!(error, SessionError::Protocol(ProtocolError::TerminalSize(_))), "{error:?}");
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused() {
    let (session, mut client) = start_exec(Version::V5).await;
    let sending = client.send(Message::Binary(vec![0; 5 * 1024 * 1024].into()));
    // The server hangs up before all of it is sent.
    drop(timeout(DEADLINE, sending).await.expect("in time"));
    timeout(DEADLINE, session.control.closed().cancelled()).await.expect("noticed");
    let error = session.control.finish(Outcome::Detached).await.expect_err("broken");
    assert!(matches!(error, SessionError::Protocol(ProtocolError::WebSocket(_))), "{error:?}");
}

#[tokio::test]
async fn ports_have_two_channels_each() {
    let (server, mut client) = connect().await;
    let mut session = forward::start(server, vec![80, 8081]);
    for (channel, port) in [(0, 80_u16), (1, 80), (2, 8081), (3, 8081)] {
        let [low, high] = port.to_le_bytes();
        assert_eq!(receive(&mut client).await, Some(vec![channel, low, high]));
    }
    let first = session.next().await.expect("a port");
    let mut second = session.next().await.expect("a port");
    assert_eq!((first.port, second.port), (80, 8081));
    send(&mut client, b"\x02ping").await;
    let mut piece = [0; 4];
    second.data.read_exact(&mut piece).await.expect("sent");
    assert_eq!(&piece, b"ping");
    second.data.write_all(b"pong").await.expect("written");
    assert_eq!(receive(&mut client).await.expect("an answer"), b"\x02pong");
    let mut error = first.error;
    error.write_all(b"refused").await.expect("written");
    assert_eq!(receive(&mut client).await.expect("an error"), b"\x01refused");
    drop(client);
    assert!(timeout(DEADLINE, session.next()).await.expect("in time").is_none());
}

#[tokio::test]
async fn a_tunnel_is_a_stream_of_bytes() {
    let (server, mut client) = connect().await;
    let (mut read, mut write) = tunnel(server).await;
    send(&mut client, b"ab").await;
    send(&mut client, b"cdef").await;
    let mut bytes = [0; 6];
    read.read_exact(&mut bytes).await.expect("sent");
    assert_eq!(&bytes, b"abcdef");
    write.write_all(b"answer").await.expect("written");
    write.flush().await.expect("flushed");
    assert_eq!(receive(&mut client).await.expect("an answer"), b"answer");
    client.close(None).await.expect("closed");
    let mut rest = Vec::new();
    let _ = timeout(DEADLINE, read.read_to_end(&mut rest)).await.expect("it ends");
    assert_eq!(rest, b"");
}
