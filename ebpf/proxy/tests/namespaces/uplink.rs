//! The uplink: real sockets on both sides of a node, and single packets through the loaded programs.
//!
//! ```text
//!   outside 172.30.0.1 ──────── eth0 172.30.0.2  node  10.244.1.1 ──────── 10.244.1.5 pod
//!   and 10.244.2.6, a pod of another node                    (the sandbox)
//! ```

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddrV4, TcpListener, TcpStream},
    thread,
};

use crate::support::{
    DEADLINE, Demo, Namespace, Sandbox, apply, ask_tcp, ask_udp, at, count, ip, serve_tcp, serve_udp,
    table_of,
};
use pith_abi::{Frontend, Reason, Tuple, proto};
use pith_core::{
    Verdict,
    host::{Memory, wire},
    packet::tcp::{ACK, SYN},
    uplink,
};
use pith_proxy::{Cidr, Datapath, Uplink, service::Protocol, table::Table};

const OUTSIDE: [u8; 4] = [172, 30, 0, 1];
const NODE: [u8; 4] = [172, 30, 0, 2];
const POD: [u8; 4] = [10, 244, 1, 5];
const REMOTE_POD: [u8; 4] = [10, 244, 2, 6];
const NODE_PORT: u16 = 30_080;

struct Network {
    outside: Namespace,
    pod: Namespace,
    datapath: Datapath,
    table: Table,
}

