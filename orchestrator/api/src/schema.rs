//! The API's types: names, wire tags and merge rules of every field, parsed once from `schema/types.txt`
//! (written by `cargo xtask codegen`; its header explains the format).
//!
//! Decoding, protobuf, patches and OpenAPI all read this one table, so that they cannot disagree.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};

pub(crate) const TABLE: &str = include_str!("../schema/types.txt");

/// The type that every object's `metadata` has.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// One struct of the API.
#[derive(Debug)]
pub struct Type {
    package: &'static str,
    name: &'static str,
    attributes: &'static str,
    fields: Box<[Field]>,
}

/// One field of a struct.
#[derive(Debug)]
pub struct Field {
    /// JSON name; `=` where the struct is inlined into its parent.
    pub name: &'static str,
    /// Protobuf field number, 0 where protobuf does not carry the field.
    pub tag: u16,
    pub shape: Shape,
    /// A Go pointer: absent and empty are two things.
    pub pointer: bool,
    /// Left out of JSON when empty (`omitempty`).
    pub omit_empty: bool,
    /// Left out of JSON when it is a struct without any content (`omitzero`).
    pub omit_zero: bool,
    attributes: &'static str,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    Bool,
    Int32,
    Int64,
    Float64,
    String,
    /// Base64 in JSON.
    Bytes,
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    /// Any JSON (`RawExtension`, `FieldsV1`, embedded objects).
    Raw,
    /// A list of strings that protobuf wraps in a message of its own.
    Names,
    /// A struct: index into the table.
    Object(u16),
    List(Box<Shape>),
    Map(Box<Shape>),
}

/// How strategic merge patch treats a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strategy {
    /// Lists are merged; by this key where items are objects.
    pub merge: bool,
    pub merge_key: Option<&'static str>,
    pub retain_keys: bool,
}

impl Type {
    /// The type of that OpenAPI name, such as `io.k8s.api.core.v1.Pod`.
    pub fn named(name: &str) -> Option<&'static Type> {
        let (package, name) = name.rsplit_once('.')?;
        Self::find(package, name)
    }

    /// The type `name` of the OpenAPI package `package`.
    pub fn find(package: &str, name: &str) -> Option<&'static Type> {
        let types = &table().types;
        types.binary_search_by(|t| (t.package, t.name).cmp(&(package, name))).ok().map(|i| &types[i])
    }

    /// The type behind a [`Shape::Object`].
    pub fn at(index: u16) -> &'static Type {
        &table().types[usize::from(index)]
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn full_name(&self) -> String {
        format!("{}.{}", self.package, self.name)
    }

    /// Go's way of writing the type in messages: `v1.PodSpec`.
    pub(crate) fn go_name(&self) -> String {
        format!("{}.{}", self.package.rsplit('.').next().unwrap_or_default(), self.name)
    }

    /// Whether appliers replace it as a whole.
    pub fn is_atomic(&self) -> bool {
        self.attributes == "map:atomic"
    }

    /// Fields as declared, inlined structs as one field.
    pub fn fields(&self) -> &'static [Field] {
        // `self` always lives in the table.
        Type::at(self.index()).fields.as_ref()
    }

    fn index(&self) -> u16 {
        let start = table().types.as_ptr() as usize;
        let offset = std::ptr::from_ref(self) as usize - start;
        (offset / size_of::<Type>()) as u16
    }

    /// The field of that JSON name, also inside inlined structs.
    pub fn field(&'static self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find_map(|field| match field.inlined() {
            Some(inner) => inner.field(name),
            None => (field.name == name).then_some(field),
        })
    }

    /// All fields with the inlined ones in place.
    pub fn flat_fields(&'static self) -> Vec<&'static Field> {
        let mut all = Vec::with_capacity(self.fields.len());
        for field in &self.fields {
            match field.inlined() {
                Some(inner) => all.extend(inner.flat_fields()),
                None => all.push(field),
            }
        }
        all
    }

    /// Makes an object look as it would after Go read and wrote it: nulls and empty `omitempty` values
    /// disappear, what Go always writes appears. Unknown fields are left alone.
    pub fn normalise(&'static self, object: &mut Map<String, Value>) {
        for field in &self.fields {
            if let Some(inner) = field.inlined() {
                inner.normalise(object);
                continue;
            }
            if let Some(value) = object.get_mut(field.name) {
                field.shape.normalise(value);
                let zero = field.omit_empty && !field.pointer && field.shape.is_go_zero(value)
                    || field.omit_zero && value.as_object().is_some_and(Map::is_empty);
                if value.is_null() || zero {
                    object.shift_remove(field.name);
                }
            } else if let Some(value) = field.always_written() {
                object.insert(field.name.to_owned(), value);
            }
        }
    }
}

