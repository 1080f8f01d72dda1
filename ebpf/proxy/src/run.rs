//! The driver: watches the API and keeps the maps at what the plan says.
//!
//! One task owns everything. It waits for events, takes in all that are there, then plans and writes what
//! changed, so that a burst of changes to a Service costs one generation.

use std::{collections::BTreeSet, fmt::Debug, net::Ipv4Addr, pin::Pin};

use futures::{FutureExt, Stream, StreamExt, stream};
use k8s_openapi::api::{
    core::v1::{Node as ApiNode, Service as ApiService},
    discovery::v1::EndpointSlice as ApiSlice,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use pith_abi::NodeClass;
use serde::de::DeserializeOwned;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    cidr::Cidr,
    datapath::{Datapath, DatapathError, be},
    flows::{self, COLLECT_EVERY},
    plan::{NodeIdentity, ServicePlan},
    service::{self, ServiceName},
    table::{ApplyError, Table},
    world::{Change, Event, World},
};

/// Events taken in before the maps are written, so that a steady stream cannot put that off for ever.
const MAX_BATCH: usize = 4096;

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
    let mut events = stream::select_all(watches(&client));
    let mut driver = Driver::new(datapath, node)?;
    let mut collect = interval(COLLECT_EVERY);
    collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // Nothing is in flight between two events.
            () = cancel.cancelled() => return Ok(()),
            // A stream's next() holds nothing: what it has not returned yet it returns next time.
            event = events.next() => {
                driver.world.take(event.ok_or(RunError::WatchesEnded)?);
                for _ in 1..MAX_BATCH {
                    // `None` in both cases: nothing there now, or the end, which the next round sees.
                    let Some(event) = events.next().now_or_never().flatten() else { break };
                    driver.world.take(event);
                }
                driver.sync().await?;
            }
            // A tick that is not taken comes again.
            _ = collect.tick() => driver.collect(),
        }
    }
}

/// The watches of all kinds as one stream each of events.
fn watches(client: &Client) -> Vec<Events> {
    vec![
        watch(Api::<ApiService>::all(client.clone()), service::service, Event::Service),
        watch(Api::<ApiSlice>::all(client.clone()), service::slice, Event::Slice),
        watch(Api::<ApiNode>::all(client.clone()), |node| Some(service::node(node)), Event::Node),
    ]
}

fn watch<K, T>(api: Api<K>, parse: fn(&K) -> Option<T>, event: fn(Change<T>) -> Event) -> Events
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    T: Send + 'static,
{
    let name = |object: &K| ServiceName::new(&object.namespace().unwrap_or_default(), &object.name_any());
    // On an error the watcher lists again after a pause, and the list says what was missed.
    let stream = watcher::watcher(api, watcher::Config::default()).default_backoff();
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
    /// Services of whose plan a part could not be written; tried again with every sync.
    failed: BTreeSet<ServiceName>,
    others: BTreeSet<Ipv4Addr>,
    adopting: bool,
}

impl Driver {
    fn new(datapath: Datapath, node: NodeIdentity) -> Result<Self, DatapathError> {
        let table = Table::adopt(&datapath.maps, datapath.table_limits)?;
        let known = datapath.maps.node_classes()?;
        let others = known.iter().filter(|(_, class)| class.0 & NodeClass::OTHER != 0);
        let others = others.map(|(addr_be, _)| Ipv4Addr::from(addr_be.to_ne_bytes())).collect();
        Ok(Self { datapath, table, world: World::new(node), failed: BTreeSet::new(), others, adopting: true })
    }

    /// Writes what changed. Until everything was listed once nothing is written: what a former proxy left
    /// is older, but whole.
    async fn sync(&mut self) -> Result<(), DatapathError> {
        if !self.world.complete() {
            return Ok(());
        }
        if let Some((pod_cidr, others)) = self.world.take_nodes() {
            self.set_nodes(pod_cidr, &others)?;
        }
        for service in std::mem::take(&mut self.failed) {
            self.world.mark(service);
        }
        for plan in self.world.take_dirty() {
            self.apply(&plan);
            // A cold start writes some hundred thousand entries: let others have their turn.
            tokio::task::consume_budget().await;
        }
        if self.adopting {
            self.table.finish_adoption(&mut self.datapath.maps).map_err(DatapathError::Map)?;
            self.adopting = false;
            info!(services = self.table.names().count(), "Services are in the maps");
        }
        Ok(())
    }

    fn apply(&mut self, plan: &ServicePlan) {
        for error in self.table.apply(&mut self.datapath.maps, plan) {
            // The rest of the plan is in force, and this part is tried again.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            match &error {
                ApplyError::Limit { .. } => warn!(%error, "raise the limit in the proxy's configuration"),
                ApplyError::Taken { .. } | ApplyError::Map { .. } => warn!(%error, cause, "not applied"),
            }
            self.failed.insert(plan.service.clone());
        }
    }

    fn set_nodes(
        &mut self,
        pod_cidr: Option<Cidr>,
        others: &BTreeSet<Ipv4Addr>,
    ) -> Result<(), DatapathError> {
        if let Some(cidr) = pod_cidr {
            self.datapath.set_pod_cidr(cidr)?;
        }
        let own = self.datapath.own.clone();
        for gone in self.others.difference(others).filter(|address| !own.contains(address)) {
            self.datapath.maps.remove_node_class(be(*gone))?;
        }
        for new in others.difference(&self.others).filter(|address| !own.contains(address)) {
            self.datapath.maps.set_node_class(be(*new), NodeClass(NodeClass::OTHER))?;
        }
        self.others.clone_from(others);
        Ok(())
    }

    fn collect(&mut self) {
        let table = &self.table;
        let serves = |service, addr_be: u32, port_be: u16| {
            let address = Ipv4Addr::from(addr_be.to_ne_bytes());
            table.serves(service, std::net::SocketAddrV4::new(address, u16::from_be(port_be)))
        };
        match flows::collect(&mut self.datapath.maps, flows::now_ns(), serves) {
            Ok(collected) => debug!(?collected, "flows"),
            Err(error) => warn!(%error, "flows that are over were not collected; tried again soon"),
        }
    }
}
