//! `policy/v1`: so far only `Eviction`, the body of `pods/eviction`.

use super::BODY;
use crate::kind::Kind;

pub(super) const KINDS: &[Kind] = &[Kind {
    group: "policy",
    kind: "Eviction",
    plural: "eviction",
    singular: "eviction",
    namespaced: true,
    package: "io.k8s.api.policy.v1",
    ..BODY
}];
