//! Complaints about single fields of an object, in the words of upstream's `field.Error`, and the paths
//! they name.

use std::fmt;

use serde_json::Value;

/// Why a field was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    NotFound,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
}

impl Cause {
    /// `reason` of a Status cause.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotFound => "FieldValueNotFound",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

/// One complaint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    pub cause: Cause,
    /// `spec.containers[0].name`; empty for the object as a whole.
    pub field: String,
    /// Everything behind the field: `Invalid value: "x": must be …`.
    pub body: String,
}

impl FieldError {
    pub fn required(field: impl fmt::Display, detail: &str) -> Self {
        Self::new(Cause::Required, field, with_detail("Required value", detail))
    }

    pub fn invalid(field: impl fmt::Display, value: &Value, detail: &str) -> Self {
        Self::new(Cause::Invalid, field, with_detail(&format!("Invalid value: {}", show(value)), detail))
    }

    /// `supported` as upstream lists it: sorted and quoted.
    pub fn not_supported(field: impl fmt::Display, value: &Value, supported: &[&str]) -> Self {
        let mut quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        quoted.sort();
        let detail = if quoted.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(
            Cause::NotSupported,
            field,
            with_detail(&format!("Unsupported value: {}", show(value)), &detail),
        )
    }

    pub fn duplicate(field: impl fmt::Display, value: &Value) -> Self {
        Self::new(Cause::Duplicate, field, format!("Duplicate value: {}", show(value)))
    }

    pub fn not_found(field: impl fmt::Display, value: &Value) -> Self {
        Self::new(Cause::NotFound, field, format!("Not found: {}", show(value)))
    }

    pub fn forbidden(field: impl fmt::Display, detail: &str) -> Self {
        Self::new(Cause::Forbidden, field, with_detail("Forbidden", detail))
    }

    pub fn too_long(field: impl fmt::Display, max_bytes: usize) -> Self {
        Self::new(Cause::TooLong, field, format!("Too long: may not be more than {max_bytes} bytes"))
    }

    pub fn too_many(field: impl fmt::Display, found: usize, max: usize) -> Self {
        let items = if max == 1 { "item" } else { "items" };
        Self::new(Cause::TooMany, field, format!("Too many: {found}: must have at most {max} {items}"))
    }

    pub fn type_invalid(field: impl fmt::Display, value: &Value, detail: &str) -> Self {
        Self::new(Cause::TypeInvalid, field, with_detail(&format!("Invalid value: {}", show(value)), detail))
    }

    fn new(cause: Cause, field: impl fmt::Display, body: String) -> Self {
        Self { cause, field: field.to_string(), body }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = if self.field.is_empty() { "<nil>" } else { &self.field };
        write!(f, "{field}: {}", self.body)
    }
}

fn with_detail(head: &str, detail: &str) -> String {
    if detail.is_empty() { head.to_owned() } else { format!("{head}: {detail}") }
}

/// Upstream prints strings quoted, numbers and booleans bare, and everything else as JSON.
fn show(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

/// A path to a field, built on the stack while walking down and written out only for a complaint.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    pub const fn new(name: &'a str) -> Self {
        Self { parent: None, step: Step::Field(name) }
    }

    pub const fn child<'b>(&'b self, name: &'b str) -> Path<'b> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    pub const fn index(&self, index: usize) -> Path<'_> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    pub const fn key<'b>(&'b self, key: &'b str) -> Path<'b> {
        Path { parent: Some(self), step: Step::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}")?;
        }
        match self.step {
            Step::Field(name) if self.parent.is_some() => write!(f, ".{name}"),
            Step::Field(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn complaints_read_as_upstream_words_them() {
        let spec = Path::new("spec");
        let containers = spec.child("containers");
        let first = containers.index(0);
        for (error, text) in [
            (FieldError::required(first.child("image"), ""), "spec.containers[0].image: Required value"),
            (
                FieldError::invalid(spec.child("replicas"), &json!(-1), "must be greater than or equal to 0"),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                FieldError::not_supported(spec.child("type"), &json!("x"), &["B", "A"]),
                "spec.type: Unsupported value: \"x\": supported values: \"A\", \"B\"",
            ),
            (FieldError::forbidden(spec.key("a"), "no"), "spec[a]: Forbidden: no"),
            (FieldError::too_long(first, 63), "spec.containers[0]: Too long: may not be more than 63 bytes"),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }
}
