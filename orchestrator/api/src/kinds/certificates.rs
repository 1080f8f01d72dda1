//! `certificates.k8s.io/v1`: how replicas get their certificates.

use super::{CLUSTER, STATUS_VERBS};
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
    group: "certificates.k8s.io",
    kind: "CertificateSigningRequest",
    plural: "certificatesigningrequests",
    singular: "certificatesigningrequest",
    short_names: &["csr"],
    subresources: &[sub("approval"), sub("status")],
    storage: ("certificates.k8s.io", "certificatesigningrequests"),
    package: "io.k8s.api.certificates.v1",
    hooks: certificate::REQUEST,
    ..CLUSTER
}];
