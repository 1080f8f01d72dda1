//! The downward API: what a pod may learn about itself, by field path.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

/// What the object does not know yet when its containers start.
#[derive(Debug, Clone)]
pub(crate) struct PodFacts {
    /// Main ones first, as in the status.
    pub(crate) host_ips: Vec<IpAddr>,
    pub(crate) pod_ips: Vec<IpAddr>,
    pub(crate) node_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field path {0:?} is not supported by the downward API")]
pub(crate) struct UnknownField(pub String);

/// The value of one field. Missing labels and annotations are empty, as upstream.
pub(crate) fn field(pod: &Pod, facts: &PodFacts, path: &str) -> Result<String, UnknownField> {
    let meta = &pod.metadata;
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(UnknownField(path.to_owned())),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let text = |o: &Option<String>| o.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => spec.map(|s| text(&s.service_account_name)).unwrap_or_default(),
        "spec.restartPolicy" => spec.map(|s| text(&s.restart_policy)).unwrap_or_default(),
        "status.hostIP" => facts.host_ips.first().map(IpAddr::to_string).unwrap_or_default(),
        "status.hostIPs" => joined(&facts.host_ips),
        "status.podIP" => facts.pod_ips.first().map(IpAddr::to_string).unwrap_or_default(),
        "status.podIPs" => joined(&facts.pod_ips),
        _ => return Err(UnknownField(path.to_owned())),
    })
}

fn joined(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// `metadata.labels['key']` → (`metadata.labels`, `key`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    let bare = ['\'', '"'].iter().find_map(|q| key.strip_prefix(*q)?.strip_suffix(*q));
    Some((map, bare.unwrap_or(key)))
}

/// `key="escaped value"` a line, in the order of keys.
fn lines(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    let lines: Vec<_> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web", "a.b/c": "say \"hi\""}},
            "spec": {"containers": [], "serviceAccountName": "default"},
        }))
        .expect("fixture");
        let facts = PodFacts {
            host_ips: vec![[10, 0, 0, 1].into(), "fd00::1".parse().expect("an address")],
            pod_ips: vec![[10, 1, 0, 5].into(), "fd00:1::5".parse().expect("an address")],
            node_name: "replica-1".into(),
        };
        let cases = [
            ("metadata.name", "web"),
            ("metadata.labels['app']", "web"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "a.b/c=\"say \\\"hi\\\"\"\napp=\"web\""),
            ("spec.nodeName", "replica-1"),
            ("status.podIP", "10.1.0.5"),
            ("status.podIPs", "10.1.0.5,fd00:1::5"),
            ("status.hostIP", "10.0.0.1"),
            ("status.hostIPs", "10.0.0.1,fd00::1"),
        ];
        for (path, expect) in cases {
            assert_eq!(field(&pod, &facts, path).as_deref(), Ok(expect), "{path}");
        }
        assert!(field(&pod, &facts, "spec.containers").is_err());
    }
}
