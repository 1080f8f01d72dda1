//! The embedded store against a model that keeps everything: random writes, readings of the past, watches and
//! restarts must agree.

use std::collections::BTreeMap;

use bytes::Bytes;
use pith_store::{Collection, Embedded, Error, Event, Expect, Key, ListRequest, Revision, Store};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Put { key: usize, value: u8, expect: Guess },
    Delete { key: usize, expect: Guess },
    List { namespace: Option<usize>, limit: Option<usize>, back: u64 },
    Reopen,
}

/// Turned into an `Expect` by what the model knows.
#[derive(Clone, Copy, Debug)]
enum Guess {
    Absent,
    Current,
    Stale,
    Any,
}

const NAMESPACES: usize = 2;
const KEYS: usize = 6;

fn key(index: usize) -> Key {
    let namespace = format!("ns{}", index % NAMESPACES);
    collection().key(Some(&namespace), &format!("k{index}")).expect("a valid key")
}

fn collection() -> Collection {
    Collection::new("", "configmaps").expect("a valid collection")
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guess = prop_oneof![Just(Guess::Absent), Just(Guess::Current), Just(Guess::Stale), Just(Guess::Any)];
    let step = prop_oneof![
        6 => (0..KEYS, any::<u8>(), guess.clone()).prop_map(|(key, value, expect)| Step::Put { key, value, expect }),
        3 => (0..KEYS, guess).prop_map(|(key, expect)| Step::Delete { key, expect }),
        3 => (proptest::option::of(0..NAMESPACES), proptest::option::of(1..4usize), 0..12u64)
            .prop_map(|(namespace, limit, back)| Step::List { namespace, limit, back }),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..60)
}

type Objects = BTreeMap<Key, (Bytes, Revision)>;

/// Every state there ever was.
struct Model {
    states: Vec<(Revision, Objects)>,
    events: Vec<Event>,
    reopened_at: Revision,
}

impl Model {
    fn latest(&self) -> &(Revision, Objects) {
        self.states.last().expect("a model begins with a state")
    }

    fn expect(&self, key: &Key, guess: Guess) -> Expect {
        let current = self.latest().1.get(key).map(|(_, revision)| *revision);
        match guess {
            Guess::Absent => Expect::Absent,
            Guess::Current => Expect::At(current.unwrap_or(Revision(1))),
            Guess::Stale => Expect::At(Revision(current.map_or(1, |revision| revision.0 - 1))),
            Guess::Any => Expect::Any,
        }
    }

    /// What the store must answer: the revision, or which error.
    fn change(&mut self, key: &Key, value: Option<Bytes>, expect: Expect) -> Result<Revision, &'static str> {
        let (revision, objects) = self.latest().clone();
        let current = objects.get(key).cloned();
        match (expect, &current) {
            (Expect::Absent, Some(_)) => return Err("exists"),
            (Expect::At(_), None) => return Err("absent"),
            (Expect::Any, None) if value.is_none() => return Err("absent"),
            (Expect::At(wanted), Some((_, at))) if wanted != *at => return Err("changed"),
            _ => {}
        }
        let revision = Revision(revision.0 + 1);
        let mut objects = objects;
        match &value {
            Some(value) => objects.insert(key.clone(), (value.clone(), revision)),
            None => objects.remove(key),
        };
        let previous =
            current.map(|(value, revision)| pith_store::Entry { key: key.clone(), value, revision });
        self.events.push(Event { key: key.clone(), revision, value, previous });
        self.states.push((revision, objects));
        Ok(revision)
    }
}

fn name(error: &Error) -> &'static str {
    match error {
        Error::Exists { .. } => "exists",
        Error::Absent { .. } => "absent",
        Error::Changed { .. } => "changed",
        Error::Compacted { .. } => "compacted",
        _ => "other",
    }
}

async fn run(steps: Vec<Step>) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut store = Embedded::open(dir.path()).expect("an empty store opens");
    let mut model =
        Model { states: vec![(Revision(1), Objects::new())], events: Vec::new(), reopened_at: Revision(1) };
    for step in steps {
        match step {
            Step::Put { key: index, value, expect } => {
                let key = key(index);
                let expect = model.expect(&key, expect);
                let value = Bytes::from(vec![value; usize::from(value)]);
                let got = store.put(key.clone(), value.clone(), expect).await;
                let wanted = model.change(&key, Some(value), expect);
                assert_eq!(got.map(|done| done.revision).map_err(|error| name(&error)), wanted);
            }
            Step::Delete { key: index, expect } => {
                let key = key(index);
                let expect = model.expect(&key, expect);
                let got = store.delete(key.clone(), expect).await;
                let wanted = model.change(&key, None, expect);
                assert_eq!(got.map(|done| done.revision).map_err(|error| name(&error)), wanted);
            }
            Step::List { namespace, limit, back } => check_list(&store, &model, namespace, limit, back).await,
            Step::Reopen => {
                drop(store);
                store = Embedded::open(dir.path()).expect("the store opens again");
                model.reopened_at = model.latest().0;
                assert_eq!(store.revision().await.expect("a revision"), model.latest().0);
            }
        }
    }
    check_watch(&store, &model).await;
}

