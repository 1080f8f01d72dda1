//! The Services of the cluster as container environments need them, kept by one watch.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceFacts {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) cluster_ip: String,
    /// Name (may be empty), number, protocol in lower case.
    pub(crate) ports: Vec<(String, i32, String)>,
}

impl ServiceFacts {
    fn parse(s: &Service) -> Option<Self> {
        let spec = s.spec.as_ref()?;
        let cluster_ip = spec.cluster_ip.clone().filter(|ip| !ip.is_empty() && ip != "None")?;
        let ports = spec.ports.iter().flatten().map(|p| {
            let protocol = p.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
            (p.name.clone().unwrap_or_default(), p.port, protocol)
        });
        Some(Self {
            namespace: s.metadata.namespace.clone()?,
            name: s.metadata.name.clone()?,
            cluster_ip,
            ports: ports.collect(),
        })
    }

    /// `{NAME}_SERVICE_HOST` and its kin, and those that Docker links had.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        let upper = |s: &str| s.replace('-', "_").to_ascii_uppercase();
        let name = upper(&self.name);
        let ip = &self.cluster_ip;
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        let mut out = vec![(format!("{name}_SERVICE_HOST"), ip.clone())];
        for (i, (port_name, port, protocol)) in self.ports.iter().enumerate() {
            if i == 0 {
                out.push((format!("{name}_SERVICE_PORT"), port.to_string()));
                out.push((format!("{name}_PORT"), format!("{protocol}://{host}:{port}")));
            }
            if !port_name.is_empty() {
                out.push((format!("{name}_SERVICE_PORT_{}", upper(port_name)), port.to_string()));
            }
            let link = format!("{name}_PORT_{port}_{}", protocol.to_ascii_uppercase());
            out.push((link.clone(), format!("{protocol}://{host}:{port}")));
            out.push((format!("{link}_PROTO"), protocol.clone()));
            out.push((format!("{link}_PORT"), port.to_string()));
            out.push((format!("{link}_ADDR"), ip.clone()));
        }
        out
    }
}

/// A shared view; empty until the first list has arrived.
#[derive(Clone)]
pub(crate) struct Services {
    seen: watch::Receiver<Option<Arc<Vec<ServiceFacts>>>>,
}

/// A container that starts before the first list would miss `KUBERNETES_SERVICE_HOST`; it waits this long.
const FIRST_LIST: Duration = Duration::from_secs(10);

impl Services {
    /// All Services, in the order of their names.
    pub(crate) async fn all(&self) -> Arc<Vec<ServiceFacts>> {
        let mut seen = self.seen.clone();
        let first = tokio::time::timeout(FIRST_LIST, seen.wait_for(Option::is_some)).await;
        match first {
            Ok(Ok(list)) => list.clone().unwrap_or_default(),
            Ok(Err(_)) | Err(_) => Arc::default(),
        }
    }
}

/// The view, and the task that keeps it until `stop`.
pub(crate) fn watch(
    client: kube::Client,
    stop: CancellationToken,
) -> (Services, impl Future<Output = ()> + Send + 'static) {
    let (tx, seen) = watch::channel(None);
    (Services { seen }, keep(client, tx, stop))
}

async fn keep(
    client: kube::Client,
    tx: watch::Sender<Option<Arc<Vec<ServiceFacts>>>>,
    stop: CancellationToken,
) {
    let api: Api<Service> = Api::all(client);
    let mut stream = watcher::watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut known: HashMap<(String, String), ServiceFacts> = HashMap::new();
    let mut fresh = HashMap::new();
    loop {
        let event = tokio::select! {
            // Nothing is in hand while waiting for the next event.
            () = stop.cancelled() => return,
            event = stream.next() => event,
        };
        match event {
            None => return,
            Some(Err(error)) => {
                tracing::warn!(%error, "watching Services");
                continue;
            }
            Some(Ok(Event::Init)) => fresh = HashMap::new(),
            Some(Ok(Event::InitApply(s))) => {
                insert(&mut fresh, &s);
                continue;
            }
            Some(Ok(Event::InitDone)) => known = std::mem::take(&mut fresh),
            Some(Ok(Event::Apply(s))) => insert(&mut known, &s),
            Some(Ok(Event::Delete(s))) => {
                known.remove(&key(&s));
            }
        }
        let mut list: Vec<_> = known.values().cloned().collect();
        list.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        tx.send_replace(Some(Arc::new(list)));
    }
}

fn key(s: &Service) -> (String, String) {
    (s.metadata.namespace.clone().unwrap_or_default(), s.metadata.name.clone().unwrap_or_default())
}

fn insert(map: &mut HashMap<(String, String), ServiceFacts>, s: &Service) {
    match ServiceFacts::parse(s) {
        Some(facts) => map.insert(key(s), facts),
        None => map.remove(&key(s)),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_as_kubernetes_names_them() {
        let s = ServiceFacts {
            namespace: "default".into(),
            name: "my-db".into(),
            cluster_ip: "10.96.0.9".into(),
            ports: vec![("sql".into(), 5432, "tcp".into())],
        };
        let got: Vec<_> = s.variables().iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            got,
            [
                "MY_DB_SERVICE_HOST=10.96.0.9",
                "MY_DB_SERVICE_PORT=5432",
                "MY_DB_PORT=tcp://10.96.0.9:5432",
                "MY_DB_SERVICE_PORT_SQL=5432",
                "MY_DB_PORT_5432_TCP=tcp://10.96.0.9:5432",
                "MY_DB_PORT_5432_TCP_PROTO=tcp",
                "MY_DB_PORT_5432_TCP_PORT=5432",
                "MY_DB_PORT_5432_TCP_ADDR=10.96.0.9",
            ]
        );
    }
}
