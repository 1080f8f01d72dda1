//! Tables over whole decisions: nodes and pods in, a node's name or the message out.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::*;
use crate::pod::Placed;

fn node(name: &str, change: Value) -> Arc<Node> {
    let mut node = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": {},
        "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "110" } },
    });
    merge(&mut node, change);
    Arc::new(serde_json::from_value(node).expect("a valid node"))
}

fn pod(name: &str, change: Value) -> Pod {
    let mut pod = json!({
        "metadata": { "name": name, "namespace": "d", "uid": name, "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "c" }] },
    });
    merge(&mut pod, change);
    serde_json::from_value(pod).expect("a valid pod")
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}

fn asks(cpu: &str) -> Value {
    json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] } })
}

fn zone(zone: &str) -> Value {
    json!({ "metadata": { "labels": { "zone": zone } } })
}

fn cluster(nodes: Vec<Arc<Node>>, placed: Vec<(Pod, &str)>) -> Books {
    let mut books = Books::default();
    nodes.into_iter().for_each(|node| books.set_node(node));
    for (pod, node) in placed {
        books.place(Arc::new(Placed::of(&pod)), node);
    }
    books
}

/// The name of the chosen node, or the message.
fn decide(books: &mut Books, pod: &Pod) -> String {
    let pending = Pending::of(pod);
    books.prepare(&pending);
    match plan(books, &pending, 0) {
        Ok(chosen) => books.host(chosen.slot).expect("the chosen node").name().to_owned(),
        Err(unfit) => unfit.message(),
    }
}

fn unfit(of: usize, reasons: &str, preemption: &str) -> String {
    format!("0/{of} nodes are available: {reasons}. preemption: 0/{of} nodes are available: {preemption}.")
}

