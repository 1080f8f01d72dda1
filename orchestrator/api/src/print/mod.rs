//! Server-side printing: `meta.k8s.io/v1 Table` objects with the columns that `kubectl get` shows. Columns of
//! priority 1 are those of `-o wide`; the client leaves them out otherwise.

use serde_json::{Map, Value, json};

use crate::kind::Kind;

pub(crate) mod duration;

pub use jiff::Timestamp as Now;

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`.
    pub kind: &'static str,
    /// `name` for the column that identifies the object.
    pub format: &'static str,
    /// 0 always, 1 with `-o wide`.
    pub priority: u8,
}

/// What each row carries beside its cells (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// The query parameter's value.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "" | "Metadata" => Self::Metadata,
            "None" => Self::None,
            "Object" => Self::Object,
            _ => return None,
        })
    }
}

impl Column {
    pub(crate) const fn text(name: &'static str) -> Self {
        Self { name, kind: "string", format: "", priority: 0 }
    }

    pub(crate) const fn number(name: &'static str) -> Self {
        Self { kind: "integer", ..Self::text(name) }
    }

    pub(crate) const fn wide(name: &'static str) -> Self {
        Self { priority: 1, ..Self::text(name) }
    }

    fn definition(&self) -> Value {
        json!({
            "name": self.name, "type": self.kind, "format": self.format, "priority": self.priority,
            "description": if self.format == "name" {
                "Name must be unique within a namespace."
            } else {
                ""
            },
        })
    }
}

pub(crate) const NAME: Column = Column { name: "Name", kind: "string", format: "name", priority: 0 };
pub(crate) const AGE: Column = Column::text("Age");
pub(crate) const NAME_AND_AGE: &[Column] = &[NAME, AGE];

pub(crate) fn name_and_age(object: &Value, now: Now) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

/// The Table of these objects; the caller adds the list's metadata.
pub(crate) fn table(kind: &Kind, objects: &[Value], now: Now, include: IncludeObject) -> Value {
    let columns: Vec<Value> = kind.hooks.columns.iter().map(Column::definition).collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut row = Map::new();
            row.insert("cells".into(), (kind.hooks.row)(object, now).into());
            match include {
                IncludeObject::None => {}
                IncludeObject::Metadata => {
                    row.insert("object".into(), partial_metadata(object));
                }
                IncludeObject::Object => {
                    row.insert("object".into(), object.clone());
                }
            }
            Value::Object(row)
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {},
        "columnDefinitions": columns, "rows": rows,
    })
}

/// An object reduced to its metadata (`PartialObjectMetadata`).
pub fn partial_metadata(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

pub(crate) fn name(object: &Value) -> Value {
    object["metadata"]["name"].as_str().unwrap_or_default().into()
}

/// Time since creation.
pub(crate) fn age(object: &Value, now: Now) -> Value {
    since(&object["metadata"]["creationTimestamp"], now).into()
}

/// Time since a point in time, `<unknown>` where there is none.
pub(crate) fn since(at: &Value, now: Now) -> String {
    match at.as_str().map(crate::time::parse) {
        Some(Ok(at)) => duration::human(now.as_second() - at.as_second()),
        _ => "<unknown>".to_owned(),
    }
}

/// A text, or what upstream shows where it is empty.
pub(crate) fn text_or(value: &Value, empty: &str) -> Value {
    match value.as_str() {
        Some(text) if !text.is_empty() => text.into(),
        _ => empty.into(),
    }
}

pub(crate) fn integer(value: &Value) -> Value {
    value.as_i64().unwrap_or(0).into()
}
