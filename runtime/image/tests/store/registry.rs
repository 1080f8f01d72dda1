//! Pulling from a small registry of the test's own that can be told to misbehave.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pith_image::{
    Auth, Digest, DockerConfig, Error, Event, Image, Keychain, Limits, Options, Progress, Quiet, Reference,
    Step, Store, Timeouts,
};
use serde_json::{Value, json};

use crate::server::{Behaviour, Registry};
use crate::support::{Compression, Item, Parts, app, check, is_root, noise, pull, run, store, tar_of};

#[test]
fn by_tag_digest_and_platform() {
    if !is_root("by_tag_digest_and_platform") {
        return;
    }
    for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
        let amd64 = Parts { compression, ..app("amd64") };
        let registry = Registry::start(&[app("arm64"), amd64.clone()], Behaviour::default());
        let by_digest = format!("@{}", Digest::of(&amd64.manifest()));
        for rest in ["", ":latest", ":amd64", by_digest.as_str()] {
            let (_dir, store) = store();
            let reference = registry.reference(rest);
            let image = pull(&store, &reference, &Auth::Anonymous).unwrap_or_else(|e| panic!("{rest}: {e}"));
            check(&image);
            assert_eq!(image.digest, Digest::of(&amd64.manifest()), "{rest}");
            assert!(image.names.contains(&reference.to_string()), "{rest}: {:?}", image.names);
            assert!(image.repo_digests().any(|name| name.ends_with(image.digest.as_str())), "{rest}");
            assert_eq!(store.resolve(&reference.to_string()).expect("resolve").id, image.id);
        }
    }
}

#[test]
fn what_is_there_is_not_transferred() {
    if !is_root("what_is_there_is_not_transferred") {
        return;
    }
    let registry = Registry::start(&[app("amd64")], Behaviour::default());
    let (_dir, store) = store();
    let reference = registry.reference(":amd64");
    pull(&store, &reference, &Auth::Anonymous).expect("pull");
    assert_eq!(registry.blob_requests().len(), 3, "two layers and the configuration");
    pull(&store, &reference, &Auth::Anonymous).expect("pull again");
    assert_eq!(registry.blob_requests().len(), 4, "only the configuration again");
}

#[test]
fn two_pulls_share_the_work() {
    if !is_root("two_pulls_share_the_work") {
        return;
    }
    let registry = Registry::start(&[app("amd64")], Behaviour::default());
    let (_dir, store) = store();
    let other = Store::open(store.dir()).expect("as another process would");
    let reference = registry.reference(":amd64");
    let (nobody, quiet): (_, Arc<dyn Progress>) = (Keychain::anonymous(), Arc::new(Quiet));
    let (first, second) = run(async {
        futures::join!(
            store.pull(&reference, &nobody, Arc::clone(&quiet)),
            other.pull(&reference, &nobody, Arc::clone(&quiet)),
        )
    });
    assert_eq!(first.expect("pull").id, second.expect("pull").id);
    assert_eq!(registry.blob_requests().len(), 4, "two configurations, and each layer once");
}

#[test]
fn broken_connections_go_on_where_they_were() {
    if !is_root("broken_connections_go_on_where_they_were") {
        return;
    }
    for (name, behaviour, ranges) in [
        ("cut", Behaviour { cut_blobs: 3, ..Behaviour::default() }, true),
        ("cut, no ranges", Behaviour { cut_blobs: 2, no_ranges: true, ..Behaviour::default() }, true),
        ("another range", Behaviour { cut_blobs: 1, wrong_ranges: true, ..Behaviour::default() }, true),
        ("416", Behaviour { cut_blobs: 1, refuse_ranges: true, ..Behaviour::default() }, true),
        ("cut at once", Behaviour { cut_blobs: 2, cut_at: Some(0), ..Behaviour::default() }, false),
    ] {
        let registry = Registry::start(&[app("amd64")], behaviour);
        let (_dir, store) = store();
        let retries = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&retries);
        let progress: Arc<dyn Progress> = Arc::new(move |event: &Event<'_>| {
            if matches!(event, Event::Layer { step: Step::Retrying { .. }, .. }) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        let image = run(store.pull(&registry.reference(":amd64"), &Keychain::anonymous(), progress));
        check(&image.unwrap_or_else(|e| panic!("{name}: {e}")));
        assert!(retries.load(Ordering::Relaxed) > 0, "{name}: it was not told");
        let ranged = registry.blob_requests().iter().any(|request| request.range.is_some());
        assert_eq!(ranged, ranges, "{name}: {:?}", registry.blob_requests());
        assert_eq!(std::fs::read_dir(store.dir().join("partial")).expect("list").count(), 0, "{name}");
    }
}

