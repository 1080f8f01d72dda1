//! Questions and answers as messages, over UDP and TCP.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, RwLock},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RecordType},
    serialize::binary::{BinEncodable, BinEncoder},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};

use super::{
    answer::{self, Answer},
    catalog::Catalog,
    forward::{Forwarder, HEADER_BYTES},
    question::Zone,
};

/// Longest question over UDP that is read; real ones have less than a hundred bytes.
const QUESTION_BYTES_MAX: usize = 4096;
/// Longest answer over UDP to a client that names no size (RFC 1035, 4.2.1).
const UDP_BYTES: u16 = 512;
/// Longest answer over UDP that is sent whatever the client takes: larger ones break into fragments
/// (the size that name servers agreed on in 2020).
const UDP_BYTES_MAX: u16 = 1232;
/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 128;
/// Questions over UDP that wait for others' answers; further ones wait in the socket.
const WAITING_MAX: usize = 512;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// How often an alias may lead to another.
const ALIASES_MAX: usize = 8;

/// What answering takes.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) zone: Zone,
    pub(crate) catalog: RwLock<Catalog>,
    pub(crate) forwarder: Forwarder,
}

/// Answers questions by UDP. Those about the cluster are answered at once, in their order.
pub(crate) async fn serve_udp(socket: UdpSocket, server: Arc<Server>) {
    let socket = Arc::new(socket);
    let mut waiting = JoinSet::new();
    let mut buffer = vec![0; QUESTION_BYTES_MAX];
    loop {
        while waiting.try_join_next().is_some() {}
        if waiting.len() >= WAITING_MAX {
            let _ = waiting.join_next().await;
        }
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // The error of an earlier answer to a client that is gone.
            Err(error) => {
                tracing::debug!(%error, "receiving a question");
                continue;
            }
        };
        let question = &buffer[..length];
        match server.at_once(question) {
            Step::Done(message, limit) => reply(&socket, from, encode(&message, limit)).await,
            Step::Ignore => {}
            Step::Ask(asked) => {
                let (socket, server, question) =
                    (Arc::clone(&socket), Arc::clone(&server), question.to_vec());
                waiting.spawn(async move {
                    let limit = asked.limit;
                    reply(&socket, from, server.ask(*asked, &question, Some(limit)).await).await;
                });
            }
        }
    }
}

async fn reply(socket: &UdpSocket, to: SocketAddr, message: Option<Vec<u8>>) {
    if let Some(bytes) = message
        && let Err(error) = socket.send_to(&bytes, to).await
    {
        tracing::debug!(%error, %to, "sending an answer");
    }
}

