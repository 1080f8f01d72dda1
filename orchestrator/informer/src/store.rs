//! [`Store`]: all objects of one kind, as the watch and our own writes show them.
//!
//! Invariants:
//! - An object is never replaced by an older revision of itself.
//! - An object that we created is visible at once ([`Store::wrote`]), one that we deleted counts as
//!   terminating at once ([`Store::deleted`]), until the watch has caught up. This is what other
//!   controllers use expectations for; it needs no time-out, because revisions say exactly when the watch
//!   has caught up.
//! - Handlers see each change once, after the store shows it, with no lock of the store held.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use tokio::sync::watch;

use crate::key::{Key, Revision, Uid, uid_of};
use crate::watch::Sink;

/// What happened to one object: it appeared (`old` is none), changed, or went (`new` is none).
pub struct Change<K> {
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The newest state known, also of an object that is gone.
    pub fn latest(&self) -> &Arc<K> {
        self.new.as_ref().or(self.old.as_ref()).expect("a change has an old or a new state")
    }

    /// The states there are: old first.
    pub fn states(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// The terms under which an object is found again by [`Store::find`], such as `node/replica-1`.
type Terms<K> = fn(&K) -> Vec<String>;

pub struct Store<K> {
    content: RwLock<Content<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    terms: Terms<K>,
    trim: fn(&mut K),
    synced: watch::Sender<bool>,
}

struct Content<K> {
    objects: BTreeMap<Key, Arc<K>>,
    terms: HashMap<String, BTreeSet<Key>>,
    /// Everything up to here has been shown by the watch.
    seen: Revision,
    /// Our own writes that the watch has not shown yet.
    written: HashMap<Key, Revision>,
    /// Objects that we deleted and that the watch still shows as alive.
    deleting: HashMap<Uid, Timestamp>,
}

impl<K: Resource<DynamicType = ()> + Clone> Store<K> {
    /// `terms` indexes each object; `trim` drops what nobody reads, to save memory (`managedFields` always go).
    pub fn new(terms: Terms<K>, trim: fn(&mut K)) -> Arc<Self> {
        let content = Content {
            objects: BTreeMap::new(),
            terms: HashMap::new(),
            seen: Revision::default(),
            written: HashMap::new(),
            deleting: HashMap::new(),
        };
        Arc::new(Self {
            content: RwLock::new(content),
            handlers: RwLock::default(),
            terms,
            trim,
            synced: watch::Sender::new(false),
        })
    }

    /// A store without index terms that keeps whole objects.
    pub fn plain() -> Arc<Self> {
        Self::new(|_| Vec::new(), |_| ())
    }

    /// Calls `handler` on every later change. It must be quick and must not write to this store.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.handlers.write().expect("a handler does not panic").push(Box::new(handler));
    }

    /// Returns once the first list is in.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read().objects.get(key).cloned()
    }

    pub fn all(&self) -> Vec<Arc<K>> {
        self.read().objects.values().cloned().collect()
    }

