//! `metadata`: names, labels, annotations, owners, finalizers, and which of it clients may change.

use serde_json::{Map, Value, json};

use crate::{
    field::{FieldError, Path},
    names,
};

/// How a kind's objects may be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain.
    Subdomain,
    /// RFC 1123 label.
    Label,
    /// RFC 1035 label (Services).
    Label1035,
    /// Anything that can be a segment of a path (RBAC).
    PathSegment,
}

/// All annotations together: 256 KiB.
const ANNOTATIONS_MAX: usize = 256 * 1024;
/// `generateName` plus five random characters has to fit 63 bytes for pods' hostnames, as upstream.
const GENERATED_PREFIX_MAX: usize = 58;

impl NameRule {
    fn problems(self, name: &str, prefix_only: bool) -> Vec<String> {
        // A prefix may end in a dash: random characters follow.
        let masked = match name.strip_suffix('-') {
            Some(head) if prefix_only && !head.is_empty() => format!("{head}a"),
            _ => name.to_owned(),
        };
        match self {
            Self::Subdomain => names::subdomain(&masked),
            Self::Label => names::label(&masked),
            Self::Label1035 => names::label_1035(&masked),
            Self::PathSegment => names::path_segment(&masked),
        }
    }
}

/// The object's metadata, which is created where it is missing.
pub fn of_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = json!({});
    }
    metadata.as_object_mut().expect("it was just made an object")
}

/// A text in metadata, empty where absent.
pub fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"][name].as_str().unwrap_or_default()
}

pub fn name(object: &Value) -> &str {
    text(object, "name")
}

/// The name that the server makes from `generateName` and five random characters.
pub fn generated_name(prefix: &str, random: &str) -> String {
    let end = prefix.len().min(GENERATED_PREFIX_MAX);
    let end = (0..=end).rev().find(|i| prefix.is_char_boundary(*i)).unwrap_or(0);
    format!("{}{random}", &prefix[..end])
}

/// What clients may send along with an update but not change: taken from the old object.
pub(crate) fn keep_system_fields(new: &mut Value, old: &Value) {
    let old = &old["metadata"];
    let new = of_mut(new);
    for name in
        ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"]
    {
        match old.get(name) {
            Some(value) => new.insert(name.into(), value.clone()),
            None => new.shift_remove(name),
        };
    }
    // Absent means "as it is".
    for name in ["uid", "namespace", "name", "generateName"] {
        if new.get(name).and_then(Value::as_str).unwrap_or_default().is_empty()
            && let Some(value) = old.get(name)
        {
            new.insert(name.into(), value.clone());
        }
    }
}

pub(crate) fn validate(object: &Value, namespaced: bool, rule: NameRule, errors: &mut Vec<FieldError>) {
    let metadata = &object["metadata"];
    let path = Path::new("metadata");
    let text = |name: &str| metadata[name].as_str().unwrap_or_default();
    if !text("generateName").is_empty() {
        for problem in rule.problems(text("generateName"), true) {
            errors.push(FieldError::invalid(path.child("generateName"), &metadata["generateName"], &problem));
        }
    }
    if text("name").is_empty() {
        errors.push(FieldError::required(path.child("name"), "name or generateName is required"));
    } else {
        for problem in rule.problems(text("name"), false) {
            errors.push(FieldError::invalid(path.child("name"), &metadata["name"], &problem));
        }
    }
    if namespaced {
        if text("namespace").is_empty() {
            errors.push(FieldError::required(path.child("namespace"), ""));
        } else {
            for problem in names::label(text("namespace")) {
                errors.push(FieldError::invalid(path.child("namespace"), &metadata["namespace"], &problem));
            }
        }
    } else if !text("namespace").is_empty() {
        errors.push(FieldError::forbidden(path.child("namespace"), "not allowed on this type"));
    }
    if metadata["generation"].as_i64().unwrap_or(0) < 0 {
        let detail = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(path.child("generation"), &metadata["generation"], detail));
    }
    validate_labels(&metadata["labels"], &path.child("labels"), errors);
    validate_annotations(&metadata["annotations"], &path.child("annotations"), errors);
    validate_owners(&metadata["ownerReferences"], &path.child("ownerReferences"), errors);
    for finalizer in metadata["finalizers"].as_array().into_iter().flatten() {
        for problem in names::qualified(finalizer.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(path.child("finalizers"), finalizer, &problem));
        }
    }
}

