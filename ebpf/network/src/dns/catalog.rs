//! What the cluster's names stand for: the little that names need of Services and EndpointSlices.
//!
//! Invariant: each Service's entry is a pure function of the Service and its slices as last seen, in
//! whatever order they were seen.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::ResourceExt;

use super::question::dash;

/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ServiceKey {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

impl ServiceKey {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// What a Service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its own addresses, of both families where it has them.
    Cluster(Vec<IpAddr>),
    /// Its endpoints.
    Headless,
    /// Another name.
    External(Box<str>),
}

/// A named port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Port {
    pub(crate) name: Box<str>,
    /// Lower case, as in names.
    pub(crate) protocol: Box<str>,
    pub(crate) port: u16,
}

/// What names need of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceFacts {
    pub(crate) kind: Kind,
    pub(crate) ports: Vec<Port>,
}

impl ServiceFacts {
    /// `None` for a Service that has no name yet: it waits for its address.
    pub(crate) fn of(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let kind = if spec.type_.as_deref() == Some("ExternalName") {
            Kind::External(spec.external_name.as_deref()?.into())
        } else {
            let texts = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
            let texts: Vec<&String> = texts.collect();
            if texts.iter().any(|text| *text == "None") {
                Kind::Headless
            } else {
                let mut addresses: Vec<IpAddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
                addresses.sort_unstable();
                addresses.dedup();
                if addresses.is_empty() {
                    return None;
                }
                Kind::Cluster(addresses)
            }
        };
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            Some(Port {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: protocol(port.protocol.as_deref()),
                port: u16::try_from(port.port).ok()?,
            })
        });
        Some(Self { kind, ports: ports.collect() })
    }
}

/// One address of a ready endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) address: IpAddr,
    pub(crate) hostname: Option<Box<str>>,
}

impl Endpoint {
    /// Its label below the Service's name.
    pub(crate) fn label(&self) -> String {
        self.hostname.as_deref().map_or_else(|| dash(self.address), str::to_owned)
    }
}

/// What names need of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SliceFacts {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) ports: Vec<Port>,
}

impl SliceFacts {
    /// Its Service and what it says; `None` for a slice of no Service. A Service that publishes
    /// endpoints before they are ready has them marked ready by the endpoints' controller.
    pub(crate) fn of(slice: &EndpointSlice) -> Option<(ServiceKey, Self)> {
        let service = slice.labels().get(SERVICE_NAME)?;
        let key = ServiceKey::new(&slice.namespace()?, service);
        let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        });
        let endpoints = ready.flat_map(|endpoint| {
            let hostname = endpoint.hostname.as_deref().filter(|hostname| !hostname.is_empty());
            let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
            addresses.map(move |address| Endpoint { address, hostname: hostname.map(Into::into) })
        });
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some(Port {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: protocol(port.protocol.as_deref()),
                port: u16::try_from(port.port?).ok()?,
            })
        });
        Some((key, Self { endpoints: endpoints.collect(), ports: ports.collect() }))
    }
}

fn protocol(text: Option<&str>) -> Box<str> {
    text.unwrap_or("TCP").to_ascii_lowercase().into()
}

/// A Service with its slices, by their names.
#[derive(Debug, Default)]
struct Entry {
    service: Option<ServiceFacts>,
    slices: BTreeMap<Box<str>, SliceFacts>,
}

/// A Service as it can be asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) facts: &'a ServiceFacts,
    slices: &'a BTreeMap<Box<str>, SliceFacts>,
}

impl<'a> View<'a> {
    /// Ready endpoints, each with the ports of its slice. An endpoint may be in two slices while it moves.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (&'a Endpoint, &'a [Port])> + use<'a> {
        self.slices
            .values()
            .flat_map(|slice| slice.endpoints.iter().map(|endpoint| (endpoint, slice.ports.as_slice())))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    entries: HashMap<ServiceKey, Entry>,
    /// Which Service has an address of its own.
    addresses: HashMap<IpAddr, ServiceKey>,
    /// Which Services are headless: the only ones whose endpoints have names.
    headless: HashSet<ServiceKey>,
    /// How many Services a namespace has.
    namespaces: HashMap<Box<str>, usize>,
    services_complete: bool,
    slices_complete: bool,
}

