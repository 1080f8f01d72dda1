//! A registry that can be told to misbehave, on a port of the loopback.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use pith_image::{Digest, Reference};
use serde_json::json;

use crate::support::Parts;

/// How the registry answers besides correctly.
#[derive(Clone, Default)]
pub(crate) struct Behaviour {
    /// Of the first so many requests for a blob, send half and close the connection.
    pub(crate) cut_blobs: usize,
    /// Answer the first so many requests for a blob with 500.
    pub(crate) fail_blobs: usize,
    /// Ignore Range, as some registries do.
    pub(crate) no_ranges: bool,
    /// Ask for a bearer token, given to me:secret.
    pub(crate) bearer: bool,
    /// Ask for basic authentication as me:secret.
    pub(crate) basic: bool,
    /// Cut there instead of in the middle.
    pub(crate) cut_at: Option<usize>,
    /// Answer Range with another part than was asked for.
    pub(crate) wrong_ranges: bool,
    /// Refuse Range with 416.
    pub(crate) refuse_ranges: bool,
    /// The first so many requests for anything are answered with 429, to come back in no time.
    pub(crate) busy: usize,
    /// Send layers from there, as registries do that keep them in a cloud's storage.
    pub(crate) blobs_at: Option<String>,
    /// Send the head of a layer's answer and then nothing.
    pub(crate) hang: bool,
    /// Accept no token after so many requests with it.
    pub(crate) tokens_last: Option<usize>,
    /// Send so many bytes as any manifest.
    pub(crate) manifest_bytes: Option<usize>,
}

#[derive(Default)]
pub(crate) struct Content {
    /// Tag or digest → body.
    pub(crate) manifests: HashMap<String, Vec<u8>>,
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    pub(crate) behaviour: Behaviour,
    pub(crate) seen: Vec<Request>,
    /// Requests with the token that is good now, and how many there were before it.
    token_uses: usize,
    tokens: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) x_team: Option<String>,
}

/// Answers on a loopback port until the test ends.
pub(crate) struct Registry {
    pub(crate) port: u16,
    content: Arc<Mutex<Content>>,
}

impl Registry {
    pub(crate) fn start(parts: &[Parts], behaviour: Behaviour) -> Registry {
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

    pub(crate) fn reference(&self, rest: &str) -> Reference {
        Reference::parse(&format!("127.0.0.1:{}/team/app{rest}", self.port)).expect("a reference")
    }

    pub(crate) fn edit(&self, edit: impl FnOnce(&mut Content)) {
        edit(&mut self.content.lock().expect("no panic"));
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.content.lock().expect("no panic").seen.clone()
    }

    pub(crate) fn blob_requests(&self) -> Vec<Request> {
        self.seen().into_iter().filter(|request| request.path.contains("/blobs/")).collect()
    }
}

fn answer(mut stream: TcpStream, port: u16, content: &Mutex<Content>) {
    let mut reader = BufReader::new(stream.try_clone().expect("duplicate"));
    let mut lines = reader.by_ref().lines();
    let Some(Ok(first)) = lines.next() else { return };
    let target = first.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: HashMap<String, String> = lines
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned())))
        .collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut form = vec![0; length];
    reader.read_exact(&mut form).expect("the client sends what it promises");
    let header = |name: &str| headers.get(name).cloned();
    let request = Request {
        path: path.to_owned(),
        query: if form.is_empty() { query.to_owned() } else { String::from_utf8_lossy(&form).into_owned() },
        range: header("range"),
        authorization: header("authorization"),
        x_team: header("x-team"),
    };
    let mut content = content.lock().expect("no panic");
    content.seen.push(request.clone());
    let Answer { head, body, send, hang } = reply(&request, port, &mut content);
    drop(content);
    let length = body.len();
    // The client may have gone away; that is its right.
    let _ = write!(stream, "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(&body[..send.min(length)]);
    if hang {
        // Until the client has had enough.
        let _ = reader.read(&mut [0]);
    }
}

struct Answer {
    /// Status line with headers.
    head: String,
    body: Vec<u8>,
    /// How much of the body is sent.
    send: usize,
    /// Keep the connection after that.
    hang: bool,
}

