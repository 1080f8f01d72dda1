//! `pith doctor`: what this kernel can and cannot do for pith, and what to change.
//!
//! Each check looks at the thing itself (a file the kernel shows, a capability of this process), not at a
//! version number, except where the kernel shows nothing. A missing thing fails the command; a degraded one does not.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use caps::{CapSet, Capability};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use rustix::mount::{FsOpenFlags, fsopen};
use serde::Serialize;

use crate::cli::{DoctorArgs, Output};

const CGROUP_ADVICE: &str = "mount a cgroup v2 hierarchy: mkdir -p /sys/fs/cgroup/unified && \
                             mount -t cgroup2 none /sys/fs/cgroup/unified";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Degraded,
    Missing,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    detail: String,
    /// What to change; empty where nothing has to be.
    advice: String,
}

pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    let findings = examine();
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings).context("write JSON")?),
        Output::Text => print(&findings),
    }
    let missing = findings.iter().filter(|finding| finding.state == State::Missing).count();
    if missing > 0 {
        bail!("{missing} of {} things that pith needs are missing", findings.len());
    }
    Ok(())
}

/// Refuses to start what could not work here, in the doctor's words.
///
/// # Errors
/// Something is missing: each with what to change.
pub(crate) fn require() -> Result<()> {
    let missing: Vec<String> = examine()
        .into_iter()
        .filter(|finding| finding.state == State::Missing)
        .map(|finding| format!("{}: {}: {}", finding.what, finding.detail, finding.advice))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this machine cannot run a replica:\n  {}", missing.join("\n  "))
}

fn examine() -> Vec<Finding> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut findings = vec![
        kernel(&release),
        btf(Path::new("/sys/kernel/btf/vmlinux").exists()),
        bpffs(&read("/proc/self/mounts")),
        overlay(&read("/proc/filesystems"), || fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).is_ok()),
        namespaces(|name| Path::new("/proc/self/ns").join(name).exists()),
        seccomp(&read("/proc/sys/kernel/seccomp/actions_avail")),
        cgroups(),
    ];
    findings.extend(capabilities(|capability| {
        caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
    }));
    findings
}

fn ok(what: &'static str, detail: impl Into<String>) -> Finding {
    Finding { what, state: State::Ok, detail: detail.into(), advice: String::new() }
}

fn problem(what: &'static str, state: State, detail: impl Into<String>, advice: &str) -> Finding {
    Finding { what, state, detail: detail.into(), advice: advice.to_owned() }
}

/// An unreadable file is one that says nothing: the check then reports what it misses.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// tcx, which carries NodePorts and masquerading, came with Linux 6.6; nothing in /proc or /sys shows it.
fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 6) {
        return ok("kernel", release);
    }
    problem("kernel", State::Missing, release, "Linux 6.6 or newer is needed for tcx")
}

fn btf(there: bool) -> Finding {
    if there {
        return ok("BTF", "/sys/kernel/btf/vmlinux");
    }
    problem("BTF", State::Missing, "no type information", "use a kernel built with CONFIG_DEBUG_INFO_BTF=y")
}

fn bpffs(mounts: &str) -> Finding {
    if mounts.lines().any(|line| line.split(' ').nth(2) == Some("bpf")) {
        return ok("bpffs", "mounted");
    }
    ok("bpffs", "not mounted: `pith up` mounts it at /sys/fs/bpf and `pith down` takes it away again")
}

/// `loads` asks the kernel for the filesystem, which loads its module.
fn overlay(filesystems: &str, loads: impl Fn() -> bool) -> Finding {
    if filesystems.split_whitespace().any(|name| name == "overlay") || loads() {
        return ok("overlayfs", "available");
    }
    let detail = "the kernel does not know it: each container starts from a copy of its image's files";
    problem("overlayfs", State::Degraded, detail, "run `modprobe overlay`")
}

fn namespaces(exists: impl Fn(&str) -> bool) -> Finding {
    let missing: Vec<&str> =
        ["mnt", "pid", "net", "ipc", "uts", "cgroup"].into_iter().filter(|name| !exists(name)).collect();
    if missing.is_empty() {
        let more: Vec<&str> = ["user", "time"].into_iter().filter(|name| exists(name)).collect();
        return ok("namespaces", format!("mnt pid net ipc uts cgroup {}", more.join(" ")).trim_end());
    }
    problem(
        "namespaces",
        State::Missing,
        format!("without {}", missing.join(", ")),
        "enable CONFIG_NAMESPACES",
    )
}

