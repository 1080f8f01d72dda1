//! `coordination.k8s.io/v1`: leases, by which nodes and leaders show that they live.

use k8s_openapi::api::coordination::v1;

use super::stored;
use crate::{kind::Kind, lease};

pub(super) const KINDS: &[Kind] =
    &[stored::<v1::Lease>("io.k8s.api.coordination.v1", "lease", true, lease::HOOKS)];
