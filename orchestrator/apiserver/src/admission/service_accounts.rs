//! Pods run as a ServiceAccount, and find its token, the authority's certificate and their namespace in a volume
//! (upstream: the `ServiceAccount` admission plugin).

use std::time::Duration;

use pith_api::{ApiError, meta};
use rand::{Rng, distr::slice::Choose};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{objects::Objects, verbs::Call};

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The account of a new namespace is made by a controller; upstream waits as long (10 × 100 ms).
const PATIENCE: Duration = Duration::from_secs(1);

/// A bit more than an hour, by which the kubelet and old clients tell the token was not asked for by the user
/// (upstream: `WarnOnlyBoundTokenExpirationPeriod`).
const TOKEN_LIFETIME_S: i64 = 3607;

pub(super) async fn create(call: &Call, pod: &mut Value) -> Result<(), ApiError> {
    if !pod["metadata"]["annotations"][MIRROR].is_null() {
        return Ok(());
    }
    let spec = &mut pod["spec"];
    let name = match spec["serviceAccountName"].as_str() {
        None | Some("") => "default".to_owned(),
        Some(name) => name.to_owned(),
    };
    spec["serviceAccountName"] = name.as_str().into();
    // The field's old name, which old clients read.
    spec["serviceAccount"] = name.as_str().into();
    let namespace = call.namespace().unwrap_or_default();
    let Some(account) = find(call, namespace, &name).await? else {
        return Err(ApiError::forbidden(
            call.target.kind.subject(meta::name(pod)),
            format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"),
        ));
    };
    let spec = &mut pod["spec"];
    let has_secrets = spec["imagePullSecrets"].as_array().is_some_and(|list| !list.is_empty());
    if !has_secrets && account["imagePullSecrets"].as_array().is_some_and(|list| !list.is_empty()) {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let wanted = spec["automountServiceAccountToken"].as_bool();
    if wanted.or(account["automountServiceAccountToken"].as_bool()).unwrap_or(true) {
        mount(spec);
    }
    Ok(())
}

/// The account, waiting a moment for one that is about to be made.
async fn find(call: &Call, namespace: &str, name: &str) -> Result<Option<Value>, ApiError> {
    let kind = pith_api::find("", "v1", "serviceaccounts").expect("a core kind");
    let objects = &call.state.objects;
    // The watch begins before the reading, so that nothing falls between them.
    let fail = |error| crate::objects::failed(kind.subject(name), error);
    let revision = objects.store.revision().await.map_err(fail)?;
    if let Some(account) = objects.value(kind, Some(namespace), name).await? {
        return Ok(Some(account));
    }
    let mut watch =
        objects.store.watch(Objects::prefix(kind, Some(namespace))?, revision).await.map_err(fail)?;
    let appears = async {
        loop {
            watch.next().await.map_err(fail)?;
            if let Some(account) = objects.value(kind, Some(namespace), name).await? {
                return Ok(Some(account));
            }
        }
    };
    timeout(PATIENCE, appears).await.unwrap_or(Ok(None))
}

/// Adds the volume and mounts it in every container that has nothing at that place.
fn mount(spec: &mut Value) {
    let volume = format!("kube-api-access-{}", suffix());
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            if mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            let mut mounts = mounts;
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
            container["volumeMounts"] = mounts.into();
            used = true;
        }
    }
    if !used {
        return;
    }
    let mut volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    volumes.push(json!({
        "name": volume,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_LIFETIME_S, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    }));
    spec["volumes"] = volumes.into();
}

fn suffix() -> String {
    let alphabet = Choose::new(b"bcdfghjklmnpqrstvwxz2456789").expect("the alphabet is not empty");
    rand::rng().sample_iter(alphabet).take(5).map(|byte| char::from(*byte)).collect()
}
