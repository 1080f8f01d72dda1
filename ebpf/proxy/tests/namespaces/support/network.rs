//! A node with pods, and what is in front of it.
//!
//! ```text
//!   outside 172.30.0.1 ─────── eth0 172.30.0.2  node  10.244.1.1 ─┬─ pod-a 10.244.1.5
//!   and 10.244.2.6, a pod of another node    (the sandbox)        ├─ pod-b 10.244.1.6
//!                                                                 └─ pod-c 10.244.1.7
//! ```
//! Sockets of `c` see Services; those of `a` and `b` do not, so that all their packets come to the pods' links.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener},
    thread,
};

use ipnet::IpNet;
use pith_abi::Reason;
use pith_proxy::{
    Cidr, Collected, Datapath, Limits, NodeIdentity, ServicePlan, Xdp, plan_service, service::Protocol,
    table::Table,
};

use super::{Demo, Namespace, Sandbox, at, ip, serve_tcp, serve_udp, table_of};

pub(crate) const OUTSIDE: [u8; 4] = [172, 30, 0, 1];
pub(crate) const NODE: [u8; 4] = [172, 30, 0, 2];
pub(crate) const A: [u8; 4] = [10, 244, 1, 5];
pub(crate) const B: [u8; 4] = [10, 244, 1, 6];
pub(crate) const C: [u8; 4] = [10, 244, 1, 7];
pub(crate) const REMOTE: [u8; 4] = [10, 244, 2, 6];
pub(crate) const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
/// In the network in front of the node, which the node announces.
pub(crate) const BALANCER_IP: [u8; 4] = [172, 30, 0, 200];
/// Brought to the node by a route of the outside's.
pub(crate) const EXTERNAL_IP: [u8; 4] = [198, 51, 100, 7];
pub(crate) const NODE_PORT: u16 = 30_080;

pub(crate) struct Nodes {
    pub(crate) outside: Namespace,
    pub(crate) a: Namespace,
    pub(crate) b: Namespace,
    pub(crate) c: Namespace,
    pub(crate) datapath: Datapath,
    pub(crate) table: Table,
    pub(crate) identity: NodeIdentity,
}

impl Nodes {
    pub(crate) fn new(sandbox: &Sandbox) -> Self {
        Self::with(sandbox, Limits::default(), Xdp::Auto)
    }

    pub(crate) fn with_limits(sandbox: &Sandbox, limits: Limits) -> Self {
        Self::with(sandbox, limits, Xdp::Auto)
    }

    pub(crate) fn with(sandbox: &Sandbox, limits: Limits, xdp: Xdp) -> Self {
        let outside = Namespace::new(sandbox);
        let (a, b, c) = (Namespace::new(sandbox), Namespace::new(sandbox), Namespace::of_pod(sandbox));
        for (file, value) in
            [("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/default/rp_filter", "0")]
        {
            std::fs::write(format!("/proc/sys/net/ipv4/{file}"), value).expect("the namespace is ours");
        }
        ip(&format!("link add eth0 type veth peer name up0 netns {}", outside.path));
        ip("address add 172.30.0.2/24 dev eth0");
        ip("address add 10.244.1.1/32 dev lo");
        ip("link set eth0 up");
        ip("route add 10.244.2.0/24 via 172.30.0.1");
        outside.run(|| {
            ip("address add 172.30.0.1/24 dev up0");
            ip("address add 10.244.2.6/32 dev lo");
            ip("link set up0 up");
            ip("route add 198.51.100.0/24 via 172.30.0.2");
            ip("route add 10.244.1.0/24 via 172.30.0.2");
        });
        for (pod, name, address) in [(&a, "pod-a", A), (&b, "pod-b", B), (&c, "pod-c", C)] {
            let address = Ipv4Addr::from(address);
            ip(&format!("link add {name} type veth peer name eth0 netns {}", pod.path));
            ip(&format!("link set {name} up"));
            ip(&format!("route add {address} dev {name}"));
            pod.run(move || {
                ip(&format!("address add {address}/32 dev eth0"));
                ip("link set eth0 up");
                ip("route add 10.244.1.1 dev eth0");
                ip("route add default via 10.244.1.1");
            });
        }
        // What pith's own pod network does for addresses that no pod has.
        ip("route add unreachable 10.244.1.0/24");
        let (datapath, table) = open(sandbox, limits, xdp);
        let mut identity = NodeIdentity::new("here");
        identity.ready.insert("here".into());
        identity.pods = Some(cidr("10.244.1.0/24"));
        Self { outside, a, b, c, datapath, table, identity }
    }

