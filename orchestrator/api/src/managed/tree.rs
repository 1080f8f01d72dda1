//! Objects as trees of the places that can have an owner: which there are, what changed, merging and removing.
//!
//! The schema says what is one place (a scalar, an atomic list or struct) and what consists of several (structs,
//! maps, sets, and lists whose items have keys).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::{Fields, Path, Step};
use crate::schema::{Field, Shape, Type};

/// What the schema says about a place.
#[derive(Clone)]
pub(super) enum Node {
    Struct(&'static Type),
    Map(&'static Shape),
    /// A list whose items are told apart by these members.
    Items(&'static Shape, Vec<&'static str>),
    Set,
    /// Without a schema: objects consist of their members, all else is one place.
    Free,
    Leaf,
}

impl Node {
    fn of(shape: &'static Shape, field: Option<&Field>) -> Self {
        let atomic = field.is_some_and(Field::is_atomic_map);
        match shape {
            Shape::Object(index) => match Type::at(*index) {
                ty if atomic || ty.is_atomic() => Self::Leaf,
                ty => Self::Struct(ty),
            },
            Shape::Map(_) if atomic => Self::Leaf,
            Shape::Map(item) => Self::Map(item),
            Shape::List(item) => match field.and_then(Field::list_type) {
                Some(("map", keys)) => Self::Items(item, keys),
                Some(("set", _)) => Self::Set,
                _ => Self::Leaf,
            },
            Shape::Raw => Self::Free,
            _ => Self::Leaf,
        }
    }

    fn member(&self, name: &str) -> Self {
        match self {
            Self::Struct(ty) => {
                ty.field(name).map_or(Self::Free, |field| Self::of(&field.shape, Some(field)))
            }
            Self::Map(item) => Self::of(item, None),
            Self::Free => Self::Free,
            Self::Items(..) | Self::Set | Self::Leaf => Self::Leaf,
        }
    }

    fn has_members(&self) -> bool {
        matches!(self, Self::Struct(_) | Self::Map(_) | Self::Free)
    }
}

/// The step to a list item with these keys. A port without a protocol is one of TCP, as the schema's default says.
fn key_of(item: &Value, keys: &[&str]) -> Step {
    let mut sorted: Vec<&str> = keys.to_vec();
    sorted.sort_unstable();
    let mut map = Map::new();
    for key in sorted {
        match item.get(key) {
            Some(value) => drop(map.insert(key.into(), value.clone())),
            None if key == "protocol" => drop(map.insert(key.into(), "TCP".into())),
            None => {}
        }
    }
    Step::Key(Value::Object(map).to_string())
}

/// Every place of an object, with its value; list items are places themselves and have none.
pub(super) type Places<'a> = BTreeMap<Path, Option<&'a Value>>;

pub(super) fn places<'a>(ty: &'static Type, object: &'a Value) -> Places<'a> {
    let mut found = Places::new();
    collect(&Node::Struct(ty), object, &mut Vec::new(), &mut found);
    found.retain(|path, _| !is_systems(path));
    found
}

fn collect<'a>(node: &Node, value: &'a Value, path: &mut Path, found: &mut Places<'a>) {
    match (node, value) {
        (node, Value::Object(map)) if node.has_members() && !map.is_empty() => {
            for (name, value) in map {
                path.push(Step::Field(name.clone()));
                collect(&node.member(name), value, path, found);
                path.pop();
            }
        }
        (Node::Items(shape, keys), Value::Array(items)) if !items.is_empty() => {
            for item in items {
                path.push(key_of(item, keys));
                found.insert(path.clone(), None);
                collect(&Node::of(shape, None), item, path, found);
                path.pop();
            }
        }
        (Node::Set, Value::Array(items)) if !items.is_empty() => {
            for item in items {
                path.push(Step::Value(item.to_string()));
                found.insert(path.clone(), None);
                path.pop();
            }
        }
        _ => {
            found.insert(path.clone(), Some(value));
        }
    }
}

/// Places that belong to nobody but the server.
fn is_systems(path: &Path) -> bool {
    const METADATA: &[&str] = &[
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "generation",
        "managedFields",
        "resourceVersion",
    ];
    match path.as_slice() {
        [] => true,
        [Step::Field(name)] => matches!(name.as_str(), "apiVersion" | "kind" | "metadata"),
        [Step::Field(first), Step::Field(second), ..] => {
            first == "metadata" && METADATA.contains(&second.as_str())
        }
        _ => false,
    }
}

/// What distinguishes two objects.
pub(super) struct Difference {
    /// Added, or of another value.
    pub changed: Fields,
    pub removed: Fields,
}

pub(super) fn difference(ty: &'static Type, old: &Value, new: &Value) -> Difference {
    let (old, new) = (places(ty, old), places(ty, new));
    let changed = new.iter().filter(|(path, value)| old.get(*path) != Some(*value));
    let removed = old.keys().filter(|path| !new.contains_key(*path));
    Difference {
        changed: Fields(changed.map(|(path, _)| path.clone()).collect()),
        removed: Fields(removed.cloned().collect()),
    }
}

/// `live` with what `config` says; what it does not mention stays.
pub(super) fn merge(ty: &'static Type, live: &Value, config: &Value) -> Value {
    merge_at(&Node::Struct(ty), live, config)
}

fn merge_at(node: &Node, live: &Value, config: &Value) -> Value {
    match (node, live, config) {
        (node, Value::Object(live), Value::Object(config)) if node.has_members() => {
            let mut merged = live.clone();
            for (name, value) in config {
                let value = match live.get(name) {
                    Some(old) => merge_at(&node.member(name), old, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Node::Items(shape, keys), Value::Array(live), Value::Array(config)) => {
            let item = Node::of(shape, None);
            merge_lists(live, config, |item| key_of(item, keys), |old, new| merge_at(&item, old, new))
        }
        (Node::Set, Value::Array(live), Value::Array(config)) => {
            merge_lists(live, config, |item| Step::Value(item.to_string()), |_, new| new.clone())
        }
        _ => config.clone(),
    }
}

/// In the order of `config`; what is only in `live` stays before what it stood before, and before what is new.
fn merge_lists(
    live: &[Value],
    config: &[Value],
    key: impl Fn(&Value) -> Step,
    both: impl Fn(&Value, &Value) -> Value,
) -> Value {
    let wanted: Vec<Step> = config.iter().map(&key).collect();
    let there: Vec<Step> = live.iter().map(&key).collect();
    let mut merged = Vec::with_capacity(live.len() + config.len());
    let mut next = 0;
    for (item, step) in config.iter().zip(&wanted) {
        let Some(place) = there.iter().position(|known| known == step) else {
            while next < live.len() && !wanted.contains(&there[next]) {
                merged.push(live[next].clone());
                next += 1;
            }
            merged.push(item.clone());
            continue;
        };
        while next < place {
            if !wanted.contains(&there[next]) {
                merged.push(live[next].clone());
            }
            next += 1;
        }
        next = next.max(place + 1);
        merged.push(both(&live[place], item));
    }
    let rest = live.iter().zip(&there).skip(next).filter(|(_, step)| !wanted.contains(step));
    merged.extend(rest.map(|(item, _)| item.clone()));
    Value::Array(merged)
}

/// Takes a place out of an object, and what holds nothing after that.
pub(super) fn remove(ty: &'static Type, object: &mut Value, path: &[Step]) {
    remove_at(&Node::Struct(ty), object, path);
}

fn remove_at(node: &Node, value: &mut Value, path: &[Step]) {
    let Some((step, rest)) = path.split_first() else { return };
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => {
            if let Some(below) = map.get_mut(name).filter(|_| !rest.is_empty()) {
                remove_at(&node.member(name), below, rest);
                if !is_empty(below) {
                    return;
                }
            }
            map.shift_remove(name);
        }
        (Step::Key(_), Value::Array(items)) => {
            let Node::Items(shape, keys) = node else { return };
            if rest.is_empty() {
                items.retain(|item| key_of(item, keys) != *step);
            } else if let Some(item) = items.iter_mut().find(|item| key_of(item, keys) == *step) {
                remove_at(&Node::of(shape, None), item, rest);
            }
        }
        (Step::Value(_), Value::Array(items)) => items.retain(|item| Step::Value(item.to_string()) != *step),
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
