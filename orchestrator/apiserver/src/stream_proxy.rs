//! Requests that a kubelet, a pod or a Service answers: logs, exec, attach, port-forward, proxy.
//!
//! The request is sent on as it came, over a connection of its own; where the other side upgrades it, the two
//! connections are joined byte for byte and neither SPDY nor WebSocket is looked at.
//!
//! ```text
//!  client ══ 101 ══ primary ══ 101 ══ kubelet (TLS, as kube-apiserver-kubelet-client)
//! ```

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures::TryStreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header, request::Parts};
use http_body_util::BodyExt;
use hyper::{client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use pith_api::{ApiError, Reason, meta};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
};

use crate::{
    http::{Body, BoxError, RequestBody},
    pki::{self, Pki},
    tls::Renewed,
    verbs::Call,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the other side may take until it begins to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const KUBELET_PORT: u64 = 10_250;
/// Bytes after which no more of a refusal is read.
const REFUSAL_MAX: usize = 10 << 10;

/// Headers that are about one connection, not about the request.
const HOP_BY_HOP: &[&str] = &["keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"];

/// How kubelets are reached.
pub(crate) struct Kubelets {
    tls: Renewed<ClientConfig>,
}

impl Kubelets {
    pub(crate) fn new(pki: &Arc<Pki>) -> Result<Self, pki::Error> {
        let issuer = pki.clone();
        Ok(Self { tls: Renewed::new(pki, move || client_config(&issuer))? })
    }
}

fn client_config(pki: &Pki) -> Result<Arc<ClientConfig>, pki::Error> {
    let failed = |source| pki::Error::Tls { subject: "the connection to kubelets".to_owned(), source };
    let mut roots = RootCertStore::empty();
    roots.add(pki.authority.certificate_der()).map_err(failed)?;
    let issued = pki.kubelet_client()?;
    let (chain, key) = issued.der().expect("a certificate that was just issued is PEM");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(failed)?;
    Ok(Arc::new(tls))
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
struct Upstream {
    address: IpAddr,
    port: u16,
    /// With the kubelet's TLS, or plain.
    secure: bool,
    path_and_query: String,
}

/// Sends a request on, as the subresource says.
pub(crate) async fn handle(
    call: &Call,
    subresource: &str,
    parts: Parts,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let upstream = match (call.target.kind.plural, subresource) {
        ("pods", "log" | "exec" | "attach" | "portforward") => kubelet_stream(call, subresource).await?,
        ("pods", "proxy") => pod_proxy(call).await?,
        ("services", "proxy") => service_proxy(call).await?,
        ("nodes", "proxy") => node_proxy(call).await?,
        _ => return Err(ApiError::no_such_path()),
    };
    let answer = send(call, upstream, parts, body).await?;
    match (call.target.kind.plural, subresource) {
        ("pods", "log") if !answer.status().is_success() => Err(refusal(answer).await),
        _ => Ok(answer),
    }
}

/// A kubelet says in plain text why there is no log; clients of the API expect a Status.
async fn refusal(answer: Response<Body>) -> ApiError {
    let status = answer.status();
    let mut body = answer.into_body();
    let mut text = Vec::new();
    // A connection that breaks off has said all that there is to know.
    while let Some(Ok(frame)) = body.frame().await
        && text.len() < REFUSAL_MAX
    {
        text.extend(frame.into_data().unwrap_or_default());
    }
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    match status {
        StatusCode::BAD_REQUEST => ApiError::bad_request(text),
        StatusCode::NOT_FOUND => ApiError::new(Reason::NotFound, text),
        _ => ApiError::new(Reason::InternalError, text),
    }
}

async fn kubelet_of(call: &Call, node: &str) -> Result<(IpAddr, u16), ApiError> {
    let kind = pith_api::find("", "v1", "nodes").expect("a core kind");
    let found = call.state.objects.get(kind, None, node).await?.value(kind)?;
    let port = found["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap_or(KUBELET_PORT);
    let addresses = found["status"]["addresses"].as_array();
    let of_type = |wanted: &str| {
        addresses?.iter().find(|a| a["type"] == wanted)?["address"].as_str()?.parse::<IpAddr>().ok()
    };
    let address = of_type("InternalIP").or_else(|| of_type("ExternalIP"));
    match (address, u16::try_from(port)) {
        (Some(address), Ok(port)) => Ok((address, port)),
        _ => Err(ApiError::internal(format!(
            "node {node:?} has no address that its kubelet could be reached at"
        ))),
    }
}

async fn pod(call: &Call, name: &str) -> Result<Value, ApiError> {
    let kind = pith_api::find("", "v1", "pods").expect("a core kind");
    call.state.objects.get(kind, call.namespace(), name).await?.value(kind)
}

async fn kubelet_stream(call: &Call, subresource: &str) -> Result<Upstream, ApiError> {
    let name = call.target.require_name()?;
    let pod = pod(call, name).await?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let place = format!("{}/{name}", meta::text(&pod, "namespace"));
    let path = match subresource {
        "portforward" => format!("/portForward/{place}"),
        _ => {
            let container = container(call, &pod, subresource)?;
            let first = match subresource {
                "log" => "containerLogs",
                other => other,
            };
            format!("/{first}/{place}/{container}")
        }
    };
    if node.is_empty() {
        return Err(match subresource {
            // Nothing was written yet; kubectl shows this as the reason.
            "log" => ApiError::bad_request(format!("pod {name} does not have a host assigned")),
            _ => ApiError::bad_request(format!("pod {name} does not have a host assigned")),
        });
    }
    let (address, port) = kubelet_of(call, node).await?;
    let query = kubelet_query(call.uri.query().unwrap_or_default(), subresource);
    let path_and_query = if query.is_empty() { path } else { format!("{path}?{query}") };
    Ok(Upstream { address, port, secure: true, path_and_query })
}

/// The kubelet's names of `PodExecOptions` and `PodAttachOptions` differ for the streams; the rest is the same.
fn kubelet_query(query: &str, subresource: &str) -> String {
    let mut out = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let is_stream = matches!(subresource, "exec" | "attach");
        let name = match &*name {
            "stdin" if is_stream => "input",
            "stdout" if is_stream => "output",
            "stderr" if is_stream => "error",
            "container" if subresource != "portforward" => continue,
            other => other,
        };
        let value = match (is_stream && name != "command", &*value) {
            (true, "true") => "1",
            (true, "false") => continue,
            (_, other) => other,
        };
        out.append_pair(name, value);
    }
    out.finish()
}

/// The container that is asked for, or the only one.
fn container(call: &Call, pod: &Value, subresource: &str) -> Result<String, ApiError> {
    let name = meta::name(pod);
    let names = |list: &str| -> Vec<&str> {
        pod["spec"][list].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (main, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let wanted = call.query.get("container");
    if !wanted.is_empty() {
        let known = main.iter().chain(&init).chain(&ephemeral).any(|found| *found == wanted);
        return match known {
            true => Ok(wanted.to_owned()),
            false => Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {name}"))),
        };
    }
    match main.as_slice() {
        [one] => Ok((*one).to_owned()),
        many if subresource == "log" => {
            let init = match init.is_empty() {
                true => String::new(),
                false => format!(" or one of the init containers: [{}]", init.join(" ")),
            };
            Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]{init}",
                many.join(" ")
            )))
        }
        // kubectl itself picks the first one and says so.
        many => Ok(many.first().copied().unwrap_or_default().to_owned()),
    }
}

