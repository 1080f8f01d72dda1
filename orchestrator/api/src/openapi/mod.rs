//! OpenAPI documents: `/openapi/v3` with one document a group version, and `/openapi/v2` with everything.
//!
//! Structure comes from the schema table, words from k8s-openapi's descriptions. Documents are large and asked
//! for rarely, so they are built when asked for and not kept: callers that cache them should compress them.

use serde_json::{Map, Value, json};

use self::{
    paths::Dialect,
    schemas::{Descriptions, Schemas},
};
use crate::{
    discovery::{GIT_VERSION, groups},
    kind::Kind,
    kinds::kinds,
    schema::Type,
};

mod paths;
mod schemas;
mod wire;

pub use schemas::Register;
pub(crate) use schemas::{describe, undescribed};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// `/openapi/v3`: where each group version's document is. The hash in each address changes whenever the document
/// may have changed, so that clients can keep documents for ever.
pub fn index() -> Value {
    let hash = hash();
    let mut paths = Map::new();
    for (group, version) in group_versions() {
        let path = document_path(group, version);
        paths.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
    }
    json!({"paths": paths})
}

/// `api/v1` or `apis/apps/v1`
fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn group_versions() -> impl Iterator<Item = (&'static str, &'static str)> {
    groups().into_iter().flat_map(|(group, versions)| versions.into_iter().map(move |v| (group, v)))
}

/// Names the content of all documents: it depends on nothing but this program's tables and version.
pub fn hash() -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    add(GIT_VERSION.as_bytes());
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(crate::schema::TABLE.as_bytes());
    for kind in kinds() {
        add(format!("{}/{}/{}{:?}{:?}", kind.group, kind.version, kind.kind, kind.verbs, kind.subresources)
            .as_bytes());
    }
    format!("{hash:016X}")
}

/// The document behind one path of the index, such as `apis/apps/v1`.
pub fn document(path: &str) -> Option<Value> {
    let (group, version) = group_versions().find(|(group, version)| document_path(group, version) == path)?;
    let members: Vec<&Kind> = kinds().iter().filter(|k| k.group == group && k.version == version).collect();
    let descriptions = Descriptions::of(&members);
    let mut schemas = Schemas::new(Dialect::V3, &descriptions);
    add_types(&members, &mut schemas);
    let mut paths = Map::new();
    for kind in &members {
        paths::add(kind, Dialect::V3, &mut paths);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": GIT_VERSION},
        "paths": paths,
        "components": {
            "schemas": schemas.finish(),
            "securitySchemes": {"BearerToken": {
                "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header",
            }},
        },
    }))
}

/// `/openapi/v2`
pub fn swagger() -> Value {
    let members: Vec<&Kind> = kinds().iter().collect();
    let descriptions = Descriptions::of(&members);
    let mut schemas = Schemas::new(Dialect::V2, &descriptions);
    add_types(&members, &mut schemas);
    let mut paths = Map::new();
    for kind in &members {
        paths::add(kind, Dialect::V2, &mut paths);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": GIT_VERSION},
        "paths": paths,
        "definitions": schemas.finish(),
        "securityDefinitions": {"BearerToken": {
            "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header",
        }},
        "security": [{"BearerToken": []}],
    })
}

/// `/openapi/v2` as protobuf.
pub fn swagger_protobuf() -> Vec<u8> {
    wire::encode(&swagger())
}

/// The kinds, their lists, and the types of meta/v1 that every group speaks.
fn add_types(members: &[&Kind], schemas: &mut Schemas<'_>) {
    for kind in members {
        schemas.add_kind(kind);
        for sub in kind.subresources {
            if let Some(body) = crate::find_kind(sub.group, sub.version, sub.kind) {
                schemas.add_kind(body);
            }
        }
    }
    for name in ["DeleteOptions", "Status", "WatchEvent", "APIResourceList"] {
        if let Some(ty) = Type::find(META, name) {
            schemas.add_type(ty);
        }
    }
    schemas.add_patch();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` below a document.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                for (name, below) in map {
                    match below.as_str() {
                        Some(target) if name == "$ref" => found.push(target),
                        _ => references(below, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_document_is_complete() {
        let index = index();
        let paths = index["paths"].as_object().expect("paths");
        assert!(paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1"));
        for path in paths.keys() {
            let document = document(path).expect(path);
            let mut found = Vec::new();
            references(&document, &mut found);
            for target in found {
                let pointer = target.strip_prefix('#').expect("local references");
                assert!(document.pointer(pointer).is_some(), "{path}: {target}");
            }
        }
        let swagger = swagger();
        let mut found = Vec::new();
        references(&swagger, &mut found);
        for target in found {
            assert!(swagger.pointer(&target[1..]).is_some(), "{target}");
        }
        assert_eq!(document("apis/nowhere/v1"), None);
    }

    #[test]
    fn schemas_carry_what_clients_patch_and_explain_by() {
        let document = document("apis/apps/v1").expect("apps/v1");
        let schemas = &document["components"]["schemas"];
        let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(
            deployment["x-kubernetes-group-version-kind"],
            json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
        );
        assert!(
            deployment["description"].as_str().is_some_and(|d| d.contains("Deployment enables")),
            "{deployment:#}"
        );
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(schemas["io.k8s.api.core.v1.PodSpec"]["required"], json!(["containers"]));
        let replicas = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["replicas"];
        assert_eq!((&replicas["type"], &replicas["format"]), (&json!("integer"), &json!("int32")));
    }

    #[test]
    fn operations_advertise_server_side_validation_and_dry_run() {
        let document = document("apis/apps/v1").expect("apps/v1");
        let item = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        let patch = &item["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "kind": "Deployment", "version": "v1"})
        );
        let names: Vec<&str> = patch["parameters"]
            .as_array()
            .expect("parameters")
            .iter()
            .filter_map(|p| p["name"].as_str())
            .collect();
        for name in ["dryRun", "fieldManager", "fieldValidation", "force"] {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
        assert!(
            document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"].is_object()
        );
        assert!(document["paths"]["/apis/apps/v1/deployments"]["get"].is_object());
    }
}
