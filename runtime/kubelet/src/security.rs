//! Security contexts → what a container's process may do: user, capabilities, seccomp, paths. Pure.
//!
//! The container's own context wins over the pod's, field by field.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, SecurityContext};
use oci_spec::runtime::{Capabilities, Capability};

use crate::env::ConfigError;

/// What containers get that ask for nothing: the set of Docker and containerd.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// In the order of their numbers (capabilities(7)).
const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seccomp {
    RuntimeDefault,
    Unconfined,
    /// A profile file below the node's profile folder.
    Localhost(String),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Security {
    /// `user` or `user:group`, numbers or names; empty is root.
    pub(crate) user: String,
    pub(crate) groups: Vec<u32>,
    pub(crate) capabilities: Capabilities,
    pub(crate) privileged: bool,
    pub(crate) no_new_privileges: bool,
    pub(crate) read_only_root: bool,
    pub(crate) seccomp: Seccomp,
    /// `procMount: Unmasked`, or privileged.
    pub(crate) unmasked: bool,
}

pub(crate) fn security(
    spec: &PodSpec,
    c: &Container,
    image_user: &str,
    pod: &str,
) -> Result<Security, ConfigError> {
    let empty = SecurityContext::default();
    let own = c.security_context.as_ref().unwrap_or(&empty);
    let shared = spec.security_context.as_ref();
    let privileged = own.privileged.unwrap_or(false);
    let run_as = own.run_as_user.or(shared.and_then(|s| s.run_as_user));
    let group = own.run_as_group.or(shared.and_then(|s| s.run_as_group));
    let user = user(run_as, group, image_user);
    let non_root = own.run_as_non_root.or(shared.and_then(|s| s.run_as_non_root));
    if non_root == Some(true) {
        refuse_root(&user, pod, &c.name)?;
    }
    let groups = shared.and_then(|s| s.supplemental_groups.as_ref()).into_iter().flatten();
    let groups = groups.chain(shared.and_then(|s| s.fs_group.as_ref()));
    let seccomp = own.seccomp_profile.as_ref().or(shared.and_then(|s| s.seccomp_profile.as_ref()));
    let seccomp = match seccomp.map(|p| (p.type_.as_str(), &p.localhost_profile)) {
        _ if privileged => Seccomp::Unconfined,
        Some(("Unconfined", _)) => Seccomp::Unconfined,
        Some(("Localhost", Some(file))) => Seccomp::Localhost(file.clone()),
        // Stricter than upstream's historical default, and the same as its SeccompDefault.
        Some(_) | None => Seccomp::RuntimeDefault,
    };
    Ok(Security {
        user,
        groups: groups.filter_map(|g| u32::try_from(*g).ok()).collect(),
        capabilities: capabilities(own, privileged),
        privileged,
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        seccomp,
        unmasked: privileged || own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

fn user(run_as: Option<i64>, group: Option<i64>, image: &str) -> String {
    let (image_user, image_group) = image.split_once(':').map_or((image, None), |(u, g)| (u, Some(g)));
    // The image's group belongs to the image's user; another user gets its own.
    let (user, inherited) = match run_as {
        Some(uid) => (uid.to_string(), None),
        None => (image_user.to_owned(), image_group.map(str::to_owned)),
    };
    let user = if user.is_empty() { "0".to_owned() } else { user };
    match group.map(|g| g.to_string()).or(inherited) {
        Some(group) => format!("{user}:{group}"),
        None => user,
    }
}

fn refuse_root(user: &str, pod: &str, container: &str) -> Result<(), ConfigError> {
    let name = user.split(':').next().unwrap_or_default();
    let (pod, container) = (pod.to_owned(), container.to_owned());
    match name.parse::<u32>() {
        Ok(0) => Err(ConfigError::WouldRunAsRoot { pod, container }),
        Ok(_) => Ok(()),
        Err(_) => Err(ConfigError::UnverifiedUser { user: name.to_owned(), pod, container }),
    }
}

fn capabilities(own: &SecurityContext, privileged: bool) -> Capabilities {
    if privileged {
        return parse(ALL_CAPABILITIES);
    }
    let bare = |s: &String| s.to_ascii_uppercase().trim_start_matches("CAP_").to_owned();
    let list = |l: Option<&Vec<String>>| l.into_iter().flatten().map(bare).collect::<HashSet<_>>();
    let add = list(own.capabilities.as_ref().and_then(|c| c.add.as_ref()));
    let drop = list(own.capabilities.as_ref().and_then(|c| c.drop.as_ref()));
    let base: &[&str] = match (add.contains("ALL"), drop.contains("ALL")) {
        (true, _) => &ALL_CAPABILITIES,
        (false, true) => &[],
        (false, false) => &DEFAULT_CAPABILITIES,
    };
    let kept = base.iter().copied().filter(|c| !drop.contains(*c));
    let added = ALL_CAPABILITIES.into_iter().filter(|c| add.contains(*c));
    parse(kept.chain(added))
}

/// Names no kernel knows are left out, as the API server has let them pass.
fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Capabilities {
    let parse = |n: &str| serde_json::from_value::<Capability>(format!("CAP_{n}").into()).ok();
    names.into_iter().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(pod: Value, container: Value, image: &str) -> Result<Security, ConfigError> {
        let spec = serde_json::from_value(json!({"containers": [], "securityContext": pod})).expect("spec");
        let c =
            serde_json::from_value(json!({"name": "a", "securityContext": container})).expect("container");
        security(&spec, &c, image, "web_default(uid)")
    }

    #[test]
    fn users() {
        let cases = [
            (json!({}), json!({}), "", "0"),
            (json!({}), json!({}), "nginx:www", "nginx:www"),
            (json!({"runAsUser": 5}), json!({}), "nginx:www", "5"),
            (json!({"runAsUser": 5}), json!({"runAsUser": 7, "runAsGroup": 8}), "", "7:8"),
            (json!({"runAsGroup": 8}), json!({}), "nginx:www", "nginx:8"),
        ];
        for (pod, container, image, expect) in cases {
            let got = run(pod.clone(), container.clone(), image).expect("allowed").user;
            assert_eq!(got, expect, "{pod} {container} {image}");
        }
    }

    #[test]
    fn root_is_refused_where_asked() {
        let strict = json!({"runAsNonRoot": true});
        assert!(run(strict.clone(), json!({}), "").is_err());
        assert!(run(strict.clone(), json!({}), "nginx").is_err(), "a name proves nothing");
        assert!(run(strict.clone(), json!({"runAsUser": 0}), "5").is_err());
        assert!(run(strict, json!({}), "5").is_ok());
    }

    #[test]
    fn capability_sets() {
        let count = |c: Value| run(json!({}), c, "").expect("allowed").capabilities.len();
        assert_eq!(count(json!({})), 14);
        assert_eq!(count(json!({"capabilities": {"drop": ["ALL"]}})), 0);
        assert_eq!(count(json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}})), 1);
        assert_eq!(count(json!({"capabilities": {"add": ["cap_sys_admin"], "drop": ["KILL"]}})), 14);
        assert_eq!(count(json!({"capabilities": {"add": ["ALL"], "drop": ["SYS_ADMIN"]}})), 40);
        assert_eq!(count(json!({"privileged": true})), 41);
    }
}
