//! Pod + container + image → an OCI runtime specification. Pure; everything it needs comes as values.
//!
//! Network, ipc and uts namespaces are the supervisor's, and are inherited; a container gets a mount, a
//! cgroup and (unless the pod shares one) a pid namespace of its own.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Container;
use oci_spec::{
    image::Config as ImageConfig,
    runtime::{
        LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
        LinuxResources, LinuxSeccomp, Mount, MountBuilder, Process, ProcessBuilder, RootBuilder, Spec,
        SpecBuilder, UserBuilder, get_default_maskedpaths, get_default_readonly_paths,
    },
};

use crate::{
    env::{ConfigError, Environment, expand},
    security::Security,
};

pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One bind mount of a volume or a file the kubelet made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    /// Below `beneath` if that is given.
    pub(crate) source: PathBuf,
    /// A volume whose content a container may have written: the source is resolved inside it.
    pub(crate) beneath: Option<PathBuf>,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) propagation: &'static str,
}

/// All that a specification is made of.
pub(crate) struct Input<'a> {
    pub(crate) container: &'a Container,
    pub(crate) image: Option<&'a ImageConfig>,
    pub(crate) env: &'a Environment,
    pub(crate) security: &'a Security,
    pub(crate) binds: &'a [Bind],
    pub(crate) hostname: &'a str,
    /// The pod's /dev/shm.
    pub(crate) shm: &'a Path,
    pub(crate) resources: LinuxResources,
    pub(crate) oom_score_adj: i32,
    pub(crate) own_pid_namespace: bool,
    pub(crate) root: PathBuf,
    pub(crate) seccomp: Option<LinuxSeccomp>,
}

pub(crate) fn spec(input: &Input<'_>) -> Result<Spec, ConfigError> {
    let s = input.security;
    let root = RootBuilder::default().path(input.root.clone()).readonly(s.read_only_root);
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(input))
        .resources(input.resources.clone())
        .masked_paths(if s.unmasked { vec![] } else { get_default_maskedpaths() })
        .readonly_paths(if s.unmasked { vec![] } else { get_default_readonly_paths() });
    if let Some(filter) = &input.seccomp {
        linux = linux.seccomp(filter.clone());
    }
    SpecBuilder::default()
        .root(root.build().map_err(unbuilt)?)
        .process(process(input)?)
        .mounts(mounts(input)?)
        .hostname(input.hostname.to_owned())
        .linux(linux.build().map_err(unbuilt)?)
        .build()
        .map_err(unbuilt)
}

fn unbuilt(e: oci_spec::OciSpecError) -> ConfigError {
    ConfigError::Other(e.to_string())
}

fn namespaces(input: &Input<'_>) -> Vec<LinuxNamespace> {
    let mut kinds = vec![LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup];
    if input.own_pid_namespace {
        kinds.push(LinuxNamespaceType::Pid);
    }
    let one = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
    kinds.into_iter().map(|k| one(k).expect("its type is set")).collect()
}

fn process(input: &Input<'_>) -> Result<Process, ConfigError> {
    let s = input.security;
    let (c, image) = (input.container, input.image);
    let caps = s.capabilities.clone();
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(caps.clone())
        .effective(caps.clone())
        .permitted(caps)
        .inheritable(Vec::new().into_iter().collect::<oci_spec::runtime::Capabilities>())
        .ambient(Vec::new().into_iter().collect::<oci_spec::runtime::Capabilities>())
        .build()
        .map_err(unbuilt)?;
    let cwd = c.working_dir.clone().filter(|d| !d.is_empty());
    let cwd = cwd.or_else(|| image?.working_dir().clone().filter(|d| !d.is_empty()));
    ProcessBuilder::default()
        .terminal(c.tty.unwrap_or(false))
        .args(arguments(c, image, input.env)?)
        .env(variables(input))
        .cwd(cwd.unwrap_or_else(|| "/".to_owned()))
        .user(user(s)?)
        .capabilities(capabilities)
        .no_new_privileges(s.no_new_privileges)
        .oom_score_adj(input.oom_score_adj)
        .rlimits(vec![])
        .build()
        .map_err(unbuilt)
}

/// Who it is comes beside the specification, as `user[:group]`: names are for the container's own
/// /etc/passwd to resolve, and so are the groups of a number.
fn user(s: &Security) -> Result<oci_spec::runtime::User, ConfigError> {
    UserBuilder::default().uid(0u32).gid(0u32).additional_gids(s.groups.clone()).build().map_err(unbuilt)
}

/// `command` replaces the image's entrypoint and its arguments; `args` replaces the arguments alone.
fn arguments(
    c: &Container,
    image: Option<&ImageConfig>,
    env: &Environment,
) -> Result<Vec<String>, ConfigError> {
    let given = |l: &Option<Vec<String>>| l.clone().filter(|l| !l.is_empty());
    let expanded =
        |l: Vec<String>| -> Vec<String> { l.iter().map(|s| expand(s, |name| env.get(name))).collect() };
    let (command, args) = (given(&c.command).map(expanded), given(&c.args).map(expanded));
    let entrypoint = || image.and_then(|i| given(i.entrypoint())).unwrap_or_default();
    let cmd = || image.and_then(|i| given(i.cmd())).unwrap_or_default();
    let line = match (command, args) {
        (Some(command), args) => [command, args.unwrap_or_default()].concat(),
        (None, Some(args)) => [entrypoint(), args].concat(),
        (None, None) => [entrypoint(), cmd()].concat(),
    };
    if line.is_empty() {
        return Err(ConfigError::Other("no command specified".to_owned()));
    }
    Ok(line)
}