fn all(head: impl Into<String>, body: impl Into<Vec<u8>>) -> Answer {
    Answer { head: head.into(), body: body.into(), send: usize::MAX, hang: false }
}

fn refuse(how: &str) -> Answer {
    let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"log in first"}]}"#;
    all(format!("401 Unauthorized\r\nWWW-Authenticate: {how}"), body)
}

fn missing(code: &str) -> Answer {
    all("404 Not Found", json!({"errors": [{"code": code, "message": "no"}]}).to_string())
}

fn reply(request: &Request, port: u16, content: &mut Content) -> Answer {
    if content.behaviour.busy > 0 {
        content.behaviour.busy -= 1;
        return all("429 Too Many Requests\r\nRetry-After: 0", "not now");
    }
    // me:secret
    let basic = request.authorization.as_deref() == Some("Basic bWU6c2VjcmV0");
    if request.path == "/token" {
        let identity =
            request.query.contains("grant_type=refresh_token&client_id=pith&refresh_token=identity");
        if !(basic || identity && request.query.contains("scope=repository%3Ateam%2Fapp%3Apull")) {
            return all("401 Unauthorized", "wrong password");
        }
        (content.token_uses, content.tokens) = (0, content.tokens + 1);
        let token = format!("good-token-{}", content.tokens);
        return all("200 OK", json!({ "access_token": token }).to_string());
    }
    if content.behaviour.bearer {
        let token = format!("Bearer good-token-{}", content.tokens);
        let spent = content.behaviour.tokens_last.is_some_and(|uses| content.token_uses >= uses);
        let own = request.authorization.as_deref() == Some("Bearer own-token");
        if !own && (spent || request.authorization.as_ref() != Some(&token)) {
            return refuse(&format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"test\""));
        }
        content.token_uses += 1;
    }
    if content.behaviour.basic && !basic {
        return refuse("Basic realm=\"test\"");
    }
    if let Some(name) = request.path.strip_prefix("/v2/team/app/manifests/") {
        if let Some(bytes) = content.behaviour.manifest_bytes {
            return all("200 OK", vec![b' '; bytes]);
        }
        return match content.manifests.get(name) {
            Some(body) => all("200 OK", body.clone()),
            None => missing("MANIFEST_UNKNOWN"),
        };
    }
    let Some(digest) = request.path.strip_prefix("/v2/team/app/blobs/") else {
        return missing("NAME_UNKNOWN");
    };
    match content.blobs.get(digest).cloned() {
        Some(blob) => blob_reply(request, &mut content.behaviour, blob),
        None => missing("BLOB_UNKNOWN"),
    }
}

fn blob_reply(request: &Request, behaviour: &mut Behaviour, blob: Vec<u8>) -> Answer {
    // Configurations are small: the layers are what breaks.
    if blob.starts_with(b"{") {
        return all("200 OK", blob);
    }
    if let Some(elsewhere) = &behaviour.blobs_at {
        return all(format!("307 Temporary Redirect\r\nLocation: {elsewhere}{}", request.path), "");
    }
    if behaviour.fail_blobs > 0 {
        behaviour.fail_blobs -= 1;
        return all("500 Internal Server Error", "<html>sorry</html>");
    }
    let range = request.range.as_ref().filter(|_| !behaviour.no_ranges);
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    if from.is_some() && behaviour.refuse_ranges {
        return all("416 Range Not Satisfiable", "");
    }
    let mut answer = match from {
        Some(from) => {
            let from = if behaviour.wrong_ranges { from / 2 } else { from };
            let range = format!("Content-Range: bytes {from}-{}/{}", blob.len() - 1, blob.len());
            all(format!("206 Partial Content\r\n{range}"), &blob[from..])
        }
        None => all("200 OK", blob),
    };
    if behaviour.cut_blobs > 0 {
        behaviour.cut_blobs -= 1;
        answer.send = behaviour.cut_at.unwrap_or(answer.body.len() / 2);
    }
    if behaviour.hang {
        (answer.send, answer.hang) = (0, true);
    }
    answer
}
