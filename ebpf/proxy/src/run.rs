//! The driver: watches the API and keeps the maps at what the plan says.
//!
//! One task owns everything but the pods' links and the events for users, which are seen to beside it. It waits for
//! changes, takes in all that are there, then plans and writes, so that a burst of changes to a Service costs one
//! generation.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt::Debug,
    future::pending,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    pin::{Pin, pin},
    time::{Duration, Instant},
};

use futures::{FutureExt, Stream, StreamExt, stream};
use k8s_openapi::api::{
    core::v1::{Node as ApiNode, Pod as ApiPod, Service as ApiService},
    discovery::v1::EndpointSlice as ApiSlice,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use pith_abi::{NodeClass, Reason, map_name};
use serde::de::DeserializeOwned;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    datapath::{Datapath, DatapathError},
    flows::COLLECT_EVERY,
    health,
    limit::Limit,
    news::{self, News, Newsroom},
    plan::{NodeIdentity, ServicePlan},
    pods::{self, PodLinks},
    service::{self, ServiceName, ipv6},
    table::{ApplyError, Table},
    world::{self, Change, Event, Nodes, World},
};

/// Events taken in before the maps are written, so that a steady stream cannot put that off for ever.
const MAX_BATCH: usize = 4096;

/// How soon flows to backends that are gone are ended; many may go at once.
const COLLECT_SOON: Duration = Duration::from_millis(200);

/// Why the driver ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error("the watches of the API ended")]
    WatchesEnded,
}

type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// Keeps the maps at what the API says, until `cancel`. Then everything stays attached and in force.
pub async fn run(
    client: Client,
    datapath: Datapath,
    node: NodeIdentity,
    cancel: CancellationToken,
) -> Result<(), RunError> {
    let mut events = stream::select_all(watches(&client, &node));
    let (newsroom, news) = Newsroom::new();
    let mut telling = pin!(news::send(client, node.name.clone(), news));
    let mut driver = Driver::new(datapath, node, newsroom)?;
    let mut pods = pin!(follow_pods(driver.datapath.pods.take()));
    let mut collect = interval(COLLECT_EVERY);
    collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // Nothing is in flight between two events.
            () = cancel.cancelled() => return Ok(()),
            // A stream's next() holds nothing: what it has not returned yet it returns next time.
            event = events.next() => {
                let begun = Instant::now();
                driver.take(event.ok_or(RunError::WatchesEnded)?);
                for _ in 1..MAX_BATCH {
                    // `None` in both cases: nothing there now, or the end, which the next round sees.
                    let Some(event) = events.next().now_or_never().flatten() else { break };
                    driver.take(event);
                }
                driver.sync(begun).await?;
                if driver.table.take_departed() {
                    collect.reset_after(COLLECT_SOON);
                }
            }
            // These two are not dropped when another arm is taken, and go on where they were.
            ended = &mut pods => match ended? {},
            never = &mut telling => match never {},
            // A tick that is not taken comes again.
            _ = collect.tick() => driver.collect(),
        }
    }
}

/// Gives pods' links their programs, where somebody asked for that.
async fn follow_pods(links: Option<PodLinks>) -> Result<Infallible, DatapathError> {
    match links {
        Some(links) => pods::follow(links).await,
        None => pending().await,
    }
}

/// The watches of all kinds as one stream each of events.
fn watches(client: &Client, node: &NodeIdentity) -> Vec<Events> {
    let all = watcher::Config::default();
    let here = watcher::Config::default().fields(&format!("spec.nodeName={}", node.name));
    vec![
        watch(Api::<ApiService>::all(client.clone()), all.clone(), service::service, Event::Service),
        watch(Api::<ApiSlice>::all(client.clone()), all.clone(), service::slice, Event::Slice),
        watch(Api::<ApiNode>::all(client.clone()), all, |node| Some(service::node(node)), Event::Node),
        watch(Api::<ApiPod>::all(client.clone()), here, service::host_ports, Event::Pod),
    ]
}

fn watch<K, T>(
    api: Api<K>,
    config: watcher::Config,
    parse: fn(&K) -> Option<T>,
    event: fn(Change<T>) -> Event,
) -> Events
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    T: Send + 'static,
{
    let name = |object: &K| ServiceName::new(&object.namespace().unwrap_or_default(), &object.name_any());
    // On an error the watcher lists again after a pause, and the list says what was missed.
    let stream = watcher::watcher(api, config).default_backoff();
    Box::pin(stream.filter_map(move |result| async move {
        match result {
            Ok(watcher::Event::Init) => Some(event(Change::ListBegins)),
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                Some(event(Change::Is(name(&object), parse(&object))))
            }
            Ok(watcher::Event::Delete(object)) => Some(event(Change::Gone(name(&object)))),
            Ok(watcher::Event::InitDone) => Some(event(Change::ListEnds)),
            Err(error) => {
                debug!(%error, "a watch was interrupted and begins again");
                None
            }
        }
    }))
}

