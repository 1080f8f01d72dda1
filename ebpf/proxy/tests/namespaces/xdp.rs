//! Packets of known flows that go out again in the uplink's driver, on veth devices, whose driver has XDP.
//!
//! What one end of a veth pair sends back from XDP wakes the other end only if that has a program too
//! (drivers/net/veth.c, veth_xdp_flush): the outside is a node as well.

use std::{
    ffi::CString,
    io::{Read, Write},
    net::{SocketAddrV4, TcpStream, UdpSocket},
    thread,
};

use pith_abi::Reason;
use pith_proxy::{Config, Datapath, Limits, Xdp, service::Protocol};

use crate::support::{
    DEADLINE, Sandbox, at,
    network::{BALANCER_IP, NODE, NODE_PORT, Nodes, OUTSIDE, REMOTE, echo, everywhere},
};

/// Enough that most packets are of a flow which both ends know.
const ROUNDS: u8 = 50;

type Talk = fn(SocketAddrV4);
const TALKS: [(Protocol, Talk); 2] = [(Protocol::Tcp, talk_tcp), (Protocol::Udp, talk_udp)];

/// A node, and the datapath of the one outside.
fn nodes(sandbox: &Sandbox, xdp: Xdp) -> (Nodes, Datapath) {
    let nodes = Nodes::with(sandbox, Limits::default(), xdp);
    let outside = other(sandbox, "outside", xdp);
    let outside = nodes.outside.run(move || {
        like_a_cable("up0");
        attached(outside, "up0", OUTSIDE)
    });
    echo(&nodes.outside, REMOTE);
    nodes.outside.run(echo_udp);
    (nodes, outside)
}

/// Of another proxy, which has a folder of its own.
fn other(sandbox: &Sandbox, folder: &str, xdp: Xdp) -> Config {
    let mut config = sandbox.config();
    config.bpffs = config.bpffs.with_file_name(folder);
    config.xdp = xdp;
    config
}

fn attached(config: Config, interface: &str, address: [u8; 4]) -> Datapath {
    let mut datapath = Datapath::open(&config).expect("the datapath opens");
    datapath.attach_uplink(interface, &[address.into()]).expect("the uplink is there");
    datapath
}

fn counts(nodes: &Nodes) -> [u64; 2] {
    [Reason::FlowForwardXdp, Reason::FlowReplyXdp].map(|reason| nodes.count(reason))
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

fn echo_udp() {
    let socket = UdpSocket::bind(at(REMOTE, 8080)).expect("a server's address");
    thread::spawn(move || {
        let mut bytes = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            // A client that went away is its own business.
            let _ = socket.send_to(&bytes[..length], from);
        }
    });
}

/// One connection, over which every byte comes back as it was sent.
fn talk_tcp(to: SocketAddrV4) {
    let mut stream = TcpStream::connect_timeout(&to.into(), DEADLINE).expect("answers");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    for round in 0..ROUNDS {
        let sent: Vec<u8> = (0..4000u16).map(|at| (at as u8).wrapping_mul(31) ^ round).collect();
        stream.write_all(&sent).expect("the connection lives");
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back).expect("the connection lives");
        assert!(back == sent, "round {round}");
    }
}

fn talk_udp(to: SocketAddrV4) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket.connect(to).expect("an address");
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
        let (mut nodes, _outside) = nodes(sandbox, Xdp::Native);
        assert!(is_attached(&nodes.datapath), "{}", device());
        for (protocol, talk) in TALKS {
            nodes.apply(&everywhere(protocol, &[REMOTE]));
            for to in [at(NODE, NODE_PORT), at(BALANCER_IP, 80)] {
                let before = counts(&nodes);
                nodes.outside.run(move || talk(to));
                for (before, after) in before.into_iter().zip(counts(&nodes)) {
                    assert!(after >= before + u64::from(ROUNDS) / 2, "{to}: {before} before, {after} after");
                }
            }
        }
    });
}

#[test]
fn without_xdp_the_same_goes_by_tcx() {
    for (test, xdp) in [("xdp-off", Xdp::Off), ("xdp-auto", Xdp::Auto)] {
        Sandbox::run(test, |sandbox| {
            let (mut nodes, _outside) = nodes(sandbox, xdp);
            assert!(!is_attached(&nodes.datapath) && !device().contains("xdp"), "{}", device());
            for (protocol, talk) in TALKS {
                nodes.apply(&everywhere(protocol, &[REMOTE]));
                nodes.outside.run(move || talk(at(NODE, NODE_PORT)));
            }
            assert_eq!(counts(&nodes), [0, 0]);
        });
    }
}

#[test]
fn a_restarted_proxy_adopts_it_or_takes_it_away() {
    Sandbox::run("xdp-restart", |sandbox| {
        let talk = |nodes: &Nodes| nodes.outside.run(|| talk_tcp(at(NODE, NODE_PORT)));
        let (mut nodes, _outside) = nodes(sandbox, Xdp::Native);
        nodes.apply(&everywhere(Protocol::Tcp, &[REMOTE]));
        talk(&nodes);
        for (xdp, attached) in [(Xdp::Native, true), (Xdp::Off, false), (Xdp::Native, true)] {
            nodes = nodes.restarted_with(sandbox, xdp);
            assert_eq!(
                (is_attached(&nodes.datapath), device().contains("xdp")),
                (attached, attached),
                "{xdp:?}"
            );
            talk(&nodes);
        }
        drop(nodes.datapath);
        assert!(device().contains("xdp"), "it stays without a process: {}", device());
        nodes.outside.run(|| talk_tcp(at(NODE, NODE_PORT)));
        Datapath::remove(&sandbox.config().bpffs).expect("all of it is ours");
        assert!(!device().contains("xdp"), "{}", device());
    });
}

#[test]
fn anothers_program_stays() {
    Sandbox::run("xdp-taken", |sandbox| {
        let (first, _outside) = nodes(sandbox, Xdp::Native);
        let program = |text: &str| {
            let found = text.split_once("prog/xdp id ").and_then(|(_, rest)| rest.split_whitespace().next());
            found.map(str::to_owned)
        };
        let before = program(&device());
        assert!(before.is_some(), "{}", device());
        // It knows nothing of the first one's link.
        let second = attached(other(sandbox, "other", Xdp::Native), "eth0", NODE);
        assert!(!is_attached(&second));
        assert_eq!(program(&device()), before);
        assert!(is_attached(&first.datapath));
    });
}
