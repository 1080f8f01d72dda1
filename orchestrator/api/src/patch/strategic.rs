//! Strategic merge patch: a merge patch in which lists of objects are merged by their key, as the schema says.
//!
//! Directives inside a patch, all removed before anything is stored:
//! `$patch: replace | delete | merge` on objects and list items, `$setElementOrder/<list>`,
//! `$deleteFromPrimitiveList/<list>`, `$retainKeys`.

use serde_json::{Map, Value};

use crate::{
    schema::{Field, Shape, Type},
    status::{ApiError, Reason},
};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// A patch that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("unrecognized directive \"$patch: {0}\"")]
    Directive(String),
    #[error("map: {item} does not contain declared merge key: {key}")]
    NoMergeKey { item: Value, key: String },
    #[error("{0:?} has to be a list")]
    NotAList(String),
}

impl From<PatchError> for ApiError {
    fn from(error: PatchError) -> Self {
        ApiError::new(Reason::BadRequest, error.to_string())
    }
}

/// Applies `patch` to `object`, whose schema is `ty`.
pub fn apply(ty: &'static Type, object: Value, patch: &Value) -> Result<Value, PatchError> {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            merge_maps(Node::Object(ty), object, patch).map(Value::Object)
        }
        (_, Value::Object(patch)) => clean_map(patch).map(Value::Object),
        (_, other) => Ok(other.clone()),
    }
}

