//! The environment of a container and the expansion of `$(VAR)`, pure.
//!
//! Later sources win: the image, service variables, `envFrom` in order, `env` in order. A variable may use
//! those before it; what cannot be resolved stays as written, `$$` is a dollar.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod};

use crate::{
    downward::{self, PodFacts, UnknownField},
    objects::{Data, ObjectKind},
    resources::{self, NodeSize},
    services::ServiceFacts,
};

/// Why a container cannot be configured: shown as CreateContainerConfigError.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{} \"{name}\" not found", .kind.word())]
    NoObject { kind: ObjectKind, name: String },
    #[error("couldn't find key {key} in {} {namespace}/{name}", .kind.title())]
    NoKey { kind: ObjectKind, namespace: String, name: String, key: String },
    #[error("{} {namespace}/{name} has no text under {key}", .kind.title())]
    NotText { kind: ObjectKind, namespace: String, name: String, key: String },
    #[error(transparent)]
    Field(#[from] UnknownField),
    #[error("resource {0:?} is not one of requests or limits")]
    Resource(String),
    #[error("environment variable {0} has a source this kubelet does not know")]
    Source(String),
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    WouldRunAsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    UnverifiedUser { user: String, pod: String, container: String },
    #[error("{0}")]
    Other(String),
}

/// What values may be drawn from.
pub(crate) struct Sources<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) facts: &'a PodFacts,
    pub(crate) node: NodeSize,
    pub(crate) services: &'a [ServiceFacts],
    pub(crate) object: &'a dyn Fn(ObjectKind, &str) -> Option<Arc<Data>>,
}

/// Variables in the order they were first set.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Environment {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Environment {
    pub(crate) fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.order.iter().map(|n| format!("{n}={}", self.values[n])).collect()
    }
}

/// What the pod's author and the cluster set; the image's own variables come beneath it.
pub(crate) fn environment(c: &Container, from: &Sources<'_>) -> Result<Environment, ConfigError> {
    let mut env = Environment::default();
    let namespace = from.pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = from.pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    for service in from.services {
        let is_master = service.namespace == "default" && service.name == "kubernetes";
        if is_master || (links && service.namespace == namespace) {
            for (name, value) in service.variables() {
                env.set(&name, value);
            }
        }
    }
    for source in c.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(r), _) => (ObjectKind::ConfigMap, &r.name, r.optional),
            (None, Some(r)) => (ObjectKind::Secret, &r.name, r.optional),
            (None, None) => continue,
        };
        match (from.object)(kind, name) {
            Some(data) => add_all(&mut env, prefix, &data),
            None if optional == Some(true) => {}
            None => return Err(ConfigError::NoObject { kind, name: name.clone() }),
        }
    }
    for var in c.env.iter().flatten() {
        if let Some(value) = value_of(var, c, from, &env, namespace)? {
            env.set(&var.name, value);
        }
    }
    Ok(env)
}

/// Keys that cannot be variable names, and values that are not text, are left out as upstream does.
fn add_all(env: &mut Environment, prefix: &str, data: &Data) {
    for (key, value) in data {
        let usable = !key.is_empty() && key.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=');
        if let (true, Ok(text)) = (usable, std::str::from_utf8(value)) {
            env.set(&format!("{prefix}{key}"), text.to_owned());
        }
    }
}

