//! `authorization.k8s.io/v1`: who may do what.

use super::QUESTION;
use crate::kind::Kind;

const fn question(
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    namespaced: bool,
) -> Kind {
    Kind {
        group: "authorization.k8s.io",
        kind,
        plural,
        singular,
        namespaced,
        package: "io.k8s.api.authorization.v1",
        ..QUESTION
    }
}

pub(super) const KINDS: &[Kind] = &[
    question("LocalSubjectAccessReview", "localsubjectaccessreviews", "localsubjectaccessreview", true),
    question("SelfSubjectAccessReview", "selfsubjectaccessreviews", "selfsubjectaccessreview", false),
    question("SelfSubjectRulesReview", "selfsubjectrulesreviews", "selfsubjectrulesreview", false),
    question("SubjectAccessReview", "subjectaccessreviews", "subjectaccessreview", false),
];
