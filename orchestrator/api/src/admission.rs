//! What the standard admission plugins do to objects on their way in, as far as it needs no other object.

use serde_json::{Value, json};

use crate::object::{child, has, list, list_mut, set_default, text};

/// Where a pod finds its service account's token.
pub const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Seconds a pod stays on a node that is not ready or not reachable (`DefaultTolerationSeconds`).
const TOLERATED_S: i64 = 300;

/// Priority, tolerations and service account of a new pod. `account` is its ServiceAccount object, `random` five
/// characters for the name of the token's volume.
pub fn pod(pod: &mut Value, account: &Value, random: &str) {
    let spec = child(pod, "spec");
    set_default(spec, "priority", 0);
    set_default(spec, "preemptionPolicy", "PreemptLowerPriority");
    tolerations(spec);
    set_default(spec, "serviceAccountName", "default");
    let name = spec["serviceAccountName"].clone();
    set_default(spec, "serviceAccount", name);
    if !has(spec, "imagePullSecrets") && !list(&account["imagePullSecrets"]).is_empty() {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    // The pod's own wish goes first, then its account's.
    let mount = [&spec["automountServiceAccountToken"], &account["automountServiceAccountToken"]]
        .into_iter()
        .find_map(Value::as_bool)
        .unwrap_or(true);
    if mount {
        mount_token(spec, &format!("kube-api-access-{random}"));
    }
}

fn tolerations(spec: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = list(&spec["tolerations"]).iter().any(|t| {
            let (its_key, effect) = (text(&t["key"]), text(&t["effect"]));
            (its_key == key || its_key.is_empty() && t["operator"] == "Exists")
                && matches!(effect, "" | "NoExecute")
        });
        if !covered {
            set_default(spec, "tolerations", json!([]));
            if let Value::Array(all) = &mut spec["tolerations"] {
                all.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATED_S}));
            }
        }
    }
}

/// Gives every container that has nothing of its own there the token, the cluster's CA and its namespace.
fn mount_token(spec: &mut Value, volume: &str) {
    let mut mounted = false;
    for group in ["initContainers", "containers"] {
        for container in list_mut(spec, group) {
            if list(&container["volumeMounts"]).iter().any(|m| m["mountPath"] == TOKEN_PATH) {
                continue;
            }
            set_default(container, "volumeMounts", json!([]));
            if let Value::Array(mounts) = &mut container["volumeMounts"] {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
                mounted = true;
            }
        }
    }
    if mounted {
        set_default(spec, "volumes", json!([]));
        if let Value::Array(volumes) = &mut spec["volumes"] {
            volumes.push(token_volume(volume));
        }
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "sources": [
                // A little over an hour: tokens of an hour are renewed when four fifths are over.
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [
                    {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                ]}},
            ],
            "defaultMode": 0o644,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;

    #[test]
    fn a_pod_gets_its_account_and_tolerations() {
        let kind = find("", "v1", "pods").expect("pods");
        let mut object = json!({
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "i"}], "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]},
        });
        kind.default(&mut object);
        pod(&mut object, &json!({"imagePullSecrets": [{"name": "s"}]}), "abcde");
        assert_eq!(kind.validate_create(&object), []);
        let spec = &object["spec"];
        assert_eq!(
            (&spec["priority"], &spec["serviceAccountName"], &spec["serviceAccount"]),
            (&json!(0), &json!("default"), &json!("default"))
        );
        assert_eq!(list(&spec["tolerations"]).len(), 2);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], "kube-api-access-abcde");
        assert_eq!(spec["volumes"][0]["name"], "kube-api-access-abcde");
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "s"}]));
        // Once is enough.
        let before = object.clone();
        pod(&mut object, &Value::Null, "fghij");
        assert_eq!(object, before);
    }

    #[test]
    fn a_pod_that_wants_no_token_gets_none() {
        for (wish, account, mounted) in [
            (json!(false), json!(null), false),
            (json!(null), json!(false), false),
            (json!(true), json!(false), true),
        ] {
            let mut object = json!({"spec": {"containers": [{}], "automountServiceAccountToken": wish}});
            pod(&mut object, &json!({"automountServiceAccountToken": account}), "x");
            assert_eq!(has(&object["spec"], "volumes"), mounted);
        }
    }
}
