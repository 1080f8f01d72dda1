//! What the server does for objects of one kind: pods, Services, namespaces, workloads.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{self, Cluster};
use crate::{PODS, SERVICES, map, message, pod};

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
async fn services_have_the_families_of_their_cluster() {
    let cluster = Cluster::new().await;
    let ports = json!([{"port": 80}]);
    let service = |name: &str, policy: &str| json!({"metadata": {"name": name}, "spec": {"ports": ports, "ipFamilyPolicy": policy}});
    let (status, answer) = cluster.ask(Method::POST, SERVICES, &service("a", "RequireDualStack")).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        message(&answer),
        "Service \"a\" is invalid: spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
    );
    let made = cluster.create(SERVICES, service("a", "PreferDualStack")).await;
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(made["spec"]["clusterIPs"], json!([made["spec"]["clusterIP"]]));
    let family = json!({"spec": {"ipFamilies": ["IPv6"]}});
    let (status, answer) = cluster.patch(&format!("{SERVICES}/a"), "merge-patch+json", &family).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer["details"]["causes"][0]["field"], "spec.clusterIPs[0]");
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
