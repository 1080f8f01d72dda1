//! Paths that are no resources: version, health, metrics, discovery, OpenAPI, the authority's certificate.

use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use pith_api::{ApiError, discovery};

use crate::{
    accept,
    http::{Body, answer, json, text},
    openapi,
    pki::join::AUTHORITY_PATH,
    request::{Place, Query},
    service_tokens::ISSUER,
    state::State,
};

pub(crate) async fn handle(
    state: &Arc<State>,
    place: Place,
    parts: &Parts,
) -> Result<Response<Body>, ApiError> {
    if !matches!(parts.method, http::Method::GET | http::Method::HEAD) {
        return Err(ApiError::no_such_path());
    }
    if let Place::Discovery { core, parts: names } = place {
        return discover(state, core, &names, parts);
    }
    let path = parts.uri.path();
    let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    match path {
        "/" => Ok(json(StatusCode::OK, &serde_json::json!({"paths": root_paths()}))),
        "/version" => {
            Ok(json(StatusCode::OK, &discovery::version(env!("CARGO_PKG_VERSION"), "1970-01-01T00:00:00Z")))
        }
        AUTHORITY_PATH => Ok(answer(
            StatusCode::OK,
            "application/x-pem-file",
            state.pki.authority.certificate_pem().to_owned(),
        )),
        "/metrics" => {
            let revision = state.objects.store.revision().await.map_or(0, |revision| revision.0);
            let body = state.metrics.text(revision);
            Ok(answer(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body))
        }
        "/openid/v1/jwks" => {
            Ok(answer(StatusCode::OK, "application/jwk-set+json", state.tokens.key_set().to_string()))
        }
        "/.well-known/openid-configuration" => Ok(json(
            StatusCode::OK,
            &serde_json::json!({
                "issuer": ISSUER,
                "jwks_uri": format!("https://{}/openid/v1/jwks", address(state)),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            }),
        )),
        _ if path.starts_with("/openapi/") => openapi::handle(&state.openapi, path, parts),
        _ => health(state, path, parts).await,
    }
}

fn root_paths() -> Vec<String> {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis"].map(str::to_owned).to_vec();
    for (group, versions) in discovery::groups().iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    let rest = ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];
    paths.extend(rest.map(str::to_owned));
    paths
}

fn address(state: &State) -> String {
    std::net::SocketAddr::from(state.advertise).to_string()
}

fn discover(state: &State, core: bool, names: &[String], parts: &Parts) -> Result<Response<Body>, ApiError> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let document = match (core, names.as_slice()) {
        (_, []) => {
            if let Some(version) = accept::aggregated_discovery(&parts.headers) {
                let content_type = match version {
                    "v2" => discovery::AGGREGATED_V2,
                    _ => discovery::AGGREGATED_V2BETA1,
                };
                let document = discovery::aggregated(core, version).to_string();
                let mut response = answer(StatusCode::OK, content_type, document);
                response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
                return Ok(response);
            }
            let plain =
                if core { discovery::core_versions(&address(state)) } else { discovery::group_list() };
            Some(plain)
        }
        (true, [version]) => discovery::resource_list("", version),
        (false, [group]) => discovery::group(group),
        (false, [group, version]) => discovery::resource_list(group, version),
        _ => None,
    };
    Ok(json(StatusCode::OK, &document.ok_or_else(ApiError::no_such_path)?))
}

/// Health, in upstream's words: `ok`, or each check with `?verbose`.
async fn health(state: &State, path: &str, parts: &Parts) -> Result<Response<Body>, ApiError> {
    let mut names = path.trim_start_matches('/').splitn(2, '/');
    let which = names.next().unwrap_or_default();
    let only = names.next();
    if !matches!(which, "healthz" | "livez" | "readyz") {
        return Err(ApiError::no_such_path());
    }
    let store = state.objects.store.revision().await.is_ok();
    let mut checks = vec![("ping", true), ("store", store)];
    if which == "readyz" {
        checks.push(("shutdown", !state.stopping.is_cancelled()));
    }
    if let Some(only) = only {
        checks.retain(|(name, _)| *name == only);
        if checks.is_empty() {
            return Err(ApiError::no_such_path());
        }
    }
    let well = checks.iter().all(|(_, well)| *well);
    let status = if well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    if well && !Query::of(parts).has("verbose") {
        return Ok(text(status, "ok"));
    }
    let lines: Vec<String> =
        checks
            .iter()
            .map(|(name, well)| {
                if *well { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: reason withheld\n") }
            })
            .collect();
    let verdict = if well { "passed" } else { "failed" };
    Ok(text(status, format!("{}{which} check {verdict}\n", lines.concat())))
}
