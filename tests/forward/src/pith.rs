//! pith's own datapath as a contender: fed with API objects, as its proxy is by the watch.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::Ipv6Net;
use k8s_openapi::api::{core::v1::Service as ApiService, discovery::v1::EndpointSlice as ApiSlice};
use pith_proxy::service::{self, ServiceName};
use pith_proxy::table::Table;
use pith_proxy::world::{Change, Event, World};
use pith_proxy::{Cidr, Config, Datapath, NodeIdentity, ServicePlan};
use serde_json::json;

use crate::cluster::{CLUSTER_CIDR, PORT, Service, TARGET_PORT};
use crate::ground::{BpfFolder, Cgroup, Ground, NODE, POD_PREFIX, UPLINK};

/// The node's address in IPv6, and a pod's of it. No interface has them: packets of IPv6 are only run through programs.
pub(crate) const NODE6: Ipv6Addr = Ipv6Addr::new(0xFD30, 0, 0, 0, 0, 0, 0, 2);
pub(crate) const POD6: Ipv6Addr = Ipv6Addr::new(0xFD10, 1, 0, 0, 0, 0, 0, 5);
/// EndpointSlices hold at most so many endpoints (the controller's default).
const ENDPOINTS_A_SLICE: usize = 100;

/// A loaded datapath with what its proxy keeps in memory. Fields are dropped in order.
pub(crate) struct Pith {
    pub(crate) datapath: Datapath,
    world: World,
    table: Table,
    folder: BpfFolder,
    pub(crate) cgroup: Cgroup,
}

impl Pith {
    pub(crate) fn new(ground: &Ground) -> Result<Self> {
        Self::open(ground, false)
    }

    /// On a node that has IPv6 too.
    pub(crate) fn dual(ground: &Ground) -> Result<Self> {
        Self::open(ground, true)
    }

    fn open(ground: &Ground, dual: bool) -> Result<Self> {
        let (folder, cgroup) = (BpfFolder::new()?, Cgroup::new()?);
        let mut config = Config::new(folder.path(), &cgroup.folder);
        config.dual = dual;
        config.cluster_cidr = Some(cidr(CLUSTER_CIDR)?);
        config.pod_interfaces = Some(POD_PREFIX.to_owned());
        let mut datapath = ground.node.run(|| {
            let mut datapath = Datapath::open(&config).context("load pith's datapath")?;
            let own = [NODE.into(), NODE6.into()];
            let own = if dual { &own[..] } else { &own[..1] };
            datapath.attach_uplink(UPLINK, own).context("attach pith to the uplink")?;
            datapath.set_pod_cidr(cidr("10.244.0.0/16")?).context("tell pith its pods")?;
            if dual {
                let pods = Ipv6Net::new(POD6, 64).context("a network")?;
                datapath.set_pod_cidr6(pods).context("tell pith its pods")?;
                // Their links have the programs of a node that has IPv4 alone.
                return Ok(datapath);
            }
            datapath.attach_pods().context("attach pith to the pods' links")?;
            Ok(datapath)
        })?;
        let (maps, limits) = datapath.service_maps();
        let table = Table::adopt(maps, limits).context("read pith's maps")?;
        Ok(Self { datapath, world: World::new(NodeIdentity::new("node")), table, folder, cgroup })
    }

    /// Takes Services in and writes them; returns what that took from parsed objects to maps.
    pub(crate) fn apply(&mut self, services: &[Service]) -> Result<Duration> {
        let events = services.iter().map(events).collect::<Result<Vec<_>>>()?;
        let begin = Instant::now();
        for event in events.into_iter().flatten() {
            self.world.take(event);
        }
        self.write()?;
        Ok(begin.elapsed())
    }

    /// The Service's endpoints changed: from the event to the maps.
    pub(crate) fn change(&mut self, service: &Service) -> Result<Duration> {
        let slices = slices(service)?;
        let begin = Instant::now();
        for event in slices {
            self.world.take(event);
        }
        self.write()?;
        Ok(begin.elapsed())
    }

    /// Writes a Service's plan as it is.
    pub(crate) fn apply_plan(&mut self, plan: &ServicePlan) -> Result<()> {
        if plan.is_direct() {
            self.datapath.set_direct(true).context("hand packets on")?;
        }
        match self.table.apply(self.datapath.service_maps().0, plan).into_iter().next() {
            Some(error) => bail!("pith: {error}"),
            None => Ok(()),
        }
    }

    fn write(&mut self) -> Result<()> {
        let (maps, _) = self.datapath.service_maps();
        for plan in self.world.take_dirty() {
            if let Some(error) = self.table.apply(maps, &plan).into_iter().next() {
                bail!("pith: {error}");
            }
        }
        Ok(())
    }
}

impl Drop for Pith {
    fn drop(&mut self) {
        if let Err(error) = Datapath::remove(&self.folder.path()) {
            eprintln!("remove pith's pins: {error}");
        }
    }
}

fn cidr(text: &str) -> Result<Cidr> {
    text.parse().with_context(|| format!("{text} is a network"))
}

fn events(service: &Service) -> Result<Vec<Event>> {
    let object: ApiService = serde_json::from_value(json!({
        "metadata": { "namespace": Service::NAMESPACE, "name": service.name() },
        "spec": {
            "type": if service.node_port.is_some() { "NodePort" } else { "ClusterIP" },
            "clusterIP": service.address,
            "clusterIPs": [service.address],
            "ports": [{
                "name": Service::PORT_NAME, "port": PORT, "protocol": "TCP",
                "targetPort": TARGET_PORT, "nodePort": service.node_port,
            }],
        },
    }))
    .context("a Service")?;
    let name = ServiceName::new(Service::NAMESPACE, &service.name());
    let mut events = vec![Event::Service(Change::Is(name, service::service(&object)))];
    events.extend(slices(service)?);
    Ok(events)
}

fn slices(service: &Service) -> Result<Vec<Event>> {
    service
        .endpoints
        .chunks(ENDPOINTS_A_SLICE)
        .enumerate()
        .map(|(at, part)| slice(service, at, part))
        .collect()
}

fn slice(service: &Service, at: usize, endpoints: &[Ipv4Addr]) -> Result<Event> {
    let name = format!("{}-{at}", service.name());
    let endpoint = |address: &Ipv4Addr| json!({ "addresses": [address], "conditions": { "ready": true } });
    let object: ApiSlice = serde_json::from_value(json!({
        "metadata": {
            "namespace": Service::NAMESPACE, "name": name,
            "labels": { "kubernetes.io/service-name": service.name() },
        },
        "addressType": "IPv4",
        "ports": [{ "name": Service::PORT_NAME, "port": TARGET_PORT, "protocol": "TCP" }],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    }))
    .context("an EndpointSlice")?;
    Ok(Event::Slice(Change::Is(ServiceName::new(Service::NAMESPACE, &name), service::slice(&object))))
}
