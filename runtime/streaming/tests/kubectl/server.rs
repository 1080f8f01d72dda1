//! Just enough of an API server on loopback for `kubectl exec` and `kubectl port-forward` of one pod. Its
//! "container" understands a few commands; its "ports" answer with their number and then what they get.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http_body_util::Full;
use hyper::{Method, Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use pith_streaming::{
    Outcome, Refusal,
    exec::{self, ExecSession, Streams},
    forward::{self, Forward},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

/// How much the command `big` writes, and what the port 1000 sends.
pub(crate) const BIG: usize = 3 * 1024 * 1024;

/// Serves until dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// What clients asked to upgrade to, with their protocol.
    pub(crate) upgrades: Arc<Mutex<BTreeSet<String>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("bound");
        let upgrades = Arc::new(Mutex::new(BTreeSet::new()));
        let seen = Arc::clone(&upgrades);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&seen);
                connections.spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let service = service_fn(|request| {
                        note(&request, &seen);
                        answer(request)
                    });
                    let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                });
            }
        });
        Self { address, upgrades, _tasks: tasks }
    }
}

fn note(request: &Request<Incoming>, seen: &Mutex<BTreeSet<String>>) {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if let Some(upgrade) = header("upgrade") {
        let protocol = header("sec-websocket-protocol").or(header("x-stream-protocol-version"));
        let line = format!("{} {}", upgrade.to_ascii_lowercase(), protocol.unwrap_or_default());
        seen.lock().expect("no panic while held").insert(line);
    }
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    Ok(match path.as_str() {
        "/api" => body(&json!({"kind": "APIVersions", "versions": ["v1"]})),
        "/apis" => body(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})),
        "/api/v1" => body(&json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1",
            "resources": [{"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod",
                "verbs": ["get", "list"]}],
        })),
        "/api/v1/namespaces/default/pods/p" => body(&pod()),
        "/api/v1/namespaces/default/pods/p/exec" => {
            // kubectl asks for an upgrade with GET (WebSocket) or POST (SPDY).
            assert!([Method::GET, Method::POST].contains(request.method()));
            upgrade_exec(&mut request, &query)
        }
        "/api/v1/namespaces/default/pods/p/portforward" => upgrade_forward(&mut request),
        _ => {
            let mut response = body(&json!({"kind": "Status", "status": "Failure", "code": 404}));
            *response.status_mut() = hyper::StatusCode::NOT_FOUND;
            response
        }
    })
}

fn body(value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(value.to_string()));
    let json = "application/json".parse().expect("a header value");
    response.headers_mut().insert("content-type", json);
    response
}

fn pod() -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running"},
    })
}

fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    refusal.response().map(Full::from)
}

fn upgrade_exec(request: &mut Request<Incoming>, query: &str) -> Response<Full<Bytes>> {
    let streams = match Streams::from_query(query) {
        Ok(streams) => streams,
        Err(refusal) => return refused(&refusal),
    };
    let command: Vec<String> =
        query.split('&').filter_map(|pair| pair.strip_prefix("command=")).map(str::to_owned).collect();
    match exec::accept(request, streams) {
        Ok(accepted) => {
            tokio::spawn(async move {
                let session = accepted.session.await.expect("the client opens its streams");
                run(session, &command).await;
            });
            accepted.response.map(|()| Full::default())
        }
        Err(refusal) => refused(&refusal),
    }
}

async fn run(session: ExecSession, command: &[String]) {
    let ExecSession { stdin, stdout, stderr, mut resize, control } = session;
    let (mut stdout, mut stderr) = (stdout, stderr);
    let outcome = match command.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["cat"] => {
            let (mut stdin, mut stdout) = (stdin.expect("-i"), stdout.take().expect("always"));
            let mut text = Vec::new();
            stdin.read_to_end(&mut text).await.expect("input ends");
            stdout.write_all(&text).await.expect("the client reads");
            Outcome::Exited(0)
        }
        ["both", code] => {
            stdout.as_mut().expect("always").write_all(b"to stdout\n").await.expect("the client reads");
            stderr.as_mut().expect("always").write_all(b"to stderr\n").await.expect("the client reads");
            Outcome::Exited(code.parse().expect("a number"))
        }
        ["big"] => {
            let chunk: Vec<u8> = (0..=255).collect();
            for _ in 0..BIG / chunk.len() {
                stdout.as_mut().expect("always").write_all(&chunk).await.expect("the client reads");
            }
            Outcome::Exited(0)
        }
        ["size"] => {
            let said = resize.wait_for(Option::is_some).await.map(|size| *size);
            let size = said.expect("the client says it").expect("waited for");
            let text = format!("{}x{}\r\n", size.width, size.height);
            let stdout = stdout.as_mut().expect("always");
            stdout.write_all(text.as_bytes()).await.expect("the client reads");
            Outcome::Exited(0)
        }
        ["hang"] => {
            stdout.as_mut().expect("always").write_all(b"hanging\n").await.expect("the client reads");
            control.closed().cancelled().await;
            return;
        }
        other => Outcome::Failed(format!("no command {other:?}")),
    };
    drop((stdout, stderr));
    control.finish(outcome).await.expect("the client takes it all");
}

fn upgrade_forward(request: &mut Request<Incoming>) -> Response<Full<Bytes>> {
    match forward::accept(request) {
        Ok(accepted) => {
            tokio::spawn(async move {
                let mut session = accepted.session.await.expect("switched");
                let mut connections = JoinSet::new();
                while let Some(forward) = session.next().await {
                    connections.spawn(serve_port(forward));
                }
            });
            accepted.response.map(|()| Full::default())
        }
        Err(refusal) => refused(&refusal),
    }
}

async fn serve_port(forward: Forward) {
    let Forward { port, mut data, mut error } = forward;
    if port == 9 {
        let _ = error.write_all(b"nobody listens on port 9").await;
        return;
    }
    drop(error);
    if port == 1000 {
        let _ = data.write_all(&vec![7; BIG]).await;
        return;
    }
    let _ = data.write_all(format!("{port}\n").as_bytes()).await;
    let mut buffer = vec![0; 8192];
    while let Ok(n) = data.read(&mut buffer).await {
        if n == 0 || data.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
}
