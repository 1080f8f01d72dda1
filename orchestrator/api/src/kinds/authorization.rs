//! `authorization.k8s.io/v1`: who may do what.

use k8s_openapi::api::authorization::v1;

use super::question;
use crate::kind::Kind;

const PACKAGE: &str = "io.k8s.api.authorization.v1";

pub(super) const KINDS: &[Kind] = &[
    question::<v1::LocalSubjectAccessReview>(PACKAGE, "localsubjectaccessreview", true),
    question::<v1::SelfSubjectAccessReview>(PACKAGE, "selfsubjectaccessreview", false),
    question::<v1::SelfSubjectRulesReview>(PACKAGE, "selfsubjectrulesreview", false),
    question::<v1::SubjectAccessReview>(PACKAGE, "subjectaccessreview", false),
];
