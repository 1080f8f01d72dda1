//! An image's configuration and what was asked for → an OCI runtime specification. Pure.

use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::image::Config;
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxCpuBuilder, LinuxIdMapping, LinuxIdMappingBuilder, LinuxMemoryBuilder,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
    Mount, MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use pith_api::quantity::Quantity;
use pith_container::compile;

/// Where programs are looked for when the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The period of cpu quotas: Kubernetes' and Docker's.
const CPU_PERIOD_US: u64 = 100_000;

/// What the command line asks for.
pub(super) struct Wanted<'a> {
    pub(super) command: &'a [String],
    pub(super) env: &'a [String],
    pub(super) workdir: Option<&'a str>,
    pub(super) host_network: bool,
    pub(super) memory: Option<i64>,
    pub(super) milli_cpus: Option<i64>,
    pub(super) pids: Option<i64>,
    pub(super) read_only: bool,
    pub(super) terminal: bool,
    pub(super) id: &'a str,
    pub(super) root: &'a Path,
    /// User and group of somebody who is not root: root inside, and all that a user namespace needs.
    pub(super) rootless: Option<(u32, u32)>,
}

impl Wanted<'_> {
    pub(super) fn has_limits(&self) -> bool {
        self.memory.is_some() || self.milli_cpus.is_some() || self.pids.is_some()
    }
}

/// Who an ordinary user is.
pub(super) fn rootless() -> Option<(u32, u32)> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    (!user.is_root()).then_some((user.as_raw(), group.as_raw()))
}

pub(super) fn bytes(text: &str) -> Result<i64, String> {
    positive(text, Quantity::units, "bytes such as 64Mi")
}

pub(super) fn milli_cpus(text: &str) -> Result<i64, String> {
    positive(text, Quantity::milli, "a number of processors such as 0.5")
}

fn positive(text: &str, of: fn(Quantity) -> i64, wanted: &str) -> Result<i64, String> {
    let amount = text.parse::<Quantity>().ok().map(of).filter(|amount| *amount > 0);
    amount.ok_or_else(|| format!("{text:?} is not {wanted}"))
}

pub(super) fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("a variable is NAME=VALUE".to_owned()),
    }
}

pub(super) fn directory(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("it is not absolute".to_owned()) }
}

pub(super) fn spec(wanted: &Wanted<'_>, image: &Config) -> Result<Spec> {
    let root = RootBuilder::default().path(wanted.root).readonly(wanted.read_only).build()?;
    let cwd = wanted.workdir.or(image.working_dir().as_deref()).filter(|dir| !dir.is_empty()).unwrap_or("/");
    let process = ProcessBuilder::default()
        .terminal(wanted.terminal)
        .args(arguments(wanted.command, image)?)
        .env(environment(wanted, image))
        .cwd(cwd)
        .user(UserBuilder::default().uid(0_u32).gid(0_u32).build()?)
        .capabilities(compile::capability_sets(compile::default_capabilities())?)
        .no_new_privileges(false)
        .rlimits(vec![])
        .build()?;
    Ok(SpecBuilder::default()
        .root(root)
        .process(process)
        .hostname(wanted.id)
        .mounts(mounts(wanted)?)
        .linux(linux(wanted)?)
        .build()?)
}

/// A command replaces all that the image says, as the `command` of a pod does.
fn arguments(command: &[String], image: &Config) -> Result<Vec<String>> {
    let given = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let line = match command {
        [] => [given(image.entrypoint()), given(image.cmd())].concat(),
        command => command.to_vec(),
    };
    if line.is_empty() {
        bail!("the image names no program: give one after --");
    }
    Ok(line)
}

/// The image's variables, then those that were asked for: of one name the last counts.
fn environment(wanted: &Wanted<'_>, image: &Config) -> Vec<String> {
    let hostname = format!("HOSTNAME={}", wanted.id);
    let term = wanted.terminal.then(|| "TERM=xterm".to_owned());
    let own = [PATH.to_owned(), hostname].into_iter().chain(term);
    let mut env: Vec<String> = Vec::new();
    for variable in own.chain(image.env().iter().flatten().cloned()).chain(wanted.env.iter().cloned()) {
        let name = variable.split_inclusive('=').next().unwrap_or_default().to_owned();
        env.retain(|other| !other.starts_with(&name));
        env.push(variable);
    }
    env
}

fn mounts(wanted: &Wanted<'_>) -> Result<Vec<Mount>> {
    let mut mounts = compile::default_mounts(None);
    if wanted.rootless.is_none() {
        return Ok(mounts);
    }
    for mount in &mut mounts {
        let target = mount.destination().clone();
        if target == Path::new("/dev/pts") {
            // The group of terminals is nobody's in a namespace with one group.
            let options = mount.options().iter().flatten().filter(|option| *option != "gid=5").cloned();
            let options = options.collect::<Vec<_>>();
            mount.set_options(Some(options));
        }
        if target == Path::new("/sys") && wanted.host_network {
            // A sysfs is made by whoever owns the network namespace: the host's can only be shown.
            let options = ["rbind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec();
            let bind =
                MountBuilder::default().destination("/sys").typ("bind").source("/sys").options(options);
            *mount = bind.build()?;
        }
    }
    // An ordinary user has no cgroup to show.
    mounts.retain(|mount| mount.destination() != Path::new("/sys/fs/cgroup"));
    Ok(mounts)
}

fn linux(wanted: &Wanted<'_>) -> Result<Linux> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};
    let mut kinds = vec![Mount, Pid, Ipc, Uts, Cgroup];
    kinds.extend((!wanted.host_network).then_some(Network));
    kinds.extend(wanted.rootless.map(|_| User));
    let namespaces = kinds.into_iter().map(|kind| LinuxNamespaceBuilder::default().typ(kind).build());
    let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces.collect::<Result<Vec<_>, _>>()?)
        .cgroups_path(format!("pith-run-{}", wanted.id))
        .resources(resources(wanted)?)
        .masked_paths(paths(compile::default_masked_paths()))
        .readonly_paths(paths(compile::default_readonly_paths()));
    if let Some((user, group)) = wanted.rootless {
        linux = linux.uid_mappings(vec![only(user)?]).gid_mappings(vec![only(group)?]);
    }
    linux.build().context("put the specification together")
}

