//! The core group, `v1`.

use k8s_openapi::api::core::v1;

use super::{STATUS_VERBS, body, question, stored};
use crate::{
    cluster, config, endpoints, event,
    kind::{Kind, SubresourceKind},
    openapi::undescribed,
    pod, service,
};

const PACKAGE: &str = "io.k8s.api.core.v1";
const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

const fn sub(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> SubresourceKind {
    SubresourceKind { name, group: "", version: "v1", kind, verbs }
}

pub(super) const KINDS: &[Kind] = &[
    question::<v1::Binding>(PACKAGE, "binding", true),
    Kind { short_names: &["cm"], ..stored::<v1::ConfigMap>(PACKAGE, "configmap", true, config::CONFIG_MAP) },
    Kind {
        short_names: &["ep"],
        ..stored::<v1::Endpoints>(PACKAGE, "endpoints", true, endpoints::ENDPOINTS)
    },
    Kind { short_names: &["ev"], ..stored::<v1::Event>(PACKAGE, "event", true, event::CORE) },
    Kind {
        short_names: &["ns"],
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        subresources: &[sub("finalize", "Namespace", &["update"]), sub("status", "Namespace", STATUS_VERBS)],
        ..stored::<v1::Namespace>(PACKAGE, "namespace", false, cluster::NAMESPACE)
    },
    Kind {
        short_names: &["no"],
        subresources: &[sub("proxy", "NodeProxyOptions", PROXY), sub("status", "Node", STATUS_VERBS)],
        ..stored::<v1::Node>(PACKAGE, "node", false, cluster::NODE)
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
        ..stored::<v1::Pod>(PACKAGE, "pod", true, pod::HOOKS)
    },
    stored::<v1::Secret>(PACKAGE, "secret", true, config::SECRET),
    Kind {
        short_names: &["sa"],
        subresources: &[SubresourceKind {
            name: "token",
            group: "authentication.k8s.io",
            version: "v1",
            kind: "TokenRequest",
            verbs: &["create"],
        }],
        ..stored::<v1::ServiceAccount>(PACKAGE, "serviceaccount", true, config::SERVICE_ACCOUNT)
    },
    Kind {
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[sub("proxy", "ServiceProxyOptions", PROXY), sub("status", "Service", STATUS_VERBS)],
        ..stored::<v1::Service>(PACKAGE, "service", true, service::HOOKS)
    },
    body("", "NodeProxyOptions", "nodeproxyoptions", PACKAGE, undescribed),
    body("", "PodAttachOptions", "podattachoptions", PACKAGE, undescribed),
    body("", "PodExecOptions", "podexecoptions", PACKAGE, undescribed),
    body("", "PodPortForwardOptions", "podportforwardoptions", PACKAGE, undescribed),
    body("", "PodProxyOptions", "podproxyoptions", PACKAGE, undescribed),
    body("", "ServiceProxyOptions", "serviceproxyoptions", PACKAGE, undescribed),
];
