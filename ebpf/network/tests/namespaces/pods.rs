//! Pods as namespaces: attached, reaching each other within and across replicas, adopted, removed.

use std::{
    io,
    net::{Ipv4Addr, TcpStream},
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use crate::sandbox::{DEADLINE, interfaces, pod_netns, sandbox, talk};
use pith_network::{
    names::{ClusterName, PodUid},
    netns::run_in,
    peers::{Peer, Routes},
    pods::{self, PodNet, PodNetError},
    topology::{self, ReplicaNet, Topology},
};

pub(crate) fn uid(text: &str) -> PodUid {
    PodUid::parse(text).expect("valid")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

pub(crate) fn cluster(replicas: u16) -> Topology {
    topology::ensure(&topology::Config {
        cluster: ClusterName::parse("pods").expect("valid"),
        replicas,
        nodes: None,
        nodes6: None,
        pods: None,
        services: "10.96.0.0/16".parse().expect("a subnet"),
    })
    .expect("made")
}

pub(crate) fn config(replica: &ReplicaNet, state: &tempfile::TempDir) -> pods::Config {
    let n = replica.number.get();
    pods::Config {
        state_dir: state.path().join(format!("replica-{n}")),
        pod_cidr: format!("10.244.{n}.0/24").parse().expect("a subnet"),
        pod_cidr6: None,
        uplink: Some(topology::UPLINK.to_owned()),
        netns: Some(replica.netns.as_fd().try_clone_to_owned().expect("a descriptor")),
    }
}

#[test]
fn pods_reach_each_other_within_and_across_replicas() {
    sandbox("pods_reach_each_other_within_and_across_replicas", || {
        let state = tempfile::tempdir().expect("a folder");
        let made = cluster(2);
        runtime().block_on(async {
            let mut networks = Vec::new();
            let mut peers = Vec::new();
            for replica in &made.replicas {
                let config = config(replica, &state);
                peers.push(Peer {
                    node: format!("replica-{}", replica.number.get()),
                    pods: config.pod_cidr.into(),
                    via: replica.address.into(),
                });
                networks.push(PodNet::open(config).await.expect("opened"));
            }
            for (n, replica) in made.replicas.iter().enumerate() {
                let others: Vec<Peer> = peers.iter().filter(|p| p.via != peers[n].via).cloned().collect();
                replica
                    .netns
                    .run(|| Routes::open().expect("opened").apply(&others).expect("routed"))
                    .expect("entered");
            }
            let (a, b, far) = (pod_netns(), pod_netns(), pod_netns());
            let at_a = networks[0].attach(&uid("a"), a.as_fd()).await.expect("attached");
            let at_b = networks[0].attach(&uid("b"), b.as_fd()).await.expect("attached");
            let at_far = networks[1].attach(&uid("far"), far.as_fd()).await.expect("attached");
            assert_eq!(at_a.address, Ipv4Addr::new(10, 244, 1, 2));
            assert_eq!(at_a.gateway, Ipv4Addr::new(10, 244, 1, 1));
            assert_eq!(at_far.address, Ipv4Addr::new(10, 244, 2, 2));

            let replica = made.replicas[0].netns.as_fd();
            assert_eq!(talk(b.as_fd(), at_b.address, a.as_fd()), at_a.address, "within");
            assert_eq!(talk(far.as_fd(), at_far.address, a.as_fd()), at_a.address, "across");
            assert_eq!(talk(a.as_fd(), at_a.address, far.as_fd()), at_far.address, "and back");
            assert_eq!(talk(a.as_fd(), at_a.address, a.as_fd()), at_a.address, "itself");
            assert_eq!(talk(a.as_fd(), at_a.address, replica), at_a.gateway, "a probe");
            assert_eq!(talk(replica, at_a.gateway, a.as_fd()), at_a.address, "the name server");
            assert_eq!(
                talk(made.replicas[1].netns.as_fd(), made.replicas[1].address, a.as_fd()),
                at_a.address,
                "another node"
            );

            // An address that no pod has is answered, not swallowed.
            let nobody = (Ipv4Addr::new(10, 244, 1, 99), 80).into();
            let refused = run_in(a.as_fd(), || TcpStream::connect_timeout(&nobody, DEADLINE));
            let error = refused.expect("entered").expect_err("nobody is there");
            assert_eq!(error.kind(), io::ErrorKind::HostUnreachable, "{error}");
        });
        topology::remove(&ClusterName::parse("pods").expect("valid")).expect("removed");
    });
}

/// Both families, at once: no address waits for others to object to it.
#[test]
fn pods_of_two_families_reach_each_other() {
    sandbox("pods_of_two_families_reach_each_other", || {
        // As on hosts whose own interfaces are to have IPv4 alone.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("the sandbox's own");
        let state = tempfile::tempdir().expect("a folder");
        let cluster = ClusterName::parse("pods").expect("valid");
        let config_of = |replica: &ReplicaNet| {
            let pod_cidr6 = format!("fd00:244:0:{}::/64", replica.number.get()).parse().expect("a subnet");
            pods::Config { pod_cidr6: Some(pod_cidr6), ..config(replica, &state) }
        };
        let made = topology::ensure(&topology::Config {
            cluster: cluster.clone(),
            replicas: 2,
            nodes: None,
            nodes6: Some("fd00:200::/64".parse().expect("a subnet")),
            pods: None,
            services: "10.96.0.0/16".parse().expect("a subnet"),
        })
        .expect("made");
        runtime().block_on(async {
            let mut networks = Vec::new();
            for replica in &made.replicas {
                networks.push(PodNet::open(config_of(replica)).await.expect("opened"));
            }
            for (replica, other) in made.replicas.iter().zip(made.replicas.iter().rev()) {
                let address6 = other.address6.expect("the nodes have addresses of both families");
                let config = config_of(other);
                let node = format!("replica-{}", other.number.get());
                let peers = [
                    Peer { node: node.clone(), pods: config.pod_cidr.into(), via: other.address.into() },
                    Peer { node, pods: config.pod_cidr6.expect("just given").into(), via: address6.into() },
                ];
                let route = || {
                    let mut routes = Routes::open().expect("opened");
                    routes.apply(&peers).expect("routed");
                    routes.apply(&peers).expect("and again");
                    routes.observe().expect("listed").len()
                };
                assert_eq!(replica.netns.run(route).expect("entered"), 2);
            }
            let (a, b, far) = (pod_netns(), pod_netns(), pod_netns());
            let at_a = networks[0].attach(&uid("a"), a.as_fd()).await.expect("attached");
            let at_b = networks[0].attach(&uid("b"), b.as_fd()).await.expect("attached");
            let at_far = networks[1].attach(&uid("far"), far.as_fd()).await.expect("attached");
            let six = |pod: &pods::PodAddress| pod.address6.expect("a pod has addresses of both families");
            assert_eq!(six(&at_a).to_string(), "fd00:244:0:1::af4:102");
            let gateway = networks[0].gateway6().expect("there is one");

            let replica = made.replicas[0].netns.as_fd();
            assert_eq!(talk(b.as_fd(), six(&at_b), a.as_fd()), six(&at_a), "within");
            assert_eq!(talk(far.as_fd(), six(&at_far), a.as_fd()), six(&at_a), "across");
            assert_eq!(talk(a.as_fd(), six(&at_a), far.as_fd()), six(&at_far), "and back");
            assert_eq!(talk(a.as_fd(), six(&at_a), replica), gateway, "a probe");
            assert_eq!(talk(replica, gateway, a.as_fd()), six(&at_a), "the name server");
            assert_eq!(talk(far.as_fd(), at_far.address, a.as_fd()), at_a.address, "in IPv4 too");

            let nobody = ("fd00:244:0:1::af4:163".parse::<std::net::Ipv6Addr>().expect("an address"), 80);
            let refused = run_in(a.as_fd(), || TcpStream::connect_timeout(&nobody.into(), DEADLINE));
            let error = refused.expect("entered").expect_err("nobody is there");
            assert!(
                matches!(error.kind(), io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable),
                "{error}"
            );
            // The next process finds everything as it is.
            drop(networks);
            let network = PodNet::open(config_of(&made.replicas[0])).await.expect("opened again");
            assert_eq!(network.attach(&uid("a"), a.as_fd()).await.expect("adopted"), at_a);
            assert_eq!(talk(far.as_fd(), six(&at_far), a.as_fd()), six(&at_a), "as before");
        });
        topology::remove(&cluster).expect("removed");
    });
}

#[test]
fn a_restarted_replica_adopts_and_cleans() {
    sandbox("a_restarted_replica_adopts_and_cleans", || {
        let state = tempfile::tempdir().expect("a folder");
        let made = cluster(1);
        let replica = &made.replicas[0];
        let inside = || interfaces(replica.netns.as_fd());
        runtime().block_on(async {
            let (a, b): (OwnedFd, OwnedFd) = (pod_netns(), pod_netns());
            let network = PodNet::open(config(replica, &state)).await.expect("opened");
            let at_a = network.attach(&uid("a"), a.as_fd()).await.expect("attached");
            let at_b = network.attach(&uid("b"), b.as_fd()).await.expect("attached");
            drop(network);

            let network = PodNet::open(config(replica, &state)).await.expect("opened again");
            assert_eq!(network.attach(&uid("a"), a.as_fd()).await.expect("adopted"), at_a);
            assert_eq!(talk(a.as_fd(), at_a.address, b.as_fd()), at_b.address);

            // The pod's supervisor died and came back with a new namespace: same pod, same address.
            let anew = pod_netns();
            let again = network.attach(&uid("a"), anew.as_fd()).await.expect("attached anew");
            assert_eq!(again.address, at_a.address);
            assert_eq!(talk(anew.as_fd(), at_a.address, b.as_fd()), at_b.address);

            let gone = network.reconcile(vec![uid("b")]).await.expect("reconciled");
            assert_eq!(gone, [uid("a")]);
            assert_eq!(inside(), ["eth0", "lo", &at_b.interface]);
            let c = pod_netns();
            let at_c = network.attach(&uid("c"), c.as_fd()).await.expect("attached");
            assert_eq!(at_c.address, Ipv4Addr::new(10, 244, 1, 4), "not a's address at once");
            network.detach(&uid("c")).await.expect("detached");
            network.detach(&uid("c")).await.expect("twice is fine");
            network.detach(&uid("never")).await.expect("so is a pod that never was");

            // Its file lost, the interface that nobody owns goes.
            drop(network);
            std::fs::remove_dir_all(state.path().join("replica-1")).expect("removed");
            let network = PodNet::open(config(replica, &state)).await.expect("opened once more");
            network.reconcile(Vec::new()).await.expect("reconciled");
            assert_eq!(inside(), ["eth0", "lo"]);
        });
    });
}

#[test]
fn what_cannot_be_attached_leaves_nothing() {
    sandbox("what_cannot_be_attached_leaves_nothing", || {
        let state = tempfile::tempdir().expect("a folder");
        let made = cluster(1);
        let replica = &made.replicas[0];
        runtime().block_on(async {
            let mut config = config(replica, &state);
            config.pod_cidr = "10.244.1.0/30".parse().expect("a subnet");
            let network = PodNet::open(config).await.expect("opened");
            let own = network.attach(&uid("own"), replica.netns.as_fd()).await;
            assert!(matches!(own, Err(PodNetError::HostNetwork(_))), "{own:?}");

            // The name is taken inside.
            let occupied = pod_netns();
            run_in(occupied.as_fd(), || {
                let made =
                    std::process::Command::new("ip").args(["link", "add", "eth0", "type", "bridge"]).status();
                assert!(made.expect("ip can be started").success());
            })
            .expect("entered");
            let refused = network.attach(&uid("occupied"), occupied.as_fd()).await;
            assert!(matches!(refused, Err(PodNetError::Pod { .. })), "{refused:?}");
            assert_eq!(interfaces(replica.netns.as_fd()), ["eth0", "lo"]);

            let a = pod_netns();
            network.attach(&uid("a"), a.as_fd()).await.expect("its address was freed");
            let full = network.attach(&uid("b"), pod_netns().as_fd()).await.expect_err("full");
            assert_eq!(full.to_string(), "all 1 addresses of 10.244.1.0/30 are in use");
        });
    });
}

#[test]
fn a_hundred_pods_at_once() {
    sandbox("a_hundred_pods_at_once", || {
        let state = tempfile::tempdir().expect("a folder");
        let made = cluster(1);
        let replica = &made.replicas[0];
        runtime().block_on(async {
            let network = PodNet::open(config(replica, &state)).await.expect("opened");
            let pods: Vec<_> = (0..100).map(|n| (uid(&format!("pod-{n}")), pod_netns())).collect();
            let begun = Instant::now();
            let attaching = pods.iter().map(|(uid, netns)| network.attach(uid, netns.as_fd()));
            let attached = futures::future::join_all(attaching).await;
            let attach = begun.elapsed();
            let addresses: std::collections::HashSet<_> =
                attached.into_iter().map(|pod| pod.expect("attached").address).collect();
            assert_eq!(addresses.len(), 100);
            let begun = Instant::now();
            let detaching = pods.iter().map(|(uid, _)| network.detach(uid));
            for detached in futures::future::join_all(detaching).await {
                detached.expect("detached");
            }
            eprintln!("100 pods: attached in {attach:?}, detached in {:?}", begun.elapsed());
            assert_eq!(interfaces(replica.netns.as_fd()), ["eth0", "lo"]);
        });
    });
}
