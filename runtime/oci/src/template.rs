//! `spec`: a configuration to start from, the one that `runc spec` writes.

use std::path::Path;

use serde_json::{Value, json};

use crate::SPEC_VERSION;
use crate::error::{Error, Result};

pub(crate) fn write(dir: &Path, rootless: bool) -> Result<()> {
    let path = dir.join("config.json");
    if path.exists() {
        return Err(Error::Usage(format!("File {} exists. Remove it first", path.display())));
    }
    let unified = crate::cgroup::hierarchy()?.v1_roots().is_empty();
    let spec = spec(rootless, unified);
    let text = serde_json::to_string_pretty(&spec).expect("a JSON value is valid JSON");
    std::fs::write(&path, text).map_err(|error| {
        // Half a configuration would be in the way of the next try.
        let _ = std::fs::remove_file(&path);
        Error::io("write", path)(error)
    })
}

fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": typ, "source": source, "options": options })
}

fn spec(rootless: bool, unified: bool) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mut spec = json!({
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "pith",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" },
            ],
            "maskedPaths": pith_container::compile::default_masked_paths(),
            "readonlyPaths": pith_container::compile::default_readonly_paths(),
        },
    });
    // Hosts with version 1 controllers have mostly engines that know of no cgroup namespace; runc asks for one, too,
    // where version 2 is all there is.
    if unified && let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    if rootless {
        make_rootless(&mut spec);
    }
    spec
}

/// What an ordinary user may have: one id, the host's /sys, and no terminal group.
fn make_rootless(spec: &mut Value) {
    let map = |outside: u32| json!([{ "containerID": 0, "hostID": outside, "size": 1 }]);
    spec["linux"]["uidMappings"] = map(rustix::process::geteuid().as_raw());
    spec["linux"]["gidMappings"] = map(rustix::process::getegid().as_raw());
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("resources");
    }
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({ "type": "user" }));
    }
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        match mount["destination"].as_str() {
            Some("/dev/pts") => {
                if let Some(options) = mount["options"].as_array_mut() {
                    options.retain(|option| option != "gid=5");
                }
            }
            // A sysfs of its own needs a network namespace of its own.
            Some("/sys") => {
                mount["type"] = "none".into();
                mount["source"] = "/sys".into();
                mount["options"] = json!(["rbind", "nosuid", "noexec", "nodev", "ro"]);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;

    #[test]
    fn it_is_a_spec() {
        for rootless in [false, true] {
            let spec: Spec = serde_json::from_value(spec(rootless, true)).expect("as the types have it");
            assert_eq!(spec.linux().as_ref().is_some_and(|l| l.uid_mappings().is_some()), rootless);
        }
    }
}