impl Catalog {
    /// Whether everything has been seen once.
    pub(crate) fn complete(&self) -> bool {
        self.services_complete && self.slices_complete
    }

    pub(crate) fn service(&self, key: &ServiceKey) -> Option<View<'_>> {
        let entry = self.entries.get(key)?;
        Some(View { facts: entry.service.as_ref()?, slices: &entry.slices })
    }

    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    /// The Services, and labels below them, that an address is known by.
    pub(crate) fn names_of(&self, address: IpAddr) -> Vec<(&ServiceKey, Option<String>)> {
        if let Some(key) = self.addresses.get(&address) {
            return vec![(key, None)];
        }
        let headless = self.headless.iter().filter_map(|key| Some((key, self.service(key)?)));
        let mut names: Vec<_> = headless
            .flat_map(|(key, view)| {
                let found = view.endpoints().filter(move |(endpoint, _)| endpoint.address == address);
                found.map(move |(endpoint, _)| (key, Some(endpoint.label())))
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }

    pub(crate) fn set_service(&mut self, key: ServiceKey, facts: Option<ServiceFacts>) {
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.service == facts {
            return self.forget_if_empty(&key);
        }
        let before = std::mem::replace(&mut entry.service, facts);
        let after = entry.service.clone();
        if let Some(Kind::Cluster(addresses)) = before.as_ref().map(|facts| &facts.kind) {
            for address in addresses {
                // Another Service may have it by now.
                if self.addresses.get(address) == Some(&key) {
                    self.addresses.remove(address);
                }
            }
        }
        if let Some(Kind::Cluster(addresses)) = after.as_ref().map(|facts| &facts.kind) {
            self.addresses.extend(addresses.iter().map(|address| (*address, key.clone())));
        }
        if after.as_ref().is_some_and(|facts| facts.kind == Kind::Headless) {
            self.headless.insert(key.clone());
        } else {
            self.headless.remove(&key);
        }
        match (before.is_some(), after.is_some()) {
            (false, true) => *self.namespaces.entry(key.namespace.clone()).or_default() += 1,
            (true, false) => {
                if let Some(count) = self.namespaces.get_mut(&key.namespace) {
                    *count -= 1;
                    if *count == 0 {
                        self.namespaces.remove(&key.namespace);
                    }
                }
            }
            (true, true) | (false, false) => {}
        }
        self.forget_if_empty(&key);
    }

    pub(crate) fn set_slice(&mut self, key: ServiceKey, slice: &str, facts: Option<SliceFacts>) {
        let entry = self.entries.entry(key.clone()).or_default();
        match facts {
            Some(facts) => drop(entry.slices.insert(slice.into(), facts)),
            None => drop(entry.slices.remove(slice)),
        }
        self.forget_if_empty(&key);
    }

    /// All Services have been listed: forgets those that are not among `seen`.
    pub(crate) fn services_listed(&mut self, seen: &HashSet<ServiceKey>) {
        let gone = self.entries.iter().filter(|(key, entry)| entry.service.is_some() && !seen.contains(*key));
        let gone: Vec<_> = gone.map(|(key, _)| key.clone()).collect();
        gone.into_iter().for_each(|key| self.set_service(key, None));
        self.services_complete = true;
    }

    /// All slices have been listed: forgets those that are not among `seen`.
    pub(crate) fn slices_listed(&mut self, seen: &HashMap<ServiceKey, HashSet<Box<str>>>) {
        for (key, entry) in &mut self.entries {
            let seen = seen.get(key);
            entry.slices.retain(|slice, _| seen.is_some_and(|seen| seen.contains(slice)));
        }
        self.entries.retain(|_, entry| entry.service.is_some() || !entry.slices.is_empty());
        self.slices_complete = true;
    }

    fn forget_if_empty(&mut self, key: &ServiceKey) {
        if self.entries.get(key).is_some_and(|it| it.service.is_none() && it.slices.is_empty()) {
            self.entries.remove(key);
        }
    }
}
