//! Packets of known flows that go out again in the uplink's driver, on veth devices, whose driver has XDP.
//!
//! ```text
//!   outside 172.30.0.1 up0 ──────── eth0 172.30.0.2  node (the sandbox)
//!   and 10.244.2.6, a pod of another node
//! ```
//! What one end of a veth pair sends back from XDP wakes the other end only if that has a program too
//! (drivers/net/veth.c, veth_xdp_flush): the outside is a node as well.

use std::{
    ffi::CString,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use pith_abi::Reason;
use pith_proxy::{
    Cidr, Datapath, Xdp,
    service::{Protocol, ServicePort},
    table::Table,
};

use crate::support::{DEADLINE, Demo, Namespace, Sandbox, apply, at, count, ip, table_of};

const OUTSIDE: [u8; 4] = [172, 30, 0, 1];
const NODE: [u8; 4] = [172, 30, 0, 2];
const BALANCER_IP: [u8; 4] = [172, 30, 0, 200];
const REMOTE_POD: [u8; 4] = [10, 244, 2, 6];
const NODE_PORT: u16 = 30_080;
/// Enough that most packets are of a flow which both ends know.
const ROUNDS: u8 = 50;

struct Network {
    outside: Namespace,
    /// The outside's own.
    _other: Datapath,
    datapath: Datapath,
    table: Table,
}

impl Network {
    fn new(sandbox: &Sandbox, xdp: Xdp) -> Self {
        let outside = Namespace::new(sandbox);
        ip(&format!("link add eth0 type veth peer name up0 netns {}", outside.path));
        for command in [
            "address add 172.30.0.2/24 dev eth0",
            "link set eth0 up",
            "route add 10.244.2.0/24 via 172.30.0.1",
        ] {
            ip(command);
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("the namespace is ours");
        outside.run(|| {
            ip("address add 172.30.0.1/24 dev up0");
            ip("address add 10.244.2.6/32 dev lo");
            ip("link set up0 up");
            like_a_cable("up0");
        });
        let mut config = sandbox.config();
        config.bpffs = config.bpffs.with_file_name("outside");
        config.xdp = xdp;
        let other = outside.run(move || {
            let mut datapath = Datapath::open(&config).expect("the datapath opens");
            datapath.attach_uplink("up0", &[OUTSIDE.into()]).expect("the uplink is there");
            datapath
        });
        let (datapath, table) = open(sandbox, "node", xdp);
        let mut network = Self { outside, _other: other, datapath, table };
        network.serve();
        network
    }

    /// Both protocols at the node port and the balancer's address, from the other node's pod.
    fn serve(&mut self) {
        let mut demo = Demo::new([10, 96, 0, 10], Protocol::Tcp, NODE_PORT, 8080);
        demo.service.ports[0].node_port = Some(NODE_PORT);
        let tcp = demo.service.ports[0].clone();
        demo.service.ports.push(ServicePort { name: "udp".into(), protocol: Protocol::Udp, ..tcp });
        demo.slice.ports.push(("udp".into(), Protocol::Udp, 8080));
        demo.service.balancer_ips = vec![BALANCER_IP.into()];
        demo.endpoints(&[REMOTE_POD]);
        self.datapath.set_service_address(BALANCER_IP.into(), Some(true)).expect("the map can be written");
        apply(&mut self.datapath, &mut self.table, &demo);
        self.outside.run(|| {
            echo_tcp();
            echo_udp();
        });
    }

    fn counts(&self) -> [u64; 2] {
        [Reason::FlowForwardXdp, Reason::FlowReplyXdp].map(|reason| count(&self.datapath, reason))
    }
}

fn open(sandbox: &Sandbox, folder: &str, xdp: Xdp) -> (Datapath, Table) {
    let cidr = |text: &str| text.parse::<Cidr>().expect("a network");
    let mut config = sandbox.config();
    config.bpffs = config.bpffs.with_file_name(folder);
    config.cluster_cidr = Some(cidr("10.244.0.0/16"));
    config.xdp = xdp;
    let mut datapath = Datapath::open(&config).expect("the datapath opens");
    datapath.attach_uplink("eth0", &[NODE.into()]).expect("the uplink is there");
    datapath.set_pod_cidr(cidr("10.244.1.0/24")).expect("the map can be written");
    let table = table_of(&mut datapath);
    (datapath, table)
}

fn is_attached(datapath: &Datapath) -> bool {
    let text = datapath.metrics().text().expect("metrics are text");
    let line = text.lines().find(|line| line.starts_with("pith_proxy_xdp_attached{interface=\"eth0\"}"));
    line.expect("the uplink has its figure").ends_with(" 1")
}

/// What the kernel says of the device, whoever attached what.
fn device() -> String {
    let output = std::process::Command::new("ip").args(["link", "show", "eth0"]).output();
    String::from_utf8_lossy(&output.expect("`ip` is there").stdout).into_owned()
}

/// Makes an interface send what a cable would carry: checksums complete.
#[allow(unsafe_code, reason = "ethtool's calls have no wrapper")]
fn like_a_cable(interface: &str) {
    // ETHTOOL_STXCSUM of include/uapi/linux/ethtool.h: off.
    let mut wanted = [0x17u32, 0];
    let name = CString::new(interface).expect("a name");
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // SAFETY: zero is valid for every field; the name is shorter than 16 bytes, and `wanted` outlives the call.
    let done = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = (&raw mut wanted).cast();
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCETHTOOL as _, &raw mut request)
    };
    assert_eq!(done, 0, "{interface}: {}", std::io::Error::last_os_error());
}

