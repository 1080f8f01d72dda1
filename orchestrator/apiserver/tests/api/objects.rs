//! An object from its creation to its end: what is refused, changed, held and deleted.

use http::{Method, StatusCode};
use pith_apiserver::Identity;
use serde_json::{Value, json};

use crate::harness::{Cluster, read};
use crate::{MAPS, map, message};

#[tokio::test]
async fn an_object_lives() {
    let cluster = Cluster::new().await;
    let made = cluster.create(MAPS, map("a", json!({"k": "v"}))).await;
    let path = format!("{MAPS}/a");
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string());
    assert_eq!(cluster.get(&path).await, (StatusCode::OK, made.clone()));

    let (status, answer) = cluster.ask(Method::POST, MAPS, &map("a", json!({}))).await;
    assert_eq!((status, message(&answer)), (StatusCode::CONFLICT, "configmaps \"a\" already exists"));
    assert_eq!(answer["reason"], "AlreadyExists");

    let mut changed = made.clone();
    changed["data"]["k"] = "w".into();
    let (status, second) = cluster.ask(Method::PUT, &path, &changed).await;
    assert_eq!((status, &second["data"]["k"]), (StatusCode::OK, &json!("w")));
    assert_ne!(second["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let (status, answer) = cluster.ask(Method::PUT, &path, &changed).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(
        message(&answer)
            .starts_with("Operation cannot be fulfilled on configmaps \"a\": the object has been modified")
    );

    let (status, same) = cluster.ask(Method::PUT, &path, &second).await;
    assert_eq!((status, &same), (StatusCode::OK, &second), "nothing changed, so no new revision");

    let (status, answer) = cluster.ask(Method::DELETE, &path, &Value::Null).await;
    assert_eq!((status, &answer["status"]), (StatusCode::OK, &json!("Success")));
    let (status, answer) = cluster.get(&path).await;
    assert_eq!((status, message(&answer)), (StatusCode::NOT_FOUND, "configmaps \"a\" not found"));
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_a_status() {
    let cluster = Cluster::new().await;
    let long = json!({"metadata": {"name": "a"}, "data": {"k": "v".repeat(4 << 20)}});
    let cases = [
        (Method::POST, MAPS, json!({"kind": "Pod", "metadata": {"name": "a"}}), 400, "Pod"),
        (Method::POST, MAPS, json!({"metadata": {"name": "UPPER"}}), 422, "metadata.name"),
        (Method::POST, MAPS, json!({"metadata": {}}), 422, "name or generateName is required"),
        (Method::POST, MAPS, json!({"metadata": {"name": "a", "namespace": "other"}}), 400, "namespace"),
        (Method::POST, MAPS, long, 413, "too large"),
        (
            Method::POST,
            "/api/v1/namespaces/nowhere/configmaps",
            map("a", json!({})),
            404,
            "namespaces \"nowhere\" not found",
        ),
        (Method::POST, "/api/v1/configmaps", map("a", json!({})), 405, ""),
        (
            Method::GET,
            "/api/v1/nothing",
            Value::Null,
            404,
            "the server could not find the requested resource",
        ),
        (
            Method::GET,
            "/api/v1/configmaps?fieldSelector=data.k%3Dv",
            Value::Null,
            400,
            "field label not supported: data.k",
        ),
        (Method::GET, "/api/v1/configmaps?labelSelector=%21%21", Value::Null, 400, ""),
        (Method::GET, "/api/v1/configmaps?continue=rubbish", Value::Null, 400, "continue key is not valid"),
        (Method::GET, "/api/v1/configmaps?resourceVersion=x", Value::Null, 400, ""),
        (
            Method::GET,
            "/api/v1/configmaps?resourceVersion=99999",
            Value::Null,
            504,
            "Too large resource version",
        ),
    ];
    for (method, path, body, code, text) in cases {
        let (status, answer) = cluster.ask(method, path, &body).await;
        assert_eq!(status.as_u16(), code, "{path}: {answer}");
        assert_eq!(answer["kind"], "Status", "{path}");
        assert!(message(&answer).contains(text), "{path}: {}", message(&answer));
    }
}

#[tokio::test]
async fn server_side_apply_creates_shares_and_refuses() {
    let cluster = Cluster::new().await;
    let apply = async |query: &str, body: &str| {
        let headers = [("content-type", "application/apply-patch+yaml")];
        let path = format!("{MAPS}/a?{query}");
        read(cluster.send_as(Identity::admin(), Method::PATCH, &path, &headers, body).await).await
    };
    let map =
        |data: &str| format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: a}}, data: {data}}}");
    let (status, answer) = apply("", &map("{}")).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        message(&answer).contains("fieldManager: Required value: is required for apply patch"),
        "{answer}"
    );
    let (status, answer) = apply("fieldManager=one&dryRun=All", &map("{x: '1'}")).await;
    assert_eq!((status, &answer["data"]["x"]), (StatusCode::CREATED, &json!("1")));
    let (status, answer) = apply("fieldManager=one", &map("{x: '1', y: '1'}")).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let (status, answer) = apply("fieldManager=two", &map("{z: '1'}")).await;
    assert_eq!((status, &answer["data"]), (StatusCode::OK, &json!({"x": "1", "y": "1", "z": "1"})));
    let (status, answer) = apply("fieldManager=two", &map("{x: '2'}")).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(message(&answer), "Apply failed with 1 conflict: conflict with \"one\": .data.x");
    assert_eq!(answer["details"]["causes"][0]["reason"], "FieldManagerConflict");
    let (status, answer) = apply("fieldManager=two&force=true", &map("{x: '2'}")).await;
    assert_eq!((status, &answer["data"]), (StatusCode::OK, &json!({"x": "2", "y": "1"})));
    let managers = answer["metadata"]["managedFields"].as_array().expect("managers");
    assert_eq!(managers[0]["fieldsV1"], json!({"f:data": {"f:y": {}}}));
    let (_, again) = apply("fieldManager=two", &map("{x: '2'}")).await;
    assert_eq!(again, answer, "nothing changed");
    let (status, answer) = apply("fieldManager=one", &map("{bogus: {}}")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
}

