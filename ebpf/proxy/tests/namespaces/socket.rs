//! Services at the socket, on real sockets in a namespace and a cgroup of their own.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::support::{DEADLINE, Demo, Sandbox, apply, at, count, open};
use pith_abi::{LAYOUT, Reason};
use pith_proxy::{Datapath, ServicePlan, inspect::inspect, service::Protocol};

const SERVICE: [u8; 4] = [10, 96, 0, 10];
const SERVERS: [[u8; 4]; 2] = [[127, 0, 0, 2], [127, 0, 0, 3]];

/// A server that tells every client its own address. It ends with the test's namespace's last socket: the
/// thread is not joined, but blocks in accept only and holds nothing.
fn tcp_server(address: [u8; 4]) {
    let listener = TcpListener::bind(at(address, 8080)).expect("a server's address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // A client that went away is its own business.
            let _ = stream.write_all(&address);
        }
    });
}

fn udp_server(address: [u8; 4]) {
    let socket = UdpSocket::bind(at(address, 8080)).expect("a server's address");
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            if &buffer[..length] == b"stop" || socket.send_to(&address, client).is_err() {
                return;
            }
        }
    });
}

fn ask_tcp() -> std::io::Result<[u8; 4]> {
    let mut stream = TcpStream::connect(at(SERVICE, 80))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    assert_eq!(stream.peer_addr()?, SocketAddr::V4(at(SERVICE, 80)), "the client sees the Service");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

#[test]
fn tcp_reaches_every_endpoint_and_shows_the_service() {
    Sandbox::run("tcp", |sandbox| {
        SERVERS.into_iter().for_each(tcp_server);
        let (mut datapath, mut table) = open(sandbox);
        let mut demo = Demo::new(SERVICE, Protocol::Tcp, 80, 8080);

        apply(&mut datapath, &mut table, &demo);
        let refused = ask_tcp().expect_err("there is no endpoint").kind();
        assert_eq!(refused, ErrorKind::ConnectionRefused);
        assert_eq!(count(&datapath, Reason::SocketNoEndpoints), 1);

        apply(&mut datapath, &mut table, demo.endpoints(&SERVERS));
        let mut answers = BTreeMap::new();
        for _ in 0..100 {
            *answers.entry(ask_tcp().expect("an endpoint answers")).or_insert(0) += 1;
        }
        assert_eq!(answers.len(), 2, "{answers:?}");
        assert!(answers.values().all(|count| *count > 20), "{answers:?}");
        assert_eq!(count(&datapath, Reason::SocketTranslated), 100);
        let connections = || {
            let seen = inspect(&sandbox.config().bpffs).expect("the maps can be read");
            seen.services.iter().map(|service| service.connections).collect::<Vec<_>>()
        };
        assert_eq!(connections(), [100], "those that were refused are none");

        let direct = TcpStream::connect(at(SERVERS[0], 8080)).expect("servers are reached directly too");
        assert_eq!(direct.peer_addr().expect("connected"), SocketAddr::V4(at(SERVERS[0], 8080)));
        assert_eq!(connections(), [100]);

        // The place of a Service that is gone is given to another, which begins at none.
        let absent = ServicePlan::absent(demo.service.name.clone());
        assert!(table.apply(datapath.service_maps().0, &absent).is_empty());
        apply(&mut datapath, &mut table, &demo);
        assert_eq!(connections(), [0]);
        ask_tcp().expect("an endpoint answers");
        assert_eq!(connections(), [1]);
    });
}

/// Backends change as fast as the maps take it, and no connection finds a Service without one.
#[test]
fn no_connection_fails_while_backends_change() {
    const GENERATIONS: usize = 5_000;
    Sandbox::run("churn", |sandbox| {
        SERVERS.into_iter().for_each(tcp_server);
        let (mut datapath, mut table) = open(sandbox);
        let mut demo = Demo::new(SERVICE, Protocol::Tcp, 80, 8080);
        let [first, second] = SERVERS;
        let sets: [&[[u8; 4]]; 3] = [&[first], &[first, second], &[second]];
        apply(&mut datapath, &mut table, demo.endpoints(sets[0]));
        let over = AtomicBool::new(false);
        let connections = thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut connections = 0;
                while !over.load(Ordering::Relaxed) || connections == 0 {
                    ask_tcp().expect("there is a backend at every time");
                    connections += 1;
                }
                connections
            });
            for generation in 0..GENERATIONS {
                apply(&mut datapath, &mut table, demo.endpoints(sets[generation % sets.len()]));
            }
            over.store(true, Ordering::Relaxed);
            client.join().expect("no connection failed")
        });
        assert!(connections > 0);
        assert_eq!(count(&datapath, Reason::SocketNoEndpoints), 0);
        assert_eq!(count(&datapath, Reason::GenerationRace), 0);
    });
}

