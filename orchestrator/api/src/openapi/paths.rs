//! The operations on each kind, with the parameters by which clients see what the server can do.

use serde_json::{Map, Value, json};

use super::META;
use crate::{
    kind::{Kind, SubresourceKind, api_version},
    patch,
};

/// The two forms of OpenAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

/// Query parameters: name, type, what it does.
type Query = (&'static str, &'static str, &'static str);

const DRY_RUN: Query = (
    "dryRun",
    "string",
    "When present, indicates that modifications should not be persisted. Valid values are: All.",
);
const FIELD_MANAGER: Query =
    ("fieldManager", "string", "The name of the actor that is making these changes.");
const FIELD_VALIDATION: Query =
    ("fieldValidation", "string", "What to do about unknown and duplicate fields: Ignore, Warn or Strict.");
const FORCE: Query = ("force", "boolean", "Take over fields that other appliers own.");
const GRACE: Query =
    ("gracePeriodSeconds", "integer", "Seconds before the object is deleted; zero is at once.");
const ORPHAN: Query = ("orphanDependents", "boolean", "Deprecated: use propagationPolicy.");
const PROPAGATION: Query = (
    "propagationPolicy",
    "string",
    "Whether and how dependents are deleted: Orphan, Background or Foreground.",
);
const LIST: &[Query] = &[
    ("allowWatchBookmarks", "boolean", "Ask for events of type BOOKMARK in a watch."),
    ("continue", "string", "Where the previous, limited list stopped."),
    ("fieldSelector", "string", "Restrict the list by fields."),
    ("labelSelector", "string", "Restrict the list by labels."),
    ("limit", "integer", "How many objects to return at most."),
    ("resourceVersion", "string", "Which version of the list to return or to watch from."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: Exact or NotOlderThan."),
    (
        "sendInitialEvents",
        "boolean",
        "Begin a watch with the objects as they are, and a bookmark behind them.",
    ),
    ("timeoutSeconds", "integer", "How long the call may take, whatever happens."),
    ("watch", "boolean", "Stream changes instead of returning a list."),
];
const WRITE: &[Query] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Query] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const DELETE: &[Query] = &[DRY_RUN, GRACE, ORPHAN, PROPAGATION];

impl Dialect {
    pub(super) fn references(self) -> &'static str {
        match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        }
    }

    fn parameter(self, place: &str, (name, kind, description): Query) -> Value {
        let mut parameter = json!({"name": name, "in": place, "description": description});
        if place == "path" {
            parameter["required"] = true.into();
        }
        match self {
            Self::V2 => {
                parameter["type"] = kind.into();
                parameter["uniqueItems"] = true.into();
            }
            Self::V3 => parameter["schema"] = json!({"type": kind, "uniqueItems": true}),
        }
        parameter
    }

    fn reference(self, schema: &str) -> Value {
        json!({"$ref": format!("{}{schema}", self.references())})
    }
}

/// What one operation is.
struct Operation<'a> {
    /// HTTP method in lower case.
    method: &'static str,
    /// `x-kubernetes-action`
    action: &'static str,
    /// What it is about: decides the id and the kind named in it.
    kind: &'a Kind,
    suffix: &'a str,
    parameters: &'static [Query],
    request: Option<String>,
    response: String,
    /// Group, version and kind of the bodies.
    gvk: (&'a str, &'a str, &'a str),
}

/// Adds all paths of a kind.
pub(super) fn add(kind: &Kind, dialect: Dialect, paths: &mut Map<String, Value>) {
    if kind.verbs.is_empty() {
        return;
    }
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}", api_version(kind.group, kind.version))
    };
    let collection = if kind.namespaced {
        format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{root}/{}", kind.plural)
    };
    let item = format!("{collection}/{{name}}");
    insert(paths, &collection, dialect, collection_operations(kind, ""));
    if kind.is_stored() {
        insert(paths, &item, dialect, item_operations(kind));
        if kind.namespaced {
            insert(paths, &format!("{root}/{}", kind.plural), dialect, vec![list(kind, "ForAllNamespaces")]);
        }
    }
    for sub in kind.subresources {
        insert(paths, &format!("{item}/{}", sub.name), dialect, sub_operations(kind, sub));
    }
}

fn list<'a>(kind: &'a Kind, suffix: &'a str) -> Operation<'a> {
    let response = format!("{}.{}", kind.package, kind.list_kind());
    let gvk = (kind.group, kind.version, kind.kind);
    Operation { method: "get", action: "list", kind, suffix, parameters: LIST, request: None, response, gvk }
}

fn collection_operations<'a>(kind: &'a Kind, suffix: &'a str) -> Vec<Operation<'a>> {
    let name = format!("{}.{}", kind.package, kind.kind);
    let gvk = (kind.group, kind.version, kind.kind);
    kind.verbs
        .iter()
        .filter_map(|verb| {
            Some(match *verb {
                "list" => list(kind, suffix),
                "create" => Operation {
                    method: "post",
                    action: "post",
                    kind,
                    suffix,
                    parameters: WRITE,
                    request: Some(name.clone()),
                    response: name.clone(),
                    gvk,
                },
                "deletecollection" => Operation {
                    method: "delete",
                    action: "deletecollection",
                    kind,
                    suffix,
                    parameters: DELETE,
                    request: Some(format!("{META}.DeleteOptions")),
                    response: format!("{META}.Status"),
                    gvk,
                },
                _ => return None,
            })
        })
        .collect()
}

