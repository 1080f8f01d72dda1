//! One host of a registry over HTTP: who we are to it, when to ask again, and its answers in our words.
//!
//! ```text
//! request → 401 with a challenge → a token for the next credentials there are → request
//!         → 429, 5xx             → after Retry-After, or a moment             → request
//! ```
//!
//! Credentials go to the host that asked for them and to the token server that it names, never along a redirect to
//! another host (reqwest drops them), never from HTTPS to HTTP.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde::Deserialize;
use serde_json::Value;

use crate::auth::Auth;
use crate::error::{Error, Result};
use crate::hosts::Host;

/// Requests that are answered with 429 or 5xx before giving up.
const TRIES_MAX: u32 = 4;
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// A registry that wants to be left alone for longer is one that failed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(20);
const REDIRECTS_MAX: usize = 10;
/// Tokens of cloud registries are a few KiB.
const TOKEN_MAX: u64 = 1 << 20;
/// Of an error page, what is read to look for a reason.
const REASON_MAX: u64 = 64 << 10;

/// How long a registry may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    pub connect: Duration,
    /// Between one piece of an answer and the next.
    pub read: Duration,
    /// For all of a small answer: a token, a manifest, a configuration.
    pub document: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(15),
            read: Duration::from_secs(30),
            document: Duration::from_secs(120),
        }
    }
}

pub(crate) struct Endpoint {
    pub(crate) host: Host,
    client: Client,
    /// `host:port`, for errors.
    name: String,
    repository: String,
    pub(crate) timeouts: Timeouts,
    /// What to log in with, best first; at least one.
    candidates: Vec<Auth>,
    login: Mutex<Login>,
    /// Held by who asks the token server: of several whose token ran out at once, one asks. A token server may take back
    /// what it gave before.
    asking: tokio::sync::Mutex<()>,
}

/// What is asked of an endpoint: `GET <base>/<repository>/<rest>`.
pub(crate) struct Want<'w> {
    /// In words, for errors.
    pub(crate) action: &'w str,
    pub(crate) rest: &'w str,
    pub(crate) accept: Option<&'w str>,
    /// The bytes from there on.
    pub(crate) from: u64,
    /// Tells a mirror of many registries which of them is meant.
    pub(crate) mirror_of: Option<&'w str>,
}

#[derive(Clone, Default)]
struct Login {
    candidate: usize,
    header: Option<HeaderValue>,
    /// The candidate was accepted before: when its header no longer is, a token has run out.
    worked: bool,
}

/// Who asked for the header that there is now.
#[derive(PartialEq)]
enum LoggedIn {
    Now,
    /// Another request did, while this one was under way.
    Meanwhile,
}