fn echo_tcp() {
    let listener = TcpListener::bind(at(REMOTE_POD, 8080)).expect("a server's address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut bytes = [0; 8000];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn echo_udp() {
    let socket = UdpSocket::bind(at(REMOTE_POD, 8080)).expect("a server's address");
    thread::spawn(move || {
        let mut bytes = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            // A client that went away is its own business.
            let _ = socket.send_to(&bytes[..length], from);
        }
    });
}

/// One connection, over which every byte comes back as it was sent.
fn talk_tcp(to: [u8; 4]) {
    let mut stream = TcpStream::connect_timeout(&at(to, NODE_PORT).into(), DEADLINE).expect("answers");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    for round in 0..ROUNDS {
        let sent: Vec<u8> = (0..4000u16).map(|at| (at as u8).wrapping_mul(31) ^ round).collect();
        stream.write_all(&sent).expect("the connection lives");
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back).expect("the connection lives");
        assert!(back == sent, "round {round}");
    }
}

fn talk_udp(to: [u8; 4]) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket.connect(at(to, NODE_PORT)).expect("an address");
    for round in 0..ROUNDS {
        let sent = [round; 700];
        socket.send(&sent).expect("sent");
        let mut back = [0; 1500];
        let length = socket.recv(&mut back).expect("an answer in time");
        assert_eq!(back[..length], sent, "round {round}");
    }
}

#[test]
fn known_flows_go_out_again_in_the_driver() {
    Sandbox::run("xdp-flows", |sandbox| {
        let network = Network::new(sandbox, Xdp::Native);
        assert!(is_attached(&network.datapath), "{}", device());
        for to in [NODE, BALANCER_IP] {
            for talk in [talk_tcp, talk_udp] {
                let before = network.counts();
                network.outside.run(move || talk(to));
                let after = network.counts();
                for (before, after) in before.into_iter().zip(after) {
                    assert!(
                        after >= before + u64::from(ROUNDS) / 2,
                        "{to:?}: {before} before, {after} after"
                    );
                }
            }
        }
    });
}

#[test]
fn without_xdp_the_same_goes_by_tcx() {
    for (test, xdp) in [("xdp-off", Xdp::Off), ("xdp-auto", Xdp::Auto)] {
        Sandbox::run(test, |sandbox| {
            let network = Network::new(sandbox, xdp);
            assert!(!is_attached(&network.datapath) && !device().contains("xdp"), "{}", device());
            network.outside.run(|| {
                talk_tcp(NODE);
                talk_udp(BALANCER_IP);
            });
            assert_eq!(network.counts(), [0, 0]);
        });
    }
}

#[test]
fn a_restarted_proxy_adopts_it_or_takes_it_away() {
    Sandbox::run("xdp-restart", |sandbox| {
        let Network { outside, _other, datapath, .. } = Network::new(sandbox, Xdp::Native);
        outside.run(|| talk_tcp(NODE));
        drop(datapath);
        assert!(device().contains("xdp"), "it works without a process: {}", device());
        outside.run(|| talk_tcp(NODE));

        let (datapath, _) = open(sandbox, "node", Xdp::Native);
        assert!(is_attached(&datapath));
        outside.run(|| talk_tcp(NODE));
        drop(datapath);

        let (datapath, _) = open(sandbox, "node", Xdp::Off);
        assert!(!is_attached(&datapath) && !device().contains("xdp"), "{}", device());
        outside.run(|| talk_tcp(NODE));
        drop(datapath);

        drop(open(sandbox, "node", Xdp::Native));
        assert!(device().contains("xdp"), "{}", device());
        Datapath::remove(&sandbox.config().bpffs).expect("all of it is ours");
        assert!(!device().contains("xdp"), "{}", device());
    });
}

#[test]
fn anothers_program_stays() {
    Sandbox::run("xdp-taken", |sandbox| {
        let first = Network::new(sandbox, Xdp::Native);
        let program = |text: &str| {
            let found = text.split_once("prog/xdp id ").and_then(|(_, rest)| rest.split_whitespace().next());
            found.map(str::to_owned)
        };
        let before = program(&device());
        assert!(before.is_some(), "{}", device());
        // Another proxy, which knows nothing of the first one's link.
        let (second, _) = open(sandbox, "other", Xdp::Native);
        assert!(!is_attached(&second));
        assert_eq!(program(&device()), before);
        assert!(is_attached(&first.datapath));
    });
}
