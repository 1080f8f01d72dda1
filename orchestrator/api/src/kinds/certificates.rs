//! `certificates.k8s.io/v1`: how replicas get their certificates.

use k8s_openapi::api::certificates::v1;

use super::{STATUS_VERBS, stored};
use crate::{
    certificate,
    kind::{Kind, SubresourceKind},
};

const fn sub(name: &'static str) -> SubresourceKind {
    SubresourceKind {
        name,
        group: "certificates.k8s.io",
        version: "v1",
        kind: "CertificateSigningRequest",
        verbs: STATUS_VERBS,
    }
}

pub(super) const KINDS: &[Kind] = &[Kind {
    short_names: &["csr"],
    subresources: &[sub("approval"), sub("status")],
    ..stored::<v1::CertificateSigningRequest>(
        "io.k8s.api.certificates.v1",
        "certificatesigningrequest",
        false,
        certificate::REQUEST,
    )
}];