impl Endpoint {
    pub(crate) fn new(
        host: Host,
        repository: &str,
        candidates: Vec<Auth>,
        timeouts: Timeouts,
    ) -> Result<Endpoint> {
        let name = host.key();
        let fail = |e: &reqwest::Error| Error::Registry {
            registry: name.clone(),
            action: "setting up TLS".to_owned(),
            reason: innermost(e),
        };
        let mut builder = Client::builder()
            .user_agent(concat!("pith/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(host.connect.unwrap_or(timeouts.connect))
            .read_timeout(timeouts.read)
            .redirect(redirect_policy())
            .referer(false)
            .tls_danger_accept_invalid_certs(host.tls.skip_verify);
        let mut authorities = Vec::new();
        for pem in &host.tls.authorities {
            authorities.extend(reqwest::Certificate::from_pem_bundle(pem).map_err(|e| fail(&e))?);
        }
        if !authorities.is_empty() {
            builder = builder.tls_certs_merge(authorities);
        }
        if let Some(identity) = &host.tls.identity {
            builder = builder.identity(reqwest::Identity::from_pem(identity).map_err(|e| fail(&e))?);
        }
        let client = builder.build().map_err(|e| fail(&e))?;
        let candidates = if candidates.is_empty() { vec![Auth::Anonymous] } else { candidates };
        let repository = repository.to_owned();
        let (login, asking) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Endpoint { host, client, name, repository, timeouts, candidates, login, asking })
    }

    /// The answer to it, once it is not a refusal.
    pub(crate) async fn get(&self, want: &Want<'_>) -> Result<Response> {
        let mut url = self.host.base.clone();
        url.set_path(&format!("{}/{}/{}", url.path(), self.repository, want.rest));
        url.set_query(want.mirror_of.map(|registry| format!("ns={registry}")).as_deref());
        let action = want.action;
        let mut logins = 0;
        let mut tries = 1;
        let mut backoff = BACKOFF_FIRST;
        loop {
            let login = self.login().clone();
            let mut request = self.client.get(url.clone()).headers(self.host.headers.clone());
            if let Some(accept) = want.accept {
                request = request.header(ACCEPT, accept);
            }
            if want.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", want.from));
            }
            if let Some(header) = login.header.clone() {
                request = request.header(AUTHORIZATION, header);
            }
            let response = request.send().await.map_err(|e| self.failed(action, &e))?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && logins <= self.candidates.len() {
                logins += usize::from(self.log_in(&login, response).await? == LoggedIn::Now);
                continue;
            }
            if status == StatusCode::FORBIDDEN && self.next_candidate(&login) {
                continue;
            }
            let busy = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            if busy && tries < TRIES_MAX {
                let wait = retry_after(response.headers()).unwrap_or(backoff);
                tracing::debug!(registry = self.name, %status, ?wait, "asked to come back later");
                if wait <= RETRY_AFTER_MAX {
                    tokio::time::sleep(wait).await;
                    (tries, backoff) = (tries + 1, backoff * 2);
                    continue;
                }
            }
            if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                self.accepted(&login);
                return Ok(response);
            }
            return Err(self.refused(action, response).await);
        }
    }

    /// A small answer, whole, within the time for it.
    pub(crate) async fn body(
        &self,
        action: &str,
        what: &str,
        response: Response,
        max: u64,
    ) -> Result<Vec<u8>> {
        let too_large = || Error::TooLarge { what: what.to_owned(), limit: max };
        let read = async {
            if response.content_length().is_some_and(|length| length > max) {
                return Err(too_large());
            }
            let mut content = Vec::new();
            let mut stream = response.bytes_stream();
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|e| self.failed(action, &e))?;
                if content.len() as u64 + chunk.len() as u64 > max {
                    return Err(too_large());
                }
                content.extend_from_slice(&chunk);
            }
            Ok(content)
        };
        let late = || self.error(action, format!("it took more than {:?}", self.timeouts.document));
        tokio::time::timeout(self.timeouts.document, read).await.map_err(|_| late())?
    }

    /// Nothing is left half done where somebody panicked with it.
    fn login(&self) -> MutexGuard<'_, Login> {
        self.login.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accepted(&self, used: &Login) {
        let mut login = self.login();
        login.worked |= login.header == used.header;
    }

    /// Whether there is something else to try; of several who ask at once, one moves on.
    fn next_candidate(&self, used: &Login) -> bool {
        let mut login = self.login();
        if login.header != used.header || login.candidate != used.candidate {
            return true;
        }
        if login.candidate + 1 >= self.candidates.len() {
            return false;
        }
        *login = Login { candidate: login.candidate + 1, ..Login::default() };
        true
    }

    /// After a 401 to a request made with `used`: another header to ask with, or an error.
    async fn log_in(&self, used: &Login, response: Response) -> Result<LoggedIn> {
        let _asking = self.asking.lock().await;
        let in_vain = used.header.is_some() && !self.login().worked;
        if in_vain && !self.next_candidate(used) {
            return Err(self.refused("logging in", response).await);
        }
        let now = self.login().clone();
        if now.header.is_some() && now.header != used.header {
            return Ok(LoggedIn::Meanwhile);
        }
        let mut candidate = now.candidate;
        let challenges = challenges(response.headers());
        let mut last = None;
        while let Some(auth) = self.candidates.get(candidate) {
            match self.header_for(auth, &challenges).await {
                Ok(mut header) => {
                    header.set_sensitive(true);
                    let worked = now.worked && candidate == now.candidate;
                    *self.login() = Login { candidate, header: Some(header), worked };
                    return Ok(LoggedIn::Now);
                }
                Err(error @ Error::Unauthorised { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
            candidate += 1;
        }
        Err(last.unwrap_or_else(|| self.unauthorised("credentials are needed".to_owned())))
    }

    async fn header_for(&self, auth: &Auth, challenges: &[Challenge]) -> Result<HeaderValue> {
        if let Auth::Bearer(token) = auth {
            return self.header(format!("Bearer {token}"));
        }
        for challenge in challenges {
            match challenge {
                Challenge::Bearer { realm, service, scope } => {
                    let token = self.token(auth, realm, service.as_deref(), scope.as_deref()).await?;
                    return self.header(format!("Bearer {token}"));
                }
                Challenge::Basic => {
                    if let Auth::Basic { username, password } = auth {
                        return self.header(basic(username, password));
                    }
                }
            }
        }
        Err(self.unauthorised("credentials are needed".to_owned()))
    }

    fn header(&self, text: String) -> Result<HeaderValue> {
        let bad = |_| self.unauthorised("the credentials have characters that no header may have".to_owned());
        HeaderValue::from_str(&text).map_err(bad)
    }

    /// From the token server that the registry names (distribution's auth/token and auth/oauth documents).
    async fn token(
        &self,
        auth: &Auth,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<String> {
        let action = "logging in";
        let url: Url = realm.parse().map_err(|_| self.error(action, format!("{realm:?} is no URL")))?;
        if self.host.base.scheme() == "https" && url.scheme() != "https" && *auth != Auth::Anonymous {
            let reason = format!("its token server {url} would see the credentials in the clear");
            return Err(self.error(action, reason));
        }
        let default_scope = format!("repository:{}:pull", self.repository);
        let mut form = vec![("scope", scope.unwrap_or(&default_scope))];
        form.extend(service.map(|service| ("service", service)));
        let request = match auth {
            Auth::Identity(token) => {
                form.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "pith"),
                    ("refresh_token", token),
                ]);
                self.client.post(url).form(&form)
            }
            Auth::Basic { username, password } => self
                .client
                .get(url)
                .query(&form)
                .header(AUTHORIZATION, self.header(basic(username, password))?),
            Auth::Anonymous | Auth::Bearer(_) => self.client.get(url).query(&form),
        };
        let response = request.send().await.map_err(|e| self.failed(action, &e))?;
        if matches!(response.status().as_u16(), 400..=403) {
            let reason = self.reason(response).await;
            return Err(self.unauthorised(reason));
        }
        if !response.status().is_success() {
            return Err(self.refused(action, response).await);
        }
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let body = self.body(action, "the token server's answer", response, TOKEN_MAX).await?;
        let answer: Option<Answer> = serde_json::from_slice(&body).ok();
        answer
            .and_then(|answer| answer.token.or(answer.access_token))
            .filter(|token| !token.is_empty())
            .ok_or_else(|| self.error(action, "the token server's answer holds no token"))
    }

    pub(crate) fn error(&self, action: &str, reason: impl ToString) -> Error {
        Error::Registry { registry: self.name.clone(), action: action.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn failed(&self, action: &str, error: &reqwest::Error) -> Error {
        if error.is_timeout() {
            return self.error(action, "it takes too long to answer");
        }
        self.error(action, innermost(error))
    }

    fn unauthorised(&self, reason: String) -> Error {
        let (registry, repository) = (self.name.clone(), self.repository.clone());
        Error::Unauthorised { registry, repository, reason }
    }

    /// Its refusal in our words.
    async fn refused(&self, action: &str, response: Response) -> Error {
        let status = response.status();
        let reason = self.reason(response).await;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.unauthorised(reason),
            StatusCode::NOT_FOUND => {
                Error::NotFound { reference: format!("{}/{}", self.name, self.repository) }
            }
            _ => self.error(action, format!("{status}: {reason}")),
        }
    }

    async fn reason(&self, response: Response) -> String {
        let status = response.status();
        let body =
            self.body("reading its reason", "its reason", response, REASON_MAX).await.unwrap_or_default();
        let errors = serde_json::from_slice::<Value>(&body).ok();
        let said = errors.as_ref().and_then(|errors| {
            let first = &errors["errors"][0];
            let text = first["message"].as_str().or(first["code"].as_str());
            text.or(errors["details"].as_str()).or(errors["error_description"].as_str())
        });
        let text = said.map_or_else(|| String::from_utf8_lossy(&body).into_owned(), str::to_owned);
        match one_line(&text) {
            empty if empty.is_empty() => {
                status.canonical_reason().unwrap_or("no reason given").to_lowercase()
            }
            text => text,
        }
    }
}

/// What a registry wants to be shown.
enum Challenge {
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    Basic,
}

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut found = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let parsed = value.to_str().ok().and_then(|text| http_auth::parse_challenges(text).ok());
        for challenge in parsed.unwrap_or_default() {
            let parameter = |wanted: &str| {
                let value = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(wanted));
                value.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm")
            {
                let (service, scope) = (parameter("service"), parameter("scope"));
                found.push(Challenge::Bearer { realm, service, scope });
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                found.push(Challenge::Basic);
            }
        }
    }
    found
}

fn redirect_policy() -> redirect::Policy {
    redirect::Policy::custom(|attempt| {
        let was_safe = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
        if was_safe && attempt.url().scheme() != "https" {
            return attempt.error("it redirects from HTTPS to HTTP");
        }
        if attempt.previous().len() > REDIRECTS_MAX {
            return attempt.error("it redirects too often");
        }
        attempt.follow()
    })
}

fn basic(username: &str, password: &str) -> String {
    use base64::Engine as _;
    let text = format!("{username}:{password}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
}

/// In seconds; a date is for those who come back another day.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// reqwest's own text names the URL and hides the cause ("connection refused").
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Registries answer with HTML pages too.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}
