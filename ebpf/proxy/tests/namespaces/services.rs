//! What a Service promises, each promise on real sockets.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use crate::support::{
    DEADLINE, Namespace, Sandbox, ask_tcp, ask_udp, at,
    network::{
        A, B, BALANCER_IP, C, CLUSTER_IP, EXTERNAL_IP, NODE, NODE_PORT, Nodes, OUTSIDE, REMOTE, echo,
        everywhere, range, serve,
    },
    raw::{Raw, pieces},
    until,
};
use pith_abi::Reason;
use pith_core::crc;
use pith_proxy::{
    annotations::{Balance, Weights},
    plan_host_ports,
    service::{HostPort, HostPorts, Protocol, ServiceName},
};

#[test]
fn every_address_of_a_service_answers() {
    Sandbox::run("addresses", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        serve(&nodes.a, A);
        serve(&nodes.outside, REMOTE);
        type Ask = fn(std::net::SocketAddrV4) -> Result<[u8; 4], ErrorKind>;
        let asks: [(_, Ask); 2] = [(Protocol::Tcp, ask_tcp), (Protocol::Udp, ask_udp)];
        for (protocol, ask) in asks {
            for (backend, from_outside, from_b) in [(A, OUTSIDE, B), (REMOTE, NODE, B)] {
                nodes.apply(&everywhere(protocol, &[backend]));
                for place in [at(NODE, NODE_PORT), at(BALANCER_IP, 80), at(EXTERNAL_IP, 80)] {
                    assert_eq!(
                        nodes.outside.run(move || ask(place)),
                        Ok(from_outside),
                        "{protocol:?} {place}"
                    );
                }
                // A pod, by its sockets and by plain packets.
                for place in [at(CLUSTER_IP, 80), at(BALANCER_IP, 80), at(EXTERNAL_IP, 80)] {
                    assert_eq!(nodes.c.run(move || ask(place)), Ok(C), "{protocol:?} {place}");
                    assert_eq!(nodes.b.run(move || ask(place)), Ok(from_b), "{protocol:?} {place}");
                }
            }
        }
        assert!(nodes.count(Reason::Announced) > 0, "nobody but the node's programs knows that address");
    });
}

#[test]
fn host_ports_lead_to_their_pod() {
    Sandbox::run("hostport", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        serve(&nodes.a, A);
        let port = |host, port| HostPort { host, port, protocol: Protocol::Tcp, target: 8080 };
        let ports = vec![port(None, 8081), port(Some(NODE.into()), 8082)];
        let pod = HostPorts { address: Some(A.into()), address6: None, ports };
        nodes.apply_plan(&plan_host_ports(ServiceName::new("default", "pod"), &pod));
        for port in [8081, 8082] {
            assert_eq!(nodes.outside.run(move || ask_tcp(at(NODE, port))), Ok(OUTSIDE), "{port}");
            assert_eq!(nodes.c.run(move || ask_tcp(at(NODE, port))), Ok(C), "{port}");
        }
    });
}

#[test]
fn only_the_sources_named_are_served() {
    Sandbox::run("sources", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        serve(&nodes.a, A);
        let mut demo = everywhere(Protocol::Tcp, &[A]);
        demo.service.sources = vec![range("172.30.0.0/30"), range("10.244.0.0/16")];
        nodes.apply(&demo);
        assert_eq!(nodes.outside.run(|| ask_tcp(at(BALANCER_IP, 80))), Ok(OUTSIDE));
        assert_eq!(nodes.c.run(|| ask_tcp(at(BALANCER_IP, 80))), Ok(C), "pods are among them");

        demo.service.sources = vec![range("203.0.113.0/24")];
        nodes.apply(&demo);
        let try_connect = || TcpStream::connect_timeout(&at(BALANCER_IP, 80).into(), DEADLINE / 20).is_ok();
        assert!(!nodes.outside.run(try_connect), "another source is not");
        assert!(nodes.count(Reason::SourceDenied) > 0);
        assert_eq!(nodes.outside.run(|| ask_tcp(at(NODE, NODE_PORT))), Ok(OUTSIDE), "node ports are open");
        assert_eq!(nodes.c.run(|| ask_tcp(at(CLUSTER_IP, 80))), Ok(C));
    });
}

