//! configMap, secret, downwardAPI and projected volumes → files. Pure: objects and tokens come as values.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, PodSpec, ServiceAccountTokenProjection, Volume,
};

use super::{
    VolumeError,
    atomic::{File, Payload, is_safe},
};
use crate::{
    downward,
    env::Sources,
    objects::{Data, ObjectKind, ObjectRef},
    resources,
};

/// A token to ask for: its audience and for how long, in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TokenWish {
    pub(crate) audience: Option<String>,
    pub(crate) seconds: i64,
}

const DEFAULT_MODE: i32 = 0o644;
const TOKEN_SECONDS: i64 = 3600;

impl TokenWish {
    fn of(p: &ServiceAccountTokenProjection) -> Self {
        Self {
            audience: p.audience.clone().filter(|a| !a.is_empty()),
            seconds: p.expiration_seconds.unwrap_or(TOKEN_SECONDS),
        }
    }
}

/// The tokens that the volumes of a pod hold.
pub(crate) fn tokens(spec: &PodSpec) -> Vec<TokenWish> {
    let projected = spec.volumes.iter().flatten().filter_map(|v| v.projected.as_ref());
    let sources = projected.flat_map(|p| p.sources.iter().flatten());
    let mut wishes: Vec<_> =
        sources.filter_map(|s| s.service_account_token.as_ref()).map(TokenWish::of).collect();
    wishes.sort();
    wishes.dedup();
    wishes
}

/// Every ConfigMap and Secret that the pod's volumes and environments name.
pub(crate) fn references(spec: &PodSpec, namespace: &str) -> Vec<ObjectRef> {
    let mut out = vec![];
    let mut add = |kind, name: Option<&String>| {
        if let Some(name) = name.filter(|n| !n.is_empty()) {
            out.push(ObjectRef { kind, namespace: namespace.to_owned(), name: name.clone() });
        }
    };
    for v in spec.volumes.iter().flatten() {
        if let Some(c) = &v.config_map {
            add(ObjectKind::ConfigMap, Some(&c.name));
        }
        if let Some(s) = &v.secret {
            add(ObjectKind::Secret, s.secret_name.as_ref());
        }
        for source in v.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(c) = &source.config_map {
                add(ObjectKind::ConfigMap, Some(&c.name));
            }
            if let Some(s) = &source.secret {
                add(ObjectKind::Secret, Some(&s.name));
            }
        }
    }
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let own = containers.map(|c| (&c.env_from, &c.env));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (&c.env_from, &c.env));
    for (env_from, env) in own.chain(ephemeral) {
        for e in env_from.iter().flatten() {
            add(ObjectKind::ConfigMap, e.config_map_ref.as_ref().map(|r| &r.name));
            add(ObjectKind::Secret, e.secret_ref.as_ref().map(|r| &r.name));
        }
        for e in env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            add(ObjectKind::ConfigMap, e.config_map_key_ref.as_ref().map(|r| &r.name));
            add(ObjectKind::Secret, e.secret_key_ref.as_ref().map(|r| &r.name));
        }
    }
    for s in spec.image_pull_secrets.iter().flatten() {
        add(ObjectKind::Secret, Some(&s.name));
    }
    out.sort();
    out.dedup();
    out
}

