//! How objects are named in the store.
//!
//! `/registry/<group>/<plural>/<namespace>/<name>`, without the namespace for cluster-wide objects. The part up
//! to and including the plural is the [`Collection`]: the unit that keeps its own history.

use std::{fmt, sync::Arc};

use crate::Error;

/// Key lengths that the on-disk format can hold (its length field has 16 bits).
const MAX_KEY_BYTES: usize = 4096;

/// All objects of one resource.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Collection(Arc<str>);

/// One object.
#[derive(Clone)]
pub struct Key {
    text: Arc<str>,
    collection_len: u16,
}

/// A collection, or one namespace of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Prefix {
    text: Arc<str>,
    collection_len: u16,
}

fn part(text: &str) -> Result<&str, Error> {
    if text.is_empty() || text.contains('/') || text.contains('\0') {
        return Err(Error::InvalidKey { what: text.to_owned() });
    }
    Ok(text)
}

fn checked_len(text: &str) -> Result<(), Error> {
    match text.len() <= MAX_KEY_BYTES {
        true => Ok(()),
        false => Err(Error::InvalidKey { what: text.to_owned() }),
    }
}

impl Collection {
    /// The collection of a resource; the core group, written as an empty text in the API, is `core` here.
    pub fn new(group: &str, plural: &str) -> Result<Self, Error> {
        let group = if group.is_empty() { "core" } else { group };
        let text = format!("/registry/{}/{}/", part(group)?, part(plural)?);
        checked_len(&text)?;
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of an object.
    pub fn key(&self, namespace: Option<&str>, name: &str) -> Result<Key, Error> {
        let text = match namespace {
            Some(namespace) => format!("{}{}/{}", self.0, part(namespace)?, part(name)?),
            None => format!("{}{}", self.0, part(name)?),
        };
        checked_len(&text)?;
        Ok(Key { text: text.into(), collection_len: self.0.len() as u16 })
    }

    /// Everything in the collection, or in one of its namespaces.
    pub fn prefix(&self, namespace: Option<&str>) -> Result<Prefix, Error> {
        let text: Arc<str> = match namespace {
            Some(namespace) => format!("{}{}/", self.0, part(namespace)?).into(),
            None => self.0.clone(),
        };
        checked_len(&text)?;
        Ok(Prefix { text, collection_len: self.0.len() as u16 })
    }
}

impl Key {
    /// Reads a key back from its text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidKey { what: text.to_owned() };
        checked_len(text)?;
        let mut parts = text.strip_prefix("/registry/").ok_or_else(invalid)?.splitn(3, '/');
        let group = part(parts.next().ok_or_else(invalid)?)?;
        let plural = part(parts.next().ok_or_else(invalid)?)?;
        let rest = parts.next().ok_or_else(invalid)?;
        let rest = rest.split_once('/').map_or_else(|| part(rest), |(ns, name)| part(ns).and(part(name)));
        rest?;
        let collection_len = "/registry/".len() + group.len() + 1 + plural.len() + 1;
        Ok(Self { text: text.into(), collection_len: collection_len as u16 })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn collection(&self) -> &str {
        &self.text[..usize::from(self.collection_len)]
    }

    /// The last part.
    pub fn name(&self) -> &str {
        self.text.rsplit('/').next().unwrap_or_default()
    }

    /// The namespace, for namespaced objects.
    pub fn namespace(&self) -> Option<&str> {
        self.text[usize::from(self.collection_len)..].split_once('/').map(|(namespace, _)| namespace)
    }
}

impl Prefix {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn collection(&self) -> &str {
        &self.text[..usize::from(self.collection_len)]
    }

    pub fn contains(&self, key: &Key) -> bool {
        key.text.starts_with(&*self.text)
    }

    /// The key behind which a listing continues, from the part of it behind the prefix.
    pub fn key_after(&self, rest: &str) -> Result<Key, Error> {
        let key = Key::parse(&format!("{}{rest}", self.text))?;
        match key.collection() == self.collection() {
            true => Ok(key),
            false => Err(Error::InvalidKey { what: rest.to_owned() }),
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

// Ordered maps keyed by `Key` are searched by text; the order above is that of the text.
impl std::borrow::Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.text
    }
}

macro_rules! textual {
    ($($type:ident . $field:tt),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.$field.fmt(f)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.$field, f)
            }
        }
    )*};
}
textual!(Collection.0, Key.text, Prefix.text);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_as_they_were_made() {
        let pods = Collection::new("", "pods").expect("a valid collection");
        let nodes = Collection::new("", "nodes").expect("a valid collection");
        for (key, text, namespace, name) in [
            (pods.key(Some("default"), "a"), "/registry/core/pods/default/a", Some("default"), "a"),
            (nodes.key(None, "replica-1"), "/registry/core/nodes/replica-1", None, "replica-1"),
        ] {
            let key = key.expect(text);
            assert_eq!(key.as_str(), text);
            assert_eq!((key.namespace(), key.name()), (namespace, name));
            let again = Key::parse(text).expect(text);
            assert_eq!((again.collection(), &again), (key.collection(), &key));
        }
    }

    #[test]
    fn parts_that_would_change_the_place_are_refused() {
        let pods = Collection::new("", "pods").expect("a valid collection");
        for (namespace, name) in
            [(Some("a/b"), "c"), (Some(""), "c"), (Some("a"), ""), (None, "x/y"), (None, "")]
        {
            assert!(pods.key(namespace, name).is_err(), "{namespace:?} {name:?}");
        }
        for text in ["", "/registry/", "/registry/core/pods", "/registry/core/pods/", "/other/core/pods/a"] {
            assert!(Key::parse(text).is_err(), "{text:?}");
        }
        let prefix = pods.prefix(Some("default")).expect("a valid prefix");
        assert!(prefix.key_after("web").is_ok());
        assert!(prefix.key_after("").is_err());
    }
}