/// Where in the schema a map is; below unknown fields and raw JSON there is none.
#[derive(Clone, Copy)]
enum Node {
    Object(&'static Type),
    /// A map of strings to values of this shape.
    Map(&'static Shape),
    Unknown,
}

impl Node {
    fn of(shape: &'static Shape) -> Self {
        match shape {
            Shape::Object(index) => Self::Object(Type::at(*index)),
            Shape::Map(item) => Self::Map(item),
            _ => Self::Unknown,
        }
    }

    fn child(self, name: &str) -> (Option<&'static Field>, Self, Option<&'static Shape>) {
        match self {
            Self::Object(ty) => match ty.field(name) {
                Some(field) => {
                    let item = match &field.shape {
                        Shape::List(item) => Some(item.as_ref()),
                        _ => None,
                    };
                    (Some(field), Self::of(&field.shape), item)
                }
                None => (None, Self::Unknown, None),
            },
            Self::Map(item) => (None, Self::of(item), None),
            Self::Unknown => (None, Self::Unknown, None),
        }
    }
}

fn merge_maps(
    node: Node,
    mut object: Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, PatchError> {
    match patch.get(DIRECTIVE) {
        None => {}
        Some(directive) => match directive.as_str() {
            Some("merge") => {}
            Some("replace") => return clean_map(patch),
            Some("delete") => return Ok(Map::new()),
            _ => return Err(PatchError::Directive(text(directive))),
        },
    }
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let keys = keys.as_array().ok_or_else(|| PatchError::NotAList(RETAIN_KEYS.into()))?;
        object.retain(|name, _| keys.iter().any(|k| k == name));
    }
    for (name, change) in patch {
        if name == DIRECTIVE || name == RETAIN_KEYS {
            continue;
        }
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            let gone = change.as_array().ok_or_else(|| PatchError::NotAList(name.clone()))?;
            if let Some(Value::Array(items)) = object.get_mut(list) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if let Some(list) = name.strip_prefix(SET_ORDER) {
            // With a patch of the same list the order is applied there.
            if !patch.contains_key(list) {
                merge_list(node, &mut object, list, &[], Some(change))?;
            }
            continue;
        }
        match change {
            Value::Null => {
                object.shift_remove(name);
            }
            Value::Array(items) => {
                merge_list(node, &mut object, name, items, patch.get(&format!("{SET_ORDER}{name}")))?;
            }
            Value::Object(change) => {
                let (_, below, _) = node.child(name);
                let merged = match object.get_mut(name) {
                    Some(Value::Object(existing)) => merge_maps(below, std::mem::take(existing), change)?,
                    _ if change.get(DIRECTIVE).is_some_and(|d| d == "delete") => continue,
                    _ => clean_map(change)?,
                };
                object.insert(name.clone(), Value::Object(merged));
            }
            other => {
                object.insert(name.clone(), other.clone());
            }
        }
    }
    Ok(object)
}

/// Merges one list field of `object`, or replaces it where the schema has no merge strategy for it.
fn merge_list(
    node: Node,
    object: &mut Map<String, Value>,
    name: &str,
    change: &[Value],
    order: Option<&Value>,
) -> Result<(), PatchError> {
    let (field, _, item) = node.child(name);
    let strategy = field.map(Field::strategy).unwrap_or_default();
    let order = match order {
        Some(order) => {
            Some(order.as_array().ok_or_else(|| PatchError::NotAList(format!("{SET_ORDER}{name}")))?)
        }
        None => None,
    };
    if !strategy.merge {
        if order.is_none() || !change.is_empty() {
            object.insert(name.to_owned(), change.iter().map(clean).collect::<Result<_, _>>()?);
        }
        return Ok(());
    }
    let existing = match object.get_mut(name) {
        Some(Value::Array(items)) => std::mem::take(items),
        _ => Vec::new(),
    };
    let merged = match strategy.merge_key {
        Some(key) => merge_keyed(item, key, existing, change, order)?,
        None => merge_primitives(existing, change, order),
    };
    object.insert(name.to_owned(), Value::Array(merged));
    Ok(())
}

fn merge_primitives(mut existing: Vec<Value>, change: &[Value], order: Option<&Vec<Value>>) -> Vec<Value> {
    let server = existing.clone();
    for item in change {
        if !existing.contains(item) {
            existing.push(item.clone());
        }
    }
    match order {
        Some(order) => ordered(existing, &server, order, |a, b| a == b),
        None => existing,
    }
}

fn merge_keyed(
    item: Option<&'static Shape>,
    key: &str,
    mut existing: Vec<Value>,
    change: &[Value],
    order: Option<&Vec<Value>>,
) -> Result<Vec<Value>, PatchError> {
    let no_key = |item: &Value| PatchError::NoMergeKey { item: item.clone(), key: key.to_owned() };
    let node = item.map_or(Node::Unknown, Node::of);
    if change.iter().any(|c| c.get(DIRECTIVE).is_some_and(|d| d == "replace")) {
        // The items beside the directive are the whole new list.
        return change
            .iter()
            .filter(|c| c.get(DIRECTIVE).is_none_or(|d| d != "replace"))
            .map(clean)
            .collect();
    }
    let server = existing.clone();
    let (deletions, merges): (Vec<&Value>, Vec<&Value>) =
        change.iter().partition(|c| c.get(DIRECTIVE).is_some_and(|d| d == "delete"));
    for gone in deletions {
        let id = gone.get(key).ok_or_else(|| no_key(gone))?;
        existing.retain(|e| e.get(key) != Some(id));
    }
    for item in merges {
        let id = item.get(key).ok_or_else(|| no_key(item))?;
        let Value::Object(patch) = item else { return Err(no_key(item)) };
        // The first of several items with one key is the one that is meant, as upstream decides too: a port under
        // two protocols is such a case.
        let slot = existing.iter_mut().find(|e| e.get(key) == Some(id));
        if let Some(Value::Object(map)) = slot {
            *map = merge_maps(node, std::mem::take(map), patch)?;
        } else {
            existing.push(Value::Object(clean_map(patch)?));
        }
    }
    Ok(match order {
        Some(order) => {
            ordered(existing, &server, order, |a, b| a.get(key).is_some() && a.get(key) == b.get(key))
        }
        None => existing,
    })
}

/// Items named in `order` come in that order; the others, which only the server knows, stay behind the item
/// they stood behind on the server.
fn ordered(
    items: Vec<Value>,
    server: &[Value],
    order: &[Value],
    same: impl Fn(&Value, &Value) -> bool,
) -> Vec<Value> {
    let (mut named, rest): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|i| order.iter().any(|o| same(i, o)));
    let rank = |item: &Value| order.iter().position(|o| same(item, o)).unwrap_or(usize::MAX);
    named.sort_by_key(rank);
    let place = |item: &Value| server.iter().position(|s| same(s, item));
    let mut merged = Vec::with_capacity(named.len() + rest.len());
    let mut rest = rest.into_iter().peekable();
    for item in named {
        if let Some(here) = place(&item) {
            while rest.peek().is_some_and(|r| place(r).is_some_and(|there| there < here)) {
                merged.extend(rest.next());
            }
        }
        merged.push(item);
    }
    merged.extend(rest);
    merged
}

/// A patch that meets nothing: its directives go, its content stays.
fn clean(value: &Value) -> Result<Value, PatchError> {
    match value {
        Value::Object(map) => clean_map(map).map(Value::Object),
        Value::Array(items) => items
            .iter()
            .filter(|i| {
                i.get(DIRECTIVE).is_none_or(|d| {
                    d != "delete" && d != "replace"
                        || i.as_object().is_some_and(|m| m.len() > 1 && d == "replace")
                })
            })
            .map(clean)
            .collect::<Result<Vec<_>, _>>()
            .map(Value::Array),
        other => Ok(other.clone()),
    }
}

fn clean_map(map: &Map<String, Value>) -> Result<Map<String, Value>, PatchError> {
    if let Some(directive) = map.get(DIRECTIVE)
        && !matches!(directive.as_str(), Some("merge" | "replace" | "delete"))
    {
        return Err(PatchError::Directive(text(directive)));
    }
    let mut cleaned = Map::with_capacity(map.len());
    for (name, value) in map {
        let directive = name == DIRECTIVE
            || name == RETAIN_KEYS
            || name.starts_with(SET_ORDER)
            || name.starts_with(DELETE_FROM);
        if !directive && !value.is_null() {
            cleaned.insert(name.clone(), clean(value)?);
        }
    }
    Ok(cleaned)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: Value) -> Value {
        json!({"spec": spec})
    }

