//! What went wrong, as the `Status` objects that clients read: reason, code, details, causes.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::field::FieldError;

/// The machine-readable word for a failure, with its HTTP code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    Invalid,
    TooManyRequests,
    InternalError,
    ServiceUnavailable,
    Timeout,
    ServerTimeout,
}

impl Reason {
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError | Self::ServerTimeout => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Which object a failure is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// API group, empty for core.
    pub group: String,
    /// Plural resource name, or the kind for `Invalid`: upstream's clients expect exactly that.
    pub kind: String,
    pub name: String,
    pub uid: String,
}

impl Subject {
    pub fn new(group: &str, kind: &str, name: &str) -> Self {
        Self { group: group.into(), kind: kind.into(), name: name.into(), uid: String::new() }
    }

    /// `deployments.apps`, or `pods` in the core group.
    fn qualified(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }
}

/// One line of `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusCause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub reason: Reason,
    pub message: String,
    /// Boxed to keep the error small: it is in every `Result` of the server.
    pub subject: Option<Box<Subject>>,
    pub causes: Vec<StatusCause>,
    /// When it makes sense to try again.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), subject: None, causes: Vec::new(), retry_after_s: None }
    }

    pub fn with_subject(mut self, subject: Subject) -> Self {
        self.subject = Some(Box::new(subject));
        self
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    /// `pods "a" is forbidden: why`; the message reads as upstream's also without a name.
    pub fn forbidden(subject: Subject, why: impl fmt::Display) -> Self {
        let what = subject.qualified();
        let message = match (what.is_empty(), subject.name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{what} is forbidden: {why}"),
            (false, false) => format!("{what} {:?} is forbidden: {why}", subject.name),
        };
        Self::new(Reason::Forbidden, message).with_subject(subject)
    }

    pub fn not_found(subject: Subject) -> Self {
        Self::new(Reason::NotFound, format!("{} {:?} not found", subject.qualified(), subject.name))
            .with_subject(subject)
    }

    /// A path that leads nowhere.
    pub fn no_such_path() -> Self {
        Self::new(Reason::NotFound, "the server could not find the requested resource")
            .with_subject(Subject::default())
    }

    pub fn method_not_allowed(subject: Subject, verb: &str) -> Self {
        Self::new(
            Reason::MethodNotAllowed,
            format!("{verb} is not supported on resources of kind {:?}", subject.qualified()),
        )
        .with_subject(subject)
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        Self::new(
            Reason::NotAcceptable,
            format!("only the following media types are accepted: {}", accepted.join(", ")),
        )
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    pub fn already_exists(subject: Subject) -> Self {
        Self::new(Reason::AlreadyExists, format!("{} {:?} already exists", subject.qualified(), subject.name))
            .with_subject(subject)
    }

    /// A generated name that was taken: the client may try again.
    pub fn generate_name_conflict(subject: Subject) -> Self {
        let message = format!(
            "{} {:?} already exists, the server was not able to generate a unique name for the object",
            subject.qualified(),
            subject.name
        );
        let mut error = Self::new(Reason::AlreadyExists, message).with_subject(subject);
        error.retry_after_s = Some(1);
        error
    }

    pub fn conflict(subject: Subject, why: impl fmt::Display) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {:?}: {why}", subject.qualified(), subject.name);
        Self::new(Reason::Conflict, message).with_subject(subject)
    }

    /// The resourceVersion of an update is not the newest.
    pub fn modified(subject: Subject) -> Self {
        Self::conflict(
            subject,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Validation failed; `subject.kind` is the kind, not the plural.
    pub fn invalid(subject: Subject, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let list = match texts.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = if subject.name.is_empty() && list.is_empty() {
            format!("{} is invalid", subject.qualified())
        } else {
            format!("{} {:?} is invalid: {list}", subject.qualified(), subject.name)
        };
        let mut error = Self::new(Reason::Invalid, message).with_subject(subject);
        error.causes = errors
            .iter()
            .map(|e| StatusCause {
                reason: e.cause.reason().into(),
                message: e.body.clone(),
                field: if e.field.is_empty() { "<nil>".into() } else { e.field.clone() },
            })
            .collect();
        error
    }

    /// A watch or continue token that is older than the history kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    /// A resourceVersion that lies in the future: try again when the server has caught up.
    pub fn too_large_resource_version(wanted: u64, current: u64) -> Self {
        let mut error =
            Self::new(Reason::Timeout, format!("Too large resource version: {wanted}, current: {current}"));
        error.causes = vec![StatusCause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        }];
        error.retry_after_s = Some(1);
        error
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_s: u32) -> Self {
        let mut error = Self::new(Reason::TooManyRequests, message);
        error.retry_after_s = Some(retry_after_s);
        error
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(Reason::RequestEntityTooLarge, message)
    }

    pub fn internal(why: impl fmt::Display) -> Self {
        let mut error = Self::new(Reason::InternalError, format!("Internal error occurred: {why}"));
        error.causes =
            vec![StatusCause { reason: String::new(), message: why.to_string(), field: String::new() }];
        error
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, message)
    }

    pub fn code(&self) -> u16 {
        self.reason.code()
    }

    /// The `Status` object of the response.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason.to_string(),
        });
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        status["code"] = self.code().into();
        status
    }

    fn details(&self) -> Option<Value> {
        let mut details = Map::new();
        let mut put = |name: &str, text: &str| {
            if !text.is_empty() {
                details.insert(name.into(), text.into());
            }
        };
        if let Some(subject) = &self.subject {
            put("name", &subject.name);
            put("group", &subject.group);
            put("kind", &subject.kind);
            put("uid", &subject.uid);
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|c| {
                let mut cause = Map::new();
                for (name, text) in [("reason", &c.reason), ("message", &c.message), ("field", &c.field)] {
                    if !text.is_empty() {
                        cause.insert(name.into(), text.as_str().into());
                    }
                }
                Value::Object(cause)
            });
            details.insert("causes".into(), causes.collect());
        }
        if let Some(seconds) = self.retry_after_s {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        (self.subject.is_some() || !details.is_empty()).then_some(Value::Object(details))
    }
}

