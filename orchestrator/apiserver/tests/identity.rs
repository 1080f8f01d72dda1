//! Who gets in and what they may do, over TLS: certificates, tokens, joining, and the streams to a kubelet.

mod harness;

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use harness::{DEADLINE, Listening};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use pith_apiserver::{
    Identity,
    pki::{
        Issued,
        join::{Credentials, JoinError, join, renew},
        token::BootstrapToken,
    },
};
use rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")).expect("an authority");
    roots
}

/// What a client shows.
enum Shows<'a> {
    Nothing,
    Token(&'a str),
    Certificate(&'a Issued),
}

/// One request over a TLS connection of its own.
async fn send(
    cluster: &Listening,
    shows: Shows<'_>,
    mut request: Request<Full<Bytes>>,
) -> Response<Incoming> {
    let authority = cluster.server.pki().authority.certificate_pem();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("TLS versions")
        .with_root_certificates(roots(authority));
    let config = match shows {
        Shows::Certificate(issued) => {
            let (chain, key) = issued.der().expect("PEM");
            config.with_client_auth_cert(chain, key).expect("a client certificate")
        }
        Shows::Token(token) => {
            let value = format!("Bearer {token}").parse().expect("a header");
            request.headers_mut().insert(header::AUTHORIZATION, value);
            config.with_no_client_auth()
        }
        Shows::Nothing => config.with_no_client_auth(),
    };
    let tcp = TcpStream::connect(cluster.address).await.expect("a connection");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tls = connector.connect(ServerName::from(LOOPBACK), tcp).await.expect("the server is who it says");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.expect("HTTP");
    tokio::spawn(connection.with_upgrades());
    request.headers_mut().insert(header::HOST, "localhost".parse().expect("a header"));
    let answer = sender.send_request(request).await.expect("an answer");
    // Dropping the sender would end the connection before the body is read.
    tokio::spawn(async move {
        let _ = sender.ready().await;
    });
    answer
}

async fn ask(
    cluster: &Listening,
    shows: Shows<'_>,
    method: Method,
    path: &str,
    body: &Value,
) -> (StatusCode, Value) {
    let body = if body.is_null() { Full::default() } else { Full::from(body.to_string()) };
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let answer = send(cluster, shows, request.body(body).expect("a request")).await;
    let status = answer.status();
    let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
    (
        status,
        serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into()),
    )
}

