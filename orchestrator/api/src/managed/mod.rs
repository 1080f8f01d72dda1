//! Who manages which field: server-side apply, its conflicts, and `metadata.managedFields`.
//!
//! As upstream's structured-merge-diff, with its strategy for objects that nobody has applied yet: their writers are
//! not recorded. The first apply finds all that is there managed by `before-first-apply`, and from then on every
//! write of the object is followed. An ordinary write therefore costs nothing.

mod fields;
mod tree;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use self::fields::{Fields, Path, Shown, Step};
use crate::{
    kind::{Kind, Subresource},
    meta,
    status::{ApiError, Reason, StatusCause},
};

/// Manages what was there before anybody applied.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Who writes, and through which door.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub manager: &'a str,
    pub door: Subresource,
    pub now: Timestamp,
}

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    applied: bool,
    api_version: String,
    subresource: String,
    time: Option<String>,
    fields: Fields,
}

impl Entry {
    fn new(kind: &Kind, by: Writer<'_>, applied: bool, fields: Fields) -> Self {
        Self {
            manager: by.manager.to_owned(),
            applied,
            api_version: kind.api_version(),
            subresource: subresource(by.door).to_owned(),
            time: Some(crate::time::seconds(by.now)),
            fields,
        }
    }

    fn parse(entry: &Value) -> Self {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        Self {
            manager: text("manager"),
            applied: entry["operation"] == "Apply",
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: entry["time"].as_str().map(str::to_owned),
            fields: Fields::parse(&entry["fieldsV1"]),
        }
    }

    fn to_json(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager,
            "operation": if self.applied { "Apply" } else { "Update" },
            "apiVersion": self.api_version,
        });
        if let Some(time) = &self.time {
            entry["time"] = time.as_str().into();
        }
        entry["fieldsType"] = "FieldsV1".into();
        entry["fieldsV1"] = self.fields.to_json();
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.as_str().into();
        }
        entry
    }

    fn is_of(&self, by: Writer<'_>, applied: bool) -> bool {
        self.manager == by.manager && self.applied == applied && self.subresource == subresource(by.door)
    }

    /// As conflicts name it.
    fn shown(&self) -> String {
        let (manager, version) = (&self.manager, &self.api_version);
        if self.applied {
            return format!("{manager:?}");
        }
        let through = match self.subresource.as_str() {
            "" => String::new(),
            name => format!(" with subresource {name:?}"),
        };
        let time = self.time.as_ref().map(|time| format!(" at {time}")).unwrap_or_default();
        // Upstream leaves the time out for what nobody wrote at a known time.
        let time = if self.manager == BEFORE_FIRST_APPLY { String::new() } else { time };
        format!("{manager:?}{through} using {version}{time}")
    }
}

fn subresource(door: Subresource) -> &'static str {
    match door {
        Subresource::Main => "",
        Subresource::Status => "status",
        Subresource::Scale => "scale",
        Subresource::EphemeralContainers => "ephemeralcontainers",
        Subresource::Resize => "resize",
        Subresource::Approval => "approval",
        Subresource::Finalize => "finalize",
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    object["metadata"]["managedFields"].as_array().into_iter().flatten().map(Entry::parse).collect()
}

fn set_entries(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.0.is_empty());
    entries.sort_by(|a, b| (!a.applied, &a.time, &a.manager).cmp(&(!b.applied, &b.time, &b.manager)));
    let list: Vec<Value> = entries.iter().map(Entry::to_json).collect();
    let metadata = meta::of_mut(object);
    match list.is_empty() {
        true => drop(metadata.shift_remove("managedFields")),
        false => drop(metadata.insert("managedFields".into(), list.into())),
    }
}

/// Whether writes of this object are followed.
pub fn is_tracked(object: &Value) -> bool {
    object["metadata"]["managedFields"].as_array().is_some_and(|entries| !entries.is_empty())
}