/// Answers questions by TCP, any number on one connection.
pub(crate) async fn serve_tcp(listener: TcpListener, server: Arc<Server>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            let _ = connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = Arc::clone(&server);
                connections.spawn(async move {
                    if let Err(error) = connection(stream, &server).await {
                        tracing::debug!(%error, "a connection with questions");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: connections that end make room.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(mut stream: TcpStream, server: &Server) -> io::Result<()> {
    loop {
        let Ok(length) = timeout(IDLE, stream.read_u16()).await else { return Ok(()) };
        let length = match length {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut question = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut question)).await??;
        let message = match server.at_once(&question) {
            Step::Done(message, _) => encode(&message, u16::MAX),
            Step::Ignore => return Ok(()),
            Step::Ask(asked) => server.ask(*asked, &question, None).await,
        };
        let Some(message) = message else { return Ok(()) };
        let length = u16::try_from(message.len()).map_err(io::Error::other)?;
        let whole = [&length.to_be_bytes(), message.as_slice()].concat();
        timeout(IDLE, stream.write_all(&whole)).await??;
    }
}

/// What a question needs.
enum Step {
    /// Nothing more than this, in so many bytes over UDP.
    Done(Message, u16),
    /// No answer at all: it is no question.
    Ignore,
    /// Others' answers.
    Ask(Box<Asked>),
}

/// A question that others must be asked about.
struct Asked {
    /// The answer so far.
    message: Message,
    /// The aliases' target; `None` is the question itself.
    target: Option<Name>,
    kind: RecordType,
    limit: u16,
}

impl Server {
    fn at_once(&self, bytes: &[u8]) -> Step {
        let question = match Message::from_vec(bytes) {
            Ok(question) => question,
            Err(_) if bytes.len() >= HEADER_BYTES && bytes[2] & 0x80 == 0 => {
                let id = u16::from_be_bytes([bytes[0], bytes[1]]);
                let message = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
                return Step::Done(message, UDP_BYTES);
            }
            Err(_) => return Step::Ignore,
        };
        if question.metadata.message_type != MessageType::Query {
            return Step::Ignore;
        }
        let limit = match &question.edns {
            Some(edns) => edns.max_payload().clamp(UDP_BYTES, UDP_BYTES_MAX),
            None => UDP_BYTES,
        };
        let mut message = response(&question);
        let code = &mut message.metadata.response_code;
        let [query] = question.queries.as_slice() else {
            *code = ResponseCode::FormErr;
            return Step::Done(message, limit);
        };
        if question.metadata.op_code != OpCode::Query {
            *code = ResponseCode::NotImp;
        } else if query.query_class() != DNSClass::IN {
            *code = ResponseCode::Refused;
        } else {
            return self.answer(message, query, limit);
        }
        Step::Done(message, limit)
    }

    fn answer(&self, mut message: Message, query: &Query, limit: u16) -> Step {
        let kind = query.query_type();
        let mut name = query.name().clone();
        let catalog = self.catalog.read().expect("nobody panics while changing the catalog");
        for hop in 0..ALIASES_MAX {
            match answer::answer(&self.zone, &catalog, &name, kind) {
                Answer::Known { code, answers, additionals, authority } => {
                    message.metadata.authoritative = code != ResponseCode::ServFail;
                    message.metadata.response_code = code;
                    message.add_answers(answers);
                    message.add_additionals(additionals);
                    message.add_authorities(authority);
                    return Step::Done(message, limit);
                }
                Answer::Alias { answers, target } => {
                    message.metadata.authoritative = true;
                    message.add_answers(answers);
                    name = target;
                }
                Answer::Elsewhere if self.forwarder.is_empty() => {
                    message.metadata.response_code =
                        if hop == 0 { ResponseCode::Refused } else { ResponseCode::ServFail };
                    return Step::Done(message, limit);
                }
                Answer::Elsewhere => {
                    let target = (hop > 0).then_some(name);
                    return Step::Ask(Box::new(Asked { message, target, kind, limit }));
                }
            }
        }
        message.metadata.response_code = ResponseCode::ServFail;
        Step::Done(message, limit)
    }

    /// Others' answer: as it is, or appended to the aliases that led there. `limit` is that of UDP.
    async fn ask(&self, asked: Asked, question: &[u8], limit: Option<u16>) -> Option<Vec<u8>> {
        let Asked { mut message, target, kind, .. } = asked;
        let most = limit.unwrap_or(u16::MAX);
        let Some(target) = target else {
            let Some(answer) = self.forwarder.ask(question).await else {
                message.metadata.response_code = ResponseCode::ServFail;
                return encode(&message, most);
            };
            if answer.len() <= usize::from(most) {
                return Some(answer);
            }
            // Too long for a datagram: the client comes back by TCP.
            message.metadata.truncation = true;
            return encode(&message, most);
        };
        let answer = match target_question(&target, kind).to_vec() {
            Ok(question) => self.forwarder.ask(&question).await,
            Err(_) => None,
        };
        match answer.and_then(|answer| Message::from_vec(&answer).ok()) {
            Some(answer) => {
                message.metadata.response_code = answer.metadata.response_code;
                message.add_answers(answer.answers);
                message.add_authorities(answer.authorities);
            }
            None => message.metadata.response_code = ResponseCode::ServFail,
        }
        encode(&message, most)
    }
}

fn response(question: &Message) -> Message {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.recursion_desired = question.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.add_queries(question.queries.iter().cloned());
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX);
        message.set_edns(edns);
    }
    message
}

fn target_question(target: &Name, kind: RecordType) -> Message {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(target.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_BYTES_MAX);
    question.set_edns(edns);
    question
}

/// Records that do not fit are left out and the answer is marked truncated.
fn encode(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    match message.emit(&mut encoder) {
        Ok(()) => Some(bytes),
        Err(error) => {
            tracing::debug!(%error, "an answer cannot be encoded");
            None
        }
    }
}