async fn admin(cluster: &Listening, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let request = request.body(kube::client::Body::from(body.to_string().into_bytes())).expect("a request");
    harness::read(cluster.server.client(Identity::admin()).send(request).await.expect("an answer")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_do_not_say_who_they_are_see_little() {
    let cluster = Listening::new().await;
    for path in ["/version", "/healthz", "/livez", "/readyz", "/cacerts"] {
        assert_eq!(
            ask(&cluster, Shows::Nothing, Method::GET, path, &Value::Null).await.0,
            StatusCode::OK,
            "{path}"
        );
    }
    for path in
        ["/api", "/apis", "/metrics", "/api/v1/namespaces", "/api/v1/nothing", "/openapi/v3", "/other"]
    {
        let (status, answer) = ask(&cluster, Shows::Nothing, Method::GET, path, &Value::Null).await;
        assert_eq!((status, &answer["reason"]), (StatusCode::UNAUTHORIZED, &json!("Unauthorized")), "{path}");
    }
    for token in ["rubbish", "abcdef.0123456789abcdef", "a.b.c"] {
        let (status, _) = ask(&cluster, Shows::Token(token), Method::GET, "/version", &Value::Null).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{token}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn service_accounts_prove_themselves_for_as_long_as_their_pod_lives() {
    let cluster = Listening::new().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    admin(&cluster, Method::POST, accounts, json!({"metadata": {"name": "default"}})).await;
    let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let (_, pod) = admin(&cluster, Method::POST, "/api/v1/namespaces/default/pods", pod).await;
    let request = json!({"spec": {
        "audiences": [], "expirationSeconds": 3607,
        "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "a", "uid": pod["metadata"]["uid"]},
    }});
    let (status, answer) = admin(&cluster, Method::POST, &format!("{accounts}/default/token"), request).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert!(answer["status"]["expirationTimestamp"].is_string());
    let token = answer["status"]["token"].as_str().expect("a token").to_owned();

    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (status, answer) = ask(&cluster, Shows::Token(&token), Method::POST, path, &review).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let info = &answer["status"]["userInfo"];
    assert_eq!(info["username"], "system:serviceaccount:default:default");
    assert_eq!(info["extra"]["authentication.kubernetes.io/pod-name"], json!(["a"]));
    let (status, answer) =
        ask(&cluster, Shows::Token(&token), Method::GET, "/api/v1/pods", &Value::Null).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(
        answer["message"],
        "pods is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"pods\" in API \
         group \"\" at the cluster scope"
    );
    let (_, review) = admin(
        &cluster,
        Method::POST,
        "/apis/authentication.k8s.io/v1/tokenreviews",
        json!({"spec": {"token": token}}),
    )
    .await;
    assert_eq!(review["status"]["authenticated"], true);

    admin(&cluster, Method::DELETE, "/api/v1/namespaces/default/pods/a", json!({"gracePeriodSeconds": 0}))
        .await;
    let (status, _) = ask(&cluster, Shows::Token(&token), Method::GET, "/api", &Value::Null).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "the pod is gone, and its token with it");
    let short = json!({"spec": {"expirationSeconds": 10}});
    let (status, _) = admin(&cluster, Method::POST, &format!("{accounts}/default/token"), short).await;
    assert!(status.is_client_error());
    cluster.stop().await;
}

async fn joined(cluster: &Listening, node: &str) -> Credentials {
    let token = cluster.server.create_token(Duration::from_secs(60)).await.expect("a token");
    join(&cluster.url(), &token, node, &[node.to_owned()], &[LOOPBACK]).await.expect("the node joins")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_and_speaks_only_for_itself() {
    let cluster = Listening::new().await;
    let node = joined(&cluster, "replica-1").await;
    let shows = || Shows::Certificate(&node.client);
    let own = json!({"metadata": {"name": "replica-1"}});
    let (status, answer) = ask(&cluster, shows(), Method::POST, "/api/v1/nodes", &own).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let other = json!({"metadata": {"name": "replica-2"}});
    let (status, answer) = ask(&cluster, shows(), Method::POST, "/api/v1/nodes", &other).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    for (method, path, expect) in [
        (Method::GET, "/api/v1/services", StatusCode::OK),
        (Method::GET, "/api/v1/secrets", StatusCode::FORBIDDEN),
        (Method::DELETE, "/api/v1/nodes/replica-1", StatusCode::FORBIDDEN),
        (Method::GET, "/apis/apps/v1/deployments", StatusCode::FORBIDDEN),
    ] {
        assert_eq!(ask(&cluster, shows(), method, path, &Value::Null).await.0, expect, "{path}");
    }
    let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "replica-2", "containers": [{"name": "c", "image": "i"}]}});
    admin(
        &cluster,
        Method::POST,
        "/api/v1/namespaces/default/serviceaccounts",
        json!({"metadata": {"name": "default"}}),
    )
    .await;
    let (status, answer) = admin(&cluster, Method::POST, "/api/v1/namespaces/default/pods", pod).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let path = "/api/v1/namespaces/default/pods/a";
    let (status, _) = ask(&cluster, shows(), Method::DELETE, path, &Value::Null).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "another node's pod");

    let secrets = "/api/v1/namespaces/default/secrets";
    for name in ["used", "unused"] {
        admin(&cluster, Method::POST, secrets, json!({"metadata": {"name": name}})).await;
    }
    let pod = json!({"metadata": {"name": "b"}, "spec": {
        "nodeName": "replica-1",
        "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": "used"}}]}],
    }});
    admin(&cluster, Method::POST, "/api/v1/namespaces/default/pods", pod).await;
    for (path, expect) in [
        (format!("{secrets}/used"), StatusCode::OK),
        (format!("{secrets}?fieldSelector=metadata.name%3Dused"), StatusCode::OK),
        (format!("{secrets}/unused"), StatusCode::FORBIDDEN),
        (secrets.to_owned(), StatusCode::FORBIDDEN),
        ("/api/v1/namespaces/default/configmaps/kube-root-ca.crt".to_owned(), StatusCode::NOT_FOUND),
    ] {
        assert_eq!(ask(&cluster, shows(), Method::GET, &path, &Value::Null).await.0, expect, "{path}");
    }

    let fresh = renew(&cluster.url(), &node, "replica-1", &[], &[LOOPBACK]).await.expect("a renewal");
    assert_ne!(fresh.client.certificate_pem, node.client.certificate_pem);
    let stolen = renew(&cluster.url(), &node, "replica-2", &[], &[LOOPBACK]).await;
    assert!(matches!(stolen, Err(JoinError::Refused { .. })), "{stolen:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_fails_with_a_reason() {
    let cluster = Listening::new().await;
    let good = cluster.server.create_token(Duration::from_secs(60)).await.expect("a token");
    let elsewhere: BootstrapToken =
        format!("{}@sha256:{}", good.bearer(), "0".repeat(64)).parse().expect("a token");
    let unknown = BootstrapToken::generate(good.authority().expect("its authority"));
    let expired = cluster.server.create_token(Duration::ZERO).await.expect("a token");
    let try_join = async |url: &str, token: &BootstrapToken| {
        join(url, token, "n", &[], &[LOOPBACK]).await.expect_err("no joining").to_string()
    };
    let url = cluster.url();
    assert!(try_join(&url, &elsewhere).await.contains("another authority"));
    assert!(try_join(&url, &unknown).await.contains("Unauthorized"));
    assert!(try_join(&url, &expired).await.contains("Unauthorized"));
    assert!(try_join("https://127.0.0.1:1", &good).await.contains("cannot reach"));
    assert!(try_join("http://127.0.0.1:1", &good).await.contains("is not an https://"));
    cluster.stop().await;
}

