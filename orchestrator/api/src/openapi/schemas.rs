//! The schema of each type: structure from the table, words from k8s-openapi.

use std::collections::BTreeMap;

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{META, paths::Dialect};
use crate::{
    discovery::groups,
    kind::Kind,
    schema::{Field, Shape, Type},
};

/// Puts a kind's type, and all types below it, into a generator.
pub type Register = fn(&mut SchemaGenerator);

/// The [`Register`] of a type of k8s-openapi.
pub(crate) fn describe<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// For the few types that k8s-openapi does not have.
pub(crate) fn undescribed(_: &mut SchemaGenerator) {}

/// What k8s-openapi says about types, by full name.
pub(super) struct Descriptions(Map<String, Value>);

impl Descriptions {
    pub(super) fn of(members: &[&Kind]) -> Self {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
        let mut generator = SchemaGenerator::new(SchemaSettings::default());
        for kind in members {
            (kind.describe)(&mut generator);
            for sub in kind.subresources {
                if let Some(body) = crate::find_kind(sub.group, sub.version, sub.kind) {
                    (body.describe)(&mut generator);
                }
            }
        }
        describe::<meta::DeleteOptions>(&mut generator);
        describe::<meta::Status>(&mut generator);
        describe::<meta::ListMeta>(&mut generator);
        describe::<meta::APIResourceList>(&mut generator);
        Self(generator.take_definitions(false))
    }

    fn of_type(&self, name: &str) -> Option<&str> {
        self.0.get(name)?["description"].as_str()
    }

    fn of_property(&self, name: &str, property: &str) -> Option<&str> {
        self.0.get(name)?["properties"][property]["description"].as_str()
    }

    fn required(&self, name: &str) -> Option<Value> {
        self.0.get(name)?.get("required").cloned()
    }
}

/// The schemas of one document, collected from its kinds downwards.
pub(super) struct Schemas<'a> {
    dialect: Dialect,
    descriptions: &'a Descriptions,
    done: BTreeMap<String, Value>,
    waiting: Vec<&'static Type>,
}

impl<'a> Schemas<'a> {
    pub(super) fn new(dialect: Dialect, descriptions: &'a Descriptions) -> Self {
        Self { dialect, descriptions, done: BTreeMap::new(), waiting: Vec::new() }
    }

