//! Appliers and writers of one object, one after the other.

use super::*;

fn kind() -> &'static Kind {
    crate::find("apps", "v1", "deployments").expect("a kind")
}

fn by(manager: &str) -> Writer<'_> {
    Writer { manager, door: Subresource::Main, now: Timestamp::UNIX_EPOCH }
}

fn config(spec: Value) -> Value {
    json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" }, "spec": spec })
}

fn containers(list: Value) -> Value {
    config(json!({ "template": { "spec": { "containers": list } } }))
}

fn list(object: &Value) -> &Value {
    &object["spec"]["template"]["spec"]["containers"]
}

/// Managers and the places they manage.
fn managers(object: &Value) -> Vec<String> {
    let shown = |entry: &Entry| {
        let places: Vec<String> = entry.fields.0.iter().map(|path| Shown(path).to_string()).collect();
        format!("{}: {}", entry.shown(), places.join(" "))
    };
    entries(object).iter().map(shown).collect()
}

#[test]
fn appliers_share_lists_by_key_and_take_back_what_they_gave() {
    let sides = json!([{ "name": "a", "image": "1" }, { "name": "side", "image": "s" }]);
    let first = apply(kind(), None, &containers(sides), by("one"), false).expect("created");
    let with_port =
        json!([{ "name": "a", "ports": [{ "containerPort": 80 }] }, { "name": "b", "image": "x" }]);
    let second = apply(kind(), Some(&first), &containers(with_port), by("two"), false).expect("no conflict");
    assert_eq!(
        list(&second),
        &json!([
            { "name": "a", "image": "1", "ports": [{ "containerPort": 80 }] },
            { "name": "side", "image": "s" },
            { "name": "b", "image": "x" },
        ])
    );
    // The first gives up its side car, and the image of `a`, which nobody else manages; `a` itself is shared.
    let less = containers(json!([{ "name": "a" }]));
    let third = apply(kind(), Some(&second), &less, by("one"), false).expect("no conflict");
    assert_eq!(
        list(&third),
        &json!([{ "name": "a", "ports": [{ "containerPort": 80 }] }, { "name": "b", "image": "x" }])
    );
    let item = ".spec.template.spec.containers[name=\"a\"]";
    assert_eq!(managers(&third)[0], format!("\"one\": {item} {item}.name"));
    // Applied again, nothing changes at all.
    assert_eq!(apply(kind(), Some(&third), &less, by("one"), false).expect("the same"), third);
    // The second leaves: its container goes, the shared one stays.
    let nothing = config(json!({}));
    let last = apply(kind(), Some(&third), &nothing, by("two"), false).expect("no conflict");
    assert_eq!(list(&last), &json!([{ "name": "a" }]));
}

#[test]
fn conflicts_name_the_manager_and_force_takes_over() {
    let live = apply(kind(), None, &config(json!({ "replicas": 3, "paused": true })), by("one"), false);
    let live = live.expect("created");
    let other = config(json!({ "replicas": 5 }));
    let error = apply(kind(), Some(&live), &other, by("two"), false).expect_err("a conflict");
    assert_eq!((error.code(), error.causes[0].field.as_str()), (409, ".spec.replicas"));
    assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas");
    let both = config(json!({ "replicas": 5, "paused": false }));
    let error = apply(kind(), Some(&live), &both, by("two"), false).expect_err("two conflicts");
    assert_eq!(
        error.message,
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .spec.paused\n- .spec.replicas"
    );
    let taken = apply(kind(), Some(&live), &other, by("two"), true).expect("forced");
    assert_eq!(taken["spec"]["replicas"], 5);
    assert_eq!(managers(&taken), ["\"one\": .spec.paused", "\"two\": .spec.replicas"]);
    // The same value is shared, not fought over.
    let same = apply(kind(), Some(&taken), &other, by("three"), false).expect("no conflict");
    assert_eq!(managers(&same)[1..], ["\"three\": .spec.replicas", "\"two\": .spec.replicas"]);
}

#[test]
fn what_was_there_before_and_what_is_written_later_has_managers_too() {
    let mut live = config(json!({ "replicas": 1, "selector": { "matchLabels": { "app": "web" } } }));
    live["status"] = json!({ "replicas": 1 });
    let wanted = config(json!({ "replicas": 2 }));
    let error = apply(kind(), Some(&live), &wanted, by("one"), false).expect_err("a conflict");
    let text =
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas";
    assert_eq!(error.message, text);
    let applied = apply(kind(), Some(&live), &wanted, by("one"), true).expect("forced");
    // A scaler's write takes the field: the next apply says so.
    let mut scaled = applied.clone();
    scaled["spec"]["replicas"] = 7.into();
    updated(kind(), &applied, &mut scaled, by("scaler"));
    assert_eq!(
        managers(&scaled),
        [
            "\"before-first-apply\" using apps/v1: .spec.selector .status.replicas",
            "\"scaler\" using apps/v1 at 1970-01-01T00:00:00Z: .spec.replicas",
        ]
    );
    let error = apply(kind(), Some(&scaled), &wanted, by("one"), false).expect_err("a conflict");
    assert!(error.message.contains("\"scaler\" using apps/v1 at 1970-01-01T00:00:00Z: .spec.replicas"));
    // Objects that nobody has applied are not followed, and an empty write changes nothing.
    let mut plain = live.clone();
    updated(kind(), &live, &mut plain, by("scaler"));
    assert_eq!(plain, live);
    let mut same = scaled.clone();
    updated(kind(), &scaled, &mut same, by("scaler"));
    assert_eq!(same, scaled);
}

#[test]
fn status_is_applied_through_its_own_door() {
    let mut object = config(json!({ "replicas": 1 }));
    object["status"] = json!({ "replicas": 4 });
    let through = |door| {
        let writer = Writer { door, ..by("one") };
        let created = apply(kind(), None, &object, writer, false).expect("created");
        managers(&created)
    };
    assert_eq!(through(Subresource::Main), ["\"one\": .spec.replicas"]);
    assert_eq!(through(Subresource::Status), ["\"one\": .status.replicas"]);
}

#[test]
fn items_keep_their_places() {
    let merged = |live: &[&str], config: &[&str]| -> Vec<String> {
        let items = |names: &[&str]| {
            Value::from(names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>())
        };
        let (live, config) = (containers(items(live)), containers(items(config)));
        let merged = tree::merge(kind().schema(), &live, &config);
        let items = list(&merged).as_array().expect("a list").clone();
        items.iter().map(|item| item["name"].as_str().expect("named").to_owned()).collect()
    };
    let cases: [(&[&str], &[&str], &[&str]); 6] = [
        (&["a", "b"], &["a", "b"], &["a", "b"]),
        (&["a", "x", "b"], &["a", "b"], &["a", "x", "b"]),
        (&["a", "b"], &["b", "a"], &["b", "a"]),
        (&["x", "a"], &["a", "n"], &["x", "a", "n"]),
        (&["a", "x"], &["n", "a"], &["n", "a", "x"]),
        (&["x", "a"], &["n", "a"], &["x", "n", "a"]),
    ];
    for (live, config, expect) in cases {
        assert_eq!(merged(live, config), expect, "{live:?} with {config:?}");
    }
}
