//! Containers of a pod: names, ports, environment, mounts, probes, lifecycle.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::{
    validate::{self, maybe_one_of, name, non_negative, one_of},
    volumes,
};
use crate::{
    field::{FieldError, Path},
    names,
    object::{has, list, text},
};

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const MESSAGE_POLICIES: &[&str] = &["File", "FallbackToLogsOnError"];
pub(crate) const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
const FIELD_PATHS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
/// A signal that `stopSignal` may name needs an operating system to be named too; that is all there is to check
/// here, the names are the kubelet's.
const MAX_PORT: i64 = 65_535;

/// Which of a pod's three lists a container stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    App,
    Init,
    Ephemeral,
}

pub(super) fn validate(
    spec: &Value,
    volume_names: &HashSet<&str>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    let mut seen = HashSet::new();
    let groups =
        [("initContainers", Role::Init), ("containers", Role::App), ("ephemeralContainers", Role::Ephemeral)];
    for (field, role) in groups {
        let path = path.child(field);
        if role == Role::App && list(&spec[field]).is_empty() {
            errors.push(FieldError::required(path, ""));
        }
        for (i, one) in list(&spec[field]).iter().enumerate() {
            let path = path.index(i);
            container(one, role, volume_names, &path, errors);
            if !text(&one["name"]).is_empty() && !seen.insert(text(&one["name"])) {
                errors.push(FieldError::duplicate(path.child("name"), &one["name"]));
            }
            if spec["hostNetwork"] == true {
                host_network_ports(one, &path, errors);
            }
        }
    }
    host_ports(spec, path, errors);
}

fn container(
    one: &Value,
    role: Role,
    volume_names: &HashSet<&str>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    if text(&one["name"]).is_empty() {
        errors.push(FieldError::required(path.child("name"), ""));
    } else {
        name(&one["name"], names::label, &path.child("name"), errors);
    }
    let image = text(&one["image"]);
    if image.is_empty() {
        errors.push(FieldError::required(path.child("image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(
            path.child("image"),
            &one["image"],
            "must not have leading or trailing whitespace",
        ));
    }
    one_of(&one["imagePullPolicy"], PULL_POLICIES, &path.child("imagePullPolicy"), errors);
    one_of(
        &one["terminationMessagePolicy"],
        MESSAGE_POLICIES,
        &path.child("terminationMessagePolicy"),
        errors,
    );
    ports(&one["ports"], &path.child("ports"), errors);
    environment(one, path, errors);
    mounts(one, volume_names, path, errors);
    validate::resources(&one["resources"], &path.child("resources"), errors);
    security_context(&one["securityContext"], &path.child("securityContext"), errors);
    restart_policy(one, role, path, errors);
    life(one, role, path, errors);
}

/// Only init containers have a restart policy of their own, and only `Always` (sidecars).
fn restart_policy(one: &Value, role: Role, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let path = path.child("restartPolicy");
    match (role, text(&one["restartPolicy"])) {
        (_, "") => {}
        (Role::Ephemeral, _) => {
            errors.push(FieldError::forbidden(path, "cannot be set for an Ephemeral Container"))
        }
        (Role::Init | Role::App, _) => {
            maybe_one_of(&one["restartPolicy"], &["Always", "OnFailure", "Never"], &path, errors);
        }
    }
}

fn life(one: &Value, role: Role, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let sidecar = role == Role::Init && one["restartPolicy"] == "Always";
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if !has(one, field) {
            continue;
        }
        match role {
            Role::Init if !sidecar => {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errors.push(FieldError::forbidden(path.child(field), detail));
            }
            Role::Ephemeral => {
                errors.push(FieldError::forbidden(
                    path.child(field),
                    "cannot be set for an Ephemeral Container",
                ));
            }
            Role::App | Role::Init if field == "lifecycle" => {
                lifecycle(&one[field], &path.child(field), errors)
            }
            Role::App | Role::Init => probe(&one[field], field, &path.child(field), errors),
        }
    }
    if role == Role::Ephemeral {
        for field in ["ports", "resources"] {
            if one[field].as_array().is_some_and(|p| !p.is_empty())
                || one[field].as_object().is_some_and(|r| !r.is_empty())
            {
                errors.push(FieldError::forbidden(
                    path.child(field),
                    "cannot be set for an Ephemeral Container",
                ));
            }
        }
    }
}

