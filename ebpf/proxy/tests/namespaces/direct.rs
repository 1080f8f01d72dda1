//! Direct server return between two nodes on one link, seen by real sockets.
//!
//! ```text
//!   outside 172.30.0.1 ─┬─ 172.30.0.2  the node that is asked (the sandbox)
//!                       └─ 172.30.0.3  the backend's, 10.244.2.6
//! ```

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddrV4, TcpStream, UdpSocket},
    thread,
};

use pith_abi::Reason;
use pith_proxy::{
    Asked, Collected, Datapath, NodeIdentity, annotations::Forwarding, plan_service, service::Protocol,
    table::Table,
};

use crate::support::{
    DEADLINE, Demo, Namespace, Sandbox, ask_tcp, ask_udp, at, count, ip,
    network::{
        BALANCER_IP, EXTERNAL_IP, NODE, NODE_PORT, Nodes, OUTSIDE, REMOTE, cidr, echo, everywhere, serve,
    },
    table_of, until,
};

const THERE: [u8; 4] = [172, 30, 0, 3];
/// Every place that a Service of everywhere has outside.
const PLACES: [([u8; 4], u16); 3] = [(NODE, NODE_PORT), (BALANCER_IP, 80), (EXTERNAL_IP, 80)];

struct Two {
    here: Nodes,
    namespace: Namespace,
    there: Datapath,
    table: Table,
    identity: NodeIdentity,
}

impl Two {
    fn new(sandbox: &Sandbox) -> Self {
        let mut here = Nodes::new(sandbox);
        let namespace = Namespace::new(sandbox);
        let path = namespace.path.clone();
        here.outside.run(move || {
            ip("address del 10.244.2.6/32 dev lo");
            ip("address del 172.30.0.1/24 dev up0");
            ip("link add br0 type bridge");
            ip("link set up0 master br0");
            ip(&format!("link add up1 type veth peer name eth0 netns {path}"));
            ip("link set up1 master br0 up");
            ip("link set br0 up");
            ip("address add 172.30.0.1/24 dev br0");
            ip("route add 198.51.100.0/24 via 172.30.0.2");
        });
        ip("route replace 10.244.2.0/24 via 172.30.0.3");
        let mut config = sandbox.config();
        config.bpffs = config.bpffs.with_file_name("there");
        config.cluster_cidr = Some(cidr("10.244.0.0/16"));
        let (there, table) = namespace.run(move || {
            ip("address add 172.30.0.3/24 dev eth0");
            ip("address add 10.244.2.6/32 dev lo");
            ip("link set eth0 up");
            let mut datapath = Datapath::open(&config).expect("the datapath opens");
            datapath.attach_uplink("eth0", &[THERE.into()]).expect("the uplink is there");
            datapath.set_pod_cidr(cidr("10.244.2.0/24")).expect("the map can be written");
            let table = table_of(&mut datapath);
            (datapath, table)
        });
        here.identity.neighbours.insert("there".into(), THERE.into());
        here.datapath.set_other_node(THERE.into()).expect("the map can be written");
        let mut identity = NodeIdentity::new("there");
        identity.neighbours.insert("here".into(), NODE.into());
        let mut two = Self { here, namespace, there, table, identity };
        two.there.set_other_node(NODE.into()).expect("the map can be written");
        two
    }

    /// Puts a Service in force at both nodes.
    fn apply(&mut self, demo: &Demo) {
        self.here.apply(demo);
        let plan = plan_service(&demo.service, [&demo.slice].into_iter(), &self.identity);
        if plan.is_direct() {
            self.there.set_direct(true).expect("the map can be written");
        }
        for address in plan.outside.keys() {
            self.there.set_service_address((*address).into(), Some(false)).expect("the map can be written");
        }
        let errors = self.table.apply(self.there.service_maps().0, &plan);
        assert!(errors.is_empty(), "{errors:?}");
    }

    /// Ends what is over at the backend's node.
    fn collect(&mut self) -> Collected {
        let table = &self.table;
        let serves = |index, asked, backend| table.serves(index, asked, backend);
        self.there.collect(serves, |_, _| true).expect("flows can be read")
    }

    /// At the node that was asked, and at the backend's.
    fn counts(&self) -> (u64, u64) {
        (self.here.count(Reason::DirectBegun), count(&self.there, Reason::DirectTaken))
    }
}

/// A Service with its backend at the other node.
fn dsr(protocol: Protocol) -> Demo {
    let mut demo = everywhere(protocol, &[REMOTE]);
    demo.slice.endpoints[0].node = Some("there".into());
    demo.service.annotations.forwarding = Forwarding::Dsr;
    demo
}

#[test]
fn the_backends_node_answers() {
    Sandbox::run("direct", |sandbox| {
        let mut two = Two::new(sandbox);
        serve(&two.namespace, REMOTE);
        for (protocol, ask) in [
            (Protocol::Tcp, ask_tcp as fn(SocketAddrV4) -> _),
            (Protocol::Udp, ask_udp as fn(SocketAddrV4) -> _),
        ] {
            let mut demo = dsr(protocol);
            for (forwarding, seen, handed_on) in
                [(Forwarding::Dsr, OUTSIDE, 1), (Forwarding::Snat, NODE, 0), (Forwarding::Dsr, OUTSIDE, 1)]
            {
                demo.service.annotations.forwarding = forwarding;
                two.apply(&demo);
                for (address, port) in PLACES {
                    let (before, replies) = (two.counts(), two.here.count(Reason::FlowReply));
                    let answer = two.here.outside.run(move || ask(at(address, port)));
                    assert_eq!(answer, Ok(seen), "{protocol:?} to {address:?} with {forwarding:?}");
                    let after = two.counts();
                    assert_eq!((after.0 - before.0, after.1 - before.1), (handed_on, handed_on));
                    let seen_here = two.here.count(Reason::FlowReply) - replies;
                    assert_eq!(
                        seen_here == 0,
                        forwarding == Forwarding::Dsr,
                        "replies by the node that was asked"
                    );
                }
            }
        }
    });
}

