//! Keeping the catalog up to date with the API.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures::StreamExt;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};

use super::{
    catalog::{Catalog, ServiceFacts, ServiceKey, SliceFacts},
    server::Server,
};

/// Follows all Services. Ends never: failures are logged and tried again.
pub(crate) async fn services(client: Client, server: Arc<Server>) {
    let events = watcher(Api::<Service>::all(client), watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut seen = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => seen.clear(),
            Ok(Event::InitApply(service)) => {
                let key = service_key(&service);
                seen.insert(key.clone());
                change(&server, |catalog| catalog.set_service(key, ServiceFacts::of(&service)));
            }
            Ok(Event::InitDone) => {
                change(&server, |catalog| catalog.services_listed(&seen));
                seen = HashSet::new();
            }
            Ok(Event::Apply(service)) => {
                let key = service_key(&service);
                change(&server, |catalog| catalog.set_service(key, ServiceFacts::of(&service)));
            }
            Ok(Event::Delete(service)) => {
                change(&server, |catalog| catalog.set_service(service_key(&service), None));
            }
            Err(error) => tracing::debug!(%error, "watching Services"),
        }
    }
}

/// Follows all EndpointSlices. Ends never: failures are logged and tried again.
pub(crate) async fn slices(client: Client, server: Arc<Server>) {
    let events = watcher(Api::<EndpointSlice>::all(client), watcher::Config::default());
    let events = events.default_backoff();
    let mut events = std::pin::pin!(events);
    let mut seen: HashMap<ServiceKey, HashSet<Box<str>>> = HashMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => seen.clear(),
            Ok(Event::InitApply(slice)) => {
                let Some((key, facts)) = SliceFacts::of(&slice) else { continue };
                let name = slice.name_any();
                seen.entry(key.clone()).or_default().insert(name.as_str().into());
                change(&server, |catalog| catalog.set_slice(key, &name, Some(facts)));
            }
            Ok(Event::InitDone) => {
                change(&server, |catalog| catalog.slices_listed(&seen));
                seen = HashMap::new();
            }
            Ok(Event::Apply(slice)) => {
                let Some((key, facts)) = SliceFacts::of(&slice) else { continue };
                change(&server, |catalog| catalog.set_slice(key, &slice.name_any(), Some(facts)));
            }
            Ok(Event::Delete(slice)) => {
                let Some((key, _)) = SliceFacts::of(&slice) else { continue };
                change(&server, |catalog| catalog.set_slice(key, &slice.name_any(), None));
            }
            Err(error) => tracing::debug!(%error, "watching EndpointSlices"),
        }
    }
}

fn service_key(service: &Service) -> ServiceKey {
    ServiceKey::new(&service.namespace().unwrap_or_default(), &service.name_any())
}

fn change(server: &Server, change: impl FnOnce(&mut Catalog)) {
    change(&mut server.catalog.write().expect("nobody panics while changing the catalog"));
}
