//! Label and field selectors of a list or watch.

use pith_api::{
    ApiError, Kind,
    selector::{FieldSelector, LabelSelector},
};
use pith_store::Key;
use serde_json::Value;

use crate::{objects::Stored, parts::Parts, request::Query};

/// Which objects a list or watch is about.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    kind: &'static Kind,
    labels: LabelSelector,
    fields: FieldSelector,
    /// Of each object, what the selectors look at.
    parts: Parts,
}

impl Filter {
    pub(crate) fn of(kind: &'static Kind, query: &Query) -> Result<Self, ApiError> {
        let bad = |error: pith_api::selector::ParseError| ApiError::bad_request(error.to_string());
        let labels = LabelSelector::parse(query.get("labelSelector"))
            .map_err(|error| ApiError::bad_request(format!("unable to parse requirement: {error}")))?;
        let fields = FieldSelector::parse(query.get("fieldSelector")).map_err(bad)?;
        if let Some(term) = fields.terms().iter().find(|term| !kind.is_selectable(&term.path)) {
            return Err(ApiError::bad_request(format!(
                "Unable to find {:?} that match label selector {:?}, field selector {:?}: field label not \
                 supported: {}",
                format!("{}, Resource={}", kind.api_version(), kind.plural),
                query.get("labelSelector"),
                query.get("fieldSelector"),
                term.path
            )));
        }
        let paths = fields.terms().iter().map(|term| term.path.as_str());
        let labelled = (!labels.is_everything()).then_some("metadata.labels");
        let parts = Parts::at(paths.chain(labelled));
        Ok(Self { kind, labels, fields, parts })
    }

    /// Whether every object is meant.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.terms().is_empty()
    }

    /// The one name that is meant, if so.
    pub(crate) fn name(&self) -> Option<&str> {
        self.fields.required("metadata.name")
    }

    /// The one node whose objects are meant, if so.
    pub(crate) fn node(&self) -> Option<&str> {
        self.fields.required("spec.nodeName")
    }

    /// Whether this object of that key is meant.
    pub(crate) fn passes(&self, key: &Key, stored: &Stored) -> Result<bool, ApiError> {
        match self.matches_key(key) {
            Some(decided) => Ok(decided),
            None => Ok(self.matches(&stored.parts(self.kind, &self.parts)?)),
        }
    }

    /// Decides by the key alone where the selectors only speak of what is in it.
    fn matches_key(&self, key: &Key) -> Option<bool> {
        if self.name().is_some_and(|name| name != key.name()) {
            return Some(false);
        }
        let by_key = |path: &str| matches!(path, "metadata.name" | "metadata.namespace");
        if !self.labels.is_everything() || !self.fields.terms().iter().all(|term| by_key(&term.path)) {
            return None;
        }
        Some(self.fields.matches(|path| match path {
            "metadata.name" => Some(key.name().to_owned()),
            _ => Some(key.namespace().unwrap_or_default().to_owned()),
        }))
    }

    fn matches(&self, object: &Value) -> bool {
        self.labels.matches(&object["metadata"]["labels"])
            && self.fields.matches(|path| self.kind.selectable_field(object, path))
    }
}