impl Network {
    fn new(sandbox: &Sandbox) -> Self {
        let (outside, pod) = (Namespace::new(sandbox), Namespace::new(sandbox));
        ip(&format!("link add eth0 type veth peer name up0 netns {}", outside.path));
        ip(&format!("link add pod0 type veth peer name eth0 netns {}", pod.path));
        for command in [
            "address add 172.30.0.2/24 dev eth0",
            "address add 10.244.1.1/24 dev pod0",
            "link set eth0 up",
            "link set pod0 up",
            "route add 10.244.2.0/24 via 172.30.0.1",
        ] {
            ip(command);
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("the namespace is ours");
        outside.run(|| {
            ip("address add 172.30.0.1/24 dev up0");
            ip("address add 10.244.2.6/32 dev lo");
            ip("link set up0 up");
        });
        pod.run(|| {
            ip("address add 10.244.1.5/24 dev eth0");
            ip("link set eth0 up");
            ip("route add default via 10.244.1.1");
        });
        let (datapath, table) = open(sandbox);
        Self { outside, pod, datapath, table }
    }

    /// Serves the node port from these places.
    fn serve(&mut self, protocol: Protocol, backends: &[[u8; 4]], target: u16) {
        let mut demo = Demo::new([10, 96, 0, 10], protocol, 80, target);
        demo.service.ports[0].node_port = Some(NODE_PORT);
        demo.endpoints(backends);
        apply(&mut self.datapath, &mut self.table, &demo);
    }

    fn count(&self, reason: Reason) -> u64 {
        count(&self.datapath, reason)
    }
}

fn open(sandbox: &Sandbox) -> (Datapath, Table) {
    let cidr = |text: &str| text.parse::<Cidr>().expect("a network");
    let mut config = sandbox.config();
    config.cluster_cidr = Some(cidr("10.244.0.0/16"));
    let mut datapath = Datapath::open(&config).expect("the datapath opens");
    datapath.attach_uplink("eth0", &[NODE.into()]).expect("the uplink is there");
    datapath.set_pod_cidr(cidr("10.244.1.0/24")).expect("the map can be written");
    let table = table_of(&mut datapath);
    (datapath, table)
}

#[test]
fn pods_reach_the_outside_under_the_nodes_address() {
    Sandbox::run("masquerade", |sandbox| {
        let network = Network::new(sandbox);
        network.outside.run(|| {
            serve_tcp(at(OUTSIDE, 7000));
            serve_udp(at(OUTSIDE, 7000));
            serve_tcp(at(REMOTE_POD, 7000));
        });
        assert_eq!(network.pod.run(|| ask_tcp(at(OUTSIDE, 7000))), Ok(NODE));
        assert_eq!(network.pod.run(|| ask_udp(at(OUTSIDE, 7000))), Ok(NODE));
        assert_eq!(network.count(Reason::Masqueraded), 2);

        // A port where nobody listens: TCP is reset, and for UDP an ICMP error comes back to the pod.
        assert_eq!(network.pod.run(|| ask_tcp(at(OUTSIDE, 7001))), Err(ErrorKind::ConnectionRefused));
        assert_eq!(network.pod.run(|| ask_udp(at(OUTSIDE, 7001))), Err(ErrorKind::ConnectionRefused));
        assert_eq!(network.count(Reason::IcmpError), 1);

        // Pods of other nodes see the pod itself, once they know the way.
        network.outside.run(|| ip("route add 10.244.1.0/24 via 172.30.0.2"));
        assert_eq!(network.pod.run(|| ask_tcp(at(REMOTE_POD, 7000))), Ok(POD));
    });
}

#[test]
fn node_ports_reach_backends_here_and_elsewhere() {
    Sandbox::run("nodeport", |sandbox| {
        let mut network = Network::new(sandbox);
        network.pod.run(|| serve_tcp(at(POD, 8080)));
        network.pod.run(|| serve_udp(at(POD, 8080)));
        network.outside.run(|| serve_tcp(at(REMOTE_POD, 8080)));
        network.outside.run(|| serve_udp(at(REMOTE_POD, 8080)));
        serve_tcp(at(NODE, 8080));
        serve_udp(at(NODE, 8080));

        type Ask = fn(SocketAddrV4) -> Result<[u8; 4], ErrorKind>;
        let asks: [(_, Ask); 2] = [(Protocol::Tcp, ask_tcp), (Protocol::Udp, ask_udp)];
        for (protocol, ask) in asks {
            let outside_asks = |network: &Network| network.outside.run(move || ask(at(NODE, NODE_PORT)));
            network.serve(protocol, &[], 8080);
            assert_eq!(outside_asks(&network), Err(ErrorKind::ConnectionRefused), "{protocol:?}: none");
            // A backend here sees the client, one elsewhere this node.
            for (backend, seen) in [(POD, OUTSIDE), (NODE, OUTSIDE), (REMOTE_POD, NODE)] {
                network.serve(protocol, &[backend], 8080);
                for _ in 0..5 {
                    assert_eq!(outside_asks(&network), Ok(seen), "{protocol:?} {backend:?}");
                }
            }
            // Nobody listens at the backend: RST, or an ICMP error that names the node port.
            for backend in [POD, REMOTE_POD] {
                network.serve(protocol, &[backend], 8081);
                let refused = Err(ErrorKind::ConnectionRefused);
                assert_eq!(outside_asks(&network), refused, "{protocol:?} {backend:?}");
            }
        }
        assert_eq!(network.count(Reason::NodePortNoEndpoints), 2);
    });
}

/// Restart deletes valid flows or live Services (cilium#29667, #27215; calico#10670: 20 minutes of loss).
#[test]
fn pain_3_a_restarted_proxy_adopts_and_disturbs_nothing() {
    Sandbox::run("restart", |sandbox| {
        let mut network = Network::new(sandbox);
        network.pod.run(|| {
            let listener = TcpListener::bind(at(POD, 8080)).expect("a server's address");
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let Ok(mut stream) = stream else { return };
                    thread::spawn(move || {
                        let mut byte = [0; 1];
                        while matches!(stream.read(&mut byte), Ok(1)) && stream.write_all(&byte).is_ok() {}
                    });
                }
            });
        });
        network.serve(Protocol::Tcp, &[POD], 8080);
        let connect = || {
            let stream = TcpStream::connect_timeout(&at(NODE, NODE_PORT).into(), DEADLINE).expect("answers");
            stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
            stream
        };
        let talk = |mut stream: TcpStream, byte: u8| {
            stream.write_all(&[byte]).expect("the connection lives");
            let mut answer = [0; 1];
            stream.read_exact(&mut answer).expect("the connection lives");
            assert_eq!(answer, [byte]);
            stream
        };
        let stream = network.outside.run(move || talk(connect(), 1));

        // The process is gone: what it attached works on its own.
        let Network { outside, pod: _pod, datapath, table: _ } = network;
        drop(datapath);
        let stream = outside.run(move || talk(stream, 2));
        let second = outside.run(move || talk(connect(), 3));

        // The next one adopts: the flow is known, and the plan is in force already.
        let (mut datapath, mut table) = open(sandbox);
        let stream = outside.run(move || talk(stream, 4));
        let mut demo = Demo::new([10, 96, 0, 10], Protocol::Tcp, 80, 8080);
        demo.service.ports[0].node_port = Some(NODE_PORT);
        demo.endpoints(&[POD]);
        let before = pith_proxy::ServiceMaps::frontends(datapath.service_maps().0).expect("readable");
        assert!(table.apply(datapath.service_maps().0, &demo.plan()).is_empty());
        table.finish_adoption(datapath.service_maps().0).expect("the maps can be written");
        let after = pith_proxy::ServiceMaps::frontends(datapath.service_maps().0).expect("readable");
        assert_eq!(before, after);
        let _ = outside.run(move || (talk(stream, 5), talk(second, 6), talk(connect(), 7)));

