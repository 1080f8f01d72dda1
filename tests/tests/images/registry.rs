//! A registry that serves images with something wrong with them, on the loopback of a network namespace.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Answers until the test ends.
pub(crate) struct Registry {
    pub(crate) port: u16,
}

/// What it answers, by path.
type Content = HashMap<String, Vec<u8>>;

impl Registry {
    /// # Panics
    /// When there is no such namespace.
    pub(crate) fn start(netns: &str) -> Self {
        let netns = File::open(Path::new("/run/netns").join(netns)).expect("the replica's namespace");
        let content = Arc::new(content());
        let (bound, port) = std::sync::mpsc::channel();
        // The thread is in the namespace for good, and with it the listener.
        std::thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).expect("a namespace of the network");
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let port = listener.local_addr().expect("it is bound").port();
            bound.send(port).expect("start waits for it");
            for stream in listener.incoming().map_while(Result::ok) {
                let content = content.clone();
                std::thread::spawn(move || answer(stream, &content));
            }
        });
        Self { port: port.recv().expect("the thread listens") }
    }
}

fn content() -> Content {
    let mut content = Content::from([("/v2/".to_owned(), b"{}".to_vec())]);
    let layer = tar_of_one_file();
    // As long as the archive, and none.
    let noise: Vec<u8> = b"this is no archive ".iter().copied().cycle().take(layer.len()).collect();
    add(&mut content, "corrupt", "amd64", &noise, &noise);
    add(&mut content, "mismatch", "amd64", &layer, &noise);
    add(&mut content, "foreign", "arm64", &layer, &layer);
    content
}

/// `tag` v1 of a repository. Its manifest names `layer`, its registry sends `sent`.
fn add(content: &mut Content, repository: &str, architecture: &str, layer: &[u8], sent: &[u8]) {
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["/file"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config), "layers": [descriptor(LAYER, layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let at = |rest: &str| format!("/v2/{repository}/{rest}");
    content.insert(at(&format!("blobs/{}", digest(&config))), config);
    content.insert(at(&format!("blobs/{}", digest(layer))), sent.to_vec());
    content.insert(at(&format!("manifests/{}", digest(&manifest))), manifest.clone());
    content.insert(at("manifests/v1"), manifest);
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(content), "size": content.len()})
}

fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn tar_of_one_file() -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o755);
    tar.append_data(&mut header, "file", &b"text"[..]).expect("memory takes it");
    tar.into_inner().expect("memory takes it")
}

fn answer(mut stream: TcpStream, content: &Content) {
    let Ok(copy) = stream.try_clone() else { return };
    let mut lines = BufReader::new(copy).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    // The rest of the head says nothing that would change the answer.
    let _ = lines.find(String::is_empty);
    let path = request.split(' ').nth(1).unwrap_or_default();
    let unknown = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such manifest"}]}"#;
    let (status, body) = match content.get(path) {
        Some(body) => ("200 OK", body.as_slice()),
        None => ("404 Not Found", &unknown[..]),
    };
    let kind = if path.contains("/manifests/") { MANIFEST } else { "application/octet-stream" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // A client that has gone away has its reasons.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| if request.starts_with("HEAD") { Ok(()) } else { stream.write_all(body) });
}
