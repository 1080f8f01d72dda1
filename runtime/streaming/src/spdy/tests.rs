//! SPDY sessions over byte streams, with a client that is made of frames.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::timeout,
};

use super::{
    connection::STREAMS_MAX,
    frame::{self, HEADER_BYTES, Head},
    headers, {exec, forward},
};
use crate::{
    exec::{Streams, TerminalSize, Version},
    session::{ProtocolError, SessionError},
    status::Outcome,
};

const DEADLINE: Duration = Duration::from_secs(10);
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

/// Both ends of a connection: what a server is given, and a client on the other side.
fn connect() -> (DuplexStream, Client) {
    let (server, io) = tokio::io::duplex(16 * 1024);
    (server, Client { io, headers: headers::Writer::new(), next: 1 })
}

struct Client {
    io: DuplexStream,
    headers: headers::Writer,
    next: u32,
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.expect("the server reads");
    }

    async fn open(&mut self, headers: &[(&str, &str)], fin: bool) -> u32 {
        let id = self.next;
        self.next += 2;
        let block = self.headers.write(headers);
        self.send(&frame::syn_stream(id, fin, &block)).await;
        id
    }

    /// The next frame; `None` at the end of the connection.
    async fn receive(&mut self) -> Option<(Head, Vec<u8>)> {
        let mut head = [0; HEADER_BYTES];
        timeout(DEADLINE, self.io.read_exact(&mut head)).await.expect("a frame in time").ok()?;
        let head = Head::parse(head).expect("a frame");
        let (Head::Control { length, .. } | Head::Data { length, .. }) = head;
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await.expect("a whole frame");
        Some((head, payload))
    }

    /// All data until the connection or `streams` streams have ended, by stream.
    async fn receive_data(&mut self, mut streams: usize) -> Vec<(u32, Vec<u8>)> {
        let mut all: Vec<(u32, Vec<u8>)> = Vec::new();
        while streams > 0
            && let Some((head, payload)) = self.receive().await
        {
            if let Head::Data { stream, fin, .. } = head {
                streams -= usize::from(fin);
                match all.iter_mut().find(|(id, _)| *id == stream) {
                    Some((_, bytes)) => bytes.extend(payload),
                    None => all.push((stream, payload)),
                }
            }
        }
        all.sort();
        all
    }
}

async fn start_exec(streams: Streams, version: Version) -> (crate::exec::ExecSession, Client, Vec<u32>) {
    let (server, mut client) = connect();
    let starting = tokio::spawn(exec::start(server, version, streams));
    let mut ids = vec![client.open(&[("streamtype", "error")], false).await];
    for (name, wanted) in [
        ("stdin", streams.stdin),
        ("stdout", streams.stdout),
        ("stderr", streams.stderr),
        ("resize", streams.tty),
    ] {
        if wanted {
            ids.push(client.open(&[("StreamType", name)], false).await);
        }
    }
    for id in &ids {
        let (head, payload) = client.receive().await.expect("a reply");
        assert!(matches!(head, Head::Control { kind: SYN_REPLY, .. }), "{head:?}");
        assert_eq!(payload[..4], id.to_be_bytes());
    }
    let session = starting.await.expect("no panic").expect("all streams are there");
    (session, client, ids)
}

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };

#[tokio::test]
async fn input_ends_output_follows_and_the_status_comes_before_the_end() {
    let (session, mut client, ids) = start_exec(ALL, Version::V4).await;
    let [error, stdin, stdout, stderr] = ids[..] else { panic!("four streams") };
    client.send(&frame::data(stdin, false, b"hel")).await;
    client.send(&frame::data(stdin, true, b"lo")).await;
    let mut input = String::new();
    session.stdin.expect("asked for").read_to_string(&mut input).await.expect("it ends");
    assert_eq!(input, "hello");

    session.stdout.expect("asked for").write_all(b"out").await.expect("written");
    session.stderr.expect("asked for").write_all(b"err").await.expect("written");
    let finishing = tokio::spawn(session.control.finish(Outcome::Exited(4)));
    let data = client.receive_data(4).await;
    let status = Outcome::Exited(4).json();
    let expect = [(error, status), (stdin, vec![]), (stdout, b"out".to_vec()), (stderr, b"err".to_vec())];
    assert_eq!(data, expect);
    let (head, _) = client.receive().await.expect("an orderly end");
    assert!(matches!(head, Head::Control { kind: GOAWAY, .. }), "{head:?}");
    drop(client);
    finishing.await.expect("no panic").expect("the client got it all");
}