impl Field {
    /// The struct that is inlined here.
    pub fn inlined(&self) -> Option<&'static Type> {
        match self.shape {
            Shape::Object(index) if self.name == "=" => Some(Type::at(index)),
            _ => None,
        }
    }

    pub fn strategy(&self) -> Strategy {
        let mut strategy = Strategy::default();
        for word in self.attributes.split(' ') {
            match word.split_once(':') {
                Some(("merge", key)) => (strategy.merge, strategy.merge_key) = (true, Some(key)),
                _ if word == "merge" => strategy.merge = true,
                _ if word == "retainKeys" => strategy.retain_keys = true,
                _ => {}
            }
        }
        strategy
    }

    /// `atomic`, `set` or `map`, and the keys of `map`.
    pub fn list_type(&self) -> Option<(&'static str, Vec<&'static str>)> {
        let word = self.attributes.split(' ').find_map(|w| w.strip_prefix("list:"))?;
        let (kind, keys) = word.split_once(':').unwrap_or((word, ""));
        Some((kind, keys.split(',').filter(|k| !k.is_empty()).collect()))
    }

    /// Whether a map or struct in this place is replaced as a whole by appliers.
    pub fn is_atomic_map(&self) -> bool {
        self.attributes.split(' ').any(|w| w == "map:atomic")
    }

    /// What Go writes although nothing was set.
    fn always_written(&self) -> Option<Value> {
        if self.pointer || self.omit_zero {
            return None;
        }
        match self.shape {
            Shape::Object(index) => {
                let mut object = Map::new();
                Type::at(index).normalise(&mut object);
                Some(Value::Object(object))
            }
            Shape::Quantity => Some(json!("0")),
            _ if self.omit_empty => None,
            Shape::Bool => Some(json!(false)),
            Shape::Int32 | Shape::Int64 => Some(json!(0)),
            Shape::String => Some(json!("")),
            _ => None,
        }
    }
}

impl Shape {
    fn normalise(&self, value: &mut Value) {
        match (self, value) {
            (Shape::Object(index), Value::Object(object)) => Type::at(*index).normalise(object),
            (Shape::List(item), Value::Array(items)) => items.iter_mut().for_each(|v| item.normalise(v)),
            (Shape::Map(item), Value::Object(object)) => object.values_mut().for_each(|v| item.normalise(v)),
            _ => {}
        }
    }

    fn is_go_zero(&self, value: &Value) -> bool {
        match self {
            // Structs are never left out by omitempty.
            Shape::Object(_) | Shape::Quantity | Shape::IntOrString | Shape::Raw => false,
            _ => match value {
                Value::Null => true,
                Value::Bool(b) => !b,
                Value::Number(n) => n.as_f64() == Some(0.0),
                Value::String(s) => s.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(object) => object.is_empty(),
            },
        }
    }

    /// Go's way of writing the type in messages.
    pub(crate) fn go_name(&self) -> String {
        match self {
            Shape::Bool => "bool".into(),
            Shape::Int32 => "int32".into(),
            Shape::Int64 => "int64".into(),
            Shape::Float64 => "float64".into(),
            Shape::String => "string".into(),
            Shape::Bytes => "[]uint8".into(),
            Shape::Time => "v1.Time".into(),
            Shape::MicroTime => "v1.MicroTime".into(),
            Shape::Duration => "v1.Duration".into(),
            Shape::Quantity => "resource.Quantity".into(),
            Shape::IntOrString => "intstr.IntOrString".into(),
            Shape::Raw => "runtime.RawExtension".into(),
            Shape::Names => "[]string".into(),
            Shape::Object(index) => Type::at(*index).go_name(),
            Shape::List(item) => format!("[]{}", item.go_name()),
            Shape::Map(item) => format!("map[string]{}", item.go_name()),
        }
    }
}

struct Table {
    types: Vec<Type>,
}

fn table() -> &'static Table {
    static PARSED: OnceLock<Table> = OnceLock::new();
    PARSED.get_or_init(|| parse(TABLE))
}

