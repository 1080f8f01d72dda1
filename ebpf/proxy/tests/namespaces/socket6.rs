//! Services with IPv6 addresses at the socket, on real sockets in a namespace and a cgroup of their own.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use crate::support::{DEADLINE, Demo, Sandbox, apply, at, count, ip, open};
use pith_abi::Reason;
use pith_proxy::{
    inspect::inspect,
    service::{Endpoint, Protocol},
};

const SERVICE: Ipv6Addr = Ipv6Addr::new(0xFD00, 0x96, 0, 0, 0, 0, 0, 0x10);
const SERVERS: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xFD00, 0, 0, 0, 0, 0, 0, 2), Ipv6Addr::new(0xFD00, 0, 0, 0, 0, 0, 0, 3)];
const SERVICE4: [u8; 4] = [10, 96, 0, 10];
const SERVER4: [u8; 4] = [127, 0, 0, 2];

/// Gives the servers their addresses.
fn addresses() {
    for server in SERVERS {
        ip(&format!("-6 addr add {server}/128 dev lo nodad"));
    }
}

/// Tells every client its own address, in sixteen bytes.
fn tcp_server(address: IpAddr) {
    let listener = TcpListener::bind((address, 8080)).expect("a server's address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // A client that went away is its own business.
            let _ = stream.write_all(&octets(address));
        }
    });
}

fn udp_server(address: IpAddr) {
    let socket = UdpSocket::bind((address, 8080)).expect("a server's address");
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            if &buffer[..length] == b"stop" || socket.send_to(&octets(address), client).is_err() {
                return;
            }
        }
    });
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn ask_tcp(service: SocketAddr) -> std::io::Result<IpAddr> {
    let mut stream = TcpStream::connect(service)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    assert_eq!(stream.peer_addr()?, service, "the client sees the Service");
    let mut answer = [0; 16];
    stream.read_exact(&mut answer)?;
    Ok(Ipv6Addr::from(answer).to_canonical())
}

/// A Service at one address of each family.
fn dual(protocol: Protocol) -> Demo {
    let mut demo = Demo::new(SERVICE4, protocol, 80, 8080);
    demo.service.cluster_ips6 = vec![SERVICE];
    demo
}

fn endpoints(demo: &mut Demo, addresses: &[IpAddr]) {
    demo.slice.endpoints = addresses.iter().map(|address| Endpoint::ready(*address)).collect();
}

#[test]
fn each_family_reaches_its_endpoints() {
    Sandbox::run("tcp6", |sandbox| {
        addresses();
        let [first, second] = SERVERS.map(IpAddr::from);
        let four = IpAddr::from(SERVER4);
        [first, second, four].into_iter().for_each(tcp_server);
        let (mut datapath, mut table) = open(sandbox);
        let mut demo = dual(Protocol::Tcp);
        let (in4, in6) = (SocketAddr::V4(at(SERVICE4, 80)), SocketAddr::from((SERVICE, 80)));

        apply(&mut datapath, &mut table, &demo);
        for service in [in4, in6] {
            let refused = ask_tcp(service).expect_err("there is no endpoint").kind();
            assert_eq!(refused, ErrorKind::ConnectionRefused, "{service}");
        }
        endpoints(&mut demo, &[first, second, four]);
        apply(&mut datapath, &mut table, &demo);
        let who = |service| -> BTreeSet<IpAddr> {
            (0..50).map(|_| ask_tcp(service).expect("an endpoint answers")).collect()
        };
        assert_eq!(who(in4), BTreeSet::from([four]));
        assert_eq!(who(in6), BTreeSet::from([first, second]));
        let seen = inspect(&sandbox.config().bpffs).expect("the maps can be read");
        let inside: Vec<_> = seen.services.iter().map(|service| service.inside[0].as_str()).collect();
        assert_eq!(inside, ["10.96.0.10:80/TCP", "[fd00:96::10]:80/TCP"]);
        let backends: Vec<_> =
            seen.services[1].backends.iter().map(|backend| backend.address.to_string()).collect();
        assert_eq!(backends, ["[fd00::2]:8080", "[fd00::3]:8080"]);
        assert_eq!(seen.services[1].connections, 50);

        // One family runs out of endpoints, the other does not.
        endpoints(&mut demo, &[four]);
        apply(&mut datapath, &mut table, &demo);
        assert_eq!(ask_tcp(in6).expect_err("no endpoint").kind(), ErrorKind::ConnectionRefused);
        assert_eq!(who(in4), BTreeSet::from([four]));

        // Servers are reached directly too, and a port that no Service has is not touched.
        let direct = TcpStream::connect((first, 8080)).expect("a server");
        assert_eq!(direct.peer_addr().expect("connected"), SocketAddr::from((first, 8080)));
        let other = TcpStream::connect((SERVICE, 81)).expect_err("nobody is there").kind();
        assert_eq!(other, ErrorKind::NetworkUnreachable);
    });
}

