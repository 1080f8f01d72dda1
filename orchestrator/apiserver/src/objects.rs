//! Objects in the store: their keys, their bytes, and the store's errors in the API's words.
//!
//! An object is stored as the JSON of its storage version without its resourceVersion, which is the revision the
//! store keeps beside it. `kind`, `apiVersion` and `metadata` lead the text, so that a reading in that version needs
//! no parsing: the resourceVersion is inserted into the bytes.

use std::sync::Arc;

use bytes::Bytes;
use pith_api::{ApiError, Kind, Subject};
use pith_store::{Collection, Committed, Entry, Error, Expect, Key, Prefix, Revision, Store};
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::parts::Parts;

/// The API's view of a store.
#[derive(Clone)]
pub(crate) struct Objects {
    pub(crate) store: Arc<dyn Store>,
}

/// One object as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) bytes: Bytes,
    pub(crate) revision: Revision,
}

impl From<Entry> for Stored {
    fn from(entry: Entry) -> Self {
        Self { bytes: entry.value, revision: entry.revision }
    }
}

impl Stored {
    /// The object in a kind's version, with its resourceVersion.
    pub(crate) fn value(&self, kind: &Kind) -> Result<Value, ApiError> {
        let mut value: Value =
            serde_json::from_slice(&self.bytes).map_err(|error| unreadable(kind, &error))?;
        if place_of_metadata(&self.bytes, kind).is_none() {
            kind.from_storage(&mut value);
        }
        set_revision(&mut value, self.revision);
        Ok(value)
    }

    /// The object's JSON in a kind's version, with its resourceVersion.
    pub(crate) fn json(&self, kind: &Kind) -> Result<Vec<u8>, ApiError> {
        match place_of_metadata(&self.bytes, kind) {
            Some(place) => Ok(with_revision(&self.bytes, place, self.revision)),
            None => Ok(self.value(kind)?.to_string().into_bytes()),
        }
    }

    /// The object's `PartialObjectMetadata` as JSON.
    pub(crate) fn metadata_json(&self, kind: &Kind) -> Result<Vec<u8>, ApiError> {
        const HEAD: &[u8] =
            b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{";
        let members = place_of_metadata(&self.bytes, kind).and_then(|place| {
            let object = &self.bytes[place - 1..];
            Some(&object[1..length_of_value(object)?])
        });
        match members {
            Some(members) => Ok(with_revision(&[HEAD, members, b"}"].concat(), HEAD.len(), self.revision)),
            None => Ok(pith_api::print::partial_metadata(&self.value(kind)?).to_string().into_bytes()),
        }
    }

    /// The object with at least these parts of it.
    pub(crate) fn parts(&self, kind: &Kind, parts: &Parts) -> Result<Value, ApiError> {
        match place_of_metadata(&self.bytes, kind) {
            Some(_) => parts.read(&self.bytes).map_err(|error| unreadable(kind, &error)),
            None => self.value(kind),
        }
    }
}

fn unreadable(kind: &Kind, error: &serde_json::Error) -> ApiError {
    ApiError::internal(format!("a stored {} cannot be read: {error}", kind.kind))
}

/// How many bytes the JSON value takes with which these begin.
fn length_of_value(bytes: &[u8]) -> Option<usize> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    Some(values.byte_offset())
}

/// Where the members of `metadata` begin in stored bytes of this kind's version. `None` where the bytes are of
/// another version, or metadata does not stand where [`encode`] puts it: then they have to be parsed.
fn place_of_metadata(bytes: &[u8], kind: &Kind) -> Option<usize> {
    let rest = bytes.strip_prefix(b"{\"kind\":\"")?.strip_prefix(kind.kind.as_bytes())?;
    let rest = rest.strip_prefix(b"\",\"apiVersion\":\"")?;
    let rest = match kind.group {
        "" => rest,
        group => rest.strip_prefix(group.as_bytes())?.strip_prefix(b"/")?,
    };
    let rest = rest.strip_prefix(kind.version.as_bytes())?.strip_prefix(b"\",\"metadata\":{")?;
    Some(bytes.len() - rest.len())
}

/// Inserts the resourceVersion as the first member of `metadata`.
fn with_revision(bytes: &[u8], place: usize, revision: Revision) -> Vec<u8> {
    let member = format!("\"resourceVersion\":\"{revision}\"");
    let mut out = Vec::with_capacity(bytes.len() + member.len() + 1);
    out.extend_from_slice(&bytes[..place]);
    out.extend_from_slice(member.as_bytes());
    if bytes.get(place) != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(&bytes[place..]);
    out
}

