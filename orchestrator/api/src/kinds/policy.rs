//! `policy/v1`: so far only `Eviction`, the body of `pods/eviction`.

use k8s_openapi::api::policy::v1;

use super::body;
use crate::{kind::Kind, openapi::describe};

pub(super) const KINDS: &[Kind] =
    &[body("policy", "Eviction", "eviction", "io.k8s.api.policy.v1", describe::<v1::Eviction>)];
