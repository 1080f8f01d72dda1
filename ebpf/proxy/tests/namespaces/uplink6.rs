//! The uplink in IPv6: real sockets on both sides of a node that has both families.
//!
//! ```text
//!   outside fd30::1 ──────── eth0 fd30::2  node  fd10:1::1 ──────── fd10:1::5 pod
//!   and fd10:2::6, a pod of another node                 (the sandbox)
//! ```
//! Neither side's sockets see Services: all that is translated is packets.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
};

use ipnet::Ipv6Net;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, socket,
};
use pith_abi::Reason;
use pith_proxy::{
    Datapath, NodeIdentity, ServiceMaps as _,
    annotations::QuicServerId,
    plan_host_ports, plan_service,
    service::{Endpoint, HostPort, HostPorts, Protocol, ServiceName},
    table::Table,
    why::{Question, Transport, why},
};

use crate::quic;
use crate::support::{
    DEADLINE, Demo, Namespace, Sandbox, count, ip,
    network::{cidr, range},
    table_of,
};

const OUTSIDE: Ipv6Addr = Ipv6Addr::new(0xFD30, 0, 0, 0, 0, 0, 0, 1);
const NODE: Ipv6Addr = Ipv6Addr::new(0xFD30, 0, 0, 0, 0, 0, 0, 2);
const NODE4: [u8; 4] = [172, 30, 0, 2];
const POD: Ipv6Addr = Ipv6Addr::new(0xFD10, 1, 0, 0, 0, 0, 0, 5);
const REMOTE_POD: Ipv6Addr = Ipv6Addr::new(0xFD10, 2, 0, 0, 0, 0, 0, 6);
const CLUSTER_IP: Ipv6Addr = Ipv6Addr::new(0xFD96, 0, 0, 0, 0, 0, 0, 0x10);
/// In the network in front of the node, which the node announces.
const BALANCER_IP: Ipv6Addr = Ipv6Addr::new(0xFD30, 0, 0, 0, 0, 0, 0, 0x200);
/// Brought to the node by a route of the outside's.
const EXTERNAL_IP: Ipv6Addr = Ipv6Addr::new(0xFD77, 0, 0, 0, 0, 0, 0, 7);
const NODE_PORT: u16 = 30_080;
const REFUSED: Result<Ipv6Addr, ErrorKind> = Err(ErrorKind::ConnectionRefused);

pub(crate) struct Network {
    outside: Namespace,
    pod: Namespace,
    datapath: Datapath,
    table: Table,
    identity: NodeIdentity,
}

impl Network {
    pub(crate) fn new(sandbox: &Sandbox) -> Self {
        let (outside, pod) = (Namespace::new(sandbox), Namespace::new(sandbox));
        ip(&format!("link add eth0 type veth peer name up0 netns {}", outside.path));
        ip(&format!("link add pod-a type veth peer name eth0 netns {}", pod.path));
        for command in [
            "address add 172.30.0.2/24 dev eth0",
            "address add fd30::2/64 dev eth0 nodad",
            "address add fd10:1::1/64 dev pod-a nodad",
            "link set eth0 up",
            "link set pod-a up",
            "route add fd10:2::/64 via fd30::1",
        ] {
            ip(command);
        }
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("the namespace is ours");
        outside.run(|| {
            ip("address add fd30::1/64 dev up0 nodad");
            ip("address add fd10:2::6/128 dev lo nodad");
            ip("link set up0 up");
            ip("route add fd77::/64 via fd30::2");
        });
        pod.run(|| {
            ip("address add fd10:1::5/64 dev eth0 nodad");
            ip("link set eth0 up");
            ip("route add default via fd10:1::1");
        });
        let (datapath, table) = open(sandbox);
        let mut identity = NodeIdentity::new("here");
        identity.ready.insert("here".into());
        identity.pods6 = Some("fd10:1::/64".parse().expect("a network"));
        Self { outside, pod, datapath, table, identity }
    }

    fn restarted(self, sandbox: &Sandbox) -> Self {
        drop(self.datapath);
        let (datapath, table) = open(sandbox);
        Self { datapath, table, ..self }
    }

    fn apply(&mut self, demo: &Demo) {
        let plan = plan_service(&demo.service, [&demo.slice].into_iter(), &self.identity);
        for (address, announced) in &plan.six.outside {
            let set = self.datapath.set_service_address((*address).into(), Some(*announced));
            set.expect("the map can be written");
        }
        let errors = self.table.apply(self.datapath.service_maps().0, &plan);
        assert!(errors.is_empty(), "{errors:?}");
    }

