//! `apps/v1`.

use super::{NAMESPACED, STATUS_VERBS};
use crate::{
    kind::{Hooks, Kind, SubresourceKind},
    workload,
};

const fn apps(kind: &'static str, plural: &'static str, singular: &'static str, hooks: Hooks) -> Kind {
    Kind {
        group: "apps",
        kind,
        plural,
        singular,
        storage: ("apps", plural),
        package: "io.k8s.api.apps.v1",
        hooks,
        ..NAMESPACED
    }
}

const SCALE: SubresourceKind = SubresourceKind {
    name: "scale",
    group: "autoscaling",
    version: "v1",
    kind: "Scale",
    verbs: STATUS_VERBS,
};

const fn status(kind: &'static str) -> SubresourceKind {
    SubresourceKind { name: "status", group: "apps", version: "v1", kind, verbs: STATUS_VERBS }
}

pub(super) const KINDS: &[Kind] = &[
    apps("ControllerRevision", "controllerrevisions", "controllerrevision", workload::REVISION),
    Kind {
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[status("DaemonSet")],
        ..apps("DaemonSet", "daemonsets", "daemonset", workload::DAEMON_SET)
    },
    Kind {
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[SCALE, status("Deployment")],
        ..apps("Deployment", "deployments", "deployment", workload::DEPLOYMENT)
    },
    Kind {
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[SCALE, status("ReplicaSet")],
        ..apps("ReplicaSet", "replicasets", "replicaset", workload::REPLICA_SET)
    },
];