/// A stand-in is nobody's to ask for.
#[test]
fn stand_ins_are_not_reached() {
    Sandbox::run("standins", |sandbox| {
        addresses();
        let server = IpAddr::from(SERVERS[0]);
        tcp_server(server);
        let (mut datapath, mut table) = open(sandbox);
        let mut demo = dual(Protocol::Tcp);
        endpoints(&mut demo, &[server]);
        apply(&mut datapath, &mut table, &demo);
        let direct = count(&datapath, Reason::SocketDirect);
        for index in 1..=3u8 {
            for address in [at([255, 0, 0, index], 80), at([255, 0, 0, index], 8080)] {
                let mapped = SocketAddr::new(address.ip().to_ipv6_mapped().into(), address.port());
                for asked in [SocketAddr::V4(address), mapped] {
                    TcpStream::connect(asked).expect_err("there is no route");
                }
            }
        }
        assert_eq!(count(&datapath, Reason::SocketDirect), direct + 12);
        assert_eq!(count(&datapath, Reason::SocketTranslated), 0);
    });
}

#[test]
fn udp_answers_come_from_the_service_and_the_backend_is_kept() {
    Sandbox::run("udp6", |sandbox| {
        addresses();
        let servers = SERVERS.map(IpAddr::from);
        let four = IpAddr::from(SERVER4);
        [servers[0], servers[1], four].into_iter().for_each(udp_server);
        let (mut datapath, mut table) = open(sandbox);
        let mut demo = dual(Protocol::Udp);
        endpoints(&mut demo, &[servers[0], servers[1], four]);
        apply(&mut datapath, &mut table, &demo);

        let in6 = SocketAddr::from((SERVICE, 80));
        let mapped = SocketAddr::new(at(SERVICE4, 80).ip().to_ipv6_mapped().into(), 80);
        let ask = |socket: &UdpSocket, service: SocketAddr| -> IpAddr {
            socket.send_to(b"?", service).expect("sent");
            let mut answer = [0; 16];
            let (_, from) = socket.recv_from(&mut answer).expect("answered");
            assert_eq!(from, service, "the answer comes from where it was asked");
            Ipv6Addr::from(answer).to_canonical()
        };
        let socket = UdpSocket::bind("[::]:0").expect("a dual-stack socket");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let first = ask(&socket, in6);
        for _ in 0..20 {
            assert_eq!(ask(&socket, in6), first, "one socket keeps its backend");
            assert_eq!(ask(&socket, mapped), four, "and holds the families apart");
        }
        let other = servers.into_iter().find(|server| *server != first).expect("there are two");
        endpoints(&mut demo, &[other, four]);
        apply(&mut datapath, &mut table, &demo);
        assert_eq!(ask(&socket, in6), other, "the socket goes on, with another backend");

        let connected = UdpSocket::bind("[::]:0").expect("a socket");
        connected.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        connected.connect(in6).expect("a Service can be connected to");
        assert_eq!(connected.peer_addr().expect("connected"), in6);
        connected.send(b"?").expect("sent");
        let mut answer = [0; 16];
        assert_eq!(connected.recv(&mut answer).expect("answered"), 16);
        assert_eq!(IpAddr::from(answer), other);

        for server in servers {
            socket.send_to(b"stop", (server, 8080)).expect("sent");
        }
        socket.send_to(b"stop", (at(SERVER4, 0).ip().to_ipv6_mapped(), 8080)).expect("sent");
    });
}

#[test]
fn a_client_stays_with_its_backend_over_a_restart() {
    Sandbox::run("affinity6", |sandbox| {
        addresses();
        let servers = SERVERS.map(IpAddr::from);
        servers.into_iter().for_each(tcp_server);
        let mut demo = dual(Protocol::Tcp);
        demo.service.affinity = Some(Duration::from_secs(60));
        endpoints(&mut demo, &servers);
        let service = SocketAddr::from((SERVICE, 80));
        let first = {
            let (mut datapath, mut table) = open(sandbox);
            apply(&mut datapath, &mut table, &demo);
            let first = ask_tcp(service).expect("an endpoint answers");
            for _ in 0..20 {
                assert_eq!(ask_tcp(service).expect("an endpoint answers"), first);
            }
            first
        };
        // Nobody drives, then the next proxy adopts what is there.
        assert_eq!(ask_tcp(service).expect("an endpoint answers"), first);
        let (mut datapath, mut table) = open(sandbox);
        apply(&mut datapath, &mut table, &demo);
        table.finish_adoption(datapath.service_maps().0).expect("the maps can be written");
        assert_eq!(ask_tcp(service).expect("an endpoint answers"), first);
        endpoints(&mut demo, &servers.into_iter().filter(|server| *server != first).collect::<Vec<_>>());
        apply(&mut datapath, &mut table, &demo);
        assert_ne!(ask_tcp(service).expect("the other answers"), first);
    });
}