/// Both nodes have backends: each of them is asked, and those here see the client too.
#[test]
fn backends_at_both_nodes() {
    Sandbox::run("direct-both", |sandbox| {
        let mut two = Two::new(sandbox);
        serve(&two.namespace, REMOTE);
        let local = crate::support::network::A;
        serve(&two.here.a, local);
        let mut demo = dsr(Protocol::Tcp);
        demo.endpoints(&[local, REMOTE]);
        demo.slice.endpoints[0].node = Some("here".into());
        demo.slice.endpoints[1].node = Some("there".into());
        two.apply(&demo);
        for _ in 0..40 {
            let answer = two.here.outside.run(|| ask_tcp(at(NODE, NODE_PORT)));
            assert_eq!(answer, Ok(OUTSIDE), "whoever answers");
        }
        let begun = (two.here.count(Reason::NodePortLocal), two.here.count(Reason::DirectBegun));
        assert!(begun.0 > 0 && begun.1 > 0 && begun.0 + begun.1 == 40, "{begun:?}");
    });
}

/// A connection over which something goes back and forth whenever it is asked.
struct Talk(TcpStream);

impl Talk {
    fn begin(place: SocketAddrV4) -> Self {
        let stream = TcpStream::connect_timeout(&place.into(), DEADLINE).expect("answers");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        Self(stream)
    }

    fn word(&mut self) -> Result<(), ErrorKind> {
        let mut back = [0; 4];
        let mut talk = || self.0.write_all(b"word").and_then(|()| self.0.read_exact(&mut back));
        talk().map_err(|error| error.kind())
    }
}

/// Connections outlive a change of the annotation and a proxy that ends and begins again, and end with their backend.
#[test]
fn connections_go_on() {
    Sandbox::run("direct-live", |sandbox| {
        let mut two = Two::new(sandbox);
        echo(&two.namespace, REMOTE);
        let mut demo = dsr(Protocol::Tcp);
        let mut talks = Vec::new();
        for forwarding in [Forwarding::Snat, Forwarding::Dsr, Forwarding::Snat, Forwarding::Dsr] {
            demo.service.annotations.forwarding = forwarding;
            two.apply(&demo);
            talks = two.here.outside.run(move || {
                talks.extend(PLACES.map(|(address, port)| Talk::begin(at(address, port))));
                for talk in &mut talks {
                    talk.word().expect("the connection lives");
                }
                talks
            });
            two.here.collect();
            two.collect();
        }
        two.here = two.here.restarted(sandbox);
        two.apply(&demo);
        assert_eq!(two.here.collect().handed_on, 6, "three places, twice");
        talks = two.here.outside.run(move || {
            for talk in &mut talks {
                talk.word().expect("the connection lives");
            }
            talks
        });
        demo.endpoints(&[]);
        two.apply(&demo);
        two.here.collect();
        assert!(two.collect().ended >= 6);
        two.here.outside.run(move || {
            for talk in &mut talks {
                assert_eq!(talk.word(), Err(ErrorKind::ConnectionReset));
            }
        });
    });
}

/// A datagram in pieces goes to the other node piece by piece.
#[test]
fn pieces() {
    Sandbox::run("direct-pieces", |sandbox| {
        let mut two = Two::new(sandbox);
        two.namespace.run(|| {
            let socket = UdpSocket::bind(at(REMOTE, 8080)).expect("a server's address");
            thread::spawn(move || {
                let mut bytes = [0; 9000];
                while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                    // A client that went away is its own business.
                    let _ = socket.send_to(&bytes[..length], from);
                }
            });
        });
        two.apply(&dsr(Protocol::Udp));
        for (address, port) in PLACES {
            two.here.outside.run(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
                socket.connect(at(address, port)).expect("a place");
                let sent: Vec<u8> = (0..5000u16).map(|at| at as u8).collect();
                let mut back = [0; 9000];
                for _ in 0..3 {
                    socket.send(&sent).expect("sent");
                    let length = socket.recv(&mut back).expect("answered");
                    assert!(back[..length] == sent, "{length} bytes");
                }
            });
        }
        assert!(two.here.count(Reason::FragmentTranslated) > 0);
    });
}

/// When nobody wants it any more, and the last flow has ended, first packets are looked at as before.
#[test]
fn flows_that_are_over_are_collected() {
    Sandbox::run("direct-over", |sandbox| {
        let mut two = Two::new(sandbox);
        serve(&two.namespace, REMOTE);
        two.apply(&dsr(Protocol::Tcp));
        assert_eq!(two.here.outside.run(|| ask_tcp(at(BALANCER_IP, 80))), Ok(OUTSIDE));
        assert_eq!(two.here.collect().handed_on, 1);
        let table = &two.here.table;
        let serves = |index, asked, backend| table.serves(index, asked, backend);
        let collected = two.here.datapath.collect(serves, |asked, node| {
            assert_eq!((asked, node), (Asked { place: at(BALANCER_IP, 80), protocol: 6 }, THERE.into()));
            false
        });
        let collected = collected.expect("flows can be read");
        assert_eq!((collected.ended, collected.handed_on), (1, 0));
        until("nothing is left", || two.here.collect().handed_on == 0);
    });
}
