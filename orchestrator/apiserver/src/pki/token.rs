//! Bootstrap tokens: what a replica joins with.
//!
//! `<id>.<secret>`, optionally followed by `@sha256:<hash of the authority's key>`, with which the joining side
//! can tell the right server from a wrong one without a file.

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use rand::{Rng, distr::slice::Choose};
use serde_json::{Value, json};

const ID_CHARS: usize = 6;
const SECRET_CHARS: usize = 16;
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// A bootstrap token. `Debug` does not show the secret; `Display` does.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    id: String,
    secret: String,
    /// `sha256:<hex>`
    authority: Option<String>,
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a token is 6 characters, a dot and 16 characters, of a-z and 0-9, and may be followed by @sha256:<64 hex digits>"
)]
pub struct NoToken;

impl BootstrapToken {
    /// A new token that only fits the cluster with this authority key.
    pub fn generate(authority: &str) -> Self {
        let alphabet = Choose::new(ALPHABET).expect("the alphabet is not empty");
        let text = |chars| {
            let letters: Vec<u8> = rand::rng().sample_iter(alphabet).take(chars).copied().collect();
            String::from_utf8(letters).expect("the alphabet is ASCII")
        };
        Self { id: text(ID_CHARS), secret: text(SECRET_CHARS), authority: Some(authority.to_owned()) }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// What the server is asked with: without the authority's hash.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// The Secret that makes the token good until `expiry`, in the form that kubeadm gives it.
    pub fn object(&self, expiry: Timestamp) -> Value {
        let data = |text: &str| Value::from(BASE64_STANDARD.encode(text));
        json!({
            "kind": "Secret", "apiVersion": "v1",
            "metadata": {"name": format!("bootstrap-token-{}", self.id), "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token",
            "data": {
                "token-id": data(&self.id),
                "token-secret": data(&self.secret),
                "expiration": data(&pith_api::time::seconds(expiry)),
                "usage-bootstrap-authentication": data("true"),
                "auth-extra-groups": data("system:bootstrappers:pith"),
            },
        })
    }
}

impl FromStr for BootstrapToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let (token, authority) = match text.split_once('@') {
            Some((token, authority)) => (token, Some(authority)),
            None => (text, None),
        };
        let (id, secret) = token.split_once('.').ok_or(NoToken)?;
        let fits =
            |text: &str, chars| text.len() == chars && text.bytes().all(|byte| ALPHABET.contains(&byte));
        let hash = |text: &str| {
            text.strip_prefix("sha256:")
                .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        if !fits(id, ID_CHARS) || !fits(secret, SECRET_CHARS) || authority.is_some_and(|text| !hash(text)) {
            return Err(NoToken);
        }
        let authority = authority.map(str::to_ascii_lowercase);
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), authority })
    }
}

impl fmt::Display for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)?;
        match &self.authority {
            Some(authority) => write!(f, "@{authority}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootstrapToken").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_back_and_others_refused() {
        let hash = format!("sha256:{}", "0f".repeat(32));
        let token = BootstrapToken::generate(&hash);
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(token.secret()));
        for text in [
            "",
            "abcdef",
            "abcdef.0123456789abcde",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcdef@sha256:12",
        ] {
            assert_eq!(text.parse::<BootstrapToken>(), Err(NoToken), "{text:?}");
        }
    }
}
