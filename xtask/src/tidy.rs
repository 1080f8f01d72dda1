//! `cargo xtask tidy`: who may depend on whom, checked from `cargo metadata`.
//!
//! Invariant: a crate of ours may use only the crates of ours named for it in [`LAYERS`]; a crate
//! that is not listed there is an error, so that a new one has to state its place.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Crate, and the crates of ours it may depend on. The README's architecture section explains why.
const LAYERS: &[(&str, &[&str])] = &[
    ("pith-api", &[]),
    ("pith-sys", &[]),
    ("pith-abi", &[]),
    ("pith-streaming", &[]),
    ("pith-probe", &[]),
    ("pith-informer", &[]),
    ("pith-store", &["pith-api"]),
    ("pith-apiserver", &["pith-api", "pith-store"]),
    ("pith-scheduler", &["pith-api", "pith-informer"]),
    ("pith-controllers", &["pith-api", "pith-informer"]),
    ("pith-cgroup", &["pith-sys"]),
    ("pith-image", &["pith-sys"]),
    ("pith-container", &["pith-sys", "pith-cgroup"]),
    ("pith-podd", &["pith-sys", "pith-container"]),
    ("pith-oci", &["pith-sys", "pith-cgroup", "pith-container"]),
    ("pith-kubelet", &["pith-api", "pith-container", "pith-cgroup", "pith-image", "pith-streaming"]),
    ("pith-core", &["pith-abi"]),
    ("pith-netlink", &[]),
    ("pith-proxy", &["pith-abi", "pith-core", "pith-netlink"]),
    ("pith-network", &["pith-abi", "pith-sys", "pith-netlink"]),
    ("pith-forward", &["pith-abi", "pith-core", "pith-proxy"]),
];

/// These wire everything together and may use any crate.
const WIRING: &[&str] = &["pith", "pith-bench", "pith-tests", "xtask"];

pub(crate) fn run() -> Result<()> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--no-deps"])
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let mistakes = layering_mistakes(&metadata);
    if !mistakes.is_empty() {
        bail!("layering:\n  {}", mistakes.join("\n  "));
    }
    println!("tidy: layering holds");
    Ok(())
}

/// One line a dependency that [`LAYERS`] does not allow. Dev-dependencies count too: a test that needs a
/// higher layer belongs into `tests/`.
fn layering_mistakes(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours: Vec<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let mut mistakes = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        if WIRING.contains(&name) {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == name) else {
            mistakes.push(format!("{name} has no place in xtask/src/tidy.rs: add it to LAYERS"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
        for dependency in dependencies.iter().filter_map(|d| d["name"].as_str()) {
            if ours.contains(&dependency) && !allowed.contains(&dependency) {
                mistakes.push(format!("{name} may not depend on {dependency}"));
            }
        }
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Value {
        let dependencies: Vec<Value> = dependencies.iter().map(|d| json!({ "name": d })).collect();
        json!({ "name": name, "dependencies": dependencies })
    }

    #[test]
    fn layering_table() {
        let api = package("pith-api", &["serde"]);
        let cases = [
            ("allowed", vec![api.clone(), package("pith-scheduler", &["pith-api", "pith-informer"])], vec![]),
            (
                "upwards",
                vec![package("pith-api", &["pith-store"]), package("pith-store", &["pith-api"])],
                vec!["pith-api may not depend on pith-store"],
            ),
            (
                "unknown crate",
                vec![package("pith-new", &[])],
                vec!["pith-new has no place in xtask/src/tidy.rs: add it to LAYERS"],
            ),
            ("wiring is free", vec![api, package("pith", &["pith-api"])], vec![]),
        ];
        for (name, packages, expect) in cases {
            assert_eq!(layering_mistakes(&json!({ "packages": packages })), expect, "{name}");
        }
    }
}