/// `name`, `name:port` or `scheme:name:port`.
fn split_target(text: &str) -> (bool, &str, &str) {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [scheme, name, port] => (*scheme == "https", *name, *port),
        [name, port] => (false, *name, *port),
        _ => (false, text, ""),
    }
}

fn proxied_path(call: &Call) -> String {
    let path = if call.target.rest.is_empty() { "/" } else { &call.target.rest };
    match call.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

fn no_tls(name: &str) -> ApiError {
    ApiError::bad_request(format!(
        "https: is not supported when proxying to {name:?}: its certificate cannot be checked"
    ))
}

/// The kubelet, or by another port whoever listens there on the node without TLS.
async fn node_proxy(call: &Call) -> Result<Upstream, ApiError> {
    let (https, name, port) = split_target(call.target.require_name()?);
    let (address, kubelet) = kubelet_of(call, name).await?;
    let port = match port {
        "" => kubelet,
        text => text.parse().map_err(|_| {
            ApiError::bad_request(format!("node {name} has no port {text:?}: give its number"))
        })?,
    };
    if https && port != kubelet {
        return Err(no_tls(name));
    }
    Ok(Upstream { address, port, secure: port == kubelet, path_and_query: proxied_path(call) })
}

async fn pod_proxy(call: &Call) -> Result<Upstream, ApiError> {
    let (secure, name, port) = split_target(call.target.require_name()?);
    if secure {
        return Err(no_tls(name));
    }
    let pod = pod(call, name).await?;
    let address = pod["status"]["podIP"].as_str().and_then(|text| text.parse().ok());
    let address = address.ok_or_else(|| ApiError::bad_request(format!("pod {name} has no address yet")))?;
    let ports = || {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        containers.flat_map(|container| container["ports"].as_array().into_iter().flatten())
    };
    let number = match port {
        "" => ports().find_map(|port| port["containerPort"].as_u64()).or(Some(80)),
        text => text.parse().ok().or_else(|| ports().find(|p| p["name"] == text)?["containerPort"].as_u64()),
    };
    let port = number.and_then(|number| u16::try_from(number).ok());
    let port = port.ok_or_else(|| ApiError::bad_request(format!("pod {name} has no port {port:?}")))?;
    Ok(Upstream { address, port, secure: false, path_and_query: proxied_path(call) })
}

/// Through an endpoint: the primary need not have the dataplane that Service addresses need.
async fn service_proxy(call: &Call) -> Result<Upstream, ApiError> {
    let (secure, name, port) = split_target(call.target.require_name()?);
    if secure {
        return Err(no_tls(name));
    }
    let kind = call.target.kind;
    let service = call.state.objects.get(kind, call.namespace(), name).await?.value(kind)?;
    let ports = service["spec"]["ports"].as_array();
    let wanted = ports.into_iter().flatten().find(|found| match port {
        "" => true,
        text => found["name"] == text || found["port"].as_u64().is_some_and(|port| text.parse() == Ok(port)),
    });
    let Some(wanted) = wanted else {
        return Err(ApiError::unavailable(format!("no service port {port:?} found for service {name:?}")));
    };
    let slices = pith_api::find("discovery.k8s.io", "v1", "endpointslices").expect("a kind of the table");
    let prefix = crate::objects::Objects::prefix(slices, call.namespace())?;
    let listing = call.state.objects.store.list(pith_store::ListRequest::all(prefix)).await;
    let listing = listing.map_err(|error| crate::objects::failed(kind.subject(name), error))?;
    for entry in listing.entries {
        let slice = crate::objects::Stored::from(entry).value(slices)?;
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] != name {
            continue;
        }
        let same_name = |p: &&Value| {
            p["name"].as_str().unwrap_or_default() == wanted["name"].as_str().unwrap_or_default()
        };
        let port = slice["ports"].as_array().into_iter().flatten().find(same_name);
        let port = port.and_then(|port| u16::try_from(port["port"].as_u64()?).ok());
        let ready = |e: &&Value| e["conditions"]["ready"].as_bool().unwrap_or(true);
        let endpoint = slice["endpoints"].as_array().into_iter().flatten().find(ready);
        let address = endpoint.and_then(|endpoint| endpoint["addresses"][0].as_str()?.parse().ok());
        if let (Some(address), Some(port)) = (address, port) {
            return Ok(Upstream { address, port, secure: false, path_and_query: proxied_path(call) });
        }
    }
    Err(ApiError::unavailable(format!("no endpoints available for service {name:?}")))
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

async fn connect(call: &Call, upstream: &Upstream) -> Result<Box<dyn Duplex>, ApiError> {
    let unreachable = |error: std::io::Error| {
        let place = format!("{}:{}", upstream.address, upstream.port);
        ApiError::new(Reason::InternalError, format!("error dialing backend: dial tcp {place}: {error}"))
    };
    let timed_out = |_| unreachable(std::io::ErrorKind::TimedOut.into());
    let tcp = TcpStream::connect((upstream.address, upstream.port));
    let tcp = tokio::time::timeout(CONNECT_TIMEOUT, tcp).await.map_err(timed_out)?.map_err(unreachable)?;
    // Keystrokes go through here.
    tcp.set_nodelay(true).map_err(unreachable)?;
    if !upstream.secure {
        return Ok(Box::new(tcp));
    }
    let connector = tokio_rustls::TlsConnector::from(call.state.kubelets.tls.get());
    let tls = connector.connect(ServerName::IpAddress(upstream.address.into()), tcp);
    let tls = tokio::time::timeout(CONNECT_TIMEOUT, tls).await.map_err(timed_out)?.map_err(unreachable)?;
    Ok(Box::new(tls))
}

async fn send(
    call: &Call,
    upstream: Upstream,
    mut parts: Parts,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let from_client = parts.extensions.remove::<OnUpgrade>();
    let upgrade = parts.headers.get(header::UPGRADE).cloned();
    let request = outgoing(&upstream, &parts, upgrade.as_ref(), body)?;
    let stream = connect(call, &upstream).await?;
    let broken = |error: hyper::Error| {
        ApiError::new(Reason::InternalError, format!("error talking to the backend: {error}"))
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let stopping = call.state.stopping.clone();
    // Drives the connection for as long as the answer's body or the upgraded stream is in use.
    call.state.streams.spawn(async move {
        tokio::select! {
            // The connection ends by itself when both sides are done with it; at shutdown it is cut.
            ended = connection.with_upgrades() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection to a backend");
                }
            }
            () = stopping.cancelled() => {}
        }
    });
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
    let answer = answer
        .map_err(|_| ApiError::new(Reason::Timeout, "the backend did not answer in time"))?
        .map_err(broken)?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(from_client) = from_client else {
            return Err(ApiError::bad_request("the backend upgraded a connection that cannot be upgraded"));
        };
        return Ok(join(call, from_client, answer));
    }
    let (mut parts, body) = answer.into_parts();
    strip(&mut parts.headers);
    let chunks = body.map_err(|error| -> BoxError { error.into() });
    // `sender` keeps the connection usable until the body is read.
    let body = chunks.into_data_stream().inspect_ok(move |_| {
        let _ = &sender;
    });
    Ok(Response::from_parts(parts, crate::http::streamed(body)))
}

