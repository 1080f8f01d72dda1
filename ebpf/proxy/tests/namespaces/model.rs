//! The loaded programs against the model of `pith-core`: random streams of packets (sound and hostile), changes of
//! the Service, time and restarts. Both agree in verdict and bytes at every step, and a stream that shows a
//! difference is shrunk to the least that still does.

use aya::maps::{HashMap, Map, MapData};
use pith_abi::{Flow, LAYOUT, Reason, Tuple, map_name};
use pith_core::{
    host::Buffer,
    model::{Action, BALANCER, Model, NODE, NODE_PORT, SERVICE_PORT, Side, System, TARGET},
};
use pith_proxy::{
    Datapath, NodeIdentity, Uplink, plan_service,
    service::{Endpoint, Protocol, Service, ServiceName, ServicePort, Slice},
    table::Table,
};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::support::{Sandbox, ip, network::cidr, table_of};

/// Streams, and the longest of them.
const STREAMS: u32 = 60;
const EVENTS: usize = 150;

struct Kernel<'s> {
    sandbox: &'s Sandbox,
    datapath: Datapath,
    table: Table,
    events: u64,
}

impl<'s> Kernel<'s> {
    fn open(sandbox: &'s Sandbox) -> Self {
        let mut config = sandbox.config();
        config.cluster_cidr = Some(cidr("10.244.0.0/16"));
        let mut datapath = Datapath::open(&config).expect("the datapath opens");
        datapath.attach_uplink("eth0", &[NODE.into()]).expect("the uplink is there");
        datapath.set_pod_cidr(cidr("10.244.1.0/24")).expect("the map can be written");
        datapath.set_service_address(BALANCER.into(), Some(true)).expect("the map can be written");
        let table = table_of(&mut datapath);
        Self { sandbox, datapath, table, events: 0 }
    }

    fn map<V: aya::Pod>(&self, name: &str) -> HashMap<MapData, Tuple, V> {
        let path = self.sandbox.config().bpffs.join(format!("layout-{LAYOUT}/maps/{name}"));
        let map = MapData::from_pin(path).and_then(Map::from_map_data).expect("it is pinned");
        HashMap::try_from(map).expect("it is a hash map")
    }

    /// As if nothing had ever come by.
    fn forget(&mut self) {
        let mut flows = self.map::<Flow>(map_name::FLOWS);
        let keys: Vec<Tuple> = flows.keys().filter_map(Result::ok).collect();
        keys.iter().for_each(|key| flows.remove(key).expect("it was there"));
        let mut forward = self.map::<Tuple>(map_name::FORWARD);
        let keys: Vec<Tuple> = forward.keys().filter_map(Result::ok).collect();
        keys.iter().for_each(|key| forward.remove(key).expect("it was there"));
        self.serve(&[]);
    }

    fn collect(&mut self) {
        let table = &self.table;
        self.datapath
            .collect(|index, asked, backend| table.serves(index, asked, backend), |_, _| true)
            .expect("flows can be read");
    }
}

impl System for Kernel<'_> {
    fn run(&mut self, side: Side, packet: &Buffer) -> (Action, Buffer) {
        // Newer kernels run no packet without a whole header; the core alone is shown those.
        if packet.0.len() < 14 + 20 {
            return (Action::Pass, packet.clone());
        }
        self.events += 1;
        let hook = match side {
            Side::In => Uplink::Ingress,
            Side::Out => Uplink::Egress,
        };
        let replayed = self.datapath.replay(hook, &packet.0).expect("a packet can be replayed");
        let action = match replayed.verdict {
            -1 => Action::Pass,
            2 => Action::Drop,
            7 => Action::Redirect,
            other => panic!("{other} is no verdict of ours"),
        };
        (action, Buffer(replayed.packet))
    }

    fn serve(&mut self, backends: &[[u8; 4]]) {
        let name = ServiceName::new("default", "demo");
        let ports = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)];
        let service = Service {
            cluster_ips: vec![[10, 96, 0, 10].into()],
            balancer_ips: vec![BALANCER.into()],
            ports: ports
                .map(|(name, protocol)| ServicePort {
                    name: name.into(),
                    protocol,
                    port: SERVICE_PORT,
                    node_port: Some(NODE_PORT),
                })
                .into(),
            ..Service::named(name.clone())
        };
        let slice = Slice {
            service: name,
            ports: ports.map(|(name, protocol)| (name.into(), protocol, TARGET)).into(),
            endpoints: backends.iter().map(|backend| Endpoint::ready((*backend).into())).collect(),
        };
        let plan = plan_service(&service, [&slice].into_iter(), &NodeIdentity::new("node"));
        let errors = self.table.apply(self.datapath.service_maps().0, &plan);
        assert!(errors.is_empty(), "{errors:?}");
        self.collect();
    }

    /// The clock cannot be turned on, so all that is remembered of it is turned back.
    fn pass(&mut self, time_ns: u64) {
        let mut flows = self.map::<Flow>(map_name::FLOWS);
        let all: Vec<(Tuple, Flow)> = flows.iter().filter_map(Result::ok).collect();
        for (key, flow) in all {
            let last_ns = flow.last_ns.saturating_sub(time_ns);
            flows.insert(key, Flow { last_ns, ..flow }, 0).expect("there is room for it");
        }
        self.collect();
    }

    fn restart(&mut self) {
        let events = self.events;
        *self = Self { events, ..Self::open(self.sandbox) };
    }
}

#[test]
fn the_programs_do_what_the_model_says() {
    Sandbox::run("model", |sandbox| {
        ip("link add eth0 type veth peer name up0");
        ip("address add 172.30.0.2/24 dev eth0");
        ip("link set eth0 up");
        let kernel = std::cell::RefCell::new(Kernel::open(sandbox));
        let config = Config { cases: STREAMS, failure_persistence: None, ..Config::default() };
        let outcome = TestRunner::new(config).run(&vec(any::<[u8; 4]>(), 1..EVENTS), |stream| {
            let mut kernel = kernel.borrow_mut();
            kernel.forget();
            let mut model = Model::default();
            for (number, numbers) in stream.into_iter().enumerate() {
                let event = model.event(numbers);
                if let Err(difference) = model.step(&mut *kernel, &event) {
                    return Err(TestCaseError::fail(format!("event {number}, {event:02x?}: {difference}")));
                }
            }
            Ok(())
        });
        if let Err(difference) = outcome {
            panic!("{difference}");
        }
        let kernel = kernel.into_inner();
        let reasons = kernel.datapath.reasons().expect("counters can be read");
        eprintln!("{} packets agree: {reasons:?}", kernel.events);
        for reason in [
            Reason::NodePortLocal,
            Reason::NodePortRemote,
            Reason::ServiceLocal,
            Reason::ServiceRemote,
            Reason::FlowForward,
            Reason::FlowReply,
            Reason::Masqueraded,
            Reason::ServiceNoFlow,
            Reason::ServicePing,
        ] {
            let count = reasons.iter().find(|(found, _)| *found == reason).map_or(0, |(_, count)| *count);
            assert!(count > 0, "{} never came up", reason.name());
        }
    });
}