/// A port number, required.
pub(crate) fn port_number(value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if !value.as_i64().is_some_and(|port| (1..=MAX_PORT).contains(&port)) {
        errors.push(FieldError::invalid(path, value, "must be between 1 and 65535, inclusive"));
    }
}

/// A port by number or by name.
pub(crate) fn port_number_or_name(value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if value.is_string() {
        name(value, names::port_name, path, errors);
    } else {
        let shown = if value.is_null() { &json!(0) } else { value };
        port_number(shown, path, errors);
    }
}

fn ports(ports: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (i, port) in list(ports).iter().enumerate() {
        let path = path.index(i);
        if !text(&port["name"]).is_empty() {
            let problems = names::port_name(text(&port["name"]));
            if problems.is_empty() && !seen.insert(text(&port["name"])) {
                errors.push(FieldError::duplicate(path.child("name"), &port["name"]));
            }
            for problem in problems {
                errors.push(FieldError::invalid(path.child("name"), &port["name"], &problem));
            }
        }
        if port["containerPort"].as_i64().unwrap_or(0) == 0 {
            errors.push(FieldError::required(path.child("containerPort"), ""));
        } else {
            port_number(&port["containerPort"], &path.child("containerPort"), errors);
        }
        if port["hostPort"].as_i64().unwrap_or(0) != 0 {
            port_number(&port["hostPort"], &path.child("hostPort"), errors);
        }
        one_of(&port["protocol"], PROTOCOLS, &path.child("protocol"), errors);
    }
}

fn host_network_ports(one: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for (i, port) in list(&one["ports"]).iter().enumerate() {
        if port["hostPort"] != port["containerPort"] {
            let ports = path.child("ports");
            let detail = "must match `hostPort` when `hostNetwork` is true";
            errors.push(FieldError::invalid(
                ports.index(i).child("containerPort"),
                &port["containerPort"],
                detail,
            ));
        }
    }
}

/// A port of the node can be taken once.
fn host_ports(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut taken = HashSet::new();
    let containers = path.child("containers");
    for (i, one) in list(&spec["containers"]).iter().enumerate() {
        for (j, port) in list(&one["ports"]).iter().enumerate() {
            let Some(number @ 1..) = port["hostPort"].as_i64() else { continue };
            let key = format!("{}/{}/{number}", text(&port["protocol"]), text(&port["hostIP"]));
            if !taken.insert(key.clone()) {
                let place = containers.index(i);
                let place = place.child("ports");
                errors.push(FieldError::duplicate(place.index(j).child("hostPort"), &json!(key)));
            }
        }
    }
}

fn environment(one: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let env = path.child("env");
    for (i, variable) in list(&one["env"]).iter().enumerate() {
        let item = env.index(i);
        if text(&variable["name"]).is_empty() {
            errors.push(FieldError::required(item.child("name"), ""));
        } else {
            name(&variable["name"], names::env_var, &item.child("name"), errors);
        }
        if has(variable, "valueFrom") {
            value_from(variable, &item.child("valueFrom"), errors);
        }
    }
    let from = path.child("envFrom");
    for (i, source) in list(&one["envFrom"]).iter().enumerate() {
        let item = from.index(i);
        if !text(&source["prefix"]).is_empty() {
            name(&source["prefix"], names::env_var, &item.child("prefix"), errors);
        }
        match (has(source, "configMapRef"), has(source, "secretRef")) {
            (true, true) => errors.push(FieldError::invalid(
                item,
                &json!(""),
                "may not have more than one field specified at a time",
            )),
            (false, false) => {
                errors.push(FieldError::invalid(
                    item,
                    &json!(""),
                    "must specify one of: `configMapRef` or `secretRef`",
                ));
            }
            (config, _) => {
                let field = if config { "configMapRef" } else { "secretRef" };
                if text(&source[field]["name"]).is_empty() {
                    errors.push(FieldError::required(item.child(field).child("name"), ""));
                }
            }
        }
    }
}

