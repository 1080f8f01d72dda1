//! An API that says what the test wants, and remembers what it was told.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{StreamExt, channel::mpsc, stream};
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use serde_json::{Value, json};

use super::at;

pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub(crate) const NODES: &str = "/api/v1/nodes";

const PANICKED: &str = "no test thread panics with it";

type Answer = BoxBody<Bytes, Infallible>;

/// Objects by path, the watches that are open, and what was created.
#[derive(Clone, Default)]
pub(crate) struct Api {
    lists: Arc<Mutex<HashMap<String, Vec<Value>>>>,
    watches: Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Value>>>>,
    created: Arc<Mutex<Vec<Value>>>,
}

impl Api {
    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(Response::new(api.answer(request).await)) }
        });
        kube::Client::new(service, "default")
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Answer {
        let path = request.uri().path().to_owned();
        if request.method() == Method::POST {
            let object = request.into_body().collect().await.expect("a client sends what it has").to_bytes();
            let object: Value = serde_json::from_slice(&object).expect("a client sends JSON");
            self.created.lock().expect(PANICKED).push(object.clone());
            return body(stream::iter([object.to_string()]));
        }
        let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        if watch {
            let (sender, events) = mpsc::unbounded();
            self.watches.lock().expect(PANICKED).insert(path, sender);
            return body(events.map(|event| format!("{event}\n")));
        }
        let items = self.lists.lock().expect(PANICKED).get(&path).cloned();
        // One object, by its path.
        if let Some([object]) = items.as_deref()
            && path.ends_with(object["metadata"]["name"].as_str().unwrap_or("?"))
        {
            return body(stream::iter([object.to_string()]));
        }
        let list = json!({
            "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": "1" },
            "items": items.unwrap_or_default(),
        });
        body(stream::iter([list.to_string()]))
    }

    pub(crate) fn list(&self, path: &str, items: &[Value]) {
        self.lists.lock().expect(PANICKED).insert(path.to_owned(), items.to_vec());
    }

    /// What was created so far.
    pub(crate) fn created(&self) -> Vec<Value> {
        self.created.lock().expect(PANICKED).clone()
    }

    pub(crate) fn tell(&self, path: &str, kind: &str, object: &Value) {
        let watches = self.watches.lock().expect(PANICKED);
        let watch = watches.get(path).expect("the driver watches");
        watch.unbounded_send(json!({ "type": kind, "object": object })).expect("the watch is open");
    }
}

fn body(lines: impl futures::Stream<Item = String> + Send + Sync + 'static) -> Answer {
    BoxBody::new(StreamBody::new(lines.map(|line| Ok(Frame::data(Bytes::from(line))))))
}

pub(crate) fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": "default", "name": "demo", "resourceVersion": "1" },
        "spec": { "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{ "port": 80 }] },
    })
}

pub(crate) fn slice(addresses: &[[u8; 4]]) -> Value {
    let endpoint = |address: &[u8; 4]| json!({ "addresses": [at(*address, 0).ip().to_string()] });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default", "name": "demo-1", "resourceVersion": "1",
            "labels": { "kubernetes.io/service-name": "demo" },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
    })
}
