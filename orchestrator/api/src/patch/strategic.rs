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
        // Every match is patched: keys are not always unique, as with a port under two protocols.
        let mut found = false;
        for slot in existing.iter_mut().filter(|e| e.get(key) == Some(id)) {
            if let Value::Object(map) = slot {
                let merged = merge_maps(node, std::mem::take(map), patch)?;
                *map = merged;
                found = true;
                break;
            }
        }
        if !found {
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