fn seccomp(actions: &str) -> Finding {
    if actions.split_whitespace().any(|action| action == "errno") {
        return ok("seccomp", "filters available");
    }
    problem("seccomp", State::Missing, "no filters", "use a kernel built with CONFIG_SECCOMP_FILTER=y")
}

fn cgroups() -> Finding {
    match pith_cgroup::Hierarchy::detect() {
        Ok(hierarchy) => match hierarchy.v2_root() {
            Some(root) => ok("cgroups", format!("{:?}, v2 at {}", hierarchy.kind(), root.display())),
            None => problem("cgroups", State::Missing, "only v1", CGROUP_ADVICE),
        },
        Err(error) => problem("cgroups", State::Missing, error.to_string(), CGROUP_ADVICE),
    }
}

fn capabilities(has: impl Fn(Capability) -> bool) -> [Finding; 2] {
    let needed = [
        Capability::CAP_SYS_ADMIN,
        Capability::CAP_NET_ADMIN,
        Capability::CAP_BPF,
        Capability::CAP_SYS_PTRACE,
        Capability::CAP_MKNOD,
        Capability::CAP_SETUID,
        Capability::CAP_SETGID,
        Capability::CAP_SETPCAP,
        Capability::CAP_CHOWN,
        Capability::CAP_DAC_OVERRIDE,
        Capability::CAP_KILL,
    ];
    let missing: Vec<String> = needed
        .into_iter()
        .filter(|capability| !has(*capability))
        .map(|capability| capability.to_string())
        .collect();
    let rights = if missing.is_empty() {
        ok("rights", "all needed capabilities")
    } else {
        problem("rights", State::Missing, format!("without {}", missing.join(", ")), "run pith as root")
    };
    let resource = if has(Capability::CAP_SYS_RESOURCE) {
        ok("resource rights", "CAP_SYS_RESOURCE")
    } else {
        problem(
            "resource rights",
            State::Degraded,
            "without CAP_SYS_RESOURCE",
            "negative oom_score_adj and raised hard limits of containers are left out; grant it to have them",
        )
    };
    [rights, resource]
}

fn print(findings: &[Finding]) {
    let mut table = Table::new();
    table.load_style(NOTHING);
    for finding in findings {
        let mark = match finding.state {
            State::Ok => "ok",
            State::Degraded => "degraded",
            State::Missing => "MISSING",
        };
        table.add_row([mark, finding.what, &finding.detail, &finding.advice]);
    }
    println!("{table}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_table() {
        let cases = [
            ("new kernel", kernel("6.18.44-x"), State::Ok),
            ("first with tcx", kernel("6.6.0"), State::Ok),
            ("too old", kernel("6.1.0-30-cloud-amd64"), State::Missing),
            ("unreadable release", kernel(""), State::Missing),
            ("no BTF", btf(false), State::Missing),
            ("overlay", overlay("nodev\tproc\nnodev\toverlay\n", || false), State::Ok),
            ("overlay as a module", overlay("nodev\tproc\n", || true), State::Ok),
            ("no overlay", overlay("nodev\tproc\n", || false), State::Degraded),
            ("seccomp", seccomp("kill_process errno log allow"), State::Ok),
            ("no seccomp", seccomp(""), State::Missing),
            ("no pid namespaces", namespaces(|name| name != "pid"), State::Missing),
        ];
        for (name, finding, expect) in cases {
            assert_eq!(finding.state, expect, "{name}: {finding:?}");
            assert_eq!(finding.advice.is_empty(), expect == State::Ok, "{name}: a problem comes with advice");
        }
    }

    #[test]
    fn without_sys_resource_it_is_degraded_not_missing() {
        let [rights, resource] = capabilities(|capability| capability != Capability::CAP_SYS_RESOURCE);
        assert_eq!((rights.state, resource.state), (State::Ok, State::Degraded));
        let [rights, _] = capabilities(|capability| capability != Capability::CAP_BPF);
        assert!(rights.detail.contains("CAP_BPF"), "{rights:?}");
    }
}