    /// Ends flows to backends that are gone, as the driver does.
    fn collect(&mut self) {
        let table = &self.table;
        let serves = |index, asked, backend| table.serves(index, asked, backend);
        self.datapath.collect(serves, |_, _| true).expect("flows can be read");
    }

    fn count(&self, reason: Reason) -> u64 {
        count(&self.datapath, reason)
    }
}

fn open(sandbox: &Sandbox) -> (Datapath, Table) {
    let mut config = sandbox.config();
    config.dual = true;
    config.cluster_cidr = Some(cidr("10.244.0.0/16"));
    config.cluster_cidr6 = Some("fd10::/16".parse::<Ipv6Net>().expect("a network"));
    config.pod_interfaces = Some("pod-".into());
    let mut datapath = Datapath::open(&config).expect("the datapath opens");
    datapath.attach_uplink("eth0", &[NODE4.into(), NODE.into()]).expect("the uplink is there");
    datapath.set_pod_cidr6("fd10:1::/64".parse().expect("a network")).expect("the map can be written");
    datapath.attach_pods().expect("the pod's link is there");
    let table = table_of(&mut datapath);
    (datapath, table)
}

/// A Service at every kind of address.
fn everywhere(protocol: Protocol, backends: &[Ipv6Addr], target: u16) -> Demo {
    let mut demo = Demo::new([10, 96, 0, 10], protocol, 80, target);
    demo.service.ports[0].node_port = Some(NODE_PORT);
    demo.service.cluster_ips6 = vec![CLUSTER_IP];
    demo.service.external_ips6 = vec![EXTERNAL_IP];
    demo.service.balancer_ips6 = vec![BALANCER_IP];
    demo.slice.endpoints = backends.iter().map(|address| Endpoint::ready((*address).into())).collect();
    demo
}

/// Servers that tell each client under which address they see it, and how many bytes a datagram had.
fn serve(address: Ipv6Addr, port: u16) {
    let listener = TcpListener::bind((address, port)).expect("a server's address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Ok(IpAddr::V6(client)) = stream.peer_addr().map(|peer| peer.ip()) else { return };
            // A client that went away is its own business.
            let _ = stream.write_all(&client.octets());
        }
    });
    let socket = UdpSocket::bind((address, port)).expect("a server's address");
    thread::spawn(move || {
        let mut buffer = [0; 65_535];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let IpAddr::V6(seen) = client.ip() else { return };
            buffer[..16].copy_from_slice(&seen.octets());
            if socket.send_to(&buffer[..length], client).is_err() {
                return;
            }
        }
    });
}

fn ask_tcp(server: SocketAddr) -> Result<Ipv6Addr, ErrorKind> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&server, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut answer = [0; 16];
        stream.read_exact(&mut answer)?;
        std::io::Result::Ok(answer.into())
    };
    ask().map_err(|error| error.kind())
}

fn ask_udp(server: SocketAddr) -> Result<Ipv6Addr, ErrorKind> {
    ask_udp_with(server, 16)
}

/// With a datagram of so many bytes, of which all have to come back.
fn ask_udp_with(server: SocketAddr, length: usize) -> Result<Ipv6Addr, ErrorKind> {
    let ask = || {
        let socket = UdpSocket::bind("[::]:0")?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.connect(server)?;
        socket.send(&vec![b'?'; length])?;
        let mut answer = vec![0; length + 1];
        assert_eq!(socket.recv(&mut answer)?, length);
        let seen: [u8; 16] = answer[..16].try_into().expect("as long");
        std::io::Result::Ok(seen.into())
    };
    ask().map_err(|error| error.kind())
}

/// Sends an echo request and waits for its reply.
fn ping(from: &Namespace, address: Ipv6Addr) {
    from.run(move || {
        let socket = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::empty(), SockProtocol::IcmpV6);
        let socket = UdpSocket::from(socket.expect("the test is privileged"));
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        // Each address is asked under an identifier of its own, as by another program.
        let [.., high, low] = address.octets();
        let request = [128, 0, 0, 0, 0x70 | high, low, 0, 1, b'h', b'i'];
        // The kernel completes the checksum, and leaves out packets whose own does not hold.
        let to = SockaddrIn6::from(SocketAddrV6::new(address, 0, 0, 0));
        sendto(socket.as_raw_fd(), &request, &to, MsgFlags::empty()).expect("sent");
        loop {
            let mut reply = [0; 64];
            let (length, from) = socket.recv_from(&mut reply).expect("answered in time");
            if reply[0] == 129 && reply[4..length] == request[4..] {
                assert_eq!(from.ip(), IpAddr::from(address));
                return;
            }
        }
    });
}