/// The table is part of the program: it is well formed or the first test fails.
fn parse(text: &'static str) -> Table {
    let mut names: Vec<(&str, &str)> = Vec::new();
    let mut package = "";
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.starts_with(' ')) {
        match line.strip_prefix("package ") {
            Some(name) => package = name,
            None => names.push((package, line.split(' ').next().unwrap_or_default())),
        }
    }
    let mut types: Vec<Type> = Vec::with_capacity(names.len());
    let mut fields = Vec::new();
    let close = |types: &mut Vec<Type>, fields: &mut Vec<Field>| {
        if let Some(last) = types.last_mut() {
            last.fields = std::mem::take(fields).into_boxed_slice();
        }
    };
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        if let Some(rest) = line.strip_prefix(' ') {
            fields.push(parse_field(rest, types.last().map_or("", |t| t.package), &names));
        } else if let Some(name) = line.strip_prefix("package ") {
            package = name;
        } else {
            close(&mut types, &mut fields);
            let (name, attributes) = line.split_once(' ').unwrap_or((line, ""));
            types.push(Type { package, name, attributes, fields: Box::default() });
        }
    }
    close(&mut types, &mut fields);
    Table { types }
}

fn parse_field(line: &'static str, package: &str, names: &[(&str, &str)]) -> Field {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().expect("a field line has a name, a tag and a type");
    let (name, tag, shape) = (word(), word(), word());
    let attributes = words.next().unwrap_or_default();
    let (pointer, shape) = match shape.strip_prefix('*') {
        Some(rest) => (true, rest),
        None => (false, shape),
    };
    let has = |option: &str| attributes.split(' ').any(|w| w == option);
    Field {
        name,
        tag: tag.parse().expect("tags are small numbers"),
        shape: parse_shape(shape, package, names),
        pointer,
        omit_empty: has("omitempty"),
        omit_zero: has("omitzero"),
        attributes,
    }
}

fn parse_shape(word: &str, package: &str, names: &[(&str, &str)]) -> Shape {
    if let Some(item) = word.strip_prefix("[]") {
        return Shape::List(Box::new(parse_shape(item, package, names)));
    }
    if let Some(item) = word.strip_prefix("{}") {
        return Shape::Map(Box::new(parse_shape(item, package, names)));
    }
    match word.strip_prefix('*').unwrap_or(word) {
        "bool" => Shape::Bool,
        "int32" => Shape::Int32,
        "int64" => Shape::Int64,
        "float64" => Shape::Float64,
        "string" => Shape::String,
        "bytes" => Shape::Bytes,
        "time" => Shape::Time,
        "microtime" => Shape::MicroTime,
        "duration" => Shape::Duration,
        "quantity" => Shape::Quantity,
        "intorstring" => Shape::IntOrString,
        "raw" => Shape::Raw,
        "names" => Shape::Names,
        name => {
            let wanted = name.rsplit_once('.').unwrap_or((package, name));
            let index = names.binary_search(&wanted).expect("every type that is referred to is in the table");
            Shape::Object(u16::try_from(index).expect("fewer than 65,536 types"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_parses() {
        let pod = Type::named("io.k8s.api.core.v1.PodSpec").expect("PodSpec");
        let containers = pod.field("containers").expect("containers");
        assert_eq!(containers.tag, 2);
        assert_eq!(containers.strategy().merge_key, Some("name"));
        assert_eq!(containers.list_type(), Some(("map", vec!["name"])));
        let volume = Type::named("io.k8s.api.core.v1.Volume").expect("Volume");
        assert!(volume.field("emptyDir").is_some(), "inlined sources are found");
        assert_eq!(volume.full_name(), "io.k8s.api.core.v1.Volume");
        assert_eq!(volume.fields().len(), 2);
    }

    #[test]
    fn normalising_is_what_go_does_between_reading_and_writing() {
        let mut object = json!({
            "spec": {"hostNetwork": false, "automountServiceAccountToken": false, "nodeName": "",
                     "containers": [{"name": "a", "env": [], "image": null}], "dnsConfig": null}
        });
        let pod = Type::named("io.k8s.api.core.v1.Pod").expect("Pod");
        pod.normalise(object.as_object_mut().expect("object"));
        assert_eq!(
            object,
            json!({
                "metadata": {},
                "spec": {"automountServiceAccountToken": false, "containers": [{"name": "a", "resources": {}}]},
                "status": {},
            })
        );
    }
}
