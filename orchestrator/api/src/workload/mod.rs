//! Deployments, ReplicaSets, DaemonSets and their revisions.

use serde_json::{Map, Value};

use crate::{
    kind::Hooks,
    object::{child, set_default, text},
    pod,
};

mod print;
mod validate;

pub(crate) const DEPLOYMENT: Hooks = Hooks {
    default: default_deployment,
    validate_create: |object, errors| validate::deployment(object, errors),
    validate_update: validate::update_deployment,
    prepare_create: reset_status,
    columns: print::DEPLOYMENT,
    row: print::deployment,
    generation: true,
    ..Hooks::PLAIN
};

pub(crate) const REPLICA_SET: Hooks = Hooks {
    default: default_replica_set,
    validate_create: |object, errors| validate::replica_set(object, errors),
    validate_update: validate::update_replica_set,
    prepare_create: reset_status,
    columns: print::REPLICA_SET,
    row: print::replica_set,
    selectable: &["status.replicas"],
    generation: true,
    ..Hooks::PLAIN
};

pub(crate) const DAEMON_SET: Hooks = Hooks {
    default: default_daemon_set,
    validate_create: |object, errors| validate::daemon_set(object, errors),
    validate_update: validate::update_daemon_set,
    prepare_create: reset_status,
    columns: print::DAEMON_SET,
    row: print::daemon_set,
    generation: true,
    ..Hooks::PLAIN
};

pub(crate) const REVISION: Hooks = Hooks {
    validate_create: validate::revision,
    validate_update: validate::update_revision,
    columns: print::REVISION,
    row: print::revision,
    ..Hooks::PLAIN
};

fn reset_status(object: &mut Value) {
    object["status"] = Value::Object(Map::new());
}

fn template(spec: &mut Value) {
    let template = child(spec, "template");
    pod::defaults::template_spec(child(template, "spec"));
}

fn default_deployment(deployment: &mut Value) {
    let spec = child(deployment, "spec");
    template(spec);
    set_default(spec, "replicas", 1);
    set_default(spec, "revisionHistoryLimit", 10);
    set_default(spec, "progressDeadlineSeconds", 600);
    rolling(child(spec, "strategy"), "25%", "25%");
}

fn default_replica_set(set: &mut Value) {
    let spec = child(set, "spec");
    template(spec);
    set_default(spec, "replicas", 1);
}

fn default_daemon_set(set: &mut Value) {
    let spec = child(set, "spec");
    template(spec);
    set_default(spec, "revisionHistoryLimit", 10);
    rolling(child(spec, "updateStrategy"), 1, 0);
}

fn rolling(strategy: &mut Value, unavailable: impl Into<Value>, surge: impl Into<Value>) {
    set_default(strategy, "type", "RollingUpdate");
    if text(&strategy["type"]) == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        set_default(rolling, "maxUnavailable", unavailable);
        set_default(rolling, "maxSurge", surge);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Subresource, find};

    #[test]
    fn a_deployment_as_kubectl_get_shows_it() {
        let kind = find("apps", "v1", "deployments").expect("deployments");
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "nginx:1"}]},
                },
            },
        });
        kind.default(&mut object);
        kind.prepare_create(&mut object);
        assert_eq!(kind.validate_create(&object), []);
        assert_eq!(
            object,
            json!({
                "metadata": {"name": "web", "namespace": "default", "generation": 1},
                "spec": {
                    "selector": {"matchLabels": {"app": "web"}},
                    "template": {
                        "metadata": {"labels": {"app": "web"}},
                        "spec": {
                            "containers": [{
                                "name": "c", "image": "nginx:1", "imagePullPolicy": "IfNotPresent", "resources": {},
                                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                            }],
                            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
                            "terminationGracePeriodSeconds": 30, "securityContext": {},
                        },
                    },
                    "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
                },
                "status": {},
            })
        );
        let mut scaled = object.clone();
        scaled["spec"]["replicas"] = json!(3);
        scaled["status"]["replicas"] = json!(9);
        kind.prepare_update(&mut scaled, &object, Subresource::Main);
        assert_eq!(scaled["metadata"]["generation"], 2, "the spec changed");
        assert_eq!(scaled["status"], json!({}), "status has a door of its own");
        let mut reported = object.clone();
        reported["spec"]["replicas"] = json!(7);
        reported["status"]["replicas"] = json!(1);
        reported["metadata"]["labels"] = json!({"x": "y"});
        kind.prepare_update(&mut reported, &object, Subresource::Status);
        assert_eq!(reported["spec"]["replicas"], 1);
        assert_eq!(reported["status"]["replicas"], 1);
        assert_eq!(reported["metadata"], object["metadata"]);
    }

    #[test]
    fn bad_deployments_name_their_fields() {
        let kind = find("apps", "v1", "deployments").expect("deployments");
        let good = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "nginx:1"}]},
                },
            },
        });
        let cases: &[(&str, Value, &str)] = &[
            (
                "/spec/replicas",
                json!(-1),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                "/spec/selector",
                json!({}),
                "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
            ),
            (
                "/spec/template/metadata/labels",
                json!({"app": "other"}),
                "spec.template.metadata.labels: Invalid value: {\"app\":\"other\"}: `selector` does not match template `labels`",
            ),
            ("/spec/template/spec/containers", json!([]), "spec.template.spec.containers: Required value"),
            (
                "/spec/template/spec/containers/0/image",
                json!(""),
                "spec.template.spec.containers[0].image: Required value",
            ),
            (
                "/spec/template/spec/containers/0/imagePullPolicy",
                json!("Sometimes"),
                "spec.template.spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ),
            (
                "/spec/template/spec/restartPolicy",
                json!("Never"),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                "/spec/strategy",
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ),
            (
                "/spec/template/spec/containers/0/volumeMounts",
                json!([{"name": "v", "mountPath": "/v"}]),
                "spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            ),
            (
                "/spec/template/spec/containers/0/resources",
                json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
                "spec.template.spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
        ];
        for (pointer, value, complaint) in cases {
            let mut object = good.clone();
            let (parent, name) = pointer.rsplit_once('/').expect("pointer");
            // Defaults stand before what the case breaks.
            kind.default(&mut object);
            object.pointer_mut(parent).expect("parent")[name] = value.clone();
            let errors: Vec<String> = kind.validate_create(&object).iter().map(ToString::to_string).collect();
            assert!(errors.iter().any(|e| e == complaint), "{pointer}: {errors:#?}");
        }
    }

    #[test]
    fn selectors_cannot_change() {
        let kind = find("apps", "v1", "replicasets").expect("replicasets");
        let mut old = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            },
        });
        kind.default(&mut old);
        let mut new = old.clone();
        new["spec"]["selector"]["matchLabels"]["app"] = json!("x");
        new["spec"]["template"]["metadata"]["labels"]["app"] = json!("x");
        let errors = kind.validate_update(&new, &old, Subresource::Main);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(
            errors[0].to_string(),
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable"
        );
    }
}
