//! The driver against an API that says what the test wants, seen by real sockets.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use crate::support::{DEADLINE, Sandbox, at, ip};
use bytes::Bytes;
use futures::{StreamExt, channel::mpsc, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{StreamBody, combinators::BoxBody};
use pith_proxy::{Datapath, NodeIdentity, filters, run};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const SERVICE: [u8; 4] = [10, 96, 0, 10];
const SERVERS: [[u8; 4]; 3] = [[127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 4]];
pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub(crate) const NODES: &str = "/api/v1/nodes";

type Answer = BoxBody<Bytes, Infallible>;

/// Objects by path, and the watches that are open.
#[derive(Clone, Default)]
pub(crate) struct Api {
    lists: Arc<Mutex<HashMap<String, Vec<Value>>>>,
    watches: Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Value>>>>,
}

impl Api {
    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let answer = api.answer(&request);
            async move { Ok::<_, Infallible>(Response::new(answer)) }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, request: &Request<kube::client::Body>) -> Answer {
        let path = request.uri().path().to_owned();
        let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        if watch {
            let (sender, events) = mpsc::unbounded();
            self.watches.lock().expect("no test thread panics with it").insert(path, sender);
            return body(events.map(|event| format!("{event}\n")));
        }
        let items = self.lists.lock().expect("no test thread panics with it").get(&path).cloned();
        let list = json!({
            "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": "1" },
            "items": items.unwrap_or_default(),
        });
        body(stream::iter([list.to_string()]))
    }

    pub(crate) fn list(&self, path: &str, items: &[Value]) {
        self.lists.lock().expect("no test thread panics with it").insert(path.to_owned(), items.to_vec());
    }

    fn tell(&self, path: &str, kind: &str, object: &Value) {
        let watches = self.watches.lock().expect("no test thread panics with it");
        let watch = watches.get(path).expect("the driver watches");
        watch.unbounded_send(json!({ "type": kind, "object": object })).expect("the watch is open");
    }
}

fn body(lines: impl futures::Stream<Item = String> + Send + Sync + 'static) -> Answer {
    BoxBody::new(StreamBody::new(lines.map(|line| Ok(Frame::data(Bytes::from(line))))))
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": "default", "name": "demo", "resourceVersion": "1" },
        "spec": { "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{ "port": 80 }] },
    })
}

fn slice(addresses: &[[u8; 4]]) -> Value {
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

fn server(address: [u8; 4]) {
    let listener = TcpListener::bind(at(address, 8080)).expect("a server's address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // A client that went away is its own business.
            let _ = stream.write_all(&address);
        }
    });
}

/// Who answers one connection to the Service.
fn ask() -> Result<[u8; 4], ErrorKind> {
    let ask = || {
        let mut stream = TcpStream::connect(at(SERVICE, 80))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    ask().map_err(|error| error.kind())
}

/// Waits until twenty connections in a row end as expected.
async fn until(what: &str, expect: &[Result<[u8; 4], ErrorKind>]) {
    let expect: BTreeSet<_> = expect.iter().map(|answer| format!("{answer:?}")).collect();
    let started = Instant::now();
    loop {
        let answers: BTreeSet<_> = (0..20).map(|_| format!("{:?}", ask())).collect();
        if answers == expect {
            return;
        }
        assert!(started.elapsed() < DEADLINE, "{what}: {answers:?} and not {expect:?}");
        tokio::task::yield_now().await;
    }
}

#[test]
fn the_maps_follow_the_api() {
    Sandbox::run("driver", |sandbox| {
        SERVERS.into_iter().for_each(server);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let api = Api::default();
            let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node" } });
            api.list(NODES, &[node]);
            api.list(SERVICES, &[service()]);
            api.list(SLICES, &[slice(&SERVERS[..2])]);
            let cancel = CancellationToken::new();
            let start = || {
                let datapath = Datapath::open(&sandbox.config()).expect("the datapath opens");
                let node = NodeIdentity::new("node");
                tokio::spawn(run(api.client(), datapath, node, cancel.child_token()))
            };
            let driver = start();
            until("as listed", &[Ok(SERVERS[0]), Ok(SERVERS[1])]).await;

            api.tell(SLICES, "MODIFIED", &slice(&SERVERS[1..]));
            until("another endpoint", &[Ok(SERVERS[1]), Ok(SERVERS[2])]).await;
            api.tell(SLICES, "MODIFIED", &slice(&[]));
            until("no endpoint", &[Err(ErrorKind::ConnectionRefused)]).await;
            api.tell(SLICES, "MODIFIED", &slice(&SERVERS[..1]));
            until("one endpoint", &[Ok(SERVERS[0])]).await;

            // Killed, and while it is away the endpoint moves.
            driver.abort();
            assert!(driver.await.expect_err("it was aborted").is_cancelled());
            until("nobody drives", &[Ok(SERVERS[0])]).await;
            api.list(SLICES, &[slice(&SERVERS[2..])]);
            let driver = start();
            until("the next one", &[Ok(SERVERS[2])]).await;

            api.tell(SERVICES, "DELETED", &service());
            until("no Service", &[Err(ErrorKind::NetworkUnreachable)]).await;

            cancel.cancel();
            let ended = tokio::time::timeout(DEADLINE, driver).await.expect("it ends in time");
            ended.expect("it does not panic").expect("it ends well");
        });
    });
}

/// Pods' links get their programs as they come, and nothing is kept of those that went.
#[test]
fn pods_links_are_followed() {
    Sandbox::run("driver-pods", |sandbox| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let programs = |interface: &str| {
            let index = nix::net::if_::if_nametoindex(interface).expect("the interface is there");
            filters(index).expect("filters can be listed").len()
        };
        ip("link add pod-0 type veth peer name peer-0");
        runtime.block_on(async {
            let mut config = sandbox.config();
            config.pod_interfaces = Some("pod-".into());
            let datapath = Datapath::open(&config).expect("the datapath opens");
            let cancel = CancellationToken::new();
            let api = Api::default();
            let driver = tokio::spawn(run(api.client(), datapath, NodeIdentity::new("node"), cancel.clone()));
            let started = Instant::now();
            let is = async |interface: &str, count| {
                while programs(interface) != count {
                    assert!(started.elapsed() < DEADLINE, "{interface} has {}", programs(interface));
                    tokio::task::yield_now().await;
                }
            };
            is("pod-0", 2).await;
            for round in 0..10 {
                ip("link add pod-1 type veth peer name peer-1");
                ip("link add other type veth peer name pod-2");
                is("pod-1", 2).await;
                is("pod-2", 2).await;
                assert_eq!((programs("other"), programs("peer-1")), (0, 0), "round {round}");
                // A name that was not a pod's becomes one.
                ip("link set other name pod-3");
                is("pod-3", 2).await;
                ip("link del pod-1");
                ip("link del pod-2");
            }
            cancel.cancel();
            let ended = tokio::time::timeout(DEADLINE, driver).await.expect("it ends in time");
            ended.expect("it does not panic").expect("it ends well");
        });
        assert_eq!(programs("pod-0"), 2, "they need no process");
    });
}
