//! Credentials for a registry, and how Kubernetes' pull secrets hold them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::reference::Reference;

#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    #[default]
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    /// A token that the registry takes as it is.
    Bearer(String),
}

/// Secrets do not appear in logs.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Auth::Anonymous => f.write_str("Anonymous"),
            Auth::Basic { username, .. } => write!(f, "Basic({username:?}, …)"),
            Auth::Bearer(_) => f.write_str("Bearer(…)"),
        }
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    registrytoken: Option<String>,
}

impl Auth {
    /// The credentials that a pull secret has for an image: `.dockerconfigjson` (`{"auths": …}`) or the older
    /// `.dockercfg`. The most specific key wins; keys may carry a scheme, a path and `*` in their host.
    /// `None` when the secret is about other registries.
    pub fn from_docker_config(secret: &[u8], image: &Reference) -> Result<Option<Auth>> {
        let bad = |reason: String| Error::BadReference { text: "the pull secret".to_owned(), reason };
        let entries = match serde_json::from_slice::<DockerConfig>(secret) {
            Ok(config) => config.auths,
            Err(_) => serde_json::from_slice(secret).map_err(|e| bad(e.to_string()))?,
        };
        let best = entries
            .into_iter()
            .filter_map(|(key, value)| Some((specificity(&key, image)?, value)))
            .max_by_key(|(specificity, _)| *specificity);
        let Some((_, value)) = best else { return Ok(None) };
        let entry: DockerAuth = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
        if let Some(token) = entry.registrytoken {
            return Ok(Some(Auth::Bearer(token)));
        }
        if let (Some(username), Some(password)) = (entry.username, entry.password) {
            return Ok(Some(Auth::Basic { username, password }));
        }
        let Some(encoded) = entry.auth else { return Ok(Some(Auth::Anonymous)) };
        let decoded = STANDARD.decode(encoded.trim()).map_err(|e| bad(format!("auth: {e}")))?;
        let decoded = String::from_utf8(decoded).map_err(|e| bad(format!("auth: {e}")))?;
        let (username, password) =
            decoded.split_once(':').ok_or_else(|| bad("auth: it has no colon in it".to_owned()))?;
        Ok(Some(Auth::Basic { username: username.to_owned(), password: password.to_owned() }))
    }
}

/// How many bytes of host and path the key fixes; `None` when it is about something else.
fn specificity(key: &str, image: &Reference) -> Option<usize> {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    // Docker Hub's key is https://index.docker.io/v1/ for historical reasons.
    let path = path.trim_start_matches("v1").trim_start_matches("v2").trim_matches('/');
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    let same_path = path.is_empty()
        || image.repository() == path
        || image.repository().strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    (same_path && host_matches(host, image.registry())).then_some(host.len() + path.len())
}

/// `*` stands for one label, as Kubernetes has it.
fn host_matches(pattern: &str, host: &str) -> bool {
    let (pattern, host): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    pattern.len() == host.len() && pattern.iter().zip(&host).all(|(p, h)| *p == "*" || p == h)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn docker_config_table() {
        let auth = STANDARD.encode("me:se:cret");
        let me = Some(Auth::Basic { username: "me".into(), password: "se:cret".into() });
        let cases = [
            ("hub", json!({"auths": {"https://index.docker.io/v1/": {"auth": auth}}}), "nginx", me.clone()),
            (
                "old form",
                json!({"quay.io": {"username": "me", "password": "se:cret"}}),
                "quay.io/a/b",
                me.clone(),
            ),
            ("port", json!({"auths": {"localhost:5000": {"auth": auth}}}), "localhost:5000/x", me.clone()),
            ("other", json!({"auths": {"quay.io": {"auth": auth}}}), "nginx", None),
            ("wildcard", json!({"auths": {"*.example.com": {"auth": auth}}}), "r.example.com/x", me.clone()),
            ("wildcard is one label", json!({"auths": {"*.com": {"auth": auth}}}), "r.example.com/x", None),
            (
                "most specific",
                json!({"auths": {"quay.io": {"username": "a", "password": "b"}, "quay.io/team": {"auth": auth}}}),
                "quay.io/team/app",
                me,
            ),
            (
                "path is whole components",
                json!({"auths": {"quay.io/te": {"auth": auth}}}),
                "quay.io/team/x",
                None,
            ),
            (
                "token",
                json!({"auths": {"quay.io": {"registrytoken": "t"}}}),
                "quay.io/x",
                Some(Auth::Bearer("t".into())),
            ),
        ];
        for (name, secret, image, expect) in cases {
            let image = Reference::parse(image).expect(image);
            let found = Auth::from_docker_config(secret.to_string().as_bytes(), &image).expect(name);
            assert_eq!(found, expect, "{name}");
        }
    }

    #[test]
    fn secrets_stay_secret() {
        let auth = Auth::Basic { username: "me".into(), password: "hunter2".into() };
        assert!(!format!("{auth:?} {:?}", Auth::Bearer("hunter2".into())).contains("hunter2"));
    }
}