pub(crate) fn set_revision(value: &mut Value, revision: Revision) {
    pith_api::meta::of_mut(value).insert("resourceVersion".into(), revision.to_string().into());
}

/// The revision that an object names, if it names one.
pub(crate) fn named_revision(value: &Value) -> Result<Option<Revision>, ApiError> {
    match value["metadata"]["resourceVersion"].as_str().unwrap_or_default() {
        "" => Ok(None),
        text => text
            .parse()
            .map(|number| Some(Revision(number)))
            .map_err(|_| ApiError::bad_request(format!("the resource version {text:?} is not valid"))),
    }
}

impl Objects {
    pub(crate) fn collection(kind: &Kind) -> Result<Collection, ApiError> {
        let (group, plural) = kind.storage;
        Collection::new(group, plural).map_err(ApiError::internal)
    }

    pub(crate) fn key(kind: &Kind, namespace: Option<&str>, name: &str) -> Result<Key, ApiError> {
        let namespace = if kind.namespaced { namespace.or(Some("")) } else { None };
        // A name that cannot be in a key cannot be that of an object either.
        Self::collection(kind)?.key(namespace, name).map_err(|_| ApiError::not_found(kind.subject(name)))
    }

    pub(crate) fn prefix(kind: &Kind, namespace: Option<&str>) -> Result<Prefix, ApiError> {
        let namespace = if kind.namespaced { namespace } else { None };
        Self::collection(kind)?.prefix(namespace).map_err(|error| ApiError::bad_request(error.to_string()))
    }