#[test]
fn ipv6_sockets_reach_ipv4_services() {
    Sandbox::run("mapped", |sandbox| {
        tcp_server(SERVERS[0]);
        udp_server(SERVERS[0]);
        let (mut datapath, mut table) = open(sandbox);
        let mapped = SocketAddr::new(Ipv4Addr::from(SERVICE).to_ipv6_mapped().into(), 80);

        apply(
            &mut datapath,
            &mut table,
            Demo::new(SERVICE, Protocol::Tcp, 80, 8080).endpoints(&SERVERS[..1]),
        );
        let stream = TcpStream::connect(mapped).expect("a dual-stack client connects");
        assert_eq!(stream.peer_addr().expect("connected"), mapped);

        apply(
            &mut datapath,
            &mut table,
            Demo::new(SERVICE, Protocol::Udp, 80, 8080).endpoints(&SERVERS[..1]),
        );
        let socket = UdpSocket::bind("[::]:0").expect("a dual-stack socket");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        socket.send_to(b"?", mapped).expect("sent");
        let mut answer = [0; 4];
        let (_, from) = socket.recv_from(&mut answer).expect("answered");
        assert_eq!((answer, from), (SERVERS[0], mapped));
        socket.send_to(b"stop", mapped).expect("sent");
    });
}

#[test]
fn udp_answers_come_from_the_service_and_the_backend_is_kept() {
    Sandbox::run("udp", |sandbox| {
        SERVERS.into_iter().for_each(udp_server);
        let (mut datapath, mut table) = open(sandbox);
        let mut demo = Demo::new(SERVICE, Protocol::Udp, 53, 8080);
        apply(&mut datapath, &mut table, demo.endpoints(&SERVERS));

        let service = SocketAddr::V4(at(SERVICE, 53));
        let ask = |socket: &UdpSocket| {
            socket.send_to(b"?", service).expect("sent");
            let mut answer = [0; 4];
            let (_, from) = socket.recv_from(&mut answer).expect("answered");
            assert_eq!(from, service, "the answer comes from where it was asked");
            answer
        };
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let first = ask(&socket);
        for _ in 0..20 {
            assert_eq!(ask(&socket), first, "one socket keeps its backend");
        }
        // A generation that still has the backend changes nothing, one that has not moves the client on.
        let other = SERVERS.into_iter().find(|server| *server != first).expect("there are two");
        apply(&mut datapath, &mut table, demo.endpoints(&[[127, 0, 0, 1], SERVERS[0], SERVERS[1]]));
        assert_eq!(ask(&socket), first);
        apply(&mut datapath, &mut table, demo.endpoints(&[other]));
        assert_eq!(ask(&socket), other, "the socket goes on, with another backend");

        let connected = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        connected.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        connected.connect(service).expect("a Service can be connected to");
        assert_eq!(connected.peer_addr().expect("connected"), service);
        connected.send(b"?").expect("sent");
        let mut answer = [0; 4];
        assert_eq!(connected.recv(&mut answer).expect("answered"), 4);
        assert_eq!(answer, other);

        for server in SERVERS {
            socket.send_to(b"stop", at(server, 8080)).expect("sent");
        }
    });
}

/// What is not ours in the folder stays, and the error says what it is.
#[test]
fn foreign_pins_are_named_and_left() {
    Sandbox::run("foreign", |sandbox| {
        let config = sandbox.config();
        let map = aya::maps::Array::<_, u32>::create(1, 0).expect("a map");
        drop(open(sandbox));
        map.pin(config.bpffs.join(format!("layout-{LAYOUT}/maps/theirs"))).expect("a name for it");

        let error = Datapath::remove(&config.bpffs).expect_err("something is left").to_string();
        assert!(error.contains("maps/theirs (a map of user 0)"), "{error}");
        let left: Vec<_> = std::fs::read_dir(config.bpffs.join(format!("layout-{LAYOUT}/maps")))
            .expect("the folder is there")
            .map(|entry| entry.expect("readable").file_name())
            .collect();
        assert_eq!(left, ["theirs"]);

        let later = LAYOUT + 1;
        std::fs::rename(
            config.bpffs.join(format!("layout-{LAYOUT}")),
            config.bpffs.join(format!("layout-{later}")),
        )
        .expect("a name");
        let error = Datapath::open(&config).err().expect("another layout").to_string();
        assert!(error.contains(&format!("holds pins of layout {later}")), "{error}");
        Datapath::remove(&config.bpffs).expect_err("another layout is not ours to remove");

        let mut elsewhere = config.clone();
        elsewhere.bpffs = std::env::temp_dir();
        let error = Datapath::open(&elsewhere).err().expect("no BPF file system").to_string();
        assert!(error.contains("is not on a BPF file system"), "{error}");
        elsewhere = config.clone();
        elsewhere.cgroup = std::env::temp_dir();
        let error = Datapath::open(&elsewhere).err().expect("no cgroup").to_string();
        assert!(error.contains("is not a folder of the cgroup v2 hierarchy"), "{error}");
    });
}