    /// The proxy ends and begins again.
    pub(crate) fn restarted(self, sandbox: &Sandbox) -> Self {
        self.restarted_with(sandbox, Xdp::Auto)
    }

    pub(crate) fn restarted_with(self, sandbox: &Sandbox, xdp: Xdp) -> Self {
        drop(self.datapath);
        let (datapath, table) = open(sandbox, Limits::default(), xdp);
        Self { datapath, table, ..self }
    }

    /// Puts a Service in force, as the driver does.
    pub(crate) fn apply(&mut self, demo: &Demo) {
        let plan = plan_service(&demo.service, [&demo.slice].into_iter(), &self.identity);
        self.apply_plan(&plan);
    }

    pub(crate) fn apply_plan(&mut self, plan: &ServicePlan) {
        for (address, announced) in &plan.outside {
            self.datapath
                .set_service_address((*address).into(), Some(*announced))
                .expect("the map can be written");
        }
        if plan.is_direct() {
            self.datapath.set_direct(true).expect("the map can be written");
        }
        let errors = self.table.apply(self.datapath.service_maps().0, plan);
        assert!(errors.is_empty(), "{errors:?}");
    }

    /// Ends flows to backends that are gone, as the driver does.
    pub(crate) fn collect(&mut self) -> Collected {
        let table = &self.table;
        let serves = |index, asked, backend| table.serves(index, asked, backend);
        let hands_on = |asked, _| table.outside(asked).is_some();
        self.datapath.collect(serves, hands_on).expect("flows can be read")
    }

    pub(crate) fn count(&self, reason: Reason) -> u64 {
        super::count(&self.datapath, reason)
    }
}

pub(crate) fn cidr(text: &str) -> Cidr {
    text.parse().expect("a network")
}

fn open(sandbox: &Sandbox, limits: Limits, xdp: Xdp) -> (Datapath, Table) {
    let mut config = sandbox.config();
    config.cluster_cidr = Some(cidr("10.244.0.0/16"));
    config.pod_interfaces = Some("pod-".into());
    config.limits = limits;
    config.xdp = xdp;
    let mut datapath = Datapath::open(&config).expect("the datapath opens");
    datapath.attach_uplink("eth0", &[NODE.into()]).expect("the uplink is there");
    datapath.set_pod_cidr(cidr("10.244.1.0/24")).expect("the map can be written");
    datapath.attach_pods().expect("the pods' links are there");
    let table = table_of(&mut datapath);
    (datapath, table)
}

/// A Service of every kind: cluster address, node port, load balancer and external address.
pub(crate) fn everywhere(protocol: Protocol, backends: &[[u8; 4]]) -> Demo {
    let mut demo = Demo::new(CLUSTER_IP, protocol, 80, 8080);
    demo.service.ports[0].node_port = Some(NODE_PORT);
    demo.service.balancer_ips = vec![BALANCER_IP.into()];
    demo.service.external_ips = vec![EXTERNAL_IP.into()];
    demo.endpoints(backends);
    demo
}

pub(crate) fn serve(namespace: &Namespace, address: [u8; 4]) {
    namespace.run(move || {
        serve_tcp(at(address, 8080));
        serve_udp(at(address, 8080));
    });
}

pub(crate) const REFUSED: Result<[u8; 4], ErrorKind> = Err(ErrorKind::ConnectionRefused);

pub(crate) fn echo(namespace: &Namespace, address: [u8; 4]) {
    namespace.run(move || {
        let listener = TcpListener::bind(at(address, 8080)).expect("a server's address");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..read]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
}

/// Sources of a Service.
pub(crate) fn range(text: &str) -> IpNet {
    text.parse().expect("a network")
}
