//! [`Graph`]: who owns whom, over all kinds. Pure.
//!
//! Invariant: an object's dependents are known even while the object itself is not, since kinds are watched
//! independently of each other.

use std::collections::{HashMap, HashSet, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use pith_informer::{Key, Uid};

use super::judge::Owner;
use super::{FOREGROUND, ORPHAN};

/// Removed objects remembered, so that their dependents need not be asked about one by one.
const REMEMBERED: usize = 1024;

/// The place of a kind among those that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KindId(pub usize);

struct Known {
    kind: KindId,
    key: Key,
    owners: Vec<Edge>,
    deleting: bool,
    foreground: bool,
    orphan: bool,
}

#[derive(Clone, PartialEq)]
struct Edge {
    owner: Uid,
    blocks: bool,
}

/// What is known of an object when it is looked at.
#[derive(Clone, Debug)]
pub(super) struct Looked {
    pub kind: KindId,
    pub key: Key,
    pub deleting: bool,
    /// It carries the finalizer for foreground deletion.
    pub foreground: bool,
    /// It carries the finalizer for orphaning.
    pub orphan: bool,
    pub has_dependents: bool,
}

#[derive(Default)]
pub(super) struct Graph {
    known: HashMap<Uid, Known>,
    dependents: HashMap<Uid, HashSet<Uid>>,
    removed: HashSet<Uid>,
    removal_order: VecDeque<Uid>,
}

impl Graph {
    /// Takes in an object as it is now. Answers with what is to be looked at because of that.
    pub(super) fn put(&mut self, kind: KindId, meta: &ObjectMeta) -> Vec<Uid> {
        let uid = Uid(meta.uid.clone().unwrap_or_default());
        let finalizers = meta.finalizers.as_deref().unwrap_or_default();
        let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
        let owners = meta.owner_references.iter().flatten().map(|reference| Edge {
            owner: Uid(reference.uid.clone()),
            blocks: reference.block_owner_deletion.unwrap_or(false),
        });
        let known = Known {
            kind,
            key: Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()),
            owners: owners.collect(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        };
        let mut look = Vec::new();
        let before = self.known.remove(&uid);
        let edges_before = before.map(|before| before.owners).unwrap_or_default();
        if edges_before != known.owners {
            for edge in &edges_before {
                self.unlink(&edge.owner, &uid);
                // An owner that waited for this dependent may go now.
                look.push(edge.owner.clone());
            }
            for edge in &known.owners {
                self.dependents.entry(edge.owner.clone()).or_default().insert(uid.clone());
            }
        }
        let waits = known.deleting && (known.foreground || known.orphan);
        let doubtful = known.owners.iter().any(|edge| self.owner(&edge.owner) != Some(Owner::There));
        if waits || (doubtful && !known.deleting) {
            look.push(uid.clone());
        }
        self.known.insert(uid, known);
        look.retain(|uid| self.known.contains_key(uid));
        look
    }

    /// The object is gone. Its dependents are to be looked at, and the owners that waited for it.
    pub(super) fn remove(&mut self, uid: &Uid) -> Vec<Uid> {
        let Some(known) = self.known.remove(uid) else { return Vec::new() };
        if self.removed.insert(uid.clone()) {
            self.removal_order.push_back(uid.clone());
        }
        while self.removal_order.len() > REMEMBERED {
            if let Some(oldest) = self.removal_order.pop_front() {
                self.removed.remove(&oldest);
            }
        }
        let mut look: Vec<Uid> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for edge in known.owners {
            self.unlink(&edge.owner, uid);
            if self.owner(&edge.owner) == Some(Owner::Waiting) {
                look.push(edge.owner);
            }
        }
        look
    }

    /// Takes in a list of all objects of a kind: what is not in it is gone.
    pub(super) fn replace(&mut self, kind: KindId, metas: Vec<ObjectMeta>) -> Vec<Uid> {
        let listed: HashSet<&str> = metas.iter().filter_map(|meta| meta.uid.as_deref()).collect();
        let gone: Vec<Uid> = self
            .known
            .iter()
            .filter(|(uid, known)| known.kind == kind && !listed.contains(uid.0.as_str()))
            .map(|(uid, _)| uid.clone())
            .collect();
        let mut look: Vec<Uid> = gone.iter().flat_map(|uid| self.remove(uid)).collect();
        look.extend(metas.iter().flat_map(|meta| self.put(kind, meta)));
        look
    }

    fn unlink(&mut self, owner: &Uid, dependent: &Uid) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    pub(super) fn look(&self, uid: &Uid) -> Option<Looked> {
        let known = self.known.get(uid)?;
        Some(Looked {
            kind: known.kind,
            key: known.key.clone(),
            deleting: known.deleting,
            foreground: known.foreground,
            orphan: known.orphan,
            has_dependents: self.dependents.contains_key(uid),
        })
    }

    /// The state of an owner, where it is known to exist.
    pub(super) fn owner(&self, uid: &Uid) -> Option<Owner> {
        let known = self.known.get(uid)?;
        Some(if known.deleting && known.foreground { Owner::Waiting } else { Owner::There })
    }

    /// Whether the object stays: it is not being deleted, and all of its owners are known to be there.
    pub(super) fn is_settled(&self, uid: &Uid) -> bool {
        self.known.get(uid).is_some_and(|known| {
            !known.deleting && known.owners.iter().all(|edge| self.owner(&edge.owner) == Some(Owner::There))
        })
    }

    pub(super) fn was_removed(&self, uid: &Uid) -> bool {
        self.removed.contains(uid)
    }

    pub(super) fn dependents(&self, uid: &Uid) -> Vec<(KindId, Key)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.known.get(uid)).map(|known| (known.kind, known.key.clone())).collect()
    }

    /// The dependents that the owner's foreground deletion waits for.
    pub(super) fn blocking(&self, owner: &Uid) -> Vec<Uid> {
        let blocks = |uid: &&Uid| {
            let edges = self.known.get(*uid).map(|known| known.owners.as_slice()).unwrap_or_default();
            edges.iter().any(|edge| edge.owner == *owner && edge.blocks)
        };
        self.dependents.get(owner).into_iter().flatten().filter(blocks).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const KIND: KindId = KindId(0);

    fn meta(uid: &str, owners: &[&str], change: Value) -> ObjectMeta {
        let owners: Vec<_> = owners
            .iter()
            .map(|owner| json!({ "apiVersion": "v1", "kind": "K", "name": owner, "uid": owner, "blockOwnerDeletion": true }))
            .collect();
        let mut meta = json!({ "name": uid, "uid": uid, "ownerReferences": owners });
        for (key, value) in change.as_object().into_iter().flatten() {
            meta[key] = value.clone();
        }
        serde_json::from_value(meta).expect("valid metadata")
    }

    fn names(mut uids: Vec<Uid>) -> Vec<String> {
        uids.sort();
        uids.into_iter().map(|uid| uid.0).collect()
    }

    #[test]
    fn what_is_looked_at() {
        let mut graph = Graph::default();
        let look = graph.put(KIND, &meta("pod", &["set"], json!({})));
        assert_eq!(names(look), ["pod"], "its owner is not known yet");
        let look = graph.put(KIND, &meta("set", &[], json!({})));
        assert!(look.is_empty());
        let look = graph.put(KIND, &meta("pod", &["set"], json!({})));
        assert!(look.is_empty(), "the owner is there");
        let going = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND] });
        let look = graph.put(KIND, &meta("set", &[], going));
        assert_eq!(names(look), ["set"], "it waits for its dependents");
        assert_eq!(names(graph.blocking(&Uid("set".into()))), ["pod"]);
        let look = graph.remove(&Uid("pod".into()));
        assert_eq!(names(look), ["set"], "nothing blocks it any more");
        assert!(graph.blocking(&Uid("set".into())).is_empty());
        graph.put(KIND, &meta("other", &["set"], json!({})));
        let look = graph.remove(&Uid("set".into()));
        assert_eq!(names(look), ["other"]);
        assert!(graph.was_removed(&Uid("set".into())));
    }

    #[test]
    fn a_relist_removes_what_it_does_not_show() {
        let mut graph = Graph::default();
        graph.replace(KIND, vec![meta("set", &[], json!({})), meta("pod", &["set"], json!({}))]);
        let look = graph.replace(KIND, vec![meta("pod", &["set"], json!({}))]);
        assert!(names(look).contains(&"pod".to_owned()));
        assert!(graph.look(&Uid("set".into())).is_none());
    }
}
