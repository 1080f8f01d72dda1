//! Rows of workloads.

use serde_json::{Value, json};

use crate::{
    object::{list, text},
    print::{self, AGE, Column, NAME, Now, integer},
    selector::{format_label_selector, format_set},
};

pub(super) const DEPLOYMENT: &[Column] = &[
    NAME,
    Column::text("Ready"),
    Column::number("Up-to-date"),
    Column::number("Available"),
    AGE,
    Column::wide("Containers"),
    Column::wide("Images"),
    Column::wide("Selector"),
];

pub(super) fn deployment(object: &Value, now: Now) -> Vec<Value> {
    let status = &object["status"];
    let ready = format!("{}/{}", integer(&status["readyReplicas"]), integer(&object["spec"]["replicas"]));
    let mut row = vec![
        print::name(object),
        ready.into(),
        integer(&status["updatedReplicas"]),
        integer(&status["availableReplicas"]),
        print::age(object, now),
    ];
    row.extend(template(object));
    row
}

pub(super) const REPLICA_SET: &[Column] = &[
    NAME,
    Column::number("Desired"),
    Column::number("Current"),
    Column::number("Ready"),
    AGE,
    Column::wide("Containers"),
    Column::wide("Images"),
    Column::wide("Selector"),
];

pub(super) fn replica_set(object: &Value, now: Now) -> Vec<Value> {
    let status = &object["status"];
    let mut row = vec![
        print::name(object),
        integer(&object["spec"]["replicas"]),
        integer(&status["replicas"]),
        integer(&status["readyReplicas"]),
        print::age(object, now),
    ];
    row.extend(template(object));
    row
}

pub(super) const DAEMON_SET: &[Column] = &[
    NAME,
    Column::number("Desired"),
    Column::number("Current"),
    Column::number("Ready"),
    Column::number("Up-to-date"),
    Column::number("Available"),
    Column::text("Node Selector"),
    AGE,
    Column::wide("Containers"),
    Column::wide("Images"),
    Column::wide("Selector"),
];

pub(super) fn daemon_set(object: &Value, now: Now) -> Vec<Value> {
    let status = &object["status"];
    let selector = format_set(&object["spec"]["template"]["spec"]["nodeSelector"]);
    let mut row = vec![
        print::name(object),
        integer(&status["desiredNumberScheduled"]),
        integer(&status["currentNumberScheduled"]),
        integer(&status["numberReady"]),
        integer(&status["updatedNumberScheduled"]),
        integer(&status["numberAvailable"]),
        if selector.is_empty() { "<none>".into() } else { selector.into() },
        print::age(object, now),
    ];
    row.extend(template(object));
    row
}

/// Containers, images and selector: the wide columns.
fn template(object: &Value) -> [Value; 3] {
    let containers = list(&object["spec"]["template"]["spec"]["containers"]);
    let joined = |field: &str| containers.iter().map(|c| text(&c[field])).collect::<Vec<_>>().join(",");
    let selector = format_label_selector(&object["spec"]["selector"]);
    [
        joined("name").into(),
        joined("image").into(),
        if selector.is_empty() { "<none>".into() } else { selector.into() },
    ]
}

pub(super) const REVISION: &[Column] = &[NAME, Column::text("Controller"), Column::number("Revision"), AGE];

pub(super) fn revision(object: &Value, now: Now) -> Vec<Value> {
    let controller = list(&object["metadata"]["ownerReferences"]).iter().find(|o| o["controller"] == true);
    let controller = match controller {
        Some(owner) => {
            let version = text(&owner["apiVersion"]);
            let group = version.split_once('/').map_or("", |(group, _)| group);
            let kind = text(&owner["kind"]).to_lowercase();
            let dot = if group.is_empty() { "" } else { "." };
            json!(format!("{kind}{dot}{group}/{}", text(&owner["name"])))
        }
        None => json!("<none>"),
    };
    vec![print::name(object), controller, integer(&object["revision"]), print::age(object, now)]
}
