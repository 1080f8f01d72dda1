//! The objects that every cluster has from its first moment.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use pith_api::{ApiError, Kind, Reason, meta};
use pith_store::{Expect, ListRequest};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    admission::service_ranges::ServiceCidrs,
    objects::{Objects, Stored, failed},
    pki::token::BootstrapToken,
    state::State,
};

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// How soon a deleted one is back; upstream looks as often.
const LOOK_EVERY: Duration = Duration::from_secs(10);

fn core(plural: &str) -> &'static Kind {
    pith_api::find("", "v1", plural).expect("a core kind")
}

fn discovery_slices() -> &'static Kind {
    pith_api::find("discovery.k8s.io", "v1", "endpointslices").expect("a kind of the table")
}

/// Makes again what somebody deleted, until the server stops.
pub(crate) async fn keep(state: Arc<State>, cidr: ServiceCidrs) -> std::io::Result<()> {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // Looking begins anew at the next start.
            _ = ticks.tick() => {}
            () = state.stopping.cancelled() => return Ok(()),
        }
        let made = objects(&state.objects, &cidr, SocketAddr::from(state.advertise), Existing::Kept).await;
        if let Err(error) = made {
            tracing::warn!(%error, "looking after the first objects");
        }
    }
}

/// Makes what is missing, and at the start brings the Service `kubernetes` up to where the server is now.
pub(crate) async fn objects(
    objects: &Objects,
    cidr: &ServiceCidrs,
    advertise: SocketAddr,
    existing: Existing,
) -> Result<(), ApiError> {
    for name in NAMESPACES {
        let namespace = json!({
            "kind": "Namespace", "apiVersion": "v1",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        });
        make(objects, core("namespaces"), namespace, Existing::Kept).await?;
    }
    let address = cidr.primary().first().to_string();
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": advertise.port()}],
            "ipFamilies": [cidr.primary().family().name()], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
        },
        "status": {"loadBalancer": {}},
    });
    make(objects, core("services"), service, existing).await?;
    let endpoints = json!({
        "kind": "Endpoints", "apiVersion": "v1",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            // The controllers make no slice of their own from it.
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": advertise.ip().to_string()}],
            "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}],
        }],
    });
    make(objects, core("endpoints"), endpoints, existing).await?;
    let slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if advertise.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [advertise.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}],
    });
    make(objects, discovery_slices(), slice, existing).await
}

/// What happens to objects that are there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Kept,
    Replaced,
}

/// Creates an object; one that exists is left alone or brought to this content.
async fn make(
    objects: &Objects,
    kind: &'static Kind,
    mut value: Value,
    existing: Existing,
) -> Result<(), ApiError> {
    let name = meta::name(&value).to_owned();
    let namespace =
        Some(meta::text(&value, "namespace").to_owned()).filter(|namespace| !namespace.is_empty());
    kind.default(&mut value);
    let found = objects.find(kind, namespace.as_deref(), &name).await?;
    let metadata = meta::of_mut(&mut value);
    let Some(found) = found else {
        metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
        metadata.insert("creationTimestamp".into(), pith_api::time::seconds(jiff::Timestamp::now()).into());
        let put = objects.put(kind, value, Expect::Absent).await;
        return put.map(|_| ()).map_err(|error| error.into_error(kind.subject(&name)));
    };
    if existing == Existing::Kept {
        return Ok(());
    }
    let old = found.value(kind)?;
    for field in ["uid", "creationTimestamp"] {
        meta::of_mut(&mut value).insert(field.into(), old["metadata"][field].clone());
    }
    meta::of_mut(&mut value).insert("resourceVersion".into(), old["metadata"]["resourceVersion"].clone());
    if value == old {
        return Ok(());
    }
    let put = objects.put(kind, value, Expect::At(found.revision)).await;
    put.map(|_| ()).map_err(|error| error.into_error(kind.subject(&name)))
}

/// All Services, for what they hold.
pub(crate) async fn services(objects: &Objects) -> Result<Vec<Value>, ApiError> {
    let kind = core("services");
    let listing = objects.store.list(ListRequest::all(Objects::prefix(kind, None)?)).await;
    let listing = listing.map_err(|error| failed(kind.subject(""), error))?;
    listing.entries.into_iter().map(|entry| Stored::from(entry).value(kind)).collect()
}

/// Stores a bootstrap token.
pub(crate) async fn token(
    objects: &Objects,
    token: &BootstrapToken,
    lifetime: Duration,
) -> Result<(), ApiError> {
    let lifetime = jiff::SignedDuration::try_from(lifetime).map_err(ApiError::internal)?;
    let expiry = jiff::Timestamp::now().checked_add(lifetime);
    let expiry = expiry.map_err(|error| ApiError::new(Reason::BadRequest, error.to_string()))?;
    make(objects, core("secrets"), token.object(expiry), Existing::Kept).await
}
