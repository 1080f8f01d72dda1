//! Who controls what: controller references, adoption of orphans and release of what no longer matches.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use kube::api::Patch;
use kube::core::{Selector, SelectorExt};
use pith_informer::{Key, Store};
use serde_json::json;

use crate::cluster::{Cluster, Object, Scoped};
use crate::error::{Error, Result};

/// The reference that says who manages this object, if anybody does.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The key of the controlling object, where it is of kind `K`.
pub(crate) fn controller_key<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<Key> {
    let owner = controller_of(meta)?;
    let same_kind = owner.kind == K::kind(&()) && owner.api_version == K::api_version(&());
    same_kind.then(|| Key::new(meta.namespace.clone().unwrap_or_default(), owner.name.clone()))
}

/// The reference by which `owner` controls what it creates.
pub(crate) fn reference_to<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The index term under which the stores keep an object: its controller, or the orphans of its namespace.
pub(crate) fn term_of<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    match controller_of(meta) {
        Some(owner) => controlled_by(&owner.uid),
        None => orphans_in(meta.namespace.as_deref().unwrap_or_default()),
    }
}

/// The index term of what the owner with this uid controls.
pub(crate) fn controlled_by(uid: &str) -> String {
    format!("owner/{uid}")
}

fn orphans_in(namespace: &str) -> String {
    format!("orphan/{namespace}")
}

pub(crate) fn matches(selector: &Selector, meta: &ObjectMeta) -> bool {
    match &meta.labels {
        Some(labels) => selector.matches(labels),
        None => selector.matches(&Default::default()),
    }
}

/// Parses the selector of `object`. One that selects everything is refused: it would adopt all there is.
pub(crate) fn selector_of<K: Resource<DynamicType = ()>>(
    object: &K,
    selector: &LabelSelector,
) -> Result<Selector> {
    let selector: Selector = selector.clone().try_into().map_err(|error| Error::object(object, error))?;
    if selector.selects_all() {
        return Err(Error::object(object, "the selector selects everything"));
    }
    Ok(selector)
}

/// What an owner holds, should take and should let go.
pub(crate) struct Claims<K> {
    pub owned: Vec<Arc<K>>,
    pub adopt: Vec<Arc<K>>,
    pub release: Vec<Arc<K>>,
}

/// Decides over the candidates: what `owner` controls and orphans in its namespace.
pub(crate) fn claim<K: Resource>(
    owner: &ObjectMeta,
    selector: &Selector,
    candidates: Vec<Arc<K>>,
) -> Claims<K> {
    let mut claims = Claims { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    let owner_goes = owner.deletion_timestamp.is_some();
    for candidate in candidates {
        let meta = candidate.meta();
        let matches = matches(selector, meta);
        match controller_of(meta) {
            Some(controller) if Some(&controller.uid) != owner.uid.as_ref() => {}
            Some(_) if matches => claims.owned.push(candidate),
            Some(_) if owner_goes => {}
            Some(_) => claims.release.push(candidate),
            None if matches && !owner_goes && meta.deletion_timestamp.is_none() => {
                claims.adopt.push(candidate);
            }
            None => {}
        }
    }
    claims
}

/// What `owner` controls, after adopting and releasing what its selector asks for.
pub(crate) async fn settle<O, K>(
    cluster: &Cluster,
    owner: &O,
    selector: &Selector,
    store: &Store<K>,
) -> Result<Vec<Arc<K>>>
where
    O: Object + Scoped,
    K: Object + Scoped,
{
    let meta = owner.meta();
    let mut candidates = store.find(&controlled_by(meta.uid.as_deref().unwrap_or_default()));
    candidates.extend(store.find(&orphans_in(meta.namespace.as_deref().unwrap_or_default())));
    let claims = claim(meta, selector, candidates);
    let mut owned = claims.owned;
    if !claims.adopt.is_empty() && is_current(cluster, owner).await? {
        for orphan in claims.adopt {
            owned.extend(adopt(cluster, owner, store, &orphan).await?.map(Arc::new));
        }
    }
    for stranger in claims.release {
        release(cluster, owner, store, &stranger).await?;
    }
    Ok(owned)
}

/// Asks the API itself, since the cache may not show yet that the owner is gone: adopting for a dead owner
/// would hand live objects to the garbage collector.
async fn is_current<O: Object + Scoped>(cluster: &Cluster, owner: &O) -> Result<bool> {
    let key = Key::of(owner);
    let live = cluster.api::<O>(&key.namespace).get_opt(&key.name).await;
    let live = live.map_err(|source| Error::write("get", owner, source))?;
    Ok(live
        .is_some_and(|live| live.meta().uid == owner.meta().uid && live.meta().deletion_timestamp.is_none()))
}

async fn adopt<O: Object + Scoped, K: Object + Scoped>(
    cluster: &Cluster,
    owner: &O,
    store: &Store<K>,
    orphan: &K,
) -> Result<Option<K>> {
    let patch = json!({ "metadata": {
        "uid": orphan.meta().uid,
        "ownerReferences": [reference_to(owner)],
    }});
    match cluster.patch(store, orphan, &Patch::Strategic(patch)).await {
        Ok(adopted) => Ok(Some(adopted)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn release<O: Object + Scoped, K: Object + Scoped>(
    cluster: &Cluster,
    owner: &O,
    store: &Store<K>,
    stranger: &K,
) -> Result<()> {
    let patch = json!({ "metadata": {
        "uid": stranger.meta().uid,
        "ownerReferences": [{ "$patch": "delete", "uid": owner.meta().uid }],
    }});
    match cluster.patch(store, stranger, &Patch::Strategic(patch)).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::Value;

    use super::*;

    fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).expect("a valid object")
    }

    #[test]
    fn claims_table() {
        let alive: ReplicaSet =
            object(json!({ "metadata": { "name": "rs", "namespace": "d", "uid": "rs-uid" } }));
        let going: ReplicaSet = object(json!({ "metadata": {
            "name": "rs", "namespace": "d", "uid": "rs-uid", "deletionTimestamp": "2026-01-01T00:00:00Z" } }));
        let mine = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "rs-uid", "controller": true }]);
        let other = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "older", "controller": true }]);
        let pod = |label: &str, owners: &Value, gone: bool| {
            let deleted = gone.then_some("2026-01-01T00:00:00Z");
            object::<Pod>(json!({ "metadata": { "name": "p", "namespace": "d", "labels": { "app": label },
                "ownerReferences": owners, "deletionTimestamp": deleted } }))
        };
        let selector: Selector = [("app".to_string(), "web".to_string())].into_iter().collect();
        let none = json!([]);
        let cases = [
            ("mine and matching", &alive, pod("web", &mine, false), (1, 0, 0)),
            ("mine, no longer matching", &alive, pod("db", &mine, false), (0, 0, 1)),
            ("mine, no longer matching, owner going", &going, pod("db", &mine, false), (0, 0, 0)),
            ("orphan that matches", &alive, pod("web", &none, false), (0, 1, 0)),
            ("orphan that matches, owner going", &going, pod("web", &none, false), (0, 0, 0)),
            ("orphan on its way out", &alive, pod("web", &none, true), (0, 0, 0)),
            ("orphan that does not match", &alive, pod("db", &none, false), (0, 0, 0)),
            ("of an older owner of this name", &alive, pod("web", &other, false), (0, 0, 0)),
        ];
        for (name, owner, pod, expect) in cases {
            let claims = claim(&owner.metadata, &selector, vec![Arc::new(pod)]);
            assert_eq!((claims.owned.len(), claims.adopt.len(), claims.release.len()), expect, "{name}");
        }
    }
}
