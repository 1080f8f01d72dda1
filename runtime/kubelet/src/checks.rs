//! One look at a container: httpGet, tcpSocket and grpc, from the node to the pod's address.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::{
    api::core::v1::{Container, GRPCAction, HTTPGetAction, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::net::TcpStream;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    #[error("{what}: {message}")]
    Connect { what: String, message: String },
    #[error("{0}")]
    Answer(String),
    #[error("no port is named {0:?}")]
    Port(String),
    #[error("the pod has no address")]
    NoAddress,
    #[error("context deadline exceeded")]
    TimedOut,
    #[error(transparent)]
    Process(#[from] crate::process::ProcessError),
    #[error("the handler names no action")]
    NoAction,
}

const USER_AGENT: &str = "kube-probe/1.37";
/// Bytes of an answer that are shown.
const BODY_MAX: usize = 1024;

pub(crate) fn port(c: &Container, port: &IntOrString) -> Result<u16, CheckError> {
    let bad = || match port {
        IntOrString::Int(n) => CheckError::Port(n.to_string()),
        IntOrString::String(s) => CheckError::Port(s.clone()),
    };
    let number = match port {
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => match name.parse::<i32>() {
            Ok(n) => n,
            Err(_) => {
                let mut ports = c.ports.iter().flatten();
                ports.find(|p| p.name.as_ref() == Some(name)).ok_or_else(bad)?.container_port
            }
        },
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(bad)
}

fn connect_error(what: &str) -> impl Fn(&dyn std::error::Error) -> CheckError {
    let what = what.to_owned();
    move |e| CheckError::Connect { what: what.clone(), message: e.to_string() }
}

pub(crate) async fn within<T>(
    timeout: Duration,
    check: impl Future<Output = Result<T, CheckError>>,
) -> Result<T, CheckError> {
    tokio::time::timeout(timeout, check).await.unwrap_or(Err(CheckError::TimedOut))
}

pub(crate) async fn tcp(c: &Container, t: &TCPSocketAction, pod: IpAddr) -> Result<(), CheckError> {
    let port = port(c, &t.port)?;
    let host = t.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| pod.to_string());
    let what = format!("dial tcp {host}:{port}");
    TcpStream::connect((host.as_str(), port)).await.map(|_| ()).map_err(|e| connect_error(&what)(&e))
}

/// Any status from 200 to 399 is well.
pub(crate) async fn http(c: &Container, h: &HTTPGetAction, pod: IpAddr) -> Result<(), CheckError> {
    let port = port(c, &h.port)?;
    let host = h.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| pod.to_string());
    let tls = h.scheme.as_deref() == Some("HTTPS");
    let path = h.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let shown = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let scheme = if tls { "https" } else { "http" };
    let what = format!("Get \"{scheme}://{shown}{path}\"");
    let failed = connect_error(&what);
    let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|e| failed(&e))?;
    let request = request(h, &shown, &path)?;
    let (status, body) = if tls {
        let name = rustls::pki_types::ServerName::try_from(host).map_err(|e| failed(&e))?;
        let stream = connector().connect(name, tcp).await.map_err(|e| failed(&e))?;
        exchange(stream, request).await.map_err(|e| failed(&e))?
    } else {
        exchange(tcp, request).await.map_err(|e| failed(&e))?
    };
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    tracing::debug!(%status, body = %String::from_utf8_lossy(&body), "an HTTP probe failed");
    Err(CheckError::Answer(format!("HTTP probe failed with statuscode: {}", status.as_u16())))
}

fn request(h: &HTTPGetAction, host: &str, path: &str) -> Result<http::Request<Full<Bytes>>, CheckError> {
    let own = h.http_headers.iter().flatten();
    let names = |name: &str| own.clone().any(|x| x.name.eq_ignore_ascii_case(name));
    let mut request = http::Request::get(path).header("Connection", "close");
    for (name, value) in [("Host", host), ("User-Agent", USER_AGENT), ("Accept", "*/*")] {
        if !names(name) {
            request = request.header(name, value);
        }
    }
    for header in own {
        request = request.header(&header.name, &header.value);
    }
    request.body(Full::default()).map_err(|e| CheckError::Answer(e.to_string()))
}

async fn exchange<S>(
    stream: S,
    request: http::Request<Full<Bytes>>,
) -> Result<(http::StatusCode, Vec<u8>), hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let mut body = answer.into_body();
        let mut bytes = vec![];
        while let Some(Ok(frame)) = body.frame().await {
            bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
            if bytes.len() >= BODY_MAX {
                break;
            }
        }
        Ok((status, bytes))
    };
    drive(exchange, connection).await
}