/// The object after `by` has applied `config` to `live` (absent: it is created).
///
/// # Errors
/// 409 that names the managers of fields which `config` would change, unless `force`.
pub fn apply(
    kind: &Kind,
    live: Option<&Value>,
    config: &Value,
    by: Writer<'_>,
    force: bool,
) -> Result<Value, ApiError> {
    if is_tracked(config) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let schema = kind.schema();
    let mut config = config.clone();
    drop_nulls(&mut config);
    let places = tree::places(schema, &config);
    let mine = Fields(places.into_keys().filter(|path| is_through(kind, by.door, path)).collect());
    let Some(live) = live else {
        let mut created = config;
        set_entries(&mut created, vec![Entry::new(kind, by, true, mine)]);
        return Ok(created);
    };
    let mut all = entries(live);
    if all.is_empty() {
        let first = Writer { manager: BEFORE_FIRST_APPLY, door: Subresource::Main, now: by.now };
        let there = Fields(tree::places(schema, live).into_keys().collect());
        all.push(Entry::new(kind, first, false, there));
    }
    let (mut own, mut others): (Vec<Entry>, Vec<Entry>) =
        all.into_iter().partition(|entry| entry.is_of(by, true));
    let last = own.pop();

    let mut merged = tree::merge(schema, live, &config);
    for path in last.iter().flat_map(|last| last.fields.0.difference(&mine.0)) {
        // Given up by its last owner: it goes.
        if !mine.reaches(path) && !others.iter().any(|other| other.fields.reaches(path)) {
            tree::remove(schema, &mut merged, path);
        }
    }
    let difference = tree::difference(schema, live, &merged);
    let conflicts = settle(&mut others, &difference.changed);
    if !conflicts.is_empty() && !force {
        return Err(refusal(&conflicts));
    }
    cut(&mut others, &difference.removed);
    let entry = match last {
        // The time is that of the last change of what is managed.
        Some(last) if last.fields == mine => last,
        _ => Entry::new(kind, by, true, mine),
    };
    others.push(entry);
    set_entries(&mut merged, others);
    Ok(merged)
}

/// A field that somebody else manages.
struct Conflict {
    manager: String,
    path: Path,
}

/// Takes changed fields from their managers; says which those were.
fn settle(others: &mut [Entry], changed: &Fields) -> Vec<Conflict> {
    let mut taken = Vec::new();
    for other in others {
        let fields = std::mem::take(&mut other.fields.0).into_iter();
        let (lost, kept): (BTreeSet<Path>, BTreeSet<Path>) =
            fields.partition(|path| changed.0.contains(path));
        other.fields.0 = kept;
        let manager = other.shown();
        taken.extend(lost.into_iter().map(|path| Conflict { manager: manager.clone(), path }));
    }
    taken
}

fn cut(entries: &mut [Entry], removed: &Fields) {
    for path in &removed.0 {
        for entry in &mut *entries {
            entry.fields.0.remove(path);
        }
    }
}

/// Whether writes through this door can set the place.
fn is_through(kind: &Kind, door: Subresource, path: &Path) -> bool {
    let status = matches!(path.first(), Some(Step::Field(name)) if name == "status");
    match door {
        Subresource::Status => status,
        _ => !status || kind.subresource("status").is_none(),
    }
}

fn refusal(conflicts: &[Conflict]) -> ApiError {
    let message = match conflicts {
        [Conflict { manager, path }] => {
            format!("Apply failed with 1 conflict: conflict with {manager}: {}", Shown(path))
        }
        several => {
            let mut by_manager: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for Conflict { manager, path } in several {
                by_manager.entry(manager).or_default().push(format!("- {}", Shown(path)));
            }
            let lists: Vec<String> = by_manager
                .into_iter()
                .map(|(manager, paths)| format!("conflicts with {manager}:\n{}", paths.join("\n")))
                .collect();
            format!("Apply failed with {} conflicts: {}", several.len(), lists.join("\n"))
        }
    };
    let mut error = ApiError::new(Reason::Conflict, message);
    let cause = |Conflict { manager, path }: &Conflict| StatusCause {
        reason: "FieldManagerConflict".into(),
        message: format!("conflict with {manager}"),
        field: Shown(path).to_string(),
    };
    error.causes = conflicts.iter().map(cause).collect();
    error
}

/// Follows an ordinary write of a tracked object: `by` manages from now on what it changed.
pub fn updated(kind: &Kind, old: &Value, new: &mut Value, by: Writer<'_>) {
    if !is_tracked(old) && !is_tracked(new) {
        return;
    }
    // A client that sends none means "as they are".
    let all = entries(if is_tracked(new) { &*new } else { old });
    let difference = tree::difference(kind.schema(), old, new);
    let changed =
        Fields(difference.changed.0.into_iter().filter(|path| is_through(kind, by.door, path)).collect());
    let (mut own, mut others): (Vec<Entry>, Vec<Entry>) =
        all.into_iter().partition(|entry| entry.is_of(by, false));
    settle(&mut others, &changed);
    cut(&mut others, &difference.removed);
    cut(&mut own, &difference.removed);
    if !changed.0.is_empty() {
        let mut fields = own.pop().map(|entry| entry.fields).unwrap_or_default();
        fields.0.extend(changed.0);
        own = vec![Entry::new(kind, by, false, fields)];
    }
    others.extend(own);
    set_entries(new, others);
}

/// A null in a configuration says nothing.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests;
