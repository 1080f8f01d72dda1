//! `/openapi/v2` as protobuf (`com.github.proto-openapi.spec.v2@v1.0+protobuf`): the swagger document again, written
//! by tables of the messages in gnostic's `openapiv2/OpenAPIv2.proto`, as far as the document uses them.

use serde_json::Value;

/// How a member of a JSON object is carried.
enum Shape {
    Text,
    Flag,
    /// Repeated strings; JSON may give one alone.
    Texts,
    /// A message that holds repeated strings (`TypeItem`).
    Type,
    /// Any value, as YAML: JSON is YAML.
    Any,
    Message(&'static Message),
    /// Repeated messages.
    Messages(&'static Message),
    /// A message whose field 1 is the real one (`ItemsItem`, `AdditionalPropertiesItem`, `SchemaItem`).
    Inner(&'static Message),
    /// A message whose field of this number repeats pairs of a name and a message.
    Named(u32, &'static Message),
    /// The same, each message inside field 1 of another (`NamedResponseValue`, `NamedSecurityDefinitionsItem`).
    NamedInner(u32, u32, &'static Message),
    /// Lists of parameters, each of a type that depends on where it is.
    Parameters,
    /// `SecurityRequirement`s: maps of lists of strings.
    Security,
}

/// The members of a message, with their numbers; `x-…` members go to the number of the extensions.
struct Message {
    members: &'static [(&'static str, u32, Shape)],
    extensions: u32,
}

static DOCUMENT: Message = Message {
    members: &[
        ("swagger", 1, Shape::Text),
        ("info", 2, Shape::Message(&INFO)),
        ("paths", 8, Shape::Named(2, &PATH)),
        ("definitions", 9, Shape::Named(1, &SCHEMA)),
        ("security", 12, Shape::Security),
        // `SecurityDefinitionsItem` has the kinds of security as alternatives; an API key is the second.
        ("securityDefinitions", 13, Shape::NamedInner(1, 2, &API_KEY)),
    ],
    extensions: 16,
};
static INFO: Message =
    Message { members: &[("title", 1, Shape::Text), ("version", 2, Shape::Text)], extensions: 7 };
static API_KEY: Message = Message {
    members: &[
        ("type", 1, Shape::Text),
        ("name", 2, Shape::Text),
        ("in", 3, Shape::Text),
        ("description", 4, Shape::Text),
    ],
    extensions: 5,
};
static PATH: Message = Message {
    members: &[
        ("get", 2, Shape::Message(&OPERATION)),
        ("put", 3, Shape::Message(&OPERATION)),
        ("post", 4, Shape::Message(&OPERATION)),
        ("delete", 5, Shape::Message(&OPERATION)),
        ("patch", 8, Shape::Message(&OPERATION)),
        ("parameters", 9, Shape::Parameters),
    ],
    extensions: 10,
};
static OPERATION: Message = Message {
    members: &[
        ("tags", 1, Shape::Texts),
        ("operationId", 5, Shape::Text),
        ("produces", 6, Shape::Texts),
        ("consumes", 7, Shape::Texts),
        ("parameters", 8, Shape::Parameters),
        ("responses", 9, Shape::NamedInner(1, 1, &RESPONSE)),
        ("schemes", 10, Shape::Texts),
    ],
    extensions: 13,
};
static RESPONSE: Message = Message {
    members: &[("description", 1, Shape::Text), ("schema", 2, Shape::Inner(&SCHEMA))],
    extensions: 5,
};
static BODY_PARAMETER: Message = Message {
    members: &[
        ("description", 1, Shape::Text),
        ("name", 2, Shape::Text),
        ("in", 3, Shape::Text),
        ("required", 4, Shape::Flag),
        ("schema", 5, Shape::Message(&SCHEMA)),
    ],
    extensions: 6,
};
static QUERY_PARAMETER: Message = Message {
    members: &[
        ("required", 1, Shape::Flag),
        ("in", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("name", 4, Shape::Text),
        ("type", 6, Shape::Text),
        ("uniqueItems", 20, Shape::Flag),
    ],
    extensions: 23,
};
static PATH_PARAMETER: Message = Message {
    members: &[
        ("required", 1, Shape::Flag),
        ("in", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("name", 4, Shape::Text),
        ("type", 5, Shape::Text),
        ("uniqueItems", 19, Shape::Flag),
    ],
    extensions: 22,
};
static SCHEMA: Message = Message {
    members: &[
        ("$ref", 1, Shape::Text),
        ("format", 2, Shape::Text),
        ("title", 3, Shape::Text),
        ("description", 4, Shape::Text),
        ("default", 5, Shape::Any),
        ("required", 19, Shape::Texts),
        ("additionalProperties", 21, Shape::Inner(&SCHEMA)),
        ("type", 22, Shape::Type),
        ("items", 23, Shape::Inner(&SCHEMA)),
        ("allOf", 24, Shape::Messages(&SCHEMA)),
        ("properties", 25, Shape::Named(1, &SCHEMA)),
    ],
    extensions: 31,
};

/// The swagger document in bytes.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    DOCUMENT.encode(document)
}

impl Message {
    fn encode(&self, value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in value.as_object().into_iter().flatten() {
            if name.starts_with("x-") {
                let any = field(1, name.as_bytes()).into_iter().chain(field(2, &any(value)));
                out.extend(field(self.extensions, &any.collect::<Vec<u8>>()));
            } else if let Some((_, number, shape)) = self.members.iter().find(|(known, ..)| known == name) {
                shape.encode(*number, value, &mut out);
            }
        }
        out
    }
}

impl Shape {
    fn encode(&self, number: u32, value: &Value, out: &mut Vec<u8>) {
        let pair = |name: &str, message: &[u8]| [field(1, name.as_bytes()), field(2, message)].concat();
        let members = || value.as_object().into_iter().flatten();
        match self {
            Self::Text => out.extend(field(number, value.as_str().unwrap_or_default().as_bytes())),
            Self::Flag => {
                varint(u64::from(number) << 3, out);
                out.push(u8::from(value == true));
            }
            Self::Texts => texts(number, value, out),
            Self::Type => {
                let mut inner = Vec::new();
                texts(1, value, &mut inner);
                out.extend(field(number, &inner));
            }
            Self::Any => out.extend(field(number, &any(value))),
            Self::Message(message) => out.extend(field(number, &message.encode(value))),
            Self::Messages(message) => {
                for item in value.as_array().into_iter().flatten() {
                    out.extend(field(number, &message.encode(item)));
                }
            }
            Self::Inner(message) => out.extend(field(number, &field(1, &message.encode(value)))),
            Self::Named(repeated, message) => {
                let pairs =
                    members().flat_map(|(name, item)| field(*repeated, &pair(name, &message.encode(item))));
                out.extend(field(number, &pairs.collect::<Vec<u8>>()));
            }
            Self::NamedInner(repeated, alternative, message) => {
                let inner = |item: &Value| field(*alternative, &message.encode(item));
                let pairs = members().flat_map(|(name, item)| field(*repeated, &pair(name, &inner(item))));
                out.extend(field(number, &pairs.collect::<Vec<u8>>()));
            }
            Self::Parameters => {
                for item in value.as_array().into_iter().flatten() {
                    out.extend(field(number, &field(1, &parameter(item))));
                }
            }
            Self::Security => {
                for item in value.as_array().into_iter().flatten() {
                    let names = item.as_object().into_iter().flatten();
                    let pairs = names.flat_map(|(name, scopes)| {
                        let mut list = Vec::new();
                        texts(1, scopes, &mut list);
                        field(1, &pair(name, &list))
                    });
                    out.extend(field(number, &pairs.collect::<Vec<u8>>()));
                }
            }
        }
    }
}

/// `Parameter`: a body, or one of several kinds of others.
fn parameter(value: &Value) -> Vec<u8> {
    match value["in"].as_str() {
        Some("body") => field(1, &BODY_PARAMETER.encode(value)),
        Some("path") => field(2, &field(4, &PATH_PARAMETER.encode(value))),
        _ => field(2, &field(3, &QUERY_PARAMETER.encode(value))),
    }
}

fn texts(number: u32, value: &Value, out: &mut Vec<u8>) {
    let alone = std::slice::from_ref(value);
    for text in value.as_array().map_or(alone, Vec::as_slice) {
        out.extend(field(number, text.as_str().unwrap_or_default().as_bytes()));
    }
}

/// `Any`, whose second field is YAML.
fn any(value: &Value) -> Vec<u8> {
    field(2, value.to_string().as_bytes())
}

/// A field that has a length.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    varint(u64::from(number) << 3 | 2, &mut out);
    varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_small_document_byte_for_byte() {
        let document = json!({
            "swagger": "2.0",
            "definitions": { "A": { "type": "object", "x-y": [1], "properties": { "b": { "$ref": "#/B" } } } },
        });
        let schema = [
            b"\xb2\x01\x08\x0a\x06object".as_slice(),
            b"\xfa\x01\x0c\x0a\x03x-y\x12\x05\x12\x03[1]",
            b"\xca\x01\x0c\x0a\x0a\x0a\x01b\x12\x05\x0a\x03#/B",
        ]
        .concat();
        assert_eq!(schema.len(), 11 + 15 + 15);
        let expect = [b"\x0a\x032.0\x4a\x30\x0a\x2e\x0a\x01A\x12\x29".as_slice(), &schema].concat();
        assert_eq!(encode(&document), expect);
    }

    #[test]
    fn every_member_of_the_document_is_known() {
        fn check(message: &Message, value: &Value, at: &str) {
            for (name, value) in
                value.as_object().into_iter().flatten().filter(|(name, _)| !name.starts_with("x-"))
            {
                let known = message.members.iter().find(|(known, ..)| known == name);
                let Some((_, _, shape)) = known else { panic!("{at}: {name} is not carried") };
                let each = |message: &Message, value: &Value| {
                    for (name, item) in value.as_object().into_iter().flatten() {
                        check(message, item, &format!("{at}.{name}"));
                    }
                };
                match shape {
                    Shape::Message(message) | Shape::Inner(message) => {
                        check(message, value, &format!("{at}.{name}"))
                    }
                    Shape::Named(_, message) | Shape::NamedInner(_, _, message) => each(message, value),
                    _ => {}
                }
            }
        }
        check(&DOCUMENT, &super::super::swagger(), "");
    }
}
