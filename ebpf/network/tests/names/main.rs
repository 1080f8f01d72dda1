//! The name server on real sockets: names of the cluster from a watched API, others from a resolver.

mod api;

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use api::{Api, Kind, service, slice};
use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use pith_network::dns::{Config, Dns, DnsError};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(10);

fn config(resolvers: Vec<SocketAddr>) -> Config {
    Config {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        domain: "cluster.local".to_owned(),
        resolvers,
        resolvers_netns: None,
        own_addresses: ["10.244.0.0/16", "10.96.0.0/16"].map(|it| it.parse().expect("a net")).into(),
    }
}

struct Running {
    address: SocketAddr,
    cancel: CancellationToken,
    _tasks: JoinSet<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

async fn start(api: &Api, resolvers: Vec<SocketAddr>) -> Running {
    let dns = loop {
        match Dns::bind(config(resolvers.clone())).await {
            // A port that UDP has free may be taken for TCP, by any connection of this machine.
            Err(DnsError::Listen { protocol: "tcp", source, .. })
                if source.kind() == ErrorKind::AddrInUse => {}
            bound => break bound.expect("bound"),
        }
    };
    let (address, cancel) = (dns.address(), CancellationToken::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(dns.run(api.client(), cancel.clone()));
    Running { address, cancel, _tasks: tasks }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message
}

async fn over_udp(server: SocketAddr, question: &Message) -> Message {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    socket.connect(server).await.expect("connected");
    socket.send(&question.to_vec().expect("encoded")).await.expect("sent");
    let mut buffer = vec![0; 65536];
    let length = timeout(DEADLINE, socket.recv(&mut buffer)).await.expect("an answer").expect("received");
    let answer = Message::from_vec(&buffer[..length]).expect("a message");
    assert_eq!(answer.metadata.id, question.metadata.id);
    assert_eq!(answer.queries, question.queries, "in the client's own case");
    answer
}

async fn over_tcp(server: SocketAddr, question: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.expect("connected");
    let bytes = question.to_vec().expect("encoded");
    stream.write_u16(bytes.len() as u16).await.expect("sent");
    stream.write_all(&bytes).await.expect("sent");
    let length = timeout(DEADLINE, stream.read_u16()).await.expect("an answer").expect("received");
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await.expect("received");
    Message::from_vec(&bytes).expect("a message")
}

/// Asks until everything has been listed.
async fn synced(server: SocketAddr) {
    let probe = question("dns-version.cluster.local.", RecordType::TXT);
    let asking = async {
        while over_udp(server, &probe).await.metadata.response_code == ResponseCode::ServFail {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, asking).await.expect("the lists are short");
}

fn texts(records: &[Record]) -> Vec<String> {
    let mut texts: Vec<_> =
        records.iter().map(|record| format!("{} {}", record.record_type(), record.data)).collect();
    texts.sort();
    texts
}

fn shop() -> Api {
    let api = Api::default();
    let web = json!([{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let pods = json!([{"name": "sql", "port": 5432, "protocol": "TCP"}]);
    for (name, spec) in [
        ("web", json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": web})),
        ("six", json!({"clusterIPs": ["10.96.0.11", "fd00::11"]})),
        ("db", json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": pods})),
        ("out", json!({"type": "ExternalName", "externalName": "www.example.com"})),
        ("inward", json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"})),
        ("loop", json!({"type": "ExternalName", "externalName": "loop.shop.svc.cluster.local"})),
        ("pending", json!({"type": "ClusterIP"})),
    ] {
        api.put(Kind::Service, service("shop", name, spec));
    }
    let endpoints =
        [("10.244.1.2", Some("db-0"), true), ("10.244.2.3", None, true), ("10.244.3.4", Some("db-2"), false)];
    api.put(Kind::Slice, slice("shop", "db-x", "db", &endpoints, pods));
    api.put(Kind::Slice, slice("shop", "web-x", "web", &[("10.244.1.9", None, true)], web));
    api
}

#[tokio::test]
async fn names_of_the_cluster() {
    use RecordType::{A, AAAA, ANY, CNAME, MX, NS, PTR, SOA, SRV, TXT};
    let running = start(&shop(), Vec::new()).await;
    synced(running.address).await;
    let soa = "SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5";
    let ok = ResponseCode::NoError;
    let none = ResponseCode::NXDomain;
    let cases: &[(&str, RecordType, ResponseCode, &[&str])] = &[
        ("web.shop.svc.cluster.local.", A, ok, &["A 10.96.0.10"]),
        ("wEb.Shop.SVC.cluster.local.", A, ok, &["A 10.96.0.10"]),
        ("web.shop.svc.cluster.local.", AAAA, ok, &[]),
        ("web.shop.svc.cluster.local.", MX, ok, &[]),
        ("web.shop.svc.cluster.local.", ANY, ok, &["A 10.96.0.10"]),
        ("six.shop.svc.cluster.local.", AAAA, ok, &["AAAA fd00::11"]),
        ("six.shop.svc.cluster.local.", ANY, ok, &["A 10.96.0.11", "AAAA fd00::11"]),
        (
            "web.shop.svc.cluster.local.",
            SRV,
            ok,
            &["SRV 0 100 53 web.shop.svc.cluster.local.", "SRV 0 100 80 web.shop.svc.cluster.local."],
        ),
        ("_http._tcp.web.shop.svc.cluster.local.", SRV, ok, &["SRV 0 100 80 web.shop.svc.cluster.local."]),
        ("_http._udp.web.shop.svc.cluster.local.", SRV, none, &[]),
        ("_tcp.web.shop.svc.cluster.local.", A, ok, &[]),
        ("_sctp.web.shop.svc.cluster.local.", A, none, &[]),
        ("10-244-1-9.web.shop.svc.cluster.local.", A, none, &[]),
        ("db.shop.svc.cluster.local.", A, ok, &["A 10.244.1.2", "A 10.244.2.3"]),
        ("db-0.db.shop.svc.cluster.local.", A, ok, &["A 10.244.1.2"]),
        ("10-244-2-3.db.shop.svc.cluster.local.", A, ok, &["A 10.244.2.3"]),
        ("db-2.db.shop.svc.cluster.local.", A, none, &[]),
        (
            "_sql._tcp.db.shop.svc.cluster.local.",
            SRV,
            ok,
            &[
                "SRV 0 100 5432 10-244-2-3.db.shop.svc.cluster.local.",
                "SRV 0 100 5432 db-0.db.shop.svc.cluster.local.",
            ],
        ),
        ("10.0.96.10.in-addr.arpa.", PTR, ok, &["PTR web.shop.svc.cluster.local."]),
        ("10.0.96.10.in-addr.arpa.", A, ok, &[]),
        ("11.0.96.10.in-addr.arpa.", PTR, ok, &["PTR six.shop.svc.cluster.local."]),
        ("99.0.96.10.in-addr.arpa.", PTR, none, &[]),
        ("1.2.0.192.in-addr.arpa.", PTR, ResponseCode::Refused, &[]),
        ("2.1.244.10.in-addr.arpa.", PTR, ok, &["PTR db-0.db.shop.svc.cluster.local."]),
        ("9.1.244.10.in-addr.arpa.", PTR, none, &[]),
        ("10-244-7-8.shop.pod.cluster.local.", A, ok, &["A 10.244.7.8"]),
        ("x.shop.pod.cluster.local.", A, none, &[]),
        ("out.shop.svc.cluster.local.", CNAME, ok, &["CNAME www.example.com."]),
        ("inward.shop.svc.cluster.local.", A, ok, &["A 10.96.0.10", "CNAME web.shop.svc.cluster.local."]),
        ("pending.shop.svc.cluster.local.", A, none, &[]),
        ("nobody.shop.svc.cluster.local.", A, none, &[]),
        ("shop.svc.cluster.local.", A, ok, &[]),
        ("elsewhere.svc.cluster.local.", A, none, &[]),
        ("svc.cluster.local.", A, ok, &[]),
        ("www.example.com.shop.svc.cluster.local.", A, none, &[]),
        ("cluster.local.", SOA, ok, &[soa]),
        ("cluster.local.", NS, ok, &["NS ns.dns.cluster.local."]),
        ("ns.dns.cluster.local.", A, ok, &["A 127.0.0.1"]),
        ("dns-version.cluster.local.", TXT, ok, &["TXT 1.1.0"]),
        ("www.example.com.", A, ResponseCode::Refused, &[]),
    ];
    for (name, kind, code, answers) in cases {
        let answer = over_udp(running.address, &question(name, *kind)).await;
        assert_eq!(answer.metadata.response_code, *code, "{name} {kind}");
        assert_eq!(texts(&answer.answers), *answers, "{name} {kind}");
        let negative = answers.is_empty() && *code != ResponseCode::Refused;
        assert_eq!(texts(&answer.authorities), if negative { vec![soa] } else { vec![] }, "{name} {kind}");
        assert_eq!(answer.metadata.authoritative, *code != ResponseCode::Refused, "{name} {kind}");
        assert!(answer.metadata.recursion_available, "{name} {kind}");
    }
    let looping = over_udp(running.address, &question("loop.shop.svc.cluster.local.", A)).await;
    assert_eq!(looping.metadata.response_code, ResponseCode::ServFail);
    let srv = over_udp(running.address, &question("_http._tcp.web.shop.svc.cluster.local.", SRV)).await;
    assert_eq!(texts(&srv.additionals), ["A 10.96.0.10"]);
}

#[tokio::test]
async fn changes_are_seen_and_nothing_is_denied_before_the_first_list() {
    let api = shop();
    api.breaks(true);
    let running = start(&api, Vec::new()).await;
    let web = question("web.shop.svc.cluster.local.", RecordType::A);
    let early = over_udp(running.address, &web).await;
    assert_eq!(early.metadata.response_code, ResponseCode::ServFail);
    let server = question("ns.dns.cluster.local.", RecordType::A);
    assert_eq!(over_udp(running.address, &server).await.metadata.response_code, ResponseCode::NoError);
    api.breaks(false);
    synced(running.address).await;

    let becomes = |name: &'static str, expect: &'static [&'static str]| async move {
        let question = question(name, RecordType::A);
        let asking = async {
            while texts(&over_udp(running_address(), &question).await.answers) != expect {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, asking).await.unwrap_or_else(|_| panic!("{name} never becomes {expect:?}"));
    };
    ADDRESS.with(|it| it.set(Some(running.address)));
    let moved = service("shop", "web", json!({"clusterIPs": ["10.96.0.99"]}));
    api.tell(Kind::Service, "MODIFIED", moved.clone()).await;
    becomes("web.shop.svc.cluster.local.", &["A 10.96.0.99"]).await;
    api.tell(Kind::Service, "DELETED", moved).await;
    becomes("web.shop.svc.cluster.local.", &[]).await;
    let ports = json!([]);
    let anew = slice("shop", "db-x", "db", &[("10.244.5.5", None, true)], ports.clone());
    api.tell(Kind::Slice, "MODIFIED", anew).await;
    becomes("db.shop.svc.cluster.local.", &["A 10.244.5.5"]).await;
    let second = slice("shop", "db-y", "db", &[("10.244.6.6", None, true)], ports);
    api.tell(Kind::Slice, "ADDED", second.clone()).await;
    becomes("db.shop.svc.cluster.local.", &["A 10.244.5.5", "A 10.244.6.6"]).await;
    api.tell(Kind::Slice, "DELETED", second).await;
    becomes("db.shop.svc.cluster.local.", &["A 10.244.5.5"]).await;
}

thread_local! {
    static ADDRESS: std::cell::Cell<Option<SocketAddr>> = const { std::cell::Cell::new(None) };
}

fn running_address() -> SocketAddr {
    ADDRESS.with(std::cell::Cell::get).expect("set before")
}

/// A resolver that knows www.example.com and, only by TCP whole, big.example.com.
async fn resolver(tasks: &mut JoinSet<()>) -> SocketAddr {
    fn answer(bytes: &[u8], tcp: bool) -> Vec<u8> {
        let question = Message::from_vec(bytes).expect("a message");
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_queries(question.queries.clone());
        let name = question.queries[0].name().clone();
        let address =
            |n: u8| Record::from_rdata(name.clone(), 60, RData::A(rdata::A(Ipv4Addr::new(192, 0, 2, n))));
        match name.to_ascii().as_str() {
            "www.example.com." => drop(answer.add_answer(address(80))),
            "big.example.com." if tcp => drop(answer.add_answers((1..=100).map(address))),
            "big.example.com." => answer.metadata.truncation = true,
            _ => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        answer.to_vec().expect("encoded")
    }
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
        match TcpListener::bind(udp.local_addr().expect("bound")).await {
            // As in `start`.
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            bound => break (udp, bound.expect("bound")),
        }
    };
    let address = udp.local_addr().expect("bound");
    tasks.spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            udp.send_to(&answer(&buffer[..length], false), from).await.expect("sent");
        }
    });
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let length = stream.read_u16().await.expect("a question");
            let mut bytes = vec![0; usize::from(length)];
            stream.read_exact(&mut bytes).await.expect("a question");
            let answer = answer(&bytes, true);
            stream.write_u16(answer.len() as u16).await.expect("sent");
            stream.write_all(&answer).await.expect("sent");
        }
    });
    address
}

#[tokio::test]
async fn other_names_are_asked_on() {
    let mut tasks = JoinSet::new();
    let good = resolver(&mut tasks).await;
    // A resolver that nobody runs: its port was bound and is free again.
    let gone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound").local_addr().expect("bound");
    let running = start(&shop(), vec![gone, good]).await;
    synced(running.address).await;

    let www = over_udp(running.address, &question("www.example.com.", RecordType::A)).await;
    assert_eq!(texts(&www.answers), ["A 192.0.2.80"]);
    let missing = over_udp(running.address, &question("missing.example.com.", RecordType::A)).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    let out = over_udp(running.address, &question("out.shop.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(texts(&out.answers), ["A 192.0.2.80", "CNAME www.example.com."]);

    let big = question("big.example.com.", RecordType::A);
    let cut = over_udp(running.address, &big).await;
    assert!(cut.metadata.truncation, "too long for 512 bytes");
    assert_eq!(over_tcp(running.address, &big).await.answers.len(), 100);
    let asking = (0..100).map(|_| async {
        over_udp(running.address, &question("www.example.com.", RecordType::A)).await.answers.len()
    });
    assert_eq!(futures::future::join_all(asking).await, vec![1; 100]);

    let nobody = start(&shop(), vec![gone]).await;
    let failed = over_udp(nobody.address, &question("www.example.com.", RecordType::A)).await;
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn messages_of_every_kind_are_answered_or_ignored() {
    let api = shop();
    let many: Vec<String> = (0..200).map(|n| format!("10.244.9.{n}")).collect();
    let endpoints: Vec<_> = many.iter().map(|address| (address.as_str(), None, true)).collect();
    api.put(Kind::Service, service("shop", "wide", json!({"clusterIP": "None"})));
    api.put(Kind::Slice, slice("shop", "wide-x", "wide", &endpoints, json!([])));
    let running = start(&api, Vec::new()).await;
    synced(running.address).await;

    let mut wide = question("wide.shop.svc.cluster.local.", RecordType::A);
    let cut = over_udp(running.address, &wide).await;
    assert!(cut.metadata.truncation && !cut.answers.is_empty() && cut.answers.len() < 40);
    let mut edns = Edns::new();
    edns.set_max_payload(65000);
    wide.set_edns(edns);
    let more = over_udp(running.address, &wide).await;
    assert!(more.metadata.truncation && more.answers.len() > cut.answers.len());
    assert!(more.edns.is_some(), "RFC 6891: an OPT is answered with one");
    assert_eq!(over_tcp(running.address, &wide).await.answers.len(), 200);

    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    socket.connect(running.address).await.expect("connected");
    let mut answer = question("web.shop.svc.cluster.local.", RecordType::A);
    answer.metadata.message_type = hickory_proto::op::MessageType::Response;
    for ignored in [&b""[..], b"x", &[0; 11], &answer.to_vec().expect("encoded")] {
        socket.send(ignored).await.expect("sent");
    }
    let mut two = question("web.shop.svc.cluster.local.", RecordType::A);
    two.add_query(two.queries[0].clone());
    let mut update = question("cluster.local.", RecordType::SOA);
    update.metadata.op_code = hickory_proto::op::OpCode::Update;
    let mut chaos = question("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(hickory_proto::rr::DNSClass::CH);
    let garbage = [b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00", [0xff; 20].as_slice()].concat();
    for (bytes, code) in [
        (garbage, ResponseCode::FormErr),
        (two.to_vec().expect("encoded"), ResponseCode::FormErr),
        (update.to_vec().expect("encoded"), ResponseCode::NotImp),
        (chaos.to_vec().expect("encoded"), ResponseCode::Refused),
    ] {
        socket.send(&bytes).await.expect("sent");
        let mut buffer = vec![0; 4096];
        let length = timeout(DEADLINE, socket.recv(&mut buffer)).await.expect("an answer").expect("received");
        let answer = Message::from_vec(&buffer[..length]).expect("a message");
        assert_eq!(answer.metadata.response_code, code);
        assert_eq!(answer.metadata.id.to_be_bytes(), bytes[..2], "nothing that was ignored is answered");
    }
}
