//! Certificate signing requests.

use serde_json::{Map, Value, json};

use crate::{
    field::{FieldError, Path},
    kind::{Hooks, Subresource},
    meta::{NameRule, immutable},
    object::{child, has, list, text},
    print::{self, AGE, Column, NAME, Now, duration},
};

pub(crate) const REQUEST: Hooks = Hooks {
    name: NameRule::PathSegment,
    validate_create: |request, errors| validate(request, errors),
    validate_update,
    prepare_create: |request| request["status"] = Value::Object(Map::new()),
    prepare_update,
    columns: &[
        NAME,
        AGE,
        Column::text("SignerName"),
        Column::text("Requestor"),
        Column::text("RequestedDuration"),
        Column::text("Condition"),
    ],
    row,
    selectable: &["spec.signerName"],
    ..Hooks::PLAIN
};

/// The two ways in which a request is decided.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];

/// Through `approval` only the decision passes, through `status` everything else of the status.
fn prepare_update(new: &mut Value, old: &Value, door: Subresource) {
    let decided = |request: &Value, wanted: bool| -> Vec<Value> {
        let is = |c: &&Value| DECISIONS.contains(&text(&c["type"])) == wanted;
        list(&request["status"]["conditions"]).iter().filter(is).cloned().collect()
    };
    match door {
        Subresource::Approval => {
            let mut conditions = decided(old, false);
            conditions.extend(decided(new, true));
            let version = new["metadata"].get("resourceVersion").cloned();
            *new = old.clone();
            child(new, "status")["conditions"] = conditions.into();
            if let Some(version) = version {
                new["metadata"]["resourceVersion"] = version;
            }
        }
        Subresource::Status => {
            let mut conditions = decided(old, true);
            conditions.extend(decided(new, false));
            child(new, "status")["conditions"] = conditions.into();
        }
        Subresource::Main
        | Subresource::Scale
        | Subresource::EphemeralContainers
        | Subresource::Resize
        | Subresource::Finalize => {}
    }
}

fn validate(request: &Value, errors: &mut Vec<FieldError>) {
    const SHORTEST_S: i64 = 600;
    let (spec, path) = (&request["spec"], Path::new("spec"));
    let pem = crate::base64_bytes(text(&spec["request"])).unwrap_or_default();
    let is_request = std::str::from_utf8(&pem).is_ok_and(|t| {
        t.contains("-----BEGIN CERTIFICATE REQUEST-----") && t.contains("-----END CERTIFICATE REQUEST-----")
    });
    if !is_request {
        let detail = "PEM block type must be CERTIFICATE REQUEST";
        errors.push(FieldError::invalid(
            path.child("request"),
            &json!(String::from_utf8_lossy(&pem)),
            detail,
        ));
    }
    if list(&spec["usages"]).is_empty() {
        errors.push(FieldError::required(path.child("usages"), ""));
    }
    let signer = text(&spec["signerName"]);
    if signer.is_empty() {
        errors.push(FieldError::required(path.child("signerName"), ""));
    } else if !signer
        .split_once('/')
        .is_some_and(|(domain, name)| !name.is_empty() && crate::names::subdomain(domain).is_empty())
    {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(FieldError::invalid(path.child("signerName"), &spec["signerName"], detail));
    }
    if spec["expirationSeconds"].as_i64().is_some_and(|s| s < SHORTEST_S) {
        let detail = format!("may not specify a duration less than {SHORTEST_S} seconds (10 minutes)");
        errors.push(FieldError::invalid(
            path.child("expirationSeconds"),
            &spec["expirationSeconds"],
            &detail,
        ));
    }
}

fn validate_update(new: &Value, old: &Value, door: Subresource, errors: &mut Vec<FieldError>) {
    immutable(&new["spec"], &old["spec"], &Path::new("spec"), errors);
    let status = Path::new("status");
    let conditions = status.child("conditions");
    let has_decision = |request: &Value, kind: &str| {
        list(&request["status"]["conditions"]).iter().any(|c| c["type"] == kind)
    };
    if DECISIONS.iter().all(|kind| has_decision(new, kind)) {
        errors.push(FieldError::invalid(
            conditions,
            &json!("Denied"),
            "Approved and Denied conditions are mutually exclusive",
        ));
    }
    if door == Subresource::Approval {
        for kind in DECISIONS.iter().filter(|kind| has_decision(old, kind) && !has_decision(new, kind)) {
            let detail = format!("updates may not remove a condition of type {kind:?}");
            errors.push(FieldError::forbidden(conditions, &detail));
        }
    }
    if has(&old["status"], "certificate") && old["status"]["certificate"] != new["status"]["certificate"] {
        immutable(
            &new["status"]["certificate"],
            &old["status"]["certificate"],
            &status.child("certificate"),
            errors,
        );
    }
}

fn row(request: &Value, now: Now) -> Vec<Value> {
    let (spec, status) = (&request["spec"], &request["status"]);
    let mut words: Vec<&str> = Vec::new();
    let has_condition = |kind: &str| list(&status["conditions"]).iter().any(|c| c["type"] == kind);
    for (kind, word) in [("Approved", "Approved"), ("Denied", "Denied"), ("Failed", "Failed")] {
        if has_condition(kind) {
            words.push(word);
        }
    }
    if words.is_empty() {
        words.push("Pending");
    }
    if has(status, "certificate") {
        words.push("Issued");
    }
    let asked = spec["expirationSeconds"].as_i64().map_or("<none>".to_owned(), duration::human);
    vec![
        print::name(request),
        print::age(request, now),
        print::text_or(&spec["signerName"], "<none>"),
        spec["username"].as_str().unwrap_or_default().into(),
        asked.into(),
        words.join(",").into(),
    ]
}