/// The files of one volume; `None` if it is not of a kind that the API feeds.
pub(crate) fn payload(
    volume: &Volume,
    from: &Sources<'_>,
    tokens: &BTreeMap<TokenWish, String>,
) -> Result<Option<Payload>, VolumeError> {
    let mut out = Writer { from, tokens, files: Payload::new(), mode: DEFAULT_MODE };
    if let Some(c) = &volume.config_map {
        out.mode = c.default_mode.unwrap_or(DEFAULT_MODE);
        out.object(ObjectKind::ConfigMap, &c.name, c.items.as_ref(), c.optional)?;
    } else if let Some(s) = &volume.secret {
        out.mode = s.default_mode.unwrap_or(DEFAULT_MODE);
        let name = s.secret_name.as_deref().unwrap_or_default();
        out.object(ObjectKind::Secret, name, s.items.as_ref(), s.optional)?;
    } else if let Some(d) = &volume.downward_api {
        out.mode = d.default_mode.unwrap_or(DEFAULT_MODE);
        out.downward(d.items.as_ref())?;
    } else if let Some(p) = &volume.projected {
        out.mode = p.default_mode.unwrap_or(DEFAULT_MODE);
        for source in p.sources.iter().flatten() {
            if let Some(c) = &source.config_map {
                out.object(ObjectKind::ConfigMap, &c.name, c.items.as_ref(), c.optional)?;
            }
            if let Some(s) = &source.secret {
                out.object(ObjectKind::Secret, &s.name, s.items.as_ref(), s.optional)?;
            }
            if let Some(d) = &source.downward_api {
                out.downward(d.items.as_ref())?;
            }
            if let Some(t) = &source.service_account_token {
                out.token(t)?;
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(out.files))
}

struct Writer<'a> {
    from: &'a Sources<'a>,
    tokens: &'a BTreeMap<TokenWish, String>,
    files: Payload,
    mode: i32,
}

impl Writer<'_> {
    fn add(&mut self, path: &str, content: Vec<u8>, mode: Option<i32>) -> Result<(), VolumeError> {
        let path = PathBuf::from(path);
        if !is_safe(&path) {
            return Err(VolumeError::Path(path));
        }
        let mode = u32::try_from(mode.unwrap_or(self.mode)).unwrap_or(0o600) & 0o777;
        self.files.insert(path, File { content, mode });
        Ok(())
    }

    fn object(
        &mut self,
        kind: ObjectKind,
        name: &str,
        items: Option<&Vec<KeyToPath>>,
        optional: Option<bool>,
    ) -> Result<(), VolumeError> {
        let optional = optional == Some(true);
        let data: Arc<Data> = match (self.from.object)(kind, name) {
            Some(data) => data,
            None if optional => return Ok(()),
            None => return Err(VolumeError::NoObject { kind, name: name.to_owned() }),
        };
        let Some(items) = items.filter(|i| !i.is_empty()) else {
            for (key, value) in data.iter() {
                self.add(key, value.clone(), None)?;
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(value) => self.add(&item.path, value.clone(), item.mode)?,
                None if optional => {}
                None => {
                    let (name, key) = (name.to_owned(), item.key.clone());
                    return Err(VolumeError::NoKey { kind, name, key });
                }
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: Option<&Vec<DownwardAPIVolumeFile>>) -> Result<(), VolumeError> {
        for item in items.into_iter().flatten() {
            let text = if let Some(f) = &item.field_ref {
                downward::field(self.from.pod, self.from.facts, &f.field_path)
                    .map_err(|e| VolumeError::Other(e.to_string()))?
            } else if let Some(r) = &item.resource_field_ref {
                let spec = self.from.pod.spec.as_ref();
                let name = r.container_name.as_deref().unwrap_or_default();
                let container = spec
                    .into_iter()
                    .flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
                    .find(|c| c.name == name)
                    .ok_or_else(|| VolumeError::Other(format!("container {name:?} not found")))?;
                resources::field(container, &r.resource, r.divisor.as_ref(), self.from.node)
                    .ok_or_else(|| VolumeError::Other(format!("unknown resource {:?}", r.resource)))?
            } else {
                continue;
            };
            self.add(&item.path, text.into_bytes(), item.mode)?;
        }
        Ok(())
    }

    fn token(&mut self, p: &ServiceAccountTokenProjection) -> Result<(), VolumeError> {
        let token = self.tokens.get(&TokenWish::of(p)).ok_or(VolumeError::NoToken)?;
        self.add(&p.path, token.clone().into_bytes(), None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{downward::PodFacts, resources::NodeSize};

    fn render(volume: Value) -> Result<Vec<String>, VolumeError> {
        let mut volume = volume;
        volume["name"] = json!("v");
        let volume: Volume = serde_json::from_value(volume).expect("volume");
        let pod = crate::desired::fixture::pod(json!({"containers": []}));
        let facts = PodFacts { host_ips: vec![[10, 0, 0, 1].into()], pod_ips: vec![], node_name: "n".into() };
        let object = |kind: ObjectKind, name: &str| {
            let known = (kind, name) == (ObjectKind::ConfigMap, "conf");
            known.then(|| Arc::new(Data::from([("a".into(), b"1".to_vec()), ("b".into(), b"2".to_vec())])))
        };
        let from = Sources {
            pod: &pod,
            facts: &facts,
            node: NodeSize { cpu_milli: 1000, memory: 1 },
            services: &[],
            object: &object,
        };
        let wish = TokenWish { audience: None, seconds: 3607 };
        let tokens = BTreeMap::from([(wish, "ey".to_owned())]);
        let files = payload(&volume, &from, &tokens)?.expect("fed by the API");
        let line = |(p, f): (&PathBuf, &File)| {
            format!("{} {:o} {}", p.display(), f.mode, String::from_utf8_lossy(&f.content))
        };
        Ok(files.iter().map(line).collect())
    }

    #[test]
    fn files() {
        let cases = [
            (json!({"configMap": {"name": "conf"}}), vec!["a 644 1", "b 644 2"]),
            (
                json!({"configMap": {"name": "conf", "defaultMode": 0o400, "items": [{"key": "a", "path": "x/y", "mode": 0o755}]}}),
                vec!["x/y 755 1"],
            ),
            (json!({"secret": {"secretName": "none", "optional": true}}), vec![]),
            (
                json!({"projected": {"sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                    {"configMap": {"name": "conf", "items": [{"key": "a", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
                ]}}),
                vec!["ca.crt 644 1", "namespace 644 default", "token 644 ey"],
            ),
        ];
        for (volume, expect) in cases {
            assert_eq!(render(volume.clone()).expect("renders"), expect, "{volume}");
        }
    }

    #[test]
    fn errors_name_what_is_missing() {
        let cases = [
            (json!({"secret": {"secretName": "nope"}}), "secret \"nope\" not found"),
            (
                json!({"configMap": {"name": "conf", "items": [{"key": "z", "path": "z"}]}}),
                "configmap \"conf\" references non-existent key: z",
            ),
            (
                json!({"configMap": {"name": "conf", "items": [{"key": "a", "path": "../../x"}]}}),
                "path ../../x would leave the volume",
            ),
        ];
        for (volume, expect) in cases {
            assert_eq!(render(volume).expect_err("fails").to_string(), expect);
        }
    }
}
