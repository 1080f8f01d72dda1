//! The API's behaviour over HTTP, in process.

mod harness;

use harness::{Cluster, read};
use http::{Method, StatusCode};
use pith_apiserver::Identity;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";

fn map(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "main", "image": "x"}]}})
}

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

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
async fn pods_on_nodes_are_given_time() {
    let cluster = Cluster::new().await;
    for (name, bound, query, waits) in [
        ("unbound", false, "", false),
        ("bound", true, "", true),
        ("forced", true, "?gracePeriodSeconds=0", false),
        ("quick", true, "?gracePeriodSeconds=5", true),
    ] {
        cluster.create(PODS, pod(name)).await;
        let path = format!("{PODS}/{name}");
        if bound {
            let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
            cluster.create(&format!("{path}/binding"), binding).await;
        }
        let (status, answer) = cluster.ask(Method::DELETE, &format!("{path}{query}"), &Value::Null).await;
        assert_eq!((status, &answer["kind"]), (StatusCode::OK, &json!("Pod")));
        assert_eq!(cluster.get(&path).await.0 == StatusCode::OK, waits, "{name}");
    }
    let (_, bound) = cluster.get(&format!("{PODS}/bound")).await;
    assert_eq!(bound["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    // The kubelet says that it is done.
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": bound["metadata"]["uid"]}});
    cluster.ask(Method::DELETE, &format!("{PODS}/bound"), &options).await;
    assert_eq!(cluster.get(&format!("{PODS}/bound")).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let cluster = Cluster::new().await;
    cluster.create(PODS, pod("a")).await;
    let path = format!("{PODS}/a/binding");
    let binding = |node: &str| json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": node}});
    cluster.create(&path, binding("n1")).await;
    let (status, answer) = cluster.ask(Method::POST, &path, &binding("n2")).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(message(&answer).contains("already assigned to node \"n1\""), "{answer}");
}

#[tokio::test]
async fn pods_are_given_what_every_pod_has() {
    let cluster = Cluster::new().await;
    let made = cluster.create(PODS, pod("a")).await;
    let spec = &made["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["priority"], 0);
    let keys: Vec<_> =
        spec["tolerations"].as_array().expect("tolerations").iter().map(|t| &t["key"]).collect();
    assert_eq!(keys, ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]);
    let volume = &spec["volumes"][0];
    assert!(volume["name"].as_str().is_some_and(|name| name.starts_with("kube-api-access-")));
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume["name"]);
    let mut without = pod("b");
    without["spec"]["automountServiceAccountToken"] = false.into();
    assert_eq!(cluster.create(PODS, without).await["spec"].get("volumes"), None);
    let mut unknown = pod("c");
    unknown["spec"]["serviceAccountName"] = "nobody".into();
    let (status, answer) = cluster.ask(Method::POST, PODS, &unknown).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(message(&answer).contains("serviceaccount \"nobody\" not found"), "{answer}");
}

#[tokio::test]
async fn services_hold_addresses_and_ports() {
    let cluster = Cluster::new().await;
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let ports = json!([{"port": 80}]);
    let made = cluster.create(SERVICES, service("a", json!({"type": "NodePort", "ports": ports}))).await;
    let (address, port) = (made["spec"]["clusterIP"].clone(), made["spec"]["ports"][0]["nodePort"].clone());
    assert!(address.as_str().is_some_and(|text| text.starts_with("10.96.")), "{made}");
    assert!(port.as_u64().is_some_and(|port| (30_000..=32_767).contains(&port)));

    let taken = service("b", json!({"clusterIP": address, "ports": ports}));
    let (status, answer) = cluster.ask(Method::POST, SERVICES, &taken).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer["details"]["causes"][0]["field"], "spec.clusterIPs");
    let taken = service("b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}));
    let (status, answer) = cluster.ask(Method::POST, SERVICES, &taken).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer["details"]["causes"][0]["field"], "spec.ports[0].nodePort");

    let headless = cluster.create(SERVICES, service("h", json!({"clusterIP": "None", "ports": ports}))).await;
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));

    cluster.ask(Method::DELETE, &format!("{SERVICES}/a"), &Value::Null).await;
    let again = service(
        "b",
        json!({"type": "NodePort", "clusterIP": address, "ports": [{"port": 80, "nodePort": port}]}),
    );
    cluster.create(SERVICES, again).await;
    let (_, changed) = cluster
        .patch(&format!("{SERVICES}/b"), "merge-patch+json", &json!({"spec": {"type": "ClusterIP"}}))
        .await;
    assert_eq!(changed["spec"]["ports"][0].get("nodePort"), None, "{changed}");
    cluster
        .create(SERVICES, service("c", json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": port}]})))
        .await;
}

#[tokio::test]
async fn services_keep_what_they_hold_over_a_restart() {
    let cluster = Cluster::new().await;
    let ports = json!([{"port": 80}]);
    let made = cluster.create(SERVICES, json!({"metadata": {"name": "a"}, "spec": {"ports": ports}})).await;
    let Cluster { dir, server } = cluster;
    drop(server);
    let server = harness::open(dir.path(), "127.0.0.1:6443".parse().expect("an address")).await;
    let cluster = Cluster { dir, server };
    let again =
        json!({"metadata": {"name": "b"}, "spec": {"clusterIP": made["spec"]["clusterIP"], "ports": ports}});
    assert_eq!(cluster.ask(Method::POST, SERVICES, &again).await.0, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn namespaces_are_emptied_before_they_go() {
    let cluster = Cluster::new().await;
    cluster.create("/api/v1/namespaces", json!({"metadata": {"name": "work"}})).await;
    let (_, answer) = cluster.ask(Method::DELETE, "/api/v1/namespaces/work", &Value::Null).await;
    assert_eq!(answer["status"]["phase"], "Terminating");
    let (status, answer) =
        cluster.ask(Method::POST, "/api/v1/namespaces/work/configmaps", &map("a", json!({}))).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(message(&answer).contains("because it is being terminated"), "{answer}");
    let (_, mut namespace) = cluster.get("/api/v1/namespaces/work").await;
    namespace["spec"]["finalizers"] = json!([]);
    let (status, answer) = cluster.ask(Method::PUT, "/api/v1/namespaces/work/finalize", &namespace).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(cluster.get("/api/v1/namespaces/work").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn scale_is_a_view_of_the_workload() {
    let cluster = Cluster::new().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "b"}]}},
        },
    });
    cluster.create(deployments, deployment).await;
    let path = format!("{deployments}/web/scale");
    let (_, scale) = cluster.get(&path).await;
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(1)));
    let (status, scale) = cluster.patch(&path, "merge-patch+json", &json!({"spec": {"replicas": 4}})).await;
    assert_eq!((status, &scale["spec"]["replicas"]), (StatusCode::OK, &json!(4)), "{scale}");
    let (_, deployment) = cluster.get(&format!("{deployments}/web")).await;
    assert_eq!(
        (&deployment["spec"]["replicas"], &deployment["metadata"]["generation"]),
        (&json!(4), &json!(2))
    );
    let (status, _) = cluster.patch(&path, "merge-patch+json", &json!({"spec": {"replicas": -1}})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
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