struct Driver {
    datapath: Datapath,
    table: Table,
    world: World,
    /// Services of whose plan a part could not be written; tried again with every sync. With each, the limits
    /// that were told.
    failed: BTreeMap<ServiceName, BTreeSet<Limit>>,
    news: Newsroom,
    /// How often a flow had found the table full.
    flows_refused: u64,
    others: BTreeSet<IpAddr>,
    /// Addresses that are reached from outside: which Services say so, and whether this node announces it.
    outside: BTreeMap<IpAddr, BTreeMap<ServiceName, bool>>,
    /// Of those, what a former proxy left and nobody has said again.
    unclaimed: BTreeSet<IpAddr>,
    health: health::Servers,
    /// Services whose packets are handed on.
    direct: BTreeSet<ServiceName>,
    adopting: bool,
}

impl Driver {
    fn new(mut datapath: Datapath, node: NodeIdentity, news: Newsroom) -> Result<Self, DatapathError> {
        let flows_refused = datapath.maps.reason(Reason::FlowTableFull)?;
        if let Some((interface, why)) = datapath.no_xdp.clone() {
            news.tell(News::NoXdp { interface, why });
        }
        let mut table = Table::adopt(&mut datapath.maps, datapath.table_limits)?;
        let own = datapath.own.iter().filter_map(ipv6).collect();
        table.hold(&mut datapath.maps, &nodes_name(), &own)?;
        let known = datapath.maps.node_classes()?;
        let of = |bit| -> BTreeSet<IpAddr> {
            let those = known.iter().filter(move |(_, class)| class.0 & bit != 0);
            let place = |addr_be: &u32| SocketAddrV4::new(Ipv4Addr::from(addr_be.to_ne_bytes()), 0);
            those.map(|(addr_be, _)| datapath.maps.real(place(addr_be)).ip()).collect()
        };
        let (others, unclaimed) = (of(NodeClass::OTHER), of(NodeClass::SERVICE));
        Ok(Self {
            datapath,
            table,
            world: World::new(node),
            failed: BTreeMap::new(),
            news,
            flows_refused,
            others,
            outside: BTreeMap::new(),
            unclaimed,
            health: health::Servers::default(),
            direct: BTreeSet::new(),
            adopting: true,
        })
    }

    fn take(&mut self, event: Event) {
        if let Event::Service(world::Change::Is(name, Some(service))) = &event {
            for misread in &service.annotations.misread {
                self.news.tell(News::Misread { service: name.clone(), misread: misread.clone() });
            }
        }
        self.datapath.metrics.seen(&event);
        self.world.take(event);
    }

    /// Writes what changed. Until everything was listed once nothing is written: what a former proxy left
    /// is older, but whole.
    async fn sync(&mut self, begun: Instant) -> Result<(), DatapathError> {
        if !self.world.complete() {
            return Ok(());
        }
        if let Some(nodes) = self.world.take_nodes(&self.datapath.near) {
            self.set_nodes(nodes)?;
        }
        for service in self.failed.keys() {
            self.world.mark(service.clone());
        }
        for plan in self.world.take_dirty() {
            self.set_direct(&plan)?;
            self.apply(&plan);
            self.set_outside(&plan)?;
            self.health.set(&plan.service, plan.health);
            // A cold start writes some hundred thousand entries: let others have their turn.
            tokio::task::consume_budget().await;
        }
        if self.adopting {
            self.table.finish_adoption(&mut self.datapath.maps).map_err(DatapathError::Map)?;
            for address in std::mem::take(&mut self.unclaimed) {
                self.datapath.set_service_address(address, None)?;
            }
            self.adopting = false;
            info!(services = self.table.names().count(), "Services are in the maps");
        }
        for (map, entries, max) in self.table.fill() {
            self.datapath.metrics.holds(map, entries, max);
        }
        self.datapath.metrics.synced(begun.elapsed(), self.failed.len());
        Ok(())
    }

    /// Writes a Service's plan. Where a part of it cannot be written the rest is in force, and all of it is tried
    /// again; a limit is told once, until all of the plan could be written.
    fn apply(&mut self, plan: &ServicePlan) {
        let told = self.failed.remove(&plan.service);
        let errors = self.table.apply(&mut self.datapath.maps, plan);
        if errors.is_empty() {
            return;
        }
        let mut told = told.unwrap_or_default();
        for error in errors {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            match error {
                ApplyError::Limit { limit, max, .. } => {
                    if told.insert(limit) {
                        warn!(%error, option = limit.option(), "not applied");
                        let service = plan.service.clone();
                        self.news.tell(News::LimitReached { service, limit, max });
                    }
                }
                ApplyError::Taken { .. } | ApplyError::Map { .. } => warn!(%error, cause, "not applied"),
            }
        }
        self.failed.insert(plan.service.clone(), told);
    }

