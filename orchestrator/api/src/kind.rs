//! What the server knows of one kind of object, and the operations that every kind shares. The table of kinds
//! is in [`crate::kinds`]; what is particular to a kind hangs off its [`Hooks`].

use serde_json::{Map, Value};

use crate::{
    codec::{self, FieldValidation},
    field::FieldError,
    meta, openapi,
    print::{self, Column},
    schema::Type,
    status::{ApiError, Subject},
};

/// Verbs of an ordinary stored resource, in discovery's order.
pub const STORED_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// One kind of object.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// API group, empty for core.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    pub subresources: &'static [SubresourceKind],
    /// Group and plural that objects are stored under: two versions of one thing share them.
    pub storage: (&'static str, &'static str),
    /// OpenAPI package of the kind's type: `io.k8s.api.core.v1`.
    pub(crate) package: &'static str,
    /// Where OpenAPI takes the descriptions from.
    pub(crate) describe: openapi::Register,
    pub(crate) hooks: Hooks,
}

/// A resource below an object, such as `pods/log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubresourceKind {
    pub name: &'static str,
    /// What its bodies are.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

/// Through which door an object is updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// The object itself.
    Main,
    Status,
    Scale,
    /// `pods/ephemeralcontainers`
    EphemeralContainers,
    /// `pods/resize`
    Resize,
    /// `certificatesigningrequests/approval`
    Approval,
    /// `namespaces/finalize`
    Finalize,
}

/// What is particular to a kind. Every hook may assume that the object has the shape of its type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hooks {
    /// Fills in what the client left out.
    pub default: fn(&mut Value),
    pub name: meta::NameRule,
    pub validate_create: fn(&Value, &mut Vec<FieldError>),
    /// New, old.
    pub validate_update: fn(&Value, &Value, Subresource, &mut Vec<FieldError>),
    pub prepare_create: fn(&mut Value),
    /// New, old; runs after the shared part.
    pub prepare_update: fn(&mut Value, &Value, Subresource),
    /// `metadata.generation` counts changes of the spec.
    pub generation: bool,
    /// A status update may also change labels and annotations.
    pub status_metadata: bool,
    pub columns: &'static [Column],
    pub row: fn(&Value, print::Now) -> Vec<Value>,
    /// Field selectors besides `metadata.name` and `metadata.namespace`.
    pub selectable: &'static [&'static str],
    /// Rewrites an object of this version into the stored one, and back.
    pub to_storage: fn(&mut Value),
    pub from_storage: fn(&mut Value),
}

impl Hooks {
    pub(crate) const PLAIN: Self = Self {
        default: |_| {},
        name: meta::NameRule::Subdomain,
        validate_create: |_, _| {},
        validate_update: |_, _, _, _| {},
        prepare_create: |_| {},
        prepare_update: |_, _, _| {},
        generation: false,
        status_metadata: false,
        columns: print::NAME_AND_AGE,
        row: print::name_and_age,
        selectable: &[],
        to_storage: |_| {},
        from_storage: |_| {},
    };
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Whether objects of it exist; the others are questions that are answered at once.
    pub fn is_stored(&self) -> bool {
        self.verbs.contains(&"get")
    }

    /// `/registry/apps/deployments/`: what all keys of the kind start with.
    pub fn storage_prefix(&self) -> String {
        let (group, plural) = self.storage;
        format!("/registry/{}/{plural}/", if group.is_empty() { "core" } else { group })
    }

