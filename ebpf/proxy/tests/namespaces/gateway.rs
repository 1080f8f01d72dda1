//! A host as the gateway of a network behind a bridge, on real sockets.
//!
//! ```text
//!   outside 192.0.2.1 ──── eth0 192.0.2.2  host  br0 172.31.0.1 ──── 172.31.0.2 replica
//!                             (the sandbox, which forwards nothing)
//! ```

use std::{io::ErrorKind, path::PathBuf};

use crate::support::{Namespace, Sandbox, ask_tcp, ask_udp, at, ip, serve_tcp, serve_udp};
use pith_abi::Reason;
use pith_proxy::{Gateway, GatewayConfig};

const OUTSIDE: [u8; 4] = [192, 0, 2, 1];
const HOST: [u8; 4] = [192, 0, 2, 2];
const BRIDGE: [u8; 4] = [172, 31, 0, 1];
const REPLICA: [u8; 4] = [172, 31, 0, 2];

fn network(sandbox: &Sandbox) -> (Namespace, Namespace) {
    let (outside, replica) = (Namespace::new(sandbox), Namespace::new(sandbox));
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").expect("the namespace is ours");
    ip(&format!("link add eth0 type veth peer name up0 netns {}", outside.path));
    ip(&format!("link add port type veth peer name eth0 netns {}", replica.path));
    for command in [
        "link add br0 type bridge",
        "link set port master br0",
        "address add 192.0.2.2/24 dev eth0",
        "address add 172.31.0.1/24 dev br0",
        "link set eth0 up",
        "link set port up",
        "link set br0 up",
        "route add default via 192.0.2.1",
    ] {
        ip(command);
    }
    // It knows no way back to the network behind the host.
    outside.run(|| {
        ip("address add 192.0.2.1/24 dev up0");
        ip("link set up0 up");
    });
    replica.run(|| {
        ip("address add 172.31.0.2/24 dev eth0");
        ip("link set eth0 up");
        ip("route add default via 172.31.0.1");
    });
    (outside, replica)
}

fn config(sandbox: &Sandbox) -> GatewayConfig {
    let bpffs: PathBuf = sandbox.config().bpffs;
    GatewayConfig {
        bpffs,
        inner: "br0".into(),
        network: "172.31.0.0/24".parse().expect("a network"),
        uplink: "eth0".into(),
        address: HOST.into(),
    }
}

#[test]
fn a_network_behind_the_host_reaches_the_outside() {
    Sandbox::run("gateway", |sandbox| {
        let (outside, replica) = network(sandbox);
        outside.run(|| {
            serve_tcp(at(OUTSIDE, 7000));
            serve_udp(at(OUTSIDE, 7000));
        });
        serve_tcp(at(BRIDGE, 7000));
        serve_tcp(at(HOST, 7100));
        let config = config(sandbox);
        let gateway = Gateway::open(&config).expect("the gateway is put in force");

        assert_eq!(replica.run(|| ask_tcp(at(OUTSIDE, 7000))), Ok(HOST));
        assert_eq!(replica.run(|| ask_udp(at(OUTSIDE, 7000))), Ok(HOST));
        assert_eq!(gateway.count(Reason::Masqueraded).expect("a counter"), 2);
        // Nobody listens: TCP is reset, and for UDP an error comes back through the host.
        assert_eq!(replica.run(|| ask_tcp(at(OUTSIDE, 7001))), Err(ErrorKind::ConnectionRefused));
        assert_eq!(replica.run(|| ask_udp(at(OUTSIDE, 7001))), Err(ErrorKind::ConnectionRefused));
        assert_eq!(gateway.count(Reason::IcmpError).expect("a counter"), 1);

        // What was there before is as it was: both sides reach the host itself, and it reaches both.
        assert_eq!(replica.run(|| ask_tcp(at(BRIDGE, 7000))), Ok(REPLICA));
        assert_eq!(outside.run(|| ask_tcp(at(HOST, 7100))), Ok(OUTSIDE));
        assert_eq!(ask_tcp(at(OUTSIDE, 7000)), Ok(HOST));
        let forward = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("readable");
        assert_eq!(forward.trim(), "0", "the host's own setting is untouched");

        // The process ends, the gateway stays; the next process takes it over.
        drop(gateway);
        assert_eq!(replica.run(|| ask_tcp(at(OUTSIDE, 7000))), Ok(HOST));
        drop(Gateway::open(&config).expect("the gateway is taken over"));
        assert_eq!(replica.run(|| ask_udp(at(OUTSIDE, 7000))), Ok(HOST));

        Gateway::remove(&config.bpffs).expect("all pins are ours");
        assert!(!config.bpffs.exists());
        assert_eq!(outside.run(|| ask_tcp(at(HOST, 7100))), Ok(OUTSIDE), "the host is reached as before");
    });
}
