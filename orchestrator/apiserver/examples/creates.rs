//! How many durable creates a second the whole server takes: `creates [CLIENTS] [SECONDS] [DIR]`.
//!
//! Each client creates ConfigMaps over a TLS connection of its own, in this process; so the figures hold for a
//! machine that also carries the clients.

use std::{env, path::PathBuf, sync::Arc, time::Duration, time::Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pith_apiserver::{Config, Server};
use pith_store::Embedded;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const PATH: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::main]
async fn main() {
    let mut args = env::args().skip(1);
    let number = |text: Option<String>, default| text.map_or(default, |text| text.parse().expect("a number"));
    let clients: u64 = number(args.next(), 64);
    let seconds: u64 = number(args.next(), 5);
    let dir = args.next().map_or_else(|| env::temp_dir().join("pith-creates"), PathBuf::from);

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let store = Arc::new(Embedded::open(&dir.join("store")).expect("the store opens"));
    let config = Config {
        dir: dir.clone(),
        cluster_name: "bench".to_owned(),
        advertise: address,
        further_addresses: Vec::new(),
        further_names: Vec::new(),
        service_cidr: "10.96.0.0/16".parse().expect("a range"),
        certificate_lifetime: pith_apiserver::pki::CLIENT_LIFETIME,
        tolerations: Default::default(),
    };
    let server = Server::open(config, store).await.expect("the server opens");
    println!("idle: {} KiB resident", resident_kib());
    let cancel = CancellationToken::new();
    let serving = tokio::spawn({
        let (server, cancel) = (server.clone(), cancel.clone());
        async move { server.serve(vec![listener], cancel).await }
    });

    let tls = tls(&server);
    let until = Instant::now() + Duration::from_secs(seconds);
    let tasks: Vec<_> =
        (0..clients).map(|client| tokio::spawn(run(client, address, tls.clone(), until))).collect();
    let mut times = Histogram::<u64>::new(3).expect("three digits");
    for task in tasks {
        times.add(task.await.expect("a client")).expect("histograms of one kind");
    }
    println!(
        "{} creates/s at {clients} clients; p50 {} µs, p99 {} µs, max {} µs; {} KiB resident",
        times.len() / seconds,
        times.value_at_quantile(0.5),
        times.value_at_quantile(0.99),
        times.max(),
        resident_kib(),
    );
    cancel.cancel();
    serving.await.expect("no panic").expect("no listener failed");
}

fn tls(server: &Server) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(server.pki().authority.certificate_der()).expect("an authority");
    let (chain, key) = server.pki().admin().expect("a certificate").der().expect("PEM");
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .expect("a client certificate");
    Arc::new(config)
}

async fn run(
    client: u64,
    address: std::net::SocketAddr,
    tls: Arc<ClientConfig>,
    until: Instant,
) -> Histogram<u64> {
    let tcp = TcpStream::connect(address).await.expect("a connection");
    tcp.set_nodelay(true).expect("a socket");
    let name = ServerName::from(address.ip());
    let tls = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await.expect("a handshake");
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await.expect("HTTP");
    let connection = tokio::spawn(connection);
    let mut times = Histogram::<u64>::new(3).expect("three digits");
    let run = std::process::id();
    for count in 0.. {
        let start = Instant::now();
        if start >= until {
            break;
        }
        let name = format!("r{run}-c{client}-{count}");
        let body = format!(
            r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"{name}"}},"data":{{"k":"{}"}}}}"#,
            "v".repeat(1000)
        );
        let request = Request::post(PATH)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))
            .expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::CREATED);
        answer.into_body().collect().await.expect("a body");
        times.record(start.elapsed().as_micros() as u64).expect("a duration in range");
    }
    drop(sender);
    // The server may have closed first.
    let _ = connection.await;
    times
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
