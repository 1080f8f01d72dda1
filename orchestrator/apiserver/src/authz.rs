//! Authorization: who may do what, in rules that are code.
//!
//! | who | may |
//! |---|---|
//! | `system:masters`, the controller manager | everything |
//! | the scheduler | read everything; bind pods, write pod status, delete pods; write events and leases |
//! | `system:node:<name>` | what a kubelet and its proxy need, see [`node`]; writes only about itself and its pods |
//! | bootstrap tokens | ask for a node's certificate |
//! | ServiceAccounts in kube-system | read everything but Secrets; write events, leases, endpoints of their own |
//! | everyone who proved who they are | discovery, OpenAPI, questions about themselves |
//! | nobody in particular | `/version`, health, the authority's certificate |
//!
//! RBAC objects are not consulted yet: other ServiceAccounts have no more than everyone.

use http::Method;
use pith_api::{ApiError, Subject};

use crate::{
    identity::{Identity, SERVICE_ACCOUNTS},
    pki::{MASTERS, request::BOOTSTRAPPERS},
    request::Verb,
};

/// What is to be done to a resource.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// The node that a list or watch is limited to by its field selector.
    pub selected_node: Option<&'a str>,
}

/// Decides what may be done. The rules above are the only implementation; RBAC will be the other.
pub trait Authorizer: Send + Sync + 'static {
    fn may(&self, who: &Identity, what: &Attributes<'_>) -> bool;

    fn may_request(&self, who: &Identity, method: &Method, path: &str) -> bool;
}

/// The rules of this module.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuiltinRules;

const READS: &[&str] = &["get", "list", "watch"];

fn is_read(what: &Attributes<'_>) -> bool {
    READS.contains(&what.verb)
}

impl Authorizer for BuiltinRules {
    fn may(&self, who: &Identity, what: &Attributes<'_>) -> bool {
        if who.is_in(MASTERS) || who.name == "system:kube-controller-manager" {
            return true;
        }
        if who.is_anonymous() {
            return false;
        }
        if asks_about_itself(what) {
            return true;
        }
        if let Some(node_name) = who.node() {
            return node(node_name, what);
        }
        if who.name == "system:kube-scheduler" {
            return scheduler(what);
        }
        if who.is_in(BOOTSTRAPPERS) {
            return what.resource == "certificatesigningrequests"
                && what.subresource.is_empty()
                && matches!(what.verb, "create" | "get" | "list" | "watch");
        }
        if who.is_in(&format!("{SERVICE_ACCOUNTS}:kube-system")) {
            return system_account(what);
        }
        false
    }