#[test]
fn a_client_address_stays_with_its_backend() {
    Sandbox::run("affinity", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        for (pod, address) in [(&nodes.a, A), (&nodes.b, B)] {
            pod.run(move || name_server(address));
        }
        let mut demo = everywhere(Protocol::Tcp, &[A, B]);
        let who = |client: &Namespace, place| {
            let answers: std::collections::BTreeSet<_> =
                (0..30).map(|_| client.run(move || ask_tcp(place)).expect("answered")).collect();
            answers
        };
        nodes.apply(&demo);
        assert_eq!(who(&nodes.outside, at(NODE, NODE_PORT)).len(), 2, "by chance both answer");
        assert_eq!(who(&nodes.c, at(CLUSTER_IP, 80)).len(), 2);
        demo.service.affinity = Some(DEADLINE);
        nodes.apply(&demo);
        assert_eq!(who(&nodes.outside, at(NODE, NODE_PORT)).len(), 1, "ClientIP");
        assert_eq!(who(&nodes.c, at(CLUSTER_IP, 80)).len(), 1);
        demo.service.affinity = None;
        demo.service.annotations.balance = Balance::MaglevClient;
        nodes.apply(&demo);
        let there = who(&nodes.outside, at(NODE, NODE_PORT));
        assert_eq!(there.len(), 1, "Maglev by client");
        assert_eq!(there, who(&nodes.outside, at(BALANCER_IP, 80)), "at whatever address");
        assert_eq!(who(&nodes.c, at(CLUSTER_IP, 80)).len(), 1, "east-west as well");
        demo.service.annotations.balance = Balance::Maglev;
        nodes.apply(&demo);
        assert_eq!(who(&nodes.outside, at(NODE, NODE_PORT)).len(), 2, "Maglev by client and port");
        assert_eq!(who(&nodes.c, at(CLUSTER_IP, 80)).len(), 2);
        // Weights by the names of pods.
        demo.service.annotations.weights = Weights::parse("canary-*=0,main-*=3").expect("weights");
        demo.slice.endpoints[0].pod = Some("canary-1".into());
        demo.slice.endpoints[1].pod = Some("main-1".into());
        for balance in [Balance::Random, Balance::Maglev] {
            demo.service.annotations.balance = balance;
            nodes.apply(&demo);
            assert_eq!(who(&nodes.outside, at(NODE, NODE_PORT)), [B].into(), "weight 0 gets nothing");
        }
    });
}

/// A server that says its own address and not the client's.
fn name_server(address: [u8; 4]) {
    let listener = TcpListener::bind(at(address, 8080)).expect("a server's address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that went away is its own business.
            let _ = stream.and_then(|mut stream| stream.write_all(&address));
        }
    });
}

/// A connection to a backend that is gone is reset, wherever it was translated.
#[test]
fn connections_to_a_backend_that_is_gone_are_reset() {
    Sandbox::run("reset", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        echo(&nodes.a, A);
        echo(&nodes.b, B);
        nodes.apply(&everywhere(Protocol::Tcp, &[A]));
        let talk = |mut stream: TcpStream| -> Result<TcpStream, ErrorKind> {
            let mut ask = || {
                stream.set_read_timeout(Some(DEADLINE))?;
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])
            };
            ask().map_err(|error: std::io::Error| error.kind())?;
            Ok(stream)
        };
        let connect = move |place: std::net::SocketAddrV4| {
            talk(TcpStream::connect_timeout(&place.into(), DEADLINE).expect("answers")).expect("lives")
        };
        let streams = [
            nodes.outside.run(move || connect(at(NODE, NODE_PORT))),
            nodes.outside.run(move || connect(at(BALANCER_IP, 80))),
            nodes.c.run(move || connect(at(CLUSTER_IP, 80))),
            nodes.b.run(move || connect(at(CLUSTER_IP, 80))),
        ];
        // Draining: it takes nothing new, what is there goes on.
        let mut draining = everywhere(Protocol::Tcp, &[A, B]);
        draining.slice.endpoints[0].ready = false;
        draining.slice.endpoints[0].draining = true;
        nodes.apply(&draining);
        nodes.collect();
        let streams = streams.map(|stream| talk(stream).expect("a draining backend serves on"));

        nodes.apply(&everywhere(Protocol::Tcp, &[B]));
        nodes.collect();
        for (number, stream) in streams.into_iter().enumerate() {
            let error = talk(stream).expect_err("its backend is gone");
            assert_eq!(error, ErrorKind::ConnectionReset, "{number}");
        }
        let direct = nodes.c.run(move || talk(TcpStream::connect(at(A, 8080)).expect("it still listens")));
        assert!(direct.is_ok(), "who means that very place gets there");
    });
}