/// The image's variables under those of the pod, and what every program expects.
fn variables(input: &Input<'_>) -> Vec<String> {
    let mut all = Environment::default();
    all.set("PATH", DEFAULT_PATH.to_owned());
    all.set("HOSTNAME", input.hostname.to_owned());
    if input.container.tty.unwrap_or(false) {
        all.set("TERM", "xterm".to_owned());
    }
    let image = input.image.and_then(|i| i.env().as_ref());
    for line in image.into_iter().flatten().chain(&input.env.lines()) {
        if let Some((name, value)) = line.split_once('=') {
            all.set(name, value.to_owned());
        }
    }
    all.lines()
}

fn mounts(input: &Input<'_>) -> Result<Vec<Mount>, ConfigError> {
    let system = if input.security.privileged { "rw" } else { "ro" };
    let fixed: [(&str, &str, &str, &[&str]); 6] = [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", system]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", system]),
    ];
    let mut all = vec![];
    for (target, typ, source, options) in fixed {
        all.push(mount(Path::new(target), typ, Path::new(source), options)?);
    }
    let binds_at = |path: &str| input.binds.iter().any(|b| b.target == Path::new(path));
    if !binds_at("/dev/shm") {
        all.push(mount(Path::new("/dev/shm"), "bind", input.shm, &["rbind", "nosuid", "noexec", "nodev"])?);
    }
    // A mount below another one has to come after it.
    let mut binds: Vec<_> = input.binds.iter().collect();
    binds.sort_by_key(|b| b.target.components().count());
    for bind in binds {
        let options = ["rbind", bind.propagation, if bind.read_only { "ro" } else { "rw" }];
        all.push(mount(&bind.target, "bind", &bind.source, &options)?);
    }
    Ok(all)
}

fn mount(target: &Path, typ: &str, source: &Path, options: &[&str]) -> Result<Mount, ConfigError> {
    MountBuilder::default()
        .destination(target)
        .typ(typ.to_owned())
        .source(source)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
        .map_err(unbuilt)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resources;

    fn build(container: Value, image: Value) -> Result<Spec, ConfigError> {
        let mut container = container;
        container["name"] = json!("a");
        let c: Container = serde_json::from_value(container).expect("container");
        let image: ImageConfig = serde_json::from_value(image).expect("image config");
        let pod = serde_json::from_value(json!({"containers": []})).expect("spec");
        let user = image.user().clone().unwrap_or_default();
        let security = crate::security::security(&pod, &c, &user, "web")?;
        let mut env = Environment::default();
        env.set("GREETING", "hello".to_owned());
        spec(&Input {
            container: &c,
            image: Some(&image),
            env: &env,
            security: &security,
            binds: &[
                Bind {
                    source: "/v/b".into(),
                    beneath: None,
                    target: "/data/sub".into(),
                    read_only: true,
                    propagation: "rprivate",
                },
                Bind {
                    source: "/v/a".into(),
                    beneath: None,
                    target: "/data".into(),
                    read_only: false,
                    propagation: "rprivate",
                },
            ],
            hostname: "web",
            shm: Path::new("/run/shm"),
            resources: resources::of_container(&c, None),
            oom_score_adj: 1000,
            own_pid_namespace: true,
            root: "rootfs".into(),
            seccomp: None,
        })
    }

    #[test]
    fn command_lines() {
        let image = json!({"Entrypoint": ["/entry"], "Cmd": ["serve"]});
        let cases = [
            (json!({}), vec!["/entry", "serve"]),
            (json!({"args": ["x"]}), vec!["/entry", "x"]),
            (json!({"command": ["/bin/sh"]}), vec!["/bin/sh"]),
            (
                json!({"command": ["/bin/sh"], "args": ["-c", "$(GREETING) $(NONE)"]}),
                vec!["/bin/sh", "-c", "hello $(NONE)"],
            ),
        ];
        for (container, expect) in cases {
            let spec = build(container.clone(), image.clone()).expect("builds");
            let args = spec.process().as_ref().and_then(|p| p.args().clone()).expect("has arguments");
            assert_eq!(args, expect, "{container}");
        }
        assert!(build(json!({}), json!({})).is_err(), "nothing to run");
    }

    #[test]
    fn whole_specification() {
        let spec = build(
            json!({"workingDir": "/srv", "tty": true, "resources": {"limits": {"cpu": "500m", "memory": "32Mi"}}}),
            json!({"Entrypoint": ["/entry"], "Env": ["PATH=/bin", "GREETING=image"], "User": "nginx"}),
        )
        .expect("builds");
        // The sets of capabilities have no order of their own.
        let mut value = serde_json::to_value(spec).expect("is JSON");
        let sets = value["process"]["capabilities"].as_object_mut().expect("has sets");
        for set in sets.values_mut().filter_map(Value::as_array_mut) {
            set.sort_by_key(Value::to_string);
        }
        insta::assert_json_snapshot!(value);
    }
}
