//! An API that lists and watches what a test puts there.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// Objects by their collection's path, and whoever watches it.
#[derive(Default)]
struct Collections {
    objects: HashMap<&'static str, Vec<Value>>,
    watchers: HashMap<&'static str, mpsc::Sender<Value>>,
    /// Lists fail while this is set.
    broken: bool,
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Api(Arc<Mutex<Collections>>);

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl Api {
    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = api.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        Client::new(service, "default")
    }

    pub(crate) fn breaks(&self, broken: bool) {
        self.0.lock().expect("no panic while held").broken = broken;
    }

    /// Before anybody watches.
    pub(crate) fn put(&self, kind: Kind, object: Value) {
        let mut collections = self.0.lock().expect("no panic while held");
        collections.objects.entry(kind.path()).or_default().push(object);
    }

    /// Tells whoever watches: `ADDED`, `MODIFIED` or `DELETED`.
    pub(crate) async fn tell(&self, kind: Kind, event: &str, object: Value) {
        let watcher = loop {
            let watcher = {
                let collections = self.0.lock().expect("no panic while held");
                collections.watchers.get(kind.path()).cloned()
            };
            match watcher {
                Some(watcher) => break watcher,
                None => tokio::task::yield_now().await,
            }
        };
        watcher.send(json!({"type": event, "object": object})).await.expect("watched");
    }

    fn answer(&self, request: &Request<Body>) -> Answer {
        let mut collections = self.0.lock().expect("no panic while held");
        let (path, kind) = match request.uri().path() {
            SERVICES => (SERVICES, "ServiceList"),
            SLICES => (SLICES, "EndpointSliceList"),
            other => panic!("nobody should ask for {other}"),
        };
        if collections.broken {
            let mut answer = Response::new(Full::from("broken").boxed_unsync());
            *answer.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            return answer;
        }
        if request.uri().query().unwrap_or_default().contains("watch=true") {
            let (watcher, events) = mpsc::channel::<Value>(16);
            collections.watchers.insert(path, watcher);
            let lines =
                ReceiverStream::new(events).map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
            return Response::new(StreamBody::new(lines).boxed_unsync());
        }
        let items = collections.objects.get(path).cloned().unwrap_or_default();
        let list = json!({"kind": kind, "apiVersion": if path == SERVICES { "v1" } else { "discovery.k8s.io/v1" },
            "metadata": {"resourceVersion": "1"}, "items": items});
        Response::new(Full::from(list.to_string()).boxed_unsync())
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Service,
    Slice,
}

impl Kind {
    fn path(self) -> &'static str {
        match self {
            Self::Service => SERVICES,
            Self::Slice => SLICES,
        }
    }
}

pub(crate) fn service(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name, "resourceVersion": "2"}, "spec": spec})
}

/// Endpoints are {address, hostname or null, ready}.
pub(crate) fn slice(
    namespace: &str,
    name: &str,
    service: &str,
    endpoints: &[(&str, Option<&str>, bool)],
    ports: Value,
) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, hostname, ready)| {
            json!({"addresses": [address], "hostname": hostname, "conditions": {"ready": ready}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": namespace, "name": name, "resourceVersion": "2",
            "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": ports})
}
