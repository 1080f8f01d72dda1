//! Reading JSON, YAML and already parsed values into the shape of a [`Type`]: unknown and duplicate fields are
//! found, wrong types refused with their path, quantities and times brought into their canonical form.

use std::{cell::RefCell, collections::HashSet, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::{
    quantity::Quantity,
    schema::{Shape, Type},
    time,
};

/// What to do about unknown and duplicate fields (the query parameter `fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and warn: what a server does when a client does not say.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

impl FieldValidation {
    /// The parameter's value; `None` for a word that is none of the three.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "Ignore" => Self::Ignore,
            "" | "Warn" => Self::Warn,
            "Strict" => Self::Strict,
            _ => return None,
        })
    }
}

/// Nesting deeper than this is refused: no API type comes near it, only recursive schemas do.
const MAX_DEPTH: usize = 100;
/// Complaints kept for one body; the rest would not be read by anyone.
const MAX_COMPLAINTS: usize = 100;

/// A decoded body and the unknown or duplicate fields that were dropped from it.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub object: Map<String, Value>,
    pub complaints: Vec<String>,
}

/// Reads one object of type `ty` from a deserializer; the error's text names the field.
pub(crate) fn typed<'de, D: Deserializer<'de>>(ty: &'static Type, source: D) -> Result<Decoded, D::Error> {
    let reader = Reader::default();
    let seed = ObjectSeed { reader: &reader, ty, depth: 0 };
    let value = seed.deserialize(source)?;
    let Value::Object(mut object) = value else {
        return Err(de::Error::custom(format!("expected an object of type {}", ty.go_name())));
    };
    ty.normalise(&mut object);
    Ok(Decoded { object, complaints: reader.complaints.into_inner() })
}

/// One step of the path to the value being read.
enum Step {
    /// A field of a struct, or a key of a map where there is no owner.
    Field {
        name: String,
        owner: Option<&'static Type>,
    },
    Index(usize),
}

/// What is known while reading one body.
#[derive(Default)]
struct Reader {
    path: RefCell<Vec<Step>>,
    complaints: RefCell<Vec<String>>,
}

impl Reader {
    fn enter<T>(&self, step: Step, read: impl FnOnce() -> T) -> T {
        self.path.borrow_mut().push(step);
        let result = read();
        self.path.borrow_mut().pop();
        result
    }

    /// `spec.containers[0].name`
    fn place(&self, last: &str) -> String {
        let mut text = String::new();
        for step in self.path.borrow().iter() {
            match step {
                Step::Field { name, .. } => {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.push_str(name);
                }
                Step::Index(i) => text.push_str(&format!("[{i}]")),
            }
        }
        if !text.is_empty() && !last.is_empty() {
            text.push('.');
        }
        text + last
    }

    fn complain(&self, what: &str, name: &str) {
        let mut complaints = self.complaints.borrow_mut();
        let text = format!("{what} field {:?}", self.place(name));
        if complaints.len() < MAX_COMPLAINTS && !complaints.contains(&text) {
            complaints.push(text);
        }
    }

    /// Go's words for a value of the wrong type.
    fn mismatch(&self, found: &str, wanted: &str) -> String {
        let path = self.path.borrow();
        let (mut names, mut innermost) = (String::new(), None);
        for step in path.iter() {
            if let Step::Field { name, owner: Some(owner) } = step {
                innermost = Some(owner);
                names.push('.');
                names.push_str(name);
            }
        }
        match innermost {
            Some(owner) => {
                format!(
                    "json: cannot unmarshal {found} into Go struct field {}{names} of type {wanted}",
                    owner.name()
                )
            }
            None => format!("json: cannot unmarshal {found} into Go value of type {wanted}"),
        }
    }
}

/// Reads a struct. `null` gives `Value::Null`, which normalising drops.
struct ObjectSeed<'a> {
    reader: &'a Reader,
    ty: &'static Type,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for ObjectSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        source.deserialize_any(ShapeVisitor {
            reader: self.reader,
            shape: Target::Object(self.ty),
            depth: self.depth,
        })
    }
}

struct ShapeSeed<'a> {
    reader: &'a Reader,
    shape: &'static Shape,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for ShapeSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        if matches!(self.shape, Shape::Raw) {
            return de::Deserialize::deserialize(source);
        }
        let shape = match self.shape {
            Shape::Object(index) => Target::Object(Type::at(*index)),
            other => Target::Plain(other),
        };
        source.deserialize_any(ShapeVisitor { reader: self.reader, shape, depth: self.depth })
    }
}

enum Target {
    Object(&'static Type),
    Plain(&'static Shape),
}

struct ShapeVisitor<'a> {
    reader: &'a Reader,
    shape: Target,
    depth: usize,
}

impl ShapeVisitor<'_> {
    fn wanted(&self) -> String {
        match &self.shape {
            Target::Object(ty) => ty.go_name(),
            Target::Plain(shape) => shape.go_name(),
        }
    }

