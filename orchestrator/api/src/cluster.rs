//! Namespaces and Nodes: what the cluster consists of.

use serde_json::{Value, json};

use crate::{
    field::{FieldError, Path},
    kind::{Hooks, Subresource},
    meta::{NameRule, of_mut},
    object::{child, entries, has, list, set_default, text},
    pod::scheduling,
    print::{self, AGE, Column, NAME, Now},
};

pub(crate) const NAMESPACE: Hooks = Hooks {
    default: default_namespace,
    name: NameRule::Label,
    prepare_create: prepare_namespace,
    prepare_update: update_namespace,
    columns: &[NAME, Column::text("Status"), AGE],
    row: |object, now| vec![print::name(object), object["status"]["phase"].clone(), print::age(object, now)],
    selectable: &["status.phase"],
    ..Hooks::PLAIN
};

pub(crate) const NODE: Hooks = Hooks {
    default: default_node,
    validate_create: |object, errors| node(object, errors),
    validate_update: update_node,
    status_metadata: true,
    columns: NODE_COLUMNS,
    row: node_row,
    selectable: &["spec.unschedulable"],
    ..Hooks::PLAIN
};

/// Every namespace can be selected by its name.
fn default_namespace(namespace: &mut Value) {
    let name = namespace["metadata"]["name"].clone();
    if !text(&name).is_empty() {
        let labels = of_mut(namespace).entry("labels").or_insert_with(|| json!({}));
        labels["kubernetes.io/metadata.name"] = name;
    }
}

fn prepare_namespace(namespace: &mut Value) {
    let finalizers = child(namespace, "spec").get("finalizers").cloned().unwrap_or_else(|| json!([]));
    let mut finalizers = list(&finalizers).to_vec();
    if !finalizers.iter().any(|f| f == "kubernetes") {
        finalizers.push("kubernetes".into());
    }
    namespace["spec"]["finalizers"] = finalizers.into();
    namespace["status"] = json!({"phase": "Active"});
}

/// Finalizers have a door of their own; through it nothing else passes.
fn update_namespace(new: &mut Value, old: &Value, door: Subresource) {
    match door {
        Subresource::Main => child(new, "spec")["finalizers"] = old["spec"]["finalizers"].clone(),
        Subresource::Finalize => {
            let finalizers = new["spec"]["finalizers"].take();
            let version = new["metadata"].get("resourceVersion").cloned();
            *new = old.clone();
            child(new, "spec")["finalizers"] = finalizers;
            if let Some(version) = version {
                new["metadata"]["resourceVersion"] = version;
            }
        }
        Subresource::Status
        | Subresource::Scale
        | Subresource::EphemeralContainers
        | Subresource::Resize
        | Subresource::Approval => {}
    }
}

/// What is not said to be allocatable is the capacity.
fn default_node(node: &mut Value) {
    let capacity = node["status"]["capacity"].clone();
    if capacity.is_object() {
        let allocatable = child(child(node, "status"), "allocatable");
        for (name, amount) in entries(&capacity) {
            set_default(allocatable, name, amount.clone());
        }
    }
    // The two ways of writing the node's pod network say the same.
    let spec = child(node, "spec");
    if has(spec, "podCIDR") && !has(spec, "podCIDRs") {
        spec["podCIDRs"] = json!([spec["podCIDR"]]);
    } else if !has(spec, "podCIDR")
        && let Some(first) = list(&spec["podCIDRs"]).first().cloned()
    {
        spec["podCIDR"] = first;
    }
}

fn node(node: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    scheduling::taints(&node["spec"]["taints"], &path.child("taints"), errors);
    for (i, cidr) in list(&node["spec"]["podCIDRs"]).iter().enumerate() {
        if !crate::service::is_cidr(text(cidr)) {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.push(FieldError::invalid(path.child("podCIDRs").index(i), cidr, detail));
        }
    }
}

fn update_node(new: &Value, old: &Value, _: Subresource, errors: &mut Vec<FieldError>) {
    node(new, errors);
    let path = Path::new("spec");
    let before = list(&old["spec"]["podCIDRs"]);
    if !before.is_empty() && list(&new["spec"]["podCIDRs"]) != before {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden(path.child("podCIDRs"), detail));
    }
    if has(&old["spec"], "providerID") && old["spec"]["providerID"] != new["spec"]["providerID"] {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden(path.child("providerID"), detail));
    }
}

const NODE_COLUMNS: &[Column] = &[
    NAME,
    Column::text("Status"),
    Column::text("Roles"),
    AGE,
    Column::text("Version"),
    Column::wide("Internal-IP"),
    Column::wide("External-IP"),
    Column::wide("OS-Image"),
    Column::wide("Kernel-Version"),
    Column::wide("Container-Runtime"),
];

fn node_row(node: &Value, now: Now) -> Vec<Value> {
    let info = &node["status"]["nodeInfo"];
    let address = |kind: &str| {
        let found = list(&node["status"]["addresses"]).iter().find(|a| a["type"] == kind);
        print::text_or(found.map_or(&Value::Null, |a| &a["address"]), "<none>")
    };
    vec![
        print::name(node),
        node_status(node).into(),
        roles(node).into(),
        print::age(node, now),
        info["kubeletVersion"].as_str().unwrap_or_default().into(),
        address("InternalIP"),
        address("ExternalIP"),
        print::text_or(&info["osImage"], "<unknown>"),
        print::text_or(&info["kernelVersion"], "<unknown>"),
        print::text_or(&info["containerRuntimeVersion"], "<unknown>"),
    ]
}

fn node_status(node: &Value) -> String {
    let ready = list(&node["status"]["conditions"]).iter().find(|c| c["type"] == "Ready");
    let mut status = match ready.map(|c| text(&c["status"])) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    status
}

/// From labels such as `node-role.kubernetes.io/worker` and `kubernetes.io/role=worker`.
fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = entries(&node["metadata"]["labels"])
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => Some(text(value)),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;

    #[test]
    fn namespaces_carry_their_name_and_their_finalizer() {
        let kind = find("", "v1", "namespaces").expect("namespaces");
        let mut namespace = json!({"metadata": {"name": "a"}});
        kind.default(&mut namespace);
        kind.prepare_create(&mut namespace);
        assert_eq!(
            namespace,
            json!({
                "metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
            })
        );
        let mut finalized = json!({"metadata": {"name": "a"}, "spec": {"finalizers": []}});
        kind.prepare_update(&mut finalized, &namespace, Subresource::Finalize);
        assert_eq!(finalized["spec"].get("finalizers"), None);
        assert_eq!(finalized["status"]["phase"], "Active");
        assert!(!kind.validate_create(&json!({"metadata": {"name": "a.b"}})).is_empty());
    }

    #[test]
    fn nodes_show_state_roles_and_addresses() {
        let now = crate::time::parse("2026-01-01T00:00:00Z").expect("now");
        let node = json!({
            "metadata": {"name": "replica-1", "labels": {"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "edge"}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1"},
            },
        });
        let row = node_row(&node, now);
        assert_eq!(
            row,
            [
                "replica-1",
                "Ready,SchedulingDisabled",
                "edge,worker",
                "<unknown>",
                "v1",
                "10.0.0.1",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>"
            ]
        );
    }
}
