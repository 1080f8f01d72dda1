//! Events, in both versions.

use serde_json::{Value, json};

use crate::{
    field::{FieldError, Path},
    kind::Hooks,
    meta,
    object::text,
    print::{self, Column, Now},
};

pub(crate) const CORE: Hooks = Hooks {
    validate_create: |event, errors| validate(event, "involvedObject", errors),
    validate_update: |new, _, _, errors| validate(new, "involvedObject", errors),
    columns: COLUMNS,
    row,
    selectable: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    ..Hooks::PLAIN
};

pub(crate) const EVENTS: Hooks = Hooks {
    validate_create: |event, errors| validate(event, "regarding", errors),
    validate_update: |new, _, _, errors| validate(new, "regarding", errors),
    columns: COLUMNS,
    row,
    selectable: &[
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
        "reason",
        "reportingController",
        "type",
    ],
    ..Hooks::PLAIN
};

/// An event lies in the namespace of what it is about; cluster-wide things have theirs in `default`.
fn validate(event: &Value, about: &str, errors: &mut Vec<FieldError>) {
    let (namespace, of) = (meta::text(event, "namespace"), text(&event[about]["namespace"]));
    let fits =
        if of.is_empty() { matches!(namespace, "" | "default" | "kube-system") } else { namespace == of };
    if !fits {
        let path = Path::new(about);
        errors.push(FieldError::invalid(
            path.child("namespace"),
            &json!(of),
            "does not match event.namespace",
        ));
    }
}

const COLUMNS: &[Column] = &[
    Column::text("Last Seen"),
    Column::text("Type"),
    Column::text("Reason"),
    Column::text("Object"),
    Column::wide("Subobject"),
    Column::wide("Source"),
    Column::text("Message"),
    Column::wide("First Seen"),
    Column::wide("Count"),
    Column { priority: 1, ..print::NAME },
];

/// A field under its name in either version.
fn either<'a>(event: &'a Value, core: &str, new: &str) -> &'a Value {
    event.get(core).unwrap_or(&event[new])
}

fn row(event: &Value, now: Now) -> Vec<Value> {
    let about = either(event, "involvedObject", "regarding");
    let mut first = either(event, "firstTimestamp", "deprecatedFirstTimestamp");
    let mut last = either(event, "lastTimestamp", "deprecatedLastTimestamp");
    if first.is_null() {
        first = &event["eventTime"];
    }
    let series = &event["series"];
    if series.is_object() {
        last = &series["lastObservedTime"];
    } else if last.is_null() {
        last = first;
    }
    let count = match series["count"].as_i64() {
        Some(count) => count,
        None => either(event, "count", "deprecatedCount").as_i64().unwrap_or(0).max(1),
    };
    let kind = text(&about["kind"]).to_lowercase();
    let object =
        if text(&about["name"]).is_empty() { kind } else { format!("{kind}/{}", text(&about["name"])) };
    vec![
        print::since(last, now).into(),
        event["type"].as_str().unwrap_or_default().into(),
        event["reason"].as_str().unwrap_or_default().into(),
        object.into(),
        about["fieldPath"].as_str().unwrap_or_default().into(),
        source(event).into(),
        text(either(event, "message", "note")).trim().into(),
        print::since(first, now).into(),
        count.into(),
        print::name(event),
    ]
}

fn source(event: &Value) -> String {
    let source = either(event, "source", "deprecatedSource");
    let mut component = text(&source["component"]);
    if component.is_empty() {
        component = text(either(event, "reportingComponent", "reportingController"));
    }
    let mut host = text(&source["host"]);
    if host.is_empty() {
        host = text(&event["reportingInstance"]);
    }
    if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_say_what_happened_to_what() {
        let now = crate::time::parse("2026-01-01T00:10:00Z").expect("now");
        let event = json!({
            "metadata": {"name": "p.1", "namespace": "default"}, "type": "Warning", "reason": "BackOff", "count": 3,
            "message": "restarting\n", "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:09:00Z",
            "source": {"component": "kubelet", "host": "replica-1"},
        });
        assert_eq!(
            row(&event, now),
            json!([
                "60s",
                "Warning",
                "BackOff",
                "pod/p",
                "",
                "kubelet, replica-1",
                "restarting",
                "10m",
                3,
                "p.1"
            ])
            .as_array()
            .cloned()
            .expect("array")
        );
        let mut errors = Vec::new();
        validate(
            &json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}}),
            "involvedObject",
            &mut errors,
        );
        assert_eq!(
            errors[0].to_string(),
            "involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"
        );
    }
}
