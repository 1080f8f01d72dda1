//! What `why` says is what happens: each question is put to the maps, and to the sockets.

use crate::support::{
    Sandbox, ask_tcp, at,
    network::{
        A, B, BALANCER_IP, C, CLUSTER_IP, EXTERNAL_IP, NODE, NODE_PORT, Nodes, OUTSIDE, everywhere, serve,
    },
};
use pith_proxy::{
    inspect::inspect,
    service::Protocol,
    why::{Question, Transport, why},
};

#[test]
fn the_answer_is_what_happens() {
    Sandbox::run("why", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        serve(&nodes.a, A);
        let mut demo = everywhere(Protocol::Tcp, &[A]);
        demo.service.sources = vec!["203.0.113.0/24".parse().expect("a network")];
        nodes.apply(&demo);
        let bpffs = sandbox.config().bpffs;
        let ask = |source: [u8; 4], (address, port), protocol| {
            let question = Question {
                source: source.into(),
                source_port: 40_000,
                destination: at(address, port).into(),
                protocol,
            };
            why(&bpffs, &question).expect("the maps can be read")
        };
        let before = inspect(&bpffs).expect("the maps can be read").flows.live;
        let (tcp, ping) = (Transport::Tcp, Transport::Ping);
        for (name, source, place, protocol, reasons) in [
            ("a pod's socket", C, (CLUSTER_IP, 80), tcp, &["socket_translated", "pod_pass", "pod_pass"][..]),
            ("no such port", C, (CLUSTER_IP, 81), tcp, &["socket_direct", "service_no_port"]),
            ("a ping", B, (CLUSTER_IP, 0), ping, &["service_ping"]),
            ("another pod", B, (A, 8080), tcp, &["socket_direct", "pod_pass", "pod_pass"]),
            ("to the outside", B, (OUTSIDE, 80), tcp, &["socket_direct", "pod_pass", "masqueraded"]),
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
        assert_eq!(steps[0].fate, "becomes 172.30.0.1:40000 → 10.244.1.5:8080/TCP and goes on");
        assert!(
            steps[0]
                .lookups
                .iter()
                .any(|lookup| lookup.starts_with("FRONTENDS node port 30080/TCP from outside"))
        );
        let after = inspect(&bpffs).expect("the maps can be read").flows.live;
        assert_eq!(before, after, "asking changes nothing");
        assert_eq!(nodes.outside.run(|| ask_tcp(at(NODE, NODE_PORT))), Ok(OUTSIDE), "and it is so");
    });
}
