//! Authentication: a client certificate, or a bearer token of a ServiceAccount or for bootstrapping.

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, header};
use jiff::Timestamp;
use pith_api::{ApiError, Subject};
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use x509_parser::prelude::FromDer;

use crate::{
    identity::{Identity, SERVICE_ACCOUNT_PREFIX},
    pki::{MASTERS, request::BOOTSTRAPPERS},
    state::State,
};

const BOOTSTRAP_SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";

/// What a connection says about whoever is at its other end.
#[derive(Clone, Debug)]
pub(crate) struct Proof {
    identity: Identity,
    /// The handshake looked at the certificate once; the connection may outlast it.
    until: Option<Timestamp>,
}

impl Proof {
    /// Whom a verified client certificate names: CN is the user, each O a group.
    pub(crate) fn of_certificate(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?;
        let groups: Vec<&str> =
            subject.iter_organization().map(|group| group.as_str()).collect::<Result<_, _>>().ok()?;
        let until = Timestamp::from_second(certificate.validity().not_after.timestamp()).ok();
        (!name.is_empty()).then(|| Self { identity: Identity::new(name, &groups), until })
    }

    /// Of a part of this process.
    pub(crate) fn in_process(identity: Identity) -> Self {
        Self { identity, until: None }
    }
}

/// Who sent a request, or on whose behalf.
pub(crate) async fn authenticate(
    state: &State,
    proof: Option<&Proof>,
    headers: &HeaderMap,
) -> Result<Identity, ApiError> {
    let who = own_identity(state, proof, headers).await?;
    impersonated(who, headers)
}

/// `kubectl --as`: administrators may act as someone else; for anyone else the wish is refused, not ignored.
fn impersonated(who: Identity, headers: &HeaderMap) -> Result<Identity, ApiError> {
    let wish = |header: &str| headers.get(header).and_then(|value| value.to_str().ok());
    let groups = headers.get_all("impersonate-group").iter().filter_map(|value| value.to_str().ok());
    let groups: Vec<&str> = groups.collect();
    let Some(name) = wish("impersonate-user") else {
        return match groups.is_empty() && wish("impersonate-uid").is_none() {
            true => Ok(who),
            false => Err(ApiError::bad_request("requested impersonation without impersonating a user")),
        };
    };
    if !who.is_in(MASTERS) {
        let why = format!(
            "User {:?} cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
            who.name
        );
        return Err(ApiError::forbidden(Subject::new("", "users", name), why));
    }
    let account = name.strip_prefix(SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    Ok(match account {
        Some((namespace, account)) if groups.is_empty() => Identity::service_account(namespace, account, ""),
        _ => Identity::new(name, &groups),
    })
}

/// A token that is wrong is refused, also where none would have been needed.
async fn own_identity(
    state: &State,
    proof: Option<&Proof>,
    headers: &HeaderMap,
) -> Result<Identity, ApiError> {
    match proof {
        Some(Proof { until: Some(until), .. }) if *until < Timestamp::now() => {
            return Err(ApiError::unauthorized());
        }
        Some(Proof { identity, .. }) => return Ok(identity.clone()),
        None => {}
    }
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(Identity::anonymous()) };
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match token {
        Some(token) => Ok(token_identity(state, token, &[]).await?.ok_or_else(ApiError::unauthorized)?.0),
        None => Err(ApiError::unauthorized()),
    }
}

/// Whom a bearer token names, and for which of the audiences.
pub(crate) async fn token_identity(
    state: &State,
    token: &str,
    audiences: &[String],
) -> Result<Option<(Identity, Vec<String>)>, ApiError> {
    if let Ok(token) = token.parse::<crate::pki::token::BootstrapToken>() {
        let identity = bootstrap_identity(state, token.id(), token.secret()).await?;
        return Ok(identity.map(|identity| (identity, Vec::new())));
    }
    let Some((claims, audiences)) = state.tokens.check(token, audiences) else { return Ok(None) };
    Ok(claims.identity(&state.objects).await?.map(|identity| (identity, audiences)))
}

/// Looks a bootstrap token up in its Secret, as upstream's bootstrap authenticator does.
async fn bootstrap_identity(state: &State, id: &str, secret: &str) -> Result<Option<Identity>, ApiError> {
    let kind = pith_api::find("", "v1", "secrets").expect("a core kind");
    let name = format!("bootstrap-token-{id}");
    let Some(found) = state.objects.value(kind, Some("kube-system"), &name).await? else { return Ok(None) };
    let field = |name: &str| {
        let text = found["data"][name].as_str()?;
        String::from_utf8(BASE64_STANDARD.decode(text).ok()?).ok()
    };
    let usable = found["type"] == BOOTSTRAP_SECRET_TYPE
        && found["metadata"]["deletionTimestamp"] == Value::Null
        && field("token-id").as_deref() == Some(id)
        && field("usage-bootstrap-authentication").as_deref() == Some("true")
        && field("token-secret").is_some_and(|expected| same(expected.as_bytes(), secret.as_bytes()));
    if !usable {
        return Ok(None);
    }
    if let Some(expiry) = field("expiration") {
        // What cannot be read has expired.
        match pith_api::time::parse(&expiry) {
            Ok(expiry) if expiry > Timestamp::now() => {}
            _ => return Ok(None),
        }
    }
    let mut groups = vec![BOOTSTRAPPERS.to_owned()];
    let extra = field("auth-extra-groups").unwrap_or_default();
    // Only groups of this prefix may be given by a token, or it could make anyone an administrator.
    let prefix = format!("{BOOTSTRAPPERS}:");
    groups.extend(extra.split(',').filter(|group| group.starts_with(&prefix)).map(str::to_owned));
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    Ok(Some(Identity::new(format!("system:bootstrap:{id}"), &groups)))
}

/// Compares without telling by the time taken where the difference is.
fn same(expected: &[u8], given: &[u8]) -> bool {
    expected.len() == given.len() && expected.iter().zip(given).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}