/// Root inside is this one outside.
fn only(id: u32) -> Result<LinuxIdMapping> {
    Ok(LinuxIdMappingBuilder::default().container_id(0_u32).host_id(id).size(1_u32).build()?)
}

fn resources(wanted: &Wanted<'_>) -> Result<LinuxResources> {
    let mut resources = LinuxResourcesBuilder::default();
    if let Some(bytes) = wanted.memory {
        resources = resources.memory(LinuxMemoryBuilder::default().limit(bytes).build()?);
    }
    if let Some(milli) = wanted.milli_cpus {
        let quota = milli.saturating_mul(i64::try_from(CPU_PERIOD_US / 1000)?);
        resources = resources.cpu(LinuxCpuBuilder::default().quota(quota).period(CPU_PERIOD_US).build()?);
    }
    if let Some(pids) = wanted.pids {
        resources = resources.pids(LinuxPidsBuilder::default().limit(pids).build()?);
    }
    Ok(resources.build()?)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wanted<'a>() -> Wanted<'a> {
        Wanted {
            command: &[],
            env: &[],
            workdir: None,
            host_network: false,
            memory: None,
            milli_cpus: None,
            pids: None,
            read_only: false,
            terminal: false,
            id: "run-1",
            root: Path::new("/r"),
            rootless: None,
        }
    }

    fn build(wanted: &Wanted<'_>, image: Value) -> Result<Value> {
        let image: Config = serde_json::from_value(image).expect("an image's configuration");
        Ok(serde_json::to_value(spec(wanted, &image)?).expect("text and numbers"))
    }

    #[test]
    fn command_lines() {
        let image = json!({ "Entrypoint": ["/entry"], "Cmd": ["serve"] });
        let given = ["sh".to_owned(), "-c".to_owned()];
        let cases: [(&[String], Value, Value); 3] = [
            (&[], image.clone(), json!(["/entry", "serve"])),
            (&given, image, json!(["sh", "-c"])),
            (&given, json!({}), json!(["sh", "-c"])),
        ];
        for (command, image, expect) in cases {
            let spec = build(&Wanted { command, ..wanted() }, image).expect("it has a program");
            assert_eq!(spec["process"]["args"], expect);
        }
        let nothing = build(&wanted(), json!({})).expect_err("nothing to run");
        assert_eq!(nothing.to_string(), "the image names no program: give one after --");
    }

    #[test]
    fn the_last_of_a_variable_counts() {
        let env = ["A=mine".to_owned(), "AB=".to_owned()];
        let image = json!({ "Entrypoint": ["/x"], "Env": ["A=image", "PATH=/bin"] });
        let spec = build(&Wanted { env: &env, terminal: true, ..wanted() }, image).expect("builds");
        assert_eq!(
            spec["process"]["env"],
            json!(["HOSTNAME=run-1", "TERM=xterm", "PATH=/bin", "A=mine", "AB="])
        );
    }

    #[test]
    fn limits_and_namespaces() {
        let image = json!({ "Entrypoint": ["/x"] });
        let limited = Wanted { memory: Some(1 << 20), milli_cpus: Some(500), pids: Some(7), ..wanted() };
        let spec = build(&limited, image.clone()).expect("builds");
        let resources = &spec["linux"]["resources"];
        assert_eq!(resources["memory"]["limit"], 1 << 20);
        assert_eq!(resources["cpu"], json!({ "quota": 50_000, "period": 100_000 }));
        assert_eq!(resources["pids"]["limit"], 7);
        let kinds = |spec: &Value| -> Vec<String> {
            let listed = spec["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
            listed.iter().filter_map(|one| one["type"].as_str().map(str::to_owned)).collect()
        };
        assert_eq!(kinds(&spec), ["mount", "pid", "ipc", "uts", "cgroup", "network"]);
        let rootless = Wanted { host_network: true, rootless: Some((1000, 100)), ..wanted() };
        let spec = build(&rootless, image).expect("builds");
        assert_eq!(kinds(&spec), ["mount", "pid", "ipc", "uts", "cgroup", "user"]);
        assert_eq!(spec["linux"]["gidMappings"][0]["hostID"], 100);
        let sys =
            spec["mounts"].as_array().into_iter().flatten().find(|mount| mount["destination"] == "/sys");
        assert_eq!(sys.map(|sys| &sys["type"]), Some(&json!("bind")));
    }

    #[test]
    fn amounts_table() {
        for (text, expect) in
            [("64Mi", Some(64 << 20)), ("1G", Some(1_000_000_000)), ("0", None), ("-1", None), ("x", None)]
        {
            assert_eq!(bytes(text).ok(), expect, "{text}");
        }
        for (text, expect) in [("0.5", Some(500)), ("250m", Some(250)), ("2", Some(2000)), ("0", None)] {
            assert_eq!(milli_cpus(text).ok(), expect, "{text}");
        }
    }
}
