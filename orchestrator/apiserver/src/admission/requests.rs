//! Certificate signing requests carry who asks; those of nodes are decided while they are created.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use pith_api::ApiError;
use serde_json::{Value, json};

use crate::{
    pki::request::{Application, decide},
    verbs::Call,
};

pub(super) fn create(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let spec = &mut object["spec"];
    spec["username"] = call.who.name.as_str().into();
    spec["groups"] = json!(call.who.groups);
    match call.who.uid.is_empty() {
        true => spec.as_object_mut().map(|spec| spec.shift_remove("uid")),
        false => spec.as_object_mut().map(|spec| spec.insert("uid".into(), call.who.uid.as_str().into())),
    };
    match call.who.extra.is_empty() {
        true => spec.as_object_mut().map(|spec| spec.shift_remove("extra")),
        false => spec.as_object_mut().map(|spec| spec.insert("extra".into(), json!(call.who.extra))),
    };
    let request = spec["request"].as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
    let request = request.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let usages: Vec<String> = spec["usages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|u| u.as_str().map(str::to_owned))
        .collect();
    let application = Application {
        signer: spec["signerName"].as_str().unwrap_or_default(),
        requester: &call.who.name,
        requester_groups: &call.who.groups,
        usages: &usages,
        lifetime: spec["expirationSeconds"].as_u64().map(Duration::from_secs),
        request_pem: &request,
    };
    let Some(decision) = decide(&call.state.pki, &application) else { return Ok(()) };
    let now = pith_api::time::seconds(jiff::Timestamp::now());
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": "True", "reason": reason, "message": message,
            "lastUpdateTime": now, "lastTransitionTime": now,
        })
    };
    object["status"] = match decision {
        Ok(certificate) => json!({
            "conditions": [condition("Approved", "AutoApproved", "Auto approving kubelet certificate after checking who asks for it.")],
            "certificate": BASE64_STANDARD.encode(certificate),
        }),
        Err(refusal) => json!({"conditions": [condition("Denied", "Refused", &refusal.to_string())]}),
    };
    Ok(())
}