/// Labels of an object or of a template.
pub(crate) fn validate_labels(labels: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        for problem in names::qualified(key) {
            errors.push(FieldError::invalid(path, &json!(key), &problem));
        }
        for problem in names::label_value(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(path.key(key), value, &problem));
        }
    }
}

pub(crate) fn validate_annotations(annotations: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut total = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        // The rule is lower case here, because Go's client for annotations always was.
        for problem in names::qualified(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, &json!(key), &problem));
        }
        total += key.len() + value.as_str().unwrap_or_default().len();
    }
    if total > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(path, ANNOTATIONS_MAX));
    }
}

fn validate_owners(owners: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut controller = None;
    for owner in owners.as_array().into_iter().flatten() {
        let version = owner["apiVersion"].as_str().unwrap_or_default();
        if version.is_empty() || version.split('/').count() > 2 {
            errors.push(FieldError::invalid(
                path.child("apiVersion"),
                &owner["apiVersion"],
                "version must not be empty",
            ));
        }
        for name in ["kind", "name", "uid"] {
            if owner[name].as_str().unwrap_or_default().is_empty() {
                let detail = format!("{name} must not be empty");
                errors.push(FieldError::invalid(path.child(name), &json!(""), &detail));
            }
        }
        if version == "v1" && owner["kind"] == "Event" {
            errors.push(FieldError::invalid(
                path,
                owner,
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner["controller"] == true {
            let this = format!(
                "{}/{}",
                owner["kind"].as_str().unwrap_or_default(),
                owner["name"].as_str().unwrap_or_default()
            );
            if let Some(first) = &controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                );
                errors.push(FieldError::invalid(path, owners, &detail));
            } else {
                controller = Some(this);
            }
        }
    }
}

pub(crate) fn validate_update(
    new: &Value,
    old: &Value,
    namespaced: bool,
    rule: NameRule,
    errors: &mut Vec<FieldError>,
) {
    validate(new, namespaced, rule, errors);
    let path = Path::new("metadata");
    for name in ["name", "namespace", "uid", "creationTimestamp"] {
        immutable(&new["metadata"][name], &old["metadata"][name], &path.child(name), errors);
    }
    // While an object is going away nothing new may hold it back.
    if old["metadata"].get("deletionTimestamp").is_some() {
        let before: Vec<&Value> = old["metadata"]["finalizers"].as_array().into_iter().flatten().collect();
        let added: Vec<&Value> = new["metadata"]["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|f| !before.contains(f))
            .collect();
        if !added.is_empty() {
            let list = added.iter().map(|f| f.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", ");
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers [{list}]"
            );
            errors.push(FieldError::forbidden(path.child("finalizers"), &detail));
        }
    }
}

/// Complains where a value changed that may not.
pub(crate) fn immutable(new: &Value, old: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if new != old {
        errors.push(FieldError::invalid(path, new, "field is immutable"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(metadata: Value, namespaced: bool) -> Vec<String> {
        let mut errors = Vec::new();
        validate(&json!({"metadata": metadata}), namespaced, NameRule::Subdomain, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn metadata_is_checked_field_by_field() {
        assert_eq!(
            complaints(json!({"name": "a", "namespace": "b", "labels": {"a/b": ""}}), true),
            Vec::<String>::new()
        );
        assert_eq!(
            complaints(json!({}), false),
            ["metadata.name: Required value: name or generateName is required"]
        );
        let labels = complaints(json!({"name": "a", "labels": {"a": "b c"}}), false);
        assert!(
            labels[0].starts_with("metadata.labels[a]: Invalid value: \"b c\": a valid label must be"),
            "{labels:?}"
        );
        let name = complaints(json!({"name": "A_"}), false);
        assert!(
            name[0].starts_with("metadata.name: Invalid value: \"A_\": a lowercase RFC 1123 subdomain"),
            "{name:?}"
        );
    }

    #[test]
    fn generated_names_fit_a_label() {
        assert_eq!(generated_name("web-", "abcde"), "web-abcde");
        assert_eq!(generated_name(&"x".repeat(80), "abcde").len(), 63);
    }

    #[test]
    fn identity_cannot_change() {
        let old =
            json!({"metadata": {"name": "a", "uid": "1", "deletionTimestamp": "t", "finalizers": ["x"]}});
        let new = json!({"metadata": {"name": "a", "uid": "2", "finalizers": ["x", "y"]}});
        let mut errors = Vec::new();
        validate_update(&new, &old, false, NameRule::Subdomain, &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "metadata.uid: Invalid value: \"2\": field is immutable",
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers [y]"
            ]
        );
    }
}