    fn may_request(&self, who: &Identity, method: &Method, path: &str) -> bool {
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        if is_read && is_public(path) {
            return true;
        }
        if who.is_in(MASTERS) || who.name == "system:kube-controller-manager" {
            return true;
        }
        let discovery = ["/api", "/apis", "/openapi", "/.well-known/openid-configuration"];
        is_read
            && !who.is_anonymous()
            && discovery.iter().any(|&prefix| {
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
    }
}

/// Paths for anyone; upstream gives `/version` and health to `system:public-info-viewer`.
fn is_public(path: &str) -> bool {
    let health = ["/healthz", "/livez", "/readyz"];
    path == "/version"
        || path == "/version/"
        || path == crate::pki::join::AUTHORITY_PATH
        || health.iter().any(|&prefix| {
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
}

/// `kubectl auth whoami` and `can-i`.
fn asks_about_itself(what: &Attributes<'_>) -> bool {
    what.verb == "create"
        && matches!(
            (what.group, what.resource),
            ("authentication.k8s.io", "selfsubjectreviews")
                | ("authorization.k8s.io", "selfsubjectaccessreviews" | "selfsubjectrulesreviews")
        )
}

/// What a node may ask for; narrowed by `admission::nodes`, which sees the objects.
fn node(name: &str, what: &Attributes<'_>) -> bool {
    let own = what.name == name;
    match (what.group, what.resource, what.subresource) {
        ("", "nodes", "") => is_read(what) || what.verb == "create" || (own && is_change(what)),
        ("", "nodes", "status") => own && is_change(what),
        ("", "pods", "") => is_read(what) || matches!(what.verb, "create" | "delete"),
        ("", "pods", "status") => is_change(what) || what.verb == "get",
        ("", "pods", "eviction") => what.verb == "create",
        ("", "services" | "namespaces" | "endpoints", "") => is_read(what),
        ("discovery.k8s.io", "endpointslices", "") => is_read(what),
        // Only those its pods use; admission cannot tell a read, so it is by name, one at a time.
        ("", "configmaps" | "secrets", "") => {
            what.verb == "get" || (what.verb != "delete" && is_read_by_name(what))
        }
        ("", "persistentvolumeclaims" | "persistentvolumes", "") => is_read(what),
        ("", "serviceaccounts", "") => what.verb == "get",
        ("", "serviceaccounts", "token") => what.verb == "create",
        ("", "events", "") | ("events.k8s.io", "events", "") => {
            matches!(what.verb, "create" | "patch" | "update")
        }
        ("coordination.k8s.io", "leases", "") => {
            what.namespace == "kube-node-lease"
                && (what.verb == "create"
                    || (own && (is_change(what) || is_read(what) || what.verb == "delete")))
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") => is_read(what) || what.verb == "create",
        ("storage.k8s.io", _, "") | ("node.k8s.io", "runtimeclasses", "") => is_read(what),
        ("authentication.k8s.io", "tokenreviews", "") => what.verb == "create",
        ("authorization.k8s.io", "subjectaccessreviews", "") => what.verb == "create",
        _ => false,
    }
}

fn is_change(what: &Attributes<'_>) -> bool {
    matches!(what.verb, "update" | "patch")
}

fn is_read_by_name(what: &Attributes<'_>) -> bool {
    is_read(what) && !what.name.is_empty()
}

fn scheduler(what: &Attributes<'_>) -> bool {
    match (what.group, what.resource, what.subresource) {
        ("", "secrets", _) => false,
        ("", "pods", "binding") | ("", "bindings", "") => what.verb == "create",
        ("", "pods", "status") => is_change(what),
        ("", "pods", "") => is_read(what) || what.verb == "delete",
        ("", "events", "") | ("events.k8s.io", "events", "") => {
            !matches!(what.verb, "delete" | "deletecollection")
        }
        ("coordination.k8s.io", "leases", "") => what.namespace == "kube-system" || is_read(what),
        _ => is_read(what),
    }
}

fn system_account(what: &Attributes<'_>) -> bool {
    match (what.group, what.resource) {
        ("", "secrets") => false,
        ("", "events") | ("events.k8s.io", "events") => {
            matches!(what.verb, "create" | "patch" | "update") || is_read(what)
        }
        ("coordination.k8s.io", "leases") => what.namespace == "kube-system" || is_read(what),
        ("authentication.k8s.io", "tokenreviews") | ("authorization.k8s.io", "subjectaccessreviews") => {
            what.verb == "create"
        }
        _ => is_read(what) && what.subresource.is_empty(),
    }
}

/// 403 in upstream's words.
pub(crate) fn refusal(who: &Identity, what: &Attributes<'_>) -> ApiError {
    let resource = match what.subresource {
        "" => what.resource.to_owned(),
        sub => format!("{}/{sub}", what.resource),
    };
    let place = match what.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let why = format!(
        "User {:?} cannot {} resource {resource:?} in API group {:?} {place}",
        who.name, what.verb, what.group
    );
    ApiError::forbidden(Subject::new(what.group, what.resource, what.name), why)
}

/// 403 for a path that is no resource.
pub(crate) fn path_refusal(who: &Identity, method: &Method, path: &str) -> ApiError {
    let verb = method.as_str().to_ascii_lowercase();
    ApiError::forbidden(Subject::default(), format!("User {:?} cannot {verb} path {path:?}", who.name))
}

impl Verb {
    /// Streams into a pod are a `create`, however they are asked for: exec by GET is how WebSockets begin.
    pub(crate) fn for_authorization(self, subresource: Option<&str>) -> Self {
        match subresource {
            Some("exec" | "attach" | "portforward") => Self::Create,
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what<'a>(verb: &'a str, resource: &'a str, namespace: &'a str, name: &'a str) -> Attributes<'a> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (group, resource) = resource.split_once(':').unwrap_or(("", resource));
        Attributes { verb, group, resource, subresource, namespace, name, selected_node: None }
    }

    #[test]
    fn rules() {
        let node = Identity::new("system:node:replica-1", &["system:nodes"]);
        let pod = Identity::service_account("default", "default", "u");
        let system = Identity::service_account("kube-system", "dns", "u");
        let token = Identity::new("system:bootstrap:abcdef", &[BOOTSTRAPPERS]);
        let cases = [
            (&node, what("patch", "nodes/status", "", "replica-1"), true),
            (&node, what("patch", "nodes/status", "", "replica-2"), false),
            (&node, what("delete", "nodes", "", "replica-1"), false),
            (&node, what("list", "secrets", "default", ""), false),
            (&node, what("get", "secrets", "default", "a"), true),
            (&node, what("create", "deployments", "default", ""), false),
            (&node, what("update", "coordination.k8s.io:leases", "kube-node-lease", "replica-1"), true),
            (&node, what("update", "coordination.k8s.io:leases", "kube-node-lease", "replica-2"), false),
            (&pod, what("list", "pods", "default", ""), false),
            (&pod, what("create", "authentication.k8s.io:selfsubjectreviews", "", ""), true),
            (&system, what("list", "services", "", ""), true),
            (&system, what("get", "secrets", "kube-system", "a"), false),
            (&system, what("delete", "pods", "default", "a"), false),
            (&token, what("create", "certificates.k8s.io:certificatesigningrequests", "", ""), true),
            (&token, what("list", "pods", "default", ""), false),
            (&Identity::scheduler(), what("create", "pods/binding", "default", "a"), true),
            (&Identity::scheduler(), what("create", "pods", "default", ""), false),
            (&Identity::admin(), what("delete", "nodes", "", "replica-1"), true),
            (
                &Identity::anonymous(),
                what("create", "authentication.k8s.io:selfsubjectreviews", "", ""),
                false,
            ),
        ];
        for (who, what, expect) in cases {
            assert_eq!(BuiltinRules.may(who, &what), expect, "{} {what:?}", who.name);
        }
    }

    #[test]
    fn the_refusal_reads_as_upstreams() {
        let who = Identity::service_account("default", "default", "u");
        assert_eq!(
            refusal(&who, &what("list", "pods", "default", "")).to_string(),
            "pods is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"pods\" in API \
             group \"\" in the namespace \"default\""
        );
    }
}