        drop(datapath);
        let folder = sandbox.config().bpffs;
        Datapath::remove(&folder).expect("all pins are ours");
        assert!(!folder.exists());
        let refused = outside.run(|| ask_tcp(at(NODE, NODE_PORT)));
        assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "nothing is attached any more");
    });
}

/// The loaded programs and the core on the host agree in verdict and bytes.
#[test]
fn programs_do_what_the_core_says() {
    Sandbox::run("replay", |sandbox| {
        let mut network = Network::new(sandbox);
        network.serve(Protocol::Udp, &[POD], 8080);
        network.serve(Protocol::Tcp, &[POD], 8080);
        let memory = Memory::of_node(NODE, ([10, 244, 1, 0], 24), ([10, 244, 0, 0], 16));
        memory.serve(Frontend::node_port(NODE_PORT.to_be(), proto::TCP), 0, &[(POD, 8080)]);

        let tuple = |src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16, protocol| {
            let be = u32::from_ne_bytes;
            Tuple::new(be(src), sport.to_be(), be(dst), dport.to_be(), protocol)
        };
        let echo = |id: u16| tuple(POD, id, OUTSIDE, 0, proto::ICMP);
        let sent = tuple(POD, 5000, OUTSIDE, 443, proto::UDP);
        let left = tuple(NODE, 5000, OUTSIDE, 443, proto::UDP);
        let unreachable = |about: &Tuple| {
            let be = u32::from_ne_bytes;
            wire::error(3, be(OUTSIDE), be(NODE), &wire::packet(about, 0, b"some data"))
        };
        use Uplink::{Egress, Ingress};
        let steps = [
            (
                "node port",
                Ingress,
                wire::packet(&tuple(OUTSIDE, 40_000, NODE, NODE_PORT, proto::TCP), SYN, b""),
            ),
            (
                "data",
                Ingress,
                wire::packet(&tuple(OUTSIDE, 40_000, NODE, NODE_PORT, proto::TCP), ACK, b"abc"),
            ),
            (
                "its answer",
                Egress,
                wire::packet(&tuple(POD, 8080, OUTSIDE, 40_000, proto::TCP), SYN | ACK, b""),
            ),
            (
                "no beginning",
                Ingress,
                wire::packet(&tuple(OUTSIDE, 40_001, NODE, NODE_PORT, proto::TCP), ACK, b""),
            ),
            ("masquerade", Egress, wire::packet(&sent, 0, b"question")),
            ("again", Egress, wire::packet(&sent, 0, b"question")),
            ("its answer", Ingress, wire::packet(&left.reversed(), 0, b"answer")),
            ("an error about it", Ingress, unreachable(&left)),
            ("an error about nothing", Ingress, unreachable(&Tuple { sport_be: 7, ..left })),
            ("ping", Egress, wire::packet(&echo(4000), 0, b"ping")),
            ("pong", Ingress, wire::packet(&tuple(OUTSIDE, 0, NODE, 4000, proto::ICMP), 0, b"ping")),
            ("pod to pod", Egress, wire::packet(&tuple(POD, 5000, REMOTE_POD, 80, proto::TCP), SYN, b"")),
            ("not for us", Ingress, wire::packet(&tuple(OUTSIDE, 1, [172, 30, 0, 9], 2, proto::UDP), 0, b"")),
        ];
        for (name, hook, packet) in steps {
            let mut expect = packet.clone();
            let verdict = match hook {
                Ingress => uplink::ingress(&mut expect, &memory),
                Egress => uplink::egress(&mut expect, &memory),
                Uplink::FromPod | Uplink::ToPod => unreachable!("no step is at a pod's link"),
            };
            // TCX_NEXT, TCX_DROP and TCX_REDIRECT.
            let action = match verdict {
                Verdict::Pass(_) => -1,
                Verdict::Drop(_) | Verdict::Park(_) | Verdict::Release(_) => 2,
                Verdict::Forward(_) | Verdict::HandOn(..) | Verdict::Inward(_) | Verdict::Return(_) => 7,
            };
            let before = network.count(verdict.reason());
            let replayed = network.datapath.replay(hook, &packet.0).expect("a packet can be replayed");
            assert_eq!((replayed.verdict, &replayed.packet), (action, &expect.0), "{name}: {verdict:?}");
            assert_eq!(network.count(verdict.reason()), before + 1, "{name}: {verdict:?}");
        }
    });
}