fn value_from(variable: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    const SOURCES: [&str; 5] =
        ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let source = &variable["valueFrom"];
    let given: Vec<&str> = SOURCES.into_iter().filter(|s| has(source, s)).collect();
    match given.as_slice() {
        [] => {
            let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
            errors.push(FieldError::invalid(path, &json!(""), detail));
        }
        [_] if !text(&variable["value"]).is_empty() => {
            errors.push(FieldError::invalid(
                path,
                &json!(""),
                "may not be specified when `value` is not empty",
            ));
        }
        [_] => {}
        _ => errors.push(FieldError::invalid(
            path,
            &json!(""),
            "may not have more than one field specified at a time",
        )),
    }
    if has(source, "fieldRef") {
        field_ref(&source["fieldRef"], FIELD_PATHS, &path.child("fieldRef"), errors);
    }
    if has(source, "resourceFieldRef") {
        resource_ref(&source["resourceFieldRef"], &path.child("resourceFieldRef"), errors);
    }
    for field in ["configMapKeyRef", "secretKeyRef"] {
        if !has(source, field) {
            continue;
        }
        let (key, path) = (&source[field], path.child(field));
        if text(&key["name"]).is_empty() {
            errors.push(FieldError::required(path.child("name"), ""));
        }
        if text(&key["key"]).is_empty() {
            errors.push(FieldError::required(path.child("key"), ""));
        } else {
            name(&key["key"], names::config_key, &path.child("key"), errors);
        }
    }
}

/// A field of the pod; labels and annotations can be asked for one by one.
pub(super) fn field_ref(field: &Value, supported: &[&str], path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let wanted = text(&field["fieldPath"]);
    if wanted.is_empty() {
        errors.push(FieldError::required(path.child("fieldPath"), ""));
        return;
    }
    let subscript = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .find_map(|head| wanted.strip_prefix(head)?.strip_suffix("']"));
    if let Some(key) = subscript {
        for problem in names::qualified(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, &json!(key), &problem));
        }
    } else if !supported.contains(&wanted) {
        errors.push(FieldError::not_supported(path.child("fieldPath"), &field["fieldPath"], supported));
    }
}

pub(super) fn resource_ref(field: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let wanted = text(&field["resource"]);
    let huge = wanted.starts_with("limits.hugepages-") || wanted.starts_with("requests.hugepages-");
    if wanted.is_empty() {
        errors.push(FieldError::required(path.child("resource"), ""));
    } else if !RESOURCE_FIELDS.contains(&wanted) && !huge {
        errors.push(FieldError::not_supported(path.child("resource"), &field["resource"], RESOURCE_FIELDS));
    }
}

fn mounts(one: &Value, volume_names: &HashSet<&str>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    let path = path.child("volumeMounts");
    for (i, mount) in list(&one["volumeMounts"]).iter().enumerate() {
        let item = path.index(i);
        if text(&mount["name"]).is_empty() {
            errors.push(FieldError::required(item.child("name"), ""));
        } else if !volume_names.contains(text(&mount["name"])) {
            errors.push(FieldError::not_found(item.child("name"), &mount["name"]));
        }
        if text(&mount["mountPath"]).is_empty() {
            errors.push(FieldError::required(item.child("mountPath"), ""));
        } else if !seen.insert(text(&mount["mountPath"])) {
            errors.push(FieldError::invalid(item.child("mountPath"), &mount["mountPath"], "must be unique"));
        }
        for field in ["subPath", "subPathExpr"] {
            if !text(&mount[field]).is_empty() {
                volumes::local_path(&mount[field], &item.child(field), errors);
            }
        }
        if !text(&mount["subPath"]).is_empty() && !text(&mount["subPathExpr"]).is_empty() {
            errors.push(FieldError::invalid(
                item.child("subPathExpr"),
                &mount["subPathExpr"],
                "subPathExpr and subPath are mutually exclusive",
            ));
        }
        maybe_one_of(
            &mount["mountPropagation"],
            &["Bidirectional", "HostToContainer", "None"],
            &item.child("mountPropagation"),
            errors,
        );
        if mount["mountPropagation"] == "Bidirectional" && one["securityContext"]["privileged"] != true {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(item.child("mountPropagation"), detail));
        }
    }
}

