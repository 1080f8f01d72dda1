//! From an upgrade request to a protocol and the answer that switches to it. Pure.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Clients that speak SPDY name the protocols of their streams here, one header each.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What such clients ask to upgrade to.
const SPDY: &str = "SPDY/3.1";

/// The answer to an upgrade request, to be sent before the session is awaited.
#[derive(Debug)]
pub struct Accepted<F> {
    /// `101 Switching Protocols`; give it the empty body of your server.
    pub response: Response<()>,
    /// The session, once the connection has switched.
    pub session: F,
}

/// Why a request is not upgraded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No upgrade was asked for, or to something else.
    #[error("unable to upgrade: missing upgrade headers in request")]
    NoUpgrade,
    /// Not a WebSocket handshake after RFC 6455.
    #[error("unable to upgrade: {0}")]
    BadHandshake(&'static str),
    /// None of the client's protocols is spoken here.
    #[error("unable to upgrade: client wants {asked:?}, this server speaks {spoken:?}")]
    NoProtocol {
        /// As the client sent them.
        asked: Vec<String>,
        /// For this kind of request.
        spoken: Vec<&'static str>,
    },
    /// The request's parameters make no sense.
    #[error("{0}")]
    BadRequest(String),
}

impl Refusal {
    /// The status to answer with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoProtocol { .. } => StatusCode::FORBIDDEN,
            Self::NoUpgrade | Self::BadHandshake(_) | Self::BadRequest(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// The whole answer, with the reason as its body.
    pub fn response(&self) -> Response<String> {
        let mut response = Response::new(self.to_string());
        *response.status_mut() = self.status();
        response
    }
}

/// A protocol that was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Agreed<P> {
    WebSocket(P),
    Spdy(P),
}

/// What a kind of request can speak, in order of preference.
pub(crate) struct Spoken<'a, P> {
    pub(crate) websocket: &'a [(&'static str, P)],
    pub(crate) spdy: &'a [(&'static str, P)],
    /// For a SPDY client that names none.
    pub(crate) spdy_unnamed: Option<P>,
}

/// Chooses the first protocol spoken here that the client asks for.
pub(crate) fn negotiate<B, P: Copy>(
    request: &Request<B>,
    spoken: &Spoken<'_, P>,
) -> Result<(Agreed<P>, Response<()>), Refusal> {
    let headers = request.headers();
    if !has_token(headers, &header::CONNECTION, "upgrade") {
        return Err(Refusal::NoUpgrade);
    }
    if has_token(headers, &header::UPGRADE, "websocket") {
        let key = headers.get(header::SEC_WEBSOCKET_KEY);
        let key = key.ok_or(Refusal::BadHandshake("no Sec-WebSocket-Key"))?;
        if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(Refusal::BadHandshake("Sec-WebSocket-Version is not 13"));
        }
        let asked = tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL);
        let (name, protocol) = choose(&asked, spoken.websocket)?;
        let mut response = switching("websocket");
        let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
        let accept = accept.expect("base64 is a header value");
        response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
        return Ok((Agreed::WebSocket(protocol), response));
    }
    if has_token(headers, &header::UPGRADE, SPDY) {
        let asked = tokens(headers, &STREAM_PROTOCOL);
        let mut response = switching(SPDY);
        if let (true, Some(protocol)) = (asked.is_empty(), spoken.spdy_unnamed) {
            return Ok((Agreed::Spdy(protocol), response));
        }
        let (name, protocol) = choose(&asked, spoken.spdy)?;
        response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
        return Ok((Agreed::Spdy(protocol), response));
    }
    Err(Refusal::NoUpgrade)
}

fn choose<P: Copy>(asked: &[String], spoken: &[(&'static str, P)]) -> Result<(&'static str, P), Refusal> {
    let found = spoken.iter().find(|(name, _)| asked.iter().any(|asked| asked == name));
    found.copied().ok_or_else(|| Refusal::NoProtocol {
        asked: asked.to_vec(),
        spoken: spoken.iter().map(|(name, _)| *name).collect(),
    })
}

fn switching(to: &'static str) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(to));
    response
}

/// All values of a header, which may be repeated and may hold lists.
fn tokens(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let tokens = values.flat_map(|value| value.split(',')).map(str::trim);
    tokens.filter(|token| !token.is_empty()).map(str::to_owned).collect()
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).iter().any(|it| it.eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPOKEN: Spoken<'static, u8> = Spoken {
        websocket: &[("v5.channel.k8s.io", 5), ("v4.channel.k8s.io", 4)],
        spdy: &[("v4.channel.k8s.io", 4), ("v3.channel.k8s.io", 3)],
        spdy_unnamed: Some(1),
    };

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let builder = headers.iter().fold(Request::builder(), |it, (name, value)| it.header(*name, *value));
        builder.body(()).expect("valid")
    }

    #[test]
    fn clients_get_the_best_protocol_they_know() {
        let websocket = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let spdy = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        let with = |base: &[(&'static str, &'static str)], more: &[(&'static str, &'static str)]| {
            request(&[base, more].concat())
        };
        let protocols = |list| [("sec-websocket-protocol", list)];
        for (name, request, expect) in [
            ("kubectl 1.33", with(&websocket, &protocols("v5.channel.k8s.io")), Ok(Agreed::WebSocket(5))),
            (
                "a list",
                with(&websocket, &protocols("base64.channel.k8s.io, v4.channel.k8s.io")),
                Ok(Agreed::WebSocket(4)),
            ),
            (
                "kubectl 1.29",
                with(
                    &spdy,
                    &[
                        ("x-stream-protocol-version", "v3.channel.k8s.io"),
                        ("x-stream-protocol-version", "v4.channel.k8s.io"),
                    ],
                ),
                Ok(Agreed::Spdy(4)),
            ),
            ("SPDY without a name", with(&spdy, &[]), Ok(Agreed::Spdy(1))),
            (
                "unknown",
                with(&websocket, &protocols("v9.channel.k8s.io")),
                Err(Refusal::NoProtocol {
                    asked: vec!["v9.channel.k8s.io".to_owned()],
                    spoken: vec!["v5.channel.k8s.io", "v4.channel.k8s.io"],
                }),
            ),
            ("no upgrade", request(&[]), Err(Refusal::NoUpgrade)),
            (
                "another upgrade",
                request(&[("connection", "upgrade"), ("upgrade", "h2c")]),
                Err(Refusal::NoUpgrade),
            ),
            (
                "no key",
                request(&[("connection", "upgrade"), ("upgrade", "websocket")]),
                Err(Refusal::BadHandshake("no Sec-WebSocket-Key")),
            ),
        ] {
            assert_eq!(negotiate(&request, &SPOKEN).map(|(agreed, _)| agreed), expect, "{name}");
        }
    }

    #[test]
    fn the_answer_is_rfc_6455s() {
        let request = request(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
        ]);
        let (_, response) = negotiate(&request, &SPOKEN).expect("agreed");
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    }
}