#[test]
fn filters_and_messages() {
    let cordoned = json!({ "spec": { "unschedulable": true } });
    let tainted = json!({ "spec": { "taints": [{ "key": "gpu", "value": "a", "effect": "NoSchedule" }] } });
    let small = json!({ "status": { "allocatable": { "cpu": "1" } } });
    let full = json!({ "status": { "allocatable": { "pods": "1" } } });
    let port = json!({ "spec": { "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80 }] }] } });
    let cases = [
        ("no nodes", vec![], vec![], json!({}), "no nodes available to schedule pods".to_owned()),
        ("one fits", vec![node("a", json!({}))], vec![], json!({}), "a".to_owned()),
        (
            "a reason a node",
            vec![node("a", cordoned), node("b", tainted.clone()), node("c", small.clone())],
            vec![],
            asks("2"),
            unfit(
                3,
                "1 Insufficient cpu, 1 node(s) had untolerated taint {gpu: a}, 1 node(s) were unschedulable",
                "3 Preemption is not helpful for scheduling",
            ),
        ),
        (
            "taken by others",
            vec![node("a", small)],
            vec![(pod("p", asks("800m")), "a")],
            asks("500m"),
            unfit(1, "1 Insufficient cpu", "1 No preemption victims found for incoming pod"),
        ),
        (
            "too many pods",
            vec![node("a", full)],
            vec![(pod("p", json!({})), "a")],
            json!({}),
            unfit(1, "1 Too many pods", "1 No preemption victims found for incoming pod"),
        ),
        (
            "tolerated",
            vec![node("b", tainted)],
            vec![],
            json!({ "spec": { "tolerations": [{ "key": "gpu", "operator": "Exists" }] } }),
            "b".to_owned(),
        ),
        (
            "selector",
            vec![node("a", zone("x")), node("b", zone("y"))],
            vec![],
            json!({ "spec": { "nodeSelector": { "zone": "y" } } }),
            "b".to_owned(),
        ),
        (
            "selector without a node",
            vec![node("a", zone("x"))],
            vec![],
            json!({ "spec": { "nodeSelector": { "zone": "z" } } }),
            unfit(
                1,
                "1 node(s) didn't match Pod's node affinity/selector",
                "1 Preemption is not helpful for scheduling",
            ),
        ),
        (
            "host port taken on one",
            vec![node("a", json!({})), node("b", json!({}))],
            vec![(pod("p", port.clone()), "a")],
            port,
            "b".to_owned(),
        ),
        (
            "bound to a node that is not there",
            vec![node("a", json!({}))],
            vec![],
            json!({ "spec": { "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["z"] }] }] } } } } }),
            unfit(
                1,
                "1 node(s) didn't satisfy plugin(s) [NodeAffinity]",
                "1 Preemption is not helpful for scheduling",
            ),
        ),
    ];
    for (name, nodes, placed, change, expect) in cases {
        let mut books = cluster(nodes, placed);
        assert_eq!(decide(&mut books, &pod("new", change)), expect, "{name}");
    }
}

fn affinity(kind: &str, when: &str, key: &str) -> Value {
    let term = json!({ "labelSelector": { "matchLabels": { "app": "web" } }, "topologyKey": key });
    let term =
        if when.starts_with("preferred") { json!({ "weight": 10, "podAffinityTerm": term }) } else { term };
    json!({ "spec": { "affinity": { kind: { when: [term] } } } })
}

#[test]
fn pods_that_want_each_other_or_not() {
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    let nodes = || vec![node("a", zone("x")), node("b", zone("y")), node("c", zone("y"))];
    let web = || pod("p", json!({}));
    let loner = || pod("p", affinity("podAntiAffinity", required, "zone"));
    let cases = [
        ("with the others", vec![(web(), "b")], affinity("podAffinity", required, "zone"), vec!["b", "c"]),
        ("the first of its kind", vec![], affinity("podAffinity", required, "zone"), vec!["a", "b", "c"]),
        ("apart by zone", vec![(web(), "b")], affinity("podAntiAffinity", required, "zone"), vec!["a"]),
        ("the other one keeps apart", vec![(loner(), "c")], json!({}), vec!["a"]),
        ("rather with", vec![(web(), "c")], affinity("podAffinity", preferred, "zone"), vec!["b", "c"]),
        ("rather apart", vec![(web(), "c")], affinity("podAntiAffinity", preferred, "zone"), vec!["a"]),
    ];
    for (name, placed, change, expect) in cases {
        let mut books = cluster(nodes(), placed);
        let got = decide(&mut books, &pod("new", change));
        assert!(expect.contains(&got.as_str()), "{name}: {got}");
    }
    let all = vec![(web(), "a"), (pod("q", json!({})), "b")];
    let got = decide(&mut cluster(nodes(), all), &pod("new", affinity("podAntiAffinity", required, "zone")));
    let expect = unfit(
        3,
        "3 node(s) didn't match pod anti-affinity rules",
        "3 No preemption victims found for incoming pod",
    );
    assert_eq!(got, expect);
}

#[test]
fn spreading() {
    let constraint = |when: &str| {
        json!({ "spec": { "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": when, "labelSelector": { "matchLabels": { "app": "web" } } }] } })
    };
    let nodes = || vec![node("a", zone("x")), node("b", zone("x")), node("c", zone("y"))];
    let web = |name: &str| pod(name, json!({}));
    let placed = || vec![(web("p"), "a"), (web("q"), "b")];
    for when in ["DoNotSchedule", "ScheduleAnyway"] {
        let mut books = cluster(nodes(), placed());
        assert_eq!(decide(&mut books, &pod("new", constraint(when))), "c", "{when}");
    }
    let mut unlabelled = cluster(vec![node("a", json!({}))], vec![]);
    let expect = unfit(
        1,
        "1 node(s) didn't match pod topology spread constraints (missing required label)",
        "1 Preemption is not helpful for scheduling",
    );
    assert_eq!(decide(&mut unlabelled, &pod("new", constraint("DoNotSchedule"))), expect);
}

#[test]
fn replicas_of_one_controller_go_round() {
    let mut books = cluster(["a", "b", "c"].map(|name| node(name, json!({}))).to_vec(), vec![]);
    let owner = json!({ "metadata": { "ownerReferences": [
        { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "rs", "controller": true }] } });
    let mut taken = Vec::new();
    for index in 0..6 {
        let pod = pod(&format!("p{index}"), owner.clone());
        let node = decide(&mut books, &pod);
        books.place(Arc::new(Placed::of(&pod)), &node);
        taken.push(node);
    }
    taken.sort();
    assert_eq!(taken, ["a", "a", "b", "b", "c", "c"]);
}

#[test]
fn books_forget_what_goes() {
    let anti = affinity("podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "zone");
    let mut books = cluster(vec![node("a", zone("x"))], vec![(pod("p", anti), "a")]);
    let blocked = decide(&mut books, &pod("new", json!({})));
    assert!(blocked.contains("existing pods anti-affinity"), "{blocked}");
    books.remove(&pith_informer::Uid("p".into()));
    assert_eq!(decide(&mut books, &pod("new", json!({}))), "a");
    let used = &books.host(books.slot_of("a").expect("known")).expect("known").used;
    assert_eq!(used, &crate::resources::Resources::default());
    books.remove_node("a");
    assert_eq!((books.len(), books.hosts().count()), (0, 0));
}

#[test]
fn comparing_a_part_of_many() {
    let cases = [(1, 1), (99, 99), (100, 100), (1000, 420), (5000, 500), (10_000, 500)];
    for (nodes, expect) in cases {
        assert_eq!(nodes_to_find(nodes), expect, "{nodes} nodes");
    }
}