    fn patched(object: &Value, patch: &Value) -> Result<Value, String> {
        let ty = Type::named("io.k8s.api.core.v1.Pod").expect("Pod");
        apply(ty, object.clone(), patch).map_err(|e| e.to_string())
    }

    #[test]
    fn lists_are_merged_by_the_key_of_the_schema() {
        let object = pod(json!({
            "containers": [{"name": "a", "image": "1", "args": ["x", "y"]}, {"name": "b", "image": "1"}],
            "tolerations": [{"key": "k"}], "nodeSelector": {"x": "1", "y": "2"},
        }));
        let expected = |spec: Value| {
            let mut merged = object.clone();
            for (name, value) in spec.as_object().expect("object") {
                merged["spec"][name] = value.clone();
            }
            merged
        };
        for (name, patch, merged) in [
            (
                "an item is found by its name",
                json!({"containers": [{"name": "b", "image": "2"}]}),
                json!({"containers": [{"name": "a", "image": "1", "args": ["x", "y"]}, {"name": "b", "image": "2"}]}),
            ),
            (
                "a new item goes to the end",
                json!({"containers": [{"name": "c", "image": "1"}]}),
                json!({"containers": [{"name": "a", "image": "1", "args": ["x", "y"]}, {"name": "b", "image": "1"}, {"name": "c", "image": "1"}]}),
            ),
            (
                "an item is deleted by its name",
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                json!({"containers": [{"name": "b", "image": "1"}]}),
            ),
            (
                "an order moves items",
                json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
                json!({"containers": [{"name": "b", "image": "1"}, {"name": "a", "image": "1", "args": ["x", "y"]}]}),
            ),
            (
                "an order places new items",
                json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "c"}]}),
                json!({"containers": [{"name": "c"}, {"name": "a", "image": "1", "args": ["x", "y"]}, {"name": "b", "image": "1"}]}),
            ),
            (
                "the whole list is replaced when asked",
                json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
                json!({"containers": [{"name": "z"}]}),
            ),
            (
                "a list without a merge key is replaced",
                json!({"containers": [{"name": "a", "args": ["z"]}], "tolerations": [{"key": "l"}]}),
                json!({"containers": [{"name": "a", "image": "1", "args": ["z"]}, {"name": "b", "image": "1"}], "tolerations": [{"key": "l"}]}),
            ),
            (
                "null removes from a map",
                json!({"nodeSelector": {"x": null, "z": "3"}}),
                json!({"nodeSelector": {"y": "2", "z": "3"}}),
            ),
            (
                "a map is replaced when asked",
                json!({"nodeSelector": {"$patch": "replace", "z": "3"}}),
                json!({"nodeSelector": {"z": "3"}}),
            ),
            (
                "a map is emptied when asked",
                json!({"nodeSelector": {"$patch": "delete"}}),
                json!({"nodeSelector": {}}),
            ),
        ] {
            assert_eq!(patched(&object, &json!({"spec": patch})), Ok(expected(merged)), "{name}");
        }
    }

    #[test]
    fn primitive_lists_and_retained_keys() {
        let object = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
        let finalizers = |patch: Value| {
            patched(&object, &json!({"metadata": patch})).expect("patched")["metadata"]["finalizers"].clone()
        };
        assert_eq!(finalizers(json!({"finalizers": ["d", "a"]})), json!(["a", "b", "c", "d"]));
        assert_eq!(finalizers(json!({"$deleteFromPrimitiveList/finalizers": ["b"]})), json!(["a", "c"]));
        assert_eq!(
            finalizers(
                json!({"$deleteFromPrimitiveList/finalizers": ["b"], "$setElementOrder/finalizers": ["d", "a", "c"], "finalizers": ["d"]})
            ),
            json!(["d", "a", "c"])
        );

        let deployment =
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        let ty = Type::named("io.k8s.api.apps.v1.Deployment").expect("Deployment");
        assert_eq!(apply(ty, deployment, &patch), Ok(json!({"spec": {"strategy": {"type": "Recreate"}}})));

        let volumes = pod(json!({"volumes": [{"name": "v", "emptyDir": {}}]}));
        let patch = json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}});
        assert_eq!(
            patched(&volumes, &patch),
            Ok(pod(json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]})))
        );
    }

    /// What `kubectl apply` sends when a container, a port and a variable are removed from a manifest.
    #[test]
    fn what_apply_sends_removes_exactly_what_was_removed() {
        let live = pod(json!({"containers": [
            {"name": "app", "image": "i:1", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
             "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 81, "protocol": "TCP"}]},
            {"name": "injected", "image": "sidecar"},
        ]}));
        let patch = json!({"spec": {
            "$setElementOrder/containers": [{"name": "app"}],
            "containers": [{
                "name": "app", "image": "i:2",
                "$setElementOrder/env": [{"name": "A"}], "env": [{"name": "B", "$patch": "delete"}],
                "$setElementOrder/ports": [{"containerPort": 80}], "ports": [{"containerPort": 81, "$patch": "delete"}],
            }],
        }});
        assert_eq!(
            patched(&live, &patch),
            Ok(pod(json!({"containers": [
                {"name": "app", "image": "i:2", "env": [{"name": "A", "value": "1"}],
                 "ports": [{"containerPort": 80, "protocol": "TCP"}]},
                {"name": "injected", "image": "sidecar"},
            ]})))
        );
    }

    #[test]
    fn directives_never_reach_the_object() {
        let patch = json!({"spec": {"containers": [
            {"name": "a", "$setElementOrder/env": [{"name": "X"}], "env": [{"name": "X"}, {"name": "Y", "$patch": "delete"}]},
        ], "affinity": {"$retainKeys": [], "nodeAffinity": {}}}});
        let expected = json!({"spec": {"containers": [{"name": "a", "env": [{"name": "X"}]}], "affinity": {"nodeAffinity": {}}}});
        assert_eq!(patched(&json!({}), &patch), Ok(expected));
        assert!(patched(&json!({}), &json!({"spec": {"$patch": "eat"}})).is_err());
        assert!(
            patched(&pod(json!({"containers": []})), &json!({"spec": {"containers": [{"image": "x"}]}}))
                .is_err()
        );
    }
}
