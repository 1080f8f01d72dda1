//! What a request asks for, read off its method, path and query.

use http::{Method, request::Parts};
use percent_encoding::percent_decode_str;
use pith_api::{ApiError, Kind, Subject};

/// What is done to a resource, in the words of authorization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// A resource, an object of it, or something below an object.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) kind: &'static Kind,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
    /// What follows the subresource: the path of a proxied request, with its leading slash.
    pub(crate) rest: String,
}

impl Target {
    /// The object in errors.
    pub(crate) fn subject(&self) -> Subject {
        self.kind.subject(self.name.as_deref().unwrap_or_default())
    }

    pub(crate) fn require_name(&self) -> Result<&str, ApiError> {
        self.name
            .as_deref()
            .ok_or_else(|| ApiError::bad_request("the name of the object is missing in the path"))
    }
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Resource(Target),
    /// `/api/v1`, `/apis/apps`, …: the parts behind `/api` or `/apis`.
    Discovery {
        core: bool,
        parts: Vec<String>,
    },
    /// Anything else: `/version`, `/healthz`, …
    Other,
}

/// Reads a path.
pub(crate) fn place(path: &str) -> Result<Place, ApiError> {
    let raw: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let core = match raw.first() {
        Some(&"api") => true,
        Some(&"apis") => false,
        _ => return Ok(Place::Other),
    };
    let head = if core { 1 } else { 2 };
    let decode = |part: &&str| match percent_decode_str(part).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(ApiError::bad_request("the path is not UTF-8")),
    };
    let meaningful: Vec<&str> = {
        // A trailing slash means nothing, except at the end of a proxied path.
        let end = if raw.last() == Some(&"") { raw.len() - 1 } else { raw.len() };
        raw[1..end].to_vec()
    };
    if meaningful.len() <= head {
        return Ok(Place::Discovery {
            core,
            parts: meaningful.iter().map(decode).collect::<Result<_, _>>()?,
        });
    }
    let (group, version) = if core { ("", meaningful[0]) } else { (meaningful[0], meaningful[1]) };
    let parts = &meaningful[head..];
    let find = |plural: &str| {
        pith_api::find(group, version, plural)
            .filter(|kind| !kind.verbs.is_empty())
            .ok_or_else(ApiError::no_such_path)
    };
    let namespaced =
        parts[0] == "namespaces" && parts.len() > 2 && !matches!(parts[2], "status" | "finalize");
    let (namespace, parts) = match namespaced {
        true => (Some(decode(&parts[1])?), &parts[2..]),
        false => (None, parts),
    };
    let kind = find(parts[0])?;
    if namespace.is_some() && !kind.namespaced {
        return Err(ApiError::no_such_path());
    }
    let name = parts.get(1).map(decode).transpose()?;
    if name.is_some() && kind.namespaced && namespace.is_none() {
        return Err(ApiError::no_such_path());
    }
    let subresource = parts.get(2).map(decode).transpose()?;
    let rest = rest_of_path(path, &subresource, parts.len() > 3 || path.ends_with('/'), head, namespaced);
    if parts.len() > 3 && subresource.as_deref() != Some("proxy") {
        return Err(ApiError::no_such_path());
    }
    Ok(Place::Resource(Target { kind, namespace, name, subresource, rest }))
}

/// The part of the path behind the subresource, as it was written.
fn rest_of_path(
    path: &str,
    subresource: &Option<String>,
    more: bool,
    head: usize,
    namespaced: bool,
) -> String {
    if subresource.is_none() || !more {
        return String::new();
    }
    // api(s), group and version, namespaces and its name, plural, name, subresource.
    let skip = 1 + head + if namespaced { 2 } else { 0 } + 3;
    let mut rest = path.trim_start_matches('/');
    for _ in 0..skip {
        rest = rest.split_once('/').map_or("", |(_, rest)| rest);
    }
    format!("/{rest}")
}

/// The query, decoded; the first value of a name counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn of(parts: &Parts) -> Self {
        let query = parts.uri.query().unwrap_or_default();
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// Empty where it is absent.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(found, _)| found == name)
    }

    /// Go's `strconv.ParseBool`, where what it does not know is false.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), "1" | "t" | "T" | "true" | "TRUE" | "True")
    }

    /// A number, if it is there.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!("invalid value {text:?} for the query parameter {name}"))
            }),
        }
    }

    /// `dryRun=All`; anything else is refused, as upstream does.
    pub(crate) fn dry_run(&self) -> Result<bool, ApiError> {
        match self.get("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => {
                Err(ApiError::bad_request(format!("unsupported dryRun value: {other:?}; supported: \"All\"")))
            }
        }
    }
}

/// What a method means for a target.
pub(crate) fn verb(method: &Method, target: &Target, query: &Query) -> Option<Verb> {
    let object = target.name.is_some();
    Some(match (method.as_str(), object) {
        ("GET" | "HEAD", _) if query.flag("watch") && target.subresource.is_none() => Verb::Watch,
        ("GET" | "HEAD", true) => Verb::Get,
        ("GET" | "HEAD", false) => Verb::List,
        ("POST", _) => Verb::Create,
        ("PUT", true) => Verb::Update,
        ("PATCH", true) => Verb::Patch,
        ("DELETE", true) => Verb::Delete,
        ("DELETE", false) => Verb::DeleteCollection,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_upstream_leads_them() {
        type Expect<'a> = (&'a str, Option<&'a str>, Option<&'a str>, Option<&'a str>, &'a str);
        let cases: &[(&str, Expect<'_>)] = &[
            ("/api/v1/pods", ("pods", None, None, None, "")),
            ("/api/v1/namespaces", ("namespaces", None, None, None, "")),
            ("/api/v1/namespaces/a", ("namespaces", None, Some("a"), None, "")),
            ("/api/v1/namespaces/a/finalize", ("namespaces", None, Some("a"), Some("finalize"), "")),
            ("/api/v1/namespaces/a/pods", ("pods", Some("a"), None, None, "")),
            ("/api/v1/namespaces/a/pods/b/log", ("pods", Some("a"), Some("b"), Some("log"), "")),
            ("/apis/apps/v1/namespaces/a/deployments/b", ("deployments", Some("a"), Some("b"), None, "")),
            ("/api/v1/nodes/n%31", ("nodes", None, Some("n1"), None, "")),
            (
                "/api/v1/namespaces/a/services/b:80/proxy/",
                ("services", Some("a"), Some("b:80"), Some("proxy"), "/"),
            ),
            (
                "/api/v1/namespaces/a/services/b/proxy/x/y%2F/",
                ("services", Some("a"), Some("b"), Some("proxy"), "/x/y%2F/"),
            ),
            ("/api/v1/nodes/n/proxy/metrics", ("nodes", None, Some("n"), Some("proxy"), "/metrics")),
        ];
        for (path, expect) in cases {
            let Ok(Place::Resource(target)) = place(path) else { panic!("{path} is a resource") };
            let got = (
                target.kind.plural,
                target.namespace.as_deref(),
                target.name.as_deref(),
                target.subresource.as_deref(),
                target.rest.as_str(),
            );
            assert_eq!(&got, expect, "{path}");
        }
        for path in [
            "/api/v1/unknown",
            "/api/v1/pods/a",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/namespaces/a/pods/b/log/x",
        ] {
            assert!(place(path).is_err(), "{path}");
        }
        for path in ["/api", "/apis", "/api/v1", "/apis/apps/", "/apis/apps/v1"] {
            assert!(matches!(place(path), Ok(Place::Discovery { .. })), "{path}");
        }
    }
}