#[tokio::test]
async fn old_versions_get_a_text() {
    let streams = Streams { stdout: true, ..Streams::default() };
    let (session, mut client, ids) = start_exec(streams, Version::V3).await;
    drop((session.stdout, session.stdin));
    let finishing = tokio::spawn(session.control.finish(Outcome::Failed("no shell".to_owned())));
    let text = b"Internal error occurred: no shell".to_vec();
    assert_eq!(client.receive_data(2).await, [(ids[0], text), (ids[1], Vec::new())]);
    drop(client);
    finishing.await.expect("no panic").expect("the client got it all");
}

#[tokio::test]
async fn sizes_arrive_whole_however_they_are_cut() {
    let streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };
    let (mut session, mut client, ids) = start_exec(streams, Version::V4).await;
    let resize = *ids.last().expect("a terminal");
    for piece in [r#"{"Width":80,"#, r#""Height":24}"#, r#"{"Width":81,"Height":25}{"Width":82,"#] {
        client.send(&frame::data(resize, false, piece.as_bytes())).await;
    }
    let expect = Some(TerminalSize { width: 81, height: 25 });
    let waiting = session.resize.wait_for(|size| *size == expect);
    drop(timeout(DEADLINE, waiting).await.expect("in time").expect("said"));

    client.send(&frame::data(resize, false, br#""Height":true}"#)).await;
    let broken = timeout(DEADLINE, session.control.closed().cancelled_owned());
    broken.await.expect("a broken protocol ends the session");
    let error = session.control.finish(Outcome::Detached).await.expect_err("broken");
    assert!(matches!(error, SessionError::Protocol(ProtocolError::TerminalSize(_))), "{error:?}");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_everything() {
    let (session, client, _) = start_exec(ALL, Version::V4).await;
    drop(client);
    timeout(DEADLINE, session.control.closed().cancelled()).await.expect("noticed");
    let mut input = Vec::new();
    session.stdin.expect("asked for").read_to_end(&mut input).await.expect("it ends");
    let mut stdout = session.stdout.expect("asked for");
    assert!(stdout.write_all(b"x").await.is_err(), "nobody reads");
}

#[tokio::test]
async fn a_session_that_is_dropped_ends_the_connection() {
    let (session, mut client, _) = start_exec(ALL, Version::V4).await;
    drop(session);
    assert!(client.receive().await.is_none());
}

#[tokio::test]
async fn a_process_that_ignores_its_input_does_not_hold_up_its_output() {
    let (session, mut client, ids) = start_exec(ALL, Version::V4).await;
    let (stdin, stdout) = (ids[1], ids[2]);
    drop(session.stdin);
    for _ in 0..64 {
        client.send(&frame::data(stdin, false, &[0; 4096])).await;
        // Window updates come back meanwhile.
        while let Ok(Some(_)) = timeout(Duration::ZERO, client.receive()).await {}
    }
    session.stdout.expect("asked for").write_all(b"still here").await.expect("written");
    loop {
        let (head, payload) = client.receive().await.expect("connected");
        if matches!(head, Head::Data { stream, .. } if stream == stdout) {
            assert_eq!(payload, b"still here");
            break;
        }
    }
}

#[tokio::test]
async fn forwarded_connections_close_each_way_by_itself() {
    let (server, mut client) = connect();
    let (read, write) = tokio::io::split(server);
    let mut session = forward::start(read, write);
    let both = |kind| [("streamType", kind), ("port", "8080"), ("requestID", "0")];
    let error = client.open(&both("error"), true).await;
    let data = client.open(&both("data"), false).await;
    client.send(&frame::data(data, true, b"request")).await;
    let mut forward = timeout(DEADLINE, session.next()).await.expect("in time").expect("a pair");
    assert_eq!(forward.port, 8080);
    let mut request = Vec::new();
    forward.data.read_to_end(&mut request).await.expect("half closed");
    assert_eq!(request, b"request");
    forward.data.write_all(b"response").await.expect("the other half is open");
    drop(forward);
    let expect = [(error, Vec::new()), (data, b"response".to_vec())];
    assert_eq!(client.receive_data(2).await, expect);

    // A reset stream is gone for the server too.
    client.open(&both("error"), true).await;
    let data = client.open(&both("data"), false).await;
    let mut forward = timeout(DEADLINE, session.next()).await.expect("in time").expect("a pair");
    client.send(&[0x80, 3, 0, 3, 0, 0, 0, 8]).await;
    client.send(&[data.to_be_bytes(), 5_u32.to_be_bytes()].concat()).await;
    let mut rest = Vec::new();
    forward.data.read_to_end(&mut rest).await.expect("it ends");
    assert_eq!(rest, b"");

    drop(client);
    assert!(timeout(DEADLINE, session.next()).await.expect("in time").is_none());
    session.ended().await.expect("in order");
}

#[tokio::test]
async fn pings_are_answered_and_too_many_streams_refused() {
    let (server, mut client) = connect();
    let (read, write) = tokio::io::split(server);
    let mut session = forward::start(read, write);
    let taking = tokio::spawn(async move { while session.next().await.is_some() {} });
    client.send(&frame::ping(7)).await;
    let (head, payload) = client.receive().await.expect("an answer");
    assert!(matches!(head, Head::Control { kind: PING, .. }), "{head:?}");
    assert_eq!(payload, 7_u32.to_be_bytes());
    for n in 0..=STREAMS_MAX {
        let request = n.to_string();
        client.open(&[("streamtype", "error"), ("port", "1"), ("requestid", &request)], false).await;
        let (head, _) = client.receive().await.expect("an answer");
        let expect = if n < STREAMS_MAX { SYN_REPLY } else { RST_STREAM };
        assert!(matches!(head, Head::Control { kind, .. } if kind == expect), "stream {n}: {head:?}");
    }
    drop(client);
    taking.await.expect("no panic");
}

#[tokio::test]
async fn hostile_frames_end_the_connection_with_their_name() {
    let headers = |pairs: &[(&str, &str)]| headers::Writer::new().write(pairs);
    for (name, bytes, expect) in [
        ("another version", vec![0x80, 2, 0, 1, 0, 0, 0, 0], ProtocolError::SpdyVersion(2)),
        (
            "a long control frame",
            vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
            ProtocolError::SpdyLength { kind: 1, length: 0xff_ffff },
        ),
        ("an even id", frame::syn_stream(2, false, &headers(&[])), ProtocolError::SpdyStreamId(2)),
        ("id zero", frame::syn_stream(0, false, &headers(&[])), ProtocolError::SpdyStreamId(0)),
        (
            "headers that are none",
            frame::syn_stream(1, false, b"garbage"),
            ProtocolError::SpdyHeaders("cannot be decompressed"),
        ),
    ] {
        let (server, mut client) = connect();
        let (read, write) = tokio::io::split(server);
        let mut session = forward::start(read, write);
        client.send(&bytes).await;
        assert!(timeout(DEADLINE, session.next()).await.expect("in time").is_none(), "{name}");
        match session.ended().await {
            Err(SessionError::Protocol(error)) => assert_eq!(error, expect, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    // Cut off in the middle of a frame.
    let (server, mut client) = connect();
    let (read, write) = tokio::io::split(server);
    let session = forward::start(read, write);
    client.send(&[0, 0, 0, 1, 0, 0, 0, 9, 1, 2]).await;
    drop(client);
    assert!(matches!(session.ended().await, Err(SessionError::Io(_))));
}

#[tokio::test]
async fn a_client_that_opens_too_little_is_told_in_time() {
    let (server, mut client) = connect();
    client.open(&[("streamtype", "error")], false).await;
    client.open(&[("streamtype", "stdin")], false).await;
    let open = Duration::from_millis(200);
    let starting = tokio::spawn(exec::start_within(open, server, Version::V4, ALL));
    let error = starting.await.expect("no panic").expect_err("two are missing");
    assert!(matches!(error, SessionError::StreamsMissing { opened: 2, expected: 4 }), "{error:?}");
}