async fn check_list(
    store: &Embedded,
    model: &Model,
    namespace: Option<usize>,
    limit: Option<usize>,
    back: u64,
) {
    let at = Revision(model.latest().0.0.saturating_sub(back).max(1));
    let namespace = namespace.map(|index| format!("ns{index}"));
    let prefix = collection().prefix(namespace.as_deref()).expect("a valid prefix");
    let mut request = ListRequest { prefix: prefix.clone(), limit, after: None, at: Some(at) };
    let wanted = match model.states.iter().find(|(revision, _)| *revision == at) {
        Some((_, objects)) if at >= model.reopened_at => objects,
        _ => {
            assert_eq!(store.list(request).await.map(|_| ()).map_err(|error| name(&error)), Err("compacted"));
            return;
        }
    };
    let mut got = Vec::new();
    loop {
        let page = store.list(request.clone()).await.expect("a page");
        assert_eq!(page.revision, at);
        assert!(limit.is_none_or(|limit| page.entries.len() <= limit));
        request.after = page.entries.last().map(|entry| entry.key.clone());
        got.extend(page.entries.into_iter().map(|entry| (entry.key, (entry.value, entry.revision))));
        let total = wanted.keys().filter(|key| prefix.contains(key)).count();
        assert_eq!(page.remaining, total - got.len());
        if page.remaining == 0 {
            break;
        }
    }
    let wanted: Vec<_> = wanted.clone().into_iter().filter(|(key, _)| prefix.contains(key)).collect();
    assert_eq!(got, wanted);
}

/// A watch from each revision since the last start shows exactly what came behind it.
async fn check_watch(store: &Embedded, model: &Model) {
    for after in model.reopened_at.0..=model.latest().0.0 {
        let prefix = collection().prefix(Some("ns0")).expect("a valid prefix");
        let mut watch = store.watch(prefix.clone(), Revision(after)).await.expect("a watch");
        let wanted: Vec<_> = model
            .events
            .iter()
            .filter(|e| e.revision.0 > after && prefix.contains(&e.key))
            .cloned()
            .collect();
        if !wanted.is_empty() {
            let got: Vec<_> =
                watch.next().await.expect("events").iter().map(|event| Event::clone(event)).collect();
            assert_eq!(got, wanted);
        }
        assert_eq!(watch.progress().await.expect("progress"), model.latest().0);
    }
    if model.reopened_at.0 > 1 {
        let prefix = collection().prefix(None).expect("a valid prefix");
        let early = store.watch(prefix, Revision(model.reopened_at.0 - 1)).await;
        assert_eq!(early.map(|_| ()).map_err(|error| name(&error)), Err("compacted"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_agrees_with_the_model(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(run(steps));
    }
}

/// A reader that is slower than the history is long is told so, and costs nothing meanwhile.
#[tokio::test]
async fn a_watch_that_fell_behind_ends() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let limits = pith_store::Limits { max_events: 10, ..pith_store::Limits::default() };
    let store = Embedded::open_with(dir.path(), limits).expect("an empty store opens");
    let prefix = collection().prefix(None).expect("a valid prefix");
    let mut slow = store.watch(prefix.clone(), Revision(1)).await.expect("a watch");
    let pods = Collection::new("", "pods").and_then(|all| all.prefix(None)).expect("a valid prefix");
    let mut other = store.watch(pods, Revision(1)).await.expect("a watch");
    for value in 0..20 {
        store.put(key(0), Bytes::from(vec![value]), Expect::Any).await.expect("a write");
    }
    assert_eq!(slow.next().await.map(|_| ()).map_err(|error| name(&error)), Err("compacted"));
    assert_eq!(slow.progress().await.map_err(|error| name(&error)), Err("compacted"));
    assert_eq!(other.progress().await.expect("its collection is quiet"), Revision(21));
    let mut fresh = store.watch(prefix, Revision(15)).await.expect("a watch");
    assert_eq!(fresh.next().await.expect("events").len(), 6);
    store.compact(Revision(21)).await.expect("compaction");
    let early = store.watch(collection().prefix(None).expect("a valid prefix"), Revision(20)).await;
    assert_eq!(early.map(|_| ()).map_err(|error| name(&error)), Err("compacted"));
}