    pub fn keys(&self) -> Vec<Key> {
        self.read().objects.keys().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let content = self.read();
        content
            .objects
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// The objects with this index term, in the order of their keys.
    pub fn find(&self, term: &str) -> Vec<Arc<K>> {
        let content = self.read();
        let Some(keys) = content.terms.get(term) else { return Vec::new() };
        keys.iter().filter_map(|key| content.objects.get(key).cloned()).collect()
    }

    /// Takes in what the server answered to a create, update or patch of ours.
    pub fn wrote(&self, mut object: K) {
        self.trim(&mut object);
        let (key, revision) = (Key::of(&object), Revision::of(&object));
        let change = {
            let mut content = self.write();
            let known = content.objects.get(&key).map(|o| Revision::of(o.as_ref())).unwrap_or_default();
            if revision <= content.seen || revision <= known {
                return;
            }
            content.written.insert(key.clone(), revision);
            content.set(key, object, self.terms)
        };
        self.notify(&change);
    }

    /// Takes in that the server accepted our deletion of this object: it counts as terminating from now on.
    pub fn deleted(&self, key: &Key, uid: &Uid, now: Timestamp) {
        let change = {
            let mut content = self.write();
            let Some(object) = content.objects.get(key) else { return };
            if uid_of(object.as_ref()) != *uid || object.meta().deletion_timestamp.is_some() {
                return;
            }
            let mut object = K::clone(object);
            object.meta_mut().deletion_timestamp = Some(Time(now));
            content.deleting.insert(uid.clone(), now);
            content.set(key.clone(), object, self.terms)
        };
        self.notify(&change);
    }

    fn trim(&self, object: &mut K) {
        object.meta_mut().managed_fields = None;
        (self.trim)(object);
    }

    fn notify(&self, change: &Change<K>) {
        for handler in self.handlers.read().expect("a handler does not panic").iter() {
            handler(change);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Content<K>> {
        self.content.read().expect("nothing panics while it holds the lock")
    }

    fn write(&self) -> RwLockWriteGuard<'_, Content<K>> {
        self.content.write().expect("nothing panics while it holds the lock")
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Content<K> {
    fn set(&mut self, key: Key, object: K, terms: Terms<K>) -> Change<K> {
        let new = Arc::new(object);
        let old = self.objects.insert(key.clone(), new.clone());
        if let Some(old) = &old {
            self.forget_terms(&key, terms(old));
        }
        for term in terms(&new) {
            self.terms.entry(term).or_default().insert(key.clone());
        }
        Change { old, new: Some(new) }
    }

    fn remove(&mut self, key: &Key, terms: Terms<K>) -> Option<Change<K>> {
        let old = self.objects.remove(key)?;
        self.forget_terms(key, terms(&old));
        self.deleting.remove(&uid_of(old.as_ref()));
        Some(Change { old: Some(old), new: None })
    }

    fn forget_terms(&mut self, key: &Key, terms: Vec<String>) {
        for term in terms {
            if let Some(keys) = self.terms.get_mut(&term) {
                keys.remove(key);
                if keys.is_empty() {
                    self.terms.remove(&term);
                }
            }
        }
    }

    /// Takes in an object as the watch or a list shows it. None where the store knows this state already.
    fn apply(&mut self, mut object: K, terms: Terms<K>) -> Option<Change<K>> {
        let (key, revision) = (Key::of(&object), Revision::of(&object));
        if let Some(written) = self.written.get(&key).copied() {
            if written <= revision {
                self.written.remove(&key);
            }
            if written >= revision {
                return None;
            }
        }
        let uid = uid_of(&object);
        if object.meta().deletion_timestamp.is_some() {
            self.deleting.remove(&uid);
        } else if let Some(since) = self.deleting.get(&uid) {
            object.meta_mut().deletion_timestamp = Some(Time(*since));
        }
        if let Some(known) = self.objects.get(&key)
            && Revision::of(known.as_ref()) == revision
            && known.meta().deletion_timestamp == object.meta().deletion_timestamp
        {
            return None;
        }
        Some(self.set(key, object, terms))
    }
}

impl<K: Resource<DynamicType = ()> + Clone + Send + Sync> Sink<K> for Store<K> {
    fn replace(&self, mut objects: Vec<K>, revision: Revision) {
        let mut changes = Vec::new();
        {
            let mut content = self.write();
            objects.iter_mut().for_each(|object| self.trim(object));
            let listed: BTreeSet<Key> = objects.iter().map(Key::of).collect();
            let written = &content.written;
            let gone: Vec<Key> = content
                .objects
                .keys()
                .filter(|key| !listed.contains(*key) && written.get(*key).is_none_or(|at| *at <= revision))
                .cloned()
                .collect();
            for key in gone {
                changes.extend(content.remove(&key, self.terms));
            }
            for object in objects {
                changes.extend(content.apply(object, self.terms));
            }
            content.seen = revision;
            content.written.retain(|_, at| *at > revision);
        }
        changes.iter().for_each(|change| self.notify(change));
        self.synced.send_replace(true);
    }

    fn apply(&self, mut object: K) {
        self.trim(&mut object);
        let change = {
            let mut content = self.write();
            content.seen = content.seen.max(Revision::of(&object));
            content.apply(object, self.terms)
        };
        change.iter().for_each(|change| self.notify(change));
    }

    fn delete(&self, object: K) {
        let (key, revision) = (Key::of(&object), Revision::of(&object));
        let change = {
            let mut content = self.write();
            content.seen = content.seen.max(revision);
            // A later object of the same name, which we wrote, stays.
            if content.written.get(&key).is_some_and(|written| *written > revision) {
                return;
            }
            content.written.remove(&key);
            content.remove(&key, self.terms)
        };
        change.iter().for_each(|change| self.notify(change));
    }

    fn progress(&self, revision: Revision) {
        let mut content = self.write();
        content.seen = content.seen.max(revision);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn pod(name: &str, revision: u64) -> Pod {
        let metadata = ObjectMeta {
            namespace: Some("ns".into()),
            name: Some(name.into()),
            uid: Some(format!("uid-{name}")),
            resource_version: Some(revision.to_string()),
            labels: Some([("at".into(), revision.to_string())].into()),
            ..Default::default()
        };
        Pod { metadata, ..Default::default() }
    }

    enum Step {
        Listed(Vec<Pod>, u64),
        Watched(Pod),
        Gone(Pod),
        Wrote(Pod),
        Deleted(&'static str),
    }

    /// Names with revisions; `!` marks those that count as terminating.
    fn content(store: &Store<Pod>) -> Vec<String> {
        let show = |pod: &Arc<Pod>| {
            let mark = if pod.metadata.deletion_timestamp.is_some() { "!" } else { "" };
            format!("{}@{}{mark}", Key::of(pod.as_ref()).name, Revision::of(pod.as_ref()).0)
        };
        store.all().iter().map(show).collect()
    }

    #[test]
    fn own_writes_and_the_watch_meet() {
        use Step::*;
        let cases: Vec<(&str, Vec<Step>, Vec<&str>, usize)> = vec![
            ("own create is visible at once", vec![Listed(vec![], 5), Wrote(pod("a", 6))], vec!["a@6"], 1),
            (
                "the watch confirms without a second notice",
                vec![Listed(vec![], 5), Wrote(pod("a", 6)), Watched(pod("a", 6))],
                vec!["a@6"],
                1,
            ),
            (
                "no ghost: created and gone before the answer came",
                vec![Listed(vec![], 5), Watched(pod("a", 6)), Gone(pod("a", 7)), Wrote(pod("a", 6))],
                vec![],
                2,
            ),
            (
                "an older state does not replace ours",
                vec![Listed(vec![pod("a", 4)], 5), Wrote(pod("a", 9)), Watched(pod("a", 8))],
                vec!["a@9"],
                2,
            ),
            (
                "deleted counts as terminating through an older status update",
                vec![Listed(vec![pod("a", 4)], 5), Deleted("a"), Watched(pod("a", 6))],
                vec!["a@6!"],
                3,
            ),
            (
                "a relist drops what went meanwhile and keeps what is newer than it",
                vec![
                    Listed(vec![pod("a", 4), pod("b", 5)], 5),
                    Wrote(pod("c", 7)),
                    Wrote(pod("d", 9)),
                    Listed(vec![pod("b", 5)], 8),
                ],
                vec!["b@5", "d@9"],
                6,
            ),
            (
                "the watch's deletion of an older one leaves ours of the same name",
                vec![Listed(vec![pod("a", 4)], 5), Wrote(pod("a", 9)), Gone(pod("a", 8))],
                vec!["a@9"],
                2,
            ),
        ];
        for (name, steps, expect, notices) in cases {
            let store = Store::<Pod>::plain();
            let count = Arc::new(Mutex::new(0));
            let counter = count.clone();
            store.on_change(move |_| *counter.lock().expect("test") += 1);
            for step in steps {
                match step {
                    Listed(pods, at) => store.replace(pods, Revision(at)),
                    Watched(pod) => Sink::apply(store.as_ref(), pod),
                    Gone(pod) => store.delete(pod),
                    Wrote(pod) => store.wrote(pod),
                    Deleted(pod) => {
                        store.deleted(&Key::new("ns", pod), &Uid(format!("uid-{pod}")), Timestamp::UNIX_EPOCH)
                    }
                }
            }
            assert_eq!(content(&store), expect, "{name}");
            assert_eq!(*count.lock().expect("test"), notices, "{name}: notices");
        }
    }

    #[test]
    fn terms_follow_the_object() {
        let store = Store::<Pod>::new(
            |pod| vec![format!("at/{}", pod.metadata.labels.clone().unwrap_or_default()["at"])],
            |_| (),
        );
        store.replace(vec![pod("a", 1), pod("b", 1)], Revision(1));
        assert_eq!(store.find("at/1").len(), 2);
        Sink::apply(store.as_ref(), pod("a", 2));
        assert_eq!((store.find("at/1").len(), store.find("at/2").len()), (1, 1));
        store.delete(pod("b", 3));
        assert!(store.find("at/1").is_empty());
        assert_eq!(store.in_namespace("ns").len(), 1);
        assert!(store.in_namespace("n").is_empty());
    }
}
