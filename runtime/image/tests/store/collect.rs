//! Removing, holding and collecting, and several users of one store at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pith_image::{Auth, Error, Event, Policy, Quiet, Reference, Step, Store};

use crate::server::{Behaviour, Registry};
use crate::support::{Item, Parts, app, archive, import, is_root, pull, store, tar_of};

fn parts(name: &'static str, own: &'static [u8]) -> Parts {
    let shared = tar_of(&[Item::File("shared", b"the same in all")]);
    Parts::new(name, vec![shared, tar_of(&[Item::File("own", own)])])
}

fn layers(store: &Store) -> usize {
    std::fs::read_dir(store.dir().join("layers")).expect("list").count()
}

#[test]
fn remove_takes_names_then_the_image() {
    if !is_root("remove_takes_names_then_the_image") {
        return;
    }
    let (_dir, store) = store();
    let first = import(&store, &parts("pith.local/a:v1", b"a")).expect("import");
    let second = import(&store, &parts("pith.local/b:v1", b"b")).expect("import");
    let other = Reference::parse("pith.local/c:v9").expect("a name");
    store.tag("pith.local/a:v1", &other).expect("tag");
    assert_eq!(layers(&store), 3, "the shared one is stored once");

    let removed = store.remove("pith.local/a:v1").expect("remove a name");
    assert_eq!((removed.names.len(), removed.images.len()), (1, 0));
    assert_eq!(store.resolve("pith.local/c:v9").expect("its other name").id, first.id);

    let removed = store.remove(first.id.short()).expect("remove by id");
    assert_eq!(removed.images, std::slice::from_ref(&first.id));
    assert_eq!((layers(&store), removed.bytes), (2, 1));
    assert!(matches!(store.resolve("pith.local/c:v9"), Err(Error::NotFound { .. })));
    assert!(matches!(store.remove("pith.local/c:v9"), Err(Error::NotFound { .. })));

    store.remove("pith.local/b:v1").expect("remove");
    assert!(matches!(store.resolve(second.id.as_str()), Err(Error::NotFound { .. })));
    assert_eq!(layers(&store), 0);
}

#[test]
fn what_is_held_stays() {
    if !is_root("what_is_held_stays") {
        return;
    }
    let (_dir, store) = store();
    let held = import(&store, &parts("pith.local/a:v1", b"a")).expect("import");
    let used = import(&store, &parts("pith.local/b:v1", b"b")).expect("import");
    import(&store, &parts("pith.local/c:v1", b"c")).expect("import");
    store.hold("container-1", &held.id).expect("hold");
    store.hold("container-1", &held.id).expect("hold again");

    match store.remove("pith.local/a:v1") {
        Err(Error::InUse { holders, .. }) => assert_eq!(holders, ["container-1"]),
        other => panic!("removed from under a container: {other:?}"),
    }
    let in_use = BTreeSet::from([used.id.clone()]);
    let removed = store.gc(&in_use, Policy::Unused { min_age: Duration::ZERO }).expect("collect");
    assert_eq!(removed.names, ["pith.local/c:v1"]);

    let reopened = Store::open(store.dir()).expect("open");
    assert_eq!(reopened.holds().expect("list"), [("container-1".to_owned(), held.id.clone())]);
    reopened.release("container-1").expect("release");
    reopened.release("container-1").expect("release what is not held");
    let removed = store.gc(&BTreeSet::new(), Policy::Unused { min_age: Duration::ZERO }).expect("collect");
    assert_eq!(removed.images.len(), 2);
    assert_eq!(layers(&store), 0);
    assert!(matches!(store.hold("container-2", &held.id), Err(Error::NotFound { .. })));
    for bad in ["", "..", "a/b", ".hidden"] {
        assert!(store.hold(bad, &held.id).is_err(), "{bad:?}");
    }
}

#[test]
fn thresholds() {
    if !is_root("thresholds") {
        return;
    }
    let (_dir, store) = store();
    import(&store, &parts("pith.local/a:v1", b"a")).expect("import");
    let registry = Registry::start(&[app("amd64")], Behaviour::default());
    let pulled = pull(&store, &registry.reference(":amd64"), &Auth::Anonymous).expect("pull");
    let policy =
        |high_percent, low_percent, min_age| Policy::Thresholds { high_percent, low_percent, min_age };
    let day = Duration::from_secs(86_400);
    for (name, policy, expect) in [
        ("the disk has room", policy(100, 99, Duration::ZERO), vec![]),
        ("too young", policy(0, 0, day), vec![]),
        ("full and old enough: what can be pulled again", policy(0, 0, Duration::ZERO), vec![pulled.id]),
    ] {
        let removed = store.gc(&BTreeSet::new(), policy).expect(name);
        assert_eq!(removed.images, expect, "{name}");
    }
    assert!(store.resolve("pith.local/a:v1").is_ok(), "a file brought it");
}

#[test]
fn a_layer_is_made_once_whoever_asks() {
    if !is_root("a_layer_is_made_once_whoever_asks") {
        return;
    }
    let (_dir, store) = store();
    let unpacked = AtomicUsize::new(0);
    let progress = |event: &Event<'_>| {
        if matches!(event, Event::Layer { step: Step::Unpacked { .. }, .. }) {
            unpacked.fetch_add(1, Ordering::Relaxed);
        }
    };
    let archive = archive(&parts("pith.local/a:v1", b"a").oci_files());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                // Each its own handle, as another process has.
                let store = Store::open(store.dir()).expect("open");
                store.import_stream(archive.as_slice(), None, &progress).expect("import");
            });
        }
    });
    assert_eq!(unpacked.load(Ordering::Relaxed), 2);
    assert_eq!(store.list().expect("list").len(), 1);
}

#[test]
fn collecting_beside_imports_loses_nothing() {
    if !is_root("collecting_beside_imports_loses_nothing") {
        return;
    }
    let (_dir, store) = store();
    let archives: Vec<Vec<u8>> = [b"1", b"2", b"3"]
        .into_iter()
        .zip(["pith.local/a:v1", "pith.local/b:v1", "pith.local/c:v1"])
        .map(|(own, name)| archive(&parts(name, own).oci_files()))
        .collect();
    std::thread::scope(|scope| {
        let imports: Vec<_> = archives
            .iter()
            .zip(["one", "two", "three"])
            .map(|(archive, holder)| scope.spawn(|| import_and_use(&store, archive, holder)))
            .collect();
        let none = BTreeSet::new();
        while imports.iter().any(|import| !import.is_finished()) {
            store.gc(&none, Policy::Unused { min_age: Duration::ZERO }).expect("collect");
        }
        let used: usize = imports.into_iter().map(|import| import.join().expect("no panic")).sum();
        assert!(used > 0, "every image was collected before it could be held");
    });
}

/// What a kubelet does: import, hold, run, release. How often it came to running.
fn import_and_use(store: &Store, archive: &[u8], holder: &str) -> usize {
    let mut used = 0;
    for _ in 0..20 {
        let imported = store.import_stream(archive, None, &Quiet).expect("import").remove(0);
        // Collected between the two: a kubelet imports again.
        if store.hold(holder, &imported.id).is_ok() {
            used += 1;
            for dir in imported.lowerdirs() {
                let files = std::fs::read_dir(&dir).map(Iterator::count);
                assert!(files.is_ok_and(|n| n == 1), "{dir:?} was collected although it is held");
            }
            store.release(holder).expect("release");
        }
    }
    used
}
