//! The driver against an API that says what the test wants, seen by real sockets.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Instant,
};

use crate::support::{
    DEADLINE, Sandbox,
    api::{Api, NODES, SERVICES, SLICES, service, slice},
    at, ip,
};
use pith_proxy::{Datapath, NodeIdentity, filters, run};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const SERVICE: [u8; 4] = [10, 96, 0, 10];
const SERVERS: [[u8; 4]; 3] = [[127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 4]];

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

/// What a path of the proxy's own server says.
fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("somebody answers");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline can be set");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

/// The value of a metric, whose name may have labels.
fn metric(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map(|value| value.parse().expect("a number"))
}

#[test]
fn a_limit_is_told_and_the_rest_goes_on() {
    Sandbox::run("driver-limit", |sandbox| {
        SERVERS.into_iter().for_each(server);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let api = Api::default();
            let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node" } });
            api.list(NODES, &[node]);
            api.list(SERVICES, &[service()]);
            api.list("/api/v1/namespaces/default/services/demo", &[service()]);
            api.list(SLICES, &[slice(&SERVERS[..1])]);
            let mut config = sandbox.config();
            // One endpoint, and the next generation of it.
            config.limits.backends = 2;
            let datapath = Datapath::open(&config).expect("the datapath opens");
            let metrics = datapath.metrics();
            let (asked, asked_health) = (at([127, 0, 0, 1], 10249).into(), at([127, 0, 0, 1], 10256).into());
            let cancel = CancellationToken::new();
            let serving = tokio::spawn(metrics.clone().serve(asked, cancel.clone()));
            let health = tokio::spawn(metrics.serve_health(asked_health, cancel.clone()));
            let driver = tokio::spawn(run(api.client(), datapath, NodeIdentity::new("node"), cancel.clone()));
            until("as listed", &[Ok(SERVERS[0])]).await;
            assert!(get(asked_health, "/healthz").starts_with("HTTP/1.1 200 "));
            assert!(get(asked_health, "/metrics").starts_with("HTTP/1.1 404 "));
            let text = get(asked, "/metrics");
            for (name, at_least) in [
                ("pith_proxy_verdicts_total{reason=\"socket_translated\"}", 20.0),
                ("pith_proxy_map_entries{map=\"BACKENDS\"}", 1.0),
                ("pith_proxy_map_max_entries{map=\"BACKENDS\"}", 2.0),
                ("kubeproxy_sync_proxy_rules_duration_seconds_count", 1.0),
                ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", 1.7e9),
                ("kubeproxy_sync_proxy_rules_service_changes_total", 1.0),
                ("kubeproxy_sync_proxy_rules_endpoint_changes_total", 1.0),
                ("pith_proxy_services_not_applied", 0.0),
            ] {
                assert!(metric(&text, name).is_some_and(|value| value >= at_least), "{name} in {text}");
            }

            let until_metric = async |expect: f64| {
                let started = Instant::now();
                while metric(&get(asked, "/metrics"), "pith_proxy_services_not_applied") != Some(expect) {
                    assert!(started.elapsed() < DEADLINE, "{}", get(asked, "/metrics"));
                    tokio::task::yield_now().await;
                }
            };
            api.tell(SLICES, "MODIFIED", &slice(&SERVERS));
            until_metric(1.0).await;
            until("the old generation goes on", &[Ok(SERVERS[0])]).await;
            let started = Instant::now();
            while api.created().is_empty() {
                assert!(started.elapsed() < DEADLINE, "no event");
                tokio::task::yield_now().await;
            }
            api.tell(SLICES, "MODIFIED", &slice(&SERVERS[1..2]));
            until_metric(0.0).await;
            until("what there is room for", &[Ok(SERVERS[1])]).await;
            let events = api.created();
            assert_eq!(events.len(), 1, "it is told once: {events:?}");
            let event = &events[0];
            assert_eq!((&event["reason"], &event["type"]), (&json!("ProxyLimitReached"), &json!("Warning")));
            assert_eq!(event["regarding"]["name"], "demo");
            let note = event["note"].as_str().unwrap_or_default();
            assert!(note.contains("2 backends") && note.contains("--limit-backends"), "{note}");

            cancel.cancel();
            for task in [serving, health] {
                task.await.expect("it does not panic").expect("it ends well");
            }
            driver.await.expect("it does not panic").expect("it ends well");
        });
    });
}
