//! Namespaces that are being deleted are emptied, then let go.
//!
//! Pods go first, everything else after them, so that nothing that a pod still uses is taken from it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use pith_informer::{Key, Outcome, Queue, work};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::discovered::{self, Kind};
use crate::error::{Error, Result};

const FINALIZER: &str = "kubernetes";
/// Namespaces in hand at once.
const WORKERS: usize = 4;
/// Requests under way at once for one namespace.
const REQUESTS: usize = 16;
/// How soon a namespace is looked at again whose content waits for somebody's finalizers.
const RECHECK: Duration = Duration::from_secs(1);

pub(crate) fn controller(cluster: &Arc<Cluster>, cancel: CancellationToken) -> BoxFuture<'static, ()> {
    let queue = Queue::new();
    let to = queue.clone();
    cluster.namespaces.on_change(move |change| {
        if let Some(namespace) = change.new.as_ref().filter(|namespace| is_waiting(namespace)) {
            to.add(Key::of(namespace.as_ref()));
        }
    });
    let (namespaces, to) = (cluster.namespaces.clone(), queue.clone());
    cluster.pods.on_change(move |change| {
        let (Some(pod), None) = (&change.old, &change.new) else { return };
        let key = Key::cluster(pod.metadata.namespace.clone().unwrap_or_default());
        if namespaces.get(&key).is_some_and(|namespace| is_waiting(&namespace)) {
            to.add(key);
        }
    });
    let cluster = cluster.clone();
    Box::pin(async move {
        cluster.namespaces.synced().await;
        work("namespace", queue, WORKERS, cancel, |key| reconcile(&cluster, key)).await;
    })
}

/// Whether the namespace is on its way out and waits for this controller.
fn is_waiting(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
    namespace.metadata.deletion_timestamp.is_some() && finalizers.iter().any(|name| name == FINALIZER)
}

async fn reconcile(cluster: &Cluster, key: Key) -> Result<Outcome> {
    let Some(namespace) = cluster.namespaces.get(&key).filter(|namespace| is_waiting(namespace)) else {
        return Ok(Outcome::Done);
    };
    let kinds = discovered::read(&cluster.client).await?;
    let (pods, others): (Vec<Kind>, Vec<Kind>) =
        kinds.into_iter().filter(|kind| kind.namespaced).partition(|kind| kind.resource.plural == "pods");
    let mut remains = empty(cluster, &key, pods).await?;
    if remains.is_empty() {
        remains = empty(cluster, &key, others).await?;
    }
    if !remains.is_empty() {
        report(cluster, &namespace, &remains).await?;
        // Not a failure: each pod that goes leads here too, and would double the back-off.
        return Ok(Outcome::After(RECHECK));
    }
    finalize(cluster, &namespace).await?;
    Ok(Outcome::Done)
}

/// What is left of a kind after everything has been deleted that can be.
#[derive(Debug)]
struct Remains {
    plural: String,
    count: usize,
    finalizers: Vec<String>,
}

/// Deletes all objects of these kinds in the namespace; answers with what waits for something.
async fn empty(cluster: &Cluster, namespace: &Key, kinds: Vec<Kind>) -> Result<Vec<Remains>> {
    let all: Vec<Result<Option<Remains>>> = stream::iter(kinds)
        .map(|kind| async move { empty_kind(cluster, namespace, &kind).await })
        .buffer_unordered(REQUESTS)
        .collect()
        .await;
    all.into_iter().filter_map(Result::transpose).collect()
}

async fn empty_kind(cluster: &Cluster, namespace: &Key, kind: &Kind) -> Result<Option<Remains>> {
    let api = kind.api(&cluster.client, &namespace.name);
    let failed = |action| {
        let (kind, key) = (kind.resource.kind.clone(), namespace.clone());
        move |source| Error::Api { action, kind, key, source: Box::new(source) }
    };
    let list = async || api.list_metadata(&ListParams::default()).await.map_err(failed("list"));
    let objects = list().await?.items;
    if objects.is_empty() {
        return Ok(None);
    }
    let alive = objects.into_iter().filter(|object| object.metadata.deletion_timestamp.is_none());
    let deletions: Vec<(String, DeleteParams)> = alive
        .map(|object| {
            let only = Preconditions { uid: object.uid(), resource_version: None };
            (object.name_any(), DeleteParams::background().preconditions(only))
        })
        .collect();
    let mut deletions = stream::iter(deletions)
        .map(|(name, parameters)| {
            let api = api.clone();
            async move { api.delete(&name, &parameters).await }
        })
        .buffer_unordered(REQUESTS);
    while let Some(result) = deletions.next().await {
        match result {
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            other => drop(other.map_err(failed("delete"))?),
        }
    }
    let left = list().await?.items;
    let finalizers = left.iter().flat_map(|object| object.metadata.finalizers.clone().unwrap_or_default());
    Ok((!left.is_empty()).then(|| Remains {
        plural: kind.resource.plural.clone(),
        count: left.len(),
        finalizers: finalizers.collect(),
    }))
}

