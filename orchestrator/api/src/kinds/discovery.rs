//! `discovery.k8s.io/v1`: the addresses behind Services.

use super::NAMESPACED;
use crate::{endpoints, kind::Kind};

pub(super) const KINDS: &[Kind] = &[Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    storage: ("discovery.k8s.io", "endpointslices"),
    package: "io.k8s.api.discovery.v1",
    hooks: endpoints::SLICE,
    ..NAMESPACED
}];
