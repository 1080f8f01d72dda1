//! The name server where it lives: on the gateway's address, asked by a pod, asking from the host.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RData, Record, RecordType, rdata},
};
use kube::{Client, client::Body};
use pith_network::{
    dns::{Config, DOMAIN, Dns, PORT},
    netns::run_in,
    pods::PodNet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    pods::{cluster, config, uid},
    sandbox::{DEADLINE, own_netns, pod_netns, sandbox},
};

/// The resolver on the host's loopback, as systemd-resolved has one: answers one question.
fn resolver() -> (SocketAddr, std::thread::JoinHandle<()>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let address = socket.local_addr().expect("bound");
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let (length, from) = socket.recv_from(&mut buffer).expect("a question");
        assert!(from.ip().is_loopback(), "asked from within the host: {from}");
        let question = Message::from_vec(&buffer[..length]).expect("a message");
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_queries(question.queries.clone());
        let data = RData::A(rdata::A(Ipv4Addr::new(192, 0, 2, 1)));
        answer.add_answer(Record::from_rdata(question.queries[0].name().clone(), 60, data));
        socket.send_to(&answer.to_vec().expect("encoded"), from).expect("sent");
    });
    (address, thread)
}

/// How long a question waits for its answer before it is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// What a program in the pod gets for a name.
fn ask(pod: &impl AsFd, server: Ipv4Addr, name: &str) -> Vec<RData> {
    let socket = run_in(pod.as_fd(), || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bound"));
    let socket = socket.expect("entered");
    socket.set_read_timeout(Some(AGAIN)).expect("a socket");
    socket.connect((server, PORT)).expect("connected");
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
    let question = question.to_vec().expect("encoded");
    let mut buffer = [0; 4096];
    let end = Instant::now() + DEADLINE;
    // As resolvers do: a link that has only just come up may lose the first.
    let length = loop {
        socket.send(&question).expect("sent");
        match socket.recv(&mut buffer) {
            Ok(length) => break length,
            Err(error) => assert!(Instant::now() < end, "no answer: {error}"),
        }
    };
    let answer = Message::from_vec(&buffer[..length]).expect("a message");
    answer.answers.into_iter().map(|record| record.data).collect()
}

#[test]
fn a_pod_asks_its_gateway_and_the_gateway_the_hosts_resolver() {
    sandbox("a_pod_asks_its_gateway_and_the_gateway_the_hosts_resolver", || {
        // lo of the sandbox is down.
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.expect("ip can be started").success());
        let (resolver, resolving) = resolver();
        let state = tempfile::tempdir().expect("a folder");
        let made = cluster(1);
        let replica = &made.replicas[0];
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let network = runtime.block_on(PodNet::open(config(replica, &state))).expect("opened");
        let pod = pod_netns();
        runtime.block_on(network.attach(&uid("a"), pod.as_fd())).expect("attached");

        let gateway = network.gateway();
        let settings = Config {
            listen: (gateway, PORT).into(),
            domain: DOMAIN.to_owned(),
            resolvers: vec![resolver],
            resolvers_netns: Some(own_netns()),
            own_addresses: Vec::new(),
        };
        // A replica's process is inside as a whole; here only the thread that binds is.
        let dns = replica.netns.run(|| runtime.block_on(Dns::bind(settings))).expect("entered");
        let dns = dns.expect("bound");
        let nobody = tower::service_fn(|_: http::Request<Body>| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
        });
        let client = {
            let _inside = runtime.enter();
            Client::new(nobody, "default")
        };
        let cancel = CancellationToken::new();
        let running = runtime.spawn(dns.run(client, cancel.clone()));

        let own = ask(&pod, gateway, "ns.dns.cluster.local.");
        assert_eq!(own, [RData::A(rdata::A(gateway))]);
        let other = ask(&pod, gateway, "www.example.com.");
        assert_eq!(other, [RData::A(rdata::A(Ipv4Addr::new(192, 0, 2, 1)))]);
        resolving.join().expect("no panic");
        cancel.cancel();
        runtime.block_on(running).expect("no panic");
    });
}
