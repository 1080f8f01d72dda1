//! Pods and the pod templates of workloads.

use serde_json::{Value, json};

use crate::{
    kind::{Hooks, Subresource},
    meta::NameRule,
    object::{child, has, list, remove, set_default, text},
};

pub(crate) mod containers;
pub(crate) mod defaults;
pub(crate) mod print;
pub mod qos;
pub(crate) mod scheduling;
mod update;
pub(crate) mod validate;
mod volumes;

pub(crate) const HOOKS: Hooks = Hooks {
    default: defaults::pod,
    name: NameRule::Subdomain,
    validate_create: validate::create,
    validate_update: update::validate,
    prepare_create,
    prepare_update,
    generation: true,
    status_metadata: true,
    columns: print::COLUMNS,
    row: print::row,
    selectable: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    ..Hooks::PLAIN
};

fn prepare_create(pod: &mut Value) {
    pod["status"] = json!({"phase": "Pending", "qosClass": qos::of(&pod["spec"])});
    // A scheduler has to see a gated pod as gated from its first event on.
    if !list(&pod["spec"]["schedulingGates"]).is_empty() {
        pod["status"]["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    if let Value::Object(spec) = &mut pod["spec"] {
        spec.shift_remove("ephemeralContainers");
    }
}

fn prepare_update(new: &mut Value, old: &Value, door: Subresource) {
    match door {
        Subresource::Main => {
            // Ephemeral containers have a door of their own.
            remove(child(new, "spec"), "ephemeralContainers");
            if has(&old["spec"], "ephemeralContainers") {
                new["spec"]["ephemeralContainers"] = old["spec"]["ephemeralContainers"].clone();
            }
        }
        Subresource::EphemeralContainers => {
            let added = new["spec"]["ephemeralContainers"].take();
            let version = new["metadata"]["resourceVersion"].take();
            *new = old.clone();
            if !added.is_null() {
                new["spec"]["ephemeralContainers"] = added;
            }
            if !version.is_null() {
                new["metadata"]["resourceVersion"] = version;
            }
        }
        Subresource::Resize => update::keep_all_but_resources(new, old),
        Subresource::Status => {
            // The class is decided once, at creation.
            if !text(&old["status"]["qosClass"]).is_empty() {
                let class = old["status"]["qosClass"].clone();
                set_default(child(new, "status"), "qosClass", class);
            }
        }
        Subresource::Scale | Subresource::Approval | Subresource::Finalize => {}
    }
}