fn outgoing(
    upstream: &Upstream,
    parts: &Parts,
    upgrade: Option<&HeaderValue>,
    body: RequestBody,
) -> Result<Request<RequestBody>, ApiError> {
    let uri: Uri =
        upstream.path_and_query.parse().map_err(|_| ApiError::bad_request("the path is not valid"))?;
    let mut headers = parts.headers.clone();
    strip(&mut headers);
    // Whoever answers must not be able to act as the client.
    headers.remove(header::AUTHORIZATION);
    let host = format!("{}:{}", upstream.address, upstream.port);
    headers.insert(header::HOST, HeaderValue::from_str(&host).map_err(ApiError::internal)?);
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, upgrade.clone());
    }
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(*name);
    }
    headers.remove(header::CONNECTION);
    headers.remove(header::UPGRADE);
}

/// Answers 101 and joins the two connections once both are upgraded.
fn join(call: &Call, from_client: OnUpgrade, answer: Response<hyper::body::Incoming>) -> Response<Body> {
    let mut response = Response::new(crate::http::full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    let stopping = call.state.stopping.clone();
    call.state.streams.spawn(async move {
        let both = async {
            let mut to_backend =
                TokioIo::new(hyper::upgrade::on(answer).await.map_err(std::io::Error::other)?);
            let mut to_client = TokioIo::new(from_client.await.map_err(std::io::Error::other)?);
            let ended = copy_bidirectional(&mut to_client, &mut to_backend).await;
            // One side may have hung up without a word; the other is still told that this is the end.
            let _ = to_client.shutdown().await;
            let _ = to_backend.shutdown().await;
            ended
        };
        tokio::select! {
            // Cut at shutdown: there is nobody left to carry the bytes.
            ended = both => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "stream between a client and a backend");
                }
            }
            () = stopping.cancelled() => {}
        }
    });
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_options_in_the_kubelets_words() {
        for (subresource, query, expect) in [
            (
                "exec",
                "command=ls&command=-l&container=c&stdin=true&stdout=true&stderr=false&tty=true",
                "command=ls&command=-l&input=1&output=1&tty=1",
            ),
            ("exec", "command=true&stdout=true", "command=true&output=1"),
            ("log", "container=c&follow=true&tailLines=5", "follow=true&tailLines=5"),
            ("portforward", "ports=80", "ports=80"),
        ] {
            assert_eq!(kubelet_query(query, subresource), expect);
        }
    }

    #[test]
    fn proxy_targets() {
        for (text, expect) in [
            ("web", (false, "web", "")),
            ("web:80", (false, "web", "80")),
            ("http:web:http", (false, "web", "http")),
            ("https:web:443", (true, "web", "443")),
        ] {
            assert_eq!(split_target(text), expect);
        }
    }
}
