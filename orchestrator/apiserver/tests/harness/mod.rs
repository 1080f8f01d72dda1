//! A server with a store in a temporary folder, and ways to ask it things.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use pith_apiserver::{Config, Identity, Server};
use pith_store::Embedded;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// What nothing in these tests takes.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct Cluster {
    pub dir: TempDir,
    pub server: Server,
}

pub fn config(dir: &Path, advertise: SocketAddr) -> Config {
    Config {
        dir: dir.to_owned(),
        cluster_name: "test".to_owned(),
        advertise,
        further_addresses: Vec::new(),
        further_names: Vec::new(),
        service_cidr: "10.96.0.0/16".parse().expect("a range"),
        certificate_lifetime: pith_apiserver::pki::CLIENT_LIFETIME,
        tolerations: Default::default(),
    }
}

pub async fn open(dir: &Path, advertise: SocketAddr) -> Server {
    let store = store(dir).await;
    Server::open(config(dir, advertise), Arc::new(store)).await.expect("the server opens")
}

/// Opens the store, once whoever had it open is gone: the worker of a dropped client holds its server a bit longer.
async fn store(dir: &Path) -> Embedded {
    let open = async {
        loop {
            match Embedded::open(&dir.join("store")) {
                Err(pith_store::Error::Open { .. }) => tokio::task::yield_now().await,
                other => return other.expect("the store opens"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, open).await.expect("the store is free in time")
}

impl Cluster {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let server = open(dir.path(), "127.0.0.1:6443".parse().expect("an address")).await;
        let cluster = Self { dir, server };
        // What the controllers would make.
        cluster
            .create("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}}))
            .await;
        cluster
    }

    pub async fn send_as(
        &self,
        who: Identity,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> http::Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.into())).expect("a request");
        self.server.client(who).send(request).await.expect("an answer")
    }

    pub async fn ask_as(
        &self,
        who: Identity,
        method: Method,
        path: &str,
        body: &Value,
    ) -> (StatusCode, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.send_as(who, method, path, &[("content-type", "application/json")], body).await;
        read(answer).await
    }

    pub async fn ask(&self, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
        self.ask_as(Identity::admin(), method, path, body).await
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.ask(Method::GET, path, &Value::Null).await
    }

    #[track_caller]
    pub fn create(&self, path: &str, object: Value) -> impl Future<Output = Value> {
        let place = std::panic::Location::caller();
        async move {
            let (status, answer) = self.ask(Method::POST, path, &object).await;
            assert_eq!(status, StatusCode::CREATED, "{place}: {path}: {answer}");
            answer
        }
    }

    pub async fn patch(&self, path: &str, kind: &str, patch: &Value) -> (StatusCode, Value) {
        let content_type = format!("application/{kind}");
        let headers = [("content-type", content_type.as_str())];
        read(self.send_as(Identity::admin(), Method::PATCH, path, &headers, patch.to_string()).await).await
    }

    /// Opens a watch and reads events from it.
    pub async fn watch(&self, path: &str) -> Events {
        let answer = self.send_as(Identity::admin(), Method::GET, path, &[], "").await;
        assert_eq!(answer.status(), StatusCode::OK);
        Events { body: answer.into_body(), buffer: Vec::new() }
    }
}

pub async fn read(answer: http::Response<Body>) -> (StatusCode, Value) {
    let status = answer.status();
    let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
    let value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes).into_owned()));
    (status, value)
}

pub struct Events {
    body: Body,
    buffer: Vec<u8>,
}

impl Events {
    /// The next line; `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a line of JSON"));
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("an event in time")?;
            if let Ok(data) = frame.expect("a frame").into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// Type and name of the next event.
    pub async fn short(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

/// A server that listens on the loopback.
pub struct Listening {
    pub dir: TempDir,
    pub server: Server,
    pub address: SocketAddr,
    pub cancel: CancellationToken,
    pub task: JoinHandle<Result<(), pith_apiserver::Error>>,
}

impl Listening {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let server = open(dir.path(), address).await;
        let cancel = CancellationToken::new();
        let task = tokio::spawn({
            let (server, cancel) = (server.clone(), cancel.clone());
            async move { server.serve(vec![listener], cancel).await }
        });
        Self { dir, server, address, cancel, task }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub async fn stop(self) {
        self.cancel.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.task).await.expect("the server stops in time");
        ended.expect("no panic").expect("no listener failed");
    }
}