    pub(super) fn add_kind(&mut self, kind: &Kind) {
        let mark = |schemas: &mut Self, ty: &'static Type, name: &str| {
            schemas.add_type(ty);
            schemas.done.entry(ty.full_name()).and_modify(|schema| {
                schema["x-kubernetes-group-version-kind"] =
                    json!([{"group": kind.group, "kind": name, "version": kind.version}]);
            });
        };
        mark(self, kind.schema(), kind.kind);
        if let Some(list) = Type::find(kind.package, &kind.list_kind()).filter(|_| kind.is_stored()) {
            mark(self, list, &kind.list_kind());
        }
    }

    pub(super) fn add_type(&mut self, ty: &'static Type) {
        self.waiting.push(ty);
        while let Some(ty) = self.waiting.pop() {
            let name = ty.full_name();
            if !self.done.contains_key(&name) {
                let schema = self.object(ty, &name);
                self.done.insert(name, schema);
            }
        }
    }

    /// `Patch` has no fields: any JSON object.
    pub(super) fn add_patch(&mut self) {
        let description =
            "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body.";
        self.done.insert(format!("{META}.Patch"), json!({"description": description, "type": "object"}));
    }

    pub(super) fn finish(mut self) -> Map<String, Value> {
        if let Some(options) = self.done.get_mut(&format!("{META}.DeleteOptions")) {
            let everywhere = groups().into_iter().flat_map(|(group, versions)| {
                versions
                    .into_iter()
                    .map(move |v| json!({"group": group, "kind": "DeleteOptions", "version": v}))
            });
            options["x-kubernetes-group-version-kind"] = everywhere.collect();
        }
        self.done.into_iter().collect()
    }

    fn object(&mut self, ty: &'static Type, name: &str) -> Value {
        let mut properties = BTreeMap::new();
        for field in ty.flat_fields() {
            let property = self.property(field, self.descriptions.of_property(name, field.name));
            properties.insert(field.name, property);
        }
        let mut schema = json!({"type": "object"});
        if let Some(text) = self.descriptions.of_type(name) {
            schema["description"] = text.into();
        }
        if !properties.is_empty() {
            schema["properties"] = json!(properties);
        }
        if let Some(required) = self.descriptions.required(name) {
            schema["required"] = required;
        }
        if ty.is_atomic() {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        schema
    }

    fn property(&mut self, field: &'static Field, description: Option<&str>) -> Value {
        let mut schema = self.shape(&field.shape);
        let set = |schema: &mut Value, name: &str, value: Value| {
            if let Value::Object(map) = schema {
                map.insert(name.to_owned(), value);
            }
        };
        if schema.get("$ref").is_some() && self.dialect == Dialect::V3 {
            // Beside a reference nothing else counts in OpenAPI 3.0.
            let default = matches!(field.shape, Shape::Object(_)) && !field.pointer;
            schema = json!({"allOf": [schema]});
            if default {
                set(&mut schema, "default", json!({}));
            }
        }
        if let Some(text) = description {
            set(&mut schema, "description", text.into());
        }
        if let Some((kind, keys)) = field.list_type() {
            set(&mut schema, "x-kubernetes-list-type", kind.into());
            if !keys.is_empty() {
                set(&mut schema, "x-kubernetes-list-map-keys", json!(keys));
            }
        }
        if field.is_atomic_map() {
            set(&mut schema, "x-kubernetes-map-type", "atomic".into());
        }
        let strategy = field.strategy();
        let words: Vec<&str> = [(strategy.merge, "merge"), (strategy.retain_keys, "retainKeys")]
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, w)| *w)
            .collect();
        if !words.is_empty() {
            set(&mut schema, "x-kubernetes-patch-strategy", words.join(",").into());
        }
        if let Some(key) = strategy.merge_key {
            set(&mut schema, "x-kubernetes-patch-merge-key", key.into());
        }
        schema
    }

    fn shape(&mut self, shape: &'static Shape) -> Value {
        match shape {
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Float64 => json!({"type": "number", "format": "double"}),
            Shape::String | Shape::Duration => json!({"type": "string"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Names => json!({"type": "array", "items": {"type": "string"}}),
            Shape::Time => self.special(&format!("{META}.Time")),
            Shape::MicroTime => self.special(&format!("{META}.MicroTime")),
            Shape::Quantity => self.special("io.k8s.apimachinery.pkg.api.resource.Quantity"),
            Shape::IntOrString => self.special("io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
            Shape::Raw => self.special("io.k8s.apimachinery.pkg.runtime.RawExtension"),
            Shape::Object(index) => {
                let ty = Type::at(*index);
                self.waiting.push(ty);
                self.reference(&ty.full_name())
            }
            Shape::List(item) => json!({"type": "array", "items": self.shape(item)}),
            Shape::Map(item) => json!({"type": "object", "additionalProperties": self.shape(item)}),
        }
    }

    fn reference(&self, name: &str) -> Value {
        json!({"$ref": format!("{}{name}", self.dialect.references())})
    }

    /// Types that are no structs in JSON.
    fn special(&mut self, name: &str) -> Value {
        if !self.done.contains_key(name) {
            let v3 = self.dialect == Dialect::V3;
            let mut schema = match name.rsplit('.').next().unwrap_or_default() {
                "Time" | "MicroTime" => json!({"type": "string", "format": "date-time"}),
                "Quantity" if v3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
                "Quantity" => json!({"type": "string"}),
                "IntOrString" if v3 => {
                    json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
                }
                "IntOrString" => json!({"type": "string", "format": "int-or-string"}),
                _ => json!({"type": "object"}),
            };
            if let Some(text) = self.descriptions.of_type(name) {
                schema["description"] = text.into();
            }
            self.done.insert(name.to_owned(), schema);
        }
        self.reference(name)
    }
}