/// Says in the namespace's conditions what its deletion waits for.
async fn report(cluster: &Cluster, namespace: &Namespace, remains: &[Remains]) -> Result<()> {
    let status = waiting_status(namespace, remains, Timestamp::now());
    if namespace.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let mut namespace = namespace.clone();
    namespace.status = Some(status);
    match cluster.replace_status(&cluster.namespaces, &namespace).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

fn waiting_status(namespace: &Namespace, remains: &[Remains], now: Timestamp) -> NamespaceStatus {
    let old = namespace.status.clone().unwrap_or_default();
    let old_conditions = old.conditions.unwrap_or_default();
    let condition = |kind: &str, holds: bool, reason: &str, message: String| {
        let status = if holds { "True" } else { "False" };
        let before = old_conditions.iter().find(|condition| condition.type_ == kind);
        let since =
            before.filter(|before| before.status == status).and_then(|b| b.last_transition_time.clone());
        NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: since.or(Some(Time(now))),
        }
    };
    let list = |items: Vec<String>| items.join(", ");
    let content =
        remains.iter().map(|left| format!("{}. has {} resource instances", left.plural, left.count));
    let mut finalizers: Vec<(String, usize)> = Vec::new();
    for name in remains.iter().flat_map(|left| &left.finalizers) {
        match finalizers.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += 1,
            None => finalizers.push((name.clone(), 1)),
        }
    }
    let waits = !finalizers.is_empty();
    let named = finalizers.into_iter().map(|(name, count)| format!("{name} in {count} resource instances"));
    let finalizer_condition = if waits {
        let message =
            format!("Some content in the namespace has finalizers remaining: {}", list(named.collect()));
        condition("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", message)
    } else {
        let message = "All content-preserving finalizers finished".to_owned();
        condition("NamespaceFinalizersRemaining", false, "ContentHasNoFinalizers", message)
    };
    let remaining = format!("Some resources are remaining: {}", list(content.collect()));
    NamespaceStatus {
        phase: Some("Terminating".into()),
        conditions: Some(vec![
            condition(
                "NamespaceDeletionDiscoveryFailure",
                false,
                "ResourcesDiscovered",
                "All resources successfully discovered".into(),
            ),
            condition(
                "NamespaceDeletionGroupVersionParsingFailure",
                false,
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed".into(),
            ),
            condition(
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".into(),
            ),
            condition("NamespaceContentRemaining", true, "SomeResourcesRemain", remaining),
            finalizer_condition,
        ]),
    }
}

/// Takes our finalizer away, which ends the namespace.
async fn finalize(cluster: &Cluster, namespace: &Namespace) -> Result<()> {
    let name = namespace.name_any();
    let mut namespace = namespace.clone();
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|name| name != FINALIZER);
    }
    let api = Api::<Namespace>::all(cluster.client.clone());
    match api.replace_subresource("finalize", &name, &PostParams::default(), &namespace).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(source) => Err(Error::write("finalize", &namespace, source)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_name_what_remains() {
        let namespace: Namespace =
            serde_json::from_value(json!({ "metadata": { "name": "n" } })).expect("valid");
        let remains =
            [Remains { plural: "pods".into(), count: 2, finalizers: vec!["x/y".into(), "x/y".into()] }];
        let at = |second| Timestamp::from_second(second).expect("in range");
        let status = waiting_status(&namespace, &remains, at(1));
        let find = |kind: &str| {
            let conditions = status.conditions.as_ref().expect("conditions");
            let condition =
                conditions.iter().find(|condition| condition.type_ == kind).expect("the condition");
            (condition.status.clone(), condition.message.clone().unwrap_or_default())
        };
        assert_eq!(
            find("NamespaceContentRemaining"),
            ("True".into(), "Some resources are remaining: pods. has 2 resource instances".into())
        );
        assert_eq!(
            find("NamespaceFinalizersRemaining"),
            (
                "True".into(),
                "Some content in the namespace has finalizers remaining: x/y in 2 resource instances".into()
            )
        );
        let again = Namespace { status: Some(status.clone()), ..namespace };
        assert_eq!(waiting_status(&again, &remains, at(9)), status, "times stay while nothing changes");
    }
}