    /// Before the first packet is handed on, those that follow have to be looked for. When no Service wants it any more,
    /// [`collect`](Self::collect) says when the last flow has ended.
    fn set_direct(&mut self, plan: &ServicePlan) -> Result<(), DatapathError> {
        if !plan.is_direct() {
            self.direct.remove(&plan.service);
            return Ok(());
        }
        self.direct.insert(plan.service.clone());
        self.datapath.set_direct(true)
    }

    /// Says at which addresses a Service is reached from outside. Several may share one.
    fn set_outside(&mut self, plan: &ServicePlan) -> Result<(), DatapathError> {
        let four = plan.outside.iter().map(|(address, here)| (IpAddr::from(*address), *here));
        let six = plan.six.outside.iter().map(|(address, here)| (IpAddr::from(*address), *here));
        let outside: BTreeMap<IpAddr, bool> = four.chain(six).collect();
        let mut changed: BTreeSet<IpAddr> = outside.keys().copied().collect();
        for (address, services) in &mut self.outside {
            if services.contains_key(&plan.service) && !outside.contains_key(address) {
                services.remove(&plan.service);
                changed.insert(*address);
            }
        }
        for address in changed {
            let services = self.outside.entry(address).or_default();
            let before = announced(services);
            if let Some(here) = outside.get(&address) {
                services.insert(plan.service.clone(), *here);
            }
            let now = announced(services);
            if now.is_none() {
                self.outside.remove(&address);
            }
            self.unclaimed.remove(&address);
            // Also where it is as before, when the proxy has just begun: what a former one said may differ.
            if now != before || self.adopting {
                self.datapath.set_service_address(address, now)?;
            }
        }
        Ok(())
    }

    fn set_nodes(&mut self, nodes: Nodes) -> Result<(), DatapathError> {
        if let Some(cidr) = nodes.pods {
            self.datapath.set_pod_cidr(cidr)?;
        }
        if let Some(cidr) = nodes.pods6 {
            self.datapath.set_pod_cidr6(cidr)?;
        }
        for gone in self.others.difference(&nodes.others) {
            self.datapath.forget_node(*gone)?;
        }
        for new in nodes.others.difference(&self.others) {
            self.datapath.set_other_node(*new)?;
        }
        let known = self.datapath.own.iter().chain(&nodes.others).filter_map(ipv6).collect();
        self.table.hold(&mut self.datapath.maps, &nodes_name(), &known).map_err(DatapathError::Map)?;
        self.others = nodes.others;
        Ok(())
    }

    fn collect(&mut self) {
        if let Err(error) = self.table.tick(&mut self.datapath.maps) {
            warn!(%error, "backends that are gone are remembered longer than they need");
        }
        // Before everything was listed nothing is known to be gone.
        let (table, world, adopting) = (&self.table, &self.world, self.adopting);
        let serves = |index, asked, backend| adopting || table.serves(index, asked, backend);
        let hands_on = |asked, node| {
            let service = table.outside(asked);
            adopting || service.is_some_and(|service| world.has_endpoint_at(service, node))
        };
        match self.datapath.collect(serves, hands_on) {
            Ok(collected) => {
                debug!(?collected, "flows");
                let direct = self.adopting || !self.direct.is_empty() || collected.handed_on > 0;
                if !direct && let Err(error) = self.datapath.set_direct(false) {
                    warn!(%error, "flows that are handed on are still looked for, though there are none");
                }
                let Datapath { metrics, max_flows, .. } = &self.datapath;
                metrics.holds(map_name::FLOWS, collected.live, *max_flows);
                metrics.holds(map_name::HANDED_ON, collected.handed_on, *max_flows);
            }
            Err(error) => warn!(%error, "flows that are over were not collected; tried again soon"),
        }
        if !adopting && let Err(error) = self.datapath.collect_addresses(&self.table.stand_ins()) {
            warn!(%error, "IPv6 addresses of former clients stay in the maps; tried again soon");
        }
        match self.datapath.maps.reason(Reason::FlowTableFull) {
            Ok(refused) if refused > self.flows_refused => {
                let (refused, before) = (refused, std::mem::replace(&mut self.flows_refused, refused));
                let max = self.datapath.max_flows;
                self.news.tell(News::FlowTableFull { refused: refused - before, max });
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "whether the flow table is full is not known"),
        }
    }
}

/// In whose name nodes' addresses are held; no Service has it.
fn nodes_name() -> ServiceName {
    ServiceName("nodes".into())
}

/// Whether this node announces an address; `None` where no Service has it.
fn announced(services: &BTreeMap<ServiceName, bool>) -> Option<bool> {
    (!services.is_empty()).then(|| services.values().any(|here| *here))
}