#[test]
fn a_pull_that_was_given_up_helps_the_next() {
    if !is_root("a_pull_that_was_given_up_helps_the_next") {
        return;
    }
    // More cuts than attempts: the pull fails and leaves what it has.
    let behaviour = Behaviour { cut_blobs: 100, ..Behaviour::default() };
    let one_layer = Parts::new("unused", vec![tar_of(&[Item::File("upper", noise(2))])]);
    let registry = Registry::start(&[one_layer], behaviour);
    let (_dir, store) = store();
    let reference = registry.reference(":amd64");
    let error = pull(&store, &reference, &Auth::Anonymous).expect_err("it is cut each time");
    assert!(matches!(error, Error::Registry { .. }) && error.is_transient(), "{error}");
    let before = registry.blob_requests().len();

    registry.edit(|content| content.behaviour.cut_blobs = 0);
    let store = Store::open(store.dir()).expect("another process, later");
    pull(&store, &reference, &Auth::Anonymous).expect("pull");
    let again = &registry.blob_requests()[before..];
    assert!(again.iter().any(|request| request.range.is_some()), "from the start again: {again:?}");
}

#[test]
fn refusals() {
    if !is_root("refusals") {
        return;
    }
    let basic = |password: &str| Auth::Basic { username: "me".into(), password: password.into() };
    type Case<'c> = (&'c str, Behaviour, &'c str, Auth, fn(&std::result::Result<Image, Error>) -> bool);
    let bearer = || Behaviour { bearer: true, ..Behaviour::default() };
    let basic_wanted = || Behaviour { basic: true, ..Behaviour::default() };
    let cases: Vec<Case<'_>> = vec![
        ("no such tag", Behaviour::default(), ":nope", Auth::Anonymous, |r| {
            matches!(r, Err(Error::NotFound { .. }))
        }),
        ("bearer, nobody", bearer(), ":amd64", Auth::Anonymous, |r| {
            matches!(r, Err(Error::Unauthorised { .. }))
        }),
        ("bearer, wrong", bearer(), ":amd64", basic("x"), |r| matches!(r, Err(Error::Unauthorised { .. }))),
        ("bearer, right", bearer(), ":amd64", basic("secret"), |r| r.is_ok()),
        ("bearer, own token", bearer(), ":amd64", Auth::Bearer("own-token".into()), |r| r.is_ok()),
        ("bearer, identity", bearer(), ":amd64", Auth::Identity("identity".into()), |r| r.is_ok()),
        (
            "bearer, wrong identity",
            bearer(),
            ":amd64",
            Auth::Identity("x".into()),
            |r| matches!(r, Err(Error::Unauthorised { reason, .. }) if reason == "wrong password"),
        ),
        (
            "tokens that run out",
            Behaviour { tokens_last: Some(2), ..bearer() },
            ":amd64",
            basic("secret"),
            |r| r.is_ok(),
        ),
        ("basic, nobody", basic_wanted(), ":amd64", Auth::Anonymous, |r| {
            matches!(r, Err(Error::Unauthorised { .. }))
        }),
        ("basic, right", basic_wanted(), ":amd64", basic("secret"), |r| r.is_ok()),
        (
            "wrong platform",
            Behaviour::default(),
            ":arm64",
            Auth::Anonymous,
            |r| matches!(r, Err(Error::WrongPlatform { has, .. }) if has == &["linux/arm64"]),
        ),
    ];
    for (name, behaviour, rest, auth, expect) in cases {
        let registry = Registry::start(&[app("arm64"), app("amd64")], behaviour);
        let (_dir, store) = store();
        let result = pull(&store, &registry.reference(rest), &auth);
        assert!(expect(&result), "{name}: {result:?}");
    }
}

