//! `apps/v1`.

use k8s_openapi::api::apps::v1;

use super::{STATUS_VERBS, stored};
use crate::{
    kind::{Kind, SubresourceKind},
    workload,
};

const PACKAGE: &str = "io.k8s.api.apps.v1";

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
    stored::<v1::ControllerRevision>(PACKAGE, "controllerrevision", true, workload::REVISION),
    Kind {
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[status("DaemonSet")],
        ..stored::<v1::DaemonSet>(PACKAGE, "daemonset", true, workload::DAEMON_SET)
    },
    Kind {
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[SCALE, status("Deployment")],
        ..stored::<v1::Deployment>(PACKAGE, "deployment", true, workload::DEPLOYMENT)
    },
    Kind {
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[SCALE, status("ReplicaSet")],
        ..stored::<v1::ReplicaSet>(PACKAGE, "replicaset", true, workload::REPLICA_SET)
    },
];
