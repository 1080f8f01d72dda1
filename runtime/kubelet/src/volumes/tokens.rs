//! ServiceAccount tokens for projected volumes: asked for when needed, renewed at 80 % of their life or
//! after a day, whichever comes first.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, api::PostParams};

use super::{VolumeError, payload::TokenWish};
use crate::desired::Desired;

#[derive(Debug, Clone)]
struct Token {
    text: String,
    renew_at: Timestamp,
}

/// The tokens of one pod.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    held: BTreeMap<TokenWish, Token>,
}

const OLDEST: SignedDuration = SignedDuration::from_hours(24);

impl Tokens {
    /// Makes sure of a fresh token for every wish.
    pub(crate) async fn ensure(
        &mut self,
        client: &kube::Client,
        pod: &Desired,
        wishes: &[TokenWish],
        now: Timestamp,
    ) -> Result<(), VolumeError> {
        for wish in wishes {
            if self.held.get(wish).is_some_and(|t| t.renew_at > now) {
                continue;
            }
            let token = request(client, pod, wish, now).await?;
            self.held.insert(wish.clone(), token);
        }
        Ok(())
    }

    pub(crate) fn texts(&self) -> BTreeMap<TokenWish, String> {
        self.held.iter().map(|(w, t)| (w.clone(), t.text.clone())).collect()
    }

    pub(crate) fn renew_at(&self) -> Option<Timestamp> {
        self.held.values().map(|t| t.renew_at).min()
    }
}

async fn request(
    client: &kube::Client,
    pod: &Desired,
    wish: &TokenWish,
    now: Timestamp,
) -> Result<Token, VolumeError> {
    let account = pod.spec().service_account_name.as_deref().unwrap_or("default");
    let body = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: wish.audience.clone().map(|a| vec![a]),
            expiration_seconds: Some(wish.seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.id.name.clone()),
                uid: Some(pod.id.uid.to_string()),
            }),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let failed = |message: String| VolumeError::Token { account: account.to_owned(), message };
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &pod.id.namespace);
    let answer: TokenRequest = api
        .create_subresource("token", account, &PostParams::default(), &body)
        .await
        .map_err(|e| failed(e.to_string()))?;
    let status = answer.status.ok_or_else(|| failed("the answer has no token".to_owned()))?;
    let text = status.token.ok_or_else(|| failed("the answer has no token".to_owned()))?;
    let asked = SignedDuration::from_secs(wish.seconds);
    let life = status.expiration_timestamp.map_or(asked, |t| t.0.duration_since(now));
    Ok(Token { text, renew_at: now + (life * 4 / 5).min(OLDEST) })
}
