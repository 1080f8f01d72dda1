//! Against a primary on the loopback whose certificates are good for seconds.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use pith_apiserver::{Config, Server};
use pith_store::Embedded;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

const LIFETIME: Duration = Duration::from_secs(8);
const DEADLINE: Duration = Duration::from_secs(60);

struct Primary {
    server: Server,
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), pith_apiserver::Error>>,
}

impl Primary {
    async fn open(dir: &Path) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let config = Config {
            dir: dir.to_owned(),
            cluster_name: "test".to_owned(),
            advertise: address,
            further_addresses: Vec::new(),
            further_names: Vec::new(),
            service_cidr: "10.96.0.0/16".parse().expect("a range"),
            certificate_lifetime: LIFETIME,
            tolerations: Default::default(),
        };
        let store = Embedded::open(&dir.join("store")).expect("the store opens");
        let server = Server::open(config, Arc::new(store)).await.expect("the server opens");
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let (server, stop) = (server.clone(), stop.clone());
            async move { server.serve(vec![listener], stop).await }
        });
        Self { server, address, stop, task }
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        (&mut self.task).await.expect("no panic").expect("no listener failed");
    }

    /// Joins as a node of its own.
    async fn member(&self, dir: &Path) -> Renewal {
        let token = self.server.create_token(DEADLINE).await.expect("a token");
        let member = member();
        let url = format!("https://{}", self.address);
        let kept = Kept::join(dir, &url, &token, &member).await.expect("the node joins");
        Renewal::new(kept, member).await.expect("certificates that can be used")
    }
}

/// Its first certificate is good for 4 s: without the next ones the last requests would be refused.
#[tokio::test]
async fn the_client_goes_on_while_certificates_come_and_go() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let primary = Primary::open(dir.path()).await;
    let kept = dir.path().join("credentials");
    let renewal = primary.member(&kept).await;
    let first = renewal.kept.connect(&member()).await.expect("a client");
    first.list_api_groups().await.expect("good for now");
    let (client, mut serving) = (renewal.client(), renewal.serving());
    let stop = CancellationToken::new();
    let task = tokio::spawn(renewal.run(stop.clone()));

    let nodes: Api<Node> = Api::all(client);
    let node = serde_json::from_value(json!({"metadata": {"name": "replica-1"}})).expect("a node");
    nodes.create(&PostParams::default(), &node).await.expect("it may");
    for _ in 0..2 {
        tokio::time::timeout(DEADLINE, serving.changed()).await.expect("in time").expect("it renews");
        nodes.get("replica-1").await.expect("the newest certificate is good");
    }
    first.list_api_groups().await.expect_err("neither the certificate is good any more nor its connection");
    stop.cancel();
    task.await.expect("no panic").expect("nothing failed");

    let newest = Kept::read(&kept).expect("what is on disk is complete");
    assert!(newest.credentials.serving.key_pem.starts_with(&serving.borrow().certificate));
    let client = newest.connect(&member()).await.expect("a client");
    client.list_api_groups().await.expect("the primary takes it");
}

/// Whether nobody answers or the answer is no: what there is stays in use, in memory and on disk.
#[tokio::test]
async fn a_renewal_that_fails_changes_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut primary = Primary::open(dir.path()).await;
    let kept = dir.path().join("credentials");
    let mut renewal = primary.member(&kept).await;
    let before = renewal.kept.credentials.client.certificate_pem.clone();
    let unchanged = |renewal: &Renewal| {
        let on_disk = Kept::read(&kept).expect("complete").credentials.client.certificate_pem;
        before == renewal.kept.credentials.client.certificate_pem && before == on_disk
    };

    renewal.member.node = "replica-2".to_owned();
    let error = renewal.renew().await.expect_err("only the node itself may ask");
    assert!(format!("{error:#}").contains("refused"), "{error:#}");
    assert!(unchanged(&renewal));
    renewal.member = member();
    primary.stop().await;
    let error = renewal.renew().await.expect_err("nobody is there");
    assert!(format!("{error:#}").contains("cannot reach"), "{error:#}");
    assert!(unchanged(&renewal));
}

fn member() -> Member {
    Member { node: "replica-1".to_owned(), address: IpAddr::V4(Ipv4Addr::LOCALHOST) }
}
