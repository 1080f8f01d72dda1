//! `coordination.k8s.io/v1`: leases, by which nodes and leaders show that they live.

use super::NAMESPACED;
use crate::{kind::Kind, lease};

pub(super) const KINDS: &[Kind] = &[Kind {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    storage: ("coordination.k8s.io", "leases"),
    package: "io.k8s.api.coordination.v1",
    hooks: lease::HOOKS,
    ..NAMESPACED
}];
