//! Mirrors, and registries that speak TLS with an authority of their own.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use pith_image::{Auth, Digest, Error, Image, Keychain, Options, Quiet, Reference, Result, Store};

use crate::server::{Behaviour, Registry};
use crate::support::{app, check, is_root, run};

/// A store that is told where the images of `registry` are.
fn store_with(dir: &Path, registry: &str, hosts: &str) -> Store {
    let folder = dir.join("certs.d").join(registry);
    fs::create_dir_all(&folder).expect("make a folder");
    fs::write(folder.join("hosts.toml"), hosts).expect("write");
    let options = Options { hosts_dir: Some(dir.join("certs.d")), ..Options::default() };
    Store::open_with(dir.join("images"), options).expect("open")
}

fn pull(store: &Store, reference: &str, keychain: &Keychain) -> Result<Image> {
    let reference = Reference::parse(reference).expect("a reference");
    run(store.pull(&reference, keychain, Arc::new(Quiet)))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

fn secret() -> Keychain {
    Keychain::of(Auth::Basic { username: "me".into(), password: "secret".into() })
}

#[test]
fn a_mirror_serves_and_learns_no_password() {
    if !is_root("a_mirror_serves_and_learns_no_password") {
        return;
    }
    let mirror = Registry::start(&[app("amd64")], Behaviour::default());
    let dir = tempfile::tempdir().expect("a folder");
    let hosts = format!("[host.\"http://127.0.0.1:{}\"]\nheader = {{ x-team = \"a\" }}\n", mirror.port);
    let store = store_with(dir.path(), "docker.io", &hosts);
    let image = pull(&store, "team/app:amd64", &secret()).expect("pull");
    check(&image);
    assert!(image.names.contains(&"docker.io/team/app:amd64".to_owned()), "{:?}", image.names);
    let seen = mirror.seen();
    assert!(seen.iter().all(|r| r.query == "ns=docker.io" && r.authorization.is_none()), "{seen:?}");
    assert!(seen.iter().all(|r| r.x_team.as_deref() == Some("a")), "{seen:?}");
}

#[test]
fn the_next_host_serves_what_one_does_not() {
    if !is_root("the_next_host_serves_what_one_does_not") {
        return;
    }
    let dead = format!("http://127.0.0.1:{}", free_port());
    let wrong = |edit: fn(&mut Vec<u8>)| {
        let registry = Registry::start(&[app("amd64")], Behaviour::default());
        registry.edit(|content| content.blobs.values_mut().for_each(edit));
        registry
    };
    let empty = Registry::start(&[], Behaviour::default());
    let broken = Registry::start(&[app("amd64")], Behaviour { fail_blobs: 1000, ..Behaviour::default() });
    let cutting = Registry::start(&[app("amd64")], Behaviour { cut_blobs: 1000, ..Behaviour::default() });
    let locked = Registry::start(&[app("amd64")], Behaviour { basic: true, ..Behaviour::default() });
    let lying = wrong(|blob| *blob.last_mut().expect("bytes") ^= 1);
    let at = |registry: &Registry| format!("http://127.0.0.1:{}", registry.port);
    for (name, mirror) in [
        ("nobody there", dead),
        ("nothing there", at(&empty)),
        ("always 500", at(&broken)),
        ("always cut", at(&cutting)),
        ("wants a password", at(&locked)),
        ("other content", at(&lying)),
    ] {
        let own = Registry::start(&[app("amd64")], Behaviour { basic: true, ..Behaviour::default() });
        let dir = tempfile::tempdir().expect("a folder");
        let registry = format!("127.0.0.1:{}", own.port);
        let store = store_with(dir.path(), &registry, &format!("[host.\"{mirror}\"]\n"));
        let image = pull(&store, &format!("{registry}/team/app:amd64"), &secret());
        check(&image.unwrap_or_else(|e| panic!("{name}: {e}")));
    }
}

#[test]
fn a_mirror_that_may_not_resolve_is_asked_for_digests_only() {
    if !is_root("a_mirror_that_may_not_resolve_is_asked_for_digests_only") {
        return;
    }
    let mirror = Registry::start(&[app("amd64")], Behaviour::default());
    let own = Registry::start(&[app("amd64")], Behaviour::default());
    let dir = tempfile::tempdir().expect("a folder");
    let registry = format!("127.0.0.1:{}", own.port);
    let hosts = format!("[host.\"http://127.0.0.1:{}\"]\ncapabilities = [\"pull\"]\n", mirror.port);
    let store = store_with(dir.path(), &registry, &hosts);
    check(&pull(&store, &format!("{registry}/team/app:latest"), &Keychain::anonymous()).expect("pull"));
    assert!(own.blob_requests().is_empty());
    let asked: Vec<String> = mirror.seen().into_iter().map(|request| request.path).collect();
    assert!(asked.iter().all(|path| !path.ends_with("/latest")), "{asked:?}");
    let manifest = format!("/v2/team/app/manifests/{}", Digest::of(&app("amd64").manifest()));
    assert!(asked.contains(&manifest), "{asked:?}");
}

#[test]
fn when_nobody_serves_the_registry_itself_is_named() {
    let empty = Registry::start(&[], Behaviour::default());
    let dir = tempfile::tempdir().expect("a folder");
    let registry = format!("127.0.0.1:{}", free_port());
    let hosts = format!("[host.\"http://127.0.0.1:{}\"]\n", empty.port);
    let store = store_with(dir.path(), &registry, &hosts);
    let reference = format!("{registry}/team/app:v1");
    let error = pull(&store, &reference, &Keychain::anonymous()).expect_err("nobody").to_string();
    assert!(error.contains(&registry) && error.contains("refused"), "{error}");
    let store = store_with(dir.path(), &registry, "[host]\n[hosts]\n");
    match pull(&store, &reference, &Keychain::anonymous()) {
        Err(Error::BadConfiguration { path, .. }) => assert!(path.ends_with("hosts.toml")),
        other => panic!("{other:?}"),
    }
}