#[test]
fn pods_reach_the_outside_under_the_nodes_address() {
    Sandbox::run("masquerade6", |sandbox| {
        let network = Network::new(sandbox);
        network.outside.run(|| {
            serve(OUTSIDE, 7000);
            serve(REMOTE_POD, 7000);
        });
        let at = |port| SocketAddr::from((OUTSIDE, port));
        assert_eq!(network.pod.run(move || ask_tcp(at(7000))), Ok(NODE));
        assert_eq!(network.pod.run(move || ask_udp(at(7000))), Ok(NODE));
        assert_eq!(network.count(Reason::Masqueraded), 2);
        // In pieces, there and back.
        assert_eq!(network.pod.run(move || ask_udp_with(at(7000), 4000)), Ok(NODE));

        // A port where nobody listens: TCP is reset, and for UDP an ICMP error comes back to the pod.
        assert_eq!(network.pod.run(move || ask_tcp(at(7001))), REFUSED);
        assert_eq!(network.pod.run(move || ask_udp(at(7001))), REFUSED);
        assert_eq!(network.count(Reason::IcmpError), 1);
        ping(&network.pod, OUTSIDE);

        // Pods of other nodes see the pod itself, once they know the way.
        network.outside.run(|| ip("route add fd10:1::/64 via fd30::2"));
        assert_eq!(network.pod.run(|| ask_tcp((REMOTE_POD, 7000).into())), Ok(POD));
    });
}

#[test]
fn services_are_reached_from_outside() {
    Sandbox::run("outside6", |sandbox| {
        let mut network = Network::new(sandbox);
        network.pod.run(|| serve(POD, 8080));
        network.outside.run(|| serve(REMOTE_POD, 8080));
        serve(NODE, 8080);
        let places = [(NODE, NODE_PORT), (BALANCER_IP, 80), (EXTERNAL_IP, 80)].map(SocketAddr::from);
        type Ask = fn(SocketAddr) -> Result<Ipv6Addr, ErrorKind>;
        let asks: [(_, Ask); 2] = [(Protocol::Tcp, ask_tcp), (Protocol::Udp, ask_udp)];
        for (protocol, ask) in asks {
            for place in places {
                let outside_asks = |network: &Network| network.outside.run(move || ask(place));
                network.apply(&everywhere(protocol, &[], 8080));
                network.collect();
                assert_eq!(outside_asks(&network), REFUSED, "{protocol:?} {place}: none");
                // A backend here sees the client, one elsewhere this node.
                for (backend, seen) in [(POD, OUTSIDE), (NODE, OUTSIDE), (REMOTE_POD, NODE)] {
                    network.apply(&everywhere(protocol, &[backend], 8080));
                    for _ in 0..5 {
                        assert_eq!(outside_asks(&network), Ok(seen), "{protocol:?} {place} {backend}");
                    }
                }
                // Nobody listens at the backend: RST, or an ICMP error that names the Service.
                for backend in [POD, REMOTE_POD] {
                    network.apply(&everywhere(protocol, &[backend], 8081));
                    assert_eq!(outside_asks(&network), REFUSED, "{protocol:?} {place} {backend}");
                }
            }
        }
        // In pieces, which come to the uplink.
        network.apply(&everywhere(Protocol::Udp, &[POD], 8080));
        for place in places {
            let answer = network.outside.run(move || ask_udp_with(place, 4000));
            assert_eq!(answer, Ok(OUTSIDE), "{place}");
        }
        // At a Service's address nothing else answers, but pings are.
        assert_eq!(network.outside.run(|| ask_tcp((BALANCER_IP, 81).into())), REFUSED);
        ping(&network.outside, BALANCER_IP);
        ping(&network.outside, EXTERNAL_IP);
        ping(&network.outside, NODE);
        assert!(network.count(Reason::Announced) > 0);
    });
}