/// Polls the connection along with what happens on it: no task that could outlive the probe.
async fn drive<T>(
    exchange: impl Future<Output = Result<T, hyper::Error>>,
    connection: impl Future<Output = Result<(), hyper::Error>>,
) -> Result<T, hyper::Error> {
    tokio::pin!(exchange, connection);
    let mut ended = false;
    loop {
        tokio::select! {
            biased;
            // The connection is polled only for the exchange's sake.
            done = &mut exchange => return done,
            result = &mut connection, if !ended => {
                ended = true;
                result?;
            }
        }
    }
}

/// Unary `grpc.health.v1.Health/Check`; both messages are small enough to be written by hand:
/// request field 1 = service (string), response field 1 = status (1 is SERVING).
pub(crate) async fn grpc(g: &GRPCAction, pod: IpAddr) -> Result<(), CheckError> {
    let port = u16::try_from(g.port).map_err(|_| CheckError::Port(g.port.to_string()))?;
    let what = format!("dial tcp {pod}:{port}");
    let failed = connect_error(&what);
    let tcp = TcpStream::connect((pod, port)).await.map_err(|e| failed(&e))?;
    let service = g.service.as_deref().unwrap_or_default().as_bytes();
    let mut message = vec![];
    if !service.is_empty() {
        message.push(0x0a);
        message.push(
            u8::try_from(service.len()).map_err(|_| CheckError::Answer("service name too long".into()))?,
        );
        message.extend_from_slice(service);
    }
    let length = u32::try_from(message.len()).expect("at most 257 bytes").to_be_bytes();
    let frame = [&[0], &length[..], &message].concat();
    let request = http::Request::post(format!("http://{pod}:{port}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", USER_AGENT)
        .body(Full::new(Bytes::from(frame)))
        .map_err(|e| CheckError::Answer(e.to_string()))?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp));
    let (mut sender, connection) = handshake.await.map_err(|e| failed(&e))?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        Ok(answer.into_body().collect().await?.to_bytes())
    };
    let answer = drive(exchange, connection).await.map_err(|e| failed(&e))?;
    match answer.get(5..) {
        Some([0x08, 1, ..]) => Ok(()),
        Some(_) | None => {
            Err(CheckError::Answer("service unhealthy (responded with \"NOT_SERVING\")".to_owned()))
        }
    }
}

/// Probes do not verify certificates, as everywhere in Kubernetes: they ask whether somebody answers.
fn connector() -> tokio_rustls::TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows the default versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

#[derive(Debug)]
struct Anyone;

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Answers one connection with `answer`; its port and what it was asked.
    async fn serve(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("bound").port();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut buffer = vec![0; 4096];
            let n = stream.read(&mut buffer).await.expect("reads");
            stream.write_all(answer.as_bytes()).await.expect("writes");
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        });
        (port, asked)
    }

    fn get(port: u16, mut fields: Value) -> HTTPGetAction {
        fields["port"] = json!(port);
        serde_json::from_value(fields).expect("action")
    }

    #[tokio::test]
    async fn http_by_status() {
        let cases = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", None),
            ("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", None),
            (
                "HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno",
                Some("HTTP probe failed with statuscode: 503"),
            ),
        ];
        for (answer, expect) in cases {
            let (port, asked) = serve(answer).await;
            let action =
                get(port, json!({"path": "/health", "httpHeaders": [{"name": "Host", "value": "shop"}]}));
            let result = http(&Container::default(), &action, [127, 0, 0, 1].into()).await;
            assert_eq!(result.err().map(|e| e.to_string()).as_deref(), expect);
            let asked = asked.await.expect("served").to_ascii_lowercase();
            assert!(asked.starts_with("get /health http/1.1\r\n"), "{asked}");
            assert!(asked.contains("host: shop\r\n") && asked.contains("kube-probe"), "{asked}");
        }
    }

    #[tokio::test]
    async fn nobody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = i32::from(listener.local_addr().expect("bound").port());
        let action = TCPSocketAction { host: None, port: IntOrString::Int(port) };
        let pod = [127, 0, 0, 1].into();
        assert!(tcp(&Container::default(), &action, pod).await.is_ok());
        drop(listener);
        let error = tcp(&Container::default(), &action, pod).await.expect_err("refused").to_string();
        assert!(error.starts_with(&format!("dial tcp 127.0.0.1:{port}: ")), "{error}");
    }

    #[test]
    fn ports_by_name() {
        let c: Container =
            serde_json::from_value(json!({"name": "a", "ports": [{"name": "web", "containerPort": 80}]}))
                .expect("container");
        assert_eq!(port(&c, &IntOrString::String("web".into())).expect("named"), 80);
        assert_eq!(port(&c, &IntOrString::String("81".into())).expect("number"), 81);
        assert!(port(&c, &IntOrString::String("none".into())).is_err());
        assert!(port(&c, &IntOrString::Int(0)).is_err());
    }
}
