//! Programs at pods' links: they stay when the process goes, are replaced without a gap, and leave what is
//! others' alone.

use std::{
    net::UdpSocket,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use pith_proxy::{Datapath, Filter, Side, filters, service::Protocol};

use crate::support::{
    DEADLINE, Namespace, Sandbox, ask_udp, at,
    network::{A, B, CLUSTER_IP, Nodes, everywhere, serve},
};

/// As many times the process is replaced while packets go through.
const RESTARTS: usize = 20;

fn filters_of(interface: &str) -> Vec<Filter> {
    let index = nix::net::if_::if_nametoindex(interface).expect("the interface is there");
    filters(index).expect("filters can be listed")
}

/// Names of the filters at an interface, with their sides.
fn names_at(interface: &str) -> Vec<(Side, String)> {
    filters_of(interface)
        .into_iter()
        .map(|filter| (filter.side, filter.name.unwrap_or(filter.kind)))
        .collect()
}

fn ours(mark: &str) -> Vec<(Side, String)> {
    vec![(Side::Ingress, format!("pith from_pod{mark}")), (Side::Egress, format!("pith to_pod{mark}"))]
}

fn tc(arguments: &str) -> String {
    let arguments = arguments.split_whitespace();
    tc_with(arguments.collect())
}

fn tc_with(arguments: Vec<&str>) -> String {
    let output = Command::new("tc").args(&arguments).output().expect("iproute2 has tc");
    assert!(output.status.success(), "tc {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A pod whose packets are translated at its link, question by question, until it is told to stop; how many
/// were answered. Every one has to be.
fn talk(pod: &Namespace, stop: &Arc<AtomicBool>) -> std::sync::mpsc::Receiver<u64> {
    let (done, result) = std::sync::mpsc::channel();
    let stop = Arc::clone(stop);
    pod.run(move || {
        std::thread::spawn(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
            let mut answered = 0;
            while !stop.load(Ordering::Relaxed) {
                socket.send_to(&[0; 8], at(CLUSTER_IP, 80)).expect("sent");
                let (_, from) = socket.recv_from(&mut [0; 8]).expect("no question is lost");
                assert_eq!(from, at(CLUSTER_IP, 80).into(), "no answer comes by untranslated");
                answered += 1;
            }
            done.send(answered).expect("the test waits");
        });
    });
    result
}

/// A classifier of somebody else's, which matches nothing.
fn foreign(place: &str) {
    let arguments = ["filter", "add", "dev"].into_iter().chain(place.split_whitespace());
    tc_with(arguments.chain(["bpf", "bytecode", "1,6 0 0 0,"]).collect());
}

#[test]
fn a_pods_link_is_never_without_its_programs() {
    Sandbox::run("pod-links", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        serve(&nodes.b, B);
        nodes.apply(&everywhere(Protocol::Udp, &[B]));
        assert_eq!(names_at("pod-a"), ours(""));
        let stop = Arc::new(AtomicBool::new(false));
        let answered = talk(&nodes.a, &stop);
        let mut programs = filters_of("pod-a");
        for _ in 0..RESTARTS {
            nodes = nodes.restarted(sandbox);
            let replaced = filters_of("pod-a");
            assert_eq!(names_at("pod-a"), ours(""), "in place of the former, not beside them");
            let pairs = programs.iter().zip(&replaced);
            assert!(pairs.into_iter().all(|(old, new)| old.program != new.program), "{replaced:?}");
            programs = replaced;
        }
        stop.store(true, Ordering::Relaxed);
        let answered = answered.recv_timeout(DEADLINE).expect("nothing was lost");
        assert!(answered > RESTARTS as u64, "{answered} questions are no traffic");

        let folder = sandbox.config().bpffs;
        let Nodes { a, datapath, .. } = nodes;
        drop(datapath);
        assert_eq!(names_at("pod-a"), ours(""), "they need no process");
        let answer = a.run(|| ask_udp(at(CLUSTER_IP, 80)));
        assert_eq!(answer, Ok(A), "and nobody misses one");

        Datapath::remove(&folder).expect("all pins are ours");
        for pod in ["pod-a", "pod-b", "pod-c"] {
            assert_eq!(names_at(pod), [], "{pod}");
            assert!(!tc(&format!("qdisc show dev {pod}")).contains("clsact"), "{pod}");
        }
    });
}

#[test]
fn what_others_attached_to_a_pods_link_stays() {
    Sandbox::run("pod-links-others", |sandbox| {
        let nodes = Nodes::new(sandbox);
        let folder = sandbox.config().bpffs;
        drop(nodes.datapath);
        Datapath::remove(&folder).expect("all pins are ours");

        // Classifiers before ours and behind, and a queueing discipline alone.
        tc("qdisc add dev pod-a clsact");
        foreign("pod-a ingress prio 3");
        foreign("pod-a egress prio 5000");
        tc("qdisc add dev pod-b clsact");
        let theirs = || vec![(Side::Ingress, "bpf".to_owned()), (Side::Egress, "bpf".to_owned())];
        assert_eq!(names_at("pod-a"), theirs());

        let mut config = sandbox.config();
        config.pod_interfaces = Some("pod-".into());
        for time in ["first", "again"] {
            let mut datapath = Datapath::open(&config).expect("the datapath opens");
            datapath.attach_pods().expect("there is room for ours");
            let [from_pod, to_pod] = <[_; 2]>::try_from(ours(", a guest")).expect("two");
            let [before, behind] = <[_; 2]>::try_from(theirs()).expect("two");
            assert_eq!(names_at("pod-a"), [before, from_pod, to_pod, behind], "{time}");
            assert_eq!(names_at("pod-b"), ours(", a guest"), "{time}");
            assert_eq!(names_at("pod-c"), ours(""), "{time}");
        }
        Datapath::remove(&folder).expect("all pins are ours");
        assert_eq!(names_at("pod-a"), theirs());
        assert_eq!(names_at("pod-b"), []);
        assert!(tc("qdisc show dev pod-b").contains("clsact"), "it was there before");
        assert!(!tc("qdisc show dev pod-c").contains("clsact"), "it came with us");

        // Somebody in our place: named, and the other pods have their programs.
        foreign("pod-a ingress prio 112 handle 0x70697468");
        let mut datapath = Datapath::open(&config).expect("the datapath opens");
        let error = datapath.attach_pods().expect_err("the place is taken").to_string();
        assert!(error.contains("is taken by bpf"), "{error}");
        assert_eq!(names_at("pod-c"), ours(""));
        drop(datapath);
        Datapath::remove(&folder).expect("all pins are ours");
        assert_eq!(names_at("pod-a").len(), 3, "two of theirs and the one in our place");
    });
}