    fn refuse<E: de::Error>(&self, found: &str) -> E {
        E::custom(self.reader.mismatch(found, &self.wanted()))
    }

    fn deeper<E: de::Error>(&self) -> Result<usize, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format!(
                "{}: nested more than {MAX_DEPTH} levels deep",
                self.reader.place("")
            )));
        }
        Ok(self.depth + 1)
    }

    fn integer<E: de::Error>(&self, value: i128) -> Result<Value, E> {
        let out_of_range = || self.refuse(&format!("number {value}"));
        Ok(match &self.shape {
            Target::Plain(Shape::Int32 | Shape::IntOrString) => {
                i32::try_from(value).map_err(|_| out_of_range())?.into()
            }
            Target::Plain(Shape::Int64 | Shape::Duration) => {
                i64::try_from(value).map_err(|_| out_of_range())?.into()
            }
            Target::Plain(Shape::Float64) => (value as f64).into(),
            Target::Plain(Shape::Quantity) => self.quantity(&value.to_string())?,
            _ => return Err(self.refuse("number")),
        })
    }

    fn quantity<E: de::Error>(&self, text: &str) -> Result<Value, E> {
        let parsed: Quantity = text.parse().map_err(|e| {
            E::custom(format!("{}: {e}", self.reader.mismatch(&format!("{text:?}"), "resource.Quantity")))
        })?;
        Ok(Value::String(parsed.to_string()))
    }
}

impl<'de> Visitor<'de> for ShapeVisitor<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of type {}", self.wanted())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        source.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        match &self.shape {
            Target::Plain(Shape::Bool) => Ok(Value::Bool(value)),
            _ => Err(self.refuse("bool")),
        }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.integer(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.integer(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        match &self.shape {
            Target::Plain(Shape::Float64) => Ok(value.into()),
            Target::Plain(Shape::Quantity) => self.quantity(&value.to_string()),
            Target::Plain(Shape::Int32 | Shape::Int64) => Err(self.refuse(&format!("number {value}"))),
            _ => Err(self.refuse("number")),
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        let invalid = |e: time::ParseError| E::custom(format!("{}: {e}", self.reader.place("")));
        match &self.shape {
            Target::Plain(Shape::String | Shape::IntOrString | Shape::Duration) => Ok(text.into()),
            Target::Plain(Shape::Quantity) => self.quantity(text),
            Target::Plain(Shape::Time) => Ok(time::parse(text).map(time::seconds).map_err(invalid)?.into()),
            Target::Plain(Shape::MicroTime) => {
                Ok(time::parse(text).map(time::micros).map_err(invalid)?.into())
            }
            Target::Plain(Shape::Bytes) => {
                crate::base64_bytes(text)
                    .map_err(|e| E::custom(format!("{}: illegal base64 data: {e}", self.reader.place(""))))?;
                Ok(text.into())
            }
            _ => Err(self.refuse("string")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let depth = self.deeper()?;
        static NAME: Shape = Shape::String;
        let shape: &'static Shape = match &self.shape {
            Target::Plain(Shape::List(item)) => item,
            Target::Plain(Shape::Names) => &NAME,
            _ => return Err(self.refuse("array")),
        };
        let mut list = Vec::new();
        loop {
            let seed = ShapeSeed { reader: self.reader, shape, depth };
            let step = Step::Index(list.len());
            match self.reader.enter(step, || items.next_element_seed(seed))? {
                // Go reads a null item as an empty one.
                Some(Value::Null) if matches!(shape, Shape::Object(_)) => {
                    list.push(Value::Object(Map::new()))
                }
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let depth = self.deeper()?;
        let mut object = Map::new();
        let mut seen = HashSet::new();
        while let Some(name) = entries.next_key::<String>()? {
            let (shape, owner) = match &self.shape {
                Target::Object(ty) => match ty.field(&name) {
                    Some(field) => (&field.shape, Some(*ty)),
                    None => {
                        self.reader.complain("unknown", &name);
                        entries.next_value::<IgnoredAny>()?;
                        continue;
                    }
                },
                Target::Plain(Shape::Map(item)) => (item.as_ref(), None),
                Target::Plain(_) => return Err(self.refuse("object")),
            };
            if !seen.insert(name.clone()) {
                self.reader.complain("duplicate", &name);
            }
            let seed = ShapeSeed { reader: self.reader, shape, depth };
            let step = Step::Field { name: name.clone(), owner };
            let value = self.reader.enter(step, || entries.next_value_seed(seed))?;
            object.insert(name, value);
        }
        if matches!(&self.shape, Target::Plain(s) if !matches!(s, Shape::Map(_))) {
            return Err(self.refuse("object"));
        }
        Ok(Value::Object(object))
    }
}