/// The `Status` that answers a delete.
pub fn success(subject: &Subject) -> Value {
    let mut details = Map::new();
    for (name, text) in
        [("name", &subject.name), ("group", &subject.group), ("kind", &subject.kind), ("uid", &subject.uid)]
    {
        if !text.is_empty() {
            details.insert(name.into(), text.as_str().into());
        }
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Path;

    #[test]
    fn failures_read_as_kubectl_prints_them() {
        for (error, code, text) in [
            (ApiError::not_found(Subject::new("", "pods", "a")), 404, "pods \"a\" not found"),
            (
                ApiError::already_exists(Subject::new("apps", "deployments", "a")),
                409,
                "deployments.apps \"a\" already exists",
            ),
            (
                ApiError::modified(Subject::new("", "pods", "a")),
                409,
                "Operation cannot be fulfilled on pods \"a\": the object has been modified; please apply your \
                 changes to the latest version and try again",
            ),
        ] {
            assert_eq!((error.code(), error.to_string().as_str()), (code, text));
        }
    }

    #[test]
    fn invalid_lists_every_field_as_a_cause() {
        let spec = Path::new("spec");
        let errors = [
            FieldError::required(spec.child("selector"), ""),
            FieldError::invalid(spec.child("replicas"), &json!(-1), "must be greater than or equal to 0"),
        ];
        let status = ApiError::invalid(Subject::new("apps", "Deployment", "web"), &errors).to_status();
        assert_eq!(
            status["message"],
            "Deployment.apps \"web\" is invalid: [spec.selector: Required value, spec.replicas: Invalid value: -1: \
             must be greater than or equal to 0]"
        );
        assert_eq!(status["code"], 422);
        assert_eq!(
            status["details"]["causes"][0],
            json!({"reason": "FieldValueRequired", "message": "Required value", "field": "spec.selector"})
        );
    }
}
