//! [`Parts`]: reads only some members of a JSON text. The rest is passed over without being built: selectors look
//! at a label or a field of thousands of objects.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

/// Which members of an object, and of those within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    Whole,
    Members(Vec<(String, Parts)>),
}

impl Parts {
    /// What these paths (`metadata.labels`, `spec.nodeName`) lead to.
    pub(crate) fn at<'a>(paths: impl Iterator<Item = &'a str>) -> Self {
        let mut parts = Self::Members(Vec::new());
        for path in paths {
            let mut here = &mut parts;
            for step in path.split('.') {
                // A shorter path has asked for all that is below already.
                let Self::Members(members) = here else { break };
                let known = members.iter().position(|(name, _)| name == step);
                let index = known.unwrap_or_else(|| {
                    members.push((step.to_owned(), Self::Members(Vec::new())));
                    members.len() - 1
                });
                here = &mut members[index].1;
            }
            *here = Self::Whole;
        }
        parts
    }

    /// The text with only these parts; what is no object on the way to one reads as null.
    pub(crate) fn read(&self, json: &[u8]) -> serde_json::Result<Value> {
        let mut source = serde_json::Deserializer::from_slice(json);
        let value = self.deserialize(&mut source)?;
        source.end().map(|()| value)
    }
}

impl<'de> DeserializeSeed<'de> for &Parts {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        match self {
            Parts::Whole => Value::deserialize(source),
            Parts::Members(members) => source.deserialize_any(Members(members)),
        }
    }
}

struct Members<'a>(&'a [(String, Parts)]);

impl<'de> Visitor<'de> for Members<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(member) = source.next_key_seed(Name(self.0))? {
            match member {
                Some((name, parts)) => drop(object.insert(name.clone(), source.next_value_seed(parts)?)),
                None => drop(source.next_value::<IgnoredAny>()?),
            }
        }
        Ok(object.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Value, A::Error> {
        while source.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// Finds a member's name among those that are wanted.
struct Name<'a>(&'a [(String, Parts)]);

impl<'a, 'de> DeserializeSeed<'de> for Name<'a> {
    type Value = Option<&'a (String, Parts)>;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Self::Value, D::Error> {
        source.deserialize_str(self)
    }
}

impl<'a, 'de> Visitor<'de> for Name<'a> {
    type Value = Option<&'a (String, Parts)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a member")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|(wanted, _)| wanted == name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_wanted_is_read() {
        let object = json!({
            "kind": "Pod", "metadata": {"name": "a", "labels": {"a.b/c": "x", "d": "y"}, "generation": 3},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}], "hostNetwork": true}, "status": null,
        });
        let cases: [(&str, &[&str], Value); 6] = [
            ("nothing", &[], json!({})),
            ("a field", &["spec.nodeName"], json!({"spec": {"nodeName": "n"}})),
            (
                "labels and fields",
                &["metadata.labels", "metadata.name", "spec.nodeName"],
                json!({
                    "metadata": {"name": "a", "labels": {"a.b/c": "x", "d": "y"}}, "spec": {"nodeName": "n"},
                }),
            ),
            ("a path within another", &["spec", "spec.nodeName"], json!({"spec": object["spec"].clone()})),
            ("what is absent", &["status.phase", "x.y"], json!({"status": null})),
            (
                "what is no object",
                &["kind.x", "metadata.generation.x", "spec.containers.x", "spec.hostNetwork.x"],
                json!({
                    "kind": null, "metadata": {"generation": null},
                    "spec": {"containers": null, "hostNetwork": null},
                }),
            ),
        ];
        for (name, paths, expect) in cases {
            let parts = Parts::at(paths.iter().copied());
            assert_eq!(parts.read(object.to_string().as_bytes()).expect("JSON"), expect, "{name}");
        }
        assert!(Parts::at(["a"].into_iter()).read(b"{\"b\":1").is_err(), "a text that ends early");
    }
}
