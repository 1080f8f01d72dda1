//! `events.k8s.io/v1`: another view of the core group's Events, which is how they are stored.

use k8s_openapi::api::events::v1;
use serde_json::{Map, Value, json};

use super::stored;
use crate::{
    event,
    kind::{Hooks, Kind},
};

/// Names that differ between the two: events.k8s.io, core.
const RENAMED: &[(&str, &str)] = &[
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

pub(super) const KINDS: &[Kind] = &[Kind {
    short_names: &["ev"],
    storage: ("", "events"),
    ..stored::<v1::Event>(
        "io.k8s.api.events.v1",
        "event",
        true,
        Hooks { to_storage, from_storage, ..event::EVENTS },
    )
}];

fn to_storage(event: &mut Value) {
    rename(event, |name| RENAMED.iter().find(|(new, _)| *new == name).map(|(_, core)| *core));
    event["apiVersion"] = "v1".into();
    // The core type has no omitempty here.
    if event.get("involvedObject").is_none() {
        event["involvedObject"] = json!({});
    }
}

fn from_storage(event: &mut Value) {
    rename(event, |name| RENAMED.iter().find(|(_, core)| *core == name).map(|(new, _)| *new));
    event["apiVersion"] = "events.k8s.io/v1".into();
}

fn rename(event: &mut Value, new_name: impl Fn(&str) -> Option<&'static str>) {
    let Some(map) = event.as_object_mut() else { return };
    let renamed: Map<String, Value> = std::mem::take(map)
        .into_iter()
        .map(|(name, value)| match new_name(&name) {
            Some(new) => (new.to_owned(), value),
            None => (name, value),
        })
        .collect();
    *map = renamed;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_views_lead_back_to_each_other() {
        let stored = json!({
            "apiVersion": "v1", "kind": "Event", "message": "m", "involvedObject": {"name": "p"}, "count": 2,
            "source": {"component": "c"}, "reportingComponent": "r", "reason": "x",
        });
        let mut event = stored.clone();
        from_storage(&mut event);
        assert_eq!(event["note"], "m");
        assert_eq!(event["regarding"]["name"], "p");
        assert_eq!(event["apiVersion"], "events.k8s.io/v1");
        to_storage(&mut event);
        assert_eq!(event, stored);
    }
}
