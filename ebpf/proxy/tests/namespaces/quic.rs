//! QUIC's connection IDs, which lead packets to their server whatever address their client has: here each packet comes
//! from a socket of its own, as if its client had just moved.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
};

use pith_abi::Reason;
use pith_proxy::{
    annotations::{Forwarding, QuicServerId},
    service::Protocol,
};

use crate::support::{
    DEADLINE, Demo, Namespace, Sandbox, at,
    network::{A, B, BALANCER_IP, EXTERNAL_IP, NODE, NODE_PORT, Nodes, REMOTE, everywhere},
};

/// Every place that a Service of everywhere has outside.
const PLACES: [([u8; 4], u16); 3] = [(NODE, NODE_PORT), (BALANCER_IP, 80), (EXTERNAL_IP, 80)];
/// So often chance does not choose the same of two.
const TIMES: usize = 20;

static NEXT_PORT: AtomicU16 = AtomicU16::new(40_000);

/// A packet with a short header, whose connection ID names a server, or leads nowhere.
pub(crate) fn packet(server: Option<&[u8]>) -> Vec<u8> {
    match server {
        Some(server) => [&[0x40, 0x09], server, b"nonce and what is sealed"].concat(),
        None => b"\x40\xE9someone's random connection ID".to_vec(),
    }
}

/// A server that answers with its name.
pub(crate) fn serve(address: SocketAddr, name: u8) {
    let socket = UdpSocket::bind(address).expect("a server's address");
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            if socket.send_to(&[name], client).is_err() {
                return;
            }
        }
    });
}

/// The name of the server that answers a packet from a new socket.
pub(crate) fn ask(server: SocketAddr, packet: &[u8]) -> u8 {
    // One that the kernel chooses may be one that has a flow already.
    let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
    let own: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((own, port)).expect("a port of the test's own network namespace");
    socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    socket.connect(server).expect("an address");
    socket.send(packet).expect("it is sent");
    let mut answer = [0; 1];
    socket.recv(&mut answer).expect("an answer comes");
    answer[0]
}

/// Who answers packets from so many places.
pub(crate) fn answers(from: &Namespace, server: SocketAddr, named: Option<&[u8]>) -> Vec<u8> {
    let packet = packet(named);
    from.run(move || (0..TIMES).map(|_| ask(server, &packet)).collect())
}

fn quic(backends: &[[u8; 4]]) -> Demo {
    let mut demo = everywhere(Protocol::Udp, backends);
    demo.service.annotations.quic_server_id = QuicServerId::PodIp;
    demo
}

/// Network and host of a backend.
fn name(address: [u8; 4]) -> u8 {
    address[2] * 16 + address[3]
}

fn place(place: ([u8; 4], u16)) -> SocketAddr {
    SocketAddrV4::new(place.0.into(), place.1).into()
}

#[test]
fn a_client_that_moves_finds_its_server() {
    Sandbox::run("quic", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        for (namespace, address) in [(&nodes.a, A), (&nodes.b, B), (&nodes.outside, REMOTE)] {
            namespace.run(move || serve(at(address, 8080).into(), name(address)));
        }
        let mut demo = quic(&[A, B, REMOTE]);
        nodes.apply(&demo);
        for server in PLACES.map(place) {
            for named in [A, B, REMOTE] {
                let seen = answers(&nodes.outside, server, Some(&named));
                assert_eq!(seen, [name(named); TIMES], "{server}");
            }
            let seen = answers(&nodes.outside, server, None);
            assert!(seen.iter().any(|name| *name != seen[0]), "{seen:?}: nobody is named");
            let seen = answers(&nodes.outside, server, Some(&[10, 244, 1, 99]));
            assert!(seen.iter().any(|name| *name != seen[0]), "{seen:?}: whoever it is, it is no backend");
        }
        assert!(nodes.count(Reason::ConnectionNamed) >= (9 * TIMES) as u64);

        let mut nodes = nodes.restarted(sandbox);
        nodes.apply(&demo);
        let server = place(PLACES[0]);
        assert_eq!(answers(&nodes.outside, server, Some(&B)), [name(B); TIMES], "the proxy is another one");

        demo.slice.endpoints[1].ready = false;
        nodes.apply(&demo);
        assert_eq!(answers(&nodes.outside, server, Some(&B)), [name(B); TIMES], "B has connections still");
        demo.slice.endpoints.remove(1);
        nodes.apply(&demo);
        let seen = answers(&nodes.outside, server, Some(&B));
        assert!(!seen.contains(&name(B)), "{seen:?}: B is gone");

        demo.endpoints(&[A, B]);
        demo.service.annotations.quic_server_id = QuicServerId::None;
        nodes.apply(&demo);
        let seen = answers(&nodes.outside, server, Some(&B));
        assert!(seen.contains(&name(A)), "{seen:?}: the Service says nothing of connection IDs any more");
    });
}

/// With direct server return, too, where the slots of a Service are nodes.
#[test]
fn what_is_handed_on_goes_to_the_servers_node() {
    Sandbox::run("quic-dsr", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        nodes.a.run(|| serve(at(A, 8080).into(), name(A)));
        let mut demo = quic(&[A, REMOTE]);
        demo.slice.endpoints[1].node = Some("there".into());
        demo.service.annotations.forwarding = Forwarding::Dsr;
        nodes.identity.neighbours.insert("there".into(), [172, 30, 0, 1].into());
        nodes.apply(&demo);
        let server = place(PLACES[0]);
        assert_eq!(answers(&nodes.outside, server, Some(&A)), [name(A); TIMES]);
        assert_eq!(nodes.count(Reason::DirectBegun), 0);
        let packet = packet(Some(&REMOTE));
        nodes.outside.run(move || {
            for _ in 0..TIMES {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("any port");
                socket.send_to(&packet, server).expect("it is sent");
            }
        });
        crate::support::until("all are handed on", || nodes.count(Reason::DirectBegun) == TIMES as u64);
    });
}
