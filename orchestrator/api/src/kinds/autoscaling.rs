//! `autoscaling/v1`: so far only `Scale`, the body of the scale subresources.

use k8s_openapi::api::autoscaling::v1;

use super::body;
use crate::{kind::Kind, openapi::describe};

pub(super) const KINDS: &[Kind] =
    &[body("autoscaling", "Scale", "scale", "io.k8s.api.autoscaling.v1", describe::<v1::Scale>)];