fn value_of(
    var: &EnvVar,
    c: &Container,
    from: &Sources<'_>,
    so_far: &Environment,
    namespace: &str,
) -> Result<Option<String>, ConfigError> {
    let Some(source) = &var.value_from else {
        let text = var.value.as_deref().unwrap_or_default();
        return Ok(Some(expand(text, |name| so_far.get(name))));
    };
    let EnvVarSource { config_map_key_ref, field_ref, resource_field_ref, secret_key_ref, .. } = source;
    if let Some(f) = field_ref {
        return Ok(Some(downward::field(from.pod, from.facts, &f.field_path)?));
    }
    if let Some(r) = resource_field_ref {
        let other = r.container_name.as_deref().filter(|n| *n != c.name);
        let spec = from.pod.spec.as_ref();
        let other = other.and_then(|n| {
            let all = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
            all.into_iter().find(|c| c.name == n)
        });
        let value = resources::field(other.unwrap_or(c), &r.resource, r.divisor.as_ref(), from.node);
        return value.map(Some).ok_or_else(|| ConfigError::Resource(r.resource.clone()));
    }
    let (kind, name, key, optional) = match (config_map_key_ref, secret_key_ref) {
        (Some(r), _) => (ObjectKind::ConfigMap, &r.name, &r.key, r.optional == Some(true)),
        (None, Some(r)) => (ObjectKind::Secret, &r.name, &r.key, r.optional == Some(true)),
        (None, None) => return Err(ConfigError::Source(var.name.clone())),
    };
    let place = || (namespace.to_owned(), name.clone(), key.clone());
    let Some(data) = (from.object)(kind, name) else {
        if optional {
            return Ok(None);
        }
        return Err(ConfigError::NoObject { kind, name: name.clone() });
    };
    match data.get(key) {
        Some(bytes) => match String::from_utf8(bytes.clone()) {
            Ok(text) => Ok(Some(text)),
            Err(_) => {
                let (namespace, name, key) = place();
                Err(ConfigError::NotText { kind, namespace, name, key })
            }
        },
        None if optional => Ok(None),
        None => {
            let (namespace, name, key) = place();
            Err(ConfigError::NoKey { kind, namespace, name, key })
        }
    }
}

/// Replaces `$(NAME)`.
pub(crate) fn expand<'a>(text: &str, value: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match value(name) {
                Some(v) => out.push_str(v),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(kind: ObjectKind, name: &str) -> Option<Arc<Data>> {
        let pairs: &[(&str, &[u8])] = match (kind, name) {
            (ObjectKind::ConfigMap, "conf") => &[("COLOR", b"red"), ("bad=key", b"x"), ("BIN", b"\xff")],
            (ObjectKind::Secret, "keys") => &[("PASS", b"s3")],
            _ => return None,
        };
        Some(Arc::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.to_vec())).collect()))
    }

    fn run(container: Value) -> Result<Vec<String>, ConfigError> {
        let pod = crate::desired::fixture::pod(json!({"containers": []}));
        let facts = PodFacts {
            host_ips: vec![[10, 0, 0, 1].into()],
            pod_ips: vec![[10, 1, 0, 5].into()],
            node_name: "replica-1".into(),
        };
        let services = [ServiceFacts {
            namespace: "default".into(),
            name: "kubernetes".into(),
            cluster_ip: "10.96.0.1".into(),
            ports: vec![],
        }];
        let from = Sources {
            pod: &pod,
            facts: &facts,
            node: NodeSize { cpu_milli: 2000, memory: 1 << 30 },
            services: &services,
            object: &object,
        };
        let mut container = container;
        container["name"] = json!("a");
        let c = serde_json::from_value(container).expect("fixture");
        environment(&c, &from).map(|e| e.lines())
    }

    #[test]
    fn sources_in_order() {
        let got = run(json!({
            "envFrom": [{"configMapRef": {"name": "conf"}, "prefix": "C_"},
                        {"secretRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)-$(C_COLOR)-$(NONE)-$$(A)"},
                {"name": "P", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "PASS"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "none", "optional": true}}},
                {"name": "A", "value": "2"},
            ],
        }))
        .expect("resolves");
        assert_eq!(
            got,
            [
                "KUBERNETES_SERVICE_HOST=10.96.0.1",
                "C_COLOR=red",
                "A=2",
                "B=1-red-$(NONE)-$(A)",
                "P=s3",
                "IP=10.1.0.5"
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let cases = [
            (
                json!({"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "nope", "key": "k"}}}]}),
                "configmap \"nope\" not found",
            ),
            (
                json!({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "k"}}}]}),
                "couldn't find key k in Secret default/keys",
            ),
            (json!({"envFrom": [{"secretRef": {"name": "nope"}}]}), "secret \"nope\" not found"),
        ];
        for (container, expect) in cases {
            assert_eq!(run(container).expect_err("fails").to_string(), expect);
        }
    }

    #[test]
    fn expansion() {
        let cases = [
            ("", ""),
            ("$(A)", "1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B", "$(B"),
            ("a$b", "a$b"),
            ("$", "$"),
        ];
        for (text, expect) in cases {
            assert_eq!(expand(text, |n| (n == "A").then_some("1")), expect, "{text}");
        }
    }
}
