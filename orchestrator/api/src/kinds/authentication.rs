//! `authentication.k8s.io/v1`: who is asking.

use super::{BODY, QUESTION};
use crate::kind::Kind;

const fn question(base: Kind, kind: &'static str, plural: &'static str, singular: &'static str) -> Kind {
    Kind {
        group: "authentication.k8s.io",
        kind,
        plural,
        singular,
        package: "io.k8s.api.authentication.v1",
        ..base
    }
}

pub(super) const KINDS: &[Kind] = &[
    question(QUESTION, "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview"),
    question(QUESTION, "TokenReview", "tokenreviews", "tokenreview"),
    question(BODY, "TokenRequest", "tokenrequest", "tokenrequest"),
];