#[tokio::test]
async fn names_are_generated_and_dry_runs_leave_nothing() {
    let cluster = Cluster::new().await;
    let made = cluster.create(MAPS, json!({"metadata": {"generateName": "x-"}})).await;
    let name = made["metadata"]["name"].as_str().expect("a name");
    assert!(name.starts_with("x-") && name.len() == 7, "{name}");
    let (status, _) = cluster.ask(Method::POST, &format!("{MAPS}?dryRun=All"), &map("dry", json!({}))).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(cluster.get(&format!("{MAPS}/dry")).await.0, StatusCode::NOT_FOUND);
    let path = format!("{MAPS}/{name}?dryRun=All");
    assert_eq!(cluster.ask(Method::DELETE, &path, &Value::Null).await.0, StatusCode::OK);
    assert_eq!(cluster.get(&format!("{MAPS}/{name}")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn patches_of_every_kind() {
    let cluster = Cluster::new().await;
    cluster.create(MAPS, map("a", json!({"k": "v", "l": "w"}))).await;
    let path = format!("{MAPS}/a");
    for (kind, patch, expect) in [
        ("merge-patch+json", json!({"data": {"k": null}}), json!({"l": "w"})),
        ("strategic-merge-patch+json", json!({"data": {"m": "x"}}), json!({"l": "w", "m": "x"})),
        ("json-patch+json", json!([{"op": "remove", "path": "/data/l"}]), json!({"m": "x"})),
    ] {
        let (status, answer) = cluster.patch(&path, kind, &patch).await;
        assert_eq!((status, &answer["data"]), (StatusCode::OK, &expect), "{kind}");
    }
    let (status, _) =
        cluster.patch(&path, "json-patch+json", &json!([{"op": "remove", "path": "/data/nothing"}])).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let pinned = json!({"metadata": {"resourceVersion": "1"}, "data": {"z": "z"}});
    assert_eq!(cluster.patch(&path, "merge-patch+json", &pinned).await.0, StatusCode::CONFLICT);
    let renamed = json!({"metadata": {"name": "b"}});
    assert_eq!(cluster.patch(&path, "merge-patch+json", &renamed).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let cluster = Cluster::new().await;
    let path = format!("{MAPS}/a");
    cluster.create(MAPS, json!({"metadata": {"name": "a", "finalizers": ["example.com/hold"]}})).await;
    let (status, answer) = cluster.ask(Method::DELETE, &path, &Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    assert!(answer["metadata"]["deletionTimestamp"].is_string());
    let (status, kept) = cluster.get(&path).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(kept["metadata"]["deletionGracePeriodSeconds"], 0);
    let (status, _) =
        cluster.patch(&path, "merge-patch+json", &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(cluster.get(&path).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn propagation_becomes_finalizers() {
    let cluster = Cluster::new().await;
    for (name, policy, expect) in [("a", "Foreground", "foregroundDeletion"), ("b", "Orphan", "orphan")] {
        cluster.create(MAPS, map(name, json!({}))).await;
        let path = format!("{MAPS}/{name}");
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
        let (_, answer) = cluster.ask(Method::DELETE, &path, &options).await;
        assert_eq!(answer["metadata"]["finalizers"], json!([expect]));
    }
    cluster.create(MAPS, map("c", json!({}))).await;
    let (_, answer) =
        cluster.ask(Method::DELETE, &format!("{MAPS}/c?propagationPolicy=Background"), &Value::Null).await;
    assert_eq!(answer["status"], "Success");
    let wrong = json!({"preconditions": {"uid": "another"}});
    let (status, _) = cluster.ask(Method::DELETE, &format!("{MAPS}/a"), &wrong).await;
    assert_eq!(status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let cluster = Cluster::new().await;
    for (name, label) in [("a", "x"), ("b", "x"), ("c", "y")] {
        cluster.create(MAPS, json!({"metadata": {"name": name, "labels": {"l": label}}})).await;
    }
    let (status, _) = cluster.ask(Method::DELETE, &format!("{MAPS}?labelSelector=l%3Dx"), &Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    let (_, left) = cluster.get(MAPS).await;
    let names: Vec<_> =
        left["items"].as_array().expect("items").iter().map(|i| &i["metadata"]["name"]).collect();
    assert_eq!(names, ["c"]);
}