#[test]
fn packets_of_pods_reach_services() {
    Sandbox::run("pods6", |sandbox| {
        let mut network = Network::new(sandbox);
        network.pod.run(|| serve(POD, 8080));
        network.outside.run(|| {
            serve(REMOTE_POD, 8080);
            ip("route add fd10:1::/64 via fd30::2");
        });
        for place in [(CLUSTER_IP, 80), (BALANCER_IP, 80), (EXTERNAL_IP, 80)].map(SocketAddr::from) {
            network.apply(&everywhere(Protocol::Tcp, &[REMOTE_POD], 8080));
            assert_eq!(network.pod.run(move || ask_tcp(place)), Ok(POD), "{place}");
            // It reaches itself, and does not see itself as the sender.
            network.apply(&everywhere(Protocol::Tcp, &[POD], 8080));
            let IpAddr::V6(asked) = place.ip() else { panic!("{place} is of IPv6") };
            assert_eq!(network.pod.run(move || ask_tcp(place)), Ok(asked), "{place}: itself");
            network.apply(&everywhere(Protocol::Tcp, &[], 8080));
            assert_eq!(network.pod.run(move || ask_tcp(place)), REFUSED, "{place}: none");
            assert_eq!(network.pod.run(move || ask_tcp((asked, 81).into())), REFUSED, "{asked}: no port");
            ping(&network.pod, asked);
        }
        assert!(network.count(Reason::ServicePing) > 0);
    });
}

#[test]
fn host_ports_and_sources() {
    Sandbox::run("hostport6", |sandbox| {
        let mut network = Network::new(sandbox);
        network.pod.run(|| serve(POD, 8080));
        let port = |host, port| HostPort { host, port, protocol: Protocol::Tcp, target: 8080 };
        let ports = vec![port(None, 8081), port(Some(NODE.into()), 8082)];
        let pod = HostPorts { address: None, address6: Some(POD), ports };
        let plan = plan_host_ports(ServiceName::new("default", "pod"), &pod);
        assert!(network.table.apply(network.datapath.service_maps().0, &plan).is_empty());
        for port in [8081, 8082] {
            assert_eq!(network.outside.run(move || ask_tcp((NODE, port).into())), Ok(OUTSIDE), "{port}");
        }

        let mut demo = everywhere(Protocol::Tcp, &[POD], 8080);
        let place = SocketAddr::from((BALANCER_IP, 80));
        for (ranges, answer) in [
            (vec![range("fd30::/64")], Ok(OUTSIDE)),
            (vec![range("fd30::1/128"), range("10.0.0.0/8")], Ok(OUTSIDE)),
            (vec![range("fd31::/16")], Err(())),
            (vec![range("10.0.0.0/8")], Ok(OUTSIDE)),
        ] {
            demo.service.sources.clone_from(&ranges);
            network.apply(&demo);
            let denied = network.count(Reason::SourceDenied);
            if answer.is_ok() {
                assert_eq!(network.outside.run(move || ask_tcp(place)), Ok(OUTSIDE), "{ranges:?}");
            } else {
                let short = std::time::Duration::from_millis(300);
                let asked = network.outside.run(move || TcpStream::connect_timeout(&place, short).is_ok());
                assert!(!asked, "{ranges:?}");
                assert!(network.count(Reason::SourceDenied) > denied, "{ranges:?}");
            }
            let node_port = network.outside.run(|| ask_tcp((NODE, NODE_PORT).into()));
            assert_eq!(node_port, Ok(OUTSIDE), "sources are the load balancer's: {ranges:?}");
        }
    });
}

/// Addresses that only flows have go with them, and not before; all of it survives the proxy.
#[test]
fn connections_outlive_the_proxy() {
    Sandbox::run("restart6", |sandbox| {
        let mut network = Network::new(sandbox);
        network.outside.run(|| {
            let listener = TcpListener::bind((REMOTE_POD, 8080)).expect("a server's address");
            thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut byte = [0; 1];
                while matches!(stream.read(&mut byte), Ok(1)) && stream.write_all(&byte).is_ok() {}
            });
        });
        network.apply(&everywhere(Protocol::Tcp, &[REMOTE_POD], 8080));
        let talk = |mut stream: TcpStream, byte: u8| {
            stream.write_all(&[byte]).expect("the connection lives");
            let mut answer = [0; 1];
            stream.read_exact(&mut answer).expect("the connection lives");
            assert_eq!(answer, [byte]);
            stream
        };
        let stream = network.outside.run(move || {
            let place = (NODE, NODE_PORT).into();
            let stream = TcpStream::connect_timeout(&place, DEADLINE).expect("answers");
            stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
            talk(stream, 1)
        });
        network = network.restarted(sandbox);
        let stream = network.outside.run(move || talk(stream, 2));
        network.apply(&everywhere(Protocol::Tcp, &[REMOTE_POD], 8080));
        network.table.finish_adoption(network.datapath.service_maps().0).expect("the maps can be written");
        network.collect();
        let _stream = network.outside.run(move || talk(stream, 3));
    });
}

