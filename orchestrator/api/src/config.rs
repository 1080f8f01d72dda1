//! ConfigMaps, Secrets and ServiceAccounts: what pods are given.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    field::{FieldError, Path},
    kind::{Hooks, Subresource},
    meta::immutable,
    names,
    object::{child, entries, list, remove, set_default, text},
    print::{self, AGE, Column, NAME, Now},
};

/// Upstream's limit for all data of one object: 1 MiB.
const MAX_DATA: usize = 1024 * 1024;

pub(crate) const CONFIG_MAP: Hooks = Hooks {
    validate_create: |object, errors| config_map(object, errors),
    validate_update: update_config_map,
    columns: &[NAME, Column::number("Data"), AGE],
    row: config_map_row,
    ..Hooks::PLAIN
};

pub(crate) const SECRET: Hooks = Hooks {
    default: default_secret,
    validate_create: |object, errors| secret(object, errors),
    validate_update: update_secret,
    columns: &[NAME, Column::text("Type"), Column::number("Data"), AGE],
    row: secret_row,
    selectable: &["type"],
    ..Hooks::PLAIN
};

pub(crate) const SERVICE_ACCOUNT: Hooks = Hooks {
    columns: &[NAME, Column::number("Secrets"), AGE],
    row: |object, now| {
        vec![print::name(object), list(&object["secrets"]).len().into(), print::age(object, now)]
    },
    ..Hooks::PLAIN
};

fn count(value: &Value) -> usize {
    value.as_object().map_or(0, serde_json::Map::len)
}

fn config_map_row(object: &Value, now: Now) -> Vec<Value> {
    let data = count(&object["data"]) + count(&object["binaryData"]);
    vec![print::name(object), data.into(), print::age(object, now)]
}

fn secret_row(object: &Value, now: Now) -> Vec<Value> {
    vec![print::name(object), object["type"].clone(), count(&object["data"]).into(), print::age(object, now)]
}

fn config_map(object: &Value, errors: &mut Vec<FieldError>) {
    let mut total = 0;
    for field in ["data", "binaryData"] {
        let path = Path::new(field);
        for (key, value) in entries(&object[field]) {
            for problem in names::config_key(key) {
                errors.push(FieldError::invalid(path.key(key), &json!(key), &problem));
            }
            total += if field == "data" { text(value).len() } else { decoded_len(text(value)) };
            if field == "data" && object["binaryData"].get(key).is_some() {
                errors.push(FieldError::invalid(
                    path.key(key),
                    &json!(key),
                    "duplicate of key present in binaryData",
                ));
            }
        }
    }
    if total > MAX_DATA {
        errors.push(FieldError::too_long("", MAX_DATA));
    }
}

fn decoded_len(base64: &str) -> usize {
    base64.trim_end_matches('=').len() * 3 / 4
}

fn update_config_map(new: &Value, old: &Value, _: Subresource, errors: &mut Vec<FieldError>) {
    frozen(new, old, &["data", "binaryData"], errors);
    config_map(new, errors);
}

/// What was marked immutable stays so, with its data.
fn frozen(new: &Value, old: &Value, fields: &[&str], errors: &mut Vec<FieldError>) {
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        if new[*field] != old[*field] {
            errors.push(FieldError::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
}

/// `stringData` is for writing only: it becomes part of `data`.
fn default_secret(object: &mut Value) {
    if let Some(Value::Object(plain)) = remove(object, "stringData") {
        let data = child(object, "data");
        for (key, value) in plain {
            data[key] = BASE64_STANDARD.encode(text(&value)).into();
        }
    }
    set_default(object, "type", "Opaque");
}

fn secret(object: &Value, errors: &mut Vec<FieldError>) {
    let (data, path) = (&object["data"], Path::new("data"));
    let mut total = 0;
    for (key, value) in entries(data) {
        for problem in names::config_key(key) {
            errors.push(FieldError::invalid(path.key(key), &json!(key), &problem));
        }
        total += decoded_len(text(value));
    }
    if total > MAX_DATA {
        errors.push(FieldError::too_long(path, MAX_DATA));
    }
    let mut required = |keys: &[&str]| {
        for key in keys.iter().filter(|k| data.get(**k).is_none()) {
            errors.push(FieldError::required(path.key(key), ""));
        }
    };
    match text(&object["type"]) {
        "kubernetes.io/tls" => required(&["tls.crt", "tls.key"]),
        "kubernetes.io/ssh-auth" => required(&["ssh-privatekey"]),
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            required(&["username", "password"]);
        }
        "kubernetes.io/dockercfg" => {
            required(&[".dockercfg"]);
            json_value(data, ".dockercfg", errors);
        }
        "kubernetes.io/dockerconfigjson" => {
            required(&[".dockerconfigjson"]);
            json_value(data, ".dockerconfigjson", errors);
        }
        "kubernetes.io/service-account-token"
            if text(&object["metadata"]["annotations"]["kubernetes.io/service-account.name"]).is_empty() =>
        {
            let metadata = Path::new("metadata");
            let annotations = metadata.child("annotations");
            errors.push(FieldError::required(annotations.key("kubernetes.io/service-account.name"), ""));
        }
        _ => {}
    }
}

fn json_value(data: &Value, key: &str, errors: &mut Vec<FieldError>) {
    let Some(value) = data.get(key) else { return };
    let bytes = crate::base64_bytes(text(value)).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<Value>(&bytes) {
        errors.push(FieldError::invalid(
            Path::new("data").key(key),
            &json!("<secret contents redacted>"),
            &error.to_string(),
        ));
    }
}

fn update_secret(new: &Value, old: &Value, _: Subresource, errors: &mut Vec<FieldError>) {
    immutable(&new["type"], &old["type"], &Path::new("type"), errors);
    frozen(new, old, &["data"], errors);
    secret(new, errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;

    #[test]
    fn string_data_becomes_data() {
        let kind = find("", "v1", "secrets").expect("secrets");
        let mut object = json!({"metadata": {"name": "s", "namespace": "n"}, "data": {"a": "eA=="}, "stringData": {"a": "y", "b": "z"}});
        kind.default(&mut object);
        assert_eq!(object["data"], json!({"a": "eQ==", "b": "eg=="}));
        assert_eq!((object.get("stringData"), &object["type"]), (None, &json!("Opaque")));
        assert_eq!(kind.validate_create(&object), []);
    }

    #[test]
    fn contents_are_checked_by_type_and_frozen_when_asked() {
        let complaints = |object: Value| -> Vec<String> {
            let mut errors = Vec::new();
            secret(&object, &mut errors);
            errors.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            complaints(json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})),
            ["data[tls.key]: Required value"]
        );
        assert_eq!(complaints(json!({"data": {"a/b": ""}})).len(), 1);
        let mut errors = Vec::new();
        let old = json!({"immutable": true, "data": {"a": "1"}});
        update_config_map(
            &json!({"immutable": true, "data": {"a": "2"}}),
            &old,
            Subresource::Main,
            &mut errors,
        );
        assert_eq!(errors[0].to_string(), "data: Forbidden: field is immutable when `immutable` is set");
    }
}