    pub fn schema(&self) -> &'static Type {
        Type::find(self.package, self.kind).expect("every kind's type is in the schema table")
    }

    pub fn subresource(&self, name: &str) -> Option<&'static SubresourceKind> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// The object in an error about a request: plural and name.
    pub fn subject(&self, name: &str) -> Subject {
        Subject::new(self.group, self.plural, name)
    }

    /// 422 with these complaints.
    pub fn invalid(&self, name: &str, errors: &[FieldError]) -> ApiError {
        ApiError::invalid(Subject::new(self.group, self.kind, name), errors)
    }

    /// Reads a request's body. `content_type` may carry parameters; empty means JSON. Returns the object and
    /// the warnings to send along.
    pub fn decode(
        &self,
        content_type: &str,
        body: &[u8],
        validation: FieldValidation,
    ) -> Result<(Value, Vec<String>), ApiError> {
        codec::decode(self.body(), content_type, body, validation)
    }

    /// Checks an already parsed object (the outcome of a patch) as [`Kind::decode`] checks a body.
    pub fn decode_value(
        &self,
        value: Value,
        validation: FieldValidation,
    ) -> Result<(Value, Vec<String>), ApiError> {
        codec::decode_value(self.body(), value, validation)
    }

    pub(crate) fn body(&self) -> codec::Body {
        codec::Body { group: self.group, version: self.version, kind: self.kind, schema: self.schema() }
    }

    /// Fills in defaults, as upstream does when it reads an object.
    pub fn default(&self, object: &mut Value) {
        (self.hooks.default)(object);
        self.normalise(object);
    }

    /// Drops what Go would not write, adds what it always writes.
    pub fn normalise(&self, object: &mut Value) {
        if let Value::Object(map) = object {
            self.schema().normalise(map);
        }
    }

    /// Clears what a client may not set at creation; the server then sets uid, creationTimestamp and the like.
    pub fn prepare_create(&self, object: &mut Value) {
        let metadata = meta::of_mut(object);
        for name in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
            metadata.shift_remove(name);
        }
        metadata.shift_remove("generation");
        if self.hooks.generation {
            metadata.insert("generation".into(), 1.into());
        }
        if !self.namespaced {
            meta::of_mut(object).shift_remove("namespace");
        }
        (self.hooks.prepare_create)(object);
        self.normalise(object);
    }

    /// Puts back what this door does not change, and counts generations.
    pub fn prepare_update(&self, new: &mut Value, old: &Value, door: Subresource) {
        meta::keep_system_fields(new, old);
        let has_status = self.subresource("status").is_some();
        match door {
            Subresource::Main if has_status => copy_field(new, old, "status"),
            Subresource::Status => self.keep_all_but_status(new, old),
            _ => {}
        }
        (self.hooks.prepare_update)(new, old, door);
        self.normalise(new);
        if self.hooks.generation {
            let mut generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
            let content = |o: &Value| -> Map<String, Value> {
                let mut map = o.as_object().cloned().unwrap_or_default();
                for name in ["metadata", "status", "apiVersion", "kind"] {
                    map.shift_remove(name);
                }
                map
            };
            let deleted_now = new["metadata"].get("deletionTimestamp").is_some()
                && old["metadata"].get("deletionTimestamp").is_none();
            if content(new) != content(old) || deleted_now {
                generation += 1;
            }
            meta::of_mut(new).insert("generation".into(), generation.into());
        }
    }

    fn keep_all_but_status(&self, new: &mut Value, old: &Value) {
        let Some(Value::Object(old)) = Some(old) else { return };
        let status = new.get("status").cloned();
        let metadata = new.get("metadata").cloned();
        let mut merged = old.clone();
        merged.shift_remove("status");
        if let Some(status) = status {
            merged.insert("status".into(), status);
        }
        *new = Value::Object(merged);
        let kept: &[&str] = if self.hooks.status_metadata {
            &["managedFields", "resourceVersion", "labels", "annotations"]
        } else {
            &["managedFields", "resourceVersion"]
        };
        let target = meta::of_mut(new);
        for name in kept {
            match metadata.as_ref().and_then(|m| m.get(name)) {
                Some(value) => target.insert((*name).into(), value.clone()),
                None => target.shift_remove(*name),
            };
        }
    }

    /// Everything that is wrong with a new object; call after `default` and `prepare_create`.
    pub fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        meta::validate(object, self.namespaced, self.hooks.name, &mut errors);
        (self.hooks.validate_create)(object, &mut errors);
        errors
    }

    /// Everything that is wrong with a change; call after `default` and `prepare_update`.
    pub fn validate_update(&self, new: &Value, old: &Value, door: Subresource) -> Vec<FieldError> {
        let mut errors = Vec::new();
        meta::validate_update(new, old, self.namespaced, self.hooks.name, &mut errors);
        (self.hooks.validate_update)(new, old, door, &mut errors);
        errors
    }

    /// `meta.k8s.io/v1 Table` of these objects, as `kubectl get` shows them, without the list's metadata.
    pub fn table(&self, objects: &[Value], now: print::Now, include: print::IncludeObject) -> Value {
        print::table(self, objects, now, include)
    }

    /// The value a field selector compares with; `None` where the kind has no such selector. A field that is
    /// absent compares as the empty string.
    pub fn selectable_field(&self, object: &Value, path: &str) -> Option<String> {
        let known = path == "metadata.name"
            || (path == "metadata.namespace" && self.namespaced)
            || self.hooks.selectable.contains(&path);
        // An event's source is selected by its component.
        let place = if path == "source" { "source.component" } else { path };
        known.then(|| match place.split('.').try_fold(object, |o, step| o.get(step)) {
            None | Some(Value::Null) => selectable_default(path).to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        })
    }

    /// Whether that path can be used in a field selector.
    pub fn is_selectable(&self, path: &str) -> bool {
        self.selectable_field(&Value::Null, path).is_some()
    }

    /// Brings an object of this version into the form that is stored, apiVersion included.
    pub fn to_storage(&self, object: &mut Value) {
        (self.hooks.to_storage)(object);
    }

    /// Brings a stored object into this version.
    pub fn from_storage(&self, object: &mut Value) {
        (self.hooks.from_storage)(object);
    }
}

/// `v1` or `apps/v1`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// What an absent field compares as.
fn selectable_default(path: &str) -> &'static str {
    match path {
        "spec.unschedulable" | "spec.hostNetwork" => "false",
        "status.replicas" | "status.successful" => "0",
        _ => "",
    }
}

fn copy_field(new: &mut Value, old: &Value, name: &str) {
    let Some(map) = new.as_object_mut() else { return };
    match old.get(name) {
        Some(value) => {
            map.insert(name.to_owned(), value.clone());
        }
        None => {
            map.shift_remove(name);
        }
    }
}
