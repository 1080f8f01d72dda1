//! `pith up`'s links and namespaces, made, repaired and removed on a machine of their own.

use std::{os::fd::AsFd, path::Path, process::Command};

use crate::sandbox::{interfaces, own_netns, sandbox, talk};
use pith_network::{
    names::ClusterName,
    netns::Netns,
    topology::{self, Config, Leftover, TopologyError},
};

fn config(cluster: &str, replicas: u16) -> Config {
    Config {
        cluster: ClusterName::parse(cluster).expect("valid"),
        replicas,
        nodes: None,
        nodes6: None,
        pods: None,
        services: "10.96.0.0/16".parse().expect("a subnet"),
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip can be started");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn replicas_and_host_reach_each_other_and_nothing_stays() {
    sandbox("replicas_and_host_reach_each_other_and_nothing_stays", || {
        let host = own_netns();
        let before = interfaces(host.as_fd());
        let config = config("demo", 2);
        let made = topology::ensure(&config).expect("made");
        assert_eq!(made.bridge, "pith-demo");
        let [first, second] = made.replicas.as_slice() else { panic!("two replicas") };
        assert_eq!(talk(second.netns.as_fd(), second.address, first.netns.as_fd()), first.address);
        assert_eq!(talk(first.netns.as_fd(), first.address, host.as_fd()), made.addressing.host());
        assert_eq!(talk(host.as_fd(), made.addressing.host(), first.netns.as_fd()), first.address);
        assert_eq!(interfaces(first.netns.as_fd()), ["eth0", "lo"]);
        assert!(Path::new("/run/netns/pith-demo-r1").exists(), "ip netns sees it");

        topology::remove(&config.cluster).expect("removed");
        assert_eq!(topology::audit(&config.cluster).expect("listed"), []);
        assert_eq!(interfaces(host.as_fd()), before);
        assert!(!Path::new("/run/netns").exists(), "the folder was not there before");
        topology::remove(&config.cluster).expect("removing nothing is fine");
    });
}

/// The first `ip netns add` of a machine binds /run/netns onto itself, over all that is mounted in it.
#[test]
fn namespaces_that_ip_has_covered_go_too() {
    sandbox("namespaces_that_ip_has_covered_go_too", || {
        let config = config("covered", 2);
        let made = topology::ensure(&config).expect("made");
        ip("netns add other");
        assert_eq!(
            talk(made.replicas[0].netns.as_fd(), made.replicas[0].address, own_netns().as_fd()),
            made.addressing.host()
        );
        topology::remove(&config.cluster).expect("removed");
        assert_eq!(Netns::names(), ["other"]);
        ip("netns del other");
    });
}

#[test]
fn a_second_call_finds_and_repairs() {
    sandbox("a_second_call_finds_and_repairs", || {
        let host = own_netns();
        let config = config("repair-me-please", 2);
        let made = topology::ensure(&config).expect("made");
        let port = |n: usize| config.cluster.port(made.replicas[n].number);
        type Damage<'a> = (&'a str, Box<dyn Fn() + 'a>);
        let damages: [Damage<'_>; 6] = [
            ("nothing", Box::new(|| {})),
            ("an uplink deleted", Box::new(|| ip(&format!("link del {}", port(0))))),
            ("a port off the bridge", Box::new(|| ip(&format!("link set {} nomaster down", port(1))))),
            ("the bridge deleted", Box::new(|| ip(&format!("link del {}", made.bridge)))),
            (
                "another address",
                Box::new(|| {
                    ip(&format!("-n {} addr flush dev eth0", made.replicas[0].netns.name()));
                    ip(&format!("-n {} addr add 192.0.2.9/24 dev eth0", made.replicas[0].netns.name()));
                }),
            ),
            (
                "a namespace deleted",
                Box::new(|| Netns::remove(made.replicas[1].netns.name()).expect("removed")),
            ),
        ];
        for (name, damage) in damages {
            damage();
            let again = topology::ensure(&config).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(again.addressing, made.addressing, "{name}");
            let [first, second] = again.replicas.as_slice() else { panic!("two replicas") };
            assert_eq!(
                talk(second.netns.as_fd(), second.address, first.netns.as_fd()),
                first.address,
                "{name}"
            );
            talk(first.netns.as_fd(), first.address, host.as_fd());
        }
        topology::remove(&config.cluster).expect("removed");
        assert_eq!(topology::audit(&config.cluster).expect("listed"), []);
    });
}

#[test]
fn clusters_live_side_by_side() {
    sandbox("clusters_live_side_by_side", || {
        let (one, two) = (config("a", 1), config("a-r1", 1));
        let first = topology::ensure(&one).expect("made");
        let second = topology::ensure(&two).expect("made");
        assert_ne!(first.addressing.nodes, second.addressing.nodes);
        assert_ne!(first.addressing.pods, second.addressing.pods);
        assert_eq!(topology::bridges().expect("listed").len(), 2);

        topology::remove(&one.cluster).expect("removed");
        assert_eq!(topology::audit(&one.cluster).expect("listed"), []);
        let left = topology::audit(&two.cluster).expect("listed");
        assert!(left.contains(&Leftover::Netns("pith-a-r1-r1".to_owned())), "{left:?}");
        assert_eq!(left.len(), 3, "bridge, port and namespace: {left:?}");
        talk(second.replicas[0].netns.as_fd(), second.replicas[0].address, own_netns().as_fd());
        topology::remove(&two.cluster).expect("removed");
    });
}

#[test]
fn what_cannot_be_is_said() {
    sandbox("what_cannot_be_is_said", || {
        ip("link add wan type bridge");
        ip("link set wan up");
        ip("addr add 10.200.0.77/24 dev wan");
        ip("route add 10.244.0.0/17 dev wan");
        let subnet = |text: &str| Some(text.parse().expect("a subnet"));
        let nodes = Config { nodes: subnet("10.200.0.0/16"), ..config("x", 1) };
        let error = topology::ensure(&nodes).expect_err("in use").to_string();
        assert_eq!(error, "node subnet 10.200.0.0/16 is in use: address 10.200.0.77/24 of wan");
        let pods = Config { pods: subnet("10.244.0.0/16"), ..config("x", 1) };
        let error = topology::ensure(&pods).expect_err("in use").to_string();
        assert_eq!(error, "cluster CIDR 10.244.0.0/16 is in use: route 10.244.0.0/17 dev wan");
        assert_eq!(topology::audit(&nodes.cluster).expect("listed"), [], "nothing was begun");

        let made = topology::ensure(&config("x", 1)).expect("made");
        assert_eq!(made.addressing.nodes, subnet("10.200.1.0/24").expect("some"));
        let other = Config { pods: subnet("10.99.0.0/16"), ..config("x", 1) };
        let error = topology::ensure(&other).expect_err("it has others").to_string();
        assert_eq!(error, "cluster x already has 10.245.0.0/16, not 10.99.0.0/16: remove it first");

        let many = topology::ensure(&config("x", 300)).expect_err("too many");
        assert!(matches!(many, TopologyError::TooMany(300)), "{many}");
        topology::remove(&nodes.cluster).expect("removed");

        ip("link add pith-y type veth peer name y");
        let error = topology::ensure(&config("y", 1)).expect_err("foreign").to_string();
        assert_eq!(error, "interface pith-y is not a bridge of pith's: rename or remove it");
    });
}

#[test]
fn what_a_killed_process_left_is_removed() {
    sandbox("what_a_killed_process_left_is_removed", || {
        let config = config("cut", 1);
        let number = topology::ensure(&config).expect("made").replicas[0].number;
        topology::remove(&config.cluster).expect("removed");
        // Killed between making the file and mounting on it, and between making a link and naming it.
        std::fs::create_dir("/run/netns").expect("made");
        std::fs::write("/run/netns/pith-cut-r1", "").expect("written");
        ip(&format!("link add {} type veth peer name left", config.cluster.port(number)));
        ip(&format!("link add {} type bridge", config.cluster.bridge()));
        assert_eq!(topology::audit(&config.cluster).expect("listed").len(), 3);
        let made = topology::ensure(&config).expect("repaired");
        talk(made.replicas[0].netns.as_fd(), made.replicas[0].address, own_netns().as_fd());
        topology::remove(&config.cluster).expect("removed");
        assert_eq!(topology::audit(&config.cluster).expect("listed"), []);
        assert!(Path::new("/run/netns").exists(), "a folder that somebody else made stays");
    });
}
