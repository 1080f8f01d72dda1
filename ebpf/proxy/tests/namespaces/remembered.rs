//! What is remembered of connected sockets: for as long as they are connected, and not longer.

use std::{
    io::ErrorKind,
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    process::{Command, Stdio},
    thread,
};

use pith_abi::{Connected, LAYOUT, Reason, map_name};
use pith_proxy::{Datapath, Limits, service::Protocol};
use rustix::net::{AddressFamily, SocketType, connect, connect_unspec, socket};

use crate::support::{DEADLINE, Demo, Sandbox, apply, at, count, table_of};

const SERVICE: [u8; 4] = [10, 96, 0, 10];
const SERVERS: [[u8; 4]; 2] = [[127, 0, 0, 2], [127, 0, 0, 3]];

/// A datapath with one Service, and its table of connected sockets.
struct Ground<'a> {
    sandbox: &'a Sandbox,
    datapath: Datapath,
}

impl<'a> Ground<'a> {
    fn new(sandbox: &'a Sandbox, protocol: Protocol, servers: &[[u8; 4]], limits: Limits) -> Self {
        let mut config = sandbox.config();
        config.limits = limits;
        let mut datapath = Datapath::open(&config).expect("the datapath opens");
        let mut table = table_of(&mut datapath);
        let mut demo = Demo::new(SERVICE, protocol, 80, 8080);
        apply(&mut datapath, &mut table, demo.endpoints(servers));
        Self { sandbox, datapath }
    }

    /// How many sockets are remembered.
    fn remembered(&self) -> usize {
        let folder = self.sandbox.config().bpffs.join(format!("layout-{LAYOUT}/maps"));
        let map = aya::maps::MapData::from_pin(folder.join(map_name::CONNECTED)).expect("it is pinned");
        let map = aya::maps::Map::from_map_data(map).expect("a map");
        let map = aya::maps::Array::<_, Connected>::try_from(map).expect("places");
        map.iter().map(|place| place.expect("readable")).filter(|place| place.cookie != 0).count()
    }

    fn count(&self, reason: Reason) -> u64 {
        count(&self.datapath, reason)
    }
}

fn listen(address: [u8; 4]) {
    let listener = TcpListener::bind(at(address, 8080)).expect("a server's address");
    // Clients are held until the test is over, so that who ends is the client.
    thread::spawn(move || listener.incoming().collect::<Vec<_>>());
}

/// Says to each datagram where it came to.
fn answer(address: [u8; 4]) {
    let socket = UdpSocket::bind(at(address, 8080)).expect("a server's address");
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            // A client that went away is its own business.
            let _ = socket.send_to(&address, client);
        }
    });
}

fn stream() -> TcpStream {
    TcpStream::connect(service()).expect("a server listens")
}

fn service() -> SocketAddrV4 {
    at(SERVICE, 80)
}

fn peer(socket: &impl AsFd) -> SocketAddr {
    rustix::net::getpeername(socket).expect("connected").expect("an address").try_into().expect("of IP")
}

#[test]
fn a_connection_is_forgotten_with_its_last_descriptor() {
    Sandbox::run("release", |sandbox| {
        let ground = Ground::new(sandbox, Protocol::Tcp, &SERVERS[..1], Limits::DEFAULT);
        listen(SERVERS[0]);
        assert_eq!(ground.remembered(), 0);

        let first = stream();
        let second = stream();
        assert_eq!(ground.remembered(), 2);
        let again = first.try_clone().expect("a second descriptor");
        drop(first);
        assert_eq!(ground.remembered(), 2, "the socket is open");
        assert_eq!(peer(&again), service().into());
        drop(again);
        assert_eq!(ground.remembered(), 1);

        // A process shares it, goes on alone, and is killed.
        let mut child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::from(OwnedFd::from(second.try_clone().expect("a descriptor for it"))))
            .spawn()
            .expect("coreutils are there");
        assert_eq!(peer(&second), service().into());
        drop(second);
        assert_eq!(ground.remembered(), 1, "the child has it");
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
        assert_eq!(ground.remembered(), 0);

        let direct = TcpStream::connect(at(SERVERS[0], 8080)).expect("a server listens");
        assert_eq!(ground.remembered(), 0, "nothing is remembered of those that go elsewhere");
        drop(direct);
        for _ in 0..1_000 {
            drop(stream());
        }
        assert_eq!(ground.remembered(), 0);
    });
}

