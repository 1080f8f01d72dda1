//! `autoscaling/v1`: so far only `Scale`, the body of the scale subresources.

use super::BODY;
use crate::kind::Kind;

pub(super) const KINDS: &[Kind] = &[Kind {
    group: "autoscaling",
    kind: "Scale",
    plural: "scale",
    singular: "scale",
    namespaced: true,
    package: "io.k8s.api.autoscaling.v1",
    ..BODY
}];
