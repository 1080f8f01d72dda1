//! `discovery.k8s.io/v1`: the addresses behind Services.

use k8s_openapi::api::discovery::v1;

use super::stored;
use crate::{endpoints, kind::Kind};

pub(super) const KINDS: &[Kind] =
    &[stored::<v1::EndpointSlice>("io.k8s.api.discovery.v1", "endpointslice", true, endpoints::SLICE)];
