//! Label and field selectors: kubectl's syntax, and the `LabelSelector` objects of workloads.

use std::fmt;

use serde_json::Value;

use crate::names;

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `a=b` (one value) or `a in (b, c)`.
    In(Vec<String>),
    /// `a!=b` or `a notin (b, c)`; also holds where the label is missing.
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

/// Conditions that must all hold; none at all matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// A `LabelSelector` object that was absent selects nothing.
    nothing: bool,
}

/// Why a selector cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (f,g),!h,i>5`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut parser = Parser { rest: text, whole: text };
        let mut requirements = Vec::new();
        loop {
            parser.skip_space();
            if parser.rest.is_empty() {
                break;
            }
            requirements.push(parser.requirement()?);
            parser.skip_space();
            if !parser.rest.is_empty() && !parser.take(",") {
                return Err(parser
                    .error(&format!("found '{}', expected: ',' or 'end of string'", parser.peek_word())));
            }
            if parser.rest.is_empty() && text.trim_end().ends_with(',') {
                return Err(parser.error("found '', expected: identifier after ','"));
            }
        }
        Ok(Self { requirements, nothing: false })
    }

    /// A `metav1.LabelSelector` object; absent selects nothing, empty everything.
    pub fn from_object(object: &Value) -> Result<Self, ParseError> {
        let Value::Object(object) = object else {
            return Ok(Self { requirements: Vec::new(), nothing: true });
        };
        let mut requirements = Self::from_map(object.get("matchLabels").unwrap_or(&Value::Null)).requirements;
        for expression in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let values = || -> Vec<String> {
                expression["values"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|v| v.as_str().map(str::to_owned))
                    .collect()
            };
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In(values()),
                "NotIn" => Operator::NotIn(values()),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(ParseError(format!("{other:?} is not a valid label selector operator"))),
            };
            requirements.push(Requirement { key, operator });
        }
        Ok(Self { requirements, nothing: false })
    }

    /// A map of labels that must be present with these values (Services, ReplicationControllers).
    pub fn from_map(labels: &Value) -> Self {
        let requirements = labels
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In(vec![value.as_str().unwrap_or_default().to_owned()]),
            })
            .collect();
        Self { requirements, nothing: false }
    }

    /// Whether an object's `metadata.labels` (or any map of labels, or null) fulfil it.
    pub fn matches(&self, labels: &Value) -> bool {
        !self.nothing
            && self.requirements.iter().all(|r| r.matches(labels.get(&r.key).and_then(Value::as_str)))
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let compared = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Operator::NotIn(values) => value.is_none_or(|v| !values.iter().any(|x| x == v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(bound) => compared().is_some_and(|v| v > *bound),
            Operator::LessThan(bound) => compared().is_some_and(|v| v < *bound),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.operator {
            Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0]),
            Operator::In(values) => write!(f, "{key} in ({})", values.join(",")),
            Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(",")),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan(bound) => write!(f, "{key}>{bound}"),
            Operator::LessThan(bound) => write!(f, "{key}<{bound}"),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            write!(f, "{}{requirement}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// How tables show a `LabelSelector` object: sorted by key, as upstream.
pub fn format_label_selector(object: &Value) -> String {
    match LabelSelector::from_object(object) {
        Ok(mut selector) => {
            selector.requirements.sort_by(|a, b| a.key.cmp(&b.key));
            for requirement in &mut selector.requirements {
                if let Operator::In(values) | Operator::NotIn(values) = &mut requirement.operator {
                    values.sort();
                }
            }
            selector.to_string()
        }
        Err(_) => "<error>".to_owned(),
    }
}

/// How tables show a map of labels.
pub fn format_set(labels: &Value) -> String {
    let mut pairs: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    pairs.join(",")
}

struct Parser<'a> {
    rest: &'a str,
    whole: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self) -> &'a str {
        let word = self.peek_word();
        self.rest = &self.rest[word.len()..];
        word
    }

    fn peek_word(&self) -> &'a str {
        let end =
            self.rest.find(|c: char| c.is_whitespace() || ",()=!<>".contains(c)).unwrap_or(self.rest.len());
        &self.rest[..end]
    }

    fn error(&self, why: &str) -> ParseError {
        ParseError(format!("unable to parse requirement: {why} in selector {:?}", self.whole))
    }

    fn requirement(&mut self) -> Result<Requirement, ParseError> {
        let negated = self.take("!");
        self.skip_space();
        let key = self.word().to_owned();
        if key.is_empty() {
            return Err(
                self.error(&format!("found '{}', expected: !, identifier, or 'end of string'", self.rest))
            );
        }
        if let Some(problem) = names::qualified(&key).first() {
            return Err(ParseError(format!(
                "unable to parse requirement: <nil>: Invalid value: {key:?}: {problem}"
            )));
        }
        self.skip_space();
        let operator = if negated {
            Operator::DoesNotExist
        } else if self.rest.is_empty() || self.rest.starts_with(',') {
            Operator::Exists
        } else if self.take("==") || self.take("=") {
            Operator::In(vec![self.value()?])
        } else if self.take("!=") {
            Operator::NotIn(vec![self.value()?])
        } else if self.take(">") {
            Operator::GreaterThan(self.number()?)
        } else if self.take("<") {
            Operator::LessThan(self.number()?)
        } else {
            match self.word() {
                "in" => Operator::In(self.values()?),
                "notin" => Operator::NotIn(self.values()?),
                other => {
                    return Err(
                        self.error(&format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt"))
                    );
                }
            }
        };
        Ok(Requirement { key, operator })
    }

    fn value(&mut self) -> Result<String, ParseError> {
        self.skip_space();
        let value = self.word();
        self.check_value(value)
    }

    fn check_value(&self, value: &str) -> Result<String, ParseError> {
        match names::label_value(value).first() {
            Some(problem) => Err(ParseError(format!(
                "unable to parse requirement: values[0][]: Invalid value: {value:?}: {problem}"
            ))),
            None => Ok(value.to_owned()),
        }
    }

    fn number(&mut self) -> Result<i64, ParseError> {
        self.skip_space();
        let word = self.word();
        word.parse().map_err(|_| {
            self.error(&format!("{word:?}: for 'Gt', 'Lt' operators, the value must be an integer"))
        })
    }

    fn values(&mut self) -> Result<Vec<String>, ParseError> {
        self.skip_space();
        if !self.take("(") {
            return Err(self.error(&format!("found '{}', expected: '('", self.rest)));
        }
        let mut values = Vec::new();
        loop {
            let value = self.value()?;
            self.skip_space();
            values.push(value);
            if self.take(")") {
                break;
            }
            if !self.take(",") {
                return Err(self.error(&format!("found '{}', expected: ',' or ')'", self.rest)));
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

/// A field selector: `status.phase=Running,metadata.name!=x`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub path: String,
    pub value: String,
    /// `!=`
    pub negated: bool,
}

impl FieldSelector {
    /// Parses kubectl's syntax; `\`, `,` and `=` in values are escaped by a backslash.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.trim().is_empty() {
                continue;
            }
            let invalid = || ParseError(format!("invalid selector: '{text}'; can't understand '{part}'"));
            let (path, value, negated) = if let Some((path, value)) = part.split_once("!=") {
                (path, value, true)
            } else if let Some((path, value)) = part.split_once("==") {
                (path, value, false)
            } else {
                let (path, value) = part.split_once('=').ok_or_else(invalid)?;
                (path, value, false)
            };
            terms.push(FieldTerm {
                path: path.trim().to_owned(),
                value: unescape(value).ok_or_else(invalid)?,
                negated,
            });
        }
        Ok(Self { terms })
    }

    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// The value that `path` has to have, if the selector says so: lets a list go straight to one object.
    pub fn required(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.path == path && !t.negated).map(|t| t.value.as_str())
    }

    /// `field` gives an object's value of a path, such as [`crate::Kind::selectable_field`].
    pub fn matches(&self, field: impl Fn(&str) -> Option<String>) -> bool {
        self.terms.iter().all(|t| field(&t.path).is_some_and(|v| (v == t.value) != t.negated))
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next().filter(|c| matches!(c, '\\' | ',' | '='))?),
            '=' | ',' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors_select_as_kubectl_expects() {
        let labels = json!({"app": "web", "tier": "front", "level": "5", "empty": ""});
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (web, db)", true),
            ("app notin (web)", false),
            ("missing notin (web)", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("level>4", true),
            ("level<5", false),
            ("empty=", true),
            ("empty in (,a)", true),
            ("app in(web),tier", true),
            (" app = web , tier ", true),
        ] {
            let selector = LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
            assert_eq!(selector.matches(&labels), expected, "{text:?}");
            let again = LabelSelector::parse(&selector.to_string()).expect("what it prints");
            assert_eq!(again.matches(&labels), expected, "{text:?} printed as {selector}");
        }
        for text in
            ["app=web,", "=", "app in web", "app in (web", "a b", "a>x", "-a=b", "a=b c", "a==b==c", ","]
        {
            assert!(LabelSelector::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn selector_objects_differ_when_absent_and_when_empty() {
        let labels = json!({"a": "1"});
        for (object, expected) in [
            (json!(null), false),
            (json!({}), true),
            (json!({"matchLabels": {"a": "1"}}), true),
            (json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}), false),
            (json!({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}), true),
        ] {
            assert_eq!(
                LabelSelector::from_object(&object).expect("selector").matches(&labels),
                expected,
                "{object}"
            );
        }
        assert!(
            LabelSelector::from_object(&json!({"matchExpressions": [{"key": "a", "operator": "Gt"}]}))
                .is_err()
        );
    }

    #[test]
    fn field_selectors_compare_texts() {
        let field = |path: &str| match path {
            "metadata.name" => Some("a,b".to_owned()),
            "spec.nodeName" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("", true),
            ("metadata.name=a\\,b", true),
            ("metadata.name==a\\,b,spec.nodeName=", true),
            ("spec.nodeName!=", false),
            ("unknown=x", false),
        ] {
            assert_eq!(FieldSelector::parse(text).expect(text).matches(field), expected, "{text:?}");
        }
        assert!(FieldSelector::parse("nonsense").is_err());
        assert_eq!(FieldSelector::parse("a=b,c!=d").expect("selector").required("a"), Some("b"));
    }
}
