//! Pod templates: telling whether two are the same, and their hash for names and labels. Pure.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

/// Carries the template's hash on a Deployment's ReplicaSets and pods.
pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// Letters and digits of generated names: no vowels and nothing that looks alike (apimachinery's rand).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether both describe the same pod, not regarding the hash label. An absent field equals an empty one.
pub(crate) fn same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    a == b || canonical(a) == canonical(b)
}

/// A short name for the template. `collisions` counts how often the name was taken by another template.
pub(crate) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut hash = fnv1a(FNV_OFFSET, canonical(template).to_string().as_bytes());
    if let Some(collisions) = collisions {
        hash = fnv1a(hash, &collisions.to_le_bytes());
    }
    safe_encode(&hash.to_string())
}

fn safe_encode(text: &str) -> String {
    text.bytes().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

/// <http://www.isthe.com/chongo/tech/comp/fnv/>: the 32-bit offset basis and prime.
const FNV_OFFSET: u32 = 0x811c_9dc5;

fn fnv1a(hash: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn canonical(template: &PodTemplateSpec) -> Value {
    let mut value = serde_json::to_value(template).expect("a template has string keys only");
    if let Some(labels) = value.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH_LABEL);
    }
    prune(&mut value);
    value
}

/// Drops what is empty, and sorts keys, so that equal meaning gives equal text.
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(prune);
            map.retain(|_, value| !is_empty(value));
            map.sort_keys();
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// A count that may be a share of `total`, as maxSurge and maxUnavailable are.
pub(crate) fn resolve(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(count)) => *count,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let share = percent * i64::from(total);
            let rounded = if round_up { (share + 99).div_euclid(100) } else { share.div_euclid(100) };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(value: Value) -> PodTemplateSpec {
        serde_json::from_value(value).expect("a valid template")
    }

    #[test]
    fn sameness_and_hash_agree() {
        let base = json!({ "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": "a" }] } });
        let cases = [
            ("itself", base.clone(), true),
            (
                "the hash label does not count",
                json!({ "metadata": { "labels": { "app": "web", "pod-template-hash": "x" } }, "spec": { "containers": [{ "name": "c", "image": "a" }] } }),
                true,
            ),
            (
                "empty is absent",
                json!({ "metadata": { "labels": { "app": "web" }, "annotations": {} }, "spec": { "containers": [{ "name": "c", "image": "a", "env": [] }] } }),
                true,
            ),
            (
                "another image",
                json!({ "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": "b" }] } }),
                false,
            ),
        ];
        let base = template(base);
        for (name, other, expect) in cases {
            let other = template(other);
            assert_eq!(same(&base, &other), expect, "{name}");
            assert_eq!(hash(&base, None) == hash(&other, None), expect, "{name}: hash");
        }
        assert_ne!(hash(&base, None), hash(&base, Some(1)), "a collision gives another name");
    }

    #[test]
    fn shares_round_as_asked() {
        let percent = |text: &str| Some(IntOrString::String(text.into()));
        let cases = [
            (None, 10, true, 0),
            (Some(IntOrString::Int(3)), 10, true, 3),
            (percent("25%"), 10, true, 3),
            (percent("25%"), 10, false, 2),
            (percent("100%"), 7, false, 7),
            (percent("0%"), 7, true, 0),
        ];
        for (value, total, up, expect) in cases {
            assert_eq!(resolve(value.as_ref(), total, up), expect, "{value:?} of {total}, up: {up}");
        }
    }
}
