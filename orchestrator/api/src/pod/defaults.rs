//! What a pod gets that its author did not write.

use serde_json::{Value, json};

use crate::object::{child, has, list_mut, set_default, text};

/// Defaults of a pod as such.
pub(crate) fn pod(pod: &mut Value) {
    let spec = child(pod, "spec");
    set_default(spec, "enableServiceLinks", true);
    for group in ["containers", "initContainers"] {
        for container in list_mut(spec, group) {
            requests_from_limits(child(container, "resources"));
        }
    }
    template_spec(spec);
}

/// Where only a limit is given, the request is the same.
fn requests_from_limits(resources: &mut Value) {
    let Some(limits) = resources["limits"].as_object().cloned() else { return };
    let requests = child(resources, "requests");
    for (name, limit) in limits {
        set_default(requests, &name, limit);
    }
}

/// Defaults that templates get too.
pub(crate) fn template_spec(spec: &mut Value) {
    set_default(spec, "restartPolicy", "Always");
    set_default(spec, "dnsPolicy", "ClusterFirst");
    set_default(spec, "schedulerName", "default-scheduler");
    set_default(spec, "terminationGracePeriodSeconds", 30);
    set_default(spec, "securityContext", json!({}));
    service_account(spec);
    let host_network = spec["hostNetwork"] == true;
    for group in ["containers", "initContainers", "ephemeralContainers"] {
        for one in list_mut(spec, group) {
            container(one, host_network);
        }
    }
    for one in list_mut(spec, "volumes") {
        volume(one);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are always shown.
fn service_account(spec: &mut Value) {
    let name = match text(&spec["serviceAccountName"]) {
        "" => text(&spec["serviceAccount"]),
        name => name,
    }
    .to_owned();
    if !name.is_empty() {
        spec["serviceAccountName"] = name.as_str().into();
        spec["serviceAccount"] = name.into();
    }
}

fn container(container: &mut Value, host_network: bool) {
    let policy = if tag_is_latest(text(&container["image"])) { "Always" } else { "IfNotPresent" };
    set_default(container, "imagePullPolicy", policy);
    set_default(container, "terminationMessagePath", "/dev/termination-log");
    set_default(container, "terminationMessagePolicy", "File");
    for port in list_mut(container, "ports") {
        set_default(port, "protocol", "TCP");
        if host_network {
            let number = port["containerPort"].clone();
            set_default(port, "hostPort", number);
        }
    }
    for variable in list_mut(container, "env") {
        if let Some(field) = variable.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef")) {
            set_default(field, "apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(found) = container.get_mut(name) {
            probe(found);
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(get) =
            container.get_mut("lifecycle").and_then(|l| l.get_mut(name)).and_then(|h| h.get_mut("httpGet"))
        {
            http_get(get);
        }
    }
}

/// An image without a tag, or with the tag `latest`, may change behind its name.
fn tag_is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => true,
    }
}

fn probe(probe: &mut Value) {
    set_default(probe, "timeoutSeconds", 1);
    set_default(probe, "periodSeconds", 10);
    set_default(probe, "successThreshold", 1);
    set_default(probe, "failureThreshold", 3);
    if let Some(get) = probe.get_mut("httpGet") {
        http_get(get);
    }
    if let Some(grpc) = probe.get_mut("grpc") {
        set_default(grpc, "service", "");
    }
}

fn http_get(get: &mut Value) {
    set_default(get, "path", "/");
    set_default(get, "scheme", "HTTP");
}

fn volume(volume: &mut Value) {
    let sources = volume.as_object().map_or(0, |v| v.keys().filter(|k| *k != "name").count());
    if sources == 0 {
        set_default(volume, "emptyDir", json!({}));
    }
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(name) {
            set_default(source, "defaultMode", 0o644);
            for item in list_mut(source, "items") {
                field_ref(item);
            }
            for part in list_mut(source, "sources") {
                projection(part);
            }
        }
    }
    if let Some(source) = volume.get_mut("hostPath") {
        set_default(source, "type", "");
    }
    if let Some(source) = volume.get_mut("image")
        && !has(source, "pullPolicy")
    {
        let policy = if tag_is_latest(text(&source["reference"])) { "Always" } else { "IfNotPresent" };
        source["pullPolicy"] = policy.into();
    }
    if let Some(spec) = volume
        .get_mut("ephemeral")
        .and_then(|e| e.get_mut("volumeClaimTemplate"))
        .and_then(|t| t.get_mut("spec"))
    {
        set_default(spec, "volumeMode", "Filesystem");
    }
}

fn projection(part: &mut Value) {
    if let Some(token) = part.get_mut("serviceAccountToken") {
        set_default(token, "expirationSeconds", 3600);
    }
    if let Some(downward) = part.get_mut("downwardAPI") {
        for item in list_mut(downward, "items") {
            field_ref(item);
        }
    }
}

fn field_ref(item: &mut Value) {
    if let Some(field) = item.get_mut("fieldRef") {
        set_default(field, "apiVersion", "v1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_pulled_again_only_if_their_tag_may_move() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.27", false),
            ("localhost:5000/nginx", true),
            ("localhost:5000/nginx:1", false),
            ("nginx@sha256:0", false),
        ] {
            assert_eq!(tag_is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn a_small_pod_is_filled_in() {
        let mut object = json!({"spec": {
            "containers": [{
                "name": "a", "image": "x:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"port": 80}},
            }],
            "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "c"}}],
        }});
        pod(&mut object);
        assert_eq!(
            object["spec"],
            json!({
                "containers": [{
                    "name": "a", "image": "x:1", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                    "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                        "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                    "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                }],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "c", "configMap": {"name": "c", "defaultMode": 420}}],
                "enableServiceLinks": true, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
                "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30, "securityContext": {},
            })
        );
    }
}