    /// An object, if it exists.
    pub(crate) async fn find(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Stored>, ApiError> {
        let key = match Self::key(kind, namespace, name) {
            Ok(key) => key,
            Err(_) => return Ok(None),
        };
        let entry = self.store.get(&key).await.map_err(|error| failed(kind.subject(name), error))?;
        Ok(entry.map(Stored::from))
    }

    /// An object, or 404.
    pub(crate) async fn get(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Stored, ApiError> {
        self.find(kind, namespace, name).await?.ok_or_else(|| ApiError::not_found(kind.subject(name)))
    }

    /// An object of a kind the server itself looks at, parsed.
    pub(crate) async fn value(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Value>, ApiError> {
        self.find(kind, namespace, name).await?.map(|stored| stored.value(kind)).transpose()
    }

    /// Writes an object; its name and namespace are those in its metadata.
    pub(crate) async fn put(&self, kind: &Kind, value: Value, expect: Expect) -> Result<Stored, PutError> {
        let (key, bytes) = encode(kind, value)?;
        let subject = kind.subject(key.name());
        match self.store.put(key, bytes.clone(), expect).await {
            Ok(Committed { revision, .. }) => Ok(Stored { bytes, revision }),
            Err(Error::Changed { .. }) => Err(PutError::Changed),
            Err(error) => Err(PutError::Other(failed(subject, error))),
        }
    }

    pub(crate) async fn delete(
        &self,
        kind: &Kind,
        key: Key,
        revision: Revision,
    ) -> Result<Committed, PutError> {
        let subject = kind.subject(key.name());
        match self.store.delete(key, Expect::At(revision)).await {
            Ok(committed) => Ok(committed),
            Err(Error::Changed { .. }) => Err(PutError::Changed),
            Err(error) => Err(PutError::Other(failed(subject, error))),
        }
    }
}

/// The key and bytes under which an object is stored.
pub(crate) fn encode(kind: &Kind, mut value: Value) -> Result<(Key, Bytes), ApiError> {
    let metadata = pith_api::meta::of_mut(&mut value);
    metadata.shift_remove("resourceVersion");
    let text = |name: &str| metadata.get(name).and_then(Value::as_str).unwrap_or_default();
    let namespace = kind.namespaced.then(|| text("namespace"));
    let key = Objects::collection(kind)?
        .key(namespace, text("name"))
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    kind.to_storage(&mut value);
    lead(&mut value);
    let bytes = serde_json::to_vec(&value).map_err(ApiError::internal)?;
    Ok((key, bytes.into()))
}

/// Brings forward what stands first in stored bytes; the rest keeps its order.
fn lead(value: &mut Value) {
    let Some(object) = value.as_object_mut() else { return };
    for (place, name) in ["kind", "apiVersion", "metadata"].into_iter().enumerate() {
        if let Some(member) = object.shift_remove(name) {
            object.shift_insert(place.min(object.len()), name.into(), member);
        }
    }
}

/// Why a conditional write did not happen.
#[derive(Debug)]
pub(crate) enum PutError {
    /// Someone else was faster.
    Changed,
    Other(ApiError),
}

impl From<ApiError> for PutError {
    fn from(error: ApiError) -> Self {
        Self::Other(error)
    }
}

impl PutError {
    /// For writers that do not try again.
    pub(crate) fn into_error(self, subject: Subject) -> ApiError {
        match self {
            Self::Changed => ApiError::modified(subject),
            Self::Other(error) => error,
        }
    }
}

/// A store's error about an object in the API's words.
pub(crate) fn failed(subject: Subject, error: Error) -> ApiError {
    match error {
        Error::Exists { .. } => ApiError::already_exists(subject),
        Error::Absent { .. } => ApiError::not_found(subject),
        Error::Changed { .. } => ApiError::modified(subject),
        Error::Compacted { wanted, oldest } => {
            ApiError::expired(format!("too old resource version: {wanted} ({oldest})"))
        }
        Error::Future { wanted, latest } => ApiError::too_large_resource_version(wanted.0, latest.0),
        Error::TooLarge { .. } => ApiError::too_large(error.to_string()),
        Error::InvalidKey { .. } => ApiError::bad_request(error.to_string()),
        Error::Closed => ApiError::unavailable("the server is shutting down"),
        Error::Open { .. }
        | Error::Record { .. }
        | Error::Journal { .. }
        | Error::File { .. }
        | Error::Disk(_) => {
            tracing::error!(%error, "store");
            ApiError::internal(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(group: &str, version: &str, plural: &str) -> &'static Kind {
        pith_api::find(group, version, plural).expect("a kind")
    }

    #[test]
    fn the_revision_is_inserted_into_the_objects_own_metadata() {
        for (name, kind, object, shown) in [
            (
                "members",
                kind("", "v1", "pods"),
                r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","namespace":"n"}}"#,
                r#"{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"7","name":"a","namespace":"n"}}"#,
            ),
            (
                "another order, and metadata further inside",
                kind("apps", "v1", "controllerrevisions"),
                r#"{"data":{"metadata":{"x":"y"}},"metadata":{"name":"a","namespace":"n"},"apiVersion":"apps/v1","kind":"ControllerRevision"}"#,
                r#"{"kind":"ControllerRevision","apiVersion":"apps/v1","metadata":{"resourceVersion":"7","name":"a","namespace":"n"},"data":{"metadata":{"x":"y"}}}"#,
            ),
        ] {
            let value = serde_json::from_str(object).expect("JSON");
            let (_, bytes) = encode(kind, value).expect("a key");
            let stored = Stored { bytes, revision: Revision(7) };
            assert_eq!(stored.json(kind).expect("JSON"), shown.as_bytes(), "{name}");
            assert!(place_of_metadata(&stored.bytes, kind).is_some(), "{name}");
            let metadata: Value =
                serde_json::from_slice(&stored.metadata_json(kind).expect("JSON")).expect("JSON");
            let whole = stored.value(kind).expect("JSON");
            assert_eq!(metadata, pith_api::print::partial_metadata(&whole), "{name}");
            // Bytes as an earlier version wrote them are parsed, and come out the same but for the order.
            let old = Stored { bytes: Bytes::copy_from_slice(object.as_bytes()), revision: Revision(7) };
            let again: Value = serde_json::from_slice(&old.json(kind).expect("JSON")).expect("JSON");
            assert_eq!(again, serde_json::from_str::<Value>(shown).expect("JSON"), "{name}");
        }
    }

    #[test]
    fn versions_are_told_apart_by_their_bytes() {
        let pod = br#"{"kind":"Pod","apiVersion":"v1","metadata":{}}"#;
        let event = br#"{"kind":"Event","apiVersion":"v1","metadata":{}}"#;
        let deployment = br#"{"kind":"Deployment","apiVersion":"apps/v1","metadata":{}}"#;
        assert!(place_of_metadata(pod, kind("", "v1", "pods")).is_some());
        assert!(place_of_metadata(event, kind("", "v1", "events")).is_some());
        assert!(place_of_metadata(event, kind("events.k8s.io", "v1", "events")).is_none());
        assert!(place_of_metadata(deployment, kind("apps", "v1", "deployments")).is_some());
    }
}