fn item_operations(kind: &Kind) -> Vec<Operation<'_>> {
    let name = format!("{}.{}", kind.package, kind.kind);
    let gvk = (kind.group, kind.version, kind.kind);
    kind.verbs.iter().filter_map(|verb| item_operation(verb, kind, "", &name, gvk)).collect()
}

fn sub_operations<'a>(kind: &'a Kind, sub: &'a SubresourceKind) -> Vec<Operation<'a>> {
    let gvk = (sub.group, sub.version, sub.kind);
    let package =
        crate::find_kind(sub.group, sub.version, sub.kind).map_or(kind.package, |body| body.package);
    let name = format!("{package}.{}", sub.kind);
    sub.verbs.iter().filter_map(|verb| item_operation(verb, kind, sub.name, &name, gvk)).collect()
}

fn item_operation<'a>(
    verb: &str,
    kind: &'a Kind,
    suffix: &'a str,
    body: &str,
    gvk: (&'a str, &'a str, &'a str),
) -> Option<Operation<'a>> {
    let (method, action, parameters, request): (_, _, &[Query], _) = match verb {
        "get" => ("get", "get", &[], None),
        "create" => ("post", "post", WRITE, Some(body.to_owned())),
        "update" => ("put", "put", WRITE, Some(body.to_owned())),
        "patch" => ("patch", "patch", PATCH, Some(format!("{META}.Patch"))),
        "delete" => ("delete", "delete", DELETE, Some(format!("{META}.DeleteOptions"))),
        _ => return None,
    };
    let response = if verb == "delete" { format!("{META}.Status") } else { body.to_owned() };
    Some(Operation { method, action, kind, suffix, parameters, request, response, gvk })
}

fn insert(paths: &mut Map<String, Value>, path: &str, dialect: Dialect, operations: Vec<Operation<'_>>) {
    let mut entry = Map::new();
    for operation in operations {
        entry.insert(operation.method.to_owned(), operation.render(dialect));
    }
    let common: Vec<Value> = [("name", "name of the object"), ("namespace", "the object's namespace")]
        .into_iter()
        .filter(|(name, _)| path.contains(&format!("{{{name}}}")))
        .map(|(name, text)| dialect.parameter("path", (name, "string", text)))
        .collect();
    if !common.is_empty() {
        entry.insert("parameters".into(), common.into());
    }
    paths.insert(path.to_owned(), Value::Object(entry));
}

impl Operation<'_> {
    fn render(&self, dialect: Dialect) -> Value {
        let (group, version, kind) = self.gvk;
        let mut parameters: Vec<Value> =
            self.parameters.iter().map(|q| dialect.parameter("query", *q)).collect();
        let mut operation = json!({
            "tags": [self.tag()],
            "operationId": self.id(),
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": {"group": group, "kind": kind, "version": version},
        });
        let response = dialect.reference(&self.response);
        let consumed: &[&str] = if self.method == "patch" { patch::MEDIA_TYPES } else { &["*/*"] };
        match dialect {
            Dialect::V2 => {
                if let Some(request) = &self.request {
                    parameters.push(json!({
                        "name": "body", "in": "body", "required": self.method != "delete", "schema": dialect.reference(request),
                    }));
                }
                operation["consumes"] = json!(consumed);
                operation["produces"] = json!(["application/json"]);
                operation["schemes"] = json!(["https"]);
                operation["responses"] = json!({"200": {"description": "OK", "schema": response}, "401": {"description": "Unauthorized"}});
            }
            Dialect::V3 => {
                if let Some(request) = &self.request {
                    let content: Map<String, Value> = consumed
                        .iter()
                        .map(|media| ((*media).to_owned(), json!({"schema": dialect.reference(request)})))
                        .collect();
                    operation["requestBody"] =
                        json!({"content": content, "required": self.method != "delete"});
                }
                operation["responses"] = json!({
                    "200": {"description": "OK", "content": {"application/json": {"schema": response}}},
                    "401": {"description": "Unauthorized"},
                });
            }
        }
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        operation
    }

    /// `apps_v1`
    fn tag(&self) -> String {
        let group = self.kind.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
        format!("{group}_{}", self.kind.version)
    }

    /// `replaceAppsV1NamespacedDeploymentScale`: unique within a document.
    fn id(&self) -> String {
        let verb = match self.action {
            "get" => "read",
            "post" => "create",
            "put" => "replace",
            "deletecollection" => "deleteCollection",
            other => other,
        };
        let scope = if self.kind.namespaced && self.suffix != "ForAllNamespaces" { "Namespaced" } else { "" };
        let parts: String = self.tag().split('_').map(capitalised).collect();
        format!("{verb}{parts}{scope}{}{}", self.kind.kind, capitalised(self.suffix))
    }
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
