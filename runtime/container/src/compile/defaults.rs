//! What containers of a pod get when nothing else is said: as containerd and CRI-O give it.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, Mount, MountBuilder,
};

use super::CompileError;

/// The capabilities of an ordinary container.
pub fn default_capabilities() -> &'static [&'static str] {
    &[
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ]
}

/// The five sets of a container that may have `names` (`CAP_NET_RAW` or `NET_RAW`): bounding, permitted and
/// effective. Nothing is inheritable or ambient (CVE-2022-29162); oci-spec's own builder would default both.
pub fn capability_sets<S: AsRef<str>>(names: &[S]) -> Result<LinuxCapabilities, CompileError> {
    let set = names
        .iter()
        .map(|name| {
            let canonical = caps::to_canonical(name.as_ref());
            canonical.trim_start_matches("CAP_").parse::<Capability>().map_err(|_| CompileError::Invalid {
                field: "process.capabilities".to_owned(),
                value: name.as_ref().to_owned(),
                problem: "is not a capability",
            })
        })
        .collect::<Result<Capabilities, _>>()?;
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .inheritable(Capabilities::default())
        .ambient(Capabilities::default())
        .build()
        .expect("every set is given"))
}

/// All capabilities this program knows, for a privileged container.
pub fn capability_names() -> Vec<String> {
    let mut all: Vec<_> = caps::all().into_iter().collect();
    all.sort_unstable_by_key(caps::Capability::index);
    all.into_iter().map(|capability| capability.to_string()).collect()
}

/// Kernel files that tell about (or change) the host.
pub fn default_masked_paths() -> &'static [&'static str] {
    &[
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
}

/// Parts of /proc that can be read only.
pub fn default_readonly_paths() -> &'static [&'static str] {
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
}

/// The mounts of an ordinary container, in order. `shm` is the pod's shared /dev/shm.
pub fn default_mounts(shm: Option<&Path>) -> Vec<Mount> {
    let shm = match shm {
        Some(path) => mount("/dev/shm", "bind", path.to_owned(), &["rbind", "rw"]),
        None => mount(
            "/dev/shm",
            "tmpfs",
            PathBuf::from("shm"),
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
    };
    vec![
        mount("/proc", "proc", PathBuf::from("proc"), &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", PathBuf::from("tmpfs"), &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            PathBuf::from("devpts"),
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", PathBuf::from("mqueue"), &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", PathBuf::from("sysfs"), &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", PathBuf::from("cgroup"), &["nosuid", "noexec", "nodev", "ro"]),
        shm,
    ]
}

fn mount(destination: &str, typ: &str, source: PathBuf, options: &[&str]) -> Mount {
    MountBuilder::default()
        .destination(destination)
        .typ(typ)
        .source(source)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
        .expect("every field of a mount is given")
}