#[test]
fn nobody_there() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let (_dir, store) = store();
    let reference = Reference::parse(&format!("127.0.0.1:{port}/x")).expect("a reference");
    let error = pull(&store, &reference, &Auth::Anonymous).expect_err("nobody listens");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn wrong_content_is_never_stored() {
    if !is_root("wrong_content_is_never_stored") {
        return;
    }
    let parts = app("amd64");
    let manifest_digest = Digest::of(&parts.manifest());
    let blob_digest = Digest::of(&parts.blobs()[0]);
    let config_digest = Digest::of(&parts.config());
    for (name, expected) in
        [("manifest", &manifest_digest), ("layer", &blob_digest), ("config", &config_digest)]
    {
        let registry = Registry::start(&[app("amd64")], Behaviour::default());
        registry.edit(|content| {
            let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().expect("bytes") ^= 1;
            match name {
                "manifest" => flip(content.manifests.get_mut(expected.as_str()).expect("there")),
                _ => flip(content.blobs.get_mut(expected.as_str()).expect("there")),
            }
        });
        let (_dir, store) = store();
        let reference = registry.reference(&format!("@{manifest_digest}"));
        match pull(&store, &reference, &Auth::Anonymous) {
            Err(Error::DigestMismatch { expected: named, .. }) => assert_eq!(&named, expected, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        assert!(store.list().expect("list").is_empty(), "{name}");
    }
}

/// Wherever the line breaks, and however often: the pull comes to its end.
#[test]
fn cut_at_any_byte() {
    if !is_root("cut_at_any_byte") {
        return;
    }
    let layer = tar_of(&[Item::File("upper", &noise(2)[..1000])]);
    let parts = Parts { compression: Compression::None, ..Parts::new("unused", vec![layer]) };
    let length = parts.blobs()[0].len();
    for cut_at in (0..length).step_by(97).chain([length - 1]) {
        let behaviour = Behaviour { cut_blobs: 1, cut_at: Some(cut_at), ..Behaviour::default() };
        let registry = Registry::start(std::slice::from_ref(&parts), behaviour);
        let (_dir, store) = store();
        let image = pull(&store, &registry.reference(":amd64"), &Auth::Anonymous);
        let image = image.unwrap_or_else(|e| panic!("cut at {cut_at}: {e}"));
        let content = std::fs::read(image.lowerdirs()[0].join("upper")).expect("there");
        assert_eq!(content, noise(2)[..1000], "cut at {cut_at}");
        let again = registry.blob_requests().pop().expect("there were some");
        let expect = (cut_at > 0).then(|| format!("bytes={cut_at}-"));
        assert_eq!(again.range, expect, "cut at {cut_at}");
    }
}

#[test]
fn busy_registries_are_asked_again() {
    if !is_root("busy_registries_are_asked_again") {
        return;
    }
    for (name, behaviour) in [
        ("429", Behaviour { busy: 3, ..Behaviour::default() }),
        ("429 before logging in", Behaviour { busy: 2, basic: true, ..Behaviour::default() }),
        ("500", Behaviour { fail_blobs: 2, ..Behaviour::default() }),
    ] {
        let registry = Registry::start(&[app("amd64")], behaviour);
        let (_dir, store) = store();
        let auth = Auth::Basic { username: "me".into(), password: "secret".into() };
        check(&pull(&store, &registry.reference(":amd64"), &auth).unwrap_or_else(|e| panic!("{name}: {e}")));
    }
    let registry = Registry::start(&[app("amd64")], Behaviour { busy: 100, ..Behaviour::default() });
    let (_dir, store) = store();
    let error = pull(&store, &registry.reference(":amd64"), &Auth::Anonymous).expect_err("always busy");
    assert!(error.is_transient() && error.to_string().contains("429 Too Many Requests: not now"), "{error}");
    assert!(registry.seen().len() < 10, "it was asked {} times", registry.seen().len());
}

/// Layers come from a host of their own: it learns nothing about who asks.
#[test]
fn credentials_do_not_follow_redirects() {
    if !is_root("credentials_do_not_follow_redirects") {
        return;
    }
    let storage = Registry::start(&[app("amd64")], Behaviour::default());
    for basic in [true, false] {
        let behaviour = Behaviour {
            basic,
            bearer: !basic,
            blobs_at: Some(format!("http://127.0.0.1:{}", storage.port)),
            ..Behaviour::default()
        };
        let registry = Registry::start(&[app("amd64")], behaviour);
        let (_dir, store) = store();
        let auth = Auth::Basic { username: "me".into(), password: "secret".into() };
        check(&pull(&store, &registry.reference(":amd64"), &auth).expect("pull"));
        assert!(registry.seen().iter().any(|request| request.authorization.is_some()));
    }
    let seen = storage.blob_requests();
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert!(seen.iter().all(|request| request.authorization.is_none()), "{seen:?}");
}

#[test]
fn who_sends_nothing_is_given_up() {
    if !is_root("who_sends_nothing_is_given_up") {
        return;
    }
    let registry = Registry::start(&[app("amd64")], Behaviour { hang: true, ..Behaviour::default() });
    let dir = tempfile::tempdir().expect("a folder");
    let timeouts = Timeouts { read: Duration::from_millis(50), ..Timeouts::default() };
    let store = Store::open_with(dir.path(), Options { timeouts, ..Options::default() }).expect("open");
    let error = pull(&store, &registry.reference(":amd64"), &Auth::Anonymous).expect_err("it hangs");
    assert!(error.is_transient() && error.to_string().contains("reading a blob"), "{error}");
}

#[test]
fn documents_have_limits() {
    let dir = tempfile::tempdir().expect("a folder");
    let limits = Limits { document_bytes: 10_000, ..Limits::default() };
    let store = Store::open_with(dir.path(), Options { limits, ..Options::default() }).expect("open");
    let behaviour = Behaviour { manifest_bytes: Some(10_001), ..Behaviour::default() };
    let registry = Registry::start(&[app("amd64")], behaviour);
    let error = pull(&store, &registry.reference(":amd64"), &Auth::Anonymous).expect_err("it is large");
    assert!(error.to_string().contains("is larger than the limit of 10000"), "{error}");
}

/// A registry that lies about sizes, and layers of other kinds than can be unpacked.
#[test]
fn manifests_that_promise_something_else() {
    if !is_root("manifests_that_promise_something_else") {
        return;
    }
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit, &str); 6] = [
        ("shorter", |m| m["layers"][0]["size"] = json!(100), "is larger than the limit of 100"),
        ("longer", |m| m["layers"][0]["size"] = json!(1 << 20), "the connection ended after"),
        ("endless", |m| m["layers"][0]["size"] = json!(1_u64 << 50), "is larger than the limit"),
        (
            "a chart",
            |m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json"),
            "an artifact of type application/vnd.cncf.helm.config.v1+json, and no container image",
        ),
        (
            "encrypted",
            |m| {
                m["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
            },
            "it is encrypted",
        ),
        ("missing", |m| m["layers"][0]["digest"] = json!(Digest::of(b"?")), "it has no such blob"),
    ];
    let one_layer = || Parts::new("unused", vec![tar_of(&[Item::File("upper", noise(2))])]);
    let edited = |edit: &dyn Fn(&mut Value)| {
        let registry = Registry::start(&[one_layer()], Behaviour::default());
        registry.edit(|content| {
            let manifest = content.manifests.get_mut("amd64").expect("there");
            let mut value = serde_json::from_slice(manifest).expect("JSON");
            edit(&mut value);
            *manifest = value.to_string().into_bytes();
        });
        let (_dir, store) = store();
        let error = pull(&store, &registry.reference(":amd64"), &Auth::Anonymous).expect_err("it lies");
        assert!(store.list().expect("list").is_empty());
        error.to_string()
    };
    for (name, edit, expect) in cases {
        let error = edited(&edit);
        assert!(error.contains(expect), "{name}: {error}");
    }
    let error = edited(&|m| {
        m["layers"][0]["mediaType"] = json!(foreign);
        m["layers"][0]["digest"] = json!(Digest::of(b"?"));
    });
    assert!(error.contains("it is a foreign one, which its registry does not distribute"), "{error}");
}

/// As the kubelet has them: several secrets, of which one is right.
#[test]
fn every_secret_is_tried() {
    if !is_root("every_secret_is_tried") {
        return;
    }
    for bearer in [true, false] {
        let behaviour = Behaviour { bearer, basic: !bearer, ..Behaviour::default() };
        let registry = Registry::start(&[app("amd64")], behaviour);
        let mut keychain = Keychain::anonymous();
        for password in ["old", "older", "secret"] {
            let host = format!("127.0.0.1:{}", registry.port);
            let config = json!({"auths": {host: {"username": "me", "password": password}}}).to_string();
            keychain.add(DockerConfig::parse("a secret", config.as_bytes()).expect("a configuration"));
        }
        let (_dir, store) = store();
        let image = run(store.pull(&registry.reference(":amd64"), &keychain, Arc::new(Quiet)));
        check(&image.unwrap_or_else(|e| panic!("bearer {bearer}: {e}")));
    }
}