#[test]
fn datagrams_in_pieces_arrive_whole_in_both_directions() {
    const BYTES: usize = 5000;
    Sandbox::run("pieces", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        for (namespace, address) in [(&nodes.a, A), (&nodes.outside, REMOTE)] {
            namespace.run(move || {
                let socket = UdpSocket::bind(at(address, 8080)).expect("a server's address");
                thread::spawn(move || {
                    let mut buffer = [0; BYTES];
                    while let Ok((read, client)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(&buffer[..read], client);
                    }
                });
            });
        }
        let ask = |place: std::net::SocketAddrV4| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.set_read_timeout(Some(DEADLINE)).expect("set");
            let sent: Vec<u8> = (0..BYTES).map(|at| at as u8).collect();
            socket.send_to(&sent, place).expect("sent");
            let mut back = [0; BYTES];
            let (read, from) = socket.recv_from(&mut back).expect("answered");
            assert_eq!((&back[..read], from), (&sent[..], SocketAddr::from(place)));
        };
        for backend in [A, REMOTE] {
            nodes.apply(&everywhere(Protocol::Udp, &[backend]));
            nodes.outside.run(move || ask(at(NODE, NODE_PORT)));
            nodes.outside.run(move || ask(at(BALANCER_IP, 80)));
            nodes.b.run(move || ask(at(CLUSTER_IP, 80)));
        }
        assert!(nodes.count(Reason::FragmentTranslated) > 0);
    });
}

/// Pieces that come last first, mixed up, or twice, of datagrams to Services and to the node itself. The
/// kernel that takes them has every datagram whole, and so has who is asked.
#[test]
fn pieces_arrive_in_any_order() {
    const SIZE: usize = 1208;
    type Order = fn(Vec<Vec<u8>>) -> Vec<Vec<u8>>;
    let orders: [(&str, Order); 5] = [
        ("as sent", |pieces| pieces),
        ("last first", |pieces| pieces.into_iter().rev().collect()),
        ("first last", |mut pieces| {
            pieces.rotate_left(1);
            pieces
        }),
        ("first in the middle", |mut pieces| {
            pieces.swap(0, 2);
            pieces
        }),
        ("twice", |pieces| pieces.iter().rev().chain(&pieces).cloned().collect()),
    ];
    Sandbox::run("disorder", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        udp_echo(&nodes.a, A, 8080);
        udp_echo(&nodes.outside, REMOTE, 8080);
        udp_echo_here(NODE, 8999);
        let mut id = 0;
        for backend in [A, REMOTE] {
            nodes.apply(&everywhere(Protocol::Udp, &[backend]));
            for place in [at(NODE, NODE_PORT), at(BALANCER_IP, 80), at(NODE, 8999)] {
                for (name, order) in orders {
                    id += 1;
                    nodes.outside.run(move || {
                        let socket = UdpSocket::bind(SocketAddr::from(at(OUTSIDE, 0))).expect("a socket");
                        socket.set_read_timeout(Some(DEADLINE)).expect("set");
                        let from = at(OUTSIDE, socket.local_addr().expect("bound").port());
                        let sent: Vec<u8> = (0..5000).map(|byte| (byte % 251) as u8).collect();
                        let raw = Raw::headers();
                        for piece in order(pieces(from, place, id, &sent, SIZE)) {
                            raw.send(place.ip().octets(), &piece);
                        }
                        let mut back = [0; 6000];
                        let (read, from) = socket.recv_from(&mut back).expect(name);
                        assert_eq!((&back[..read], from), (&sent[..], SocketAddr::from(place)), "{name}");
                    });
                }
            }
        }
        let counts = [Reason::FragmentParked, Reason::FragmentsReleased].map(|reason| nodes.count(reason));
        assert!(counts.iter().all(|count| *count >= 20), "{counts:?}");

        // One alone waits, and takes nothing with it: the next datagram has other pieces.
        nodes.outside.run(|| {
            let alone = pieces(at(OUTSIDE, 9), at(NODE, NODE_PORT), 9999, &[0; 3000], SIZE).remove(1);
            Raw::headers().send(NODE, &alone);
        });
        until("it is counted", || nodes.count(Reason::FragmentParked) > counts[0]);
        assert_eq!(nodes.count(Reason::FragmentsReleased), counts[1]);
    });
}

