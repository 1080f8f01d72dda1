//! What makes a pod's spec unusable. Containers, volumes and scheduling have files of their own.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{containers, scheduling, volumes};
use crate::{
    field::{FieldError, Path},
    names,
    object::{entries, has, list, text},
};

const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];

pub(super) fn create(pod: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    spec(&pod["spec"], &path, errors);
    if !list(&pod["spec"]["schedulingGates"]).is_empty() && has(&pod["spec"], "nodeName") {
        errors.push(FieldError::forbidden(
            path.child("nodeName"),
            "cannot be set until all schedulingGates have been cleared",
        ));
    }
}

/// A workload's template: labels, annotations and spec.
pub(crate) fn template(template: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let metadata = path.child("metadata");
    crate::meta::validate_labels(&template["metadata"]["labels"], &metadata.child("labels"), errors);
    crate::meta::validate_annotations(
        &template["metadata"]["annotations"],
        &metadata.child("annotations"),
        errors,
    );
    spec(&template["spec"], &path.child("spec"), errors);
    if has(&template["spec"], "ephemeralContainers") {
        errors.push(FieldError::forbidden(
            path.child("spec").child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

/// One of the words that a field may have; empty counts as missing.
pub(crate) fn one_of(value: &Value, supported: &[&str], path: &Path<'_>, errors: &mut Vec<FieldError>) {
    match text(value) {
        "" => errors.push(FieldError::required(path, "")),
        word if !supported.contains(&word) => errors.push(FieldError::not_supported(path, value, supported)),
        _ => {}
    }
}

/// As [`one_of`], where absent is fine.
pub(crate) fn maybe_one_of(value: &Value, supported: &[&str], path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if !value.is_null() && !supported.contains(&text(value)) {
        errors.push(FieldError::not_supported(path, value, supported));
    }
}

/// A number that may not be negative.
pub(crate) fn non_negative(value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if value.as_i64().is_some_and(|n| n < 0) {
        errors.push(FieldError::invalid(path, value, "must be greater than or equal to 0"));
    }
}

/// A name under one of the rules of [`names`].
pub(crate) fn name(
    value: &Value,
    rule: fn(&str) -> Vec<String>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    for problem in rule(text(value)) {
        errors.push(FieldError::invalid(path, value, &problem));
    }
}

pub(crate) fn spec(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let volume_names = volumes::validate(&spec["volumes"], &path.child("volumes"), errors);
    containers::validate(spec, &volume_names, path, errors);
    one_of(&spec["restartPolicy"], RESTART_POLICIES, &path.child("restartPolicy"), errors);
    one_of(&spec["dnsPolicy"], DNS_POLICIES, &path.child("dnsPolicy"), errors);
    dns_config(spec, path, errors);
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64()
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        errors.push(FieldError::invalid(
            path.child("activeDeadlineSeconds"),
            &spec["activeDeadlineSeconds"],
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    non_negative(
        &spec["terminationGracePeriodSeconds"],
        &path.child("terminationGracePeriodSeconds"),
        errors,
    );
    for (field, rule) in [
        ("serviceAccountName", names::subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::subdomain),
        ("hostname", names::label),
        ("subdomain", names::label),
        ("priorityClassName", names::subdomain),
        ("runtimeClassName", names::subdomain),
    ] {
        if has(spec, field) {
            name(&spec[field], rule, &path.child(field), errors);
        }
    }
    crate::meta::validate_labels(&spec["nodeSelector"], &path.child("nodeSelector"), errors);
    for (i, secret) in list(&spec["imagePullSecrets"]).iter().enumerate() {
        if text(&secret["name"]).is_empty() {
            let secrets = path.child("imagePullSecrets");
            errors.push(FieldError::required(secrets.index(i).child("name"), ""));
        }
    }
    security_context(spec, &path.child("securityContext"), errors);
    scheduling::validate(spec, path, errors);
    host_aliases(spec, path, errors);
    for (i, gate) in list(&spec["readinessGates"]).iter().enumerate() {
        name(
            &gate["conditionType"],
            names::qualified,
            &path.child("readinessGates").index(i).child("conditionType"),
            errors,
        );
    }
}

fn dns_config(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    const MAX_NAMESERVERS: usize = 3;
    const MAX_SEARCHES: usize = 32;
    let (config, path) = (&spec["dnsConfig"], path.child("dnsConfig"));
    let servers = list(&config["nameservers"]);
    if spec["dnsPolicy"] == "None" && servers.is_empty() {
        if config.is_null() {
            errors.push(FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
        } else {
            errors.push(FieldError::required(
                path.child("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            ));
        }
    }
    if servers.len() > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.push(FieldError::invalid(path.child("nameservers"), &config["nameservers"], &detail));
    }
    for (i, server) in servers.iter().enumerate() {
        ip(server, &path.child("nameservers").index(i), errors);
    }
    if list(&config["searches"]).len() > MAX_SEARCHES {
        let detail = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.push(FieldError::invalid(path.child("searches"), &config["searches"], &detail));
    }
    for (i, search) in list(&config["searches"]).iter().enumerate() {
        let domain = text(search);
        // A trailing dot is how resolv.conf says "absolute"; a lone dot is the root.
        if domain != "." {
            for problem in names::subdomain(domain.strip_suffix('.').unwrap_or(domain)) {
                errors.push(FieldError::invalid(path.child("searches").index(i), search, &problem));
            }
        }
    }
    for (i, option) in list(&config["options"]).iter().enumerate() {
        if text(&option["name"]).is_empty() {
            errors.push(FieldError::required(path.child("options").index(i), "must not be empty"));
        }
    }
}

/// An IP address of either family.
pub(crate) fn ip(value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if text(value).parse::<std::net::IpAddr>().is_err() {
        errors.push(FieldError::invalid(
            path,
            value,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ));
    }
}

fn host_aliases(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let path = path.child("hostAliases");
    let mut seen = HashSet::new();
    for (i, alias) in list(&spec["hostAliases"]).iter().enumerate() {
        let item = path.index(i);
        ip(&alias["ip"], &item.child("ip"), errors);
        if !seen.insert(text(&alias["ip"])) {
            errors.push(FieldError::duplicate(item.child("ip"), &alias["ip"]));
        }
        for (j, host) in list(&alias["hostnames"]).iter().enumerate() {
            name(host, names::subdomain, &item.child("hostnames").index(j), errors);
        }
    }
}

fn security_context(spec: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let context = &spec["securityContext"];
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        id(&context[field], &path.child(field), errors);
    }
    for (i, group) in list(&context["supplementalGroups"]).iter().enumerate() {
        id(group, &path.child("supplementalGroups").index(i), errors);
    }
    let mut seen = HashSet::new();
    for (i, sysctl) in list(&context["sysctls"]).iter().enumerate() {
        let item = path.child("sysctls");
        let item = item.index(i);
        let sysctl_name = text(&sysctl["name"]);
        if sysctl_name.is_empty() {
            errors.push(FieldError::required(item.child("name"), ""));
        } else if !sysctl_name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_./".contains(&b))
        {
            let detail = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(FieldError::invalid(item.child("name"), &sysctl["name"], detail));
        } else if !seen.insert(sysctl_name) {
            errors.push(FieldError::duplicate(item.child("name"), &sysctl["name"]));
        }
    }
    seccomp(&context["seccompProfile"], &path.child("seccompProfile"), errors);
}

/// A user or group id: what Linux knows as one.
pub(super) fn id(value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if value.as_i64().is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id)) {
        errors.push(FieldError::invalid(path, value, "must be between 0 and 2147483647, inclusive"));
    }
}

pub(super) fn seccomp(profile: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if profile.is_null() {
        return;
    }
    let file = text(&profile["localhostProfile"]);
    match text(&profile["type"]) {
        "Localhost" if file.is_empty() => {
            errors.push(FieldError::required(
                path.child("localhostProfile"),
                "must be set when seccomp type is Localhost ",
            ));
        }
        "Localhost" => {
            volumes::local_path(&profile["localhostProfile"], &path.child("localhostProfile"), errors)
        }
        "RuntimeDefault" | "Unconfined" => {
            if !file.is_empty() {
                errors.push(FieldError::invalid(
                    path.child("localhostProfile"),
                    &profile["localhostProfile"],
                    "can only be set when seccomp type is Localhost",
                ));
            }
        }
        "" => errors
            .push(FieldError::required(path.child("type"), "type is required when seccompProfile is set")),
        _ => errors.push(FieldError::not_supported(
            path.child("type"),
            &profile["type"],
            &["Localhost", "RuntimeDefault", "Unconfined"],
        )),
    }
}

/// Requests and limits: well formed, not negative, requests within limits.
pub(crate) fn resources(resources: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    use crate::quantity::Quantity;
    let parse = |value: &Value| text(value).parse::<Quantity>().ok();
    for kind in ["limits", "requests"] {
        let path = path.child(kind);
        for (resource, amount) in entries(&resources[kind]) {
            let place = path.key(resource);
            name(&json!(resource), names::qualified, &place, errors);
            if names::qualified(resource).is_empty() && !resource.contains('/') && !is_standard(resource) {
                errors.push(FieldError::invalid(
                    place,
                    &json!(resource),
                    "must be a standard resource type or fully qualified",
                ));
                errors.push(FieldError::invalid(
                    place,
                    &json!(resource),
                    "must be a standard resource for containers",
                ));
            }
            let Some(quantity) = parse(amount) else { continue };
            if quantity.is_negative() {
                errors.push(FieldError::invalid(place, amount, "must be greater than or equal to 0"));
            }
            if (resource.contains('/') || resource.starts_with("hugepages-")) && !quantity.is_whole() {
                errors.push(FieldError::invalid(place, amount, "must be an integer"));
            }
        }
    }
    for (resource, request) in entries(&resources["requests"]) {
        let Some(limit) = parse(&resources["limits"][resource]) else { continue };
        let exact = resource.contains('/') || resource.starts_with("hugepages-");
        let requests = path.child("requests");
        match parse(request) {
            Some(asked) if exact && asked != limit => {
                let detail = format!("must be equal to {resource} limit of {limit}");
                errors.push(FieldError::invalid(requests, request, &detail));
            }
            Some(asked) if asked > limit => {
                let detail = format!("must be less than or equal to {resource} limit of {limit}");
                errors.push(FieldError::invalid(requests, request, &detail));
            }
            _ => {}
        }
    }
}

fn is_standard(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-")
}
