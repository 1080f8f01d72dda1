//! Endpoints and EndpointSlices of Services that select pods.
//!
//! ```text
//!   pods that match ─▶ backend (pod × Service → endpoint) ─▶ slices  ─▶ create | update | delete
//!                                                         └▶ legacy  ─▶ the one Endpoints object
//! ```
//! A changed pod touches one slice; what is equal is never written. Services without a selector, and slices
//! that others manage, are left alone.

mod backend;
mod legacy;
mod slices;

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::DeleteParams;
use pith_informer::{Change, Key, Outcome, Queue, Store, work};
use tokio_util::sync::CancellationToken;

use self::slices::Action;
use crate::cluster::{Cluster, service_term};
use crate::error::Result;

/// Services in hand at once.
const WORKERS: usize = 8;

pub(crate) fn controller(cluster: &Arc<Cluster>, cancel: CancellationToken) -> BoxFuture<'static, ()> {
    let queue = Queue::new();
    let to = queue.clone();
    cluster.services.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let (services, to) = (cluster.services.clone(), queue.clone());
    cluster.pods.on_change(move |change| pod_changed(change, &services, &to));
    let (services, to) = (cluster.services.clone(), queue.clone());
    cluster.nodes.on_change(move |change| {
        let zone = |node: &Option<Arc<_>>| node.as_ref().and_then(|node| backend::zone(node));
        if zone(&change.old) != zone(&change.new) {
            services.keys().into_iter().for_each(|key| to.add(key));
        }
    });
    let to = queue.clone();
    cluster.slices.on_change(move |change| {
        change.states().filter_map(|slice| slices::service_of(slice)).for_each(|key| to.add(key));
    });
    let to = queue.clone();
    cluster.endpoints.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let cluster = cluster.clone();
    Box::pin(async move {
        tokio::join!(
            cluster.services.synced(),
            cluster.pods.synced(),
            cluster.nodes.synced(),
            cluster.slices.synced(),
            cluster.endpoints.synced(),
        );
        work("endpoints", queue, WORKERS, cancel, |key| reconcile(&cluster, key)).await;
    })
}

/// Queues the Services that select the pod, or did, where something that an endpoint shows has changed.
fn pod_changed(change: &Change<Pod>, services: &Store<Service>, queue: &Queue<Key>) {
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && old.metadata.labels == new.metadata.labels
        && backend::facts(old) == backend::facts(new)
    {
        return;
    }
    let namespace = change.latest().metadata.namespace.clone().unwrap_or_default();
    for service in services.in_namespace(&namespace) {
        if change.states().any(|pod| backend::selected(&service, pod)) {
            queue.add(Key::of(service.as_ref()));
        }
    }
}

async fn reconcile(cluster: &Cluster, key: Key) -> Result<Outcome> {
    let Some(service) = cluster.services.get(&key) else {
        // The slices carry an owner reference and are collected as garbage; the Endpoints object does not.
        if let Some(orphan) = cluster.endpoints.get(&key).filter(|endpoints| legacy::is_ours(endpoints)) {
            cluster.delete(&cluster.endpoints, orphan.as_ref(), DeleteParams::default()).await?;
        }
        return Ok(Outcome::Done);
    };
    if !backend::is_managed(&service) {
        return Ok(Outcome::Done);
    }
    let mut pods = cluster.pods.in_namespace(&key.namespace);
    pods.retain(|pod| backend::selected(&service, pod));
    let (slices, endpoints) =
        tokio::join!(write_slices(cluster, &service, &pods), write_endpoints(cluster, &service, &pods));
    slices.and(endpoints).map(|()| Outcome::Done)
}

async fn write_slices(cluster: &Cluster, service: &Service, pods: &[Arc<Pod>]) -> Result<()> {
    let key = Key::of(service);
    let zone = |name: &str| cluster.nodes.get(&Key::cluster(name)).and_then(|node| backend::zone(&node));
    let groups = backend::groups(service, pods, zone);
    let mut existing = cluster.slices.find(&service_term(&key));
    existing.retain(|slice| slices::is_ours(slice));
    for action in slices::plan(service, groups, &existing) {
        let result = match action {
            Action::Create(slice) => create_slice(cluster, &slice).await,
            Action::Update(slice) => cluster.replace(&cluster.slices, &slice).await.map(drop),
            Action::Delete(slice) => {
                cluster.delete::<EndpointSlice>(&cluster.slices, &slice, DeleteParams::default()).await
            }
        };
        match result {
            Err(error) if error.is_not_found() || error.is_namespace_terminating() => {}
            other => other?,
        }
    }
    Ok(())
}

async fn create_slice(cluster: &Cluster, slice: &EndpointSlice) -> Result<()> {
    cluster.create(&cluster.slices, slice).await.map(drop)
}

async fn write_endpoints(cluster: &Cluster, service: &Service, pods: &[Arc<Pod>]) -> Result<()> {
    let existing = cluster.endpoints.get(&Key::of(service));
    let Some(desired) = legacy::plan(service, pods, existing.as_deref()) else { return Ok(()) };
    let result = match existing {
        None => cluster.create::<Endpoints>(&cluster.endpoints, &desired).await,
        Some(_) => cluster.replace(&cluster.endpoints, &desired).await,
    };
    match result {
        Err(error) if error.is_not_found() || error.is_namespace_terminating() => Ok(()),
        other => other.map(drop),
    }
}