/// A kubelet with the node's serving certificate: streams logs in two parts, echoes what it is sent on exec, and
/// demands the primary's certificate.
async fn kubelet(credentials: &Credentials) -> u16 {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&credentials.authority_pem)), provider());
    let (chain, key) = credentials.serving.der().expect("PEM");
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("TLS versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(chain, key)
        .expect("a server certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOOPBACK, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let tls = acceptor.accept(tcp).await.expect("the primary shows its certificate");
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tls), service_fn(kubelet_answer));
                let _ = connection.with_upgrades().await;
            });
        }
    });
    port
}

async fn kubelet_answer(
    mut request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let target = request.uri().to_string();
    assert!(
        !request.headers().contains_key(header::AUTHORIZATION),
        "the client's token stays with the primary"
    );
    if !target.starts_with("/exec/") {
        return Ok(Response::new(Full::from(target)));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.expect("an upgrade"));
        stream.write_all(format!("{target}\n").as_bytes()).await.expect("a client");
        let mut byte = [0; 1];
        while stream.read_exact(&mut byte).await.is_ok() {
            stream.write_all(&byte).await.expect("a client");
            if byte[0] == b'.' {
                break;
            }
        }
    });
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, "Upgrade".parse().expect("a header"));
    answer.headers_mut().insert(header::UPGRADE, "SPDY/3.1".parse().expect("a header"));
    answer.headers_mut().insert("x-stream-protocol-version", "v4.channel.k8s.io".parse().expect("a header"));
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_through_to_the_kubelet() {
    let cluster = Listening::new().await;
    let credentials = joined(&cluster, "replica-1").await;
    let port = kubelet(&credentials).await;
    let status = json!({
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    });
    let node = json!({"metadata": {"name": "replica-1"}, "status": status});
    let (code, answer) = admin(&cluster, Method::POST, "/api/v1/nodes", node).await;
    assert_eq!(code, StatusCode::CREATED, "{answer}");
    admin(
        &cluster,
        Method::POST,
        "/api/v1/namespaces/default/serviceaccounts",
        json!({"metadata": {"name": "default"}}),
    )
    .await;
    for (name, node) in [("a", json!("replica-1")), ("b", Value::Null)] {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
        let (code, answer) = admin(&cluster, Method::POST, "/api/v1/namespaces/default/pods", pod).await;
        assert_eq!(code, StatusCode::CREATED, "{answer}");
    }
    let issued = cluster.server.pki().admin().expect("a certificate");
    let shows = || Shows::Certificate(&issued);
    let pods = "/api/v1/namespaces/default/pods";
    let (code, log) =
        ask(&cluster, shows(), Method::GET, &format!("{pods}/a/log?follow=true&container=c"), &Value::Null)
            .await;
    assert_eq!((code, log), (StatusCode::OK, json!("/containerLogs/default/a/c?follow=true")));
    let (code, metrics) =
        ask(&cluster, shows(), Method::GET, "/api/v1/nodes/replica-1/proxy/metrics?x=1", &Value::Null).await;
    assert_eq!((code, metrics), (StatusCode::OK, json!("/metrics?x=1")));
    for (path, expect, text) in [
        (format!("{pods}/b/log"), StatusCode::BAD_REQUEST, "does not have a host assigned"),
        (format!("{pods}/a/log?container=x"), StatusCode::BAD_REQUEST, "container x is not valid for pod a"),
        (format!("{pods}/z/log"), StatusCode::NOT_FOUND, "pods \"z\" not found"),
    ] {
        let (code, answer) = ask(&cluster, shows(), Method::GET, &path, &Value::Null).await;
        assert_eq!(code, expect, "{path}");
        assert!(answer["message"].as_str().is_some_and(|message| message.contains(text)), "{answer}");
    }

    let request = Request::post(format!("{pods}/a/exec?command=cat&stdin=true&stdout=true"))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("x-stream-protocol-version", "v4.channel.k8s.io")
        .body(Full::default())
        .expect("a request");
    let answer = send(&cluster, shows(), request).await;
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(answer.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
    let mut stream = TokioIo::new(hyper::upgrade::on(answer).await.expect("an upgrade"));
    stream.write_all(b"hello.").await.expect("a stream");
    let mut echoed = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut echoed)).await.expect("in time").expect("text");
    assert_eq!(echoed, "/exec/default/a/c?command=cat&input=1&output=1\nhello.");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_watches_and_lets_go_of_the_port() {
    let cluster = Listening::new().await;
    let issued = cluster.server.pki().admin().expect("a certificate");
    let request = Request::get("/api/v1/namespaces?watch=true").body(Full::default()).expect("a request");
    let watch = send(&cluster, Shows::Certificate(&issued), request).await;
    let address = cluster.address;
    let reading = tokio::spawn(watch.into_body().collect());
    cluster.stop().await;
    let ended = tokio::time::timeout(DEADLINE, reading).await.expect("the watch ends");
    assert!(ended.expect("no panic").is_ok(), "the watch ends as it should, not torn");
    TcpListener::bind(address).await.expect("the port is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_may_act_as_someone_else_and_nobody_else_may() {
    let cluster = Listening::new().await;
    let node = joined(&cluster, "replica-1").await;
    let issued = cluster.server.pki().admin().expect("a certificate");
    let whoami = |name: &str| {
        Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("content-type", "application/json")
            .header("impersonate-user", name)
            .body(Full::from("{}"))
            .expect("a request")
    };
    let answer = send(&cluster, Shows::Certificate(&issued), whoami("system:serviceaccount:a:b")).await;
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    let review: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(review["status"]["userInfo"]["username"], "system:serviceaccount:a:b");
    assert!(
        review["status"]["userInfo"]["groups"]
            .as_array()
            .is_some_and(|g| g.contains(&json!("system:serviceaccounts:a")))
    );
    let answer = send(&cluster, Shows::Certificate(&node.client), whoami("kubernetes-admin")).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    cluster.stop().await;
}