#[test]
fn why_follows_ipv6() {
    Sandbox::run("why6", |sandbox| {
        let mut network = Network::new(sandbox);
        network.pod.run(|| serve(POD, 8080));
        let mut demo = everywhere(Protocol::Tcp, &[POD], 8080);
        demo.service.sources = vec![range("fd31::/16")];
        network.apply(&demo);
        let bpffs = sandbox.config().bpffs;
        let ask = |source: Ipv6Addr, place: (Ipv6Addr, u16), protocol| {
            let (source, destination) = (source.into(), place.into());
            why(&bpffs, &Question { source, source_port: 40_000, destination, protocol })
                .expect("readable maps")
        };
        let addresses = |network: &mut Network| {
            let known = network.datapath.service_maps().0.addresses().expect("readable maps");
            known
                .into_iter()
                .map(|(standin, known)| (standin.addr_be, known.address))
                .collect::<BTreeSet<_>>()
        };
        let (tcp, ping) = (Transport::Tcp, Transport::Ping);
        let before = addresses(&mut network);
        for (name, source, place, protocol, reasons) in [
            ("a pod's socket", REMOTE_POD, (CLUSTER_IP, 80), tcp, &["uplink_pass"][..]),
            ("a pod's socket", POD, (CLUSTER_IP, 80), tcp, &["socket_translated", "pod_pass", "pod_pass"]),
            ("no such port", POD, (CLUSTER_IP, 81), tcp, &["socket_direct", "service_no_port"]),
            ("a ping", POD, (CLUSTER_IP, 0), ping, &["service_ping"]),
            ("to the outside", POD, (OUTSIDE, 80), tcp, &["socket_direct", "pod_pass", "masqueraded"]),
            ("a node port", OUTSIDE, (NODE, NODE_PORT), tcp, &["node_port_local", "pod_pass"]),
            ("an external address", OUTSIDE, (EXTERNAL_IP, 80), tcp, &["service_local", "pod_pass"]),
            ("not among the sources", OUTSIDE, (BALANCER_IP, 80), tcp, &["source_denied"]),
            ("the node itself", OUTSIDE, (NODE, 22), tcp, &["uplink_pass"]),
        ] {
            let steps = ask(source, place, protocol);
            let got: Vec<&str> = steps.iter().map(|step| step.reason).collect();
            assert_eq!(got, reasons, "{name}: {steps:#?}");
        }
        let steps = ask(OUTSIDE, (NODE, NODE_PORT), tcp);
        assert_eq!(steps[0].fate, "becomes [fd30::1]:40000 → [fd10:1::5]:8080/TCP and goes on");
        assert_eq!(addresses(&mut network), before, "asking changes nothing");
        let answer = network.outside.run(|| ask_tcp((NODE, NODE_PORT).into()));
        assert_eq!(answer, Ok(OUTSIDE), "and it is so");
    });
}

#[test]
fn a_client_that_moves_finds_its_server_in_ipv6() {
    Sandbox::run("quic6", |sandbox| {
        let mut network = Network::new(sandbox);
        network.pod.run(|| quic::serve((POD, 8443).into(), 1));
        network.outside.run(|| quic::serve((REMOTE_POD, 8443).into(), 2));
        let mut demo = everywhere(Protocol::Udp, &[POD, REMOTE_POD], 8443);
        demo.service.annotations.quic_server_id = QuicServerId::PodIp;
        network.apply(&demo);
        for server in [(NODE, NODE_PORT), (BALANCER_IP, 80), (EXTERNAL_IP, 80)].map(SocketAddr::from) {
            for (named, name) in [(POD, 1), (REMOTE_POD, 2)] {
                let seen = quic::answers(&network.outside, server, Some(&named.octets()[1..]));
                assert!(seen.iter().all(|seen| *seen == name), "{server}: {seen:?}");
            }
            let seen = quic::answers(&network.outside, server, None);
            assert!(seen.iter().any(|name| *name != seen[0]), "{seen:?}: nobody is named");
        }
    });
}
