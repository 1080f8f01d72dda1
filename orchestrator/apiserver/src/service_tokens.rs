//! ServiceAccount tokens: ES256 JSON web tokens, bound to an account and, where asked for, to a pod.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use pith_api::ApiError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{identity::Identity, objects::Objects, pki::Pki};

/// Who issues tokens, and whom they are for unless something else is asked for; upstream's default.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Bounds on `expirationSeconds`, and the default (kubernetes/pkg/apis/authentication/validation, types.go).
const MIN_LIFETIME_S: u64 = 600;
const MAX_LIFETIME_S: u64 = 1 << 32;
const DEFAULT_LIFETIME_S: u64 = 3600;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    aud: Vec<String>,
    pub(crate) exp: u64,
    iat: u64,
    nbf: u64,
    jti: String,
    iss: String,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    bound: Bound,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// What a token is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) account: Reference,
    pub(crate) pod: Option<Reference>,
    pub(crate) secret: Option<Reference>,
    pub(crate) node: Option<Reference>,
    pub(crate) audiences: Vec<String>,
    pub(crate) lifetime_s: Option<i64>,
}

/// Signs and checks tokens.
pub(crate) struct ServiceTokens {
    header: Header,
    signing: EncodingKey,
    checking: DecodingKey,
    point: Vec<u8>,
}

impl std::fmt::Debug for ServiceTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceTokens").field("key_id", &self.header.kid).finish_non_exhaustive()
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl ServiceTokens {
    pub(crate) fn new(pki: &Pki) -> Self {
        let point = pki.token_key.public_key_raw().to_vec();
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&point)));
        Self {
            header,
            signing: EncodingKey::from_ec_der(pki.token_key.serialized_der()),
            checking: DecodingKey::from_ec_der(&point),
            point,
        }
    }

    /// A token and the second of its expiry.
    pub(crate) fn issue(&self, wanted: Wanted<'_>) -> Result<(String, u64), ApiError> {
        let lifetime = match wanted.lifetime_s {
            None => DEFAULT_LIFETIME_S,
            Some(seconds) => u64::try_from(seconds)
                .ok()
                .filter(|seconds| (MIN_LIFETIME_S..=MAX_LIFETIME_S).contains(seconds))
                .ok_or_else(|| {
                    ApiError::bad_request("spec.expirationSeconds: Invalid value: may not specify a duration less than 10 minutes or larger than 2^32 seconds")
                })?,
        };
        let now = now_s();
        let audiences = match wanted.audiences.is_empty() {
            true => vec![ISSUER.to_owned()],
            false => wanted.audiences,
        };
        let claims = Claims {
            aud: audiences,
            exp: now + lifetime,
            iat: now,
            nbf: now,
            jti: uuid::Uuid::new_v4().to_string(),
            iss: ISSUER.to_owned(),
            sub: format!("system:serviceaccount:{}:{}", wanted.namespace, wanted.account.name),
            bound: Bound {
                namespace: wanted.namespace.to_owned(),
                serviceaccount: wanted.account,
                pod: wanted.pod,
                secret: wanted.secret,
                node: wanted.node,
            },
        };
        let token = jsonwebtoken::encode(&self.header, &claims, &self.signing).map_err(ApiError::internal)?;
        Ok((token, claims.exp))
    }

    /// What a token claims, once its signature, time and audience are right.
    pub(crate) fn check(&self, token: &str, audiences: &[String]) -> Option<(Claims, Vec<String>)> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "sub", "aud"]);
        let claims: Claims = jsonwebtoken::decode(token, &self.checking, &validation).ok()?.claims;
        let default = [ISSUER.to_owned()];
        let accepted = if audiences.is_empty() { &default[..] } else { audiences };
        let common: Vec<String> = claims.aud.iter().filter(|aud| accepted.contains(aud)).cloned().collect();
        (!common.is_empty()).then_some((claims, common))
    }

    /// The public key as a JSON web key set, for those who check tokens themselves.
    pub(crate) fn key_set(&self) -> Value {
        // An uncompressed point: 4, x, y (SEC 1, 2.3.3).
        let (x, y) = self.point[1..].split_at(32);
        json!({"keys": [{
            "use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256",
            "kid": self.header.kid,
            "x": BASE64_URL_SAFE_NO_PAD.encode(x),
            "y": BASE64_URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}

impl Claims {
    /// The account, if it and what the token is bound to still exist.
    pub(crate) async fn identity(&self, objects: &Objects) -> Result<Option<Identity>, ApiError> {
        let Bound { namespace, serviceaccount, pod, secret, node } = &self.bound;
        let mut bound = vec![("serviceaccounts", Some(namespace), serviceaccount)];
        bound.extend(pod.iter().map(|pod| ("pods", Some(namespace), pod)));
        bound.extend(secret.iter().map(|secret| ("secrets", Some(namespace), secret)));
        if pod.is_none() {
            bound.extend(node.iter().map(|node| ("nodes", None, node)));
        }
        for (plural, namespace, reference) in bound {
            let kind = pith_api::find("", "v1", plural).expect("a core kind");
            let found = objects.value(kind, namespace.map(String::as_str), &reference.name).await?;
            if found.is_none_or(|found| found["metadata"]["uid"] != reference.uid.as_str()) {
                return Ok(None);
            }
        }
        let mut identity = Identity::service_account(namespace, &serviceaccount.name, &serviceaccount.uid);
        let mut extra = |name: &str, value: &str| {
            identity.extra.insert(format!("authentication.kubernetes.io/{name}"), vec![value.to_owned()]);
        };
        extra("credential-id", &format!("JTI={}", self.jti));
        for (prefix, reference) in [("pod", pod), ("node", node)] {
            if let Some(reference) = reference {
                extra(&format!("{prefix}-name"), &reference.name);
                extra(&format!("{prefix}-uid"), &reference.uid);
            }
        }
        Ok(Some(identity))
    }
}