#[test]
fn a_socket_that_failed_connects_again() {
    Sandbox::run("again", |sandbox| {
        let ground = Ground::new(sandbox, Protocol::Tcp, &SERVERS[..1], Limits::DEFAULT);
        let sockets = [(); 2].map(|()| {
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
            let refused = connect(&socket, &service()).expect_err("nobody listens").kind();
            assert_eq!(refused, ErrorKind::ConnectionRefused);
            socket
        });
        assert!(ground.remembered() <= sockets.len());
        listen(SERVERS[0]);
        let [direct, again] = sockets;
        connect(&direct, &at(SERVERS[0], 8080)).expect("a server listens");
        assert_eq!(peer(&direct), at(SERVERS[0], 8080).into(), "it asked for the server itself");
        connect(&again, &service()).expect("a server listens");
        assert_eq!(peer(&again), service().into());
        assert_eq!(ground.remembered(), 1);
        drop((direct, again));
        assert_eq!(ground.remembered(), 0);
    });
}

#[test]
fn a_datagram_socket_connects_over_and_over() {
    Sandbox::run("reconnect", |sandbox| {
        let ground = Ground::new(sandbox, Protocol::Udp, &SERVERS, Limits::DEFAULT);
        SERVERS.into_iter().for_each(answer);
        let socket = || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
            socket
        };
        let mut buffer = [0; 4];
        let other = socket();
        let socket = socket();

        for _ in 0..20 {
            socket.connect(service()).expect("a Service can be connected to");
            assert_eq!((peer(&socket), ground.remembered()), (service().into(), 1));
            // An address is named although there is one: only answers from that one come in.
            socket.send_to(b"?", service()).expect("sent");
            assert_eq!(socket.recv_from(&mut buffer).expect("answered").1, service().into());
        }
        let server = at(buffer, 8080);
        socket.connect(server).expect("connected");
        assert_eq!((peer(&socket), ground.remembered()), (server.into(), 0));
        socket.connect(service()).expect("connected");
        assert_eq!(ground.remembered(), 1);
        drop(socket);

        // What it was connected to is one thing, and what it asks for afterwards another.
        other.connect(service()).expect("connected");
        connect_unspec(&other).expect("disconnected");
        for server in SERVERS {
            other.send_to(b"?", at(server, 8080)).expect("sent");
            assert_eq!(other.recv_from(&mut buffer).expect("answered").1, at(server, 8080).into());
        }
        drop(other);
        assert_eq!(ground.remembered(), 0);
    });
}

#[test]
fn a_socket_whose_place_is_taken_remembers_for_itself() {
    Sandbox::run("full", |sandbox| {
        // Hardly any socket has its place there.
        let limits = Limits { sockets: 1, ..Limits::DEFAULT };
        let ground = Ground::new(sandbox, Protocol::Tcp, &SERVERS[..1], limits);
        listen(SERVERS[0]);
        let streams: Vec<TcpStream> = (0..5).map(|_| stream()).collect();
        assert!(streams.iter().all(|stream| peer(stream) == service().into()));
        let counted = [Reason::SocketPlaceTaken, Reason::SocketTranslated].map(|reason| ground.count(reason));
        assert_eq!((counted.iter().sum::<u64>(), counted[1] as usize), (5, ground.remembered()));
        assert!(counted[0] >= 4, "{counted:?}");
        drop(streams);
        assert_eq!(ground.remembered(), 0);
    });
}
