//! The joining side: from a bootstrap token to a node's certificates.
//!
//! ```text
//!  GET /cacerts (server not verified) ─► hash of its key = the token's? ─► trusted from here on
//!  POST certificatesigningrequests with the token, key made here        ─► client certificate
//!  POST certificatesigningrequests as that node                         ─► kubelet's serving certificate
//! ```
//! No private key ever leaves the process that made it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use x509_parser::prelude::FromDer;

use super::{
    Issued, authority,
    request::{KUBELET_SERVING_SIGNER, NODE_CLIENT_SIGNER, Pending, node_request},
    token::BootstrapToken,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Where the authority's certificate is served to anyone.
pub const AUTHORITY_PATH: &str = "/cacerts";

/// What a replica needs to take part.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub authority_pem: String,
    /// As `system:node:<name>`.
    pub client: Issued,
    /// For the kubelet's server.
    pub serving: Issued,
}

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{0:?} is not an https:// address of a primary")]
    Address(String),
    /// Worth another try.
    #[error("cannot reach {server}")]
    Unreachable {
        server: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{server} did not answer in time")]
    Timeout { server: String },
    #[error("the exchange with {server} broke off")]
    Http {
        server: String,
        #[source]
        source: hyper::Error,
    },
    #[error("{server} has another authority than the token was made for: {found} instead of {expected}")]
    WrongAuthority { server: String, found: String, expected: String },
    #[error("{server} refused: {message}")]
    Refused { server: String, message: String },
    #[error("{server} answered something else than was asked for: {what}")]
    Answer { server: String, what: String },
    #[error(transparent)]
    Pki(#[from] super::Error),
    #[error("TLS configuration")]
    Tls(#[source] rustls::Error),
}

/// Joins `node` to the cluster of the primary at `server` (`https://host:port`). `names` and `addresses` are those
/// that the node's kubelet will be reached by.
pub async fn join(
    server: &str,
    token: &BootstrapToken,
    node: &str,
    names: &[String],
    addresses: &[IpAddr],
) -> Result<Credentials, JoinError> {
    let authority_pem = authority(server, token.authority()).await?;
    let bearer = Caller::Token(token.bearer());
    let client = node_request(node, &[], &[])?;
    let client = certify(server, &authority_pem, bearer, node, NODE_CLIENT_SIGNER, client).await?;
    serving(server, authority_pem, client, node, names, addresses).await
}

/// Fresh certificates for a node whose own are about to expire.
pub async fn renew(
    server: &str,
    current: &Credentials,
    node: &str,
    names: &[String],
    addresses: &[IpAddr],
) -> Result<Credentials, JoinError> {
    let caller = Caller::Certificate(current.client.clone());
    let client = node_request(node, &[], &[])?;
    let client = certify(server, &current.authority_pem, caller, node, NODE_CLIENT_SIGNER, client).await?;
    serving(server, current.authority_pem.clone(), client, node, names, addresses).await
}

async fn serving(
    server: &str,
    authority_pem: String,
    client: Issued,
    node: &str,
    names: &[String],
    addresses: &[IpAddr],
) -> Result<Credentials, JoinError> {
    let caller = Caller::Certificate(client.clone());
    let serving = node_request(node, names, addresses)?;
    let serving = certify(server, &authority_pem, caller, node, KUBELET_SERVING_SIGNER, serving).await?;
    Ok(Credentials { authority_pem, client, serving })
}

enum Caller {
    Anyone,
    Token(String),
    Certificate(Issued),
}

/// The authority's certificate, checked against the hash if there is one; without, whoever answers is believed.
async fn authority(server: &str, hash: Option<&str>) -> Result<String, JoinError> {
    let request = Request::get(AUTHORITY_PATH).body(Full::default()).expect("a constant request");
    let (status, body) = exchange(server, tls(None, &Caller::Anyone)?, request).await?;
    let wrong = |what: &str| JoinError::Answer { server: server.to_owned(), what: what.to_owned() };
    let pem = String::from_utf8(body.to_vec()).map_err(|_| wrong("not text"))?;
    if status != StatusCode::OK {
        return Err(JoinError::Refused { server: server.to_owned(), message: pem });
    }
    let found = authority_hash(&pem).ok_or_else(|| wrong("not a certificate"))?;
    match hash {
        Some(expected) if expected != found => {
            Err(JoinError::WrongAuthority { server: server.to_owned(), found, expected: expected.to_owned() })
        }
        Some(_) => Ok(pem),
        None => {
            tracing::warn!(%server, authority = %found, "the token names no authority: this one is believed");
            Ok(pem)
        }
    }
}

/// `sha256:<hex>` of the key in an authority's certificate, as tokens name it; `None` if the text is no certificate.
pub fn authority_hash(pem: &str) -> Option<String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&der).ok()?;
    Some(authority::key_hash(certificate.public_key().raw))
}