fn probe(probe: &Value, kind: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    handler(probe, path, errors);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        non_negative(&probe[field], &path.child(field), errors);
    }
    if kind != "readinessProbe" && probe["successThreshold"].as_i64().unwrap_or(1) != 1 {
        errors.push(FieldError::invalid(
            path.child("successThreshold"),
            &probe["successThreshold"],
            "must be 1",
        ));
    }
    if let Some(grace) = probe["terminationGracePeriodSeconds"].as_i64() {
        let place = path.child("terminationGracePeriodSeconds");
        if kind == "readinessProbe" {
            errors.push(FieldError::invalid(
                place,
                &probe["terminationGracePeriodSeconds"],
                "must not be set for readinessProbes",
            ));
        } else if grace <= 0 {
            errors.push(FieldError::invalid(
                place,
                &probe["terminationGracePeriodSeconds"],
                "must be greater than 0",
            ));
        }
    }
}

fn lifecycle(lifecycle: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for field in ["postStart", "preStop"] {
        if has(lifecycle, field) {
            handler(&lifecycle[field], &path.child(field), errors);
        }
    }
}

/// Exactly one way of asking or telling a container.
fn handler(of: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let given: Vec<&str> = HANDLERS.iter().copied().filter(|h| has(of, h)).collect();
    if given.is_empty() {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
    for extra in given.iter().skip(1) {
        errors.push(FieldError::forbidden(path.child(extra), "may not specify more than 1 handler type"));
    }
    let Some(kind) = given.first() else { return };
    let (action, path) = (&of[*kind], path.child(kind));
    match *kind {
        "exec" => {
            if list(&action["command"]).is_empty() {
                errors.push(FieldError::required(path.child("command"), ""));
            }
        }
        "httpGet" => {
            if text(&action["path"]).is_empty() {
                errors.push(FieldError::required(path.child("path"), ""));
            }
            port_number_or_name(&action["port"], &path.child("port"), errors);
            one_of(&action["scheme"], &["HTTP", "HTTPS"], &path.child("scheme"), errors);
            for (i, header) in list(&action["httpHeaders"]).iter().enumerate() {
                let valid = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
                let header_name = text(&header["name"]);
                if header_name.is_empty() || !header_name.bytes().all(valid) {
                    let headers = path.child("httpHeaders");
                    let detail = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
                    errors.push(FieldError::invalid(headers.index(i).child("name"), &header["name"], detail));
                }
            }
        }
        "tcpSocket" => port_number_or_name(&action["port"], &path.child("port"), errors),
        "grpc" => port_number(&action["port"], &path.child("port"), errors),
        _ => non_negative(&action["seconds"], &path.child("seconds"), errors),
    }
}

fn security_context(context: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for field in ["runAsUser", "runAsGroup"] {
        validate::id(&context[field], &path.child(field), errors);
    }
    validate::seccomp(&context["seccompProfile"], &path.child("seccompProfile"), errors);
    maybe_one_of(&context["procMount"], &["Default", "Unmasked"], &path.child("procMount"), errors);
    if context["allowPrivilegeEscalation"] == false {
        let detail = if context["privileged"] == true {
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"
        } else if list(&context["capabilities"]["add"]).iter().any(|c| c == "CAP_SYS_ADMIN") {
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"
        } else {
            return;
        };
        errors.push(FieldError::invalid(path, &describe(context), detail));
    }
}

fn describe(context: &Value) -> Value {
    let kept: BTreeMap<&str, &Value> = ["allowPrivilegeEscalation", "privileged", "capabilities"]
        .into_iter()
        .filter(|k| has(context, k))
        .map(|k| (k, &context[k]))
        .collect();
    json!(kept)
}
