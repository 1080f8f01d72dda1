//! Short words for walking JSON objects. Indexing a missing field gives null, so reading never fails; what has
//! the wrong type was refused when the object was decoded.

use serde_json::{Map, Value};

/// A text, empty where there is none.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A list's items, none where there is no list.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A list's items for changing, without creating the list.
pub(crate) fn list_mut<'a>(object: &'a mut Value, name: &str) -> &'a mut [Value] {
    object.get_mut(name).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// The entries of a map, none where there is no map.
pub(crate) fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v))
}

/// Sets a field that the client left out.
pub(crate) fn set_default(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Value::Object(map) = object
        && map.get(name).is_none_or(Value::is_null)
    {
        map.insert(name.to_owned(), value.into());
    }
}

/// A field that is an object, created empty where it is missing.
pub(crate) fn child<'a>(object: &'a mut Value, name: &str) -> &'a mut Value {
    if !object[name].is_object() {
        object[name] = Value::Object(Map::new());
    }
    &mut object[name]
}

/// Removes a field.
pub(crate) fn remove(object: &mut Value, name: &str) -> Option<Value> {
    object.as_object_mut().and_then(|map| map.shift_remove(name))
}

/// Whether a pointer-like field is set.
pub(crate) fn has(object: &Value, name: &str) -> bool {
    object.get(name).is_some_and(|v| !v.is_null())
}
