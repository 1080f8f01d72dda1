//! `authentication.k8s.io/v1`: who is asking.

use k8s_openapi::api::authentication::v1;

use super::{body, question};
use crate::{kind::Kind, openapi::describe};

const PACKAGE: &str = "io.k8s.api.authentication.v1";

pub(super) const KINDS: &[Kind] = &[
    question::<v1::SelfSubjectReview>(PACKAGE, "selfsubjectreview", false),
    question::<v1::TokenReview>(PACKAGE, "tokenreview", false),
    body("authentication.k8s.io", "TokenRequest", "tokenrequest", PACKAGE, describe::<v1::TokenRequest>),
];