async fn certify(
    server: &str,
    authority_pem: &str,
    caller: Caller,
    node: &str,
    signer: &str,
    pending: Pending,
) -> Result<Issued, JoinError> {
    let usage = if signer == NODE_CLIENT_SIGNER { "client auth" } else { "server auth" };
    let body = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"generateName": format!("node-csr-{node}-")},
        "spec": {
            "request": BASE64_STANDARD.encode(&pending.request_pem),
            "signerName": signer,
            "usages": ["digital signature", usage],
        },
    });
    let mut request = Request::builder()
        .method(Method::POST)
        .uri("/apis/certificates.k8s.io/v1/certificatesigningrequests")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json");
    if let Caller::Token(token) = &caller {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::from(body.to_string())).expect("a token is a valid header");
    let (status, body) = exchange(server, tls(Some(authority_pem), &caller)?, request).await?;
    let wrong = |what: String| JoinError::Answer { server: server.to_owned(), what };
    let answer: Value = serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
    let refused = |message: &Value| JoinError::Refused {
        server: server.to_owned(),
        message: message.as_str().unwrap_or("no reason given").to_owned(),
    };
    if !status.is_success() {
        return Err(refused(&answer["message"]));
    }
    // The primary decides on a node's request while it is created.
    let Some(certificate) = answer["status"]["certificate"].as_str() else {
        return Err(refused(&answer["status"]["conditions"][0]["message"]));
    };
    let certificate = BASE64_STANDARD.decode(certificate).ok().and_then(|pem| String::from_utf8(pem).ok());
    let certificate_pem = certificate.ok_or_else(|| wrong("a certificate that is not PEM".to_owned()))?;
    Ok(Issued { certificate_pem, key_pem: pending.key_pem })
}

/// TLS towards the primary; without an authority nothing is verified, see [`authority`].
fn tls(authority_pem: Option<&str>, caller: &Caller) -> Result<Arc<ClientConfig>, JoinError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(JoinError::Tls)?;
    let config = match authority_pem {
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()).flatten() {
                roots.add(certificate).map_err(JoinError::Tls)?;
            }
            config.with_root_certificates(roots)
        }
        None => config.dangerous().with_custom_certificate_verifier(Arc::new(NotYet { provider })),
    };
    match caller {
        Caller::Certificate(issued) => {
            let (chain, key) = issued.der().ok_or_else(|| JoinError::Answer {
                server: String::new(),
                what: "a certificate that is not PEM".to_owned(),
            })?;
            config.with_client_auth_cert(chain, key).map(Arc::new).map_err(JoinError::Tls)
        }
        Caller::Anyone | Caller::Token(_) => Ok(Arc::new(config.with_no_client_auth())),
    }
}

/// One request on a connection of its own.
async fn exchange(
    server: &str,
    tls: Arc<ClientConfig>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), JoinError> {
    let bad_address = || JoinError::Address(server.to_owned());
    let uri: Uri = server.parse().map_err(|_| bad_address())?;
    let (Some("https"), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err(bad_address()) };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| bad_address())?;
    let authority = uri.authority().map(ToString::to_string).ok_or_else(bad_address)?;
    let unreachable = |source| JoinError::Unreachable { server: server.to_owned(), source };
    let timeout = |_| JoinError::Timeout { server: server.to_owned() };
    let broken = |source| JoinError::Http { server: server.to_owned(), source };

    let port = uri.port_u16().unwrap_or(443);
    let connect = TcpStream::connect((host, port));
    let stream =
        tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(timeout)?.map_err(unreachable)?;
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.map_err(unreachable)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let (mut parts, body) = request.into_parts();
    let host = authority.parse().map_err(|_| bad_address())?;
    parts.headers.insert(header::HOST, host);
    let talk = async {
        let answer = sender.send_request(Request::from_parts(parts, body)).await.map_err(broken)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body =
            body.map_err(|error| JoinError::Answer { server: server.to_owned(), what: error.to_string() })?;
        Ok((status, body.to_bytes()))
    };
    // The connection only makes progress while it is polled; it ends with the exchange.
    let both = async {
        tokio::select! {
            // Cancelling the connection is what ends it; cancelling the talk happens when the peer hangs up first.
            answer = talk => answer,
            closed = connection => Err(match closed {
                Err(source) => broken(source),
                Ok(()) => JoinError::Answer { server: server.to_owned(), what: "nothing".to_owned() },
            }),
        }
    };
    tokio::time::timeout(REQUEST_TIMEOUT, both).await.map_err(timeout)?
}

/// Accepts any server: only for fetching the authority's certificate, which is then compared with the token's
/// hash. Nothing secret is sent.
#[derive(Debug)]
struct NotYet {
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for NotYet {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
