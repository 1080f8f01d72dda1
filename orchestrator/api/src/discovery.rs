//! What the server offers: `/api`, `/apis`, the per-group lists and the aggregated `APIGroupDiscoveryList`,
//! all read off the table of kinds.

use serde_json::{Value, json};

use crate::{
    kind::{Kind, SubresourceKind, api_version},
    kinds::kinds,
};

/// Kubernetes' version that pith follows, with its own mark.
pub const GIT_VERSION: &str = "v1.37.0+pith";

/// Media types of the aggregated document; `Accept` carries exactly these parameters.
pub const AGGREGATED_V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
pub const AGGREGATED_V2BETA1: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// `/version`; `git_commit` and `build_date` come from the program.
pub fn version(git_commit: &str, build_date: &str) -> Value {
    json!({
        "major": "1", "minor": "37",
        "emulationMajor": "1", "emulationMinor": "37",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "36",
        "gitVersion": GIT_VERSION, "gitCommit": git_commit, "gitTreeState": "clean", "buildDate": build_date,
        "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
    })
}

/// `/api`
pub fn core_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// Groups with their versions, preferred version first, in order of the table; core is the empty group.
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for kind in kinds().iter().filter(|k| !k.verbs.is_empty()) {
        match groups.iter_mut().find(|(group, _)| *group == kind.group) {
            Some((_, versions)) if !versions.contains(&kind.version) => versions.push(kind.version),
            Some(_) => {}
            None => groups.push((kind.group, vec![kind.version])),
        }
    }
    groups
}

/// `/apis`
pub fn group_list() -> Value {
    let list: Vec<Value> = groups()
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| describe(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

/// `/apis/apps`
pub fn group(name: &str) -> Option<Value> {
    let (group, versions) = groups().into_iter().find(|(group, _)| *group == name && !group.is_empty())?;
    let mut description = describe(group, &versions);
    description["kind"] = "APIGroup".into();
    description["apiVersion"] = "v1".into();
    Some(description)
}

fn describe(group: &str, versions: &[&str]) -> Value {
    let all: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": api_version(group, v), "version": v})).collect();
    json!({"name": group, "versions": all, "preferredVersion": all[0]})
}

/// `/api/v1`, `/apis/apps/v1`
pub fn resource_list(group: &str, version: &str) -> Option<Value> {
    let members: Vec<&Kind> = members(group, version).collect();
    if members.is_empty() {
        return None;
    }
    let mut resources = Vec::new();
    for kind in members {
        let mut main = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": kind.verbs,
        });
        if !kind.short_names.is_empty() {
            main["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            main["categories"] = json!(kind.categories);
        }
        if kind.is_stored() {
            main["storageVersionHash"] = storage_version_hash(kind).into();
        }
        resources.push(main);
        for sub in kind.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural, sub.name), "singularName": "", "namespaced": kind.namespaced,
                "kind": sub.kind, "verbs": sub.verbs,
            });
            if (sub.group, sub.version) != (kind.group, kind.version) {
                entry["group"] = sub.group.into();
                entry["version"] = sub.version.into();
            }
            resources.push(entry);
        }
    }
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": resources,
    }))
}

/// Clients only compare it; it has to differ between kinds and stay the same for one kind.
fn storage_version_hash(kind: &Kind) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let text = format!("{}/{}/{}", kind.group, kind.version, kind.kind);
    let hash =
        text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    BASE64_STANDARD.encode(hash.to_be_bytes())
}

/// `/api` (with `core`) or `/apis` (without) as one document; `version` is `v2` or `v2beta1`.
pub fn aggregated(core: bool, version: &str) -> Value {
    let items: Vec<Value> = groups()
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|v| json!({"version": v, "resources": aggregated_resources(group, v), "freshness": "Current"}))
                .collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items,
    })
}

fn aggregated_resources(group: &str, version: &str) -> Vec<Value> {
    members(group, version)
        .map(|kind| {
            let mut entry = json!({
                "resource": kind.plural,
                "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
                "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": kind.singular,
                "verbs": kind.verbs,
            });
            if !kind.short_names.is_empty() {
                entry["shortNames"] = json!(kind.short_names);
            }
            if !kind.categories.is_empty() {
                entry["categories"] = json!(kind.categories);
            }
            if !kind.subresources.is_empty() {
                entry["subresources"] = kind.subresources.iter().map(aggregated_subresource).collect();
            }
            entry
        })
        .collect()
}

fn aggregated_subresource(sub: &SubresourceKind) -> Value {
    json!({
        "subresource": sub.name,
        "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
        "verbs": sub.verbs,
    })
}

fn members<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Kind> + 'a {
    kinds().iter().filter(move |k| !k.verbs.is_empty() && k.group == group && k.version == version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_appears_in_every_form() {
        let aggregated: Vec<Value> = [true, false].iter().map(|core| aggregated(*core, "v2")).collect();
        for kind in kinds().iter().filter(|k| !k.verbs.is_empty()) {
            let list = resource_list(kind.group, kind.version).expect("its group version");
            let listed =
                list["resources"].as_array().expect("resources").iter().any(|r| r["name"] == kind.plural);
            assert!(listed, "{} in the legacy list", kind.plural);
            let found = aggregated.iter().flat_map(|d| d["items"].as_array().expect("items")).any(|group| {
                group["versions"].as_array().expect("versions").iter().any(|v| {
                    v["resources"].as_array().expect("resources").iter().any(|r| r["resource"] == kind.plural)
                })
            });
            assert!(found, "{} in the aggregated list", kind.plural);
        }
        assert!(group("apps").is_some() && group("").is_none() && group("nowhere").is_none());
        assert!(resource_list("apps", "v2").is_none());
    }
}
