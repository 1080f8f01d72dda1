//! Lists, watches, tables, metadata: what is shown of objects.

use http::{Method, StatusCode};
use pith_apiserver::Identity;
use serde_json::{Value, json};

use crate::harness::{self, Cluster, read};
use crate::{MAPS, map};

#[tokio::test]
async fn lists_come_in_pages_of_one_revision() {
    let cluster = Cluster::new().await;
    for index in 0..7 {
        let mut map = map(&format!("m{index}"), json!({}));
        map["metadata"]["labels"] = json!({"parity": if index % 2 == 0 { "even" } else { "odd" }});
        cluster.create(MAPS, map).await;
    }
    for (selector, expect) in
        [("", 7), ("&labelSelector=parity%3Deven", 4), ("&fieldSelector=metadata.name%3Dm3", 1)]
    {
        let mut names = Vec::new();
        let mut token = String::new();
        let mut revision = None;
        loop {
            let (status, page) = cluster.get(&format!("{MAPS}?limit=2{selector}&continue={token}")).await;
            assert_eq!(status, StatusCode::OK, "{page}");
            assert_eq!(page["kind"], "ConfigMapList");
            let items = page["items"].as_array().expect("items");
            names.extend(
                items.iter().map(|item| item["metadata"]["name"].as_str().expect("a name").to_owned()),
            );
            let this = page["metadata"]["resourceVersion"].clone();
            assert_eq!(revision.get_or_insert(this.clone()), &this);
            // What happens meanwhile is not in the list that was begun.
            cluster.create(MAPS, json!({"metadata": {"generateName": "m0-"}})).await;
            match page["metadata"]["continue"].as_str() {
                Some(next) => token = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(names.iter().filter(|name| !name.contains('-')).count(), expect, "{selector}");
        if selector.is_empty() {
            assert_eq!(names.len(), expect);
        }
    }
}

#[tokio::test]
async fn a_watch_sees_what_the_selector_selects() {
    let cluster = Cluster::new().await;
    cluster.create(MAPS, json!({"metadata": {"name": "old", "labels": {"a": "1"}}})).await;
    let mut watch = cluster.watch(&format!("{MAPS}?watch=true&labelSelector=a%3D1")).await;
    assert_eq!(watch.short().await, ("ADDED".into(), "old".into()));
    cluster.create(MAPS, json!({"metadata": {"name": "new"}})).await;
    let path = format!("{MAPS}/new");
    for (labels, expect) in [
        (json!({"a": "1"}), "ADDED"),
        (json!({"a": "1", "b": "2"}), "MODIFIED"),
        (json!({"a": null}), "DELETED"),
        (json!({"a": "1"}), "ADDED"),
    ] {
        let (status, after) =
            cluster.patch(&path, "merge-patch+json", &json!({"metadata": {"labels": labels}})).await;
        assert_eq!(status, StatusCode::OK);
        let event = watch.next().await.expect("an event");
        assert_eq!(
            (event["type"].as_str(), &event["object"]["metadata"]["name"]),
            (Some(expect), &json!("new"))
        );
        assert_eq!(event["object"]["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
    }
    cluster.ask(Method::DELETE, &path, &Value::Null).await;
    assert_eq!(watch.short().await, ("DELETED".into(), "new".into()));
}

#[tokio::test]
async fn a_watch_begins_where_it_is_told_to() {
    let cluster = Cluster::new().await;
    let first = cluster.create(MAPS, map("a", json!({}))).await;
    cluster.create(MAPS, map("b", json!({}))).await;
    let revision = first["metadata"]["resourceVersion"].as_str().expect("a revision");
    let mut watch = cluster.watch(&format!("{MAPS}?watch=1&resourceVersion={revision}")).await;
    assert_eq!(watch.short().await, ("ADDED".into(), "b".into()));

    let initial = "watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut watch = cluster.watch(&format!("{MAPS}?{initial}")).await;
    assert_eq!(watch.short().await, ("ADDED".into(), "a".into()));
    assert_eq!(watch.short().await, ("ADDED".into(), "b".into()));
    let bookmark = watch.next().await.expect("a bookmark");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    cluster.create(MAPS, map("c", json!({}))).await;
    assert_eq!(watch.short().await, ("ADDED".into(), "c".into()));

    let mut over =
        cluster.watch(&format!("{MAPS}?watch=1&timeoutSeconds=1&resourceVersion={revision}")).await;
    assert_eq!(over.short().await.1, "b");
    assert_eq!(over.short().await.1, "c");
    assert_eq!(over.next().await, None);
    let (status, answer) = cluster.get(&format!("{MAPS}?watch=1&resourceVersion=99999")).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{answer}");
}

#[tokio::test]
async fn a_forgotten_revision_is_gone() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let address = "127.0.0.1:6443".parse().expect("an address");
    drop(harness::open(dir.path(), address).await);
    let server = harness::open(dir.path(), address).await;
    let cluster = Cluster { dir, server };
    let mut watch = cluster.watch(&format!("{MAPS}?watch=1&resourceVersion=2")).await;
    let event = watch.next().await.expect("an error is an event of the watch");
    assert_eq!(event["type"], "ERROR");
    assert_eq!((&event["object"]["code"], &event["object"]["reason"]), (&json!(410), &json!("Expired")));
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn tables_and_metadata() {
    let cluster = Cluster::new().await;
    cluster.create(MAPS, map("a", json!({"k": "v"}))).await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let answer = cluster.send_as(Identity::admin(), Method::GET, MAPS, &[("accept", accept)], "").await;
    let (_, table) = read(answer).await;
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let answer = cluster.send_as(Identity::admin(), Method::GET, MAPS, &[("accept", accept)], "").await;
    let (_, list) = read(answer).await;
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!((&list["items"][0]["metadata"]["name"], list["items"][0].get("data")), (&json!("a"), None));
    let answer = cluster.send_as(Identity::admin(), Method::GET, MAPS, &[("accept", "text/html")], "").await;
    assert_eq!(answer.status(), StatusCode::NOT_ACCEPTABLE);
}

#[tokio::test]
async fn events_are_one_thing_in_two_groups() {
    let cluster = Cluster::new().await;
    let event = json!({
        "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started", "message": "hello", "type": "Normal",
    });
    cluster.create("/api/v1/namespaces/default/events", event).await;
    let (status, other) = cluster.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await;
    assert_eq!((status, &other["apiVersion"]), (StatusCode::OK, &json!("events.k8s.io/v1")), "{other}");
    assert_eq!((&other["regarding"]["name"], &other["note"]), (&json!("p"), &json!("hello")));
    let (_, found) = cluster.get("/api/v1/events?fieldSelector=involvedObject.name%3Dp").await;
    assert_eq!(found["items"].as_array().map(Vec::len), Some(1));
}
