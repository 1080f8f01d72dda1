//! Pulling, from a small registry of the test's own that can be told to misbehave, and from Debian's
//! docker-registry where that is installed.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pith_image::{Auth, Digest, Error, Event, Image, Progress, Quiet, Reference, Result, Step, Store};
use serde_json::json;

use crate::support::{Compression, Item, Parts, is_root, store, tar_of, write_file};

/// How the registry answers besides correctly.
#[derive(Default)]
struct Behaviour {
    /// Of the first so many requests for a blob, send half and close the connection.
    cut_blobs: usize,
    /// Answer the first so many requests for a blob with 500.
    fail_blobs: usize,
    /// Ignore Range, as some registries do.
    no_ranges: bool,
    /// Ask for a bearer token, given to me:secret.
    bearer: bool,
    /// Ask for basic authentication as me:secret.
    basic: bool,
}

#[derive(Default)]
struct Content {
    /// Tag or digest → body.
    manifests: HashMap<String, Vec<u8>>,
    blobs: HashMap<String, Vec<u8>>,
    behaviour: Behaviour,
    /// Requests so far: path and Range.
    seen: Vec<(String, Option<String>)>,
}

/// Answers on a loopback port until the test ends.
struct Registry {
    port: u16,
    content: Arc<Mutex<Content>>,
}

impl Registry {
    fn start(parts: &[Parts], behaviour: Behaviour) -> Registry {
        let mut content = Content { behaviour, ..Content::default() };
        for parts in parts {
            for blob in parts.blobs().into_iter().chain([parts.config()]) {
                content.blobs.insert(Digest::of(&blob).to_string(), blob);
            }
            let manifest = parts.manifest();
            content.manifests.insert(Digest::of(&manifest).to_string(), manifest.clone());
            content.manifests.insert(parts.architecture.to_owned(), manifest);
        }
        let manifests: Vec<_> = parts
            .iter()
            .map(|parts| {
                let manifest = parts.manifest();
                json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": manifest.len(),
                    "digest": Digest::of(&manifest),
                    "platform": {"os": "linux", "architecture": parts.architecture}})
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests});
        let index = index.to_string().into_bytes();
        content.manifests.insert(Digest::of(&index).to_string(), index.clone());
        content.manifests.insert("latest".to_owned(), index);

        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let content = Arc::new(Mutex::new(content));
        let registry = Registry { port, content: Arc::clone(&content) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let content = Arc::clone(&content);
                std::thread::spawn(move || answer(stream.expect("a connection"), port, &content));
            }
        });
        registry
    }

    fn reference(&self, rest: &str) -> Reference {
        Reference::parse(&format!("127.0.0.1:{}/team/app{rest}", self.port)).expect("a reference")
    }

    fn edit(&self, edit: impl FnOnce(&mut Content)) {
        edit(&mut self.content.lock().expect("no panic"));
    }

    fn blob_requests(&self) -> Vec<(String, Option<String>)> {
        let content = self.content.lock().expect("no panic");
        content.seen.iter().filter(|(path, _)| path.contains("/blobs/")).cloned().collect()
    }
}

fn answer(mut stream: TcpStream, port: u16, content: &Mutex<Content>) {
    let mut lines = BufReader::new(stream.try_clone().expect("duplicate")).lines();
    let Some(Ok(request)) = lines.next() else { return };
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: HashMap<String, String> = lines
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned())))
        .collect();
    let mut content = content.lock().expect("no panic");
    content.seen.push((path.clone(), headers.get("range").cloned()));
    let (head, body, send) = reply(&path, &headers, port, &mut content);
    drop(content);
    let length = body.len();
    // The client may have gone away; that is its right.
    let _ = write!(stream, "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(&body[..send.min(length)]);
}

/// Status line with headers, body, and how much of it is sent.
fn reply(
    path: &str,
    headers: &HashMap<String, String>,
    port: u16,
    content: &mut Content,
) -> (String, Vec<u8>, usize) {
    // me:secret
    let basic = headers.get("authorization").is_some_and(|a| a == "Basic bWU6c2VjcmV0");
    let bearer = headers.get("authorization").is_some_and(|a| a == "Bearer good-token");
    let behaviour = &mut content.behaviour;
    let refuse = |how: &str| {
        let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"log in first"}]}"#.to_vec();
        (format!("401 Unauthorized\r\nWWW-Authenticate: {how}"), body, usize::MAX)
    };
    if path.starts_with("/token") {
        return match basic {
            true => ("200 OK".to_owned(), br#"{"token":"good-token"}"#.to_vec(), usize::MAX),
            false => ("401 Unauthorized".to_owned(), b"wrong password".to_vec(), usize::MAX),
        };
    }
    if behaviour.bearer && !bearer {
        return refuse(&format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"test\""));
    }
    if behaviour.basic && !basic {
        return refuse("Basic realm=\"test\"");
    }
    let missing = |code: &str| {
        let body = json!({"errors": [{"code": code, "message": "no"}]}).to_string().into_bytes();
        ("404 Not Found".to_owned(), body, usize::MAX)
    };
    if path == "/v2/" {
        return ("200 OK".to_owned(), b"{}".to_vec(), usize::MAX);
    }
    if let Some(name) = path.strip_prefix("/v2/team/app/manifests/") {
        return match content.manifests.get(name) {
            Some(body) => ("200 OK".to_owned(), body.clone(), usize::MAX),
            None => missing("MANIFEST_UNKNOWN"),
        };
    }
    let Some(digest) = path.strip_prefix("/v2/team/app/blobs/") else { return missing("NAME_UNKNOWN") };
    let Some(blob) = content.blobs.get(digest).cloned() else { return missing("BLOB_UNKNOWN") };
    // Configurations are small: the layers are what breaks.
    let is_layer = !blob.starts_with(b"{");
    if is_layer && behaviour.fail_blobs > 0 {
        behaviour.fail_blobs -= 1;
        return ("500 Internal Server Error".to_owned(), b"<html>sorry</html>".to_vec(), usize::MAX);
    }
    let from = headers
        .get("range")
        .filter(|_| !behaviour.no_ranges)
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let (head, body) = match from {
        Some(from) => {
            let range = format!("Content-Range: bytes {from}-{}/{}", blob.len() - 1, blob.len());
            (format!("206 Partial Content\r\n{range}"), blob[from..].to_vec())
        }
        None => ("200 OK".to_owned(), blob),
    };
    let mut send = usize::MAX;
    if is_layer && behaviour.cut_blobs > 0 {
        behaviour.cut_blobs -= 1;
        send = body.len() / 2;
    }
    (head, body, send)
}

