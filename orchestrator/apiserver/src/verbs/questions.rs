//! Kinds that are asked, not stored: who am I, may I, is this token good.

use http::{Response, StatusCode};
use pith_api::ApiError;
use serde_json::{Value, json};

use super::{Call, read_body};
use crate::{
    authn::token_identity,
    authz::Attributes,
    http::{Body, RequestBody},
    identity::Identity,
    pki::MASTERS,
    render,
};

pub(crate) async fn create(call: &Call, body: RequestBody) -> Result<Response<Body>, ApiError> {
    let body = read_body(body).await?;
    let kind = call.target.kind;
    let (mut question, _) = kind.decode(call.content_type(), &body, call.validation()?)?;
    question["status"] = match kind.kind {
        "SelfSubjectReview" => json!({"userInfo": call.who.user_info()}),
        "TokenReview" => review_token(call, &question["spec"]).await?,
        "SelfSubjectAccessReview" => review_access(call, &call.who, &question["spec"])?,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let who = subject_of(&question["spec"]);
            review_access(call, &who, &question["spec"])?
        }
        "SelfSubjectRulesReview" => rules(&call.who),
        _ => return Err(ApiError::method_not_allowed(call.target.subject(), "POST")),
    };
    if question["metadata"].is_null() {
        question["metadata"] = json!({"creationTimestamp": null});
    }
    Ok(render::value(call, StatusCode::CREATED, question))
}

async fn review_token(call: &Call, spec: &Value) -> Result<Value, ApiError> {
    let token = spec["token"].as_str().unwrap_or_default();
    let audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    Ok(match token_identity(&call.state, token, &audiences).await? {
        Some((identity, audiences)) => {
            json!({"authenticated": true, "user": identity.user_info(), "audiences": audiences})
        }
        None => json!({"user": {}, "error": "invalid bearer token"}),
    })
}

fn subject_of(spec: &Value) -> Identity {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let mut identity = Identity::new(spec["user"].as_str().unwrap_or_default(), &[]);
    identity.uid = spec["uid"].as_str().unwrap_or_default().to_owned();
    identity.groups = texts(&spec["groups"]);
    if let Some(extra) = spec["extra"].as_object() {
        identity.extra = extra.iter().map(|(key, values)| (key.clone(), texts(values))).collect();
    }
    identity
}

fn review_access(call: &Call, who: &Identity, spec: &Value) -> Result<Value, ApiError> {
    let resource = &spec["resourceAttributes"];
    let path = &spec["nonResourceAttributes"];
    let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    if resource.is_object() == path.is_object() {
        return Err(ApiError::bad_request(
            "spec: Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    }
    let allowed = if path.is_object() {
        let method = text(&path["verb"]).to_ascii_uppercase().parse();
        let method =
            method.map_err(|_| ApiError::bad_request("spec.nonResourceAttributes.verb: Invalid value"))?;
        call.state.authorizer.may_request(who, &method, &text(&path["path"]))
    } else {
        let field = |name: &str| resource[name].as_str().unwrap_or_default();
        call.state.authorizer.may(
            who,
            &Attributes {
                verb: field("verb"),
                group: field("group"),
                resource: field("resource"),
                subresource: field("subresource"),
                namespace: field("namespace"),
                name: field("name"),
                selected_node: None,
            },
        )
    };
    Ok(json!({"allowed": allowed}))
}

/// The rules are code, so only two answers can be given as a list.
fn rules(who: &Identity) -> Value {
    if who.is_in(MASTERS) {
        return json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        });
    }
    json!({
        "resourceRules": [
            {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]},
            {
                "verbs": ["create"], "apiGroups": ["authorization.k8s.io"],
                "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
            },
        ],
        "nonResourceRules": [{
            "verbs": ["get"],
            "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version"],
        }],
        "incomplete": true,
        "evaluationError": "the rules of this server are not all expressible as a list",
    })
}