fn udp_echo(namespace: &Namespace, address: [u8; 4], port: u16) {
    namespace.run(move || udp_echo_here(address, port));
}

fn udp_echo_here(address: [u8; 4], port: u16) {
    let socket = UdpSocket::bind(at(address, port)).expect("a server's address");
    thread::spawn(move || {
        let mut buffer = [0; 6000];
        while let Ok((read, client)) = socket.recv_from(&mut buffer) {
            // A client that went away is its own business.
            let _ = socket.send_to(&buffer[..read], client);
        }
    });
}

/// This kernel has no SCTP: associations are begun by hand, with the port changed and the checksum right.
#[test]
fn sctp_is_balanced_with_its_port_rewritten() {
    Sandbox::run("sctp", |sandbox| {
        const SCTP: u8 = 132;
        let mut nodes = Nodes::new(sandbox);
        nodes.apply(&everywhere(Protocol::Sctp, &[A]));
        let packet = |sport: u16, dport: u16, chunk: &[u8]| {
            let mut packet =
                [&sport.to_be_bytes()[..], &dport.to_be_bytes(), b"vtag", &[0; 4], chunk].concat();
            let sum = crc::full(&packet).to_le_bytes();
            packet[8..12].copy_from_slice(&sum);
            packet
        };
        let sound = |l4: &[u8]| {
            let zeroed = [&l4[..8], &[0; 4], &l4[12..]].concat();
            l4[8..12] == crc::full(&zeroed).to_le_bytes()
        };
        nodes.a.run(move || {
            let socket = Raw::new(SCTP);
            thread::spawn(move || {
                socket.receive(|seen| -> Option<()> {
                    let l4 = &seen[20..];
                    if l4[2..4] == 8080u16.to_be_bytes() && sound(l4) {
                        let client = [seen[12], seen[13], seen[14], seen[15]];
                        socket.send(client, &packet(8080, u16::from_be_bytes([l4[0], l4[1]]), b"INIT ACK"));
                    }
                    None
                });
            });
        });
        for (client, place, port) in
            [(&nodes.outside, NODE, NODE_PORT), (&nodes.outside, BALANCER_IP, 80), (&nodes.b, CLUSTER_IP, 80)]
        {
            let answer = client.run(move || {
                let socket = Raw::new(SCTP);
                socket.send(place, &packet(5000, port, b"INIT"));
                socket.receive(|seen| {
                    let l4 = &seen[20..];
                    let fits = seen[12..16] == place && l4[..2] == port.to_be_bytes() && sound(l4);
                    fits.then(|| l4[12..].to_vec())
                })
            });
            assert_eq!(answer.as_deref(), Some(&b"INIT ACK"[..]), "{}:{port}", Ipv4Addr::from(place));
        }
    });
}
