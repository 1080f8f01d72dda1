//! [`Fields`]: a set of places in an object, and the JSON by which `managedFields` writes it (FieldsV1).

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

/// One step from an object to a place inside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// A member of a struct or map.
    Field(String),
    /// The list item with these keys: the JSON of an object of them, sorted.
    Key(String),
    /// The item of a set: its JSON.
    Value(String),
    /// An item by its place. Nothing here writes it; stored ones are kept.
    Index(String),
}

pub(super) type Path = Vec<Step>;

/// As conflicts name it: `.spec.containers[name="c"].image`.
pub(super) struct Shown<'a>(pub &'a [Step]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in self.0 {
            match step {
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Value(json) => write!(f, "[={json}]")?,
                Step::Index(number) => write!(f, "[{number}]")?,
                Step::Key(json) => {
                    let keys: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
                    let pairs: Vec<String> =
                        keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                    write!(f, "[{}]", pairs.join(","))?;
                }
            }
        }
        Ok(())
    }
}

impl Step {
    fn to_text(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(json) => format!("k:{json}"),
            Self::Value(json) => format!("v:{json}"),
            Self::Index(number) => format!("i:{number}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "f" => Some(Self::Field(rest.to_owned())),
            "k" => Some(Self::Key(rest.to_owned())),
            "v" => Some(Self::Value(rest.to_owned())),
            "i" => Some(Self::Index(rest.to_owned())),
            _ => None,
        }
    }
}

/// A set of places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields(pub BTreeSet<Path>);

impl Fields {
    /// Reads FieldsV1. What it does not understand it leaves out.
    pub(super) fn parse(json: &Value) -> Self {
        let mut fields = Self::default();
        if let Value::Object(map) = json {
            fields.read(map, &mut Vec::new());
        }
        fields
    }

    fn read(&mut self, map: &Map<String, Value>, path: &mut Path) {
        for (name, below) in map {
            if name == "." {
                self.0.insert(path.clone());
            } else if let Some(step) = Step::parse(name) {
                path.push(step);
                match below.as_object().filter(|below| !below.is_empty()) {
                    Some(below) => self.read(below, path),
                    None => {
                        self.0.insert(path.clone());
                    }
                }
                path.pop();
            }
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut root = Map::new();
        // In order, a place comes before what is inside it.
        for path in &self.0 {
            let mut map = &mut root;
            for (depth, step) in path.iter().enumerate() {
                // What we pass through is a member itself if it has been seen as one.
                if depth > 0 && map.is_empty() && self.0.contains(&path[..depth]) {
                    map.insert(".".into(), Value::Object(Map::new()));
                }
                let below = map.entry(step.to_text()).or_insert_with(|| Value::Object(Map::new()));
                map = below.as_object_mut().expect("only objects are inserted here");
            }
        }
        Value::Object(root)
    }

    /// Whether this place, or one inside it, is in the set.
    pub(super) fn reaches(&self, path: &Path) -> bool {
        self.0.range(path.clone()..).next().is_some_and(|next| next.starts_with(path))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_json_is_upstreams() {
        let text = json!({
            "f:metadata": { "f:labels": { ".": {}, "f:app": {} } },
            "f:spec": { "f:ports": { "k:{\"port\":80,\"protocol\":\"TCP\"}": { ".": {}, "f:port": {} } },
                        "f:replicas": {} },
        });
        let fields = Fields::parse(&text);
        assert_eq!(fields.to_json(), text);
        let shown: Vec<String> = fields.0.iter().map(|path| Shown(path).to_string()).collect();
        assert_eq!(
            shown,
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port",
                ".spec.replicas",
            ]
        );
        let ports = vec![Step::Field("spec".into()), Step::Field("ports".into())];
        assert!(fields.reaches(&ports));
        assert!(!fields.reaches(&vec![Step::Field("status".into())]));
    }
}
