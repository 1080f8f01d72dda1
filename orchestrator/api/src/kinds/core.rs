//! The core group, `v1`.

use super::{BODY, CLUSTER, NAMESPACED, STATUS_VERBS};
use crate::{
    cluster, config, endpoints, event,
    kind::{Hooks, Kind, SubresourceKind},
    pod, service,
};

const PACKAGE: &str = "io.k8s.api.core.v1";

const fn sub(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> SubresourceKind {
    SubresourceKind { name, group: "", version: "v1", kind, verbs }
}

const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

const fn core(
    base: Kind,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    hooks: Hooks,
) -> Kind {
    Kind { kind, plural, singular, storage: ("", plural), package: PACKAGE, hooks, ..base }
}

const fn body(kind: &'static str, singular: &'static str) -> Kind {
    Kind { kind, plural: singular, singular, package: PACKAGE, ..BODY }
}

pub(super) const KINDS: &[Kind] = &[
    Kind {
        verbs: &["create"],
        storage: ("", ""),
        ..core(NAMESPACED, "Binding", "bindings", "binding", Hooks::PLAIN)
    },
    Kind {
        short_names: &["cm"],
        ..core(NAMESPACED, "ConfigMap", "configmaps", "configmap", config::CONFIG_MAP)
    },
    Kind {
        short_names: &["ep"],
        ..core(NAMESPACED, "Endpoints", "endpoints", "endpoints", endpoints::ENDPOINTS)
    },
    Kind { short_names: &["ev"], ..core(NAMESPACED, "Event", "events", "event", event::CORE) },
    Kind {
        short_names: &["ns"],
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        subresources: &[sub("finalize", "Namespace", &["update"]), sub("status", "Namespace", STATUS_VERBS)],
        ..core(CLUSTER, "Namespace", "namespaces", "namespace", cluster::NAMESPACE)
    },
    Kind {
        short_names: &["no"],
        subresources: &[sub("proxy", "NodeProxyOptions", PROXY), sub("status", "Node", STATUS_VERBS)],
        ..core(CLUSTER, "Node", "nodes", "node", cluster::NODE)
    },
    Kind {
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            sub("attach", "PodAttachOptions", CONNECT),
            sub("binding", "Binding", &["create"]),
            sub("ephemeralcontainers", "Pod", STATUS_VERBS),
            SubresourceKind {
                name: "eviction",
                group: "policy",
                version: "v1",
                kind: "Eviction",
                verbs: &["create"],
            },
            sub("exec", "PodExecOptions", CONNECT),
            sub("log", "Pod", &["get"]),
            sub("portforward", "PodPortForwardOptions", CONNECT),
            sub("proxy", "PodProxyOptions", PROXY),
            sub("resize", "Pod", STATUS_VERBS),
            sub("status", "Pod", STATUS_VERBS),
        ],
        ..core(NAMESPACED, "Pod", "pods", "pod", pod::HOOKS)
    },
    core(NAMESPACED, "Secret", "secrets", "secret", config::SECRET),
    Kind {
        short_names: &["sa"],
        subresources: &[SubresourceKind {
            name: "token",
            group: "authentication.k8s.io",
            version: "v1",
            kind: "TokenRequest",
            verbs: &["create"],
        }],
        ..core(NAMESPACED, "ServiceAccount", "serviceaccounts", "serviceaccount", config::SERVICE_ACCOUNT)
    },
    Kind {
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[sub("proxy", "ServiceProxyOptions", PROXY), sub("status", "Service", STATUS_VERBS)],
        ..core(NAMESPACED, "Service", "services", "service", service::HOOKS)
    },
    body("NodeProxyOptions", "nodeproxyoptions"),
    body("PodAttachOptions", "podattachoptions"),
    body("PodExecOptions", "podexecoptions"),
    body("PodPortForwardOptions", "podportforwardoptions"),
    body("PodProxyOptions", "podproxyoptions"),
    body("ServiceProxyOptions", "serviceproxyoptions"),
];
