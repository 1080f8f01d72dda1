//! Each namespace gets its `default` ServiceAccount and the ConfigMap with the cluster's CA, and gets them
//! back when they are deleted or changed.

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use pith_informer::{Key, Outcome, Queue, work};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, ROOT_CA};
use crate::error::Result;

const DEFAULT: &str = "default";
const CA_FILE: &str = "ca.crt";
/// Namespaces in hand at once.
const WORKERS: usize = 4;

/// `root_ca` is the PEM bundle that pods verify the API server with; without it no ConfigMap is kept.
pub(crate) fn controller(
    cluster: &Arc<Cluster>,
    root_ca: Option<String>,
    cancel: CancellationToken,
) -> BoxFuture<'static, ()> {
    let queue = Queue::new();
    let to = queue.clone();
    cluster.namespaces.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let to = queue.clone();
    cluster.service_accounts.on_change(move |change| {
        if let (Some(old), None) = (&change.old, &change.new) {
            to.add(Key::cluster(old.metadata.namespace.clone().unwrap_or_default()));
        }
    });
    let to = queue.clone();
    cluster.root_cas.on_change(move |change| {
        to.add(Key::cluster(change.latest().metadata.namespace.clone().unwrap_or_default()));
    });
    let cluster = cluster.clone();
    Box::pin(async move {
        tokio::join!(
            cluster.namespaces.synced(),
            cluster.service_accounts.synced(),
            cluster.root_cas.synced()
        );
        let root_ca = root_ca.as_deref();
        work("serviceaccount", queue, WORKERS, cancel, |key| reconcile(&cluster, root_ca, key)).await;
    })
}

#[derive(Debug, PartialEq)]
enum Action {
    CreateAccount(ServiceAccount),
    CreateCa(ConfigMap),
    UpdateCa(ConfigMap),
}

async fn reconcile(cluster: &Cluster, root_ca: Option<&str>, key: Key) -> Result<Outcome> {
    let Some(namespace) = cluster.namespaces.get(&key) else { return Ok(Outcome::Done) };
    let account = cluster.service_accounts.get(&Key::new(&key.name, DEFAULT));
    let ca = cluster.root_cas.get(&Key::new(&key.name, ROOT_CA));
    for action in plan(&namespace, account.as_deref(), ca.as_deref(), root_ca) {
        let result = match action {
            Action::CreateAccount(account) => {
                cluster.create(&cluster.service_accounts, &account).await.map(drop)
            }
            Action::CreateCa(ca) => cluster.create(&cluster.root_cas, &ca).await.map(drop),
            Action::UpdateCa(ca) => cluster.replace(&cluster.root_cas, &ca).await.map(drop),
        };
        match result {
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {}
            other => other?,
        }
    }
    Ok(Outcome::Done)
}

fn plan(
    namespace: &Namespace,
    account: Option<&ServiceAccount>,
    ca: Option<&ConfigMap>,
    root_ca: Option<&str>,
) -> Vec<Action> {
    if namespace.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let metadata = |name: &str| ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.metadata.name.clone(),
        ..ObjectMeta::default()
    };
    let mut actions = Vec::new();
    if account.is_none() {
        actions.push(Action::CreateAccount(ServiceAccount {
            metadata: metadata(DEFAULT),
            ..ServiceAccount::default()
        }));
    }
    let Some(root_ca) = root_ca else { return actions };
    let data = Some([(CA_FILE.to_owned(), root_ca.to_owned())].into());
    match ca {
        None => {
            let mut metadata = metadata(ROOT_CA);
            let why = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                       endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                       guaranteed across distributions of Kubernetes clusters.";
            metadata.annotations = Some([("kubernetes.io/description".to_owned(), why.to_owned())].into());
            actions.push(Action::CreateCa(ConfigMap { metadata, data, ..ConfigMap::default() }));
        }
        Some(ca) if ca.data != data => {
            actions.push(Action::UpdateCa(ConfigMap { data, ..ca.clone() }));
        }
        Some(_) => {}
    }
    actions
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plan_table() {
        let namespace = |gone: bool| -> Namespace {
            let deleted = gone.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({ "metadata": { "name": "n", "deletionTimestamp": deleted } }))
                .expect("valid")
        };
        let account = ServiceAccount::default();
        let ca = |text: &str| ConfigMap {
            data: Some([(CA_FILE.into(), text.into())].into()),
            ..ConfigMap::default()
        };
        let cases = [
            ("new", false, None, None, Some("pem"), vec!["account", "ca"]),
            ("no CA known", false, None, None, None, vec!["account"]),
            ("complete", false, Some(&account), Some(ca("pem")), Some("pem"), vec![]),
            ("CA changed", false, Some(&account), Some(ca("old")), Some("pem"), vec!["update"]),
            ("going", true, None, None, Some("pem"), vec![]),
        ];
        for (name, gone, account, ca, root, expect) in cases {
            let got: Vec<_> = plan(&namespace(gone), account, ca.as_ref(), root)
                .iter()
                .map(|action| match action {
                    Action::CreateAccount(_) => "account",
                    Action::CreateCa(_) => "ca",
                    Action::UpdateCa(_) => "update",
                })
                .collect();
            assert_eq!(got, expect, "{name}");
        }
    }
}