fn noise(seed: u8) -> &'static [u8] {
    // Does not compress, so that halves of blobs are worth something.
    let mut state = u32::from(seed) + 1;
    let bytes = (0..300_000).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    bytes.collect::<Vec<u8>>().leak()
}

fn app(architecture: &'static str) -> Parts {
    let layers = vec![tar_of(&[Item::File("lower", noise(1))]), tar_of(&[Item::File("upper", noise(2))])];
    Parts { architecture, ..Parts::new("unused", layers) }
}

fn pull(store: &Store, reference: &Reference, auth: &Auth) -> Result<Image> {
    run(store.pull(reference, auth, Arc::new(Quiet)))
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

fn check(image: &Image) {
    let dirs = image.lowerdirs();
    assert_eq!(std::fs::read(dirs[0].join("upper")).expect("there"), noise(2));
    assert_eq!(std::fs::read(dirs[1].join("lower")).expect("there"), noise(1));
}

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
    let quiet: Arc<dyn Progress> = Arc::new(Quiet);
    let (first, second) = run(async {
        futures::join!(
            store.pull(&reference, &Auth::Anonymous, Arc::clone(&quiet)),
            other.pull(&reference, &Auth::Anonymous, Arc::clone(&quiet)),
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
        ("500", Behaviour { fail_blobs: 2, ..Behaviour::default() }, false),
    ] {
        let registry = Registry::start(&[app("amd64")], behaviour);
        let (_dir, store) = store();
        let retries = Mutex::new(0);
        let progress: Arc<dyn Progress> = Arc::new(move |event: &Event<'_>| {
            if matches!(event, Event::Layer { step: Step::Retrying { .. }, .. }) {
                *retries.lock().expect("no panic") += 1;
            }
        });
        let image = run(store.pull(&registry.reference(":amd64"), &Auth::Anonymous, progress));
        check(&image.unwrap_or_else(|e| panic!("{name}: {e}")));
        let ranged = registry.blob_requests().iter().any(|(_, range)| range.is_some());
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
    assert!(again.iter().any(|(_, range)| range.is_some()), "from the start again: {again:?}");
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
        ("bearer, own token", bearer(), ":amd64", Auth::Bearer("good-token".into()), |r| r.is_ok()),
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

/// A real registry, with an image pushed by another client.
#[test]
fn debian_docker_registry() {
    if !is_root("debian_docker_registry") {
        return;
    }
    let Some(program) = find_program("docker-registry") else {
        eprintln!("SKIPPED: debian_docker_registry: Debian's docker-registry is not installed");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let _registry = Running::start(&program, dir.path(), port);
    let parts = app("amd64");
    let reference = Reference::parse(&format!("127.0.0.1:{port}/team/app:v1")).expect("a reference");
    run(push(&reference, &parts));

    let (_dir, store) = store();
    let image = pull(&store, &reference, &Auth::Anonymous).expect("pull");
    check(&image);
    assert_eq!(image.digest, Digest::of(&parts.manifest()));
    let missing = Reference::parse(&format!("127.0.0.1:{port}/team/app:v2")).expect("a reference");
    assert!(matches!(pull(&store, &missing, &Auth::Anonymous), Err(Error::NotFound { .. })));
}

async fn push(reference: &Reference, parts: &Parts) {
    use oci_client::client::{ClientConfig, ClientProtocol};
    let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
    let client = oci_client::Client::new(config);
    let target: oci_client::Reference = reference.to_string().parse().expect("a reference");
    client.store_auth_if_needed(target.registry(), &oci_client::secrets::RegistryAuth::Anonymous).await;
    for blob in parts.blobs().into_iter().chain([parts.config()]) {
        let digest = Digest::of(&blob).to_string();
        client.push_blob(&target, blob, &digest).await.expect("push a blob");
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json".parse().expect("a media type");
    client.push_manifest_raw(&target, parts.manifest(), media_type).await.expect("push the manifest");
}

struct Running(Child);

impl Running {
    fn start(program: &Path, dir: &Path, port: u16) -> Running {
        let config = BTreeMap::from([
            ("version", json!("0.1")),
            ("log", json!({"level": "error"})),
            ("storage", json!({"filesystem": {"rootdirectory": dir.join("data")}})),
            ("http", json!({"addr": format!("127.0.0.1:{port}")})),
        ]);
        // JSON is YAML.
        let config = serde_json::to_vec(&config).expect("JSON");
        let config = write_file(dir, "config.yml", &config);
        let child = Command::new(program)
            .arg("serve")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the registry");
        let running = Running(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            std::thread::yield_now();
        }
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone, or gone now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file())
}
